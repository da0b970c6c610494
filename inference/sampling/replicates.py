"""Replicates of a Pyro model: latent values and data drawn from it, and all the posteriors as one potential."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from energyppl._checks import shape_text
from energyppl.errors import InvalidInput, warn_user
from energyppl.inference.sampling.pyro_model import ModelPotential, unvalidated
from energyppl.inference.sampling.pyro_sites import RedrawData, is_random

__all__ = ["ReplicatedModel", "simulate_replicates"]

Model = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class ReplicatedModel:
    """The potentials −log p(z, data_i) of one Pyro model given n data sets, batched over chains and data sets.

    Args:
        potential: of the model given any of the data sets.
        names: of the sites that are data.
        values: of these sites, ``(n, *shape)`` each.
    """

    potential: ModelPotential
    names: tuple[str, ...]
    values: tuple[Tensor, ...]

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point, the latent values of one data set."""
        return self.potential.event_shape

    def __len__(self) -> int:
        return len(self.values[0])

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate energies of unconstrained points, ``(*batch, n, D)`` to ``(*batch, n)``."""
        flat = x.reshape(-1, *x.shape[-2:])
        over_sets = torch.func.vmap(self._log_joint)
        energy: Tensor = -torch.func.vmap(over_sets, (0, *[None] * len(self.values)))(flat, *self.values)
        return energy.reshape(x.shape[:-1])

    def given(self, index: int) -> ModelPotential:
        """Return the potential given one data set."""
        return self._given(tuple(value[index] for value in self.values))

    def vectorized(self) -> bool:
        """Tell whether vmap over data sets agrees with one after another; warn if it does not."""
        if not self.potential.vectorized:
            return False
        count = min(2, len(self))
        few = replace(self, values=tuple(value[:count] for value in self.values))
        points = self.potential.initial(torch.Size((2, count)))
        with torch.no_grad():
            slow = torch.stack([self.given(i)(points[:, i]) for i in range(count)], 1)
            try:
                quick = few(points)
            except Exception as error:  # whatever a user's model does that vmap can't follow
                warn_user(f"this model can't be batched over data sets ({error}); they are sampled one by one")
                return False
        if torch.allclose(slow, quick, rtol=1e-3, atol=1e-3, equal_nan=True):
            return True
        warn_user("this model can't be batched over data sets (vmap gives other numbers); they are sampled one by one")
        return False

    def _given(self, values: Sequence[Tensor]) -> ModelPotential:
        data = dict(zip(self.names, values, strict=True))
        return replace(self.potential, model=poutine.condition(self.potential.model, data))

    def _log_joint(self, z: Tensor, *values: Tensor) -> Tensor:
        return self._given(values).log_joint(z)


def simulate_replicates(
    model: Model,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    count: int,
    *,
    prior: Callable[[int], Mapping[str, Tensor]] | None = None,
    simulator: Model | None = None,
    observed: Sequence[str] | None = None,
) -> tuple[ReplicatedModel, Tensor]:
    """Draw latent values and data ``count`` times.

    Args:
        model: a Pyro model.
        args: its positional arguments.
        kwargs: its named ones.
        count: n.
        prior: draws latent sites, ``(n, *shape)`` by name; the model itself if None.
        simulator: a Pyro model with the same sites that draws the data given latent values; the model itself if None.
        observed: names of the sites that are data; those that are observed with these arguments if None.

    Returns:
        The posteriors' potentials, and the unconstrained latent values that each data set was drawn from, ``(n, D)``.

    Raises:
        InvalidInput: if the model has no data, or a prior or simulator gives other sites, other shapes or NaN.
    """
    given = None if prior is None else _checked_prior(prior(count), count)
    drawn = {} if given is None else given
    names = _data_sites(_conditioned(model, drawn, 0), args, kwargs, observed, latent=drawn.keys())
    source = RedrawData()(model if simulator is None else simulator)
    latent: dict[str, list[Tensor]] = {}
    data: dict[str, list[Tensor]] = {name: [] for name in names}
    with torch.no_grad():
        for i in range(count):
            run = source if given is None else poutine.condition(source, {k: v[i] for k, v in given.items()})
            nodes = poutine.trace(run).get_trace(*args, **kwargs).nodes
            for name in names:
                if name not in nodes:
                    raise InvalidInput(f"the simulator has no site {name!r}: it must draw the data under their names")
                data[name].append(_finite(name, nodes[name]["value"], i))
            if i == 0:
                potential = ModelPotential.trace(_conditioned(model, data, 0), *args, **kwargs)
            for site in potential.sites:
                if site.name not in nodes:
                    raise InvalidInput(f"the simulator has no site {site.name!r}: it must draw the latent sites too")
                latent.setdefault(site.name, []).append(torch.as_tensor(nodes[site.name]["value"]))
    truth = potential.unconstrain({k: torch.stack(v) for k, v in latent.items()}, torch.Size((count,)), "prior")
    values = tuple(_stacked(name, data[name]) for name in names)
    return ReplicatedModel(potential, tuple(names), values), truth


def _conditioned(model: Model, data: Mapping[str, Any], index: int) -> Model:
    conditioned: Model = poutine.condition(model, {name: values[index] for name, values in data.items()})
    return conditioned


def _data_sites(
    model: Model,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    observed: Sequence[str] | None,
    latent: Collection[str],
) -> list[str]:
    """Find the names of a model's data, or check those that are given; ``latent`` sites are conditioned on a draw."""
    with torch.no_grad(), unvalidated():
        nodes = poutine.trace(model).get_trace(*args, **kwargs).nodes
    sites = {name: node for name, node in nodes.items() if node["type"] == "sample" and not site_is_subsample(node)}
    if observed is None:
        found = [n for n, node in sites.items() if node["is_observed"] and n not in latent and is_random(node["fn"])]
        if not found:
            raise InvalidInput(
                "the model observes nothing with these arguments: name the sites that are data, observed=('y',)"
            )
        return found
    names = [observed] if isinstance(observed, str) else list(observed)
    unknown = [name for name in names if name not in sites]
    if unknown or not names:
        raise InvalidInput(
            f"observed must name sites of the model, {', '.join(sites)}; got {', '.join(map(repr, unknown)) or 'none'}"
        )
    return names


def _checked_prior(drawn: Any, count: int) -> dict[str, Tensor]:
    if not isinstance(drawn, Mapping) or not drawn:
        raise InvalidInput(
            f"prior must return a dictionary of sites, each (n, *shape); got {type(drawn).__name__}: return "
            "{'z': draws}"
        )
    for name, value in drawn.items():
        if not isinstance(value, Tensor) or value.dim() < 1 or len(value) != count:
            came = shape_text(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInput(f"prior must return {count} draws of site {name!r}, one a row; got {came}")
        if not bool(torch.isfinite(value).all()):
            raise InvalidInput(f"prior must return finite draws; got NaN or infinity for site {name!r}")
    return dict(drawn)


def _finite(name: str, value: Any, index: int) -> Tensor:
    tensor = torch.as_tensor(value)
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidInput(
            f"data must be finite; got NaN or infinity at site {name!r} of replicate {index}: the simulator or the "
            "prior leaves the range in which the model can be computed"
        )
    return tensor


def _stacked(name: str, values: Sequence[Tensor]) -> Tensor:
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise InvalidInput(
            f"data sets must have one shape; got {', '.join(shape_text(shape) for shape in sorted(shapes))} for site "
            f"{name!r}: fix the number of rows"
        )
    return torch.stack(list(values))

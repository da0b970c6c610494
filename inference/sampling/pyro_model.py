"""Any Pyro model as a potential: its latent sites, unconstrained and laid end to end, batched over chains by vmap."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from energyppl._checks import shape_text
from energyppl.autodiff.structure import modules_read_by
from energyppl.errors import EnergyPPLError, InvalidInput
from energyppl.potentials.constrained import latent_transform

__all__ = ["ModelPotential"]

_CHUNK = 10_000  # points that are turned into a model's variables at once


@dataclass(frozen=True, eq=False)
class _Site:
    """Where a latent site's unconstrained values lie in the vector of all."""

    name: str
    start: int
    shape: torch.Size  # unconstrained
    constrained_shape: torch.Size

    def take(self, z: Tensor) -> Tensor:
        flat = z[..., self.start : self.start + math.prod(self.shape)]
        return flat.reshape(z.shape[:-1] + self.shape)


class _Fill(Messenger):
    """Gives latent sites values, made from unconstrained ones by each site's own support, and adds up the Jacobians."""

    def __init__(self, value_for: Callable[[Any, Any], Tensor | None]) -> None:
        super().__init__()
        self._value_for = value_for
        self.log_jacobian: Tensor | float = 0.0

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]) is dist.Multinomial:
            msg["fn"] = _Multinomial(msg["fn"].total_count, logits=msg["fn"].logits)
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        transform = latent_transform(msg["fn"])
        z = self._value_for(msg, transform)
        if z is None:
            return
        value = transform(z)
        self.log_jacobian = self.log_jacobian + transform.log_abs_det_jacobian(z, value).sum()
        msg["value"], msg["is_observed"], msg["infer"] = value, True, {**msg["infer"], "was_latent": True}


@dataclass(frozen=True, eq=False)
class ModelPotential:
    """The potential −log p(z, data) of a Pyro model's unconstrained latent values z; made by :meth:`trace`."""

    model: Callable[..., Any] = field(metadata={"pure": True}, repr=False)
    arguments: "_Held" = field(metadata={"pure": True}, repr=False)
    sites: tuple[_Site, ...] = field(metadata={"pure": True}, repr=False)
    modules: tuple[nn.Module, ...] = field(repr=False)  # that the hot door watches
    event_shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    one_by_one: "_OneByOne | None" = field(default=None, repr=False)

    @classmethod
    def trace(cls, model: Callable[..., Any], *args: Any, **kwargs: Any) -> "ModelPotential":
        """Run a model once and lay out its latent sites.

        Raises:
            InvalidInput: if it has no latent site, a discrete one, or a plate that subsamples.
        """
        _refuse_discrete(model, args, kwargs)
        with torch.no_grad(), _Fill(_origin):
            nodes: Mapping[str, Any] = poutine.trace(model).get_trace(*args, **kwargs).nodes
        values = [node["value"] for node in nodes.values() if node["type"] in ("sample", "param")]
        # Latent values of priors that are plain numbers lie on the CPU, wherever the rest is.
        off = (v.device for v in values if isinstance(v, Tensor) and v.device.type != "cpu")
        sites, start, dtypes, device = [], 0, [], next(off, torch.device("cpu"))
        for name, node in nodes.items():
            if node["type"] == "sample" and node["infer"].get("was_latent"):
                shape = latent_transform(node["fn"]).inverse_shape(node["value"].shape)
                sites.append(_Site(name, start, torch.Size(shape), node["value"].shape))
                start += math.prod(shape)
                dtypes.append(node["value"].dtype)
        if not sites:
            raise InvalidInput(
                "the model has no latent site: there is nothing to sample; an energy goes in "
                "Energy(function, event_shape)"
            )
        dtype = dtypes[0]
        for other in dtypes:
            dtype = torch.promote_types(dtype, other)
        modules = (model,) if isinstance(model, nn.Module) else tuple(modules_read_by(model))
        found = cls(model, _Held((args, kwargs)), tuple(sites), modules, torch.Size((start,)), dtype, device)
        return found if found._vmap_serves() else replace(found, one_by_one=_OneByOne())

    @property
    def vectorized(self) -> bool:
        """Whether all chains are evaluated together."""
        return self.one_by_one is None

    # --- The energy ---

    def __call__(self, x: Tensor) -> Tensor:
        """Energies of unconstrained points, ``(*batch, D)`` to ``(*batch,)``."""
        if x.numel() == 0:
            return x.sum(-1)
        energy: Tensor = -self._over(self._log_joint, x.reshape(-1, x.shape[-1]))
        return energy.reshape(x.shape[:-1])

    def _over(self, function: Callable[[Tensor], Any], points: Tensor) -> Any:
        if self.vectorized:
            return torch.func.vmap(function)(points)
        rows = [function(point) for point in points]
        if isinstance(rows[0], dict):
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return torch.stack(rows)

    def _run(self, z: Tensor) -> tuple[Any, Tensor | float]:
        by_name = {site.name: site for site in self.sites}

        def value(msg: Any, transform: Any) -> Tensor | None:
            site = by_name.get(msg["name"])
            if site is None:
                raise EnergyPPLError(
                    f"the model has a latent site {msg['name']!r} now that it did not have before: its sites must be "
                    "the same at every run"
                )
            return site.take(z)

        args, kwargs = self.arguments.value
        with _unvalidated(), _Fill(value) as fill:
            trace = poutine.trace(self.model).get_trace(*args, **kwargs)
        missing = by_name.keys() - trace.nodes.keys()
        if missing:
            raise EnergyPPLError(
                f"the model's latent site(s) {', '.join(sorted(missing))} were not there in this run: its sites must "
                "be the same at every run"
            )
        return trace, fill.log_jacobian

    def _log_joint(self, z: Tensor) -> Tensor:
        with _unvalidated():
            trace, log_jacobian = self._run(z)
            total: Tensor = trace.log_prob_sum() + log_jacobian
        return total

    def _vmap_serves(self) -> bool:
        """Whether vmap follows the model and agrees with running it point by point."""
        points = 0.1 * torch.arange(2.0 * self.event_shape[0], dtype=self.dtype, device=self.device).cos().reshape(
            2, -1
        )
        with torch.no_grad():
            slow, again = (torch.stack([self._log_joint(point) for point in points]) for _ in range(2))
            if not _same(slow, again):
                raise InvalidInput("the model's log density changes from run to run: it must not draw at random")
            try:
                quick = torch.func.vmap(self._log_joint)(points)
            except Exception as error:  # whatever a user's model does that vmap can't follow
                reason = str(error).splitlines()[0]
            else:
                if _same(slow, quick):
                    return True
                reason = "vmap gives other numbers"
        warnings.warn(
            f"this model can't be batched over chains ({reason}); each chain is evaluated on its own, which is slow",
            stacklevel=4,
        )
        return False

    # --- Its variables ---

    def constrain(self, z: Tensor) -> Mapping[str, Tensor]:
        """Latent and deterministic sites by name, ``(*batch, *shape)``, from unconstrained points ``(*batch, D)``."""
        return self._sites_of(z, self._values)

    def log_likelihood(self, z: Tensor) -> Mapping[str, Tensor]:
        """Log density of each observed site's parts given the latent ones, ``(*batch, *site batch)`` by name."""
        return self._sites_of(z, self._likelihood)

    def observed(self) -> dict[str, Tensor]:
        """The observed sites' values by name."""
        zero = torch.zeros(self.event_shape, dtype=self.dtype, device=self.device)
        nodes = self._run(zero)[0].nodes
        return {name: node["value"] for name, node in nodes.items() if _is_data(node)}

    def _sites_of(self, z: Tensor, function: Callable[[Tensor], dict[str, Tensor]]) -> Mapping[str, Tensor]:
        flat, batch = z.reshape(-1, z.shape[-1]).to(self.device), z.shape[:-1]
        with torch.no_grad():
            parts = [self._over(function, chunk) for chunk in flat.split(_CHUNK)] if len(flat) else []
        if not parts:
            return {site.name: z.new_empty(*batch, *site.constrained_shape) for site in self.sites}
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: value.reshape(batch + value.shape[1:]).to(z.device) for name, value in joined.items()}

    def _values(self, z: Tensor) -> dict[str, Tensor]:
        nodes = self._run(z)[0].nodes
        return {
            name: node["value"]
            for name, node in nodes.items()
            if node["type"] == "sample" and (node["infer"].get("was_latent") or node["infer"].get("_deterministic"))
        }

    def _likelihood(self, z: Tensor) -> dict[str, Tensor]:
        with _unvalidated():
            trace, _ = self._run(z)
            trace.compute_log_prob(lambda name, node: _is_data(node))
        return {name: node["log_prob"] for name, node in trace.nodes.items() if _is_data(node)}

    # --- Where chains begin ---

    def initial(self, shape: torch.Size) -> Tensor:
        """Points uniform in (−2, 2), as Pyro's own NUTS begins, ``(*shape, D)``."""
        return torch.rand(*shape, *self.event_shape, dtype=self.dtype, device=self.device) * 4.0 - 2.0

    def join(self, values: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """Unconstrained points from the latent sites' unconstrained values, ``(*shape, *site shape)`` each."""
        return torch.cat([values[site.name].reshape(*shape, -1) for site in self.sites], -1).to(self.device, self.dtype)

    def unconstrain(self, values: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """Unconstrained points from the latent sites' values, ``(*shape, *site shape)`` each.

        Raises:
            InvalidInput: if a site is missing or of another shape.
        """
        missing = {site.name for site in self.sites} - set(values)
        if missing:
            raise InvalidInput(f"init must give every latent site a value; missing: {', '.join(sorted(missing))}")
        values = {name: torch.as_tensor(value, device=self.device) for name, value in values.items()}
        for site in self.sites:
            expected = (*shape, *site.constrained_shape)
            if tuple(values[site.name].shape) != expected:
                raise InvalidInput(
                    f"init[{site.name!r}] must have shape {shape_text(expected)}; got "
                    f"{shape_text(values[site.name].shape)}"
                )
        rows = []
        for index in range(math.prod(shape)):
            given = {s.name: values[s.name].reshape(-1, *s.constrained_shape)[index] for s in self.sites}
            rows.append(self._unconstrain_one(given))
        return torch.stack(rows).reshape(*shape, *self.event_shape)

    def _unconstrain_one(self, given: Mapping[str, Tensor]) -> Tensor:
        parts: dict[str, Tensor] = {}

        def value(msg: Any, transform: Any) -> Tensor:
            parts[msg["name"]] = transform.inv(given[msg["name"]])
            return parts[msg["name"]]

        args, kwargs = self.arguments.value
        with torch.no_grad(), _Fill(value):
            poutine.trace(self.model).get_trace(*args, **kwargs)
        return torch.cat([parts[site.name].reshape(-1) for site in self.sites]).to(self.dtype)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


class _Multinomial(dist.Multinomial):
    """The same without torch's indexing by a mask, which vmap can't follow."""

    def log_prob(self, value: Tensor) -> Tensor:
        logits = torch.where((value == 0) & (self.logits == -torch.inf), 0.0, self.logits)
        log_prob: Tensor = (
            torch.lgamma(value.sum(-1) + 1.0) - torch.lgamma(value + 1.0).sum(-1) + (logits * value).sum(-1)
        )
        return log_prob


class _OneByOne:
    """Marks a model that vmap can't follow; the hot door leaves what it doesn't know to autograd, as is right here."""


class _Held:
    """A model's arguments, told from others by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _is_data(node: Any) -> bool:
    infer = node.get("infer") or {}
    return bool(
        node["type"] == "sample"
        and node["is_observed"]
        and not infer.get("was_latent")
        and not infer.get("_deterministic")
        and not isinstance(node["fn"], dist.Unit)  # pyro.factor
        and not site_is_subsample(node)
    )


def _refuse_discrete(model: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Name discrete latent sites and subsampling plates before anything fails because of them."""

    class Look(Messenger):
        def _pyro_sample(self, msg: Any) -> None:
            if site_is_subsample(msg):
                size, sub = msg["fn"].size, msg["fn"].subsample_size
                if sub is not None and sub != size:
                    raise InvalidInput(
                        f"plate {msg['name']!r} subsamples {sub} of {size} rows, so the density changes from run to "
                        "run: give MCMC all the data"
                    )
            elif not msg["is_observed"] and msg["fn"].support.is_discrete:
                raise InvalidInput(
                    f"latent site {msg['name']!r} is discrete: gradients can't move it. Sum it out of the model (as "
                    "dist.MixtureSameFamily does for mixtures), or observe it"
                )

    with torch.no_grad(), _Fill(_origin), Look():
        model(*args, **kwargs)


def _origin(msg: Any, transform: Any) -> Tensor:
    like = _float_like(msg["fn"])
    return torch.zeros(transform.inverse_shape(msg["fn"].shape()), dtype=like.dtype, device=like.device)


def _float_like(fn: Any) -> Tensor:
    """A tensor of a distribution's own dtype and device."""
    for value in vars(fn).values():
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            return value
    for value in vars(fn).values():  # what it is made of
        if isinstance(value, torch.distributions.Distribution):
            return _float_like(value)
    return torch.empty(())


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Checks of values can't be batched, and a proposal outside is a rejection, not an error."""
    with pyro.validation_enabled(False):
        yield

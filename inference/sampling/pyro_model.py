"""Pyro models as potentials: their latent sites, unconstrained and laid end to end, batched over chains by vmap."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from energyppl._checks import shape_text
from energyppl.autodiff.private import without_value_checks
from energyppl.autodiff.structure import modules_read_by
from energyppl.errors import EnergyPPLError, InvalidInput, first_line, warn_user
from energyppl.inference.sampling.pyro_sites import (
    Fill,
    Groups,
    RedrawData,
    Site,
    groups_of,
    origin,
    refuse_discrete,
)
from energyppl.integration.estimates import LeftOut
from energyppl.potentials.constrained import latent_transform

__all__ = ["ModelPotential", "unvalidated"]

_CHUNK = 10_000  # points that are turned into a model's variables at once


@dataclass(frozen=True, eq=False)
class ModelPotential:
    """The potential −log p(z, data) of a Pyro model's unconstrained latent values z; made by :meth:`trace`.

    Entries of latent sites that a mask takes out of the density, and on which nothing else depends, are no coordinates:
    they stay where the site's support has its origin.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> potential = ep.sampling.ModelPotential.trace(model, torch.ones(5))
        >>> potential.event_shape, [site.name for site in potential.sites]
        (torch.Size([1]), ['scale'])
    """

    model: Callable[..., Any] = field(metadata={"pure": True}, repr=False)
    arguments: "_Held" = field(metadata={"pure": True}, repr=False)
    sites: tuple[Site, ...] = field(metadata={"pure": True}, repr=False)
    modules: tuple[nn.Module, ...] = field(repr=False)  # whose weights the compiled potential reads
    event_shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    one_by_one: "_OneByOne | None" = field(default=None, repr=False)
    groups: Groups = field(default=Groups((), (), ()), metadata={"pure": True}, repr=False)

    @classmethod
    def trace(cls, model: Callable[..., Any], *args: Any, **kwargs: Any) -> "ModelPotential":
        """Run a model once and lay out its latent sites.

        Raises:
            InvalidInput: if it has no latent site, a discrete one, or a plate that subsamples.
        """
        refuse_discrete(model, args, kwargs)
        with torch.no_grad(), Fill(origin) as fill:
            nodes: Mapping[str, Any] = poutine.trace(model).get_trace(*args, **kwargs).nodes
        values = [node["value"] for node in nodes.values() if node["type"] in ("sample", "param")]
        # Latent values of priors that are plain numbers lie on the CPU, wherever the rest is.
        off = (v.device for v in values if isinstance(v, Tensor) and v.device.type != "cpu")
        sites, dtypes, device = [], [], next(off, torch.device("cpu"))
        for name, node in nodes.items():
            if node["type"] == "sample" and node["infer"].get("was_latent"):
                shape = latent_transform(node["fn"]).inverse_shape(node["value"].shape)
                sites.append(Site(name, 0, torch.Size(shape), node["value"].shape))
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
        held = _Held((args, kwargs))
        found = cls(model, held, (), modules, torch.Size((0,)), dtype, device)._laid_out(sites)
        if any(not bool(mask.all()) for mask in fill.masks.values()):
            found = found._without_idle()
        found = found if found._vmap_serves() else replace(found, one_by_one=_OneByOne())
        one, other = (found._run(z)[0].nodes for z in found._spread(2))
        return replace(found, groups=groups_of(one, other))

    def _laid_out(self, sites: Sequence[Site]) -> "ModelPotential":
        start, laid = 0, []
        for site in sites:
            laid.append(replace(site, start=start))
            start += site.size
        if not start:
            raise InvalidInput("masks take every latent entry out of the model: there is nothing to sample")
        return replace(self, sites=tuple(laid), event_shape=torch.Size((start,)))

    def _without_idle(self) -> "ModelPotential":
        """Take entries out that are masked, and that nothing else depends on, at four points."""
        idle: dict[str, Tensor] = {}
        for point in self._spread(4):
            with torch.enable_grad():
                z = point.requires_grad_()
                trace, fill = self._run(z)
                others = (jacobian for name, jacobian in fill.jacobians.items() if name not in fill.masks)
                (slope,) = torch.autograd.grad(trace.log_prob_sum() + sum(others, z.sum() * 0.0), z)
            for site in self.sites:
                mask = fill.masks.get(site.name, torch.ones(site.shape, dtype=torch.bool)).to(slope.device)
                here = ~mask & (site.take(slope) == 0.0)
                idle[site.name] = idle.get(site.name, here) & here
        out = [
            replace(site, idle=idle[site.name].cpu()) if bool(idle[site.name].any()) else site for site in self.sites
        ]
        return self._laid_out(out)

    def _spread(self, count: int) -> Tensor:
        """Lay out some points to look at a model, always the same; torch's random numbers stay as they are."""
        random = torch.Generator().manual_seed(0)
        points = torch.rand(count, *self.event_shape, generator=random, dtype=self.dtype) * 4.0 - 2.0
        return points.to(self.device)

    @property
    def vectorized(self) -> bool:
        """Tell whether all chains are evaluated together."""
        return self.one_by_one is None

    # --- The energy ---

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate energies of unconstrained points, ``(*batch, D)`` to ``(*batch,)``."""
        if x.numel() == 0:
            return x.sum(-1)
        energy: Tensor = -self._over(self.log_joint, x.reshape(-1, x.shape[-1]))
        return energy.reshape(x.shape[:-1])

    def _over(self, function: Callable[[Tensor], Any], points: Tensor, randomness: str = "error") -> Any:
        if self.vectorized:
            return torch.func.vmap(function, randomness=randomness)(points)
        rows = [function(point) for point in points]
        if isinstance(rows[0], dict):
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return torch.stack(rows)

    def _run(self, z: Tensor) -> tuple[Any, Fill]:
        by_name = {site.name: site for site in self.sites}

        def value(msg: Any, transform: Any) -> Tensor:
            site = by_name.get(msg["name"])
            if site is None:
                raise EnergyPPLError(
                    f"the model has a latent site {msg['name']!r} now that it did not have before: its sites must be "
                    "the same at every run"
                )
            return site.take(z)

        args, kwargs = self.arguments.value
        idle = {site.name: site.idle for site in self.sites if site.idle is not None}
        with unvalidated(), Fill(value, idle) as fill:
            trace = poutine.trace(self.model).get_trace(*args, **kwargs)
        missing = by_name.keys() - trace.nodes.keys()
        if missing:
            raise EnergyPPLError(
                f"the model's latent site(s) {', '.join(sorted(missing))} were not there in this run: its sites must "
                "be the same at every run"
            )
        return trace, fill

    def log_joint(self, z: Tensor) -> Tensor:
        """Evaluate minus the energy of one unconstrained point, ``(D,)`` to ``()``; vmap makes a batch of it."""
        with unvalidated():
            trace, fill = self._run(z)
            total: Tensor = trace.log_prob_sum() + fill.log_jacobian
        return total

    def _vmap_serves(self) -> bool:
        """Tell whether vmap follows the model and agrees with running it point by point."""
        points = 0.1 * torch.arange(2.0 * self.event_shape[0], dtype=self.dtype, device=self.device).cos().reshape(
            2, -1
        )
        with torch.no_grad():
            slow, again = (torch.stack([self.log_joint(point) for point in points]) for _ in range(2))
            if not _same(slow, again):
                raise InvalidInput("the model's log density changes from run to run: it must not draw at random")
            try:
                quick = torch.func.vmap(self.log_joint)(points)
            except Exception as error:  # whatever a user's model does that vmap can't follow
                reason = first_line(error)
            else:
                if _same(slow, quick):
                    return True
                reason = "vmap gives other numbers"
        warn_user(
            f"this model can't be batched over chains ({reason}); each chain is evaluated on its own, which is slow",
        )
        return False

    # --- Its variables ---

    def constrain(self, z: Tensor) -> Mapping[str, Tensor]:
        """Map unconstrained points ``(*batch, D)`` to latent and deterministic sites by name, ``(*batch, *shape)``."""
        return self._sites_of(z, self._values)

    def log_likelihood(self, z: Tensor) -> Mapping[str, Tensor]:
        """Evaluate the log density of observed sites given the latent ones, ``(*batch, *site batch)`` by name.

        It is that of each datum, whatever ``poutine.scale`` or a plate counts it for; 0 where a mask takes it out.

        Raises:
            InvalidInput: if a site's log Z was left out: the log likelihood of each datum would be off by it.
        """
        nodes = self._run(torch.zeros(self.event_shape, dtype=self.dtype, device=self.device))[0].nodes
        for name in self.groups.likelihoods:
            density = nodes[name]["fn"]
            while density is not None:
                if isinstance(getattr(density, "log_normalizer", None), LeftOut):
                    raise InvalidInput(
                        f"site {name!r} must be normalized for its log likelihood; got one whose log Z was left out: "
                        "take ebm.marginal() in the model in place of ebm.marginal().unnormalized()"
                    )
                density = getattr(density, "base_dist", None)
        return self._sites_of(z, self._likelihood)

    def predictive(self, z: Tensor) -> Mapping[str, Tensor]:
        """Draw the observed sites anew given the latent ones, ``(*batch, *shape)`` by name."""
        try:
            return self._sites_of(z, self._predicted, randomness="different")
        except Exception:  # draws that vmap can't follow, such as rejection samplers': one after another
            return replace(self, one_by_one=_OneByOne())._sites_of(z, self._predicted)

    def observed(self) -> dict[str, Tensor]:
        """Return the data, ``(*shape)`` by observed site."""
        zero = torch.zeros(self.event_shape, dtype=self.dtype, device=self.device)
        nodes = self._run(zero)[0].nodes
        return {name: torch.as_tensor(nodes[name]["value"]) for name in self.groups.data}

    def shapes(self) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
        """Return the shapes of the sites of the posterior and of the data, by name."""
        zero = torch.zeros(self.event_shape, dtype=self.dtype, device=self.device)
        nodes = self._run(zero)[0].nodes
        posterior, data = (
            {name: torch.as_tensor(nodes[name]["value"]).shape for name in names}
            for names in (self.groups.posterior, self.groups.data)
        )
        return posterior, data

    def _sites_of(
        self, z: Tensor, function: Callable[[Tensor], dict[str, Tensor]], randomness: str = "error"
    ) -> Mapping[str, Tensor]:
        flat, batch = z.reshape(-1, z.shape[-1]).to(self.device), z.shape[:-1]
        with torch.no_grad():
            parts = [self._over(function, chunk, randomness) for chunk in flat.split(_CHUNK)] if len(flat) else []
        if not parts:
            return {site.name: z.new_empty(*batch, *site.constrained_shape) for site in self.sites}
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: value.reshape(batch + value.shape[1:]).to(z.device) for name, value in joined.items()}

    def _values(self, z: Tensor) -> dict[str, Tensor]:
        nodes = self._run(z)[0].nodes
        return {name: torch.as_tensor(nodes[name]["value"], device=z.device) for name in self.groups.posterior}

    def _likelihood(self, z: Tensor) -> dict[str, Tensor]:
        with unvalidated():
            trace, _ = self._run(z)
            trace.compute_log_prob(lambda name, node: name in self.groups.likelihoods)
        return {name: _unscaled(trace.nodes[name]) for name in self.groups.likelihoods}

    def _predicted(self, z: Tensor) -> dict[str, Tensor]:
        nodes = self._run(z)[0].nodes
        latent = {site.name: nodes[site.name]["value"] for site in self.sites}
        args, kwargs = self.arguments.value
        with unvalidated():
            drawn = poutine.trace(poutine.condition(RedrawData()(self.model), latent)).get_trace(*args, **kwargs)
        return {name: torch.as_tensor(drawn.nodes[name]["value"], device=z.device) for name in self.groups.data}

    # --- Where chains begin ---

    def initial(self, shape: torch.Size) -> Tensor:
        """Draw points uniform in (−2, 2), as Pyro's own NUTS begins, ``(*shape, D)``."""
        return torch.rand(*shape, *self.event_shape, dtype=self.dtype, device=self.device) * 4.0 - 2.0

    def join(self, values: Mapping[str, Any], shape: torch.Size, name: str = "initial_params") -> Tensor:
        """Lay out the latent sites' unconstrained values, ``(*shape, *site shape)`` each, as points ``(*shape, D)``.

        Raises:
            InvalidInput: if a site is missing, unknown, of another shape or not finite.
        """
        self._check_names(values, name)
        parts = []
        for site in self.sites:
            value = self._checked(values[site.name], (*shape, *site.shape), f"{name}[{site.name!r}]", "unconstrained ")
            parts.append(self._finite(site.put(value, shape), f"{name}[{site.name!r}]"))
        return torch.cat(parts, -1)

    def unconstrain(self, values: Mapping[str, Any], shape: torch.Size, name: str = "init") -> Tensor:
        """Map the latent sites' values, ``(*shape, *site shape)`` each, to unconstrained points ``(*shape, D)``.

        Raises:
            InvalidInput: if a site is missing, unknown, of another shape or not finite.
        """
        self._check_names(values, name)
        given = {
            site.name: self._checked(values[site.name], (*shape, *site.constrained_shape), f"{name}[{site.name!r}]")
            for site in self.sites
        }
        rows = []
        for index in range(math.prod(shape)):
            row = {s.name: given[s.name].reshape(-1, *s.constrained_shape)[index] for s in self.sites}
            rows.append(self._unconstrain_one(row, name))
        return torch.stack(rows).reshape(*shape, *self.event_shape)

    def _check_names(self, values: Mapping[str, Any], name: str) -> None:
        known = [site.name for site in self.sites]
        missing, unknown = set(known) - set(values), set(values) - {*known, *self.groups.posterior}
        if missing:
            raise InvalidInput(f"{name} must give every latent site a value; missing: {', '.join(sorted(missing))}")
        if unknown:
            raise InvalidInput(
                f"{name} must name the model's latent sites, {', '.join(known)}; got "
                f"{', '.join(sorted(map(str, unknown)))}"
            )

    def _checked(self, value: Any, shape: Sequence[int], name: str, kind: str = "") -> Tensor:
        try:
            tensor = torch.as_tensor(value, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            raise InvalidInput(f"{name} must be a tensor; got {type(value).__name__}") from None
        if tuple(tensor.shape) != tuple(shape):
            raise InvalidInput(f"{name} must have the {kind}shape {shape_text(shape)}; got {shape_text(tensor.shape)}")
        return tensor.to(self.dtype)

    def _finite(self, part: Tensor, name: str) -> Tensor:
        if not bool(torch.isfinite(part).all()):
            raise InvalidInput(f"{name} must be finite and inside the site's support; got NaN or infinity there")
        return part

    def _unconstrain_one(self, given: Mapping[str, Tensor], name: str) -> Tensor:
        parts: dict[str, Tensor] = {}
        by_name = {site.name: site for site in self.sites}

        def value(msg: Any, transform: Any) -> Tensor:
            site = by_name[msg["name"]]
            part = site.put(transform.inv(given[site.name]), torch.Size())
            parts[site.name] = self._finite(part, f"{name}[{site.name!r}]")
            return replace(site, start=0).take(part)

        args, kwargs = self.arguments.value
        with torch.no_grad(), unvalidated(), Fill(value):
            poutine.trace(self.model).get_trace(*args, **kwargs)
        return torch.cat([parts[site.name].reshape(-1) for site in self.sites]).to(self.dtype)


def _unscaled(node: Mapping[str, Any]) -> Tensor:
    log_prob: Tensor = node["unscaled_log_prob"]
    mask = node["mask"]
    return log_prob if mask is None else torch.where(torch.as_tensor(mask, device=log_prob.device), log_prob, 0.0)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


class _OneByOne:
    """Marks a model that vmap can't follow: ``energy_and_grad`` leaves it to autograd."""


class _Held:
    """A model's arguments, told from others by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value


@contextmanager
def unvalidated() -> Iterator[None]:
    """Leave out checks of values: they can't be batched, and a proposal outside is a rejection, not an error."""
    with pyro.validation_enabled(False), without_value_checks():
        yield

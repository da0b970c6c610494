"""Targets of sampling: the potential of what a user named, how chains begin, and what their points are called."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from energyppl._checks import append_dims, check_event, shape_text
from energyppl.autodiff.devices import beside
from energyppl.autodiff.gradient import energy_only
from energyppl.autodiff.structure import Untraceable, structure
from energyppl.distributions import EnergyDistribution
from energyppl.errors import ChainWarning, InvalidInput, warn_user
from energyppl.inference.sampling.chains import Variables
from energyppl.inference.sampling.pyro_model import ModelPotential
from energyppl.potentials.algebra import Potential
from energyppl.potentials.constrained import Constrained, constrain, unconstrain

__all__ = ["Init", "Target"]

_TRIES = 100  # at a start whose energy is finite

Begin = Callable[[torch.Size], Tensor]
Init = Tensor | Mapping[str, Tensor] | Callable[[torch.Size], Tensor | Mapping[str, Tensor]] | None
"""Points of the support ``(chains, *batch, *event)``; for a Pyro model its latent sites by name; or what draws them."""


@dataclass(frozen=True, eq=False)
class Target:
    """A target as chains need it; made by :meth:`of`."""

    potential: Potential  # of unconstrained points
    variables: Variables
    batch: torch.Size  # of independent targets, sampled along
    begin: Begin  # unconstrained points, by default

    @classmethod
    def of(cls, target: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> "Target":
        """Make a target of a potential, an ``EnergyDistribution`` or a Pyro model with its arguments.

        Raises:
            InvalidInput: for anything else, and for a model whose latent sites can't be moved by gradients.
        """
        _check_containers(args, kwargs)
        if (args or kwargs) and isinstance(target, (EnergyDistribution, Potential)):
            raise InvalidInput(
                f"only a Pyro model takes arguments; got {len(args)} and {', '.join(kwargs or ()) or 'no names'} for a "
                f"{type(target).__name__}"
            )
        if isinstance(target, EnergyDistribution):
            return cls._of_distribution(target)
        if isinstance(target, torch.distributions.Distribution):
            raise InvalidInput(
                f"a {type(target).__name__} is no potential: sample it with .sample(), or name it in a Pyro model"
            )
        if isinstance(target, nn.Module) and hasattr(target, "marginal"):
            raise InvalidInput(
                f"the target must be a distribution, a potential or a Pyro model; got the model "
                f"{type(target).__name__}: pass ebm.marginal(){_or_recovery(target)}"
            )
        if isinstance(target, Potential):
            return cls(target, _named(target), torch.Size(), _normal(target, _like(target, torch.empty(()))))
        if callable(target) and not isinstance(target, type):
            _check_arguments(target, args, kwargs or {})
            model = ModelPotential.trace(target, *args, **(kwargs or {}))
            return cls(model, model.constrain, torch.Size(), model.initial)
        raise InvalidInput(
            "expected a potential with an event_shape, an EnergyDistribution or a Pyro model; got "
            f"{type(target).__name__}"
        )

    @classmethod
    def _of_distribution(cls, target: EnergyDistribution) -> "Target":
        potential, sampler = target.unconstrained(), target.sampler
        if sampler is None:
            return cls(potential, _named(potential), target.batch_shape, _normal(potential, target.like))

        def begin(shape: torch.Size) -> Tensor:
            with torch.no_grad():
                return sampler(potential, shape, target.like)

        return cls(potential, _named(potential), target.batch_shape, begin)

    def start(self, chains: int, init: Init = None) -> Tensor:
        """Find where chains begin, ``(chains, *batch, *event)`` unconstrained: as given, or drawn until it is legal.

        Raises:
            InvalidInput: for points of another shape, sites that are missing, or if no energy is finite.
        """
        shape = torch.Size((chains, *self.batch))
        if isinstance(init, type):
            raise InvalidInput(f"init must be points or what draws them; got the class {init.__name__}: call it")
        if init is not None and not callable(init):
            x = self._enter(init, shape)
            legal = self._finite(x)
        else:
            x = self._draw(init, shape)
            legal = self._finite(x)
            for _ in range(_TRIES):  # again, what fell outside
                if bool(legal.all()):
                    break
                x = torch.where(append_dims(legal, x), x, self._draw(init, shape))
                legal = self._finite(x)
        if not bool(legal.any()):
            raise InvalidInput("no chain starts at a finite energy: start them inside the support")
        return x.detach()

    def _draw(self, init: Any, shape: torch.Size) -> Tensor:
        return self.begin(shape) if init is None else self._enter(init(shape), shape)

    def _enter(self, x: "Tensor | Mapping[str, Tensor]", shape: torch.Size) -> Tensor:
        """Check a user's points of the support, or values of sites, and make them unconstrained."""
        potential = self.potential
        if isinstance(potential, ModelPotential):
            if not isinstance(x, Mapping):
                raise InvalidInput(
                    f"init must be a dictionary of the model's latent sites, or draw one; got {type(x).__name__}"
                )
            return potential.unconstrain(x, shape)
        if isinstance(x, Mapping):
            raise InvalidInput("init can be a dictionary of sites only for a Pyro model: pass a tensor of points")
        event = potential.potential.event_shape if isinstance(potential, Constrained) else potential.event_shape
        check_event("init", x, event)
        if x.shape != (*shape, *event):
            raise InvalidInput(
                f"init must have shape {shape_text((*shape, *event))}, a point for each chain; got "
                f"{shape_text(x.shape)}"
            )
        own = _like(potential, x)
        if x.dtype != own.dtype:
            raise InvalidInput(
                f"init must be {own.dtype} like the network's weights; got {x.dtype}: convert one of them"
            )
        return unconstrain(potential, x.to(own.device))

    def _finite(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            try:
                energy = energy_only(self.potential, x)
                alone = self.potential(x[:1]) if len(x) > 1 else energy
            except (TypeError, IndexError) as error:
                raise InvalidInput(
                    f"the energy can't be evaluated at points {shape_text(x.shape)} and at the first alone ({error}): "
                    "it must map (*batch, *event) to (*batch,) for any batch; of a network with levels, pass a marginal"
                ) from error
        # A batch of one has another energy where points influence each other; other shapes are a batch of targets.
        if alone.shape == energy[:1].shape and not torch.allclose(alone, energy[:1], 1e-3, 1e-3, equal_nan=True):
            raise InvalidInput(
                "the energy of a point depends on the points beside it: sum over the event's dimensions only, and keep "
                "networks that look at the whole batch (batch norm) in eval mode"
            )
        return torch.isfinite(energy)

    def warn_without_gradient(self, x: Tensor) -> None:
        """Warn of an energy that leaves autograd although it differs from point to point; a constant one may."""
        if torch.is_inference_mode_enabled() or x.is_inference():  # in which autograd is silent
            return
        with torch.enable_grad():
            if self.potential(x[:1].detach().requires_grad_()).requires_grad:
                return
        energy = energy_only(self.potential, x)
        finite = energy[torch.isfinite(energy)]
        if len(finite) and bool((finite != finite[0]).any()):
            warn_user(
                "the energy has no gradient, though it differs from point to point: chains don't follow it, and those "
                "that accept every move, as Langevin's, sample another density. Leave .detach(), numpy and "
                "torch.no_grad() out of the energy",
                ChainWarning,
            )


def _named(potential: Potential) -> Variables:
    """Call the points ``x``, on their support."""
    return _Points(potential)


@dataclass(frozen=True, eq=False)
class _Points:
    """The variables of a bare potential; a class, so that chains can be pickled."""

    potential: Potential

    def __call__(self, points: Tensor) -> dict[str, Tensor]:
        return {"x": constrain(self.potential, points)}


def _like(potential: Potential, other: Tensor) -> Tensor:
    """Find a tensor of the dtype and device of a potential's networks; the other one if there is none.

    Tensors of formulas count for the device alone: they are often converted to the points.
    """
    try:
        modules = structure(potential).modules
    except Untraceable:
        return beside(potential, other)
    weights = (p for module in modules for p in module.parameters())
    return next((p for p in weights if p.dtype.is_floating_point), beside(potential, other))


def _check_containers(args: Any, kwargs: Any) -> None:
    if not isinstance(args, tuple | list):
        raise InvalidInput(
            f"args must be a tuple of the Pyro model's arguments; got {type(args).__name__}: write "
            "sample_chains(kernel, model, (x, y)), also for one, (x,)"
        )
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)):
        raise InvalidInput(
            f"kwargs must be a dictionary of the Pyro model's named arguments; got {type(kwargs).__name__}: put "
            "arguments without a name into one tuple, sample_chains(kernel, model, (x, y))"
        )


def _check_arguments(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    try:
        call = model.forward if isinstance(model, nn.Module) else model
        inspect.signature(call).bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidInput(
            f"the Pyro model can't be called with these arguments ({error}); if it is not a model but an energy, wrap "
            "it in Energy(function, event_shape), or give a module an event_shape"
        ) from error


def _normal(potential: Potential, like: Tensor) -> Begin:
    return lambda shape: torch.randn(*shape, *potential.event_shape, dtype=like.dtype, device=like.device)


def _or_recovery(model: nn.Module) -> str:
    return " for the data's, or ebm.recovery(noisy, level)" if hasattr(model, "recovery") else ""

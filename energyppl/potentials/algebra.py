"""Potentials: energies U(x) in nats, p(x) ∝ exp(−U(x)), and the algebra that makes new ones out of old.

A potential is anything that maps ``(*batch, *event)`` to ``(*batch,)`` and has an ``event_shape``.  The classes here
are frozen values: their tensors are fields, so that ``energy_and_grad`` traces a potential once and then serves another
batch of noisy points or levels without a new trace.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution

from energyppl._checks import (
    broadcast_shapes,
    check_event,
    check_positive,
    check_shape,
    is_number,
    shape_text,
)
from energyppl.autodiff.structure import check_not_model
from energyppl.errors import InvalidInput
from energyppl.potentials.points import can_expand

__all__ = ["Affine", "Bridge", "Conditioned", "Energy", "Potential", "RecoveryPotential", "Scaled", "Sum"]


@runtime_checkable
class Potential(Protocol):
    """An energy: a callable from ``(*batch, *event_shape)`` to ``(*batch,)``, in nats.

    >>> isinstance(ep.toys.Rings(), ep.potentials.Potential)
    True
    """

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point; a plain attribute will do."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of the points ``x``."""
        ...


@dataclass(frozen=True, eq=False)
class Energy:
    """A plain function as a potential.

    Args:
        function: maps ``(*batch, *event)`` to ``(*batch,)``, in nats.  It must be pure: tensors that it reads may be
            written in place, but nothing else that it reads may change, since it is traced once.
        event_shape: shape of one point.

    Raises:
        InvalidInput: if ``function`` can't be called, or ``event_shape`` is no shape.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), event_shape=(2,))
        >>> normal(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        tensor([0., 1.])
    """

    function: Callable[[Tensor], Tensor] = field(metadata={"pure": True})
    event_shape: torch.Size

    def __post_init__(self) -> None:
        if not callable(self.function) or isinstance(self.function, (type, Distribution)):
            raise InvalidInput(
                f"function must map points (*batch, *event) to energies (*batch,); got {self.function!r}: pass a "
                "function or a module"
            )
        object.__setattr__(self, "event_shape", check_shape("event_shape", self.event_shape))

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of the points ``x``."""
        return self.function(x)


def as_potential(name: str, value: object) -> Potential:
    """Return the value, if it is a potential.

    Raises:
        InvalidInput: if not; among others for a distribution, which draws when it is called, and for a model.
    """
    came = type(value).__name__
    check_not_model(name, value)
    if isinstance(value, type) or not isinstance(value, Potential):
        raise InvalidInput(
            f"{name} must be a potential, a callable with an event_shape; got {came}: wrap a plain function in "
            "Energy(function, event_shape)"
        )
    if not isinstance(value.event_shape, tuple):
        raise InvalidInput(
            f"{name} must have a torch.Size or tuple as its event_shape; got {value.event_shape!r}: write "
            "event_shape = (2,) for points of two numbers"
        )
    return value


def sum_event(value: Tensor, event_shape: torch.Size) -> Tensor:
    """Sum over the event dimensions: ``(*batch, *event)`` to ``(*batch,)``."""
    return value.sum(dim=tuple(range(-len(event_shape), 0))) if event_shape else value


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum of energies: a product of experts (Hinton 2002).

    Args:
        terms: the potentials, of one event shape.

    Raises:
        InvalidInput: if there is no term or the terms' event shapes differ.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), event_shape=(2,))
        >>> ep.potentials.Sum(normal, normal)(torch.ones(3, 2))
        tensor([2., 2., 2.])
    """

    terms: tuple[Potential, ...]

    def __init__(self, *terms: Potential) -> None:
        if not terms:
            raise InvalidInput("Sum needs at least one potential; got none: pass Sum(first, second)")
        for index, term in enumerate(terms):
            if as_potential(f"term {index} of a Sum", term).event_shape != terms[0].event_shape:
                raise InvalidInput(
                    f"the terms of a Sum must share one event_shape; got {shape_text(terms[0].event_shape)} and "
                    f"{shape_text(term.event_shape)}: bring them to the same points first"
                )
        object.__setattr__(self, "terms", terms)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.terms[0].event_shape

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of the points ``x``."""
        total = self.terms[0](x)
        for term in self.terms[1:]:
            total = total + term(x)
        return total


@dataclass(frozen=True, eq=False)
class Scaled:
    """``factor * U(x)``: the density at temperature ``1 / factor``.

    Args:
        potential: the energy U.
        factor: a finite number, or one for each point, ``(*batch,)``; may be negative in a composition.

    Raises:
        InvalidInput: if ``factor`` is no finite number.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), event_shape=(2,))
        >>> ep.potentials.Scaled(normal, 0.5)(torch.ones(3, 2))  # at temperature 2
        tensor([0.5000, 0.5000, 0.5000])
    """

    potential: Potential
    factor: float | Tensor

    def __post_init__(self) -> None:
        as_potential("the potential of a Scaled", self.potential)
        if not bool(torch.isfinite(_as_number("factor", self.factor)).all()):
            raise InvalidInput(f"factor must be finite; got {self.factor}: pass a number such as 0.5")

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.potential.event_shape

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of the points ``x``."""
        energy = self.potential(x)
        # A single point's energy has no dimension, and would else be of the factor's dtype.
        return (self.factor.to(energy) if isinstance(self.factor, Tensor) else self.factor) * energy


@dataclass(frozen=True, eq=False)
class Affine:
    """``U(loc + F z) − log |det F|`` as an energy of z: other coordinates, the same normalizer.

    Args:
        potential: the energy U.
        loc: where z = 0 lies, ``(*event)``.
        factor: F, lower triangular with a positive diagonal, over the flattened event, ``(d, d)``.

    Raises:
        InvalidInput: if shapes don't fit, or the diagonal of F is not positive.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), event_shape=(2,))
        >>> ep.potentials.Affine(normal, loc=torch.ones(2), factor=torch.eye(2))(torch.zeros(2))  # U(1, 1)
        tensor(1.)
    """

    potential: Potential
    loc: Tensor
    factor: Tensor

    def __post_init__(self) -> None:
        event_shape = as_potential("the potential of an Affine", self.potential).event_shape
        check_event("loc", self.loc, event_shape)
        size = math.prod(event_shape)
        check_event("factor", self.factor, (size, size))
        check_positive("the diagonal of factor", self.factor.diagonal())

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.potential.event_shape

    def from_unit(self, z: Tensor) -> Tensor:
        """Map z to the points ``loc + F z``, ``(*batch, *event)``."""
        return self.loc + (z.reshape(-1, len(self.factor)) @ self.factor.mT).reshape(z.shape)

    def to_unit(self, x: Tensor) -> Tensor:
        """Map points ``x`` to their z, ``(*batch, *event)``."""
        rows = (x - self.loc).reshape(-1, len(self.factor))
        z: Tensor = torch.linalg.solve_triangular(self.factor, rows.mT, upper=False).mT
        return z.reshape(x.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of the points ``x``, which are z."""
        return self.potential(self.from_unit(x)) - self.factor.diagonal().log().sum()


@dataclass(frozen=True, eq=False)
class RecoveryPotential:
    """``U(y) + |y − center|² / (2 sigma²)``: the recovery potential of a noisy observation (Gao et al. 2021, eq. 5).

    Args:
        potential: the energy U.
        center: the noisy points x̃, ``(*batch, *event)``.
        sigma: standard deviation of the noise, a number or a tensor that broadcasts against ``center`` (one for each
            point: ``(*batch, 1)`` for vectors); infinity takes the tilt off.

    Raises:
        InvalidInput: if ``center`` does not end in the event shape, or ``sigma`` is not positive.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), event_shape=(2,))
        >>> tilted = ep.potentials.RecoveryPotential(normal, center=torch.zeros(2), sigma=0.5)
        >>> tilted(torch.ones(2))  # 1 + 2 / (2 · 0.25)
        tensor(5.)
    """

    potential: Potential
    center: Tensor
    sigma: float | Tensor

    def __post_init__(self) -> None:
        event_shape = as_potential("the potential of a RecoveryPotential", self.potential).event_shape
        check_event("noisy", self.center, event_shape)
        check_positive("sigma", self.sigma, or_infinite=True)
        shape = self.sigma.shape if isinstance(self.sigma, Tensor) else torch.Size()
        if not can_expand(shape, self.center.shape):
            raise InvalidInput(
                f"sigma must broadcast against noisy of shape {shape_text(self.center.shape)}; got "
                f"{shape_text(shape)}: one for each point has shape (*batch, 1) for vectors"
            )

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.potential.event_shape

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of the points ``x``, of a shape that broadcasts against ``center``."""
        difference = (x - self.center) / self.sigma
        return self.potential(x) + 0.5 * sum_event(difference * difference, self.event_shape)


@dataclass(frozen=True, eq=False)
class Bridge:
    """``(1 − beta) U_base + beta U_target``: the geometric path of annealed importance sampling (Neal 2001).

    Args:
        base: the energy at beta = 0.
        target: the energy at beta = 1.
        beta: a number in [0, 1], or one for each point, ``(*batch,)``.

    Raises:
        InvalidInput: if beta leaves [0, 1] or the event shapes differ.

    Example:
        >>> wide, narrow = (ep.Energy(lambda x, s=s: s * (x * x).sum(-1), (1,)) for s in (0.5, 2.0))
        >>> ep.potentials.Bridge(wide, narrow, 0.5)(torch.ones(1, 1))
        tensor([1.2500])
    """

    base: Potential
    target: Potential
    beta: float | Tensor

    def __post_init__(self) -> None:
        shapes = (as_potential("base", self.base).event_shape, as_potential("target", self.target).event_shape)
        if shapes[0] != shapes[1]:
            raise InvalidInput(
                f"base and target of a Bridge must share one event_shape; got {shape_text(shapes[0])} and "
                f"{shape_text(shapes[1])}: bring them to the same points first"
            )
        beta = _as_number("beta", self.beta)
        if not bool(((beta >= 0) & (beta <= 1)).all()):
            raise InvalidInput(f"beta must lie in [0, 1]; got {self.beta}: 0 is the base, 1 the target")

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.base.event_shape

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of the points ``x``."""
        # The ends are exact: 0 * inf would be NaN where one support is smaller than the other.
        if not isinstance(self.beta, Tensor) and self.beta in (0.0, 1.0):
            return self.target(x) if self.beta else self.base(x)
        return _weighted(1.0 - self.beta, self.base(x)) + _weighted(self.beta, self.target(x))


@dataclass(frozen=True, eq=False)
class Conditioned:
    """Some coordinates held at observed values; a point is the vector of the free ones (inpainting).

    Args:
        potential: the energy of whole points.
        observed: values, ``(*event)`` or ``(*batch, *event)``; those of free coordinates are ignored.
        free: boolean mask, ``(*event)``: True where the coordinate is to be sampled.

    Raises:
        InvalidInput: if shapes don't fit, or no coordinate is free.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), event_shape=(2,))
        >>> seen, free = torch.tensor([2.0, 0.0]), torch.tensor([False, True])
        >>> second = ep.potentials.Conditioned(normal, observed=seen, free=free)
        >>> second.complete(torch.tensor([1.0]))
        tensor([2., 1.])
        >>> second(torch.tensor([1.0]))
        tensor(2.5000)
    """

    potential: Potential
    observed: Tensor
    free: Tensor
    event_shape: torch.Size = field(init=False, repr=False)
    _places: Tensor = field(init=False, repr=False)  # indices of the free coordinates in the flattened event

    def __post_init__(self) -> None:
        event_shape = as_potential("the potential of a Conditioned", self.potential).event_shape
        if not isinstance(self.free, Tensor) or self.free.dtype != torch.bool or self.free.shape != event_shape:
            came = f"{self.free.dtype} {shape_text(self.free.shape)}" if isinstance(self.free, Tensor) else self.free
            raise InvalidInput(
                f"free must be a boolean mask of shape {shape_text(event_shape)}; got {came}: make it by a comparison, "
                "or by .bool()"
            )
        if not bool(self.free.any()):
            raise InvalidInput("free must be True somewhere; got all False: there is nothing to sample")
        check_event("observed", self.observed, event_shape)
        places = self.free.flatten().nonzero()[:, 0]
        object.__setattr__(self, "_places", places)
        object.__setattr__(self, "event_shape", places.shape)

    def complete(self, x: Tensor) -> Tensor:
        """Fill free coordinates ``x``, ``(*batch, free)``, into whole points, ``(*batch, *event)``."""
        shape = self.potential.event_shape
        batch = broadcast_shapes(x.shape[:-1], self.observed.shape[: self.observed.dim() - len(shape)])
        whole = self.observed.to(x).expand(*batch, *shape).flatten(len(batch))
        places = self._places.to(x.device).expand(*batch, -1)
        return whole.scatter(-1, places, x.expand(*batch, x.shape[-1])).reshape(*batch, *shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of the free coordinates ``x``, ``(*batch, free)``."""
        return self.potential(self.complete(x))


def _weighted(weight: float | Tensor, energy: Tensor) -> Tensor:
    """Multiply a weight and an energy with ``0 * inf = 0``."""
    return torch.where(weight == 0, 0.0, weight * energy) if isinstance(weight, Tensor) else weight * energy


def _as_number(name: str, value: object) -> Tensor:
    """Turn a number or tensor of numbers into a tensor."""
    if isinstance(value, Tensor) and (value.dtype == torch.bool or value.is_complex()):
        raise InvalidInput(f"{name} must be a number or a tensor of numbers; got {value.dtype}: use real ones")
    if isinstance(value, bool):
        raise InvalidInput(f"{name} must be a number or a tensor of numbers; got {value}: use 0.0 and 1.0")
    if not (isinstance(value, Tensor) or is_number(value)):
        raise InvalidInput(f"{name} must be a number or a tensor of numbers; got {value!r}")
    return torch.as_tensor(value)

"""Mass matrices of Hamiltonian kernels, as what they do to positions and momenta.

With inverse mass S Sᵀ and whitened momenta u ~ N(0, I), a leapfrog step is ``u ← u − ½ε Sᵀ∇U``, ``x ← x + ε S u``: the
mass never has to be inverted or factored again, and kinetic energy is ½|u|² whatever it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_count, check_event, check_positive, checked, shape_text
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import StepSizeTunable

__all__ = [
    "InverseMass",
    "LowRankMass",
    "MassEstimate",
    "MassTunable",
    "Stepper",
    "check_inverse_mass",
    "diagonal_mass",
    "identity_mass",
    "low_rank_mass",
    "stepper",
]

MAX_DIMENSIONS = 1000  # an eigendecomposition takes a fifth of a second there


@dataclass(frozen=True, eq=False)
class LowRankMass:
    """An inverse mass ``D^½ (I + Q (Λ − I) Qᵀ) D^½``: a diagonal, and a few directions stretched on top of it.

    Args:
        variance: the diagonal D, ``(*event)``, about the target's variances.
        directions: orthonormal columns Q, ``(event elements, k)``, of the target divided by D^½.
        stretch: the target's variances Λ along them, ``(k,)``.

    Raises:
        InvalidInput: for shapes that don't fit, variances that are not positive, or columns that are not orthonormal.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> direction, stretch = torch.tensor([[1.0], [0.0]]), torch.tensor([4.0])
        >>> kernel = ep.HMC(0.3, inverse_mass=ep.kernels.LowRankMass(torch.ones(2), direction, stretch))
        >>> ep.sampling.run_chain(kernel, normal, torch.randn(8, 2), 5).state.x.shape
        torch.Size([8, 2])
    """

    variance: Tensor
    directions: Tensor
    stretch: Tensor
    _factor: Tensor = field(init=False, repr=False)  # Λ^½ − 1, (k,)

    def __post_init__(self) -> None:
        for name in ("variance", "directions", "stretch"):
            if not isinstance(getattr(self, name), Tensor):
                raise InvalidInput(f"{name} must be a tensor; got {type(getattr(self, name)).__name__}")
        check_positive("variance", self.variance)
        check_positive("stretch", self.stretch)
        shape = (self.variance.numel(), self.stretch.numel())
        if self.directions.shape != shape:
            raise InvalidInput(f"directions must have shape {shape}; got {shape_text(self.directions.shape)}")
        gram = self.directions.T @ self.directions
        if not torch.allclose(gram, torch.eye(shape[1]).to(gram), atol=1e-3):
            raise InvalidInput("directions must be orthonormal columns: take them from torch.linalg.eigh or qr")
        object.__setattr__(self, "_factor", self.stretch.sqrt() - 1.0)

    def to(self, other: Tensor) -> "LowRankMass":
        """Convert to the dtype and device of another tensor."""
        if self.variance.dtype == other.dtype and self.variance.device == other.device:
            return self
        return LowRankMass(self.variance.to(other), self.directions.to(other), self.stretch.to(other))

    def stretched(self, u: Tensor) -> Tensor:
        """Multiply ``u``, ``(*chains, *event)``, by ``I + Q (Λ^½ − I) Qᵀ``."""
        flat = u.reshape(-1, len(self.directions))
        return torch.addmm(flat, (flat @ self.directions) * self._factor, self.directions.T).reshape(u.shape)


InverseMass = Tensor | LowRankMass | None
"""None for the identity; variances ``(*event)`` for a diagonal; or a :class:`LowRankMass`."""


@runtime_checkable
class MassTunable(StepSizeTunable, Protocol):
    """A kernel of leapfrog steps with an inverse mass, which :func:`~energyppl.adapt` estimates from the draws.

    Example:
        >>> isinstance(ep.HMC(), ep.kernels.MassTunable), isinstance(ep.MALA(0.1), ep.kernels.MassTunable)
        (True, False)
    """

    @property
    def inverse_mass(self) -> InverseMass:
        """None, variances ``(*event)``, or a :class:`LowRankMass`."""
        ...

    def with_inverse_mass(self, inverse_mass: InverseMass) -> "MassTunable":
        """Return the same kernel with another inverse mass."""
        ...


class Stepper(Protocol):
    """The two halves of a leapfrog step, in place, with a kernel's step size and mass already put together."""

    def drift(self, x: Tensor, u: Tensor) -> None:
        """Add ``ε S u`` to the positions ``x``."""
        ...

    def kick(self, u: Tensor, grad: Tensor, part: float) -> None:
        """Take ``part · ε Sᵀ ∇U`` from the whitened momenta ``u``."""
        ...


@dataclass(frozen=True)
class _Plain:
    step: float

    def drift(self, x: Tensor, u: Tensor) -> None:
        x.add_(u, alpha=self.step)

    def kick(self, u: Tensor, grad: Tensor, part: float) -> None:
        u.add_(grad, alpha=-part * self.step)


@dataclass(frozen=True, eq=False)
class _Diagonal:
    scale: Tensor  # broadcastable against the points

    def drift(self, x: Tensor, u: Tensor) -> None:
        x.addcmul_(self.scale, u)

    def kick(self, u: Tensor, grad: Tensor, part: float) -> None:
        u.addcmul_(self.scale, grad, value=-part)


@dataclass(frozen=True, eq=False)
class _LowRank:
    scale: Tensor
    mass: LowRankMass

    def drift(self, x: Tensor, u: Tensor) -> None:
        x.addcmul_(self.scale, self.mass.stretched(u))

    def kick(self, u: Tensor, grad: Tensor, part: float) -> None:
        u.sub_(self.mass.stretched(self.scale * grad), alpha=part)


def check_inverse_mass(inverse_mass: InverseMass) -> None:
    """Require variances that are positive and finite; their shape is checked against the points."""
    if isinstance(inverse_mass, Tensor):
        check_positive("inverse_mass", inverse_mass)
    elif not (inverse_mass is None or isinstance(inverse_mass, LowRankMass)):
        raise InvalidInput(
            f"inverse_mass must be None, a tensor of variances or a LowRankMass; got {type(inverse_mass).__name__}"
        )


def stepper(step_size: float | Tensor, inverse_mass: InverseMass, x: Tensor, event_shape: torch.Size) -> Stepper:
    """Put a step size, a number or one for each chain, and a mass together.

    Raises:
        InvalidInput: if the mass is not of the event's shape, or there is not a step size for each chain.
    """
    if isinstance(step_size, Tensor) and step_size.dim():
        step: float | Tensor = append_dims(step_size.to(x), x)
    else:
        step = float(step_size)
    if inverse_mass is None:
        return _Diagonal(step) if isinstance(step, Tensor) else _Plain(step)
    variance = inverse_mass if isinstance(inverse_mass, Tensor) else inverse_mass.variance
    if variance.shape != event_shape:
        raise InvalidInput(
            f"inverse_mass must have the event's shape {shape_text(event_shape)}; got {shape_text(variance.shape)}: "
            "give one variance for each coordinate"
        )
    scale = variance.to(x).sqrt() * step
    return _Diagonal(scale) if isinstance(inverse_mass, Tensor) else _LowRank(scale, inverse_mass.to(x))


MassEstimate = Callable[[Tensor], InverseMass]
"""An inverse mass from draws, ``(n, *event)``."""


@checked
def identity_mass(draws: Tensor) -> InverseMass:
    """Estimate no mass: coordinates stay as they are.

    Example:
        >>> ep.kernels.identity_mass(torch.randn(100, 3)) is None
        True
    """
    check_event("draws", draws, draws.shape[1:])
    return None


@checked
def diagonal_mass(draws: Tensor) -> InverseMass:
    """Estimate variances from draws, ``(n, *event)``, shrunk towards their geometric mean when draws are few.

    Raises:
        InvalidInput: for draws that are no tensor of numbers.

    Example:
        >>> ep.kernels.diagonal_mass(torch.randn(100, 3)).shape
        torch.Size([3])
    """
    check_event("draws", draws, draws.shape[1:])
    variance = draws.var(0)
    variance = variance.clamp(min=torch.finfo(variance.dtype).tiny ** 0.5)
    weight = len(draws) / (len(draws) + 5.0)  # Stan's, towards the data's own scale rather than towards .001
    return torch.exp(weight * variance.log() + (1.0 - weight) * variance.log().mean())


@checked
def low_rank_mass(draws: Tensor, rank: int = 32, cutoff: float = 1.5) -> InverseMass:
    """Estimate variances and, up to 1,000 dimensions, the directions in which draws spread most and least beside them.

    Args:
        draws: ``(n, *event)``.
        rank: directions at most.
        cutoff: a direction is kept if its variance leaves ``[1 / cutoff, cutoff]`` and ``n`` draws can tell.

    Raises:
        InvalidInput: for a rank below one, or a cutoff that is not positive.

    Example:
        >>> draws = torch.randn(500, 2) @ torch.tensor([[1.0, 1.0], [0.0, 0.1]])  # nearly on a line
        >>> ep.kernels.low_rank_mass(draws).directions.shape
        torch.Size([2, 2])
    """
    check_count("rank", rank)
    check_positive("cutoff", cutoff)
    variance = diagonal_mass(draws)
    assert isinstance(variance, Tensor)
    flat = ((draws - draws.mean(0)) / variance.sqrt()).reshape(len(draws), -1)
    n, size = flat.shape
    if not 2 <= size <= MAX_DIMENSIONS or n < 10:
        return variance
    values, vectors = torch.linalg.eigh(flat.T @ flat / (n - 1))
    values = values.clamp(min=0.0)
    # Independent noise has eigenvalues within (1 ± √(d/n))² (Marchenko & Pastur 1967): only what lies outside is told.
    # Draws of chains depend on each other; they count as a third.
    edge = math.sqrt(3.0 * size / n)
    noise = (1.0 + edge) ** 2, max(0.0, 1.0 - edge) ** 2
    known = (values > cutoff * noise[0]) | (values < noise[1] / cutoff)
    strength = torch.where(known & (values > 0), values.clamp(min=1e-12).log().abs(), 0.0)
    chosen = strength.argsort(descending=True)[:rank]
    chosen = chosen[strength[chosen] > 0]
    return LowRankMass(variance, vectors[:, chosen], values[chosen]) if len(chosen) else variance

"""Markov kernels: frozen values that move a batch of chains one step on a potential given per call.

A kernel holds only its hyperparameters.  ``init`` evaluates the potential where the chains stand, ``step`` moves them;
after the potential changes (other weights, temperature or level) call ``init`` again.  Random numbers come from torch's
global generator.  A proposal whose energy or gradient is not finite is rejected and flagged, never repaired.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from energyppl._checks import check_event, check_positive
from energyppl.errors import InvalidInput
from energyppl.gradient import energy_and_grad, energy_only
from energyppl.potential import Potential, Tethered

__all__ = [
    "MALA",
    "CrankNicolson",
    "CrankNicolsonLangevin",
    "Info",
    "Kernel",
    "Langevin",
    "State",
    "TunableKernel",
    "reference",
]


class State(NamedTuple):
    """What the next step needs."""

    x: Tensor  # (*chains, *event)
    energy: Tensor  # (*chains,), nats
    grad: Tensor  # (*chains, *event)


class Info(NamedTuple):
    """What diagnostics need, one entry for each chain."""

    accept_prob: Tensor  # (*chains,), in [0, 1]
    accepted: Tensor  # (*chains,), bool
    diverging: Tensor  # (*chains,), bool: the proposal's energy or gradient was not finite


class Kernel(Protocol):
    """One Markov transition for a batch of chains."""

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at the chains' positions ``(*chains, *event)``."""
        ...

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Move every chain once."""
        ...


class TunableKernel(Kernel, Protocol):
    """A kernel with one step size that acceptance can steer."""

    target: ClassVar[float | None]
    """The mean acceptance that serves it best; None if it never rejects."""
    largest_step: ClassVar[float]
    """The largest step size that makes sense, in widths of the target."""

    @property
    def step_size(self) -> float | Tensor:
        """A number, or one for each chain."""
        ...

    def resized(self, step: Tensor, width: Tensor, spread: Tensor) -> "TunableKernel":
        """The same kernel for a level, one of each for each chain.

        Args:
            step: relative step size.
            width: width of the recovery distribution at most, the tether's.
            spread: standard deviation of the level's marginal.
        """
        ...


def _init(potential: Potential, x: Tensor) -> State:
    check_event("x", x, potential.event_shape)
    x = x.detach()
    return State(x, *energy_and_grad(potential, x))


def _wide(value: Tensor, x: Tensor) -> Tensor:
    """A number for each chain, made broadcastable against the points."""
    return value.reshape(value.shape + (1,) * (x.dim() - value.dim()))


def _langevin_proposal(step_size: float | Tensor, state: State) -> tuple[Tensor, Tensor, float | Tensor]:
    """``x − ½ s² ∇U + s ξ``, the noise ξ, and s made broadcastable."""
    noise = torch.randn_like(state.x)
    if isinstance(step_size, Tensor) and step_size.dim():
        wide = _wide(step_size.to(state.x), state.x)
        drift = torch.addcmul(state.x, wide * wide, state.grad, value=-0.5)
        return torch.addcmul(drift, wide, noise), noise, wide
    size = float(step_size)
    return state.x.add(state.grad, alpha=-0.5 * size * size).add_(noise, alpha=size), noise, size


def _select(accepted: Tensor, new: State, old: State) -> State:
    wide = _wide(accepted, old.x).expand_as(old.x).contiguous()  # twice read: where is slow on a strided mask
    return State(
        torch.where(wide, new.x, old.x),
        torch.where(accepted, new.energy, old.energy),
        old.grad if new.grad is old.grad else torch.where(wide, new.grad, old.grad),
    )


def _metropolis(log_ratio: Tensor, new: State, old: State) -> tuple[State, Info]:
    """Accept with probability min(1, exp(log_ratio)); NaN, −∞ and a proposal of energy −∞ are rejected and flagged.

    A ratio of +∞ is a chain that started where the energy is infinite: it may leave.
    """
    legal = (log_ratio > -math.inf) & (new.energy > -math.inf)
    accept_prob = torch.where(legal, log_ratio.clamp(max=0.0).exp(), 0.0)
    accepted = torch.rand_like(accept_prob) < accept_prob
    return _select(accepted, new, old), Info(accept_prob, accepted, ~legal)


@dataclass(frozen=True, eq=False)
class Langevin:
    """Unadjusted Langevin: ``x ← x − ½ s² ∇U(x) + s ξ`` (Gao et al. 2021, eq. 9; biased at any fixed s).

    Args:
        step_size: the standard deviation s of the noise in one step, a number or one for each chain, ``(*chains,)``.
    """

    step_size: float | Tensor
    target: ClassVar[float | None] = None
    largest_step: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)

    def resized(self, step: Tensor, width: Tensor, spread: Tensor) -> "Langevin":
        """The same kernel with steps of ``step`` widths."""
        return replace(self, step_size=step * width)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return _init(potential, x)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Move every chain once; a move to a non-finite energy or gradient is not made, and flagged."""
        x, _, _ = _langevin_proposal(self.step_size, state)
        new = State(x, *energy_and_grad(potential, x))
        # Two sums tell that all is well, the usual case; on a GPU the question would make every step wait.
        if not x.is_cuda and math.isfinite(float(new.energy.sum() + new.grad.sum())):
            fine = torch.ones_like(new.energy, dtype=torch.bool)
            return new, Info(torch.ones_like(new.energy), fine, ~fine)
        finite = (new.energy + _dot(new.grad, new.grad, new.energy)).abs() < math.inf
        return _select(finite, new, state), Info(finite.to(new.energy.dtype), finite, ~finite)


@dataclass(frozen=True, eq=False)
class MALA:
    """Metropolis-adjusted Langevin (Roberts & Tweedie 1996): exact for any step size.

    Args:
        step_size: the standard deviation s of the noise in one step, a number or one for each chain, ``(*chains,)``.
    """

    step_size: float | Tensor
    target: ClassVar[float | None] = 0.6  # fastest mixing is near .574 in high dimension (Roberts & Rosenthal 1998)
    largest_step: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)

    def resized(self, step: Tensor, width: Tensor, spread: Tensor) -> "MALA":
        """The same kernel with steps of ``step`` widths."""
        return replace(self, step_size=step * width)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return _init(potential, x)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Propose a Langevin move for every chain and accept it by the Metropolis–Hastings rule."""
        x, noise, size = _langevin_proposal(self.step_size, state)
        new = State(x, *energy_and_grad(potential, x))
        # The way back needs the noise r = ξ − d with d = ½ s (g + g'), so the proposals' log-ratio is
        # ½ (|ξ|² − |r|²) = d · (ξ − ½ d).
        d = (state.grad + new.grad) * (0.5 * size)
        log_ratio = (state.energy - new.energy) + _dot(d, noise.sub_(d, alpha=0.5), new.energy)
        return _metropolis(log_ratio, new, state)


@dataclass(frozen=True, eq=False)
class CrankNicolson:
    """Preconditioned Crank–Nicolson (Cotter, Roberts, Stuart & White 2013) on a tethered potential: exact, no gradient.

    With the tether's Gaussian times N(0, reference_scale²) as the reference N(m, s²), it proposes
    ``m + √(1 − β²) (x − m) + β s ξ``, which leaves the reference as it is, so only the rest of the energy is put to the
    test.  At β = 1 proposals are independent draws from the reference.  In few dimensions, or where a density has edges
    that gradients only stumble over, it mixes far better than MALA; in many dimensions β must shrink and MALA wins.

    Args:
        step_size: β in (0, 1], a number or one for each chain, ``(*chains,)``.
        reference_scale: standard deviation of the wide Gaussian around the origin, a number or ``(*chains,)``; 1 for
            standardised data.
    """

    step_size: float | Tensor = 1.0
    reference_scale: float | Tensor = 1.0
    target: ClassVar[float | None] = 0.35
    largest_step: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_crank_nicolson(self)

    def resized(self, step: Tensor, width: Tensor, spread: Tensor) -> "CrankNicolson":
        """The same kernel with β = ``step``, at most 1, and the marginal's spread as its reference."""
        return replace(self, step_size=step.clamp(max=1.0), reference_scale=spread)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the energy at ``x``, ``(*chains, *event)``; no gradient is needed and none is worked out."""
        _require_tethered(self, potential)
        check_event("x", x, potential.event_shape)
        x = x.detach()
        return State(x, energy_only(potential, x), torch.zeros((), dtype=x.dtype, device=x.device).expand_as(x))

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Propose a move of the reference for every chain and accept it by the rest of the energy."""
        x = state.x
        mean, deviation = reference(_require_tethered(self, potential), self.reference_scale, x)
        beta = _like(self.step_size, x)
        new_x = mean + (1.0 - beta * beta).sqrt() * (x - mean) + beta * deviation * torch.randn_like(x)
        energy = energy_only(potential, new_x)
        old, new = (x - mean) / deviation, (new_x - mean) / deviation
        log_ratio = (state.energy - energy) - 0.5 * _dot(old - new, old + new, energy)
        return _metropolis(log_ratio, State(new_x, energy, state.grad), state)


@dataclass(frozen=True, eq=False)
class CrankNicolsonLangevin:
    """Preconditioned Crank–Nicolson Langevin (pCNL, Cotter, Roberts, Stuart & White 2013) on a tethered potential.

    :class:`CrankNicolson` with the gradient of the rest of the energy in its proposal, which is then
    ``x − (1 − √(1 − β²)) s² ∇U(x) + β s ξ``.  At high noise, where the reference is nearly the target, it draws almost
    independently; at low noise and in many dimensions it is MALA with the tether's width as its scale.

    Args:
        step_size: β in (0, 1], a number or one for each chain, ``(*chains,)``.
        reference_scale: as in :class:`CrankNicolson`.
    """

    step_size: float | Tensor = 0.3
    reference_scale: float | Tensor = 1.0
    target: ClassVar[float | None] = 0.6
    largest_step: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_crank_nicolson(self)

    def resized(self, step: Tensor, width: Tensor, spread: Tensor) -> "CrankNicolsonLangevin":
        """The same kernel with β = ``step``, at most 1, and the marginal's spread as its reference."""
        return replace(self, step_size=step.clamp(max=1.0), reference_scale=spread)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        _require_tethered(self, potential)
        return _init(potential, x)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Propose a Langevin move of the reference for every chain and accept it by the Metropolis–Hastings rule."""
        _, deviation = reference(_require_tethered(self, potential), self.reference_scale, state.x)
        beta = _like(self.step_size, state.x)
        size, noise = beta * deviation, torch.randn_like(state.x)
        drift = (1.0 - (1.0 - beta * beta).sqrt()) * deviation * deviation
        x = torch.addcmul(torch.addcmul(state.x, drift, state.grad, value=-1.0), size, noise)
        new = State(x, *energy_and_grad(potential, x))
        back = torch.addcmul(state.x - x, drift, new.grad) / size  # the noise of the way back
        log_ratio = (state.energy - new.energy) + 0.5 * _dot(noise - back, noise + back, new.energy)
        return _metropolis(log_ratio, new, state)


def _check_crank_nicolson(kernel: "CrankNicolson | CrankNicolsonLangevin") -> None:
    check_positive("step_size", kernel.step_size)
    check_positive("reference_scale", kernel.reference_scale)
    if bool((torch.as_tensor(kernel.step_size) > 1.0).any()):
        raise InvalidInput(f"step_size of {type(kernel).__name__} must lie in (0, 1]; got {kernel.step_size}")


def _require_tethered(kernel: object, potential: Potential) -> Tethered:
    if not isinstance(potential, Tethered):
        raise InvalidInput(
            f"{type(kernel).__name__} moves on a Tethered potential; got {type(potential).__name__}: use MALA there"
        )
    return potential


def reference(potential: Tethered, scale: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the tether's Gaussian times N(0, scale²): the recovery of Gaussian data."""
    precision = torch.as_tensor(potential.sigma).to(x) ** -2
    total = precision + _like(scale, x) ** -2
    return potential.center * (precision / total), total.rsqrt()


def _like(value: float | Tensor, x: Tensor) -> Tensor:
    """A number, or one for each chain, in the dtype and device of the points and broadcastable against them."""
    tensor = torch.as_tensor(value).to(x)
    return _wide(tensor, x) if tensor.dim() else tensor


def _dot(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Inner product over the event dimensions; ``like`` has the chains' dimensions only."""
    return (a * b).sum(dim=tuple(range(like.dim(), a.dim()))) if a.dim() > like.dim() else a * b

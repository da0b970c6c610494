"""Trajectory lengths: stochastic ascent of the effective samples that a gradient gives, by comparing chains."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl.inference.kernels.contract import middle_step
from energyppl.inference.kernels.hamiltonian import LengthTunable, LongProposal, spread_share
from energyppl.inference.kernels.mass import MAX_DIMENSIONS

__all__ = ["LengthAdapter", "LengthState", "Moments", "updated"]

# The criterion.
_MEMORY = 25.0  # steps that averages reach back
_COST_EXPONENT = 0.75  # below 1, because slow modes that one draw's autocorrelation hardly shows gain
# In lengths of a step: a trajectory of length T costs about .65 T/ε + ½ gradients, and the rest of a draw about one
# more where energies are cheap (three of a banana's at 64 chains, one of a perceptron's, nothing of a large network's).
# With it nine cases gave 1.08 times the effective samples a second, and as many for each gradient.
_FIXED_COST = (0.5 + 1.0) / 0.65
_DIRECTIONS = 4  # widest ones, that are followed beside the coordinates
_WORST = 4.0  # how much more the slowest functions count than the others
_S_RANGE = (1e-6, 1.9)  # of 1 − ρ, which noise may carry outside (0, 2)
_TINY = 1e-30  # keeps divisions by vanishing variances finite
# Adam on the log length.
_RATE = 0.07
_SECOND_MOMENT_RATE = 0.05
_MAX_SLOPE = 2.0  # of log efficiency in log length, which grows as the length squared at most: beyond it is noise
_MAX_MOVE = 0.35  # of the log length in one step
_AVERAGE_EXPONENT = -0.5  # the n-th length's weight in the average is n^−½


class Moments(NamedTuple):
    """Averages over chains and recent steps, one entry for each function of the points."""

    mean: Tensor  # (coordinates,)
    square: Tensor  # (coordinates,), second central moments
    fourth: Tensor  # (coordinates,), fourth central moments
    jump: Tensor  # (2 · coordinates,), ½ E[(f' − f)²] of the coordinates and of their squares
    seen: float  # steps


class LengthState(NamedTuple):
    """State of the ascent in the trajectory length."""

    length: float
    average: float  # of the lengths so far, in logarithms: what is kept in the end
    moments: Moments | None = None
    directions: Tensor | None = None  # (event elements, k)
    second_moment: float = 0.0  # Adam's
    steps: int = 0  # of the ascent


def updated(
    state: LengthState, x: Tensor, proposal: LongProposal, *, share: float, step_size: float, max_steps: int
) -> LengthState:
    """Take one step of the ascent, by the proposals of one step of the chains.

    ChEES (Hoffman, Radul & Sountsov 2021) follows the change of |x − E x|² over a trajectory, across chains.  That sum
    over coordinates is soon content when most coordinates are, and knows no cost.  Here each coordinate and its square
    is a function f of its own, and so are the directions in which draws spread most (as in SNAPER, Sountsov & Hoffman
    2022).  Over one trajectory its autocorrelation is ρ = 1 − s with ``s = ½ E[a (f' − f)²] / Var f``, where a is the
    acceptance, so it gives (1 − ρ) / (1 + ρ) = s / (2 − s) effective samples a draw.  The ascent is of

    ``Σ_f w_f log(s_f / (2 − s_f)) − ¾ log(T + 2.3 ε)``  in log T,

    with weights w_f that favour the slowest functions: their effective samples over a power of the gradients spent.
    Since df'/dT = ∇f · v, the derivative of log(s / (2 − s)) in log T is ``(2 / (2 − s)) · T E[a (f' − f) df'/dT] /
    E[a (f' − f)²]``.

    Args:
        state: where the ascent stands.
        x: where the chains began, ``(*chains, *event)``.
        proposal: where their trajectories ended, with velocities and acceptance.
        share: the trajectory's length as a share of the longest.
        step_size: ε, the middle one of the chains'.
        max_steps: leapfrog steps of a trajectory at most.

    Returns:
        The next state; the same if fewer than two chains have finite proposals that may be accepted.
    """
    rows = _rows(state.directions, x, proposal)
    if rows is None:
        return state
    x, end, velocity, accept, kept = rows
    moments = _updated_moments(state.moments, x)
    x, end = x - moments.mean, end - moments.mean
    change = torch.cat([end - x, end * end - x * x], 1)
    rate = torch.cat([velocity, 2.0 * end * velocity], 1)
    jump = 0.5 * kept * (accept * change * change).mean(0)
    jump = jump if state.moments is None else _blend(state.moments.jump, jump, moments.seen)
    moments = moments._replace(jump=jump)
    rise = kept * (accept * change * rate).mean(0) * (share * state.length)
    cost = _COST_EXPONENT * state.length / (state.length + _FIXED_COST * step_size)
    slope = _efficiency_slope(moments, rise) - cost
    state = state._replace(moments=moments)
    return _ascended(state, slope, step_size, max_steps) if math.isfinite(slope) else state


def _rows(
    directions: Tensor | None, x: Tensor, proposal: LongProposal
) -> tuple[Tensor, Tensor, Tensor, Tensor, float] | None:
    """Lay out positions, ends, velocities and acceptance, a row for each usable chain, with the share of those."""
    accept_prob = proposal.info.accept_prob
    chains = accept_prob.numel()
    x, end, velocity = (v.reshape(chains, -1) for v in (x, proposal.end.x, proposal.velocity))
    accept = accept_prob.reshape(-1, 1)
    fine = torch.isfinite(end.sum(1) + velocity.sum(1) + x.sum(1)) & (accept[:, 0] > 0)
    if int(fine.sum()) < 2:
        return None
    x, end, velocity, accept = x[fine], end[fine], velocity[fine], accept[fine]
    if directions is not None:
        x, end, velocity = (torch.cat([v, v @ directions], 1) for v in (x, end, velocity))
    return x, end, velocity, accept, len(x) / chains


def _updated_moments(old: Moments | None, x: Tensor) -> Moments:
    """Bring the moments of the coordinates, all but the jump, up to date by the chains at ``x``."""
    if old is None:
        mean, centred = x.mean(0), (x - x.mean(0)) ** 2
        return Moments(mean, centred.mean(0), (centred * centred).mean(0), torch.empty(0), 1.0)
    seen = old.seen + 1.0
    mean = _blend(old.mean, x.mean(0), seen)
    centred = (x - mean) ** 2
    square, fourth = (
        _blend(before, now, seen)
        for before, now in ((old.square, centred.mean(0)), (old.fourth, (centred * centred).mean(0)))
    )
    return Moments(mean, square, fourth, old.jump, seen)


def _blend(old: Tensor, new: Tensor, seen: float) -> Tensor:
    return torch.lerp(old, new, 1.0 / min(seen, _MEMORY))


def _efficiency_slope(moments: Moments, rise: Tensor) -> float:
    """Differentiate the weighted log efficiency in log T; ``rise`` is the derivative of ½ E[(f' − f)²]."""
    variance = torch.cat([moments.square, (moments.fourth - moments.square**2).clamp(min=0.0)])
    s = (moments.jump / variance.clamp(min=_TINY)).clamp(*_S_RANGE)
    weight = torch.softmax(-_WORST * torch.log(s / (2.0 - s)), 0)
    slopes = rise / moments.jump.clamp(min=_TINY) * 2.0 / (2.0 - s)
    return float((weight * slopes).sum())


def _ascended(state: LengthState, slope: float, step_size: float, max_steps: int) -> LengthState:
    """Move the log length by Adam (Kingma & Ba 2015) without its first moment."""
    slope = max(-_MAX_SLOPE, min(_MAX_SLOPE, slope))
    count = state.steps + 1
    second_moment = state.second_moment + (slope**2 - state.second_moment) * _SECOND_MOMENT_RATE
    unbiased = second_moment / (1 - (1.0 - _SECOND_MOMENT_RATE) ** count)
    move = _RATE * slope / math.sqrt(unbiased + 1e-12)
    longer = state.length * math.exp(max(-_MAX_MOVE, min(_MAX_MOVE, move)))
    # One step is the least.  A step size that is large for a moment must not raise the length: where steps are longer
    # than the length, it may grow and not fall.
    length = min(max_steps * step_size, max(min(step_size, state.length), longer))
    weight = count**_AVERAGE_EXPONENT
    average = math.exp(weight * math.log(length) + (1 - weight) * math.log(state.average))
    return state._replace(length=length, average=average, second_moment=second_moment, steps=count)


class LengthAdapter:
    """Adapts a kernel's trajectory length during a warm-up."""

    def __init__(self, length: float) -> None:
        self._state = LengthState(length, length)
        self._shares = 0

    def next_share(self) -> float:
        """Draw the next trajectory's share of the longest: van der Corput's sequence, which covers evenly."""
        self._shares += 1
        digits = f"{self._shares:b}"[::-1]
        return spread_share(int(digits, 2) / 2 ** len(digits))

    def length(self, longest: float) -> float:
        """Return the length to try now, ``longest`` at most."""
        self._state = self._state._replace(length=min(self._state.length, longest))
        return self._state.length

    def update(self, x: Tensor, proposal: LongProposal, kernel: LengthTunable, share: float) -> None:
        """Take a step of the ascent by the proposals of chains that began at ``x``; see :func:`updated`."""
        self._state = updated(
            self._state, x, proposal, share=share, step_size=middle_step(kernel), max_steps=kernel.max_steps
        )

    def rescale(self, ratio: float, draws: Tensor) -> None:
        """Take note of a new mass: the whitened coordinates' unit is ``ratio`` times as long, draws spread as these.

        Args:
            ratio: new unit over old.
            draws: ``(n, *event)``; the widest directions of them, standardized, are followed from now on.
        """
        state = self._state
        self._state = state._replace(length=state.length / ratio, average=state.average / ratio)
        flat = draws.reshape(len(draws), -1)
        if 2 <= flat.shape[1] <= MAX_DIMENSIONS:
            scale = flat.std(0).clamp(min=_TINY)
            covariance = torch.cov(((flat - flat.mean(0)) / scale).T)
            directions = torch.linalg.eigh(covariance).eigenvectors[:, -_DIRECTIONS:] / scale[:, None]
            self._state = self._state._replace(directions=directions, moments=None)

    def result(self) -> float:
        """Return the length to keep, the average of those that were tried."""
        return self._state.average

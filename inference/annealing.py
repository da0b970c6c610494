"""Annealed importance sampling between a base whose log Z is known and a target: forward, in reverse, and bridged.

A run moves particles along the geometric path ``(1 − β) U_base + β U_target`` (Neal 2001) and adds up what the changes
of β cost them.  Forward weights average to Z_target / Z_base, so their logarithms average to a stochastic lower bound;
reverse ones, from draws of the target, average to the inverse and give an upper bound (Grosse, Ghahramani & Adams
2015).  Bennett's acceptance ratio (1976) puts both together and is better than either.

At every temperature the energy is put together anew from those of base and target: weights of a run that went on with
the last temperature's would be biased, as TensorFlow Probability's are.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_data
from energyppl.errors import EnergyPPLError, InvalidInput
from energyppl.gradient import energy_and_grad
from energyppl.inference.langevin import MALA
from energyppl.inference.transition import State, widen
from energyppl.potential import Bridge, Potential, sum_event

__all__ = ["GaussianBase", "Ladder", "Weights", "anneal", "bennett", "climb", "effective_size", "log_mean_exp"]

_MOST_RUNGS = 5_000  # of a pilot: beyond, base and target hardly overlap, or the target is not normalisable
_SMALL = 0.01  # of β: below, the target's part of a sum would be lost in rounding, and is evaluated by itself
_TARGET = 0.6  # acceptance of MALA (Roberts & Rosenthal 1998)


@dataclass(frozen=True, eq=False)
class GaussianBase:
    """A normalised Gaussian as the energy where a path begins: log Z = 0.

    Args:
        loc: mean, ``(*event)``.
        scale: standard deviation of each coordinate, ``(*event)``.
    """

    loc: Tensor
    scale: Tensor

    @classmethod
    def fitted(cls, x: Tensor, event_shape: torch.Size) -> "GaussianBase":
        """With the mean of draws ``(n, *event)`` and 1.1 times their standard deviations: wider is safer."""
        check_data("samples", x, event_shape, at_least=2)
        scale = 1.1 * x.std(0)
        return cls(x.mean(0), scale.clamp(min=1e-6 * float(scale.max())))

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.loc.shape

    def __call__(self, x: Tensor) -> Tensor:
        """Energies of points ``(*batch, *event)``, their constant included."""
        z = (x - self.loc) / self.scale
        value = 0.5 * z * z + self.scale.log() + 0.5 * math.log(2.0 * math.pi)
        return sum_event(value, self.event_shape)

    def sample(self, count: int) -> Tensor:
        """Draws, ``(count, *event)``."""
        return self.loc + self.scale * torch.randn(
            count, *self.event_shape, dtype=self.loc.dtype, device=self.loc.device
        )


class Ladder(NamedTuple):
    """Temperatures and the step sizes that suit them, frozen before any weight is worked out."""

    betas: Tensor  # (rungs + 1,), from 0 to 1, float64
    step_sizes: Tensor  # (rungs + 1,)

    def resampled(self, rungs: int) -> "Ladder":
        """The same path with another number of rungs."""
        old = torch.linspace(0.0, 1.0, len(self.betas), dtype=torch.float64)
        new = torch.linspace(0.0, 1.0, rungs + 1, dtype=torch.float64)
        betas = _interpolate(new, old, self.betas)
        betas[0], betas[-1] = 0.0, 1.0
        return Ladder(betas, _interpolate(new, old, self.step_sizes.double().log()).exp())


class Weights(NamedTuple):
    """Log weights of a run's particles, and where they ended."""

    log_weights: Tensor  # (particles,), float64, nats
    x: Tensor  # (particles, *event)
    evaluations: int  # of the target with its gradient, all particles together
    acceptance: Tensor  # (rungs,)


class _Parts(NamedTuple):
    """Energies and gradients of base and target, told apart so that β changes without evaluating again."""

    base: Tensor
    base_grad: Tensor
    target: Tensor
    target_grad: Tensor

    def at(self, beta: float, x: Tensor) -> State:
        """The state at ``x`` for the path at β."""
        energy = (1.0 - beta) * self.base + beta * self.target
        return State(x, energy, (1.0 - beta) * self.base_grad + beta * self.target_grad)

    def heat(self) -> Tensor:
        """U_target − U_base, float64: what a unit of β costs; +∞ where the target is illegal."""
        return torch.nan_to_num((self.target - self.base).double(), nan=math.inf, posinf=math.inf, neginf=-math.inf)


def _moved(parts: _Parts, base: Potential, target: Potential, state: State, accepted: Tensor, beta: float) -> _Parts:
    """The parts after a step at β > 0; where it was refused they stay, so that no rounding builds up."""
    energy, grad = energy_and_grad(base, state.x)
    if beta < _SMALL:
        new = _Parts(energy, grad, *energy_and_grad(target, state.x))
    else:
        rest = 1.0 - beta
        new = _Parts(energy, grad, (state.energy - rest * energy) / beta, (state.grad - rest * grad) / beta)
    wide = widen(accepted, state.x)
    return _Parts(*(torch.where(wide if n.dim() > 1 else accepted, n, o) for n, o in zip(new, parts, strict=True)))


def _begin(base: Potential, target: Potential, x: Tensor) -> _Parts:
    return _Parts(*energy_and_grad(base, x), *energy_and_grad(target, x))


def climb(
    base: Potential, target: Potential, x: Tensor, *, rungs: int | None = None, steepness: float = 0.99
) -> tuple[Ladder, int]:
    """Find temperatures and step sizes in a pilot run: its weights are thrown away, so it may look at what it does.

    Each β is as far from the last as leaves the particles' conditional effective sample size at ``steepness`` of their
    number (Zhou, Johansen & Aston 2016); particles are resampled when their weights grow uneven.

    Args:
        base: where the path begins.
        target: where it ends.
        x: draws of the base, ``(particles, *event)``.
        rungs: how many temperatures to spread over the path found; as many as the pilot had if None.
        steepness: conditional effective sample size aimed at, as a share.

    Returns:
        The ladder, and how many evaluations of the target it cost.

    Raises:
        InvalidInput: if the target's energy is finite at none of the base's draws.
        EnergyPPLError: if the path doesn't arrive, as where the target is not normalisable.
    """
    parts = _begin(base, target, x)
    if not bool(torch.isfinite(parts.target).any()):
        raise InvalidInput("the target's energy is finite at no draw of the base: pass a base that overlaps the target")
    beta, log_step, position = 0.0, math.log(float(x.std()) or 1.0), torch.zeros((), dtype=x.dtype, device=x.device)
    bridge = Bridge(base, target, position)
    log_weights = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    betas, steps = [0.0], [math.exp(log_step)]
    while beta < 1.0:
        if len(betas) > _MOST_RUNGS or not math.isfinite(log_step):
            raise EnergyPPLError(
                f"annealing did not arrive: after {len(betas)} temperatures it was at β = {beta:.2g}. The target may "
                "not be normalisable, or lies far from the base: pass a base that covers it"
            )
        heat = parts.heat()
        new = _next_beta(beta, heat, log_weights, steepness)
        log_weights = log_weights - (new - beta) * heat
        beta = new
        position.fill_(beta)
        if effective_size(log_weights) < 0.5 * len(x):
            index = torch.multinomial(torch.softmax(log_weights, 0), len(x), replacement=True)
            x, parts = x[index], _Parts(*(p[index] for p in parts))
            log_weights = torch.zeros_like(log_weights)
        for _ in range(2):
            state, info = MALA(math.exp(log_step)).step(bridge, parts.at(beta, x))
            x, parts = state.x, _moved(parts, base, target, state, info.accepted, beta)
            log_step += 0.5 * (float(info.accept_prob.mean()) - _TARGET)
        betas.append(beta)
        steps.append(math.exp(log_step))
    found = Ladder(torch.tensor(betas, dtype=torch.float64), torch.tensor(steps, dtype=torch.float64))
    return (found if rungs is None else found.resampled(rungs)), (
        2 * len(betas) - 1 + 2 * sum(b < _SMALL for b in betas)
    ) * len(x)


def _next_beta(beta: float, heat: Tensor, log_weights: Tensor, steepness: float) -> float:
    """The farthest β that leaves the conditional effective sample size at ``steepness``, by bisection.

    Particles of infinite heat are lost at the first change, however small: they are left out.
    """
    legal = torch.isfinite(heat) & torch.isfinite(log_weights)
    if not bool(legal.any()):
        raise EnergyPPLError(
            "all particles of the pilot run are where the target's energy is infinite: pass another base"
        )
    weights, heat = torch.softmax(log_weights[legal], 0), heat[legal]

    def share(new: float) -> float:
        increment = -(new - beta) * heat
        top = torch.exp(increment - increment.max())
        return float((weights * top).sum() ** 2 / (weights * top * top).sum())

    if share(1.0) >= steepness:
        return 1.0
    low, high = 0.0, 1.0 - beta
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(beta + middle) >= steepness else (low, middle)
    return beta + max(low, 1e-12)


def log_mean_exp(log_weights: Tensor) -> float:
    """Logarithm of the weights' mean, which estimates the ratio of normalisers."""
    return float(torch.logsumexp(log_weights, 0)) - math.log(len(log_weights))


def effective_size(log_weights: Tensor) -> float:
    """Effective sample size of weights, ``(Σ w)² / Σ w²``."""
    return float(torch.exp(2.0 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2.0 * log_weights, 0)))


def anneal(base: Potential, target: Potential, ladder: Ladder, x: Tensor, *, reverse: bool = False) -> Weights:
    """Annealed importance sampling along a frozen ladder, one MALA step at each temperature (Neal 2001).

    Args:
        base: where the ladder begins.
        target: where it ends.
        ladder: of :func:`climb`, from a run of its own.
        x: independent draws, ``(particles, *event)``: of the base, or of the target if ``reverse``.
        reverse: go from the target down to the base; the weights then estimate Z_base / Z_target.
    """
    check_data("x", x, target.event_shape)
    parts = _begin(base, target, x)
    order = range(len(ladder.betas) - 1, -1, -1) if reverse else range(len(ladder.betas))
    betas, sizes = [float(ladder.betas[i]) for i in order], [float(ladder.step_sizes[i]) for i in order]
    position = torch.zeros((), dtype=x.dtype, device=x.device)
    bridge = Bridge(base, target, position)
    log_weights, acceptance = torch.zeros(len(x), dtype=torch.float64, device=x.device), []
    for i in range(1, len(betas)):
        log_weights = log_weights - (betas[i] - betas[i - 1]) * parts.heat()
        if i < len(betas) - 1:  # after the last change nothing is asked of the particles
            position.fill_(betas[i])
            state, info = MALA(sizes[i]).step(bridge, parts.at(betas[i], x))
            x, parts = state.x, _moved(parts, base, target, state, info.accepted, betas[i])
            acceptance.append(float(info.accept_prob.mean()))
    evaluations = (len(betas) - 1 + sum(b < _SMALL for b in betas)) * len(x)
    return Weights(log_weights, x, evaluations, torch.tensor(acceptance))


def bennett(forward: Tensor, reverse: Tensor) -> tuple[float, float]:
    """Bennett's acceptance ratio: log(Z_target / Z_base) and its asymptotic standard error (Shirts & Chodera 2008).

    Args:
        forward: log weights of runs from the base, ``(n,)``.
        reverse: log weights of runs from the target, ``(m,)``.

    Raises:
        EnergyPPLError: if no weight is finite.
    """
    shift = math.log(len(forward) / len(reverse))

    def balance(guess: float) -> float:
        ahead = torch.sigmoid(forward - guess - shift).sum()
        back = torch.sigmoid(reverse + guess + shift).sum()
        return float(ahead - back)

    finite = torch.cat([forward, -reverse])
    finite = finite[torch.isfinite(finite)]
    if len(finite) == 0:
        raise EnergyPPLError("no particle came through from either end: base and target don't overlap")
    low, high = float(finite.min()) - abs(shift) - 1.0, float(finite.max()) + abs(shift) + 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if balance(middle) > 0 else (low, middle)
    estimate = 0.5 * (low + high)
    terms = (torch.sigmoid(forward - estimate - shift), torch.sigmoid(reverse + estimate + shift))
    variance = sum(float((f * f).mean() / f.mean() ** 2 - 1.0) / len(f) for f in terms)
    return estimate, math.sqrt(max(0.0, variance))


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``y`` at new points, straight between the old ones ``x``, which rise."""
    right = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return torch.lerp(y[right - 1].double(), y[right].double(), share)

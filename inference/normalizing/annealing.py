"""Annealed importance sampling between a base whose log Z is known and a target: forward, in reverse, and in islands.

A run moves particles along the geometric path ``(1 − β) U_base + β U_target`` (Neal 2001) and adds up what the changes
of β cost them.  Forward weights average to Z_target / Z_base, so their logarithms average to a stochastic lower bound;
reverse ones, from draws of the target, average to the inverse and give an upper bound (Grosse, Ghahramani & Adams
2015).  Resampled within islands, forward runs are sequential Monte Carlo (Del Moral, Doucet & Jasra 2006).

At every temperature the energy is put together anew from those of base and target: weights of a run that went on with
the last temperature's would be biased, as TensorFlow Probability's are.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_count, check_event, checked, shape_text
from energyppl.errors import EnergyPPLError, InvalidInput
from energyppl.inference.kernels.contract import Kernel
from energyppl.inference.normalizing.particles import Ends, Particles
from energyppl.inference.normalizing.planning import check_temperatures
from energyppl.potentials.algebra import Potential

__all__ = ["AnnealingSchedule", "PilotRun", "Weights", "anneal", "effective_size", "log_mean_exp", "pilot_run"]

_MAX_TEMPERATURES = 5_000  # of a pilot: beyond, base and target hardly overlap, or the target is not normalizable
_ACCEPTANCE = 0.6  # acceptance, for kernels that don't say which serves them
_MAX_MOVES = 20  # of a pilot at one temperature
_RESAMPLED_BELOW = 0.5  # of the particles, effective


class AnnealingSchedule(NamedTuple):
    """Temperatures and the step sizes that suit them, frozen before any weight is worked out.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> wide = ep.potentials.GaussianBase(torch.zeros(2), torch.full((2,), 2.0))
        >>> schedule = ep.normalizing.pilot_run(wide, normal, wide.sample(256), ep.MALA(0.5)).schedule
        >>> float(schedule.betas[0]), float(schedule.betas[-1])
        (0.0, 1.0)
    """

    betas: Tensor  # (temperatures + 1,), from 0 to 1, float64
    step_sizes: Tensor  # (temperatures + 1,)

    def resampled(self, temperatures: int) -> "AnnealingSchedule":
        """Return the same path with another number of temperatures."""
        check_count("temperatures", temperatures)
        old = torch.linspace(0.0, 1.0, len(self.betas), dtype=torch.float64)
        new = torch.linspace(0.0, 1.0, temperatures + 1, dtype=torch.float64)
        betas = _interpolate(new, old, self.betas)
        betas[0], betas[-1] = 0.0, 1.0
        return AnnealingSchedule(betas, _interpolate(new, old, self.step_sizes.double().log()).exp())


class PilotRun(NamedTuple):
    """Pilot run: the temperatures and the step sizes that it found.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> wide = ep.potentials.GaussianBase(torch.zeros(2), torch.full((2,), 2.0))
        >>> pilot = ep.normalizing.pilot_run(wide, normal, wide.sample(256), ep.MALA(0.5))
        >>> pilot.x.shape, pilot.evaluations > 0
        (torch.Size([256, 2]), True)
    """

    schedule: AnnealingSchedule
    x: Tensor  # (particles, *batch, *event), where its particles ended, resampled: about the target
    evaluations: int  # of the target, all particles together
    end: Ends  # energy and gradient of the target at x


class Weights(NamedTuple):
    """Log weights of a run's particles, where they ended, and how the run went.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> wide, kernel = ep.potentials.GaussianBase(torch.zeros(2), torch.full((2,), 2.0)), ep.MALA(0.5)
        >>> schedule = ep.normalizing.pilot_run(wide, normal, wide.sample(256), kernel).schedule
        >>> weights = ep.normalizing.anneal(wide, normal, schedule, wide.sample(256), kernel)
        >>> weights.log_weights.shape, weights.x.shape
        (torch.Size([256]), torch.Size([256, 2]))
    """

    log_weights: Tensor  # (particles, *batch), float64, nats
    x: Tensor  # (particles, *batch, *event)
    roots: Tensor  # (particles, *batch), the number of the particle that each descends from
    evaluations: int  # of the target with its gradient, all particles together
    acceptance: Tensor  # (temperatures − 1,), mean over the particles after each change of β but the last
    conditional_size: Tensor  # (temperatures,), conditional effective sample size of each change, as a share
    effective_size: Tensor  # (temperatures,), effective sample size after it, as a share
    end: Ends  # energy and gradient at x of the potential where the run ended

    def of_roots(self) -> Tensor:
        """Return the log of the weight that the descendants of each particle have together, ``(particles, *batch)``.

        After resampling the particles' own weights are even and say nothing of how uneven those before were.  Weights
        of the particles that a run began with do: their spread is that of the estimate (Lee & Whiteley 2018).
        """
        top = torch.full_like(self.log_weights, -math.inf).scatter_reduce(0, self.roots, self.log_weights, "amax")
        top = top.nan_to_num(neginf=0.0)
        shares = torch.exp(self.log_weights - top.gather(0, self.roots))
        return torch.zeros_like(shares).scatter_add(0, self.roots, shares).log() + top


@checked
def pilot_run(
    base: Potential,
    target: Potential,
    x: Tensor,
    kernel: Kernel,
    *,
    betas: Sequence[float] | None = None,
    steepness: float = 0.99,
    rest: int = 0,
    begin: Ends | None = None,
) -> PilotRun:
    """Find temperatures and step sizes in a pilot run: its weights are thrown away, so it may look at what it does.

    Each β is as far from the last as leaves the particles' conditional effective sample size at ``steepness`` of their
    number (Zhou, Johansen & Aston 2016); particles are resampled when their weights grow uneven.

    Args:
        base: where the path begins.
        target: where it ends.
        x: draws of the base, ``(particles, *batch, *event)``.
        kernel: moves the particles; its step size, if it has one, is tuned on the way.
        betas: temperatures to visit, from 0 to 1, if they are not to be found.
        steepness: conditional effective sample size aimed at, as a share, in the worst of a batch.
        rest: steps more of the kernel at the end.
        begin: energy and gradient of the base at ``x``, as another run's ``end`` has them, if they are known.

    Raises:
        InvalidInput: if the target's energy is finite at none of the base's draws, or betas do not rise from 0 to 1.
        EnergyPPLError: if the path doesn't arrive, as where the target is not normalizable.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> wide = ep.potentials.GaussianBase(torch.zeros(2), torch.full((2,), 2.0))
        >>> pilot = ep.normalizing.pilot_run(wide, normal, wide.sample(256), ep.MALA(0.5), betas=(0.0, 0.5, 1.0))
        >>> pilot.schedule.betas.tolist()
        [0.0, 0.5, 1.0]
    """
    if betas is not None:
        check_temperatures("betas", betas)
    path = Particles(base, target, kernel, x, at_base=begin)
    if not bool(torch.isfinite(path.parts.target).any()):
        raise InvalidInput(
            "the target's energy is finite at no draw of the base: pass a base that overlaps the target's support"
        )
    target_acceptance = getattr(kernel, "target_acceptance", None) or _ACCEPTANCE
    largest = getattr(kernel, "max_step_size", math.inf)
    log_step = math.log(min(float(x.std()) or 1.0, largest))
    fixed = iter(()) if betas is None else iter(betas[1:])
    beta, log_weights = 0.0, torch.zeros_like(path.parts.target, dtype=torch.float64)
    visited, steps = [0.0], [math.exp(log_step)]
    while beta < 1.0:
        if len(visited) > _MAX_TEMPERATURES or not math.isfinite(log_step):
            raise EnergyPPLError(
                f"annealing did not reach the target (β = 1): after {len(visited)} temperatures it was at {beta:.2g}. "
                "The target may not be normalizable, or lies far from the base: pass a base that covers it"
            )
        work = path.parts.work()
        new = next(fixed) if betas is not None else _next_beta(beta, work, log_weights, steepness)
        log_weights = log_weights - (new - beta) * work
        beta = new
        if bool((effective_size(log_weights) < _RESAMPLED_BELOW * len(x)).any()):
            path.resample(_resampled(log_weights))
            log_weights = torch.zeros_like(log_weights)
        log_step = _tuned(path, beta, log_step, target_acceptance, largest)
        visited.append(beta)
        steps.append(math.exp(log_step))
    steps[0] = steps[1]  # nothing moves at β = 0, but finer schedules interpolate from there
    path.resample(_resampled(log_weights))
    for _ in range(rest):
        path.move(1.0, math.exp(log_step))
    found = AnnealingSchedule(torch.tensor(visited, dtype=torch.float64), torch.tensor(steps, dtype=torch.float64))
    return PilotRun(found, path.x, round(path.evaluations), path.parts.end(base=False))


def _tuned(path: Particles, beta: float, log_step: float, target_acceptance: float, max_step_size: float) -> float:
    """Move at a temperature, and return the log step size as the moves have tuned it."""
    for move in range(_MAX_MOVES):  # beyond two only where the step size is still far too large
        acceptance = float(path.move(beta, math.exp(log_step)))
        enough = acceptance > 0.3 * target_acceptance
        log_step = min(log_step + (0.5 if enough else 2.0) * (acceptance - target_acceptance), math.log(max_step_size))
        if move >= 1 and enough:
            break
    return log_step


def _next_beta(beta: float, work: Tensor, log_weights: Tensor, steepness: float) -> float:
    """Find the farthest β that leaves the conditional effective sample size at ``steepness``, by bisection.

    Particles of infinite work are lost at the first change, however small: they are left out.
    """
    legal = torch.isfinite(work) & torch.isfinite(log_weights)
    if not bool(legal.any(0).all()):
        raise EnergyPPLError(
            "all particles of the pilot run are where the target's energy is infinite: pass another base"
        )
    log_weights = torch.where(legal, log_weights, -math.inf)
    work = torch.where(legal, work, 0.0)

    def enough(new: float) -> bool:
        return float(_conditional_size(log_weights, -(new - beta) * work).min()) >= steepness

    if enough(1.0):
        return 1.0
    low, high = 0.0, 1.0 - beta
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if enough(beta + middle) else (low, middle)
    return beta + max(low, 1e-12)


def _conditional_size(log_weights: Tensor, increment: Tensor) -> Tensor:
    """Return ``(Σ W u)² / Σ W u²`` of increments u under normalized weights W, ``(*batch,)``."""
    weights = torch.softmax(log_weights, 0)
    u = torch.exp(increment - increment.amax(0).nan_to_num(neginf=0.0))
    return (weights * u).sum(0).square() / (weights * u * u).sum(0)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Return the log of the weights' mean over particles, an estimate of the ratio of normalizers, ``(*batch,)``."""
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def effective_size(log_weights: Tensor) -> Tensor:
    """Return the effective sample size, ``(Σ w)² / Σ w²`` over particles, ``(*batch,)``; 0 if no weight is positive."""
    return torch.exp(2.0 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2.0 * log_weights, 0)).nan_to_num(nan=0.0)


def _resampled(log_weights: Tensor) -> Tensor:
    """Draw indices of particles by their weights with little noise (systematic; Kitagawa 1996), ``(n, *batch)``."""
    count = len(log_weights)
    ends = torch.softmax(log_weights, 0).cumsum(0).movedim(0, -1).contiguous()
    places = (torch.arange(count, device=ends.device) + torch.rand(*ends.shape[:-1], 1).to(ends)) / count
    return torch.searchsorted(ends, places.to(ends)).clamp(max=count - 1).movedim(-1, 0)


@checked
def anneal(
    base: Potential,
    target: Potential,
    schedule: AnnealingSchedule,
    x: Tensor,
    kernel: Kernel,
    *,
    reverse: bool = False,
    islands: int | None = None,
    before: Tensor | None = None,
    begin: Ends | None = None,
    goes_on: bool = False,
) -> Weights:
    """Anneal by importance sampling along a frozen schedule, one move at each temperature (Neal 2001).

    Args:
        base: where the schedule begins.
        target: where it ends.
        schedule: of :func:`pilot_run`, from a run of its own.
        x: independent draws, ``(particles, *batch, *event)``: of the base, or of the target if ``reverse``.
        kernel: moves the particles, with the schedule's step sizes; it must leave each temperature's density invariant.
        reverse: go from the target down to the base; the weights then estimate Z_base / Z_target.
        islands: split the particles into as many groups, and resample each when its weights grow uneven (sequential
            Monte Carlo); the groups' mean weights are then independent, the particles' are not.
        before: log weights that the particles bring from an earlier stretch of the path, ``(particles, *batch)``.
        begin: energy and gradient at ``x`` of where the run begins, as another run's ``end`` has them, if known.
        goes_on: move the particles at the last temperature too, for another stretch that begins there.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))  # log Z = log 2π = 1.838
        >>> wide, kernel = ep.potentials.GaussianBase(torch.zeros(2), torch.full((2,), 2.0)), ep.MALA(0.5)
        >>> schedule = ep.normalizing.pilot_run(wide, normal, wide.sample(256), kernel).schedule
        >>> weights = ep.normalizing.anneal(wide, normal, schedule, wide.sample(1024), kernel)
        >>> abs(float(weights.log_weights.exp().mean().log()) - 1.838) < 0.3
        True
    """
    check_event("x", x, target.event_shape)
    ends = {"at_target": begin} if reverse else {"at_base": begin}
    path = Particles(base, target, kernel, x, **ends)
    if islands is not None:
        check_count("islands", islands)
    if before is not None and before.shape != path.parts.target.shape:
        raise InvalidInput(
            f"before must hold a log weight for each particle, {shape_text(path.parts.target.shape)}; got "
            f"{shape_text(before.shape)}: pass those of the stretch before"
        )
    order = range(len(schedule.betas) - 1, -1, -1) if reverse else range(len(schedule.betas))
    betas, sizes = [float(schedule.betas[i]) for i in order], [float(schedule.step_sizes[i]) for i in order]
    log_weights = torch.zeros_like(path.parts.target, dtype=torch.float64) if before is None else before
    acceptance, conditional, effective = [], [], []
    for i in range(1, len(betas)):
        increment = -(betas[i] - betas[i - 1]) * path.parts.work()
        conditional.append(_conditional_size(log_weights, increment).mean())
        log_weights = log_weights + increment
        effective.append(effective_size(log_weights).mean() / len(x))
        if i == len(betas) - 1 and not goes_on:  # after the last change nothing is asked of the particles
            break
        if islands is not None:
            log_weights = _resample_islands(path, log_weights, islands)
        acceptance.append(path.move(betas[i], sizes[i]))
    kept = [torch.stack(values).cpu() if values else torch.zeros(0) for values in (acceptance, conditional, effective)]
    end = path.parts.end(base=reverse)
    return Weights(log_weights, path.x, path.roots, round(path.evaluations), kept[0], kept[1], kept[2], end)


def _resample_islands(path: Particles, log_weights: Tensor, islands: int) -> Tensor:
    """Resample those islands whose weights are uneven; their mean weight stays, the same for all of their particles."""
    if len(log_weights) % islands:
        raise InvalidInput(f"the particles must divide into {islands} islands; got {shape_text(log_weights.shape)}")
    split = log_weights.unflatten(0, (islands, -1)).movedim(1, 0)  # (each, islands, *batch)
    size = len(split)
    uneven = effective_size(split) < _RESAMPLED_BELOW * size
    if not bool(uneven.any()):
        return log_weights
    places = append_dims(torch.arange(size, device=split.device), split).expand(split.shape)
    index = torch.where(uneven, _resampled(split), places)
    offset = size * torch.arange(islands, device=split.device).reshape(1, -1, *[1] * (split.dim() - 2))
    path.resample((index + offset).movedim(0, 1).flatten(0, 1))
    return torch.where(uneven, log_mean_exp(split), split).movedim(0, 1).flatten(0, 1)


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate ``y`` at new points, straight between the old ones ``x``, which rise."""
    right = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return torch.lerp(y[right - 1].double(), y[right].double(), share)

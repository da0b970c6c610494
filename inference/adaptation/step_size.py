"""Step sizes: dual averaging to a mean acceptance, the search for where it begins, and the rescue of stuck chains."""

import math

import torch
from torch import Tensor

from energyppl.inference.kernels.contract import Info, State, StepSizeTunable, dot
from energyppl.inference.kernels.hamiltonian import leapfrog
from energyppl.inference.kernels.mass import InverseMass, stepper
from energyppl.potentials.algebra import Potential

__all__ = ["DualAveraging", "Rescue", "StepSizeAdapter", "first_steps", "group_means"]

_SHORTEST = 64.0  # as a share of the first step size, of which one is accepted four times in five
_FREE_MISSES = 3  # rejections in a row that happen to a healthy chain
_SEARCH = 100  # doublings or halvings of the first step size at most
_DIVERGENCE = 5.0  # rejections that one counts as
_FEWEST = 8  # steps of dual averaging that are worth more than a search


class StepSizeAdapter:
    """Adapts a kernel's step size, or one for each group of chains, during a warm-up.

    Args:
        kernel: where to begin.
        target_acceptance: acceptance aimed at.
        state: where the chains are.
        groups: ``(*chains,)``, whole numbers from 0; all chains share one step size if None.
    """

    def __init__(
        self, kernel: StepSizeTunable, target_acceptance: float, state: State, groups: Tensor | None = None
    ) -> None:
        x, chains = state.x, state.energy.shape
        self._grouped = groups is not None
        self._index = torch.zeros(chains, dtype=torch.long, device=x.device) if groups is None else groups.to(x.device)
        first = torch.as_tensor(kernel.step_size, dtype=x.dtype, device=x.device).expand(chains)
        log_step = group_means(first.log(), self._index, int(self._index.max()) + 1)
        limit = getattr(kernel, "step_size_limit", math.inf)
        self._averaging = DualAveraging(log_step, target_acceptance, math.log(limit))
        self._rescue = Rescue(chains, x)

    def search(self, potential: Potential, state: State, inverse_mass: InverseMass) -> None:
        """Begin anew at a step size of which one leapfrog step is accepted about four times in five."""
        averaging = self._averaging
        found = first_steps(potential, state, inverse_mass, averaging.log_step, self._index)
        averaging.restart(found, searched=True)

    def step_size(self) -> float | Tensor:
        """Return the step size to try now: a number, or one for each chain."""
        return self._rescue.steps(self._averaging.step(self._index, self._grouped))

    def update(self, info: Info, *, penalize: bool) -> None:
        """Move by one step's acceptance; ``penalize`` divergences for kernels that follow trajectories."""
        well, groups = self.well(), len(self._averaging.log_step)
        accepted = group_means(info.accept_prob, self._index, groups, well)
        if penalize:
            # A divergence tells of a place that longer steps would leave unseen: it counts as several rejections.
            # But shorter steps don't lead past a wall of infinite energy, so it takes half of the acceptance at most.
            penalty = _DIVERGENCE * group_means(info.diverging.to(accepted), self._index, groups, well)
            accepted = torch.maximum(accepted - penalty, 0.5 * accepted)
        self._averaging.update(accepted)
        self._rescue.update(info.accept_prob)

    def well(self) -> Tensor:
        """Tell which chains, ``(*chains,)`` bool, are at their full step size."""
        return self._rescue.well()

    def result(self) -> float | Tensor:
        """Return the step size to keep, the average of those that were tried."""
        return self._averaging.step(self._index, self._grouped, averaged=True)


class DualAveraging:
    """Dual averaging of log step sizes (Hoffman & Gelman 2014, eq. 6; γ = .05, t₀ = 10, κ = .75) in each group."""

    def __init__(self, log_step: Tensor, target_acceptance: float, high: float) -> None:
        info = torch.finfo(log_step.dtype)
        self._low, self._high = math.log(info.tiny) / 2, min(high, math.log(info.max) / 4)
        self._target_acceptance = target_acceptance
        self.restart(log_step)

    def restart(self, log_step: Tensor, *, searched: bool = False) -> None:
        """Begin anew from here: the target has changed its scale."""
        self.log_step = log_step.clamp(self._low, self._high)
        # No step size is accepted often enough where trajectories run into walls, however short: it must not vanish.
        lowest = self.log_step - math.log(_SHORTEST) if searched else torch.full_like(log_step, self._low)
        self._floor = lowest.clamp(min=self._low)
        self._anchor = self.log_step + math.log(10.0)
        self._searched = self.log_step if searched else None
        self._error_sum, self._average, self._count = torch.zeros_like(log_step), self.log_step, 0

    def update(self, acceptance: Tensor) -> None:
        """Move by one step's mean acceptance, ``(groups,)``."""
        self._count += 1
        i = self._count
        self._error_sum = (
            self._error_sum + self._target_acceptance - torch.nan_to_num(acceptance, nan=self._target_acceptance)
        )
        log_step = self._anchor - math.sqrt(i) / 0.05 * self._error_sum / (i + 10)
        self.log_step = torch.maximum(log_step.clamp(self._low, self._high), self._floor)
        weight = i**-0.75
        self._average = weight * self.log_step + (1 - weight) * self._average

    def step(self, index: Tensor, grouped: bool, averaged: bool = False) -> float | Tensor:
        """Return the step size now, or the average to keep: a number, or one for each chain if they are in groups."""
        size = self._average if averaged else self.log_step
        if averaged and self._searched is not None and self._count < _FEWEST:  # the first ones jump far
            size = self._searched
        size = size.exp()
        return size[index] if grouped else float(size[0])


class Rescue:
    """Smaller step sizes, in a warm-up, for chains that are rejected again and again, until they move.

    A chain begun where the energy is steep is rejected for ever at the step size that suits the others.  A warm-up need
    not be exact, so its step may depend on what happened to it.
    """

    def __init__(self, chains: torch.Size, like: Tensor) -> None:
        self._misses = torch.zeros(chains, dtype=like.dtype, device=like.device)

    def steps(self, step_size: float | Tensor) -> float | Tensor:
        """Halve the step size for each rejection in a row beyond the first few."""
        if float(self._misses.max()) <= _FREE_MISSES:
            return step_size
        return step_size * torch.exp2(-(self._misses - _FREE_MISSES).clamp(min=0.0, max=40.0))

    def well(self) -> Tensor:
        """Tell which chains, ``(*chains,)`` bool, are at their full step: by them the step size is judged."""
        return self._misses <= _FREE_MISSES

    def update(self, accept_prob: Tensor) -> None:
        """Count the proposals in a row that were as good as impossible."""
        self._misses = torch.where(accept_prob < 0.02, self._misses + 1.0, (self._misses - 1.0).clamp(min=0.0))
        if float(self._misses.median()) > _FREE_MISSES:  # then the step size is to blame, not the chains
            self._misses.zero_()


def first_steps(potential: Potential, state: State, mass: InverseMass, log_step: Tensor, index: Tensor) -> Tensor:
    """Double or halve the step sizes until one leapfrog step is accepted about four times in five, and no further."""
    event_shape, groups = potential.event_shape, len(log_step)
    direction = torch.zeros_like(log_step)
    done = torch.zeros_like(log_step, dtype=torch.bool)
    for _ in range(_SEARCH):
        by = stepper(log_step.exp()[index], mass, state.x, event_shape)
        u = torch.randn_like(state.x)
        start = state.energy + 0.5 * dot(u, u, state.energy)
        end, u = leapfrog(potential, state, u, by, 1)
        ratio = start - end.energy - 0.5 * dot(u, u, start)
        accept = torch.where(ratio > -math.inf, ratio.clamp(max=0.0).exp(), 0.0)
        acceptance = group_means(accept, index, groups, torch.isfinite(start)).nan_to_num(nan=1.0)
        wanted = torch.where(acceptance > 0.8, 1.0, -1.0).to(log_step)
        done |= (direction != 0) & (wanted != direction) | ~(log_step.abs() < 40.0)
        if bool(done.all()):
            break
        direction = torch.where(done, direction, wanted)
        log_step = torch.where(done, log_step, log_step + direction * math.log(2.0))
    return log_step


def group_means(values: Tensor, groups: Tensor, count: int, kept: Tensor | None = None) -> Tensor:
    """Average the ``kept`` values in each group, ``(count,)``; NaN for a group that has none."""
    flat = groups.flatten()
    if kept is not None and not bool(kept.all()):
        values, flat = values[kept], groups[kept]
    total = torch.zeros(count, dtype=values.dtype, device=values.device).index_add_(0, flat, values.flatten())
    return total / torch.bincount(flat, minlength=count)

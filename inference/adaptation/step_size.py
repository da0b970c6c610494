"""Steer step sizes to a mean acceptance: dual averaging, and the search for where it begins."""

import math

import torch
from torch import Tensor

from energyppl.inference.kernels.contract import State, dot
from energyppl.inference.kernels.hamiltonian import leapfrog
from energyppl.inference.kernels.mass import InverseMass, stepper
from energyppl.potentials.algebra import Potential

__all__ = ["DualAveraging", "Rescue", "first_steps", "group_means"]

_SHORTEST = 64.0  # as a share of the first step size, of which one is accepted four times in five
_FREE_MISSES = 3  # rejections in a row that happen to a healthy chain
_SEARCH = 100  # doublings or halvings of the first step size at most


class DualAveraging:
    """Hoffman & Gelman (2014), eq. 6 with their γ = .05, t₀ = 10, κ = .75; one step size for each group."""

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
        """The step size now, or the average to keep: a number, or one for each chain if they are in groups."""
        size = (self._average if averaged else self.log_step).exp()
        return size[index] if grouped else float(size[0])


class Rescue:
    """Smaller steps, in a warm-up, for chains that are rejected again and again, until they move.

    A chain begun where the energy is steep is rejected for ever at the step size that suits the others: peers strand
    it there.  A warm-up need not be exact, so its step may depend on what happened to it.
    """

    def __init__(self, chains: torch.Size, like: Tensor) -> None:
        self._misses = torch.zeros(chains, dtype=like.dtype, device=like.device)

    def steps(self, step_size: float | Tensor) -> float | Tensor:
        """The step size, halved for each rejection in a row beyond the first few."""
        if float(self._misses.max()) <= _FREE_MISSES:
            return step_size
        return step_size * torch.exp2(-(self._misses - _FREE_MISSES).clamp(min=0.0, max=40.0))

    def well(self) -> Tensor:
        """Chains, ``(*chains,)`` bool, that are at their full step: by them the step size is judged."""
        return self._misses <= _FREE_MISSES

    def update(self, accept_prob: Tensor) -> None:
        """Count what was as good as impossible."""
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
    """Mean of the ``kept`` values in each group, ``(count,)``; NaN for a group that has none."""
    flat = groups.flatten()
    if kept is not None and not bool(kept.all()):
        values, flat = values[kept], groups[kept]
    total = torch.zeros(count, dtype=values.dtype, device=values.device).index_add_(0, flat, values.flatten())
    return total / torch.bincount(flat, minlength=count)

"""Chains over points and levels at once: moves at a fixed level, then an exact draw of the level (DA-EBM).

One energy U(x, t) with one normalizer makes p(t | x) = softmax(−U(x, t)) a table that can be drawn from; so a chain
climbs to noisy levels, where it mixes, and comes back, and each part leaves the joint density as it is.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from energyppl._checks import check_count
from energyppl.autodiff.gradient import energy_only
from energyppl.inference.kernels.contract import append_dims
from energyppl.inference.levels.step_sizes import Stepping, kernel_at
from energyppl.inference.sampling.run_chain import run_chain
from energyppl.potentials.algebra import Potential

__all__ = ["JointModel", "JointTrajectory", "draw_levels", "level_energies", "move_jointly"]


class JointModel(Stepping, Protocol):
    """What joint chains need of a model; ``energyppl.models.JointEBM`` is one, and an ``EBM`` with its one level."""

    event_shape: torch.Size
    levels: int

    def potential(self, level: int | Tensor = 0) -> Potential:
        """The energy at a level, or at each point's own, in standardized coordinates."""
        ...


class JointTrajectory(NamedTuple):
    """Where chains ended, and which levels they were at."""

    x: Tensor  # (chains, *event)
    level: Tensor  # (chains,)
    path: Tensor  # (sweeps, chains), the level of each sweep's moves
    accept_prob: Tensor  # (sweeps, chains), mean over a sweep's moves
    diverging: Tensor  # (chains,), bool


def level_energies(model: JointModel, x: Tensor) -> Tensor:
    """U(x, t) at every level, ``(levels, chains)`` in nats, of standardized points ``(chains, *event)``."""
    levels = torch.arange(model.levels, device=x.device)
    each = levels[:, None].expand(model.levels, len(x))
    return energy_only(model.potential(each), x.expand(model.levels, *x.shape))


def draw_levels(model: JointModel, x: Tensor) -> Tensor:
    """An exact draw from p(t | x) for every point, ``(chains, *event)`` to ``(chains,)``."""
    if model.levels == 1:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)
    energies = level_energies(model, x)
    # The largest of −U + Gumbel noise is a draw from the softmax, however far apart energies are.
    gumbel = -torch.empty_like(energies).exponential_().log()
    return torch.where(torch.isfinite(energies), gumbel - energies, -torch.inf).argmax(0)


def move_jointly(model: JointModel, x: Tensor, level: Tensor, *, sweeps: int, num_steps: int) -> JointTrajectory:
    """Mixture sampling (Zhang, Tan & Ou 2023): ``num_steps`` of the kernel at fixed levels, then a draw of the levels.

    Args:
        model: the joint model.
        x: standardized points, ``(chains, *event)``.
        level: their levels, ``(chains,)``.
        sweeps: how often.
        num_steps: of the kernel in each sweep.
    """
    check_count("sweeps", sweeps)
    path, accepted = [], []
    diverging = torch.zeros_like(level, dtype=torch.bool)
    for _ in range(sweeps):
        chain = run_chain(kernel_at(model, level), model.potential(level), x, num_steps)
        path.append(level)
        accepted.append(chain.accept_prob)
        diverging |= chain.diverging
        # A chain that is nowhere finite has no level to draw; it stays for the caller to see.
        fine = torch.isfinite(chain.state.energy)
        x = torch.where(append_dims(fine, x), chain.state.x, x)
        level = torch.where(fine, draw_levels(model, x), level)
    return JointTrajectory(x, level, torch.stack(path), torch.stack(accepted), diverging)

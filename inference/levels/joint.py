"""Chains over points and levels at once: moves at a fixed level, then a move of the level (DA-EBM).

One energy U(x, t) with one normalizer makes p(t | x) = softmax(−U(x, t)) a table that can be drawn from; so a chain
goes up to noisy levels, where it mixes, and comes back, and each part leaves the joint density as it is.  In hundreds
of dimensions levels lie so close, and so many of them, that the table costs more than the moves and only neighbours
matter: there a Metropolis move to a neighbouring level takes one energy.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_count, check_event
from energyppl.autodiff.gradient import energy_only
from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import LevelModel
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.inference.sampling.run_chain import run_chain

__all__ = ["JointTrajectory", "draw_levels", "level_energies", "move_jointly", "neighbouring", "step_levels"]


class JointTrajectory(NamedTuple):
    """Ends of joint chains over points and levels, and the levels that they visited.

    Example:
        >>> ebm = ep.JointEBM(ep.MLPEnergy((2,), levels=4), ep.NoiseSchedule.cosine(levels=3))
        >>> level = torch.zeros(8, dtype=torch.long)
        >>> end = ep.levels.move_jointly(ebm, torch.randn(8, 2), level, sweeps=5, num_steps=2)
        >>> end.x.shape, end.path.shape
        (torch.Size([8, 2]), torch.Size([5, 8]))
    """

    x: Tensor  # (chains, *event)
    level: Tensor  # (chains,)
    path: Tensor  # (sweeps, chains), the level of each sweep's moves
    accept_prob: Tensor  # (sweeps, chains), mean over a sweep's moves
    diverging: Tensor  # (chains,), bool


def level_energies(model: LevelModel, x: Tensor) -> Tensor:
    """Evaluate U(x, t) at every level, ``(levels, chains)`` in nats, at standardized points ``(chains, *event)``.

    Example:
        >>> ebm = ep.JointEBM(ep.MLPEnergy((2,), levels=4), ep.NoiseSchedule.cosine(levels=3))
        >>> ep.levels.level_energies(ebm, torch.randn(5, 2)).shape
        torch.Size([4, 5])
    """
    levels = torch.arange(model.levels, device=x.device)
    each = levels[:, None].expand(model.levels, len(x))
    return energy_only(model.potential(each), x.expand(model.levels, *x.shape))


def draw_levels(model: LevelModel, x: Tensor) -> Tensor:
    """Draw from p(t | x) exactly for every point, ``(chains, *event)`` to ``(chains,)``.

    Example:
        >>> ebm = ep.JointEBM(ep.MLPEnergy((2,), levels=4), ep.NoiseSchedule.cosine(levels=3))
        >>> ep.levels.draw_levels(ebm, torch.randn(5, 2)).shape
        torch.Size([5])
    """
    if not hasattr(model, "levels"):
        raise InvalidInput(f"model must have levels, as a JointEBM; got {type(model).__name__}: pass one")
    check_event("x", x, model.event_shape)
    if model.levels == 1:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)
    energies = level_energies(model, x)
    # The largest of −U + Gumbel noise is a draw from the softmax, however far apart energies are.
    gumbel = -torch.empty_like(energies).exponential_().log()
    return torch.where(torch.isfinite(energies), gumbel - energies, -torch.inf).argmax(0)


def neighbouring(level: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Choose the level below or above each of ``level``, ``(n,)``, and tell where there is one among ``levels``.

    Example:
        >>> from energyppl.inference.levels.joint import neighbouring
        >>> other, exists = neighbouring(torch.tensor([1, 1, 1]), 3)
        >>> bool(((other - 1).abs() == 1).all()), bool(exists.all())
        (True, True)
    """
    other = level + 2 * torch.randint_like(level, 2) - 1
    return other.clamp(0, levels - 1), (other >= 0) & (other < levels)


def step_levels(model: LevelModel, x: Tensor, level: Tensor, energy: Tensor) -> Tensor:
    """Make one Metropolis move of each point's level to a neighbouring one, ``(chains,)``, for one energy a point.

    Args:
        model: the joint model.
        x: standardized points, ``(chains, *event)``.
        level: their levels, ``(chains,)``.
        energy: their energies there, ``(chains,)``, in nats.

    Example:
        >>> ebm = ep.JointEBM(ep.MLPEnergy((2,), levels=4), ep.NoiseSchedule.cosine(levels=3))
        >>> x, level = torch.randn(5, 2), torch.tensor([0, 1, 2, 3, 3])
        >>> moved = ep.levels.step_levels(ebm, x, level, ebm.potential(level)(x).detach())
        >>> bool(((moved - level).abs() <= 1).all())
        True
    """
    other, exists = neighbouring(level, model.levels)
    log_ratio = energy - energy_only(model.potential(other), x)
    accepted = exists & (torch.rand_like(log_ratio).log() < log_ratio)  # never where the energy is not a number
    return torch.where(accepted, other, level)


def move_jointly(
    model: LevelModel,
    x: Tensor,
    level: Tensor,
    *,
    sweeps: int,
    num_steps: int,
    level_kernel: LevelKernel | None = None,
    neighbours: bool = False,
) -> JointTrajectory:
    """Move points ``num_steps`` times at fixed levels, then their levels (mixture sampling, Zhang, Tan & Ou 2023).

    Args:
        model: the joint model.
        x: standardized points, ``(chains, *event)``.
        level: their levels, ``(chains,)``.
        sweeps: how often.
        num_steps: of the kernel in each sweep.
        level_kernel: moves the chains; the model's own if None.
        neighbours: propose a neighbouring level, in place of a draw from all of them.

    Example:
        >>> ebm = ep.JointEBM(ep.MLPEnergy((2,), levels=4), ep.NoiseSchedule.cosine(levels=3))
        >>> x, level = torch.randn(8, 2), torch.zeros(8, dtype=torch.long)
        >>> ep.levels.move_jointly(ebm, x, level, sweeps=2, num_steps=2).level.shape
        torch.Size([8])
    """
    check_count("sweeps", sweeps)
    kernel = model.level_kernel if level_kernel is None else level_kernel
    path, accepted = [], []
    diverging = torch.zeros_like(level, dtype=torch.bool)
    for _ in range(sweeps):
        chain = run_chain(kernel.at(level), model.potential(level), x, num_steps)
        path.append(level)
        accepted.append(chain.accept_prob)
        diverging |= chain.diverging
        # A chain that is nowhere finite has no level to draw; it stays for the caller to see.
        fine = torch.isfinite(chain.state.energy)
        x = torch.where(append_dims(fine, x), chain.state.x, x)
        moved = step_levels(model, x, level, chain.state.energy) if neighbours else draw_levels(model, x)
        level = torch.where(fine, moved, level)
    return JointTrajectory(x, level, torch.stack(path), torch.stack(accepted), diverging)

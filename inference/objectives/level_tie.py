"""Level tie: the noise levels' energies compared by classifying which of two levels a point is from.

Recovery likelihood trains each level's density given a noisier point. A constant added to the energy of one region
changes no such density unless its Gaussian tilt joins regions, so at sharp levels the relative masses of separated
regions are unknown. At noisy levels regions touch, and the noisiest marginal is known. The classification of noise
levels (Yadin et al. 2024) carries masses from there to the sharp levels, for its optimum is ``U_t = −log p_t`` in
coordinates of unit variance, for every level t and without a constant of its own.
"""

import math

import torch
from torch import Tensor

from energyppl._checks import append_dims
from energyppl.inference.levels.contract import LevelModel
from energyppl.potentials.algebra import sum_event

__all__ = ["level_classification", "level_tie"]


def level_tie(
    model: LevelModel,
    clean: Tensor,
    noisy: Tensor,
    level: Tensor,
    upper: Tensor,
    clean_energy: Tensor | None = None,
) -> Tensor:
    """Return the mean log loss of classifying pairs of noise levels, ``()``, in nats: log 2 if nothing is known.

    A point is from ``level`` with probability ``p_t(x) / (p_t(x) + p_u(x))``, the densities being ``exp(−U)`` in
    coordinates of unit variance, without any normalizer. That of the noisiest marginal is known: it is Gaussian, and
    its draws are made anew.

    Args:
        model: energies at the levels.
        clean: points at ``level``, ``(n, *event)``, standardized.
        noisy: points at ``upper``, likewise.
        level: t, ``(n,)``.
        upper: u, ``(n,)``, noisier than t and at most the schedule's noisiest marginal.
        clean_energy: energies of ``clean`` at ``level``, ``(n,)``, where they are known.

    Example:
        >>> from energyppl.inference.objectives.level_tie import level_tie
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> pairs = ep.RecoveryLikelihood().pairs(ebm, torch.randn(64, 2))
        >>> level_tie(ebm, pairs.clean, pairs.noisy, pairs.level, pairs.upper).shape
        torch.Size([])
    """
    top = model.schedule.levels
    std = model.schedule.marginal_std.to(clean)
    white = std[-1] * torch.randn_like(noisy)
    noisy = torch.where(append_dims(upper == top, clean), white, noisy)
    points = torch.stack([clean, noisy])
    jacobian = math.prod(model.event_shape) * std.log()
    lower = model.potential(level)
    energy = lower(points) if clean_energy is None else torch.stack([clean_energy, lower(noisy)])
    lower_energy = energy + jacobian[level]
    known = sum_event(0.5 * (points / std[-1]).square() + 0.5 * math.log(2.0 * math.pi), model.event_shape)
    learned = model.potential(upper.clamp(max=top - 1))(points)
    difference = torch.where(upper == top, known, learned) + jacobian[upper] - lower_energy
    sign = difference.new_tensor([1.0, -1.0])[:, None]
    return torch.nn.functional.softplus(-sign * difference).mean()


def level_classification(model: LevelModel, x: Tensor, level: Tensor) -> Tensor:
    """Return the mean log loss of telling a point's level among all, ``()``, in nats: −log p(t | x) of a joint model.

    Of one energy over points and levels p(t | x) = softmax(−U(x, t)) is exact, and −log p(x, t) is −log p(x) plus it.

    Args:
        model: energies at the levels, with one normalizer.
        x: points, ``(n, *event)``, standardized.
        level: the one that each is from, ``(n,)``.

    Example:
        >>> from energyppl.inference.objectives.level_tie import level_classification
        >>> ebm = ep.JointEBM(ep.MLPEnergy((2,), levels=4), ep.NoiseSchedule.cosine(levels=3))
        >>> level_classification(ebm, torch.randn(8, 2), torch.arange(8) % 4).shape
        torch.Size([])
    """
    levels = torch.arange(model.levels, device=x.device)[:, None].expand(model.levels, len(x))
    energies = model.potential(levels)(x.expand(model.levels, *x.shape))
    return torch.nn.functional.cross_entropy(-energies.T, level)

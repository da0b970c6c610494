"""Level tie: the noise levels' energies compared by classifying which of two levels a point is from.

Recovery likelihood trains each level's density given a noisier point. A constant added to the energy of one region
changes no such density unless its Gaussian tilt joins regions, so at sharp levels the relative masses of separated
regions are unknown. At noisy levels regions touch, and the noisiest marginal is known. The classification of noise
levels (Yadin et al. 2024) carries masses from there to the sharp levels, for its optimum is ``U_t = −log p_t`` in
coordinates of unit variance, for every level t and without a constant of its own.
"""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor

from energyppl._checks import append_dims
from energyppl.inference.levels.contract import Conditional, LevelModel
from energyppl.inference.levels.initializers import model_of_rows
from energyppl.inference.levels.joint import neighbouring
from energyppl.schedule import NoiseSchedule

__all__ = ["LevelTie", "level_classification", "level_tie", "neighbour_classification"]


class LevelTie(NamedTuple):
    """Pairs of noise levels to be told apart, and the points whose energies that takes beside those of clean ones.

    Energies at the noisiest marginal are known: it is Gaussian, and its draws are made anew.

    Example:
        >>> from energyppl.inference.objectives.level_tie import LevelTie
        >>> schedule, level = ep.NoiseSchedule.cosine(levels=3), torch.tensor([0, 1, 2])
        >>> tie = LevelTie.of(schedule, torch.randn(3, 2), torch.randn(3, 2), level, level + 1)
        >>> tie.points.shape, tie.levels  # noisy points at the lower levels, both at 1 and 2
        (torch.Size([7, 2]), tensor([0, 1, 2, 1, 2, 1, 2]))
    """

    points: Tensor  # (n + 2 m, *event): noisy ones, and clean and noisy ones where the upper level is learned
    levels: Tensor  # (n + 2 m,), at which their energies are asked for
    rows: Tensor  # (n + 2 m,), of the pairs that the points are of
    difference: Tensor  # (2, n), what is known of the upper level's energy less the lower one's
    learned: Tensor  # (m,), the pairs whose upper level is learned

    @classmethod
    def of(cls, schedule: NoiseSchedule, clean: Tensor, noisy: Tensor, level: Tensor, upper: Tensor) -> "LevelTie":
        """Take pairs: points ``clean`` at ``level`` and ``noisy`` at ``upper``, as :func:`level_tie` does."""
        top, size = schedule.levels, clean[0].numel()
        std = schedule.marginal_std.to(clean)
        white = append_dims(upper == top, clean)
        noisy = torch.where(white, std[-1] * torch.randn_like(noisy), noisy)
        points = torch.stack([clean, noisy])
        square = (points / std[-1]).square().flatten(2).sum(2)
        known = torch.where(upper == top, 0.5 * (square + size * math.log(2.0 * math.pi)), 0.0)
        log_std = size * std.log()
        learned, every = (upper < top).nonzero()[:, 0], torch.arange(len(level), device=level.device)
        return cls(
            torch.cat([noisy, clean[learned], noisy[learned]]),
            torch.cat([level, upper[learned], upper[learned]]),
            torch.cat([every, learned, learned]),
            known + log_std[upper] - log_std[level],
            learned,
        )

    def loss(self, clean: Tensor, others: Tensor) -> Tensor:
        """Return the mean log loss, ``()``, in nats.

        Args:
            clean: energies of the clean points at their own levels, ``(n,)``.
            others: energies of ``points`` at ``levels``, ``(n + 2 m,)``.
        """
        noisy, upper = others.tensor_split([len(clean)])
        difference = self.difference - torch.stack([clean, noisy])
        difference = difference.index_add(1, self.learned, upper.reshape(2, -1))
        sign = difference.new_tensor([1.0, -1.0])[:, None]
        return torch.nn.functional.softplus(-sign * difference).mean()


def level_tie(model: LevelModel, clean: Tensor, noisy: Tensor, level: Tensor, upper: Tensor) -> Tensor:
    """Return the mean log loss of classifying pairs of noise levels, ``()``, in nats: log 2 if nothing is known.

    A point is from ``level`` with probability ``p_t(x) / (p_t(x) + p_u(x))``, the densities being ``exp(−U)`` in
    coordinates of unit variance, without any normalizer.

    Args:
        model: energies at the levels.
        clean: points at ``level``, ``(n, *event)``, standardized.
        noisy: points at ``upper``, likewise.
        level: t, ``(n,)``.
        upper: u, ``(n,)``, noisier than t and at most the schedule's noisiest marginal.

    Example:
        >>> from energyppl.inference.objectives.level_tie import level_tie
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> pairs = ep.RecoveryLikelihood().pairs(ebm, torch.randn(64, 2))
        >>> level_tie(ebm, pairs.clean, pairs.noisy, pairs.level, pairs.upper).shape
        torch.Size([])
    """
    tie = LevelTie.of(model.schedule, clean, noisy, level, upper)
    rows = torch.cat([torch.arange(len(clean), device=clean.device), tie.rows])
    own = model_of_rows(cast(Conditional, model), rows)
    energies = own.potential(torch.cat([level, tie.levels]))(torch.cat([clean, tie.points]))
    return tie.loss(energies[: len(clean)], energies[len(clean) :])


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


def neighbour_classification(model: LevelModel, x: Tensor, level: Tensor) -> Tensor:
    """Return the mean log loss of telling a point's level from a neighbouring one, chosen at random, ``()``, in nats.

    It has the optimum of :func:`level_classification`, for two energies a point, if levels have equal shares.

    Args:
        model: energies at the levels, with one normalizer.
        x: points, ``(n, *event)``, standardized.
        level: the one that each is from, ``(n,)``.

    Example:
        >>> from energyppl.inference.objectives.level_tie import neighbour_classification
        >>> ebm = ep.JointEBM(ep.MLPEnergy((2,), levels=4), ep.NoiseSchedule.cosine(levels=3))
        >>> neighbour_classification(ebm, torch.randn(8, 2), torch.arange(8) % 4).shape
        torch.Size([])
    """
    other, exists = neighbouring(level, model.levels)
    own, theirs = model.potential(torch.cat([level, other]))(torch.cat([x, x])).split(len(x))
    loss = torch.nn.functional.softplus(own - theirs)
    return torch.where(exists, loss, 0.0).mean()

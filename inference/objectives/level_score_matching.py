"""Denoising score matching at every noise level of a schedule."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import LevelModel
from energyppl.inference.objectives.contract import Loss, check_fraction
from energyppl.inference.objectives.held_out import denoising_error
from energyppl.inference.objectives.level_allocation import allocate_levels
from energyppl.inference.objectives.second_order import differentiable_score

__all__ = ["LevelScoreMatching"]


@dataclass(frozen=True)
class LevelScoreMatching:
    """Denoising score matching at every level of a model of levels (Vincent 2011; Song & Ermon 2019): no sampling.

    The noise-conditional relative of MDSM for those who need a density: each level's U(x, t) is −log p(x_t) plus a
    constant, so that level 0 of a :class:`~energyppl.RecoveryEBM` can be normalized and sampled level by level.  The
    loss is ``mean |σ̄_t ∇U(x_t, t) − ε|²``, 1 for a constant energy.  A score is a slope: level 0 knows
    nothing of the relative weights of regions that no data connect (samples, which come down the levels, have them
    right), and no level of what lies where it has no data.  Nothing tunes the model's chains on the way: call
    ``ebm.tune(data)`` afterwards.

    Args:
        level0_fraction: share of each batch that goes to level 0 on top of its equal share.

    Raises:
        InvalidInput: for a share outside [0, 1).
    """

    level0_fraction: float = 0.25

    def __post_init__(self) -> None:
        check_fraction("level0_fraction", self.level0_fraction)

    def init(self, model: Any) -> nn.Module:
        """Require a model of levels which all have noise, each with a normalizer of its own.

        Raises:
            InvalidInput: for any other.
        """
        schedule = getattr(model, "schedule", None)
        if schedule is None:
            raise InvalidInput(
                f"score matching at every level needs a model with a schedule, as RecoveryEBM; got "
                f"{type(model).__name__}: for one energy use DenoisingScoreMatching"
            )
        levels = getattr(model, "levels", schedule.levels)
        if levels != schedule.levels:
            raise InvalidInput(
                f"score matching at every level trains {schedule.levels} levels, each up to a constant of its own; got "
                f"{type(model).__name__}, whose {levels} levels share one: train it by PersistentLikelihood"
            )
        if float(schedule.sigma_bar[0]) <= 0.0:
            raise InvalidInput(
                "denoising score matching needs noise at every level, and this schedule's level 0 has none: pass one "
                "such as NoiseSchedule.cosine"
            )
        return nn.Module()

    def loss(self, model: LevelModel, state: nn.Module, batch: Tensor) -> Loss:
        """Return the loss of ``batch``, ``(n, *event)``.

        Raises:
            InvalidInput: if level 0 has no noise, or the network can't be differentiated twice.
        """
        schedule = model.schedule
        clean = model.to_unit(batch)
        level = allocate_levels(len(clean), schedule.levels, self.level0_fraction).to(clean.device)
        wide = (-1, *[1] * (clean.dim() - 1))
        alpha, sigma = (v.to(clean)[level].reshape(wide) for v in (schedule.alpha_bar, schedule.sigma_bar))
        noise = torch.randn_like(clean)
        score = differentiable_score(model.potential(level), alpha * clean + sigma * noise, model.net)
        value = (sigma * score - noise).square().mean()
        return Loss(value, {"denoising": float(value.detach())})

    def measure(self, model: LevelModel, state: nn.Module, data: Tensor) -> float:
        """Return the denoising error of held-out data, :func:`denoising_error`."""
        return denoising_error(model, data)

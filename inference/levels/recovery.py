"""Recovery potentials of neighbouring noise levels, and the kernels that suit them."""

from typing import Protocol

import torch
from torch import Tensor

from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.levels.step_sizes import kernel_at
from energyppl.potentials.algebra import Potential, RecoveryPotential
from energyppl.schedule import NoiseSchedule

__all__ = ["RecoveryModel", "level_kernel", "recovery_potential", "tilt", "tilt_widths"]


class RecoveryModel(Protocol):
    """What recovery likelihood needs of a model; ``energyppl.models.RecoveryEBM`` is one."""

    event_shape: torch.Size
    schedule: NoiseSchedule
    kernel: TunableKernel
    step_sizes: Tensor  # (levels,), relative to the tilt's width; 0 until tuned
    persistent_chains: Tensor  # (slots, *event), see energyppl.inference.persistent
    persistent_steps: Tensor  # (levels,)

    @property
    def unconditional(self) -> "RecoveryModel":
        """The model that a given class was asked of, or itself."""
        ...

    def to_unit(self, data: Tensor) -> Tensor:
        """Data in the coordinates in which the schedule's noise is counted."""
        ...

    def potential(self, level: Tensor) -> Potential:
        """The energy at each point's level, in those coordinates."""
        ...


def level_kernel(model: RecoveryModel, level: Tensor) -> TunableKernel:
    """The model's kernel at each chain's level."""
    width = tilt_widths(model.schedule).to(model.step_sizes)
    marginal_std = model.schedule.marginal_std.to(width)
    return kernel_at(model, level, width[level], marginal_std[level])


def tilt_widths(schedule: NoiseSchedule) -> Tensor:
    """Width of each level's tilt in the coordinates of x_t, σ_{t+1} / α_{t+1}, ``(levels,)``.

    No wider than the marginal itself: that is the scale of the untilted top level.
    """
    return torch.minimum(schedule.sigma / schedule.alpha, schedule.marginal_std[:-1])


def tilt(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """α and σ of each level's tilt, ``(levels,)`` each: at an untilted top level α = 1 and σ = ∞ (Gao et al. 2021).

    There x_{t+1} is white noise, where chains only begin.
    """
    alpha, sigma = schedule.alpha.clone(), schedule.sigma.clone()
    if not schedule.tilted_top:
        alpha[-1], sigma[-1] = 1.0, torch.inf
    return alpha, sigma


def recovery_potential(
    model: RecoveryModel, noisy: Tensor, level: Tensor, upper: Tensor | None = None
) -> RecoveryPotential:
    """The recovery potential of x_t given a noisier marginal, ``(*batch, *event)``, in the coordinates of x_t = y / α.

    The noisier marginal is ``upper``, t + 1 if None.
    """
    schedule = model.schedule
    if upper is None:
        alpha, sigma = (value.to(noisy)[level] for value in tilt(schedule))
    else:
        alpha, sigma = (value.to(noisy) for value in schedule.step(level.cpu(), upper.cpu()))
        if not schedule.tilted_top:
            top = level == schedule.levels - 1
            alpha, sigma = torch.where(top, 1.0, alpha), torch.where(top, torch.inf, sigma)
    sigma = sigma / alpha
    wide = (*alpha.shape, *[1] * (noisy.dim() - alpha.dim()))
    return RecoveryPotential(model.potential(level), noisy / alpha.reshape(wide), sigma.reshape(wide))

"""Recovery potentials of neighbouring noise levels, and the kernels that suit them (Gao et al. 2021)."""

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_event, check_whole
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.levels.contract import LevelModel
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.potentials.algebra import RecoveryPotential
from energyppl.schedule import NoiseSchedule

__all__ = ["recovery_kernel", "recovery_potential", "tilt", "tilt_widths"]


def recovery_kernel(level_kernel: LevelKernel, schedule: NoiseSchedule, level: Tensor) -> TunableKernel:
    """Return a kernel with the step size of each chain's level, counted in widths of its recovery distribution."""
    width = tilt_widths(schedule).to(level_kernel.step_sizes)
    marginal_std = schedule.marginal_std.to(width)
    return level_kernel.at(level, width[level], marginal_std[level])


def tilt_widths(schedule: NoiseSchedule) -> Tensor:
    """Return the width of each level's Gaussian tilt in the coordinates of x_t, σ_{t+1} / α_{t+1}, ``(levels,)``.

    No wider than the marginal itself: that is the scale of a top level without a tilt.
    """
    return torch.minimum(schedule.sigma / schedule.alpha, schedule.marginal_std[:-1])


def tilt(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """Return α and σ of each level's Gaussian tilt, ``(levels,)`` each; at a top level without one α = 1, σ = ∞.

    There x_{t+1} is white noise, where chains only begin.
    """
    alpha, sigma = schedule.alpha.clone(), schedule.sigma.clone()
    if not schedule.tilted_top:
        alpha[-1], sigma[-1] = 1.0, torch.inf
    return alpha, sigma


def recovery_potential(
    model: LevelModel, noisy: Tensor, level: Tensor, upper: Tensor | None = None
) -> RecoveryPotential:
    """Return the recovery potential of x_t given a noisier marginal, in the coordinates of x_t = y / α.

    Args:
        model: its energies at ``level`` are tilted.
        noisy: standardized points of the noisier marginal, ``(*batch, *event)``.
        level: t, ``()`` or ``(*batch,)``.
        upper: the noisier marginal; t + 1 if None.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> tilted = ep.levels.recovery_potential(ebm, torch.randn(5, 2), torch.tensor(0))
        >>> tilted(torch.randn(5, 2)).shape
        torch.Size([5])
    """
    schedule = model.schedule
    check_whole("level", level)
    check_event("noisy", noisy, model.event_shape)
    if upper is None:
        alpha, sigma = (value.to(noisy)[level] for value in tilt(schedule))
    else:
        alpha, sigma = (value.to(noisy) for value in schedule.step(level.cpu(), upper.cpu()))
        if not schedule.tilted_top:
            top = level == schedule.levels - 1
            alpha, sigma = torch.where(top, 1.0, alpha), torch.where(top, torch.inf, sigma)
    alpha, sigma = append_dims(alpha, noisy), append_dims(sigma / alpha, noisy)
    return RecoveryPotential(model.potential(level), noisy / alpha, sigma)

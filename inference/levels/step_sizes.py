"""Kernels with one step size for each noise level, adapted to a target acceptance."""

from typing import Any

import torch
from torch import Tensor, nn

from energyppl.errors import InvalidInput
from energyppl.inference.adaptation.step_size import group_means
from energyppl.inference.kernels.contract import TunableKernel

__all__ = ["LevelKernel", "adapt_step_sizes", "check_level_kernel"]


class LevelKernel(nn.Module):
    """A kernel and its step size at each noise level: a buffer, so it follows a model to its device and checkpoints.

    Args:
        kernel: its own step size is where every level begins.
        levels: how many levels.
        like: gives the step sizes' dtype and device.

    Example:
        >>> from energyppl.inference.levels.step_sizes import LevelKernel
        >>> kernel = LevelKernel(ep.MALA(0.1), levels=3, like=torch.zeros(2))
        >>> kernel.step_sizes
        tensor([0.1000, 0.1000, 0.1000])
    """

    step_sizes: Tensor  # (levels,), relative to the width of what is sampled there

    def __init__(self, kernel: TunableKernel, levels: int, like: Tensor) -> None:
        super().__init__()
        check_level_kernel(kernel)
        self.kernel = kernel
        self.register_buffer("step_sizes", like.new_full((levels,), float(kernel.step_size)))

    def at(self, level: Tensor, width: Tensor | None = None, marginal_std: Tensor | None = None) -> TunableKernel:
        """Return the kernel with the step size of each chain's level.

        Args:
            level: of each chain, ``(*chains,)``.
            width: as for :meth:`TunableKernel.resized`, of each chain; 1 if None.
            marginal_std: likewise.
        """
        step = self.step_sizes[level]
        one = torch.ones_like(step)
        return self.kernel.resized(step, one if width is None else width, one if marginal_std is None else marginal_std)

    def adapt(self, accept_prob: Tensor, level: Tensor, adaptation_rate: float) -> None:
        """Move the step sizes of the levels that were visited towards the kernel's target acceptance, in place.

        Args:
            accept_prob: of each chain, ``(chains,)``.
            level: of each chain, ``(chains,)``.
            adaptation_rate: as in :func:`adapt_step_sizes`.
        """
        kernel = self.kernel
        adapt_step_sizes(
            self.step_sizes,
            accept_prob,
            level,
            adaptation_rate,
            kernel.target_acceptance,
            max_step_size=kernel.max_step_size,
        )


def check_level_kernel(kernel: Any) -> None:
    """Require a kernel whose step size can be set for each level.

    Raises:
        InvalidInput: for a kernel's class, kernels made of others, and what is no kernel.
    """
    if isinstance(kernel, type) or not all(
        hasattr(kernel, name) for name in ("resized", "target_acceptance", "step_size")
    ):
        name = f"the class {kernel.__name__}" if isinstance(kernel, type) else type(kernel).__name__
        raise InvalidInput(f"kernel must have one step size that training can set; got {name}: pass MALA(0.1) or HMC()")


def adapt_step_sizes(
    steps: Tensor,
    accept_prob: Tensor,
    groups: Tensor,
    adaptation_rate: float,
    target_acceptance: float | None,
    *,
    max_step_size: float,
) -> None:
    """Move each group's step size, in place, towards a target acceptance (Robbins & Monro 1951); without one leave it.

    Args:
        steps: ``(groups,)``.
        accept_prob: of each chain, ``(chains,)``.
        groups: of each chain; a group without chains keeps its step.
        adaptation_rate: log step size moves by ``adaptation_rate * (mean acceptance − target_acceptance)``.
        target_acceptance: the acceptance that serves the kernel; None if it never rejects.
        max_step_size: no step size becomes larger.
    """
    if target_acceptance is not None:
        change = adaptation_rate * (group_means(accept_prob, groups, len(steps)) - target_acceptance)
        steps.mul_(torch.where(torch.isfinite(change), change, 0.0).exp())
        steps.clamp_(max=max_step_size)

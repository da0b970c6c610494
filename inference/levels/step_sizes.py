"""One step size for each noise level, adapted to a target acceptance."""

from typing import Protocol

import torch
from torch import Tensor

from energyppl.inference.adaptation.step_size import group_means
from energyppl.inference.kernels.contract import TunableKernel

__all__ = ["Stepping", "adapt_step_sizes", "hand_kernel", "kernel_at"]


class Stepping(Protocol):
    """A model that keeps a step size for each of its levels."""

    kernel: TunableKernel
    step_sizes: Tensor  # (levels,); all 0 until tuned


def kernel_at(
    model: Stepping, level: Tensor, width: Tensor | None = None, marginal_std: Tensor | None = None
) -> TunableKernel:
    """A model's kernel with the step size of each chain's level, the kernel's own where nothing is tuned yet.

    Args:
        model: its step sizes are filled in if they are all zero.
        level: of each chain, ``(*chains,)``.
        width: as for :meth:`TunableKernel.resized`, of each chain; 1 if None.
        marginal_std: likewise.
    """
    if not bool(model.step_sizes.any()):
        model.step_sizes.fill_(float(model.kernel.step_size))
    step = model.step_sizes[level]
    one = torch.ones_like(step)
    return model.kernel.resized(step, one if width is None else width, one if marginal_std is None else marginal_std)


def hand_kernel(model: Stepping, kernel: TunableKernel | None) -> None:
    """Make a kernel the model's; step sizes tuned for another kind, or from another first step, are forgotten.

    Args:
        model: keeps its own kernel if ``kernel`` is None.
        kernel: the new one.
    """
    if kernel is None or model.kernel is kernel:
        return
    if type(model.kernel) is not type(kernel) or not torch.equal(*map(_first_step, (model.kernel, kernel))):
        model.step_sizes.zero_()
    model.kernel = kernel


def _first_step(kernel: TunableKernel) -> Tensor:
    return torch.as_tensor(kernel.step_size, dtype=torch.float64, device="cpu")


def adapt_step_sizes(
    steps: Tensor,
    accept_prob: Tensor,
    groups: Tensor,
    adaptation_rate: float,
    target_acceptance: float | None,
    *,
    largest: float,
) -> None:
    """Move each group's step size, in place, towards a target acceptance (Robbins & Monro 1951); none: leave them.

    Args:
        steps: ``(groups,)``.
        accept_prob: of each chain, ``(chains,)``.
        groups: of each chain; a group without chains keeps its step.
        adaptation_rate: log step size moves by ``adaptation_rate * (mean acceptance − target_acceptance)``.
        target_acceptance: the acceptance that serves the kernel.
        largest: no step size becomes larger.
    """
    if target_acceptance is not None:
        change = adaptation_rate * (group_means(accept_prob, groups, len(steps)) - target_acceptance)
        steps.mul_(torch.where(torch.isfinite(change), change, 0.0).exp())
        steps.clamp_(max=largest)

"""Tune a kernel's step size to a target acceptance: one for all chains, or one for each group such as a noise level."""

import math
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from energyppl._checks import check_count
from energyppl.errors import InvalidInput
from energyppl.inference.kernels import MALA, CrankNicolson, CrankNicolsonLangevin, Langevin
from energyppl.potential import Potential

__all__ = ["adapt", "group_means"]

_LANGEVIN_TARGET = 0.95  # where the unadjusted kernel's bias is small
_K = TypeVar("_K", MALA, Langevin, CrankNicolson, CrankNicolsonLangevin)


def adapt(
    kernel: _K,
    potential: Potential,
    x: Tensor,
    steps: int = 200,
    *,
    target: float | None = None,
    groups: Tensor | None = None,
) -> _K:
    """Tune the step size by dual averaging of the mean acceptance (Hoffman & Gelman 2014, section 3.2).

    The unadjusted kernel is tuned by the acceptance that the same proposal *would* have: near 1, its bias is small.

    Args:
        kernel: where to begin.
        potential: the target.
        x: positions of the chains, ``(*chains, *event)``.
        steps: how many steps to tune over.
        target: acceptance aimed at; the kernel's own target if None, .95 for Langevin, which has none.
        groups: ``(*chains,)``, whole numbers from 0: chains of a group share a step size.

    Returns:
        The same kind of kernel, frozen, with a float as its step size; a tensor ``(*chains,)`` if ``groups`` is given.

    Raises:
        InvalidInput: for a kernel without a step size, a target outside (0, 1), groups that are not whole numbers of
            the chains' shape, or a start whose energy is not finite anywhere.
    """
    check_count("steps", steps)
    if not isinstance(kernel, (MALA, Langevin, CrankNicolson, CrankNicolsonLangevin)):
        raise InvalidInput(f"adapt tunes MALA, Langevin and the Crank–Nicolson kernels; got {type(kernel).__name__}")
    probe: MALA | CrankNicolson | CrankNicolsonLangevin = (
        MALA(kernel.step_size) if isinstance(kernel, Langevin) else kernel
    )
    if target is None:
        target = _LANGEVIN_TARGET if kernel.target is None else kernel.target
    if not 0.0 < target < 1.0:
        raise InvalidInput(f"target must lie between 0 and 1; got {target}")
    state = kernel.init(potential, x)
    if not bool(torch.isfinite(state.energy).any()):
        raise InvalidInput("no chain starts at a finite energy: start them inside the support")
    index = torch.zeros(state.energy.shape, dtype=torch.long, device=x.device) if groups is None else groups
    if index.shape != state.energy.shape:
        raise InvalidInput(f"groups must have the chains' shape {tuple(state.energy.shape)}; got {tuple(index.shape)}")
    if index.dtype.is_floating_point or index.dtype == torch.bool or bool((index < 0).any()):
        raise InvalidInput("groups must be whole numbers from 0: pass a tensor of dtype torch.long")
    index = index.long()
    count = int(index.max()) + 1
    low, high = math.log(torch.finfo(x.dtype).tiny) / 2, math.log(torch.finfo(x.dtype).max) / 4
    high = 0.0 if isinstance(kernel, (CrankNicolson, CrankNicolsonLangevin)) else high  # β is at most 1
    first = torch.as_tensor(kernel.step_size, dtype=x.dtype, device=x.device).expand(index.shape)
    log_step = group_means(first.log(), index, count)
    anchor, error_sum, average = log_step + math.log(10.0), torch.zeros_like(log_step), torch.zeros_like(log_step)
    for i in range(1, steps + 1):
        state, info = replace(probe, step_size=log_step.clamp(low, high).exp()[index]).step(potential, state)
        error_sum += target - group_means(info.accept_prob, index, count)
        # Hoffman & Gelman (2014), eq. 6 with their γ = .05, t0 = 10, κ = .75.
        log_step = anchor - math.sqrt(i) / 0.05 * error_sum / (i + 10)
        log_step = log_step.clamp(low, high)
        weight = i**-0.75
        average = weight * log_step + (1 - weight) * average
    size = average.exp()
    return replace(kernel, step_size=float(size[0]) if groups is None else size[index])


def group_means(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Mean of ``values`` in each group, ``(count,)``; NaN for a group that has none."""
    flat = groups.flatten()
    total = torch.zeros(count, dtype=values.dtype, device=values.device).index_add_(0, flat, values.flatten())
    return total / torch.bincount(flat, minlength=count)

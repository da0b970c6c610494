"""Progressive sampling: from white noise to data, level by level (Gao et al. 2021, Algorithm 2)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_count
from energyppl.autodiff.gradient import gradient_only
from energyppl.errors import InvalidInput
from energyppl.inference.adaptation.step_size import group_means
from energyppl.inference.adaptation.warmup import adapt
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.kernels.hamiltonian import ChEES
from energyppl.inference.kernels.mass import identity_mass
from energyppl.inference.levels.contract import Conditional, LevelModel
from energyppl.inference.levels.initializers import model_of_batch, model_of_rows, recovery_start, start_evaluations
from energyppl.inference.levels.recovery import recovery_kernel, recovery_potential, tilt_widths
from energyppl.inference.sampling.run_chain import run_chain

__all__ = ["Generation", "LevelTuning", "clean_mean", "generate", "tune_levels"]


class Generation(NamedTuple):
    """Samples and how they came about, in the coordinates of ``model.to_unit``.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> found = ebm.generate((8,), steps=5)
        >>> found.x.shape, len(found.path)  # white noise and the ends of three levels
        (torch.Size([8, 2]), 4)
    """

    x: Tensor  # (*shape, *event), data at level 0 (or without noise, after the Tweedie step)
    path: tuple[Tensor, ...]  # white noise, then x_t at the end of each level, from the top level down to 0
    acceptance: Tensor  # (levels,), mean of each level's kernel
    evaluations: int  # of the energy (with its gradient, if the kernel needs one) for each sample


Descent = Callable[[Any, torch.Size, Sequence[int], int, bool], Generation]
"""From a model, the samples' shape, moves at each level, the last level, and whether to denoise there."""


class LevelTuning(NamedTuple):
    """Step sizes of all noise levels, and the acceptance that each gave.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> found = ebm.tune(torch.randn(100, 2), steps=5)
        >>> found.step_sizes.shape, found.acceptance.shape
        (torch.Size([3]), torch.Size([3]))
    """

    step_sizes: Tensor  # (levels,), in widths of each level's recovery distribution, as kernels' ``resized`` takes them
    acceptance: Tensor  # (levels,)


def generate(
    model: Conditional,
    shape: torch.Size,
    *,
    steps: int | Sequence[int],
    last: int = 0,
    denoise: bool = False,
    micro_batch: int | None = None,
    descend: Descent | None = None,
) -> Generation:
    """Draw from every level's recovery distribution in turn, the top level's from white noise.

    Args:
        model: the trained model.
        shape: shape of the batch of samples.
        steps: moves at each level, one number for all or one for each from level 0 up.
        last: the level to stop at.
        denoise: at level 0, finish with the mean of the clean data given level 0, ``(x + σ̄₀² ∇log p) / ᾱ₀``
            (Tweedie; Zhu et al. 2024, appendix A.2).
        micro_batch: samples at a time, so that memory is bounded; all at once if None.
        descend: how to go down the levels; by chains alone if None.

    Raises:
        InvalidInput: for steps below one, or below none where they only correct what another way draws.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> ep.levels.generate(ebm, torch.Size((8,)), steps=[10, 5, 5]).x.shape
        torch.Size([8, 2])
    """
    moves = tuple(steps) if isinstance(steps, Sequence) else (steps,) * model.schedule.levels
    for count in moves:
        check_count("steps", count, at_least=0 if descend else 1)
    descend = descend or _descend
    if micro_batch is None:
        return descend(model, shape, moves, last, denoise)
    check_count("micro_batch", micro_batch)
    model = model_of_batch(model, shape)
    parts = [
        descend(model_of_rows(model, rows), rows.shape, moves, last, denoise)
        for rows in torch.arange(shape.numel(), device=model.loc.device).split(micro_batch)
    ]

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors)).reshape(*shape, *model.event_shape)

    path = tuple(joined(stage) for stage in zip(*(part.path for part in parts), strict=True))
    rows_of = torch.tensor([len(part.x) for part in parts]).to(model.loc) / max(1, shape.numel())
    acceptance = (torch.stack([part.acceptance for part in parts], -1) * rows_of).sum(-1)
    return Generation(joined([part.x for part in parts]), path, acceptance, parts[0].evaluations)


def _descend(model: Conditional, shape: torch.Size, moves: Sequence[int], last: int, denoise: bool) -> Generation:
    schedule = model.schedule
    like = model.loc
    x = schedule.marginal_std[-1].to(like) * torch.randn(
        *shape, *model.event_shape, dtype=like.dtype, device=like.device
    )
    path, acceptance, evaluations = [x], like.new_zeros(schedule.levels), 0.0
    for t in reversed(range(last, schedule.levels)):
        level = torch.tensor(t, device=like.device)
        potential = recovery_potential(model, x, level)
        start = recovery_start(model, potential, x, level)
        kernel = recovery_kernel(model.level_kernel, schedule, level.expand(shape))
        chain = run_chain(kernel, potential, start, moves[t])
        x = chain.state.x
        acceptance[t] = chain.accept_prob.mean()
        evaluations += start_evaluations(model, level) + chain.evaluations
        path.append(x)
    if denoise and last == 0:
        x, evaluations = clean_mean(model, x, torch.tensor(0, device=like.device)), evaluations + 1
    return Generation(x, tuple(path), acceptance, round(evaluations))


def clean_mean(model: LevelModel, noisy: Tensor, level: Tensor) -> Tensor:
    """Return E[x_0 | x_t = noisy] = (x_t − σ̄_t² ∇U(x_t)) / ᾱ_t by Tweedie's formula, in standardized coordinates.

    Args:
        model: energies at the levels.
        noisy: x_t, ``(*batch, *event)``.
        level: t, ``()`` or ``(*batch,)``.
    """
    grad = gradient_only(model.potential(level), noisy)
    marginals = (model.schedule.alpha_bar, model.schedule.sigma_bar)
    alpha, sigma = (append_dims(value.to(noisy)[level], noisy) for value in marginals)
    return (noisy - sigma**2 * grad) / alpha


def tune_levels(model: LevelModel, kernel: TunableKernel, data: Tensor, steps: int = 100) -> LevelTuning:
    """Tune a kernel's step size at every level, on the recovery distributions of noised ``data``, ``(n, *event)``.

    Raises:
        InvalidInput: for a kernel that can't be tuned, or fewer rows than levels.
    """
    levels = model.schedule.levels
    if isinstance(kernel, ChEES):
        raise InvalidInput("ChEES learns one length, and levels differ: give HMC(steps=…) to a model's levels")
    if len(data) < levels:
        raise InvalidInput(f"data must have a row for each of {levels} levels at least; got {len(data)}")
    level = torch.arange(len(data), device=data.device) % levels
    clean, noisy = model.schedule.pairs(model.to_unit(data), level)
    potential = recovery_potential(model, noisy, level)
    width = tilt_widths(model.schedule).to(clean)[level]
    marginal_std = model.schedule.marginal_std.to(clean)[level]
    unit = kernel.resized(torch.full_like(width, min(0.5, kernel.max_step_size)), width, marginal_std)
    tuned = adapt(unit, potential, clean, steps, groups=level, mass=identity_mass)
    relative = (
        torch.as_tensor(tuned.kernel.step_size) / torch.as_tensor(unit.step_size) * min(0.5, kernel.max_step_size)
    )
    accept_prob = run_chain(tuned.kernel, potential, tuned.state.x, 10).accept_prob
    means = [group_means(values, level, levels) for values in (relative, accept_prob)]
    return LevelTuning(means[0].clamp(max=kernel.max_step_size), means[1])

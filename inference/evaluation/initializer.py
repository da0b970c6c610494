"""The worth of a learned initializer, level by level."""

from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_data, checked
from energyppl.autodiff.gradient import energy_only
from energyppl.inference.levels.contract import Conditional
from energyppl.inference.levels.initializers import (
    gaussian_start,
    recovery_proposal,
)
from energyppl.inference.levels.recovery import recovery_kernel, recovery_potential
from energyppl.inference.sampling.run_chain import run_chain

__all__ = ["InitializerReport", "initializer_report"]


class InitializerReport(NamedTuple):
    """Initializer report: energy drops and spreads of an initializer's draws, level by level.

    Example:
        >>> schedule = ep.NoiseSchedule.cosine(levels=3)
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), schedule, initializer=ep.MLPInitializer((2,)))
        >>> report = ep.evaluation.initializer_report(ebm, torch.randn(50, 2), steps=2)
        >>> report.relative_std.shape, isinstance(report.problems, tuple)
        (torch.Size([3]), True)
    """

    drop: Tensor  # (levels,), nats that the energy falls by from q's draws to the refined ones
    drop_without: Tensor  # (levels,), the same from the start that chains have without an initializer
    relative_std: Tensor  # (levels,), standard deviation of q's draws around their mean over that of the refined ones
    problems: tuple[str, ...]  # in words; empty if there are none


@checked
def initializer_report(model: Conditional, data: Tensor, steps: int = 100) -> InitializerReport:
    """Compare an initializer's draws with chains that begin at the data, and so in the density from the start.

    Args:
        model: has an initializer.
        data: rows ``(n, *event)``, some hundreds.
        steps: moves of those chains.

    Raises:
        InvalidInput: if the model has no initializer.

    Example:
        >>> schedule = ep.NoiseSchedule.cosine(levels=3)
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), schedule, initializer=ep.MLPInitializer((2,)))
        >>> ep.evaluation.initializer_report(ebm, torch.randn(50, 2), steps=2).drop.shape
        torch.Size([3])
    """
    check_data("data", data, model.event_shape, at_least=2)
    clean = model.to_unit(data.to(model.loc))
    columns: list[list[float]] = [[], [], []]
    for t in range(model.schedule.levels):
        level = torch.full((len(data),), t, device=clean.device)
        pair = model.schedule.pairs(clean, level)
        potential = recovery_potential(model, pair.noisy, level)
        with torch.no_grad():
            proposal = recovery_proposal(model, pair.noisy, level, potential)
            drawn = proposal.sample()
        start = gaussian_start(potential, model.schedule.marginal_std.to(clean)[level])
        refined = run_chain(
            recovery_kernel(model.level_kernel, model.schedule, level), potential, pair.clean, steps
        ).state.x
        home = energy_only(potential, refined)
        for column, points in zip(columns, (drawn, start), strict=False):
            column.append(float((energy_only(potential, points) - home).median()))
        columns[2].append(float((drawn - proposal.mean).std() / (refined - proposal.mean).std()))
    drop, without, relative_std = (torch.tensor(column) for column in columns)
    problems = []
    useless = [t for t in range(len(drop)) if drop[t] > without[t] + 0.5]
    if useless:
        problems.append(
            f"at level(s) {useless} chains begin no better with the initializer than without: train it longer"
        )
    collapsed = [t for t in range(len(drop)) if relative_std[t] < 0.05]
    if collapsed:
        problems.append(
            f"at level(s) {collapsed} the initializer has collapsed: its draws differ by less than a twentieth of what "
            "the chains do"
        )
    return InitializerReport(drop, without, relative_std, tuple(problems))

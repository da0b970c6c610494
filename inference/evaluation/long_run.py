"""Long chains at one level, from data and from noise: does a model keep what it was shown?

Models trained with short chains are known to forget: their long chains leave the data for places of lower energy
(Nijkamp et al. 2020).  Two groups of chains tell: begun at data they must stay, begun at noise they must arrive.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_count, check_data, checked
from energyppl.errors import ChainWarning
from energyppl.inference.evaluation.chains import EnergyDrift, ModeOccupancy, energy_drift, mode_occupancy
from energyppl.inference.kernels.contract import Kernel
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.levels.contract import EnergyModel
from energyppl.inference.sampling.chains import Chains
from energyppl.inference.sampling.sample_chains import sample_chains
from energyppl.potentials.composed import Standardized

__all__ = ["LongRun", "long_run"]

_WARMUP = 400
_Z, _APART = 4.0, 0.5  # standard errors and nats beyond which a difference is said


class Group(NamedTuple):
    """Chains that began alike, and how they fared; energies in nats.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> found = ep.long_run(ebm, torch.randn(50, 2), steps=20, kept=10, chains=4, progress=False)
        >>> found.from_noise._fields
        ('chains', 'drift', 'occupancy')
    """

    chains: Chains  # has ``to_arviz()``; its draws are pictures along the way
    drift: EnergyDrift
    occupancy: ModeOccupancy | None


class LongRun(NamedTuple):
    """Chains from data and chains from noise.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> found = ep.long_run(ebm, torch.randn(50, 2), steps=20, kept=10, chains=4, progress=False)
        >>> found.from_data.chains.draws.shape, isinstance(found.problems, tuple)
        (torch.Size([4, 10, 2]), True)
    """

    from_data: Group
    from_noise: Group
    problems: tuple[str, ...]  # in words; empty if there are none


@checked
def long_run(
    model: EnergyModel,
    data: Tensor,
    *,
    steps: int = 100_000,
    kept: int = 200,
    chains: int = 64,
    level: int = 0,
    kernel: Kernel | None = None,
    assign: Callable[[Tensor], Tensor] | None = None,
    modes: int = 0,
    progress: bool = True,
) -> LongRun:
    """Run long chains at a level of a model, half of them from data and half from white noise.

    Args:
        model: the trained model.
        data: rows ``(n, *event)``, of which chains begin at some, noised to the level.
        steps: of each chain after a warm-up that tunes its step sizes.
        kept: draws that are kept, evenly spaced; at least 10.
        chains: of each group; no more than there are rows.
        level: 0 is the data's.
        kernel: moves the chains; MALA if None.
        assign: maps points to the index of their mode, as in :func:`mode_occupancy`.
        modes: how many modes there are, with ``assign``.
        progress: show a bar.

    Raises:
        InvalidInput: for too few draws or rows, steps that are fewer than the draws, or as :func:`mode_occupancy`.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> found = ep.long_run(ebm, torch.randn(50, 2), steps=20, kept=10, chains=4, progress=False)
        >>> found._fields
        ('from_data', 'from_noise', 'problems')
    """
    check_count("kept", kept, at_least=10)
    check_count("steps", steps, at_least=kept)
    check_count("chains", chains, at_least=2)
    check_data("data", data, model.event_shape, at_least=chains)
    starts = (
        model.diffuse(data[torch.randperm(len(data))[:chains]].to(model.loc), level),
        model.loc + model.scale * torch.randn(chains, *model.event_shape).to(model.loc),
    )
    if assign is not None:
        mode_occupancy(starts[0][:, None], assign, modes)  # what is wrong with it is better said before than after
    groups = []
    for start in starts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ChainWarning)  # said in the result
            run = sample_chains(
                MALA(0.1) if kernel is None else kernel,
                Standardized(model.potential(level), model.loc, model.scale),
                chains=chains,
                draws=kept,
                thin=steps // kept,
                warmup=min(_WARMUP, max(1, steps // 10)),
                init=start,
                progress=progress,
            )
        occupancy = None if assign is None else mode_occupancy(run.draws, assign, modes)
        groups.append(Group(run, energy_drift(run), occupancy))
    return LongRun(groups[0], groups[1], tuple(_problems(groups[0], groups[1])))


def _problems(data: Group, noise: Group) -> Iterator[str]:
    for name, group in (("data", data), ("noise", noise)):
        drift = group.drift
        yield from (f"from {name}: {problem}" for problem in group.chains.problems())
        if abs(drift.z) > _Z and abs(drift.last - drift.first) > _APART:
            yield f"chains from {name} drift: their energy went from {drift.first:.1f} to {drift.last:.1f} nats"
    apart = noise.drift.last - data.drift.last
    if abs(apart) > max(_APART, _Z * math.hypot(noise.drift.last_error, data.drift.last_error)):
        reason = "they have not arrived" if apart > 0 else "the data are not where the model has its mass"
        yield f"chains from noise end {apart:+.1f} nats from those that began at data: {reason}"

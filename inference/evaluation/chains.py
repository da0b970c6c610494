"""Diagnostics of chains beside ArviZ's: energy drift, mode occupancy, acceptance at each noise level."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_count, check_event, checked
from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import Conditional
from energyppl.inference.levels.generation import generate
from energyppl.inference.sampling.chains import Chains

__all__ = ["EnergyDrift", "LevelAcceptance", "ModeOccupancy", "energy_drift", "level_acceptance", "mode_occupancy"]

_FEWEST_DRAWS = 10  # a tenth of which is one


class EnergyDrift(NamedTuple):
    """Energy drift: the change of chains' mean energy over a run, in nats.

    Example:
        >>> rising = torch.linspace(0, 1, 100) + 0.1 * torch.randn(20, 100)  # by a nat in 100 draws
        >>> found = ep.evaluation.energy_drift(rising)
        >>> found.z > 5.0, found.last > found.first
        (True, True)
    """

    slope: float  # nats per 1,000 draws: mean over chains of each one's least-squares line
    standard_error: float  # of the slope, from how the chains' slopes differ
    z: float  # slope over its error; beyond ±3 or so the chains have not arrived, or are leaving
    first: float  # mean energy over the first tenth of the draws
    last: float  # over the last tenth
    last_error: float  # standard error of ``last``, from how the chains' means differ
    left_out: int  # chains with an energy that is not finite


class ModeOccupancy(NamedTuple):
    """Mode occupancy: the shares of draws in a density's modes, and the changes between these.

    Example:
        >>> chains = torch.tensor([[[-1.0], [-1.2], [1.1], [0.9]]])  # one chain of four draws
        >>> found = ep.evaluation.mode_occupancy(chains, lambda x: (x[..., 0] > 0).long(), 2)
        >>> found.by_chain.shape, int(found.switches)
        (torch.Size([1, 2]), 1)
    """

    share: Tensor  # (modes,), of all draws
    by_chain: Tensor  # (chains, modes), of each chain's draws
    switches: Tensor  # (chains,), long: how often the next draw lies in another mode


class LevelAcceptance(NamedTuple):
    """Acceptance and divergences of each noise level's chains while samples are made from white noise.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> found = ep.evaluation.level_acceptance(ebm, samples=8, steps=5)
        >>> found.acceptance.shape, found.step_sizes.shape
        (torch.Size([3]), torch.Size([3]))
    """

    acceptance: Tensor  # (levels,), mean acceptance probability
    step_sizes: Tensor  # (levels,), in widths of each level's tilt; 0 where training has not tuned one


@checked
def energy_drift(chains: Chains | Tensor) -> EnergyDrift:
    """Estimate how far the mean energy goes up or down along a run.

    Chains that sample their target have a level mean energy.  One that falls says that they still come down from where
    they began; one that rises or falls without end, that the energy has a hole or no bottom: long runs of a model
    trained with short ones are known for it (Nijkamp et al. 2020).  Chains are taken to be independent of each other.

    Args:
        chains: from :func:`~energyppl.inference.sample_chains`, or some chains' energies in nats, ``(chains, draws)``.
            With a batch, ``(chains, draws, *batch)``, every element counts as a chain.

    Raises:
        InvalidInput: for fewer than 10 draws, or fewer than two chains with finite energies.

    Example:
        >>> abs(ep.evaluation.energy_drift(torch.randn(20, 100)).z) < 5.0  # nothing drifts
        True
    """
    energy = chains.energy if isinstance(chains, Chains) else chains
    if energy.dim() < 2:
        raise InvalidInput(f"energies must be (chains, draws); got shape {tuple(energy.shape)}")
    energy = energy.detach().double().movedim(1, -1).flatten(0, -2)
    draws = energy.shape[1]
    if draws < _FEWEST_DRAWS:
        raise InvalidInput(f"a drift takes {_FEWEST_DRAWS} draws of each chain or more; got {draws}")
    finite = torch.isfinite(energy).all(1)
    if int(finite.sum()) < 2:
        raise InvalidInput(f"a drift takes two chains with finite energies; got {int(finite.sum())} of {len(finite)}")
    energy = energy[finite]
    time = torch.arange(draws, dtype=torch.float64, device=energy.device) / 1000.0
    time = time - time.mean()
    slopes = energy @ time / time.square().sum()
    slope, error = float(slopes.mean()), _standard_error(slopes)
    tenth = draws // 10
    last = energy[:, -tenth:].mean(1)
    return EnergyDrift(
        slope=slope,
        standard_error=error,
        z=slope / error if error > 0.0 else math.copysign(math.inf, slope) if slope else 0.0,
        first=float(energy[:, :tenth].mean()),
        last=float(last.mean()),
        last_error=_standard_error(last),
        left_out=int((~finite).sum()),
    )


@checked
def mode_occupancy(points: Tensor, assign: Callable[[Tensor], Tensor], number_of_modes: int) -> ModeOccupancy:
    """Count how draws are shared among modes, and how often chains go from one to another.

    Args:
        points: ``(chains, draws, *event)``.
        assign: maps points to the index of their mode, ``(chains, draws)`` whole numbers from 0; a toy's ``modes``.
        number_of_modes: how many there are.

    Raises:
        InvalidInput: if ``assign`` returns another shape, something other than whole numbers, or an index out of range.

    Example:
        >>> chains = torch.tensor([[[-1.0], [-1.2], [1.1], [0.9]]])  # one chain of four draws
        >>> found = ep.evaluation.mode_occupancy(chains, lambda x: (x[..., 0] > 0).long(), 2)
        >>> found.share, int(found.switches)
        (tensor([0.5000, 0.5000]...), 1)
    """
    check_count("number_of_modes", number_of_modes)
    check_event("points", points, ())
    if points.dim() < 2 or 0 in points.shape[:2]:
        raise InvalidInput(f"points must be (chains, draws, *event), one draw at least; got {tuple(points.shape)}")
    with torch.no_grad():
        modes = assign(points)
    if modes.shape != points.shape[:2] or modes.dtype.is_floating_point or modes.dtype == torch.bool:
        raise InvalidInput(
            f"assign must return whole numbers {tuple(points.shape[:2])}, a mode for each draw; got {modes.dtype} "
            f"{tuple(modes.shape)}"
        )
    if int(modes.min()) < 0 or int(modes.max()) >= number_of_modes:
        raise InvalidInput(
            f"modes must lie between 0 and {number_of_modes - 1}; assign returned {int(modes.min())} to "
            f"{int(modes.max())}"
        )
    by_chain = torch.stack([(modes == mode).double().mean(1) for mode in range(number_of_modes)], 1)
    return ModeOccupancy(by_chain.mean(0), by_chain, (modes[:, 1:] != modes[:, :-1]).sum(1))


@checked
def level_acceptance(ebm: Conditional, *, samples: int = 256, steps: int = 40) -> LevelAcceptance:
    """Measure how often each level's chains of a model, such as a ``RecoveryEBM``, accept on the way from white noise.

    Args:
        ebm: the model.
        samples: chains to run.
        steps: moves at each level.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> ep.evaluation.level_acceptance(ebm, samples=8, steps=5).acceptance.shape
        torch.Size([3])
    """
    check_count("samples", samples)
    with torch.no_grad():
        found = generate(ebm, torch.Size((samples,)), steps=steps)
    return LevelAcceptance(found.acceptance, ebm.level_kernel.step_sizes.detach().clone())


def _standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))

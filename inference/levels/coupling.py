"""Numbers of moves that the levels' chains need, by coupling them (Biswas, Jacob & Vanetti 2019).

Two chains that use the same random numbers end up at the same place, and then stay together.  If one of them is ahead
by L moves, the time τ at which they meet bounds how far the chain is from its target after k moves, in total variation:
``E max(0, ⌈(τ − L − k) / L⌉)``.
"""

import math

import torch
from torch import Tensor

from energyppl._seeds import seed_all, seeded
from energyppl.autodiff.bound import bind
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.levels.contract import Conditional
from energyppl.inference.levels.initializers import recovery_start, start_evaluations
from energyppl.inference.levels.recovery import recovery_kernel, recovery_potential, tilt_widths
from energyppl.potentials.algebra import Potential

__all__ = ["moves_needed"]

_PAIRS = 1024
_LAG = 8
_MOST_BIAS = 0.002  # total variation that is left at each level, as the bound has it
_SAFETY, _FEWEST = 3, 8  # times as many moves as the bound asks for: a thousand pairs may not show the slowest chains
_APART = 0.02  # widths of a level's tilt from which on two points are apart


def moves_needed(model: Conditional, most: int) -> tuple[int, ...]:
    """Return how many moves bring each level's chains to their target, at most ``most``, from level 0 up.

    They leave a total variation of .002 by the bound, and are 8 at least; three times as many unless chains begin by
    resampling, which has regions in their shares from the first.  ``most`` stands where the chains of any pair have not
    met by then.  The random numbers are the same at every call, and torch's generators are left as they were.

    Args:
        model: its chains move by the same random numbers to the same place, as those of Crank–Nicolson do.
        most: moves at a level.
    """
    schedule, like = model.schedule, model.loc
    needed: list[int] = []
    with seeded(0), torch.no_grad():
        noise = torch.randn(_PAIRS, *model.event_shape, dtype=like.dtype, device=like.device)
        x = schedule.marginal_std[-1].to(like) * noise
        for t in reversed(range(schedule.levels)):
            level = torch.tensor(t, device=like.device)
            potential = recovery_potential(model, x, level)
            start = recovery_start(model, potential, x, level)
            kernel = recovery_kernel(model.level_kernel, schedule, level.expand(_PAIRS))
            distance = _APART * float(tilt_widths(schedule)[t]) * math.sqrt(math.prod(model.event_shape))
            meeting, x = _meetings(kernel, bind(potential), start, most, distance)
            needed.append(_moves_for(meeting, most, 1 if start_evaluations(model, level) else _SAFETY))
    return tuple(reversed(needed))


def _meetings(
    kernel: TunableKernel, potential: Potential, start: Tensor, most: int, distance: float
) -> tuple[Tensor, Tensor]:
    """Run two chains from each start, one ahead by the lag, on the same random numbers.

    Returns:
        ``(meeting, x)``: the move of the chain behind from which on the two stay together, ``(n,)``, above ``most`` if
        they don't, and where the chain ahead has got to.
    """
    ahead = behind = kernel.init(potential, start)
    for _ in range(_LAG):
        ahead, _ = kernel.step(potential, ahead)
    last_apart = torch.zeros(len(start), dtype=torch.long, device=start.device)
    for move in range(1, most + 1):
        seed = int(torch.randint(2**62, ()))
        seed_all(seed)
        ahead, _ = kernel.step(potential, ahead)
        seed_all(seed)
        behind, _ = kernel.step(potential, behind)
        apart = (ahead.x - behind.x).flatten(1).norm(dim=1) > distance
        last_apart[apart] = move
        if move - int(last_apart.max()) >= _LAG:
            break
    return last_apart + 1, ahead.x


def _moves_for(meeting: Tensor, most: int, safety: int) -> int:
    """Return enough moves for the bound to be small, ``most`` if a pair has not met by then."""
    if int(meeting.max()) > most:
        return most
    for moves in range(1, most):
        if float(((meeting - moves).clamp(min=0) / _LAG).ceil().sum()) <= _MOST_BIAS * len(meeting):
            return min(max(_FEWEST, safety * moves), most)
    return most

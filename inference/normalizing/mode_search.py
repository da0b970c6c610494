"""Multi-start mode search: scattered descents, and short chains at their ends, for a base that covers what they find.

Annealing from a single Gaussian sees the modes that its particles flow to.  Here descents begin at many distances from
the first minimum, so that each ends in a basin of its own, and chains at the ends tell how wide the basins are.  How
many draws end in a basin says nothing of its mass: annealing weighs them afterwards.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl.autodiff.gradient import eager_energy_and_grad, energy_only
from energyppl.errors import EnergyPPLError
from energyppl.inference.kernels.langevin import MALA
from energyppl.potentials.algebra import Affine, Potential

__all__ = ["KEPT", "ModeSearch", "search_modes"]

_FIRST, _FIRST_STEPS = 16, 80  # descents that find the first minimum, and their steps: 2^40 is in reach
_STEPS = 40  # of the other descents
_MOVES, KEPT = 36, 3  # of the chains, and how many of their states are kept, evenly over the last half
_REACH = 64.0  # the farthest starts, in widths of the first basin, if the energy rises by then
_FARTHEST = 2.0**20  # where it does not
_NEGLIGIBLE = 30.0  # nats below the best basin's mass, about
_FASTER, _SLOWER = 2.0, 0.4  # factors of a step of a descent while the slope keeps its sign, and where it turns


class ModeSearch(NamedTuple):
    """Where a target's basins are, as far as descents from scattered starts tell."""

    x: Tensor  # (n, *event), states of chains in the basins
    start: Tensor  # (n,), which start each came from
    minimum: Tensor  # (*event), the lowest point found
    scale: Tensor  # (*event), about the width of its basin along each coordinate
    radius: float  # the farthest starts, in widths
    evaluations: int


def search_modes(target: Potential, x: Tensor, starts: int) -> ModeSearch:
    """Search for basins of an energy by descents from many distances.

    Args:
        target: the energy U.
        x: where the first descents begin, ``(n, *event)``.
        starts: how many descents follow.

    Raises:
        EnergyPPLError: if no descent ends at a finite energy.
    """
    lowest, energy = _descend(target, x[:_FIRST], torch.ones_like(x[:_FIRST]), _FIRST_STEPS)
    if not bool(torch.isfinite(energy).any()):
        raise EnergyPPLError("no descent ended at a finite energy")
    order = energy.argsort()
    lowest = lowest[order[torch.isfinite(energy[order])][:4]]
    scale, cost = _widths(target, lowest)
    radius, tried = _reach(target, lowest[0], scale)
    shape = (starts, *lowest.shape[1:])
    far = torch.exp(math.log(radius) * torch.rand(starts, *[1] * (lowest.dim() - 1))).to(lowest)
    begin = lowest[0] + far * scale * torch.randn(shape).to(lowest)
    ends, energy = _descend(target, begin, 0.1 * (far * scale).expand(shape), _STEPS)
    cost += tried + _FIRST * _FIRST_STEPS + starts * _STEPS
    finite = torch.isfinite(energy)
    if not bool(finite.any()):
        raise EnergyPPLError("no descent ended at a finite energy")
    states, index, moved = _relax(target, ends[finite], scale)
    best = lowest[0] if float(_energy(target, lowest[:1])) <= float(energy.min()) else ends[energy.argmin()]
    return ModeSearch(states, index, best, scale, radius, cost + moved)


def _energy(target: Potential, x: Tensor) -> Tensor:
    """Energies, +∞ where they are not numbers."""
    return energy_only(target, x).nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)


def _descend(target: Potential, x: Tensor, step: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Descend with a step of its own for each coordinate (Rprop; Riedmiller & Braun 1993).

    The steps know the slope's sign alone, so scales from 1e-6 to 1e6 and minima a million away take about 40 of them.

    Returns:
        The lowest point of each descent and its energy.
    """
    last = torch.zeros_like(x)
    lowest, energy = x, torch.full_like(x.reshape(len(x), -1)[:, 0], math.inf)
    for _ in range(steps):
        value, grad = eager_energy_and_grad(target, x)
        legal = torch.isfinite(value)
        wide = legal.reshape(-1, *[1] * (x.dim() - 1))
        better = legal & (value < energy)
        energy = torch.where(better, value, energy)
        lowest = torch.where(better.reshape(wide.shape), x, lowest)
        sign = torch.where(wide, grad.nan_to_num().sign(), 0.0)
        turned = sign * last < 0
        step = torch.where(turned, _SLOWER * step, torch.where(sign * last > 0, _FASTER * step, step))
        step = torch.where(wide, step, 0.25 * step)
        sign = torch.where(turned, 0.0, sign)
        x = torch.where(wide, x - step * sign, lowest)  # back from where the energy is infinite
        last = torch.where(wide, sign, last)
    return lowest, energy


def _widths(target: Potential, minima: Tensor) -> tuple[Tensor, int]:
    """How far along each coordinate the energy rises by ½, from minima ``(k, *event)``; the median of them."""
    count, shape = len(minima), minima.shape[1:]
    dim, rounds = max(1, shape.numel()), 9
    eye = torch.eye(dim, dtype=minima.dtype, device=minima.device).reshape(1, dim, *shape)
    floor = _energy(target, minima).reshape(count, 1)
    low, high = torch.full((2, count, dim), -30.0).to(minima), torch.full((2, count, dim), 30.0).to(minima)
    signs = torch.tensor([1.0, -1.0]).to(minima).reshape(2, 1, 1)
    for _ in range(rounds):  # bisection of the logarithm to the base of 2
        middle = 0.5 * (low + high)
        step = (signs * 2.0**middle).reshape(2, count, dim, *[1] * len(shape))
        points = minima.reshape(1, count, 1, *shape) + step * eye
        risen = _energy(target, points.reshape(-1, *shape)).reshape(2, count, dim) - floor > 0.5
        low, high = torch.where(risen, low, middle), torch.where(risen, middle, high)
    log_width = (0.5 * (low + high)).mean(0).median(0).values
    return (2.0**log_width).reshape(shape), 2 * count * dim * rounds


def _reach(target: Potential, center: Tensor, scale: Tensor) -> tuple[float, int]:
    """How far starts are scattered: 64 widths, and on while a shell could hold as much as the best one but 30 nats."""
    each, dim, radius, spent = 16, max(1, center.numel()), 1.0, 0
    best = -math.inf
    while radius < _FARTHEST:
        shell = center + radius * scale * torch.randn(each, *center.shape).to(center)
        mass = float((-_energy(target, shell)).max()) + dim * math.log(radius)
        best, spent = max(best, mass), spent + each
        if radius >= _REACH and mass < best - _NEGLIGIBLE:
            break
        radius *= 4.0
    return radius, spent


def _relax(target: Potential, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, int]:
    """Run a chain from each end, with a step size of its own; returns states, their starts, and the cost."""
    dim = max(1, scale.numel())
    framed = Affine(target, x[0], torch.diag(scale.reshape(-1)))
    z = framed.to_unit(x)
    log_step = torch.zeros(len(x)).to(x)
    state = MALA(1.0).init(framed, z)
    kept, every = [], _MOVES // (2 * KEPT)
    for move in range(_MOVES):
        state, info = MALA(log_step.exp()).step(framed, state)
        log_step = (log_step + 0.5 * (info.accept_prob.nan_to_num(0.0) - 0.6)).clamp(max=math.log(10.0))
        if move >= _MOVES // 2 and (move + 1) % every == 0:
            kept.append(framed.from_unit(state.x))
    mass = dim * log_step - state.energy
    held = mass > mass.max() - _NEGLIGIBLE - dim
    start = held.nonzero()[:, 0]
    return torch.cat([rows[held] for rows in kept]), start.repeat(len(kept)), (_MOVES + 1) * len(x)

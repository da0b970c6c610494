"""Masses: estimates from the draws of all chains over windows that double."""

import torch
from torch import Tensor

from energyppl.errors import EnergyPPLError
from energyppl.inference.kernels.contract import State
from energyppl.inference.kernels.mass import InverseMass, LowRankMass, MassEstimate

__all__ = ["MassAdapter", "unit_ratio"]

_WINDOW_DRAWS = 20_000  # that a mass is estimated from at most


class MassAdapter:
    """Adapts a kernel's inverse mass during a warm-up.

    Args:
        estimate: an inverse mass from draws.
        steps: of the warm-up.
        chains: how many.
    """

    def __init__(self, estimate: MassEstimate, steps: int, chains: int) -> None:
        self._estimate, self._ends = estimate, _window_ends(steps, chains)
        self._most = max(1, 2 * _WINDOW_DRAWS // steps)
        self._draws: list[Tensor] = []
        self.window = torch.empty(0)  # the draws of the last window that ended, (n, *event)

    def known(self, i: int) -> bool:
        """Tell whether step ``i``, counted from 1, comes after the first estimate."""
        return bool(self._ends) and i > self._ends[0]

    def update(self, i: int, state: State, well: Tensor) -> bool:
        """Keep the draws of step ``i`` from the chains that fare well; tell whether a window with an estimate ends.

        Raises:
            EnergyPPLError: if the draws are so far apart that they have no variance.
        """
        if not self._ends or i > self._ends[-1]:
            return False
        healthy = well & torch.isfinite(state.energy)
        self._draws.append(_some(state.x[healthy] if healthy.dim() else state.x[None], self._most))
        if i not in self._ends:
            return False
        window = torch.cat(self._draws)
        self.window, self._draws = window[torch.isfinite(window).reshape(len(window), -1).all(1)], []
        return _spread_out(self.window)

    def result(self) -> InverseMass:
        """Estimate the mass from the last window's draws."""
        return self._estimate(self.window)


def unit_ratio(old: InverseMass, new: InverseMass, x: Tensor) -> float:
    """Compare the widest coordinate's unit under two masses, new over old, as far as the diagonals tell."""
    before, after = (m.variance if isinstance(m, LowRankMass) else m for m in (old, new))
    after = torch.ones(()).to(x) if after is None else after
    ratio = after if before is None else after / before.to(after.device)
    return float(ratio.amax().sqrt())


def _some(points: Tensor, most: int) -> Tensor:
    """Choose ``most`` of the points ``(n, *event)`` at random, or all if there are no more."""
    if len(points) <= most:
        return points
    return points[torch.randint(len(points), (most,), device=points.device)]


def _spread_out(draws: Tensor) -> bool:
    """Tell whether there are a few draws, and not all in one place.

    Raises:
        EnergyPPLError: if they are so far apart that they have no variance.
    """
    if len(draws) < 3:
        return False
    if not bool(torch.isfinite(draws.var(0)).all()):
        raise EnergyPPLError("the chains run away: the energy seems to fall without end (is its sign right?)")
    return bool((draws.amax(0) > draws.amin(0)).all())


def _window_ends(steps: int, chains: int) -> tuple[int, ...]:
    """Choose when masses are estimated: after a first sixth, then in windows that double; the last tenth is for steps.

    Many chains together fill a window sooner than one does.
    """
    first, last = max(5, steps // 6), steps - max(10, steps // 10)
    width, ends = max(10, 50 // max(1, chains)), [first]
    while ends[-1] + 3 * width <= last:
        ends.append(ends[-1] + width)
        width *= 2
    if last > ends[-1]:
        ends.append(last)
    return tuple(e for e in ends if e <= last)

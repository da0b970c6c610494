"""Conditional chains: coordinates that are not known, drawn given those that are, down the noise levels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from energyppl.autodiff.bound import bind
from energyppl.data.transforms import TableTransform
from energyppl.inference.kernels.langevin import MALA
from energyppl.models.recovery import RecoveryEBM
from energyppl.potentials.algebra import Potential

__all__ = ["Clamped", "Redraw", "draw_unknown", "jump"]

_STEPS = 12  # at each level above 0
_LAST_STEPS = 150  # at level 0, whose conditional density is the answer
_BETWEEN = 5  # of these between two draws of the places within cells
_GOAL = 0.6  # acceptance; MALA mixes fastest near .574

Redraw = Callable[[], tuple[Tensor, Tensor]]
"""Draws known coordinates anew within their cells, ``(n, D)``, and their log weights, ``(n,)``."""


@dataclass(frozen=True, eq=False)
class Clamped:
    """``U(x)`` with some coordinates of each point held: an energy of the others; held ones are N(0, 1) by themselves.

    Args:
        potential: U, of points ``(D,)``.
        values: at which coordinates are held, ``(n, D)``.
        free: 1 for coordinates that move, 0 for those that are held, ``(n, D)``.
    """

    potential: Potential
    values: Tensor
    free: Tensor

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.potential.event_shape

    def __call__(self, x: Tensor) -> Tensor:
        """Return the energies of points ``(n, D)``, ``(n,)`` in nats."""
        held = (1.0 - self.free) * x
        return self.potential(self.free * x + self.values) + 0.5 * (held * held).sum(-1)


def draw_unknown(
    ebm: RecoveryEBM,
    z: Tensor,
    redraw: Redraw | None = None,
    log_weight: Tensor | None = None,
    *,
    transform: TableTransform | None = None,
    tick: Callable[[], object] = lambda: None,
    last_steps: int = _LAST_STEPS,
) -> Tensor:
    """Draw the coordinates that are NaN, given the others, one draw for each row.

    At each noise level, from the highest down, the known coordinates get that level's noise and the others move by MALA
    on the level's energy (with the known ones in place of noise this is the exact conditional density of the level); at
    level 0 they are held as they are.  Known coordinates that stand for a cell, as of a category, move within it: draws
    that ``redraw`` makes are accepted by Metropolis and Hastings, so the cell is what is given and no place in it.
    Unknown ones :func:`jump` between cells.

    Args:
        ebm: the trained model.
        z: rows ``(n, D)`` in its data coordinates.
        redraw: draws the known coordinates anew; None if all of them are numbers that are known exactly.
        log_weight: of the known coordinates in ``z``, ``(n,)``.
        transform: that made the coordinates; None if none of them stands for a cell.
        tick: called after each level and each round at level 0, :func:`rounds` times in all.
        last_steps: moves at level 0.

    Returns:
        The rows with all coordinates, ``(n, D)``; known ones of cells as they were drawn last.
    """
    free = torch.isnan(z).to(ebm.loc)
    known = ebm.to_unit(torch.nan_to_num(z).to(ebm.loc)) * (1.0 - free)
    alpha, sigma = (value.to(ebm.loc) for value in (ebm.schedule.alpha_bar, ebm.schedule.sigma_bar))
    x = torch.randn_like(known)
    step = torch.full((), 0.5).to(x)
    for level in reversed(range(1, ebm.levels)):
        noisy = (alpha[level] * known + sigma[level] * torch.randn_like(known)) * (1.0 - free)
        step = step.clamp(max=1.5 * float(sigma[level]))
        x, step = _move(Clamped(ebm.potential(level), noisy, free), x, step, _STEPS, tune=True)
        tick()
    step = step.clamp(max=1.5 * max(float(sigma[0]), 0.02))
    for done in range(0, last_steps, _BETWEEN):
        potential = Clamped(ebm.potential(0), known, free)
        x, step = _move(potential, x, step, _BETWEEN, tune=done < last_steps // 2)
        if redraw is not None and log_weight is not None:
            known, log_weight = _within_cells(ebm, x, known, free, log_weight, redraw)
        if transform is not None:
            x = jump(ebm, transform, free * x + known, free)
        tick()
    return ebm.from_unit(free * x + known)


@torch.no_grad()
def jump(ebm: RecoveryEBM, transform: TableTransform, x: Tensor, free: Tensor | None = None) -> Tensor:
    """Propose to each point another value of each column of cells, accepted by Metropolis and Hastings at level 0.

    Chains that go in small steps leave a category's heap at high noise levels only, where what hangs on a rare one is
    blurred; a jump takes them from heap to heap of the very density that is asked for.

    Args:
        ebm: the trained model.
        transform: that made its coordinates.
        x: points ``(n, D)`` in its unit coordinates.
        free: 1 for coordinates that may move, ``(n, D)``; all if None.
    """
    potential = ebm.potential(0)
    energy, places = potential(x).double(), transform.places()
    for j in transform.jumping():
        place = places[j]
        if free is not None and not bool(free[:, place.start].any()):
            continue
        z, log_slope = transform.jump(
            ebm.from_unit(x).double().cpu().numpy(), j, torch.rand(len(x), dtype=torch.float64).numpy()
        )
        there = x.clone()
        there[:, place] = ebm.to_unit(torch.as_tensor(z).to(x))[:, place]
        proposed = potential(there).double()
        log_ratio = energy - proposed + torch.as_tensor(log_slope).to(energy)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        if free is not None:
            accepted &= free[:, place.start] > 0.0
        x, energy = torch.where(accepted[:, None], there, x), torch.where(accepted, proposed, energy)
    return x


def rounds(ebm: RecoveryEBM, last_steps: int = _LAST_STEPS) -> int:
    """Count the calls of ``tick`` that :func:`draw_unknown` makes."""
    return ebm.levels - 1 + len(range(0, last_steps, _BETWEEN))


def _move(potential: Clamped, x: Tensor, step: Tensor, steps: int, *, tune: bool) -> tuple[Tensor, Tensor]:
    """Move all rows by MALA, and bring the step size nearer to its acceptance if ``tune``."""
    bound = bind(potential)
    state = MALA(float(step)).init(bound, x)
    for _ in range(steps):
        state, info = MALA(float(step)).step(bound, state)
        if tune:
            step = step * (0.5 * (info.accept_prob.mean() - _GOAL)).exp().clamp(0.5, 2.0)
    return state.x, step


def _within_cells(
    ebm: RecoveryEBM, x: Tensor, known: Tensor, free: Tensor, log_weight: Tensor, redraw: Redraw
) -> tuple[Tensor, Tensor]:
    """Propose other places within the known cells, accepted by Metropolis and Hastings."""
    drawn, new_weight = redraw()
    proposed = ebm.to_unit(torch.nan_to_num(drawn).to(ebm.loc)) * (1.0 - free)
    with torch.no_grad():
        potential = ebm.potential(0)
        here, there = (potential(free * x + place).double() for place in (known, proposed))
    log_ratio = here - there + new_weight - log_weight
    accepted = torch.rand(len(x), dtype=log_ratio.dtype, device=log_ratio.device).log() < log_ratio
    return torch.where(accepted[:, None], proposed, known), torch.where(accepted, new_weight, log_weight)

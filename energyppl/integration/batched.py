"""Integrals of many energies at once, one for each context, on grids of one or two dimensions."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl.autodiff.private import is_transformed
from energyppl.errors import QuadratureError

__all__ = ["likeliest_power", "log_integrals", "quantiles"]

Energies = Callable[[Tensor, Tensor], Tensor]
"""Maps points ``(nodes, rows, size)`` and the numbers of as many energies, ``(rows,)``, to those, ``(nodes, rows)``."""

_HALF_WIDTHS = (6.0, 12.0, 24.0, 48.0, 96.0)
_POINTS = {1: tuple(256 * 2**k for k in range(8)), 2: (96, 192, 384, 768)}  # along each dimension
_BLIND = {1: (12.0, 512), 2: (12.0, 192)}  # half width and points where values can't be read
_AT_ONCE, _AT_ONCE_BACK = 2**17, 2**14  # evaluations, without and with gradients
_POWERS, _ODD = [math.pow(4.0, i / 32) for i in range(-32, 33)], 0.01  # powers that are tried; the share of outliers
_EDGE = 32  # of each side, the outermost 1/32 must hold next to no mass


class _Solved(NamedTuple):
    """Energies whose grid is good enough."""

    rows: Tensor  # (rows,), their numbers
    log_z: Tensor  # (rows,)
    error: Tensor  # (rows,)
    edges: Tensor  # (points,), the upper end of each cell along a dimension
    log_mass: Tensor  # (nodes, rows), of each cell


def log_integrals(
    energy: Energies, count: int, size: int, like: Tensor, tolerance: float = 1e-3, *, strict: bool = True
) -> tuple[Tensor, Tensor]:
    """Integrate exp(−U) of many energies over all points, by the midpoint rule on grids around the origin.

    Every energy gets the box and the grid that it needs: the grid is refined until the rules of every second and third
    node agree, and the box widened until its outermost layers are empty.

    Args:
        energy: the energies.
        count: how many there are.
        size: dimensions of a point, 1 or 2, of about unit variance.
        like: a tensor of the points' dtype and device.
        tolerance: largest error of log Z, in nats, and largest share of the mass at the box's edge.
        strict: raise if some can't be integrated to the tolerance, or are NaN; else log Z and error of these are ∞.

    Inside ``torch.func`` transforms, such as ``vmap``, all get one grid and nothing is checked.

    Returns:
        log Z of each, ``(count,)``, differentiable if ``energy`` is; and an estimate of its error, ``(count,)``, which
        is that of a coarser rule and so usually far too large.

    Raises:
        QuadratureError: as ``strict`` says.
    """
    if is_transformed():  # whose values can't be read: one grid for all, as wide and as fine as any usually needs
        rows = torch.arange(count, device=like.device)
        parts = [part for part, _ in _on_grid(energy, rows, *_BLIND[size], size, like)]
        return torch.cat([part.log_z for part in parts]).to(like), torch.cat([part.error for part in parts])
    used = energy if strict else lambda points, some: energy(points, some).nan_to_num(nan=math.inf, posinf=math.inf)
    grids = _solve(used, count, size, like, tolerance, strict=strict)
    solved = [(part.rows, part.log_z, part.error) for part in grids]
    rows, log_z, error = (torch.cat(values) for values in zip(*solved, strict=True))
    unsolved = torch.full((count,), math.inf, dtype=torch.float64, device=like.device)
    return unsolved.index_copy(0, rows, log_z).to(like), unsolved.index_copy(0, rows, error)


@torch.no_grad()
def quantiles(energy: Energies, count: int, like: Tensor, probabilities: Tensor, tolerance: float = 1e-3) -> Tensor:
    """Find quantiles of many one-dimensional densities, ``(probabilities, count)``, on the grids that integrate them.

    Args:
        energy: the energies.
        count: how many there are.
        like: a tensor of the points' dtype and device.
        probabilities: between 0 and 1, ``(probabilities,)`` of all, or ``(probabilities, count)`` of each: uniform
            random ones give draws.
        tolerance: as in :func:`log_integrals`.

    Raises:
        QuadratureError: as :func:`log_integrals`.
    """
    found = torch.zeros(len(probabilities), count, dtype=torch.float64, device=like.device)
    each = probabilities.double().to(like.device)
    each = (each if each.dim() == 2 else each[:, None]).expand(len(each), count)
    for part in _solve(energy, count, 1, like, tolerance):
        mass = part.log_mass.exp().T.contiguous()  # (rows, nodes)
        below = mass.cumsum(1)
        below = below / below[:, -1:]
        wanted = each[:, part.rows].T.contiguous()
        place = torch.searchsorted(below, wanted).clamp(max=mass.shape[1] - 1)
        upper, share = below.gather(1, place), (mass / mass.sum(1, keepdim=True)).gather(1, place)
        cell = part.edges[1] - part.edges[0]
        into = 1.0 - (upper - wanted) / share.clamp(min=1e-300)  # of the cell, whose mass is spread evenly
        found[:, part.rows] = (part.edges[place] - cell * (1.0 - into.clamp(0.0, 1.0))).T
    return found.to(like)


@torch.no_grad()
def likeliest_power(energy: Energies, observed: Tensor) -> float:
    """Return the power β of one-dimensional densities, in [¼, 4], at which observed points are likeliest.

    The densities are ``exp(−β U) / Z(β)`` with a hundredth of N(0, 2²), without which one outlier would widen them all.
    Those that can't be integrated are left out.

    Args:
        energy: the energies, one for each point.
        observed: one point of each density, ``(count, 1)``, of about unit variance.
    """
    grids = _solve(energy, len(observed), 1, observed, 1e-3, strict=False)
    solved = [part for part in grids if len(part.rows)]
    parts = []
    for part in solved:
        own = -energy(observed[part.rows].unsqueeze(0), part.rows)[0].double() - part.log_z
        log_cell = math.log(float(part.edges[1] - part.edges[0]))
        parts.append((own, part.log_mass - log_cell, log_cell))
    if not parts:
        return 1.0
    rows = torch.cat([part.rows for part in solved])
    other = torch.distributions.Normal(0.0, 2.0).log_prob(observed[rows, 0].double()) + math.log(_ODD)

    def likelihood(power: float) -> float:
        scaled = torch.cat([power * own - (power * laid).logsumexp(0) - log_cell for own, laid, log_cell in parts])
        return float(torch.logaddexp(scaled + math.log1p(-_ODD), other).mean())

    return max(_POWERS, key=likelihood)


def _solve(
    energy: Energies, count: int, size: int, like: Tensor, tolerance: float, *, strict: bool = True
) -> Iterator[_Solved]:
    """Yield the energies as soon as their grid is good enough; raise for those that have none, or leave them out."""
    pending = [(torch.arange(count, device=like.device), 0, 0, 0.0)] if count else []
    while pending:
        rows, wide, fine, half = pending.pop()  # the last is where they were tried
        if wide == len(_HALF_WIDTHS) or fine == len(_POINTS[size]):
            if not strict:
                continue
            raise QuadratureError(
                f"{len(rows)} of {count} energies can't be integrated to {tolerance:g} nats on "
                f"{_POINTS[size][fine - 1]} points a side within {half:g} standard deviations: train "
                "the model longer, or give it noisier levels"
            )
        coarse, wider = [], []
        half = _HALF_WIDTHS[wide]
        for part, leak in _on_grid(energy, rows, half, _POINTS[size][fine], size, like):
            leaks, good = leak > tolerance, (part.error <= tolerance) & (leak <= tolerance)
            yield _Solved(part.rows[good], part.log_z[good], part.error[good], part.edges, part.log_mass[:, good])
            wider.append(part.rows[leaks])
            coarse.append(part.rows[~good & ~leaks])
        # A wider box needs more points for cells as small.
        for rest, box in ((torch.cat(wider), wide + 1), (torch.cat(coarse), wide)):
            if len(rest):
                pending.append((rest, box, fine + 1, half))


def _on_grid(
    energy: Energies, rows: Tensor, half: float, points: int, size: int, like: Tensor
) -> Iterator[tuple[_Solved, Tensor]]:
    """Yield some energies at a time on one grid, and the share of each one's mass at the edge, ``(rows,)``."""
    axis = ((torch.arange(points, dtype=torch.float64) + 0.5) / points * 2.0 - 1.0) * half
    edges = (axis + half / points).to(like.device)
    nodes = torch.cartesian_prod(*[axis] * size).reshape(-1, size).to(like)
    log_cell = size * math.log(2.0 * half / points)
    differentiable = torch.is_grad_enabled() and not is_transformed()
    for some in rows.split(max(1, (_AT_ONCE_BACK if differentiable else _AT_ONCE) // len(nodes))):
        laid = nodes[:, None].expand(-1, len(some), -1)
        if differentiable:  # evaluated again on the way back: a graph for every node would fill the memory
            from torch.utils.checkpoint import checkpoint  # with sympy, up to torch 2.6

            values = checkpoint(energy, laid, some, use_reentrant=False, preserve_rng_state=False)
        else:
            values = energy(laid, some)
        values = -values.double()
        if not is_transformed() and bool(torch.isnan(values).any()):
            raise QuadratureError("energies must be numbers; got NaN on the grid: check the network there")
        log_z = torch.logsumexp(values, 0) + log_cell
        log_mass = values.detach() - log_z.detach() + log_cell
        error, leak = _faults(log_mass, [points] * size)
        yield _Solved(some, log_z, error, edges, log_mass), leak


def _faults(log_mass: Tensor, grid: list[int]) -> tuple[Tensor, Tensor]:
    """Return how far rules of every second and third node are from all, in nats, and the mass in the outer layers."""
    mass = log_mass.exp().reshape(*grid, -1)
    spread, edge = torch.zeros_like(mass[(0,) * len(grid)]), torch.zeros_like(mass[(0,) * len(grid)])
    for dim in range(len(grid)):
        for every in (2, 3):  # two alone agree about a feature that lies in the middle between two nodes
            part = mass.movedim(dim, 0)[::every].flatten(0, len(grid) - 1).sum(0)
            spread = torch.maximum(spread, (every * part).clamp(min=1e-30).log().abs())
        layers = max(1, grid[dim] // _EDGE)
        line = mass.movedim(dim, 0)
        edge = edge + line[:layers].flatten(0, len(grid) - 1).sum(0) + line[-layers:].flatten(0, len(grid) - 1).sum(0)
    return spread, edge

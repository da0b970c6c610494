"""Tail check: whether an energy rises far away as it must for exp(−U) to have a finite integral."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from energyppl.autodiff.gradient import eager_energy, eager_energy_and_grad
from energyppl.errors import NotNormalizable
from energyppl.potentials.algebra import Potential
from energyppl.potentials.constrained import Constrained

__all__ = ["out_of_reach", "require_normalizable", "tail_doubt", "tail_missed"]

_NEAR, _FAR = 1e3, 1e6  # distances, in spreads of the points
_MAX_AXES = 64
_MARGIN = 0.01  # that the slope must exceed what is needed by: the borderline itself is not normalizable
_HEAVY = 0.4  # and by which it must for nearly all of the mass to be in reach
_SOME = 0.02  # of the rays, on which an energy does not rise enough, that are worth a word
_SHELLS = (256.0, 4096.0)  # radii at which the bottoms of valleys are looked for, in spreads
_DESCENTS, _STEPS, _NARROW = 16, 30, 1e-3  # on each shell, and the distance that curvatures are told from, in spreads
_BEYOND = 50.0  # nats above the points, and what a shell's volume makes up for: no valley holds mass there
_OUTER, _LOST, _LIGHT = 0.1, 0.05, 3.0  # share of particles that tells of a tail; lost share; index of no concern
_FLAT = 0.05  # below it a slope is rounding
_PILED = 3.0  # nats that the energy rises by at least, so that 5 % of the mass at most lies beyond
_EDGES = 2.0 ** torch.arange(10.0, -4.0, -0.25)  # distances at which a map is tried, in spreads
_ROWS = 8
_SATURATED = tuple(2.0**power for power in range(6, -4, -1))  # distances for supports whose map saturates, in spreads


def require_normalizable(potential: Potential, x: Tensor) -> None:
    """Check along rays from the middle of points, and along coordinates from each, that the energy rises fast enough.

    For the integral to be finite, U must rise faster than d log r along almost all rays, and faster than log r along
    almost all lines parallel to an axis (Fubini).  Both are judged from 1,000 to a million spreads away, so what
    happens nearer is not mistaken for a tail.  It is a check for what goes wrong in practice, not a proof.

    Args:
        potential: the energy U.
        x: points about where its mass is, ``(n, *event)``.

    Raises:
        NotNormalizable: if the energy doesn't rise so.
    """
    for slope, needed, where in _slopes(potential, x):
        if _most(slope < needed + _MARGIN):
            raise NotNormalizable(_words(float(slope.nan_to_num(posinf=1e9).median()), needed, where))


def _slopes(potential: Potential, x: Tensor) -> Iterator[tuple[Tensor, int, str]]:
    """Yield slopes of rays, ``(rays,)`` in nats for each e-fold of the distance, how steep they must be, and where."""
    shape, rows = potential.event_shape, x.reshape(len(x), -1)
    dim, middle = rows.shape[1], rows.mean(0)
    spread = rows.std(0)
    spread = torch.where(spread > 0, spread, spread.amax().clamp(min=1e-30) if bool((spread > 0).any()) else 1.0)
    unit = (rows - middle) / spread
    directions = torch.nn.functional.normalize(unit + 1e-3 * torch.randn_like(unit), dim=1)
    yield _slope(potential, middle.expand_as(rows), directions * spread, shape), dim, "in all directions"
    some = rows[: max(8, min(len(rows), 64))]
    for axis in range(dim) if dim <= _MAX_AXES else torch.randperm(dim)[:_MAX_AXES].tolist():
        for sign in (1.0, -1.0):
            along = torch.zeros_like(some)
            along[:, axis] = sign * spread[axis]
            where = f"along coordinate {axis}, towards {'plus' if sign > 0 else 'minus'} infinity"
            yield _slope(potential, some, along, shape), 1, where


def tail_doubt(potential: Potential, x: Tensor) -> str | None:
    """Say where an energy rises so slowly that log Z can't be told, though it may be finite; None if nowhere.

    Of a density that falls like 1 / r^(d + a) a share of about R^(−a) lies farther than R spreads away: for a = .4
    that is 16 % beyond 100 spreads, and no run comes there.  Where a part of the directions has no finite
    integral, neither has the whole, but few rays and a dtype's rounding do not prove it.  The edges of supports are
    left to :func:`out_of_reach`.

    Args:
        potential: the energy U.
        x: points about where its mass is, ``(n, *event)``.
    """
    if isinstance(potential, Constrained):
        return None
    for slope, needed, where in _slopes(potential, x):
        if _most(slope < needed + _HEAVY):
            return (
                f"{where} the energy rises by {float(slope.nan_to_num(posinf=1e9).median()):.3g} nats only for each "
                f"e-fold of the distance, hardly more than the {needed} that are needed: how much of the mass lies "
                "farther away than runs come can't be told"
            )
        few = float((slope < needed + _MARGIN).double().mean())
        if few > _SOME:
            place = "from the middle" if where == "in all directions" else where
            return (
                f"on {few:.0%} of the rays {place} the energy does not rise as it must for exp(−U) to have a finite "
                "integral: whether it has one could not be told"
            )
    grows = _valley_growth(potential, x)
    if grows > -_HEAVY:
        return (
            f"far away a narrow valley of the energy holds a mass that changes by {grows:+.2g} nats with each e-fold "
            "of the distance, and must fall for exp(−U) to have a finite integral: whether it has one could not be told"
        )
    return None


def _valley_growth(potential: Potential, x: Tensor) -> float:
    """Return by how much the log mass of the lowest valley on a sphere changes for each e-fold of its radius.

    A valley that narrows on its way out is on no ray and on no line, such as that of (xy)² along an axis.  Its bottom
    is found by descents on two spheres, and its mass there by Laplace's approximation across it, with a width of the
    radius at most.
    """
    rows, shape = x.reshape(len(x), -1), potential.event_shape
    middle, spread, dim = rows.mean(0), rows.std(0), rows.shape[1]
    if dim < 2 or dim > _MAX_AXES or not bool((spread > 0).all()):
        return -math.inf

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        energy, grad = eager_energy_and_grad(potential, (middle + spread * z).reshape(-1, *shape))
        return energy.double().nan_to_num(nan=math.inf), grad.reshape(-1, dim).nan_to_num(0.0, 0.0, 0.0) * spread

    inner, outer = _SHELLS
    highest = float(eager_energy(potential, x)[0].double().median()) + dim * math.log(inner) + _BEYOND
    unit = torch.nn.functional.normalize(((rows - middle) / spread)[:_DESCENTS], dim=1)
    unit, energy = _lowest_on_sphere(evaluate, unit, inner)
    if not float(energy.min()) < highest:
        return -math.inf
    unit, far = _lowest_on_sphere(evaluate, unit, outer)
    there = _valley_mass(evaluate, unit[far.argmin()], outer)
    unit, near = _lowest_on_sphere(evaluate, unit, inner)
    return (there - _valley_mass(evaluate, unit[near.argmin()], inner)) / math.log(outer / inner)


def _valley_mass(evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], bottom: Tensor, radius: float) -> float:
    """Return the log mass of a valley for each e-fold of the radius, at its bottom in a direction ``(d,)``."""
    dim = len(bottom)
    ends = _NARROW * torch.eye(dim).to(bottom)
    low = float(evaluate(radius * bottom[None])[0])
    slopes = evaluate(radius * bottom + torch.cat([ends, -ends]))[1].double().reshape(2, dim, dim)
    curved = (slopes[0] - slopes[1]) / (2.0 * _NARROW)
    across = torch.linalg.svd(bottom.double()[None])[2][1:]  # (d − 1, d), tangents of the sphere
    bends = torch.linalg.eigvalsh(across @ (0.5 * (curved + curved.T)) @ across.T)
    widths = (2.0 * math.pi / bends.clamp(min=2.0 * math.pi / radius**2)).sqrt()
    return math.log(radius) - low + float(widths.log().sum())


def tail_missed(potential: Potential, x: Tensor) -> str | None:
    """Say that runs did not reach far enough into tails that fall like a power; None if they did.

    A tenth of the particles lies beyond some distance r.  Where the density falls like 1 / r^(1 + a), about
    .1 (R / r)^(−a) of the mass lies beyond the farthest particle at R: one in n if the particles are draws of the
    target, more if kernel and base kept them from the tail.

    Args:
        potential: the energy U.
        x: particles at the end of runs, ``(n, *event)``.
    """
    if isinstance(potential, Constrained) or len(x) < 2 * _ROWS:
        return None
    rows, lost = x.reshape(len(x), -1), 0.0
    far = (rows - rows.median(0).values).abs().double()
    for axis in range(rows.shape[1]) if rows.shape[1] <= _MAX_AXES else ():
        along = torch.zeros_like(rows[:_ROWS])
        along[:, axis] = rows[:, axis].std()
        both = [_slope(potential, rows[:_ROWS], sign * along, potential.event_shape) for sign in (1.0, -1.0)]
        index = min(float(slope.nan_to_num(posinf=1e9).median()) for slope in both) - 1.0
        if 0.0 < index < _LIGHT:
            reached = float(far[:, axis].max() / far[:, axis].quantile(1.0 - _OUTER))
            lost += _OUTER * reached**-index
    if lost < _LOST:
        return None
    return (
        f"the density's tails fall like a power, and about {lost:.0%} of the mass lies farther out than any particle "
        "came: log Z is too low, so pass samples, or a base with tails as heavy"
    )


def out_of_reach(potential: Potential, x: Tensor) -> str | None:
    """Say where the density of a support piles up at an edge beyond what the dtype can tell from the edge; None if not.

    Along each coordinate the map onto the support finds back from an unconstrained point up to some distance only: a
    float32 near 1 can't be nearer to it than 6e-8. What mass lies beyond is lost to every estimate. Where the energy
    rises by less than 3 nats up to there, as for Gamma(.01) and Beta(.01, .01), that is more than 5 % of it, and log Z
    is too low by .05 or more.

    Args:
        potential: the energy U.
        x: points about where its mass is, ``(n, *event)``, unconstrained.
    """
    if not isinstance(potential, Constrained):
        return None
    shape, some = potential.event_shape, x[torch.isfinite(x).reshape(len(x), -1).all(1)][:_ROWS]
    rows = some.reshape(len(some), -1)
    if len(rows) < 2:
        return None
    spread, dim = rows.std(0).clamp(min=1e-6), rows.shape[1]
    for axis in range(dim) if dim <= _MAX_AXES else torch.randperm(dim)[:_MAX_AXES].tolist():
        for sign in (1.0, -1.0):
            along = torch.zeros_like(rows)
            along[:, axis] = sign * spread[axis]
            points = rows + _EDGES.to(rows)[:, None, None] * along
            try:
                back = potential.unconstrain(potential.constrain(points.reshape(-1, *shape)))
            except RuntimeError:  # LinAlgError, as below
                continue
            miss = (back.reshape(points.shape) - points)[..., axis].abs()
            (energy,), (here,) = (eager_energy(potential, part.reshape(-1, *shape)) for part in (points, rows))
            energy = energy.reshape(miss.shape)
            found = (miss <= 0.01 + 0.01 * points[..., axis].abs()) & torch.isfinite(energy)
            # The first distance, from the farthest, whose point is found again; without an end it is far up.
            edge = energy.gather(0, found.int().argmax(0, keepdim=True))[0]
            if _most(found.any(0) & (edge - here < _PILED)):
                return (
                    f"much of the mass lies closer to the edge of the support along coordinate {axis} than "
                    f"{rows.dtype} can tell from the edge, so that log Z is too low: use float64, a density of the "
                    "logarithm or the logit, or one that does not pile up at an edge"
                )
    return None


def _lowest_on_sphere(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], unit: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Descend on a sphere from directions ``(n, d)``; returns the directions reached and their energies, ``(n,)``."""
    energy, grad = evaluate(radius * unit)
    angle = torch.full_like(unit[:, :1], 0.5)
    for _ in range(_STEPS):
        tangent = grad - (grad * unit).sum(1, keepdim=True) * unit
        step = unit * angle.cos() - torch.nn.functional.normalize(tangent, dim=1) * angle.sin()
        new = torch.nn.functional.normalize(step, dim=1)  # where there is no slope the step is shorter
        tried, slope = evaluate(radius * new)
        better = tried < energy
        wide = better[:, None]
        energy, unit, grad = (
            torch.where(better, tried, energy),
            torch.where(wide, new, unit),
            torch.where(wide, slope, grad),
        )
        angle = torch.where(wide, 1.5 * angle, 0.3 * angle).clamp(max=0.5)
    return unit, energy


def _slope(potential: Potential, begin: Tensor, direction: Tensor, shape: torch.Size) -> Tensor:
    """Return dU / d log r far away, ``(n,)``: +∞ where the energy is, or is not a number, by then; −∞ where it is."""
    slope = _between(potential, begin, direction, _NEAR, _FAR, shape)
    if isinstance(potential, Constrained):  # far out the slope is that of a map that has stopped
        before = _before_saturation(potential, begin, direction, shape)
        slope = torch.where(torch.isnan(before), slope, before)
    return slope


def _between(
    potential: Potential, begin: Tensor, direction: Tensor, near: float, far: float, shape: torch.Size
) -> Tensor:
    ends = [(begin + radius * direction).reshape(-1, *shape) for radius in (near, far)]
    (low,), (high,) = (eager_energy(potential, end) for end in ends)
    slope = (high - low).double() / math.log(far / near)
    slope = torch.where(torch.isnan(slope) | (high == math.inf), math.inf, slope)
    return torch.where((low == -math.inf) | (high == -math.inf), -math.inf, slope)


def _before_saturation(potential: Constrained, begin: Tensor, direction: Tensor, shape: torch.Size) -> Tensor:
    """Return the slope at the farthest distance from which a support's map still finds back; NaN if there is none.

    That is not far, but a slope that grows with the distance is one of a power, which is enough however small it is.
    """
    slope = torch.full((len(begin),), math.nan, dtype=torch.float64, device=begin.device)
    for radius in _SATURATED:
        points = (begin + radius * direction).reshape(-1, *shape)
        try:
            back = potential.unconstrain(potential.constrain(points))
        except RuntimeError:  # LinAlgError: a matrix that is not definite any more by rounding has no factor
            continue
        close = (back - points).abs() <= 0.01 + 0.01 * points.abs()
        kept = close.reshape(len(begin), -1).all(1) & torch.isnan(slope)
        if bool(kept.any()):
            inner = _between(potential, begin, direction, 0.25 * radius, 0.5 * radius, shape)
            outer = _between(potential, begin, direction, 0.5 * radius, radius, shape)
            grows = (outer > _FLAT) & (outer > 1.5 * inner)
            slope = torch.where(kept, torch.where(grows, math.inf, outer), slope)
    return slope


def _most(failed: Tensor) -> bool:
    """Return whether it failed along most rays."""
    return bool(failed.double().mean() > 0.5)


def _words(slope: float, needed: int, where: str) -> str:
    """Compose the error message."""
    slope = 0.0 if abs(slope) < _FLAT else slope
    return (
        f"the energy is not normalizable: {where} it rises by {slope:.3g} nats for each e-fold of the distance, and "
        f"must rise by more than {needed} for exp(−U) to have a finite integral. Add a confining term such as ½|x|², "
        "or check the energy's sign"
    )

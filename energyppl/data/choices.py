"""How each column of a table is taken: by its cells, or by a closed-form map that the shape of its rows asks for."""

import math

import numpy as np
from numpy.typing import NDArray

from energyppl.data.columns import Categories, Coordinates, FewValues, Numbers, TwoValues
from energyppl.data.grids import decimals_of, gap_of, whole_steps
from energyppl.data.monotone import Atoms, Base, fit_spline
from energyppl.errors import InvalidInput

__all__ = ["choose"]

Array = NDArray[np.float64]

_FEW = 20  # distinct values, at most, of a column that is taken value by value
_DESIGNED = 3  # rows, at least, that have each of few values of a long lattice: hardly any row has another one
_HEAVY = 8.0  # of the central 99 % over the central half: a Gaussian's is 3.8, a logistic's 4.8, Cauchy's 64
_WILD = 30.0  # central halves from the median to an end: one such cell would set the scale of all others
_SKEWED = 0.35  # of the quantile skewness of the central 95 %; an exponential's is .58
_NEAR = 5.0  # widths from the median to a bound: beyond, a Gaussian does not reach it
_EDGE = 0.008  # of the rows in a fiftieth of the range, at an edge; a uniform column has .02, a Gaussian .0005
_CROWD = 4  # of them at least: the outermost row is always there, and by chance two or three of a Gaussian's
_FEWEST_ROWS = 100  # that a shape is judged by
_FEWEST_BESIDE = 20  # rows beside heaps
_SPIKE, _MAX_ATOMS = 0.02, 5
_ROWS_A_KNOT, _MAX_KNOTS = 15, 33
_ROOM = 3  # distances between the outermost rows that a column is left beyond its ends, for rows to come
_LEVELS = (0.005, 0.025, 0.25, 0.5, 0.75, 0.975, 0.995)  # of the quantiles that a shape is judged by


def choose(name: str, x: Array, grid: Array, categories: int, dtype: str, kind: str) -> Coordinates:
    """Choose how a column is taken.

    Args:
        name: of the column.
        x: its values that are not missing, ``(n,)``.
        grid: of the lattice that they lie on, if any, all of its values; else empty.
        categories: how many there are; 0 for numbers.
        dtype: of the column in its file or frame.
        kind: as :meth:`~energyppl.data.TableTransform.fit` takes it.

    Raises:
        InvalidInput: for the logarithm of what is not positive.
    """
    if categories > 2:
        return Categories(categories)
    if kind == "auto" and len(grid) and len(np.unique(x)) == 2:
        return TwoValues(np.unique(x))
    if kind == "auto" and len(values := _few_values(x, grid)):
        counts = np.bincount(FewValues(values, np.empty(0)).place(x), minlength=len(values))
        shares = (counts + 0.5) / (counts.sum() + 0.5 * len(values))
        edges = np.concatenate([[0.0], np.cumsum(shares)])
        return FewValues(values, edges / edges[-1])
    gap = gap_of(grid)
    if not gap and dtype.lower().startswith(("int", "uint")):
        gap = whole_steps(x)
    atoms = None if gap or kind not in ("auto", "quantile") else _atoms(x)
    smooth = x[~np.isin(x, atoms.values)] if atoms is not None else x
    spread = smooth + gap * (np.random.default_rng(0).random(len(smooth)) - 0.5)
    if len(smooth) < _FEWEST_BESIDE:
        atoms = None
    # The ends of a lattice are those of all rows, as its values are: a held-out row at an end has a density.
    every = np.concatenate([x, grid])
    ends = (float(every.min()), float(every.max()))
    base, quantile = _shape(name, ends, len(x), spread, gap, kind if atoms is None else "quantile", len(grid) > 0)
    spline = None
    if quantile:
        knots = int(np.clip(len(spread) // _ROWS_A_KNOT, 5, _MAX_KNOTS))
        spline = fit_spline(base.forward(spread)[0], knots)
    named = "quantile" if quantile else ("none" if base.kind == "none" else base.kind)
    low, high = _range(ends, base, gap)
    return Numbers(named, base, spline, atoms, gap, low, high, decimals_of(smooth))


def _few_values(x: Array, grid: Array) -> Array:
    """Return the values of a column that is taken value by value, none of any other.

    They are all of a short lattice, and of a long one those that occur, if most of it never does and each of them
    several times, as in a designed experiment.
    """
    if len(grid) <= _FEW:
        return grid
    counts = np.bincount(FewValues(grid, np.empty(0)).place(x), minlength=len(grid))
    found: Array = grid[counts > 0]
    designed = len(found) <= _FEW and len(grid) > 2 * len(found) and counts[counts > 0].min() >= _DESIGNED
    return found if designed else np.empty(0)


def _atoms(x: Array) -> Atoms | None:
    """Find the values of a continuous column that too many rows share for a smooth density."""
    values, counts = np.unique(x, return_counts=True)
    often = (counts > _SPIKE * len(x)) & (counts >= 10)
    if not often.any() or len(values) < 3:
        return None
    chosen = np.sort(values[np.argsort(-np.where(often, counts, 0))[: min(_MAX_ATOMS, int(often.sum()))]])
    masses = np.array([(x == value).mean() for value in chosen])
    rest = x[~np.isin(x, chosen)]
    below = np.array([(rest < value).mean() if len(rest) else 0.5 for value in chosen])
    return Atoms(chosen, masses, below)


def _range(ends: tuple[float, float], base: Base, gap: float) -> tuple[float, float]:
    """Return the least and the largest value that samples may take."""
    if gap:
        return ends
    low, high = (0.0 if ends[0] >= 0.0 else -np.inf), np.inf
    if base.kind == "logit" or (base.kind == "log" and base.sign > 0):
        low = max(low, base.low)
    if base.kind == "logit":
        high = base.high
    elif base.kind == "log" and base.sign < 0:
        high = base.low
    return float(low), float(high)


def _shape(
    name: str, ends: tuple[float, float], count: int, spread: Array, gap: float, kind: str, on_grid: bool
) -> tuple[Base, bool]:
    """Return a column's closed-form map, and whether a spline to normal scores follows it."""
    (low, high), extent = ends, ends[1] - ends[0]
    crowded = ((spread <= low + 0.02 * extent).mean(), (spread >= high - 0.02 * extent).mean())
    few, least = count < _FEWEST_ROWS, max(_EDGE, _CROWD / len(spread))
    at_low, at_high = (bool(share >= least) and not few for share in crowded)
    # Cells reach half a gap beyond the ends, and a logarithm needs some room there.
    margin = gap if gap else extent / max(count, 20)
    below, above = (0.0, 0.0) if gap and on_grid else _edge_spacings(spread, extent)
    lower = low - max(margin, below)
    if not gap and low > 0.0 and (low <= 5.0 * margin or not at_low):
        lower = 0.0
    natural = [end for end in (1.0, 100.0) if end - 5.0 * margin <= high < end and not gap]
    upper = natural[0] if natural else high + max(margin, above)
    if kind == "none":
        return Base("none"), False
    if kind == "log":
        if low <= 0.0 and not gap:
            raise InvalidInput(f"{name!r} must be positive for its logarithm; got {low:g}: choose quantile")
        return Base("log", lower), False
    if kind == "logit":
        return Base("logit", lower, upper), False
    q = np.quantile(spread, _LEVELS)
    width, half = max((q[5] - q[1]) / 3.92, 1e-300), max(q[4] - q[2], 1e-300)
    wild = max(high - q[3], q[3] - low) / half > _WILD
    heavy = (q[6] - q[0]) / half > _HEAVY or wild
    skew = (q[5] + q[1] - 2.0 * q[3]) / (3.92 * width)
    if kind == "auto" and at_low and at_high and not heavy and abs(skew) < _SKEWED:
        return Base("logit", lower, upper), False
    if (low >= 0.0 and q[3] < _NEAR * width) or (at_low and skew > _SKEWED):
        if kind == "auto" and low > 0.0 and not (gap or few) and _gaussian(np.log(spread)):
            return Base("log"), False  # a spline's noise would hide how closely other columns determine it
        base = Base("log", lower)
        plain = kind == "auto" and (few or ((lower == 0.0 or gap > 0.0) and _better_in_logs(base, spread)))
        return base, not plain
    if kind == "auto" and not wild and (few or not (heavy or abs(skew) > _SKEWED)):
        return Base("none"), False
    if at_high and skew < -_SKEWED and not heavy:
        return Base("log", upper, sign=-1.0), True
    return Base("asinh", float(q[3]), float(half if heavy else width)), True


def _edge_spacings(x: Array, extent: float) -> tuple[float, float]:
    """Return how far the few lowest and the few highest rows lie apart, a twentieth of the range at most.

    Another row lies beyond the ends by more than that with a probability of 2⁻³ over the number of rows, about, if the
    density is even there.
    """
    x, few = np.sort(x), min(_ROOM, len(x) - 1)
    return min(float(x[few] - x[0]), 0.05 * extent), min(float(x[-1] - x[-1 - few]), 0.05 * extent)


def _gaussian(t: Array) -> bool:
    """Tell whether numbers have a Gaussian's skewness and kurtosis, within 3 standard errors (D'Agostino 1970)."""
    z = (t - t.mean()) / t.std()
    skew, excess = float((z**3).mean()), float((z**4).mean()) - 3.0
    return abs(skew) < 3.0 * math.sqrt(6.0 / len(t)) and abs(excess) < 3.0 * math.sqrt(24.0 / len(t))


def _better_in_logs(base: Base, x: Array) -> bool:
    """Tell whether a Gaussian describes a column's logarithms better than the column, and not badly."""
    t, slope = base.forward(x)
    q = np.quantile(t, _LEVELS)
    straight = abs(q[1] + q[5] - 2.0 * q[3]) < _SKEWED * (q[5] - q[1]) and (q[6] - q[0]) < _HEAVY * (q[4] - q[2])
    return bool(straight and float(slope.mean()) - np.log(t.std()) > -np.log(x.std()))

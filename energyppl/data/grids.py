"""The values that discrete columns can take: found in their rows, and returned to."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from energyppl._checks import checked

__all__ = ["ROUNDING", "decimals_of", "find_grid", "gap_of", "requantize", "smallest_gaps", "whole_steps"]

Array = NDArray[np.float64]

_FEW_VALUES = 20  # up to so many distinct values, most of them repeated, make a column discrete without a lattice
ROUNDING = 0.02  # of a lattice's gap: as far as its values may be off
_LONGEST_GRID = 100_000
_FEWEST_DIVIDED = 20  # fewer whole numbers may share a divisor by chance: 20 are all even once in 500,000 times
_MOST_DECIMALS = 9  # beyond, numbers were computed and not written down


def find_grid(column: Array) -> Array:
    """Return the values that a discrete column can take, ``(k,)``; ``(0,)`` if it is continuous.

    Discrete means that more than half of the rows share their value with another row, and that the values sit on a
    lattice, every gap a multiple of the smallest one (then the column can take all of the lattice between its ends), or
    are few and most of them repeated (then only those that occur).
    """
    values, counts = np.unique(column, return_counts=True)
    # Numbers that were computed differ in their last digits: float32 keeps about seven.  Of the size of most rows, or
    # one sentinel of 1e12 would make all others one value.
    size = np.maximum(np.abs(values), np.quantile(np.abs(column), 0.95))
    new = np.diff(values, prepend=-np.inf) > _last_digit(column) * size
    counts = np.add.reduceat(counts, np.flatnonzero(new))
    values = values[new]
    if len(values) < 2 or counts[counts > 1].sum() <= 0.5 * len(column):
        return np.empty(0)
    gaps = np.diff(values)
    # One gap of float32 is off by its last digits, which make a whole step over thousands of them: each value's place
    # is counted from its neighbour's, and the gap measured over all of them.
    steps = np.concatenate([[0.0], np.cumsum(np.round(gaps / gaps[gaps < 1.5 * gaps.min()].mean()))])
    position = (values - values[0]) / (values[-1] - values[0]) * steps[-1]
    if (np.abs(position - steps) < ROUNDING).all() and steps[-1] <= _LONGEST_GRID:
        grid: Array = np.linspace(values[0], values[-1], int(steps[-1]) + 1)
        grid[steps.astype(np.int64)] = values  # these to the last digit
        return grid
    # A heap, at 0 say, and values that occur once each are no few values: new rows have others.
    return values if len(values) <= _FEW_VALUES and (counts > 1).mean() > 0.5 else np.empty(0)


def _last_digit(column: Array) -> float:
    """Return how far off numbers may be, of their size: float32 keeps about seven digits."""
    with np.errstate(over="ignore", under="ignore"):
        single = bool((column.astype(np.float32) == column).all() and (column != np.round(column)).any())
    return 1e-6 if single else 1e-12


def decimals_of(column: Array) -> int | None:
    """Return how many decimals a column's numbers, without NaN, were written with; None if they keep all their digits.

    >>> import numpy as np
    >>> from energyppl.data.grids import decimals_of
    >>> decimals_of(np.array([1.25, 3.5, -2.0])), decimals_of(np.array([1 / 3]))
    (2, None)
    """
    tolerance = _last_digit(column) * np.abs(column)
    for decimals in range(_MOST_DECIMALS):
        unit = 10.0**-decimals
        if (tolerance > 0.01 * unit).any():
            return None
        if (np.abs(np.round(column, decimals) - column) <= tolerance).all():
            return decimals
    return None


def gap_of(grid: Array) -> float:
    """Return the gap of a lattice, over all of its length; the smallest one of other values, and 0 of none.

    The values of a lattice are those that occur, in float32 off by some of its last digits: a single gap is less exact
    than their mean, by a whole step after some thousands.
    """
    if len(grid) < 2:
        return 0.0
    gaps = np.diff(grid)
    even = gaps.max() < 1.1 * gaps.min()
    return float(gaps.mean() if even else gaps.min())


def whole_steps(column: Array) -> float:
    """Return the steps that whole numbers are in, of which most may occur once: their differences' greatest divisor.

    >>> import numpy as np
    >>> from energyppl.data.grids import whole_steps
    >>> whole_steps(100.0 * np.arange(3, 40) ** 2)
    100.0
    """
    off = column - column.min()
    if len(column) < _FEWEST_DIVIDED or off.max() >= 2.0**53:
        return 1.0
    return float(max(1, np.gcd.reduce(np.rint(off).astype(np.int64))))


def smallest_gaps(grids: Sequence[Array]) -> tuple[float, ...]:
    """Return the smallest gap between the values of each discrete column, 0 for a continuous one."""
    return tuple(map(gap_of, grids))


@checked
def requantize(values: Array, grids: tuple[Array, ...]) -> Array:
    """Round the discrete columns of ``values``, ``(n, d)``, to the nearest value of their grids; leave the rest.

    Example:
        >>> ages = ep.data.table_from_array((torch.arange(20) % 4).numpy())
        >>> float(ep.data.requantize(torch.tensor([[2.2]]).double().numpy(), ages.grids)[0, 0])
        2.0
    """
    rounded: Array = values.copy()
    for j, grid in enumerate(grids):
        if len(grid):
            middles = 0.5 * (grid[1:] + grid[:-1])
            rounded[:, j] = grid[np.searchsorted(middles, values[:, j])]
    return rounded

"""Checks for columns that others determine, so that all rows lie on a plane, and for codes that stand for gaps."""

import numpy as np
from numpy.typing import NDArray

from energyppl._numerals import plain
from energyppl.data.tables import Table
from energyppl.data.written import outlying_codes
from energyppl.errors import InvalidInput, warn_user

__all__ = ["require_different_columns", "require_no_sums", "warn_of_codes"]

Array = NDArray[np.float64]

_SAME = 1e-12  # a correlation this close to ±1 is one
_FARTHEST = 10.0  # in widths of a column: rows beyond count as at it in correlations
_DEPENDENT = 1e-6  # of the largest singular value: float32 keeps about seven digits
_INVOLVED = 1e-3  # of a column's weight in a sum


def require_different_columns(table: Table) -> None:
    """Require that no column is another one, up to units: all rows would lie on a plane and have no density.

    Discrete columns are spread out by noise of their own before they are learned, so only exact copies count.

    Raises:
        InvalidInput: for such columns, all of them by name.
    """
    values = np.where(table.missing, np.nanmedian(table.values, 0), table.values)
    rows = values / np.abs(values).max(0)
    # Counted in a column's own width: else a row that many columns share, as of a sentinel of 1e12, is all that counts.
    correlation = np.atleast_2d(np.corrcoef(_in_widths(rows).clip(-_FARTHEST, _FARTHEST).T))
    found: dict[str, str] = {}
    for i, j in np.argwhere(np.triu(np.abs(correlation) > 1.0 - _SAME, 1)):
        one, other = table.columns[i], table.columns[j]
        if np.array_equal(table.values[:, i], table.values[:, j], equal_nan=True):
            found.setdefault(other, f"{other!r} is a copy of {one!r}")
        elif not table.discrete[i] or not table.discrete[j]:
            found.setdefault(other, f"{other!r} is {one!r} in other units (correlation {correlation[i, j]:+.0f})")
    if found:
        said, drop = ", ".join(found.values()), list(found)
        raise InvalidInput(
            f"{table.source} must not have a column twice; {said}: drop={drop} (--drop {','.join(drop)}) leaves "
            f"{'it' if len(drop) == 1 else 'them'} out"
        )


def require_no_sums(table: Table) -> None:
    """Require that no continuous column is a weighted sum of others, as of shares that sum to one.

    Only complete rows that are not far out in any column are looked at.

    Raises:
        InvalidInput: for such columns, by name.
    """
    names = [name for name, gap in zip(table.columns, table.discrete, strict=True) if not gap]
    values = table.values[:, [not gap for gap in table.discrete]]
    values = values[~np.isnan(values).any(1)]
    if len(names) < 2 or len(values) <= 2 * len(names):
        return
    off = _in_widths(values / np.maximum(np.abs(values).max(0), 1e-300))
    off = off[(np.abs(off) < _FARTHEST).all(1)]
    if len(off) <= 2 * len(names):
        return
    off -= off.mean(0)
    spread = off.std(0)
    if not (spread > 0.0).all():
        return
    _, sizes, vectors = np.linalg.svd(off / spread, full_matrices=False)
    if sizes[-1] < _DEPENDENT * sizes[0]:
        involved = [repr(name) for name, weight in zip(names, vectors[-1], strict=True) if abs(weight) > _INVOLVED]
        raise InvalidInput(
            f"{table.source} must have no column that is a sum of others, which no density has; {', '.join(involved)} "
            "determine each other: drop one of them"
        )


def _in_widths(rows: Array) -> Array:
    """Return columns about their medians, in units of how far their rows are off it."""
    off = rows - np.median(rows, 0)
    width = [np.median(np.abs(column[column != 0.0])) for column in off.T]
    found: Array = off / width
    return found


def warn_of_codes(table: Table) -> None:
    """Warn of values that look like codes of missing cells."""
    numbers = [(n, x) for n, x, own in zip(table.columns, table.values.T, table.labels, strict=True) if not own]
    said = [f"{n!r} is {plain(v)} in {k} row(s)" for n, x in numbers for v, k in outlying_codes(x).items()]
    if said:
        warn_user(
            f"far from all other values, {', '.join(said)}: where that marks a missing cell, leave the cell empty "
            "(missing='impute', --missing impute, learns from the rest of such rows), or it is learned as a number"
        )

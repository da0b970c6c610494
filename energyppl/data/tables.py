"""Tables of numbers from files and arrays, and the dequantization of their discrete columns."""

import csv
import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from energyppl._checks import as_path
from energyppl.data.arrays import member_shapes, read_member, read_npy, refused
from energyppl.errors import InvalidInput

__all__ = ["Table", "dequantize", "read_table", "requantize", "table_from_array"]

Array = NDArray[np.float64]

_FEWEST_ROWS = 10
_FEW_VALUES = 20  # up to so many distinct values, most of them repeated, make a column discrete without a lattice
_LONGEST_GRID = 100_000
_ROUNDING = 1e-14  # of the largest value: a column that varies no more is constant in float64
_SAME = 1e-12  # a correlation this close to ±1 is one
_FARTHEST = 10.0  # in widths of a column: rows beyond count as at it in correlations
_MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "inf", "-inf", "+inf", "infinity"}


@dataclass(frozen=True, eq=False)
class Table:
    """A finite numeric table whose columns vary and have names of their own.

    Attributes:
        values: ``(n, d)``, at least 10 rows.
        columns: d different names.
        grids: for each discrete column the values it can take, in order, ``(k,)``; ``(0,)`` for a continuous one.
        source: where it came from, in words.
    """

    values: Array
    columns: tuple[str, ...]
    grids: tuple[Array, ...]
    source: str

    @property
    def discrete(self) -> tuple[float, ...]:
        """The smallest gap between a column's values if it is discrete, else 0, for each column."""
        return smallest_gaps(self.grids)

    def spikes(self) -> dict[str, float]:
        """Find the columns in which one value holds too many rows for a smooth density, with its share.

        Too many is a twentieth of all rows, heaped at least ten times as high as the column's bell curve would be.
        """
        found = {}
        for name, column, gap in zip(self.columns, self.values.T, self.discrete, strict=True):
            count = int(np.unique(column, return_counts=True)[1].max())
            share = count / len(column)
            if count > 2 and share > 0.05 and share * float(column.std()) > 4.0 * gap:
                found[name] = share
        return found


def smallest_gaps(grids: Sequence[Array]) -> tuple[float, ...]:
    """Return the smallest gap between the values of each discrete column, 0 for a continuous one."""
    return tuple(float(np.diff(grid).min()) if len(grid) else 0.0 for grid in grids)


def read_table(path: str | os.PathLike[str], *, array: str | None = None) -> Table:
    r"""Read a numeric table from ``.npy``, ``.npz`` or ``.csv``; integers become floats, nothing is ever unpickled.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "rooms.csv"
    >>> _ = file.write_text("income,rooms\n" + "".join(f"{1.7 * i},{i % 3}\n" for i in range(12)))
    >>> table = ep.data.read_table(file)
    >>> table.columns, table.values.shape, table.discrete
    (('income', 'rooms'), (12, 2), (0.0, 1.0))

    Args:
        path: a 2-D array (a 1-D one is one column), an archive of arrays, or text with commas, semicolons or tabs and
            an optional line of names.
        array: which array of an archive that holds several.

    Raises:
        InvalidInput: if there is no such file, it is of another kind, damaged or pickled, not numeric, has missing or
            infinite values, constant columns or names that occur twice (each is named), or fewer than 10 rows.
    """
    path = as_path(path)
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}: pass a .npy, .npz or .csv file")
    kind = path.suffix.lower()
    if kind not in (".npy", ".npz", ".csv"):
        raise InvalidInput(
            f"{path} must end in .npy, .npz or .csv; got {path.suffix or 'no ending'!r}: convert it first"
        )
    if array is not None and kind != ".npz":
        raise InvalidInput(f"only an .npz archive has named arrays; {path} is one table: leave the name {array!r} out")
    with refused(path, "a table of numbers", "write it again with numpy.save, numpy.savez or as text"):
        if kind == ".csv":
            values, columns = _read_csv(path)
            return table_from_array(values, columns, source=str(path))
        if kind == ".npy":
            return table_from_array(read_npy(path), source=str(path))
        with zipfile.ZipFile(path) as archive:
            name = _choose(member_shapes(archive), path, array)
            return table_from_array(read_member(archive, name), source=f"{path}, array {name}")


def table_from_array(values: ArrayLike, columns: Sequence[str] | None = None, *, source: str = "an array") -> Table:
    """Make a checked table from an array ``(n, d)`` or ``(n,)``.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> values = np.stack([rng.normal(size=50), rng.integers(4, size=50)], 1)
    >>> table = ep.data.table_from_array(values, ("height", "children"))
    >>> table.discrete  # children come in whole numbers
    (0.0, 1.0)

    Args:
        values: real numbers.
        columns: d different names; ``c0``, ``c1``, … if None.
        source: where they came from, in words, for messages.

    Raises:
        InvalidInput: if it is not numeric, not finite, too short, or if a column is constant or a name occurs twice.
    """
    raw = np.asarray(values)
    if raw.dtype.kind not in "biuf":
        raise InvalidInput(
            f"{source} must hold real numbers; got dtype {raw.dtype}: convert or drop what is not a number"
        )
    if raw.ndim == 1:
        raw = raw[:, None]
    if raw.ndim != 2:
        raise InvalidInput(
            f"{source} must be a table, rows by columns; got shape {raw.shape}: reshape it to two dimensions"
        )
    if len(raw) < _FEWEST_ROWS or not raw.shape[1]:
        raise InvalidInput(f"{source} must have at least {_FEWEST_ROWS} rows and a column; got shape {raw.shape}")
    table, names = raw.astype(np.float64), _checked_names(columns, raw.shape[1], source)
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        raise InvalidInput(
            f"{source} must have no missing or infinite values; got {len(bad)}, the first in row {row} of column "
            f"{names[column]!r}: drop or impute those rows"
        )
    # Relative to each column's own size: columns in units of 1e-7 vary as well as any.
    constant = [
        repr(name)
        for name, column in zip(names, table.T, strict=True)
        if column.max() / 2 - column.min() / 2 <= _ROUNDING * np.abs(column).max() / 2
    ]
    if constant:
        raise InvalidInput(f"{source} must vary in every column; constant: {', '.join(constant)}: drop them")
    return Table(table, names, tuple(_grid(column) for column in table.T), source)


def require_different_columns(table: Table) -> None:
    """Require that no column is another one, up to units: all rows would lie on a plane and have no density.

    Discrete columns are spread out by noise of their own before they are learned, so only exact copies count.

    Raises:
        InvalidInput: for two such columns, by name.
    """
    rows = table.values / np.abs(table.values).max(0)
    # Counted in a column's own width: else a row that many columns share, as of a sentinel of 1e12, is all that counts.
    off = rows - np.median(rows, 0)
    width = [np.median(np.abs(column[column != 0.0])) for column in off.T]
    correlation = np.atleast_2d(np.corrcoef((off / width).clip(-_FARTHEST, _FARTHEST).T))
    for i, j in np.argwhere(np.triu(np.abs(correlation) > 1.0 - _SAME, 1)):
        one, other = table.columns[i], table.columns[j]
        if np.array_equal(table.values[:, i], table.values[:, j]):
            raise InvalidInput(f"{table.source} must not have a column twice; {other!r} is a copy of {one!r}: drop it")
        if not table.discrete[i] or not table.discrete[j]:
            raise InvalidInput(
                f"{table.source} must not have a column twice; {other!r} is {one!r} in other units (correlation "
                f"{correlation[i, j]:+.0f}): drop one"
            )


def _checked_names(columns: Sequence[str] | None, count: int, source: str) -> tuple[str, ...]:
    """Return column names, all different, one for each column."""
    names = tuple(f"c{i}" for i in range(count)) if columns is None else tuple(columns)
    if len(names) != count:
        raise InvalidInput(f"{source} must have a name for each of its {count} columns; got {len(names)}")
    twice = [repr(name) for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InvalidInput(
            f"{source} must have different column names; more than once: {', '.join(twice)}: rename them"
        )
    return names


def dequantize(table: Table, generator: torch.Generator) -> Table:
    """Spread each discrete column over its gaps, by uniform noise as wide as the smallest gap, centred on the value.

    Draw it once, with a generator of a fixed seed, so that a continued run sees the same data.  The grids are kept.

    Args:
        table: as read.
        generator: source of the noise, on the CPU.

    Example:
        >>> ages = ep.data.table_from_array((torch.arange(20) % 4).numpy())
        >>> spread = ep.data.dequantize(ages, torch.Generator().manual_seed(0)).values
        >>> bool((abs(spread - ages.values) <= 0.5).all())
        True
    """
    noise = torch.rand(*table.values.shape, dtype=torch.float64, generator=generator).numpy() - 0.5
    return replace(table, values=table.values + noise * np.array(table.discrete))


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


def _grid(column: Array) -> Array:
    """Return the values that a discrete column can take, ``(k,)``; ``(0,)`` if it is continuous.

    Discrete means that more than half of the rows share their value with another row, and that the values sit on a
    lattice, every gap a multiple of the smallest one (then the column can take all of the lattice between its ends), or
    are few (then only those that occur).
    """
    values, counts = np.unique(column, return_counts=True)
    # Numbers that were computed differ in their last digits: float32 keeps about seven.  Of the size of most rows, or
    # one sentinel of 1e12 would make all others one value.
    size = np.maximum(np.abs(values), np.quantile(np.abs(column), 0.95))
    with np.errstate(over="ignore", under="ignore"):
        single = bool((column.astype(np.float32) == column).all() and (column != np.round(column)).any())
    new = np.diff(values, prepend=-np.inf) > (1e-6 if single else 1e-12) * size
    counts = np.add.reduceat(counts, np.flatnonzero(new))
    values = values[new]
    if len(values) < 2 or counts[counts > 1].sum() <= 0.5 * len(column):
        return np.empty(0)
    gap = np.diff(values).min()
    multiples = np.round((values[-1] - values[0]) / gap)
    position = (values - values[0]) / (values[-1] - values[0]) * multiples
    steps = np.round(position)
    if (np.abs(position - steps) < 0.02).all() and multiples <= _LONGEST_GRID:
        grid: Array = np.linspace(values[0], values[-1], int(multiples) + 1)
        grid[steps.astype(np.int64)] = values  # these to the last digit
        return grid
    return values if len(values) <= _FEW_VALUES else np.empty(0)


def _choose(shapes: dict[str, tuple[int, ...]], path: Path, array: str | None) -> str:
    """Return the name of the array to read."""
    listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
    if array is not None and array not in shapes:
        raise InvalidInput(f"{path} has no array {array!r}; its arrays: {listing}")
    if array is None and len(shapes) != 1:
        raise InvalidInput(f"{path} must hold one array, or be told which (--array NAME); its arrays: {listing}")
    return next(iter(shapes)) if array is None else array


def _read_csv(path: Path) -> tuple[Array, tuple[str, ...]]:
    text = path.read_text(encoding="utf-8-sig")
    first = text.split("\n", 1)[0]
    delimiter = next((mark for mark in ";\t" if mark in first), ",")
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    rows = [(reader.line_num, [field.strip() for field in row]) for row in reader if any(f.strip() for f in row)]
    if not rows:
        raise InvalidInput(f"{path} is empty: pass a table with at least {_FEWEST_ROWS} rows")
    # The first line holds names if it has a word where the second has a number.
    head = rows[0][1]
    second = rows[1][1] if len(rows) > 1 else ["0"] * len(head)
    named = any(_is_word(a) and _is_number(b.replace(",", ".")) for a, b in zip(head, second, strict=False))
    columns = (
        tuple(name or f"c{i}" for i, name in enumerate(head)) if named else tuple(f"c{i}" for i in range(len(head)))
    )
    values = np.empty((len(rows) - named, len(columns)))
    for i, (line, row) in enumerate(rows[named:]):
        if len(row) != len(columns):
            raise InvalidInput(
                f"{path} must have {len(columns)} fields in each line; line {line} has {len(row)}: mend it"
            )
        for j, field in enumerate(row):
            if field.lower() in _MISSING:
                raise InvalidInput(
                    f"{path} must have no missing or infinite values; got {field!r} in line {line}, column "
                    f"{columns[j]!r} (row {i}): drop or impute such rows"
                )
            if not _is_number(field):
                remedy = "encode it as numbers or drop the column"
                if _is_number(field.replace(",", ".")):
                    remedy = "write a decimal point, and nothing between thousands"
                raise InvalidInput(
                    f"{path} must be numeric; column {columns[j]!r} holds {field!r} in line {line}: {remedy}"
                )
            values[i, j] = float(field)
    return values, columns


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _is_word(field: str) -> bool:
    return not _is_number(field) and field.lower() not in _MISSING

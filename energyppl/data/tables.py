"""Tables: rows of numbers and categories from files, frames and arrays, checked once."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from energyppl._checks import as_path, checked
from energyppl.data.frames import (
    Column,
    Label,
    columns_of_frame,
    frame_of_array,
    frame_of_columns,
    frame_of_rows,
    select_columns,
)
from energyppl.data.grids import find_grid, smallest_gaps
from energyppl.data.reading import line_of_row, read_frame
from energyppl.errors import InvalidInput, warn_user

__all__ = ["Table", "dequantize", "read_table", "table_from_array", "table_from_frame", "table_from_rows"]

Array = NDArray[np.float64]

_FEWEST_ROWS = 10
_ROUNDING = 1e-14  # of the largest value: a column that varies no more is constant in float64


@dataclass(frozen=True, eq=False)
class Table:
    """A table whose columns vary and have names of their own; categories are numbered.

    Attributes:
        values: ``(n, d)``; of a category its place in ``labels``; NaN where a cell is missing, if that was allowed.
        columns: d different names.
        grids: for each discrete column the values it can take, in order, ``(k,)``; ``(0,)`` for a continuous one.
        source: where it came from, in words.
        labels: the categories of each column, none of a column of numbers.
        dtypes: as pandas calls those that the columns had.

    Example:
        >>> import pandas as pd
        >>> pets = pd.DataFrame({"age": [3, 1, 2, 3, 5, 4] * 2, "kind": ["cat", "dog"] * 6})
        >>> table = ep.data.table_from_frame(pets)
        >>> table.columns, table.values.shape, table.labels[1]
        (('age', 'kind'), (12, 2), ('cat', 'dog'))
    """

    values: Array
    columns: tuple[str, ...]
    grids: tuple[Array, ...]
    source: str
    labels: tuple[tuple[Label, ...], ...] = ()
    dtypes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        width = len(self.columns)
        object.__setattr__(self, "labels", self.labels or ((),) * width)
        object.__setattr__(self, "dtypes", self.dtypes or ("float64",) * width)

    @property
    def discrete(self) -> tuple[float, ...]:
        """The smallest gap between a column's values if it is discrete, else 0, for each column."""
        return smallest_gaps(self.grids)

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Mask of missing cells, ``(n, d)``."""
        return np.isnan(self.values)

    def names_of_values(self) -> list[tuple[Label, ...]]:
        """Return the names of each column's categories, of a column of booleans too; none of a column of numbers.

        Example:
            >>> import pandas as pd
            >>> pets = pd.DataFrame({"tame": [True, False, True] * 4, "kind": ["cat", "dog"] * 6})
            >>> ep.data.table_from_frame(pets).names_of_values()
            [(False, True), ('cat', 'dog')]
        """
        parts = zip(self.labels, self.dtypes, strict=True)
        return [(False, True) if not labels and dtype in ("bool", "boolean") else labels for labels, dtype in parts]

    def spikes(self) -> dict[str, float]:
        """Find the columns in which one value holds too many rows for a smooth density, with its share.

        Too many is a twentieth of all rows, heaped at least ten times as high as the column's bell curve would be.
        """
        found = {}
        for name, column, gap in zip(self.columns, self.values.T, self.discrete, strict=True):
            column = column[~np.isnan(column)]
            count = int(np.unique(column, return_counts=True)[1].max())
            share = count / len(column)
            if count > 2 and share > 0.05 and share * float(column.std()) > 4.0 * gap:
                found[name] = share
        return found

    def frame(self, values: Array | None = None) -> pd.DataFrame:
        """Return the rows, or others of this table's kind, as a frame with its names, categories and dtypes.

        Example:
            >>> import pandas as pd
            >>> pets = pd.DataFrame({"age": [3, 1, 2, 3, 5, 4] * 2, "kind": ["cat", "dog"] * 6})
            >>> ep.data.table_from_frame(pets).frame().equals(pets)
            True
        """
        return frame_of_columns(self.values if values is None else values, self.columns, self.labels, self.dtypes)


def read_table(
    path: str | os.PathLike[str],
    *,
    array: str | None = None,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    missing: str | None = None,
    decimal: str = ".",
    like: Table | None = None,
) -> Table:
    r"""Read a table from text, ``.npy``, ``.npz``, ``.parquet`` or ``.xlsx``; nothing is ever unpickled.

    A first column without a name, or one that counts the rows, is left out with a warning: it is an index.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "rooms.csv"
    >>> _ = file.write_text("income,rooms\n" + "".join(f"{1.7 * i},{i % 3}\n" for i in range(12)))
    >>> table = ep.data.read_table(file)
    >>> table.columns, table.values.shape, table.discrete
    (('income', 'rooms'), (12, 2), (0.0, 1.0))

    Args:
        path: as :func:`read_frame` takes it.
        array: which array of an archive that holds several.
        columns: to take, in this order; all if None.
        drop: columns to leave out.
        missing: what becomes of rows with missing or infinite cells: ``"drop"`` leaves them out, ``"impute"`` keeps
            them as NaN, None refuses them.
        decimal: the mark of decimals in text.
        like: a table whose columns and categories this one is to have.

    Raises:
        InvalidInput: as :func:`read_frame`, and for what :func:`table_from_frame` refuses.
    """
    path = as_path(path)
    wanted = list(columns) if columns is not None else None
    frame = read_frame(path, array=array, decimal=decimal, columns=wanted)
    return _table(frame, str(path), columns, drop, missing, like, partial(line_of_row, path))


@checked
def table_from_rows(
    rows: "Table | pd.DataFrame | ArrayLike | Mapping[str, Sequence[Any]] | str | os.PathLike[str]",
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    missing: str | None = None,
    like: Table | None = None,
) -> Table:
    """Make a checked table from rows in any form: a file, a frame, an array, a list of rows.

    >>> ep.data.table_from_rows([[0.1 * i, "ab"[i % 2]] for i in range(20)]).labels
    ((), ('a', 'b'))

    Args:
        rows: the path of a file that :func:`read_table` reads; a table; a frame of pandas, or of another library that
            makes such; an array or tensor ``(n, d)``; a list of rows; a dictionary of columns.
        columns: to take, in this order; all if None.
        drop: columns to leave out.
        missing: as in :func:`read_table`.
        like: a table whose columns and categories this one is to have.

    Raises:
        InvalidInput: as :func:`read_table`, and for anything else.
    """
    if isinstance(rows, (str, os.PathLike)):
        return read_table(rows, columns=columns, drop=drop, missing=missing, like=like)
    source = rows.source if isinstance(rows, Table) else "the table"
    if isinstance(rows, Table):
        if columns is None and not drop and like is None and (missing is None or not rows.missing.any()):
            return rows
        # What a table holds was chosen once: its first column is no index, whatever it looks like.
        rows, columns = rows.frame(), rows.columns if columns is None and like is None else columns
    return table_from_frame(frame_of_rows(rows), columns=columns, drop=drop, missing=missing, like=like, source=source)


def table_from_frame(
    frame: pd.DataFrame,
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    missing: str | None = None,
    like: Table | None = None,
    source: str = "the frame",
) -> Table:
    """Make a checked table from a pandas frame; its index is left out.

    Args:
        frame: numbers, booleans, categories and texts of few different values.
        columns: to take, in this order; all if None.
        drop: columns to leave out.
        missing: as in :func:`read_table`.
        like: a table whose columns and categories this one is to have; then columns may be constant and rows few.
        source: where it came from, in words, for messages.

    Raises:
        InvalidInput: for fewer than 10 rows, and for columns that can't be learned, all of them named with what to do:
            dates, texts of many different values, constants, missing cells.

    Example:
        >>> import pandas as pd
        >>> pets = pd.DataFrame({"age": [3, 1, 2, 3, 5, 4] * 2, "kind": ["cat", "dog"] * 6})
        >>> ep.data.table_from_frame(pets).labels
        ((), ('cat', 'dog'))
    """
    if not isinstance(frame, pd.DataFrame):
        raise InvalidInput(f"frame must be a pandas DataFrame; got {type(frame).__name__}: use table_from_rows")
    names = list(map(str, frame.columns))
    _checked_names(names, len(names), source)
    return _table(frame, source, columns, drop, missing, like, _nowhere)


def _nowhere(row: int) -> None:
    """Tell the line of a row that is in no file."""


@checked
def _table(
    frame: pd.DataFrame,
    source: str,
    columns: Sequence[str] | None,
    drop: Sequence[str],
    missing: str | None,
    like: Table | None,
    line: Callable[[int], tuple[int, list[str]] | None],
    *,
    advise: bool = True,
) -> Table:
    """Select a frame's columns, make numbers of them, and say of all together which can't be learned.

    Advice names ``columns``, ``drop`` and ``missing`` where the caller has them.
    """
    if missing not in (None, "drop", "impute"):
        raise InvalidInput(f"missing must be 'drop', 'impute' or None; got {missing!r}")
    fewest = _FEWEST_ROWS if like is None else 1
    if len(frame) < fewest or not frame.shape[1]:
        rows = "1 row" if fewest == 1 else f"{fewest} rows"
        raise InvalidInput(f"{source} must have at least {rows} and a column; got shape {frame.shape}")
    if like is None:
        frame = select_columns(frame, columns, drop, source)
    elif columns is None and not drop:
        frame = _in_order(frame, like, source)
    else:
        raise InvalidInput("the columns are those of the table like=…: leave columns and drop out")
    labels = None if like is None else dict(zip(like.columns, like.labels, strict=True))
    found, problems, useless = columns_of_frame(frame, source, line_of_row=line, labels=labels)
    found = [replace(column, values=np.where(np.isinf(column.values), np.nan, column.values)) for column in found]
    gaps = np.any([np.isnan(column.values) for column in found], axis=0) if found else np.zeros(len(frame), bool)
    if gaps.any() and missing is None:
        problems.append(f"{_missing_cells(found, gaps, line)} ({_about_gaps(like is None and advise)})")
    if missing == "drop" and gaps.any():
        kept = ~gaps
        found = [replace(column, values=column.values[kept]) for column in found]
        warn_user(f"{int(gaps.sum())} of {len(gaps)} rows of {source} have missing cells and are left out")
        if kept.sum() < fewest:
            raise InvalidInput(f"{source} must have {fewest} rows without missing cells; got {int(kept.sum())}")
    constant = [] if like is not None else [c.name for c in found if _is_constant(c.values)]
    if constant:
        named = ", ".join(map(repr, constant))
        varies = any(len(np.unique(c.values[~np.isnan(c.values)])) > 1 for c in found if c.name in constant)
        offset = " (to the digits that a number has; subtract an offset first if they do vary)" if varies else ""
        problems.append(f"constant: {named}{offset} (drop {'it' if len(constant) == 1 else 'them'})")
    if problems:
        drop = [*useless, *constant]
        remedy = f". drop={drop} (--drop {','.join(drop)}) leaves these columns out"
        advised = bool(drop) and like is None and advise
        raise InvalidInput(f"{source} can't be taken as it is: {'; '.join(problems)}{remedy if advised else ''}")
    names, values = tuple(c.name for c in found), np.stack([c.values for c in found], 1)
    grids = tuple(_grid_of(c) for c in found) if like is None else like.grids
    own = (tuple(c.labels for c in found), tuple(c.dtype for c in found))
    return Table(values, names, grids, source, *(own if like is None else (like.labels, like.dtypes)))


def _in_order(frame: pd.DataFrame, like: Table, source: str) -> pd.DataFrame:
    """Return a frame's columns in another table's order: by name, or by place where either has no names."""
    names, wanted = [str(name) for name in frame.columns], list(like.columns)
    if set(wanted) <= set(names):
        return frame.set_axis(names, axis=1)[wanted]
    if len(names) != len(wanted):
        raise InvalidInput(
            f"{source} must have the {len(wanted)} columns of the model, {', '.join(wanted)}; got {len(names)}: "
            f"{', '.join(names)}"
        )
    numbered = [f"c{i}" for i in range(len(names))]
    if numbered not in (names, wanted):
        raise InvalidInput(f"{source} must have the columns {', '.join(wanted)}; got {', '.join(names)}")
    return frame.set_axis(wanted, axis=1)


def _missing_cells(
    columns: Sequence[Column], gaps: NDArray[np.bool_], line: Callable[[int], tuple[int, list[str]] | None]
) -> str:
    """Say how many cells are missing in which columns, and where the first is."""
    parts = []
    for column in columns:
        rows = np.flatnonzero(np.isnan(column.values))
        if len(rows):
            where = line(int(rows[0]))
            place = f"row {rows[0]}" + ("" if where is None else f", line {where[0]}")
            parts.append(f"{column.name!r} ({len(rows)}, the first in {place})")
    return f"missing or infinite cells in {int(gaps.sum())} of {len(gaps)} rows: {', '.join(parts)}"


def _about_gaps(choosable: bool) -> str:
    """Say what can be done about missing cells, where ``missing`` can be chosen and where it can't."""
    if choosable:
        return (
            "missing='drop', --missing drop, leaves those rows out; fit can train a density of whole rows on them too, "
            "missing='impute', --missing impute"
        )
    return "leave those rows out, or impute them first"


def _is_constant(column: Array) -> bool:
    """Tell whether a column varies no more than its own rounding: columns in units of 1e-7 vary as well as any."""
    present = column[~np.isnan(column)]
    if not len(present):
        return True
    return bool(present.max() / 2 - present.min() / 2 <= _ROUNDING * np.abs(present).max() / 2)


def _grid_of(column: Column) -> Array:
    if column.labels:
        return np.arange(float(len(column.labels)))
    return find_grid(column.values[~np.isnan(column.values)])


@checked
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
    frame = frame_of_array(np.asarray(values), source)
    names = _checked_names(columns, frame.shape[1], source)
    return _table(frame.set_axis(list(names), axis=1), source, names, (), None, None, _nowhere, advise=False)


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


@checked
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

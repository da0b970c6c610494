"""Data frames as tables: which columns can be learned, as what, and what to do about those that can't."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from energyppl._checks import numpy_of, without_mask
from energyppl.data.written import is_grouped, number_of, unit_of, without_spaces
from energyppl.errors import InvalidInput, first_line, warn_user

__all__ = ["Column", "columns_of_frame", "frame_of_array", "frame_of_columns", "frame_of_rows", "select_columns"]

Array = NDArray[np.float64]
Label = str | float | int | bool

_MAX_LABELS = 50
_ORDERED = "ordered category"  # what a table calls the dtype of pandas' ordered categories
_DATES = re.compile(
    r"\s*(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})?([T ]?\d{1,2}:\d{2}.*)?\s*$"
)
_FEW_LABELS = 10  # up to so many, texts that begin with a number may be categories


@dataclass(frozen=True, eq=False)
class Column:
    """A table's column as numbers, and what leads back to what it held.

    Attributes:
        name: of the column.
        values: ``(n,)``; NaN where a cell is missing, a category's place in ``labels``.
        labels: the categories, empty for numbers.
        dtype: as pandas calls it.
    """

    name: str
    values: Array
    labels: tuple[Label, ...]
    dtype: str


def frame_of_array(values: Any, source: str) -> pd.DataFrame:
    """Return an array of numbers, ``(n, d)`` or ``(n,)``, as a frame whose columns are numbered, c0 and so on.

    Raises:
        InvalidInput: for another shape, or other things than numbers.
    """
    values = without_mask(values[:, None] if values.ndim == 1 else values)
    if values.dtype.kind not in "biuf":
        raise InvalidInput(
            f"{source} must hold real numbers; got dtype {values.dtype}: convert or drop what is not a number"
        )
    if values.ndim != 2:
        raise InvalidInput(
            f"{source} must be a table, rows by columns; got shape {values.shape}: reshape it to two dimensions"
        )
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return _numbered(pd.DataFrame(values))


def frame_of_rows(rows: Any) -> pd.DataFrame:
    """Return rows, in whichever form people hold them in memory, as a frame.

    Args:
        rows: a frame of pandas, or of a library whose frames have ``to_pandas``; an array or a tensor ``(n, d)`` of
            numbers; an array of objects, a list of rows, or a dictionary of columns.

    Raises:
        InvalidInput: for anything else.
    """
    if isinstance(rows, pd.DataFrame):
        return rows
    if isinstance(rows, torch.Tensor):
        rows = numpy_of("rows", rows)
    if hasattr(rows, "to_pandas"):
        return pd.DataFrame(rows.to_pandas())
    if isinstance(rows, np.ndarray) and rows.dtype.kind not in "OV":
        return frame_of_array(rows, "the array")
    if not isinstance(rows, (list, tuple, Mapping, np.ndarray)):
        raise InvalidInput(
            f"rows must be a frame, an array, a list of rows or the path of a file; got {type(rows).__name__}: pass one"
        )
    try:
        frame = pd.DataFrame(rows)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"rows can't be made a table ({first_line(error)}): pass equally long rows") from error
    return _numbered(frame) if isinstance(frame.columns, pd.RangeIndex) else frame


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Name columns c0 and so on, and remember that they had no names."""
    frame.columns = pd.Index([f"c{i}" for i in range(frame.shape[1])])
    frame.attrs["unnamed"] = True
    return frame


def select_columns(
    frame: pd.DataFrame, columns: Sequence[str] | None, drop: Sequence[str], source: str
) -> pd.DataFrame:
    """Return the columns that are asked for; without a choice, all but an index that came along, with a warning.

    Raises:
        InvalidInput: for names that the frame has not.
    """
    names = [str(name) for name in frame.columns]
    missing = [name for name in (*(columns or ()), *drop) if name not in names]
    if missing:
        raise InvalidInput(f"there is no column {', '.join(map(repr, missing))}; the columns: {', '.join(names)}")
    attributes, frame = frame.attrs, frame.set_axis(names, axis=1)
    if columns is None and names and names[0] not in drop and len(names) - len(set(drop)) > 1:
        why = _is_index(frame.iloc[:, 0], attributes)
        if why:
            warn_user(
                f"the first column of {source}, {names[0]!r}, is left out: {why}; name it in columns= (--columns) to "
                "keep it"
            )
            drop = (*drop, names[0])
    kept = [name for name in (names if columns is None else columns) if name not in drop]
    if not kept:
        raise InvalidInput("at least one column must be left; got none: drop fewer")
    return frame[list(dict.fromkeys(kept))]


def _is_index(column: "pd.Series[Any]", attributes: Mapping[Any, Any]) -> str:
    """Say why a first column is an index and no measurement; nothing if it may be one."""
    if attributes.get("nameless_first"):
        return "it has no name, as an index that was written along"
    if attributes.get("unnamed") or not pd.api.types.is_integer_dtype(column.dtype) or column.isna().any():
        return ""
    steps = np.diff(column.to_numpy(np.int64))
    return "it counts the rows one by one" if len(steps) > 1 and bool((steps == 1).all()) else ""


def columns_of_frame(
    frame: pd.DataFrame,
    source: str,
    *,
    line_of_row: Callable[[int], tuple[int, list[str]] | None] = lambda row: None,
    labels: Mapping[str, tuple[Label, ...]] | None = None,
) -> tuple[list[Column], list[str], list[str]]:
    """Turn a frame into columns of numbers, and list those that can't be.

    Args:
        frame: columns of any dtype.
        source: where it came from, in words.
        line_of_row: tells where a row stands in its file.
        labels: the categories of each column, as another table had them (none for numbers); found here if None.

    Returns:
        The columns that can be learned, a phrase for each that can't (what it holds and what to do), and the names of
        those that are of no use as they are.
    """
    found, problems, useless = [], [], []
    dates: list[str] = []
    commas: dict[str, str] = {}
    for name in map(str, frame.columns):
        column = frame[name]
        known = None if labels is None else labels.get(name, ())
        try:
            found.append(_column(name, column, line_of_row, known))
        except _Dates:
            dates.append(repr(name))
            useless.append(name)
        except _Commas as found_where:
            commas[repr(name)] = str(found_where)
        except ValueError as error:
            problems.append(str(error))
            useless.append(name)
    if commas:
        names, where = ", ".join(commas), next(iter(commas.values()))
        problems.insert(
            0,
            f"{names} hold{'s' if len(commas) == 1 else ''} numbers with commas, such as {where} (read the file with "
            "decimal=',' (--decimal ,) if they are decimal commas; else write nothing between thousands)",
        )
    if dates:
        hold = "holds" if len(dates) == 1 else "hold"
        days = "turn them into numbers, such as days: (t - t.min()) / pd.Timedelta(days=1)"
        problems.insert(0, f"{', '.join(dates)} {hold} dates or spans of time ({days})")
    return found, problems, useless


class _Dates(Exception):
    """Signal of a column of dates or times."""


class _Commas(Exception):
    """Signal of a column of numbers with commas: its first one, and where that is."""


def _column(
    name: str,
    column: "pd.Series[Any]",
    line_of_row: Callable[[int], tuple[int, list[str]] | None],
    known: tuple[Label, ...] | None,
) -> Column:
    kind, types = column.dtype, pd.api.types
    if known:
        return Column(name, _codes(name, column, known), known, "bool" if types.is_bool_dtype(kind) else "object")
    if types.is_bool_dtype(kind) or (types.is_numeric_dtype(kind) and not types.is_complex_dtype(kind)):
        return Column(name, column.to_numpy(np.float64, na_value=np.nan), (), str(kind))
    if types.is_datetime64_any_dtype(kind) or types.is_timedelta64_dtype(kind) or "period" in str(kind):
        raise _Dates
    if (
        known is None
        and isinstance(kind, pd.CategoricalDtype)
        and not types.is_datetime64_any_dtype(kind.categories.dtype)
    ):
        return _of_labels(name, column, [_plain(label) for label in kind.categories])
    return _of_cells(name, column, line_of_row, known)


def _of_cells(
    name: str,
    column: "pd.Series[Any]",
    line_of_row: Callable[[int], tuple[int, list[str]] | None],
    known: tuple[Label, ...] | None,
) -> Column:
    """Return a column of what its cells hold: true or false, numbers as text, or categories."""
    cells = [_plain(value) for value in column[column.notna()]]
    if not cells:
        raise ValueError(f"{name!r} is empty (drop it)")
    other = next((value for value in cells if not isinstance(value, (str, bool, int, float))), None)
    if other is not None:
        raise ValueError(
            f"{name!r} holds {type(other).__name__} objects, and a cell must be one number, text, date, true or false "
            "(convert or drop it)"
        )
    if all(isinstance(value, bool) for value in cells):
        values = np.full(len(column), np.nan)
        values[column.notna().to_numpy()] = cells
        return Column(name, values, (), "object")
    numbers = [number_of(value) for value in cells]
    share = float(np.mean([n is not None for n in numbers]))
    if share == 1.0:
        values = np.full(len(column), np.nan)
        values[column.notna().to_numpy()] = np.asarray(numbers, np.float64)
        return Column(name, values, (), "float64")
    texts = [str(value) for value in cells]
    with_comma = float(np.mean([number_of(text.replace(",", ".")) is not None or is_grouped(text) for text in texts]))
    units = unit_of(texts) if len(set(texts)) > _FEW_LABELS else ""
    if max(share, with_comma) > 0.5 or units:
        _refuse_words(name, column, texts, numbers, with_comma, units, line_of_row)
    if np.mean([bool(text.strip()) and _DATES.match(text) is not None for text in texts]) > 0.9:
        raise _Dates
    if known is not None:
        word = next(text for text, number in zip(texts, numbers, strict=True) if number is None)
        raise ValueError(
            f"{name!r} holds {word!r}, and must hold numbers (or True and False: what the model was fitted to)"
        )
    return _of_labels(name, column, sorted(set(cells), key=str))


def _refuse_words(
    name: str,
    column: "pd.Series[Any]",
    texts: Sequence[str],
    numbers: Sequence[float | None],
    with_comma: float,
    units: str,
    line_of_row: Callable[[int], tuple[int, list[str]] | None],
) -> None:
    """Name the first cell that is a word among numbers.

    Raises:
        _Commas: if only commas make cells words.
        ValueError: otherwise.
    """
    place = next(i for i, number in enumerate(numbers) if number is None)
    row = int(np.flatnonzero(column.notna().to_numpy())[place])
    line = line_of_row(row)
    where = f"row {row}" if line is None else f"line {line[0]}"
    if with_comma == 1.0:
        raise _Commas(f"{texts[place]!r} in {where}")
    if units:
        raise ValueError(
            f"{name!r} holds numbers with {units!r}, such as {texts[place]!r} in {where} (write the numbers alone)"
        )
    raise ValueError(f"{name!r} holds {texts[place]!r} in {where} among numbers (mend that cell, or drop the column)")


def _of_labels(name: str, column: "pd.Series[Any]", labels: list[Label]) -> Column:
    """Return a column of categories.

    Raises:
        ValueError: if they are too many to be learned.
    """
    kind = str(column.dtype)
    if isinstance(column.dtype, pd.CategoricalDtype):
        kind = _ORDERED if column.dtype.ordered else "category"
    known = column[column.notna()].map(_plain)
    present = set(known)
    labels = [label for label in labels if label in present]
    if len(labels) > _MAX_LABELS or 2 * len(labels) > len(known):
        raise ValueError(
            f"{name!r} holds {len(labels)} different texts in {len(known)} rows (drop it, or put rare ones together)"
        )
    return Column(name, _codes(name, column, tuple(labels)), tuple(labels), kind)


def _codes(name: str, column: "pd.Series[Any]", labels: tuple[Label, ...]) -> Array:
    """Return each cell's place in the labels, NaN for a missing one.

    Raises:
        ValueError: for a category that is not among them.
    """
    place = {label: float(i) for i, label in enumerate(labels)}
    place |= {str(label): float(i) for i, label in enumerate(labels)}
    cells = [None if value is pd.NA or value != value or value is None else _plain(value) for value in column]
    unknown = list(dict.fromkeys(c for c in cells if c is not None and c not in place and str(c) not in place))
    if unknown:
        some = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
        raise ValueError(f"{name!r} holds {some}, which is none of its categories {', '.join(map(str, labels))}")
    return np.array([np.nan if c is None else place.get(c, place.get(str(c), np.nan)) for c in cells], np.float64)


def _plain(value: Any) -> Any:
    """Return numpy's scalars as Python's own, texts without spaces around them."""
    return without_spaces(value.item() if isinstance(value, np.generic) else value)


def frame_of_columns(
    values: Array, names: Sequence[str], labels: Sequence[Sequence[Label]], dtypes: Iterable[str]
) -> pd.DataFrame:
    """Return rows as a frame with a table's names and dtypes: categories by name, whole numbers as whole numbers.

    Raises:
        InvalidInput: for a category's place that is none.
    """
    frame: dict[str, Any] = {}
    for name, column, own, dtype in zip(names, values.T, labels, dtypes, strict=True):
        odd = (
            np.flatnonzero(~np.isnan(column) & ~np.isin(column, np.arange(len(own)))) if own else np.empty(0, np.int64)
        )
        if len(odd):
            raise InvalidInput(
                f"{name!r} must hold places of its categories {', '.join(map(str, own))}, 0 to {len(own) - 1}; got "
                f"{column[odd[0]]:g} in row {odd[0]}: pass a frame with their names"
            )
        frame[name] = _restored(column, own, dtype)
    return pd.DataFrame(frame)


def _restored(column: Array, labels: Sequence[Label], dtype: str) -> Any:
    missing = np.isnan(column)
    if labels:
        cells = [None if gap else labels[int(code)] for code, gap in zip(column, missing, strict=True)]
        if dtype in ("category", _ORDERED):
            return pd.Series(pd.Categorical(cells, categories=list(labels), ordered=dtype == _ORDERED))
        return pd.Series(cells, dtype="string") if dtype == "string" else pd.Series(cells)
    if not _fits(column[~missing], dtype):
        return pd.Series(column)
    if dtype in ("bool", "boolean", "object"):
        if not missing.any():
            return pd.Series(column > 0.5, dtype="boolean") if dtype == "boolean" else column > 0.5
        return pd.Series(pd.array([None if gap else bool(v > 0.5) for v, gap in zip(column, missing, strict=True)]))
    if dtype.lower().startswith(("int", "uint")):
        whole = pd.Series(np.rint(column))
        return whole if missing.any() and dtype[0].islower() else whole.astype(dtype)  # numpy's have no gaps
    return pd.Series(column, dtype=dtype if dtype.lower().startswith("float") else "float64")


def _fits(values: Array, dtype: str) -> bool:
    """Tell whether a column's dtype holds numbers, but for rounding: others than the first rows' may not fit in it."""
    kind = dtype.lower().partition("[")[0]  # of int64[pyarrow] and the like
    if kind in ("bool", "boolean", "object"):
        return bool(np.isin(values, (0.0, 1.0)).all())
    if kind.startswith("float"):
        with np.errstate(over="ignore"):
            return bool(np.isfinite(values.astype(kind)).all())
    if not kind.startswith(("int", "uint")):
        return True
    limits, whole = np.iinfo(kind), np.rint(values)
    near = np.abs(values - whole) <= 1e-6 * np.maximum(1.0, np.abs(values))
    return bool((near & (whole >= float(limits.min)) & (whole < float(limits.max) + 1.0)).all())

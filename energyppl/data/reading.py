"""Tables in files, read by pandas: text of any dialect, Parquet, Excel; nothing is ever unpickled."""

import csv
import gzip
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from energyppl._checks import as_path
from energyppl.data.arrays import check_unpacked, member_shapes, read_member, read_npy, refused
from energyppl.data.frames import frame_of_array
from energyppl.data.written import grouped_numbers, without_spaces
from energyppl.errors import InvalidInput

__all__ = ["KINDS", "MISSING", "line_of_row", "read_frame", "require_engine"]

_TEXT = (".csv", ".tsv", ".txt", ".dat", ".data")
KINDS = (*_TEXT, ".npy", ".npz", ".parquet", ".xlsx")
_ENGINES = {".parquet": "pyarrow", ".xlsx": "openpyxl"}
MISSING = ("", "na", "n/a", "nan", "<na>", "null", "none", "?")  # in lower case
_SAMPLE = 200  # lines that tell the dialect
_DELIMITERS = "\t;|, "  # in the order in which they are believed
_FEWEST_ROWS = 10
_WHOLE = 2.0**53  # below, float64 knows each whole number


def read_frame(
    path: str | os.PathLike[str], *, array: str | None = None, decimal: str = ".", columns: Sequence[str] | None = None
) -> pd.DataFrame:
    r"""Read a table from a file as it is: text, ``.npy``, ``.npz``, ``.parquet`` or ``.xlsx``.

    Of text the encoding (UTF-8, UTF-16, else Windows-1252), the separator (tab, semicolon, bar, comma or spaces),
    quotes, lines that begin with ``#``, and whether the first line holds names are found out.  ``.gz`` may follow the
    ending of text.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "rooms.csv"
    >>> _ = file.write_text("# of 1990\nincome;rooms;town\n" + "".join(f"{i},5;{i % 3};Bonn\n" for i in range(12)))
    >>> ep.data.read_frame(file, decimal=",").head(2).to_csv(index=False).split()
    ['income,rooms,town', '0.5,0,Bonn', '1.5,1,Bonn']

    Args:
        path: of the file.
        array: which array of an ``.npz`` archive, or sheet of a workbook, that holds several.
        decimal: the mark of decimals in text, a point or a comma.
        columns: to read alone, where the format allows it (Parquet); others are read and left to the caller.

    Raises:
        InvalidInput: if there is no such file, it is of another kind, damaged or pickled, the package that reads it is
            missing, lines have different numbers of fields, or names occur twice.
    """
    path = as_path(path)
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}: pass one that ends in {', '.join(KINDS)}")
    if decimal not in (".", ","):
        raise InvalidInput(f"decimal must be '.' or ','; got {decimal!r}: pass one of these")
    packed = path.suffix.lower() == ".gz"
    kind = (path.with_suffix("") if packed else path).suffix.lower()
    if kind not in (_TEXT if packed else KINDS):
        kinds = f"{', '.join(KINDS)} or {_TEXT[0]}.gz"
        raise InvalidInput(f"{path} must end in {kinds}; got {path.suffix or 'no ending'!r}: convert it first")
    if array is not None and kind not in (".npz", ".xlsx"):
        raise InvalidInput(
            f"only an .npz archive or an .xlsx workbook has tables with names, and {path} is one table: leave the name "
            f"{array!r} out"
        )
    with refused(path, "a table", "write it again with numpy.save, numpy.savez, DataFrame.to_parquet or as text"):
        if kind in _TEXT:
            return _read_text(path, decimal, packed)
        if kind in _ENGINES:
            require_engine(path, kind)
            return _read_parquet(path, columns) if kind == ".parquet" else _read_excel(path, array, decimal)
        if kind == ".npy":
            return frame_of_array(read_npy(path), str(path))
        with zipfile.ZipFile(path) as archive:
            name = _choose(member_shapes(archive), path, array)
            return frame_of_array(read_member(archive, name), f"{path}, array {name}")


def line_of_row(path: Path, row: int) -> tuple[int, list[str]] | None:
    """Find the line of a text file, counted from 1, and the fields of its row number ``row``; None of other files."""
    packed = path.suffix.lower() == ".gz"
    if (path.with_suffix("") if packed else path).suffix.lower() not in _TEXT:
        return None
    text = _decoded(path, packed)
    dialect = _Dialect(text, path)
    for number, (line, fields) in enumerate(dialect.rows(text)):
        if number == row + dialect.named:
            return line, fields
    return None


def _choose(shapes: dict[str, tuple[int, ...]], path: Path, array: str | None) -> str:
    """Return the name of the array to read."""
    listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
    if array is not None and array not in shapes:
        raise InvalidInput(f"{path} has no array {array!r}; its arrays: {listing}")
    if array is None and len(shapes) != 1:
        raise InvalidInput(f"{path} must hold one array, or be told which (--array NAME); its arrays: {listing}")
    return next(iter(shapes)) if array is None else array


def require_engine(path: Path, kind: str) -> None:
    """Refuse a kind of file whose package is not installed."""
    package = _ENGINES[kind]
    if find_spec(package) is None:
        raise InvalidInput(
            f"{path} needs the package {package}, which is not installed: pip install {package}, or write the table as "
            ".csv"
        )


def _read_parquet(path: Path, columns: Sequence[str] | None) -> pd.DataFrame:
    """Read a Parquet file; an index with a name of its own is a column like others."""
    parquet: Any = import_module("pyarrow.parquet")
    known = parquet.read_schema(path).names
    wanted = list(columns) if columns is not None and set(columns) <= set(known) else None
    frame = pd.read_parquet(path, engine="pyarrow", columns=wanted)
    for name, column in frame.items():
        if isinstance(column.dropna().head(1).squeeze(), Decimal):  # as databases keep amounts of money
            frame[name] = column.astype(np.float64)
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    frame.columns = ["" if str(name).startswith("Unnamed:") else str(name) for name in frame.columns]
    return _named(frame, str(path))


def _read_excel(path: Path, sheet: str | None, decimal: str) -> pd.DataFrame:
    """Read a sheet of a workbook as a text file's table is read: empty rows don't count, names are found out."""
    with pd.ExcelFile(path, engine="openpyxl") as book:
        sheets = ", ".join(map(str, book.sheet_names))
        if sheet is not None and sheet not in book.sheet_names:
            raise InvalidInput(f"{path} has no sheet {sheet!r}; its sheets: {sheets}")
        if sheet is None and len(book.sheet_names) > 1:
            raise InvalidInput(f"{path} must hold one sheet, or be told which (--array NAME); its sheets: {sheets}")
        options: dict[str, Any] = {"header": None, "dtype": object, "na_values": _marks(), "keep_default_na": False}
        cells = pd.read_excel(book, sheet_name=sheet or 0, **options)
    cells = cells.dropna(how="all")
    if cells.empty:
        raise InvalidInput(f"{path} is empty: pass a table with at least {_FEWEST_ROWS} rows")
    head = [["" if value != value else str(value).strip() for value in row] for row in cells[:_SAMPLE].to_numpy()]
    named = _has_names(head)
    frame = cells[1:] if named else cells
    frame = frame.map(without_spaces).apply(grouped_numbers, decimal=decimal).map(partial(_plain_cell, decimal=decimal))
    frame = frame.reset_index(drop=True).infer_objects()
    frame.columns = pd.Index(head[0] if named else [f"c{i}" for i in range(frame.shape[1])])
    frame = _named(frame, str(path))
    frame.attrs["unnamed"] = not named
    return frame


def _plain_cell(value: Any, decimal: str) -> Any:
    """Return a text that is a number with a decimal comma with a point in its place."""
    return value.replace(",", ".") if isinstance(value, str) and decimal == "," and _is_numeral(value) else value


def _marks() -> list[str]:
    """Return the texts that mark a missing cell, as pandas takes them."""
    return sorted({form for mark in MISSING for form in (mark, mark.upper(), mark.title(), "NaN", "N/a")})


def _named(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Require names that are all different; number those that are empty, and remember if the first was."""
    names = list(frame.columns)
    twice = [repr(name) for name in dict.fromkeys(names) if name and names.count(name) > 1]
    if twice:
        raise InvalidInput(
            f"{source} must have different column names; more than once: {', '.join(twice)}: rename them"
        )
    frame.attrs["nameless_first"] = bool(names) and not names[0] and any(names)
    frame.columns = [name or f"c{i}" for i, name in enumerate(names)]
    return frame


# --- Text ---


def _decoded(path: Path, packed: bool) -> str:
    """Return a text file's content; Windows-1252 where it is neither UTF-8 nor UTF-16."""
    content = path.read_bytes()
    if packed:
        with gzip.open(path) as file:
            size = max(2**28, 100 * len(content)) + 1
            unpacked = file.read(size)
        check_unpacked(len(unpacked), len(content))
        content = unpacked
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    if b"\0" in content:
        raise ValueError("it holds zero bytes, which no text has")
    if b"\n" not in content:  # lines end in carriage returns alone, as once on a Macintosh
        content = content.replace(b"\r", b"\n")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


class _Dialect:
    """A text table's separator, comment lines and names, from its first lines."""

    def __init__(self, text: str, path: Path) -> None:
        lines = io.StringIO(text)
        comments: list[str] = []
        head: list[str] = []
        for line in lines:
            if line.startswith("#") and not head:
                comments.append(line[1:].strip())
            elif line.strip() and not line.startswith("#"):
                head.append(line)
            if len(head) == _SAMPLE:
                break
        if not head:
            raise InvalidInput(f"{path} is empty: pass a table with at least {_FEWEST_ROWS} rows")
        self.delimiter = _delimiter(head)
        rows = self._split(head)
        self.named = _has_names(rows)
        first = rows[0]
        widths = {len(row) for row in rows[1:]}
        if self.named and widths == {len(first) + 1}:  # R leaves the row names' own name out
            first = ["", *first]
        self.names = first if self.named else [f"c{i}" for i in range(len(first))]
        if not self.named and comments:  # as numpy.savetxt writes them
            said = self._split([comments[-1]])[0] if comments[-1] else []
            if len(said) == len(first) and not any(_is_numeral(name) for name in said):
                self.names = said
        self.unnamed = not self.named and self.names[0] == "c0"

    def _split(self, lines: list[str]) -> list[list[str]]:
        spaced = self.delimiter == " "
        if spaced:
            lines = [line.strip() + "\n" for line in lines]
        reader = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True)
        return [[field.strip() for field in row] for row in reader if row]

    def rows(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Yield each row that is no comment and not empty, with the number of its last line."""
        lines: Iterable[str] = io.StringIO(text)
        if self.delimiter == " ":
            lines = (line.strip() for line in lines)
        reader = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True)
        for row in reader:
            if row and not row[0].startswith("#") and (len(row) > 1 or row[0].strip()):
                yield reader.line_num, [field.strip() for field in row]

    def check_widths(self, text: str, path: Path) -> None:
        """Require as many fields in each row as there are names."""
        names = self.named and len(next(self.rows(text))[1]) != len(self.names)  # R's, one short
        for line, fields in self.rows(text):
            if len(fields) != len(self.names) and not names:
                raise InvalidInput(
                    f"{path} must have {len(self.names)} fields in each line; line {line} has {len(fields)}: mend it"
                )
            names = False


def _delimiter(lines: list[str]) -> str:
    """Return the separator that splits lines into equally many fields, two or more, the first one's as well as others'.

    Where none does, R's, which leaves out the first name of several, or one that the first line has too; else a comma.
    """
    split: dict[str, list[int]] = {}
    for mark in _DELIMITERS:
        some = [line.strip() if mark == " " else line for line in lines]
        split[mark] = [len(row) for row in csv.reader(some, delimiter=mark, skipinitialspace=True) if row]
    even = [mark for mark, counts in split.items() if counts[0] > 1 and len(set(counts)) == 1]
    named_short = [mark for mark, counts in split.items() if counts[0] > 1 and set(counts[1:]) == {counts[0] + 1}]
    uneven = [mark for mark, counts in split.items() if counts[0] > 1 and mark not in ", "]
    return (*even, *named_short, *uneven, ",")[0]


def _has_names(rows: list[list[str]]) -> bool:
    """Tell whether the first row holds names.

    A word where others have numbers, words that no other row has, or the columns' numbers, as pandas writes them.
    """
    if len(rows) < 2:
        return any(not _is_numeral(field) for field in rows[0])
    if _is_numbered(rows):
        return True
    columns = [
        [row[j] for row in rows[1:] if j < len(row) and row[j].lower() not in MISSING]
        for j in range(max(map(len, rows[:2])))
    ]
    numeric = [bool(column) and sum(map(_is_numeral, column)) > 0.5 * len(column) for column in columns]
    words = [bool(name) and not _is_numeral(name) and name.lower() not in MISSING for name in rows[0]]
    offset = 0 if len(rows[1]) == len(rows[0]) else 1  # R's row names
    shifted = zip(rows[0], words, numeric[offset:], columns[offset:], strict=False)
    if any(word and number and name not in column for name, word, number, column in shifted):
        return True
    new = all(name not in column for name, column in zip(rows[0], columns[offset:], strict=False))
    return not any(numeric) and all(words) and new


def _is_numbered(rows: list[list[str]]) -> bool:
    """Tell whether the first row counts the columns from 0 or 1, perhaps beside an index without a name.

    Of three numbers it may be a row of data, unless a column of the others has no whole numbers; of two, unless a
    column has words.
    """
    skipped = 1 if rows[0][0] == "" else 0
    counted = rows[0][skipped:]
    if len(counted) < 2 or not any(counted == [str(start + j) for j in range(len(counted))] for start in (0, 1)):
        return False
    if skipped:
        return True
    if len(counted) > 3:
        return any(sorted(row) != sorted(counted) for row in rows[1:])  # else rows are rankings
    columns = [
        [row[j] for row in rows[1:] if j < len(row) and row[j].lower() not in MISSING] for j in range(len(counted))
    ]
    whole = _is_whole if len(counted) == 3 else _is_numeral
    return any(column and not any(map(whole, column)) for column in columns)


def _is_whole(field: str) -> bool:
    return field.lstrip("+-").isdigit()


def _is_numeral(field: str) -> bool:
    """Tell whether a text is a number, with a decimal comma or a point."""
    try:
        float(field.replace(",", "."))
    except ValueError:
        return False
    return not field.strip().lower().startswith("nan")


def _read_text(path: Path, decimal: str, packed: bool) -> pd.DataFrame:
    text = _decoded(path, packed)
    dialect = _Dialect(text, path)
    names = _named(pd.DataFrame(columns=dialect.names), str(path))
    skipped = [i for i, line in enumerate(io.StringIO(text)) if line.startswith("#")]
    options: dict[str, Any] = {"sep": r"\s+"} if dialect.delimiter == " " else {"sep": dialect.delimiter}
    if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1):  # from then on every text is read to its last digit
        options["float_precision"] = "round_trip"
    if dialect.named:
        skipped.append(next(i for i, line in enumerate(io.StringIO(text)) if line.strip() and i not in set(skipped)))
    dialect.check_widths(text, path)
    try:
        frame = pd.read_csv(
            io.StringIO(text),
            **options,
            header=None,
            names=list(names.columns),
            index_col=False,
            skiprows=skipped,
            decimal=decimal,
            na_values=_marks(),
            keep_default_na=False,
            skipinitialspace=True,
            low_memory=False,
        )
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame(columns=list(names.columns), dtype=np.float64)
    for name in frame.columns:
        column = frame[name]
        if not pd.api.types.is_numeric_dtype(column.dtype):
            frame[name] = grouped_numbers(column.map(without_spaces), decimal)
        elif column.isna().any() and (column.dropna() % 1.0 == 0.0).all() and column.abs().max() < _WHOLE:
            frame[name] = column.astype("Int64")  # whole numbers with gaps
    frame.attrs |= {"nameless_first": names.attrs["nameless_first"], "unnamed": dialect.unnamed}
    return frame

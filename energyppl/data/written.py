"""Numbers as people write them: with marks between thousands, with units, and as codes for missing cells."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from energyppl._checks import is_number

__all__ = ["grouped_numbers", "is_grouped", "number_of", "outlying_codes", "unit_of", "without_spaces"]

_GROUPS = {  # of thousands, by the decimal mark; the mark between groups is always the same
    mark: re.compile(rf"[+-]?\d{{1,3}}(?:([{between}' \u00a0\u202f’])\d{{3}})(?:\1\d{{3}})*(?:[{mark}]\d+)?$")
    for mark, between in ((".", ","), (",", "."))
}
_UNIT = re.compile(r"[+-]?\d[\d.,]*\s*([^\d\s.,:/-][^\d]*)$")
_CODE = re.compile(r"-?(9+|8{2,}|7{2,})")
_FEWEST = 3  # values that are no codes, to tell how far away a code is
_MOST = 0.9  # of the texts that have the same unit


def without_spaces(value: Any) -> Any:
    """Return a text without spaces around it, anything else as it is."""
    return value.strip() if isinstance(value, str) else value


def number_of(value: Any) -> float | None:
    """Return a number, or the number that a text is; None of anything else."""
    if is_number(value):
        return float(value)
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def is_grouped(text: str) -> bool:
    """Tell whether a text is a number with marks between its thousands, whatever its decimal mark."""
    return any(marks.match(text) for marks in _GROUPS.values())


def grouped_numbers(column: "pd.Series[Any]", decimal: str) -> "pd.Series[Any]":
    """Return a column of texts such as ``1.234,56`` as numbers; one that holds any other text, as it is.

    Where the decimal mark is a point, ``1,234`` may as well be a decimal comma: some text of the column must tell, as
    ``1,234.5`` does.

    >>> import pandas as pd
    >>> from energyppl.data.written import grouped_numbers
    >>> grouped_numbers(pd.Series(["1.234,56", "7,5"]), ",").tolist()
    [1234.56, 7.5]
    >>> grouped_numbers(pd.Series(["1,234", "7,512"]), ".").tolist()
    ['1,234', '7,512']
    """
    clear, known = decimal == ",", {}
    for text in column.dropna().unique():
        if not isinstance(text, str):
            return column
        grouped, own = _GROUPS[decimal].match(text), text
        if grouped is not None:
            clear = clear or grouped[1] != "," or "." in text or text.count(",") > 1
            own = text.replace(grouped[1], "")
        number = number_of(own.replace(decimal, "."))
        if number is None:
            return column
        known[text] = number
    return column.map(known).astype(np.float64) if clear and known else column


def unit_of(texts: Sequence[str]) -> str:
    """Return the unit that nine tenths of the texts have behind a number; nothing if they have none."""
    found = [match[1] for text in texts if (match := _UNIT.match(text))]
    unit = max(set(found), key=found.count) if found else ""
    return unit if found.count(unit) > _MOST * len(texts) else ""


def outlying_codes(column: NDArray[np.float64]) -> dict[float, int]:
    """Return values that seem to mark missing cells, such as −99, farther from all others than these lie apart.

    Returns:
        How many rows have each.

    >>> import numpy as np
    >>> from energyppl.data.written import outlying_codes
    >>> outlying_codes(np.array([-99.0, 24.1, 27.5, 22.8, 30.2, 999.0]))
    {-99.0: 1, 999.0: 1}
    """
    values, counts = np.unique(column[~np.isnan(column)], return_counts=True)
    coded = np.array([_CODE.fullmatch(f"{value:.15g}") is not None for value in values])
    rest = values[~coded]
    if len(rest) < _FEWEST:
        return {}
    away = np.maximum(rest[0] - values, values - rest[-1])
    far = coded & (away > rest[-1] - rest[0])
    return {float(value): int(count) for value, count in zip(values[far], counts[far], strict=True)}

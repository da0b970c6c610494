"""Missing cells, drawn by conditional chains several times: draws, means, intervals, completed tables."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from energyppl._checks import check_between, check_count, checked
from energyppl._seeds import seeded
from energyppl.data.grids import decimals_of
from energyppl.data.tables import Table
from energyppl.errors import InvalidInput, warn_user
from energyppl.tables.model import Array, Rows, TableModel

__all__ = ["Imputation", "impute"]

_NAMED = 5  # rows that a warning names


@dataclass(frozen=True, eq=False)
class Imputation:
    """Draws of a table's missing cells.

    Attributes:
        table: the rows as they came.
        places: rows and columns of the missing cells, ``(k, 2)``.
        draws: ``(m, k)``, as the table holds its values.
        index: of the frame that the rows came in, which completed frames have too; None for other rows.

    Example:
        >>> import numpy as np, pandas as pd
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> model = ep.tables.fit(pd.DataFrame(x, columns=["a", "b"]), steps=5, progress=False)
        >>> found = ep.tables.impute(model, pd.DataFrame({"a": [1.0, 0.5], "b": [np.nan, 0.4]}), draws=3)
        >>> found.places, found.draws.shape, len(found.completed())
        (array([[0., 1.]]), (3, 1), 3)
    """

    table: Table
    places: Array
    draws: Array
    index: pd.Index | None = None

    def __repr__(self) -> str:
        """Summarize in one line."""
        return (
            f"Imputation({len(self.draws)} draws of {len(self.places)} cells missing from "
            f"{len(np.unique(self.places[:, 0]))} of {len(self.table.values)} rows)"
        )

    def completed(self) -> list[pd.DataFrame]:
        """Return the table completed by each draw: multiple imputations, to be analysed one by one (Rubin 1987)."""
        return [self._filled(draw) for draw in self.draws]

    def best(self) -> pd.DataFrame:
        """Return the table completed by one value for each cell: a mean, or the value that most draws have.

        Discrete columns get the median of their draws, rounded to a value that was drawn, and categories the commonest;
        a mean has as many decimals as the draws.
        """
        cells, columns = np.empty(len(self.places)), self.places[:, 1].astype(int)
        for j in np.unique(columns).tolist():
            draws = self.draws[:, columns == j]
            if self.table.labels[j] or self.table.dtypes[j] in ("bool", "boolean"):
                cells[columns == j] = [_commonest(own) for own in draws.T]
            elif len(self.table.grids[j]) or self.table.dtypes[j].lower().startswith(("int", "uint")):
                cells[columns == j] = np.sort(draws, 0)[len(draws) // 2]
            else:
                decimals = decimals_of(draws.ravel())
                cells[columns == j] = draws.mean(0) if decimals is None else draws.mean(0).round(decimals)
        return self._filled(cells)

    def cells(self, confidence: float = 0.95) -> pd.DataFrame:
        """Return a line for each missing cell: row, column, mean, standard deviation, interval, commonest category.

        Args:
            confidence: that the interval is to hold the cell with.  Its ends are draws, values that the column can
                take: the k-th from below and from above of n, which hold one more draw with the probability
                1 − 2 k / (n + 1).  At 95 % that takes 39 draws; the least and the largest of fewer hold it more rarely.
        """
        check_between("confidence", confidence, 0.0, 1.0)
        ordered, count = np.sort(self.draws, axis=0), len(self.draws)
        k = max(1, math.floor(0.5 * (1.0 - confidence) * (count + 1) + 1e-9))
        low, high = ordered[k - 1], ordered[count - k]
        lines = []
        for i, (row, j) in enumerate(self.places.astype(int)):
            own, labels = self.draws[:, i], self.table.labels[j]
            line = {"row": row, "column": self.table.columns[j]}
            if labels:
                values, counts = np.unique(own, return_counts=True)
                most = int(counts.argmax())
                line |= {"likeliest": labels[int(values[most])], "probability": counts[most] / len(own)}
            else:
                line |= {"mean": own.mean(), "sd": own.std(ddof=1) if len(own) > 1 else np.nan}
                line |= {"low": low[i], "high": high[i]}
            lines.append(line)
        wanted = ["row", "column", "mean", "sd", "low", "high", "likeliest", "probability"]
        return pd.DataFrame(lines, columns=wanted)

    def _filled(self, cells: Array) -> pd.DataFrame:
        values = self.table.values.copy()
        rows, columns = self.places.astype(int).T
        values[rows, columns] = cells
        frame = self.table.frame(values)
        return frame if self.index is None else frame.set_axis(self.index, axis=0)


@checked
def impute(model: TableModel, rows: Rows, *, draws: int = 40, seed: int = 0, progress: bool = False) -> Imputation:
    """Draw the missing cells of rows by chains on the model's density given the cells that are there.

    Each draw of each row is a chain of its own, so draws are independent and keep the correlations of a row's missing
    cells.  Cells are drawn from the model: what it does not know, such as the error of its own weights, is not in them.
    A row with a value that its column can't be has no density, so nothing can be drawn given it: its cells stay
    missing, with a warning that names it.

    >>> import numpy as np, pandas as pd
    >>> x = np.random.default_rng(0).normal(size=200)
    >>> frame = pd.DataFrame({"a": x, "b": x + 0.1 * np.random.default_rng(1).normal(size=200)})
    >>> model = ep.tables.fit(frame, steps=30, progress=False)
    >>> found = ep.tables.impute(model, pd.DataFrame({"a": [1.0, 0.5], "b": [np.nan, 0.4]}), draws=5)
    >>> found.draws.shape, found.cells().column.tolist(), int(found.completed()[0].isna().sum().sum())
    ((5, 1), ['b'], 0)

    Args:
        model: of a table.
        rows: with the model's columns; NaN or None where a cell is missing.
        draws: of each missing cell.
        seed: of the chains.
        progress: show a bar.

    Raises:
        InvalidInput: for other columns, unknown categories, no missing cell, or none that can be drawn.
    """
    check_count("draws", draws)
    table = model.rows_of(rows, missing=True)
    missing = table.missing
    if not missing.any():
        raise InvalidInput(f"{table.source} must have missing cells to impute; got none: nothing is left to do")
    impossible = missing.any(1) & np.isneginf(model.encode(table.values)[1])
    if impossible.any():
        missing = missing & ~impossible[:, None]
        _say_impossible(model, table, np.flatnonzero(impossible), left=bool(missing.any()))
    gaps = missing.any(1)
    incomplete = table.values[gaps]
    with seeded(seed):
        generator = torch.Generator().manual_seed(seed)
        numbers = np.tile(np.flatnonzero(gaps), draws)
        filled = model.fill(np.tile(incomplete, (draws, 1)), generator, numbers=numbers, progress=progress)
    filled = filled.reshape(draws, *incomplete.shape)
    index = rows.index if isinstance(rows, pd.DataFrame) else None
    return Imputation(table, np.argwhere(missing).astype(np.float64), filled[:, missing[gaps]], index)


def _commonest(draws: Array) -> float:
    values, counts = np.unique(draws, return_counts=True)
    return float(values[counts.argmax()])


def _say_impossible(model: TableModel, table: Table, rows: NDArray[np.int64], *, left: bool) -> None:
    """Name rows that hold values which their columns can't be; refuse them if no other rows are left."""
    parts = []
    for row in rows[:_NAMED].tolist():
        own = table.values[row]
        values = [f"{table.columns[j]} = {model.words(j, own[j])}" for j in model.outside(own)]
        parts.append(f"{row} ({', '.join(values)})")
    said = f"{len(rows)} row(s) with missing cells hold values that their columns can't be: {', '.join(parts)}"
    said += ", …" if len(rows) > _NAMED else ""
    if not left:
        raise InvalidInput(f"{said}; no other row has missing cells: mend these values")
    warn_user(f"{said}; their cells stay missing: mend these values, or leave them out to draw them too")

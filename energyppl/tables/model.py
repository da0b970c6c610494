"""A trained model of a table: rows in, densities, samples and missing cells out, in the table's own units."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from energyppl._checks import check_count, checked
from energyppl._numerals import plain
from energyppl._progress import progress_bar
from energyppl._seeds import seeded
from energyppl.data.columns import Numbers
from energyppl.data.grids import requantize
from energyppl.data.tables import Table, table_from_frame, table_from_rows
from energyppl.data.transforms import TableTransform
from energyppl.errors import EnergyPPLError, InvalidInput, warn_user
from energyppl.integration.estimates import LogNormalizer
from energyppl.models.recovery import RecoveryEBM
from energyppl.tables.conditional import draw_unknown, jump, rounds

__all__ = ["Rows", "TableModel"]

Array = NDArray[np.float64]
Rows: TypeAlias = Table | pd.DataFrame | ArrayLike | Mapping[str, Sequence[Any]] | str | os.PathLike[str]
"""Rows that a model takes: a frame, a table or a file by its names, an array or lists by the order of their columns."""

_SPREADS = 16  # draws of a row's place within its cells that its density is averaged over
_CHAINS = 8192  # conditional chains at a time
_JUMPS = 10  # between the values of each column of cells, of a sample
_OFF = 0.02  # of the steps of a column: how far a value may be from one
_MARGIN = 0.1  # of a column's range: how far outside of it a given value may lie without a warning
_NAMED = 6  # columns that a model's summary names


@dataclass(frozen=True, eq=False)
class TableModel:
    """A density of a table's rows, as :func:`energyppl.tables.fit` trains it.

    Attributes:
        ebm: of the coordinates that ``transform`` makes of rows.
        transform: between rows and coordinates.
        table: training rows, some of them if they are many, which say what columns rows have.
        held_out: rows that did not train the weights, ``(m, d)``, as the table holds its values.
        curves: of the training, by name.
        record: of the training: counts, settings, seconds, why it stopped.
        validation: rows that chose the weights among those of all steps, ``(k, d)``; None if the held-out rows did.

    Example:
        >>> import numpy as np, pandas as pd
        >>> rng = np.random.default_rng(0)
        >>> frame = pd.DataFrame({"income": np.exp(rng.normal(10, 1, 200)), "rooms": rng.integers(1, 6, 200)})
        >>> model = ep.tables.fit(frame, steps=5, progress=False)
        >>> model.columns, model.sample(3, given={"rooms": 2}, seed=0).rooms.tolist()
        (('income', 'rooms'), [2, 2, 2])
    """

    ebm: RecoveryEBM
    transform: TableTransform
    table: Table
    held_out: Array
    curves: dict[str, Array] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    validation: Array | None = None

    def __repr__(self) -> str:
        """Summarize in one line."""
        names = ", ".join(self.columns[:_NAMED]) + (", …" if len(self.columns) > _NAMED else "")
        chose = "" if self.validation is None else f", {len(self.validation)} that chose the weights"
        return (
            f"TableModel({len(self.columns)} columns: {names}; {len(self.rows)} training rows kept{chose}, "
            f"{len(self.held_out)} held out)"
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return self.table.columns

    @property
    def rows(self) -> Array:
        """Training rows, ``(n, d)``, some of them if they are many."""
        return self.table.values

    # --- Rows and coordinates ---

    def rows_of(self, rows: Rows, *, missing: bool = False) -> Table:
        """Check rows of the model's columns, ``missing`` cells among them if that is allowed.

        Raises:
            InvalidInput: for other columns, categories that the model has not seen, or missing cells.
        """
        if isinstance(rows, Table) and rows.columns == self.columns and rows.labels == self.table.labels:
            if rows.missing.any() and not missing:
                raise InvalidInput(f"{rows.source} has missing cells: impute them first")
            return rows
        if isinstance(rows, np.ndarray) and any(self.table.labels) and rows.dtype.kind in "biuf":
            if rows.ndim != 2 or rows.shape[1] != len(self.columns):
                raise InvalidInput(
                    f"rows must have shape (n, {len(self.columns)}), in the order {', '.join(self.columns)}; got "
                    f"{rows.shape}: pass a frame for categories by name"
                )
            rows = self.table.frame(np.asarray(rows, np.float64))
        return table_from_rows(rows, like=self.table, missing="impute" if missing else None)

    def encode(self, values: Array, generator: torch.Generator | None = None) -> tuple[Tensor, Array]:
        """Draw coordinates of rows, ``(n, D)``, on the model's device, and their log weights, ``(n,)``."""
        z, weight = self.transform.encode(values, torch.Generator().manual_seed(0) if generator is None else generator)
        return torch.as_tensor(z).to(self.ebm.loc), weight

    def decode(self, z: Tensor, *, rounded: bool = True) -> Array:
        """Return the rows ``(n, d)`` of coordinates ``(n, D)``.

        Raises:
            EnergyPPLError: if they are not finite.
        """
        if not bool(torch.isfinite(z).all()):
            raise EnergyPPLError("the model's samples are not finite: its training went wrong, fit it again")
        values = self.transform.decode(z.double().cpu().numpy(), rounded=rounded)
        return requantize(values, self.table.grids) if rounded else values  # to the last digit, as the rows have them

    # --- Densities ---

    def log_normalizer(self, *, tolerance: float | None = None, progress: bool = False) -> LogNormalizer:
        """Estimate log Z of the coordinates' energy; what was found is kept until the weights change."""
        return self.ebm.log_normalizer(tolerance=tolerance, progress=progress)

    @checked
    def log_prob(
        self, rows: Rows, log_z: LogNormalizer | None = None, *, seed: int = 0, spreads: int = _SPREADS
    ) -> Array:
        """Return log densities of rows ``(n,)``, in nats and the table's units.

        They count a density for each unit of continuous columns, and a probability for each value of discrete ones and
        categories, averaged over ``spreads`` draws within the cells: a lower bound in the mean that they approach.
        The draws hang on a row's values and the seed alone, so equal rows have equal densities.

        Args:
            rows: with the model's columns.
            log_z: of :meth:`log_normalizer`; estimated if None.
            seed: of the places within cells.
            spreads: draws of these.

        Raises:
            InvalidInput: for rows of other columns or with missing cells.
            EnergyPPLError: if a density is not a number.
        """
        table = self.rows_of(rows)
        log_z = self.log_normalizer() if log_z is None else log_z
        scores = self.mean_over_cells(table.values, self.minus_energy, seed=seed, spreads=spreads) - log_z.estimate
        if np.isnan(scores).any():
            row = int(np.isnan(scores).argmax())
            raise EnergyPPLError(
                f"the density of row {row} is not a number: the model's training went wrong, fit it again"
            )
        return scores

    def minus_energy(self, z: Tensor) -> Array:
        """Return −U of coordinates ``(n, D)``, ``(n,)``."""
        with torch.no_grad():
            found: Array = -self.ebm.marginal().energy(z).double().cpu().numpy()
        return found

    def mean_over_cells(
        self, values: Array, log_density: Callable[[Tensor], Array], *, seed: int = 0, spreads: int = _SPREADS
    ) -> Array:
        """Return the log of the mean of a density of coordinates times the rows' weights, ``(n, d)`` to ``(n,)``."""
        check_count("rows", len(values))
        check_count("spreads", spreads)
        drawn = []
        for z, weight in self.transform.spreads(values, spreads, seed):
            own = log_density(torch.as_tensor(z).to(self.ebm.loc))
            drawn.append(np.where(np.isneginf(weight), -np.inf, own + weight))
        total: Array = np.logaddexp.reduce(np.stack(drawn), 0) - math.log(len(drawn))
        return total

    # --- Samples ---

    def sample_values(self, count: int, *, rounded: bool = True) -> Array:
        """Draw rows ``(count, d)`` as the table holds its values; discrete columns between them unless ``rounded``."""
        check_count("the number of samples", count)
        z = self.ebm.sample((count,))
        if self.transform.jumping():
            x = self.ebm.to_unit(z)
            for _ in range(_JUMPS):
                x = jump(self.ebm, self.transform, x)
            z = self.ebm.from_unit(x)
        return self.decode(z, rounded=rounded)

    @checked
    def sample(self, count: int, given: Mapping[str, Any] | None = None, *, seed: int | None = None) -> pd.DataFrame:
        """Draw rows as a frame with the table's dtypes and names, as texts where they were numbers.

        Args:
            count: how many.
            given: values of some columns; the others are drawn given these, by conditional chains.
            seed: of the draws; torch's global generator goes on if None.

        Raises:
            InvalidInput: for columns or categories that the table has not.
        """
        check_count("the number of samples", count)
        with nullcontext() if seed is None else seeded(seed):
            if not given:
                return self.table.frame(self.sample_values(count))
            values = np.repeat(self.given_row(given), count, 0)
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            return self.table.frame(self.fill(values, generator))

    def words(self, j: int, value: float) -> str:
        """Return a value of column number ``j``, as the table holds it, in words: a category's name, a short number."""
        labels = self.table.labels[j]
        if labels:
            return str(labels[int(value)])
        if self.table.dtypes[j] in ("bool", "boolean"):
            return str(value > 0.5)
        return plain(value, 5)

    def given_row(self, given: Mapping[str, Any]) -> Array:
        """Return one row, ``(1, d)``, with values of some columns and the others missing."""
        given = {str(name): value for name, value in given.items()}
        unknown = [name for name in given if name not in self.columns]
        if unknown:
            raise InvalidInput(
                f"given must name columns of the table; got {', '.join(map(repr, unknown))}: they are "
                f"{', '.join(self.columns)}"
            )
        parts = zip(self.columns, self.table.labels, self.table.dtypes, strict=True)
        cells = {name: pd.Series([_cell(name, given.get(name), bool(labels), dtype)]) for name, labels, dtype in parts}
        table = table_from_frame(pd.DataFrame(cells), like=self.table, missing="impute", source="the given row")
        for name in given:
            j = self.columns.index(name)
            if np.isnan(table.values[0, j]):
                raise InvalidInput(f"{name} must be a value; got {given[name]!r}: leave it out to draw it")
            column, value = self.transform.columns[j], table.values[0, j]
            if isinstance(column, Numbers) and abs((nearest := column.nearest(value)) - value) > _OFF * column.gap:
                raise InvalidInput(
                    f"{name} must be one of its column's values, which come in steps of {self.words(j, column.gap)}; "
                    f"got {given[name]}: give {self.words(j, nearest)}, or another one"
                )
        _, weight = self.encode(table.values)
        if not np.isfinite(weight).all():
            said = ", ".join(f"{name}={value}" for name, value in given.items())
            raise InvalidInput(f"{said} lies outside of what the table's columns can be: give values that occur in it")
        for name in given:
            self._warn_if_far(self.columns.index(name), float(table.values[0, self.columns.index(name)]))
        return table.values

    def _warn_if_far(self, j: int, value: float) -> None:
        """Warn of a value of column number ``j`` that lies clearly outside of the training rows."""
        rows = self.table.values[~np.isnan(self.table.values[:, j]), j]
        margin = _MARGIN * np.ptp(rows)  # the table's rows may be a part of those that trained the model
        if value < rows.min() - margin or value > rows.max() + margin:
            low, high = (self.words(j, end) for end in (rows.min(), rows.max()))
            warn_user(
                f"{self.columns[j]}={self.words(j, value)} lies outside of the training rows, where it is {low} to "
                f"{high}: what is drawn given it is an extrapolation"
            )

    def fill(
        self,
        values: Array,
        generator: torch.Generator,
        *,
        numbers: NDArray[np.int64] | None = None,
        progress: bool = False,
    ) -> Array:
        """Draw the missing cells of rows ``(n, d)``, once each, given the others, by conditional chains.

        Args:
            values: as the table holds its values; NaN where a cell is missing.
            generator: of the places within cells.
            numbers: of the rows in their table, ``(n,)``, for messages; 0 to n − 1 if None.
            progress: show a bar.

        Raises:
            InvalidInput: for a row outside of what the columns can be.
        """
        numbers = np.arange(len(values)) if numbers is None else numbers
        chunks = max(1, -(-len(values) // _CHAINS))
        parts = zip(np.array_split(values, chunks), np.array_split(numbers, chunks), strict=True)
        with progress_bar(total=chunks * rounds(self.ebm), desc="imputing", disable=not progress) as bar:
            return np.concatenate([self._fill(part, own, generator, bar.update) for part, own in parts])

    def outside(self, row: Array) -> list[int]:
        """Return the numbers of the columns whose value in a row, ``(d,)``, is outside of what they can be."""
        alone = np.where(np.eye(len(row), dtype=bool), row, np.nan)
        return [int(j) for j in np.flatnonzero(np.isneginf(self.encode(alone)[1]))]

    def _fill(
        self, values: Array, numbers: NDArray[np.int64], generator: torch.Generator, tick: Callable[[], object]
    ) -> Array:
        z, weight = self.encode(values, generator)
        if np.isneginf(weight).any():
            row = int(numbers[np.isneginf(weight).argmax()])
            raise InvalidInput(f"row {row} lies outside of what the table's columns can be: mend its cells or drop it")
        spread = any(c.random and not np.isnan(x).all() for c, x in zip(self.transform.columns, values.T, strict=True))

        def redraw() -> tuple[Tensor, Tensor]:
            drawn, own = self.encode(values, generator)
            return drawn, torch.as_tensor(own).to(drawn.device)

        log_weight = torch.as_tensor(weight).to(z.device)
        chained = draw_unknown(self.ebm, z, redraw if spread else None, log_weight, transform=self.transform, tick=tick)
        return np.where(np.isnan(values), self.decode(chained), values)


def _cell(name: str, value: Any, labelled: bool, dtype: str) -> Any:
    """Return a value as a frame of the table's kind holds it; texts, as a command line has them, for numbers too."""
    if value is None:
        return None if labelled else np.nan
    if not labelled and dtype in ("bool", "boolean") and isinstance(value, str):
        known = {"true": 1.0, "yes": 1.0, "1": 1.0, "false": 0.0, "no": 0.0, "0": 0.0}
        if value.strip().lower() not in known:
            raise InvalidInput(f"{name} must be true or false; got {value!r}: give one of them")
        return known[value.strip().lower()]
    return value


def empty_like(table: Table, values: Array) -> Table:
    """Return a table of other rows with the same columns."""
    return Table(values, table.columns, table.grids, table.source, table.labels, table.dtypes)

"""Rows by how likely they are, and the columns that make the least likely ones so."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from energyppl._checks import check_count, checked
from energyppl.data.columns import Numbers
from energyppl.data.tables import Table
from energyppl.errors import InvalidInput, warn_user
from energyppl.integration.estimates import LogNormalizer
from energyppl.tables.model import Array, Rows, TableModel, empty_like

__all__ = ["Surprise", "score", "surprises"]

_GRID = np.linspace(-6.0, 6.0, 241)  # of a coordinate of about unit variance
_DRAWS = 16  # within each cell
_OUTSIDE = "outside"
_RARE = 0.01  # of what a column's values are given the others: below, it is a reason


class Surprise(NamedTuple):
    """A column's value in one row beside what it could be, given the row's other columns.

    Attributes:
        column: its name.
        value: what it is, in words.
        probability: that a draw given the others is no likelier than the value.
        usual: what it mostly is there: the central 95 % of a number, the likeliest categories.

    Example:
        >>> import numpy as np, pandas as pd
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> model = ep.tables.fit(pd.DataFrame(x, columns=["a", "b"]), steps=5, progress=False)
        >>> found = ep.tables.surprises(model, np.array([0.0, 30.0]))
        >>> found[0].column, found[0].probability < 0.01
        ('b', True)
    """

    column: str
    value: str
    probability: float
    usual: str


@checked
def score(
    model: TableModel, rows: Rows, *, first: int = 10, log_z: LogNormalizer | None = None, seed: int = 0
) -> pd.DataFrame:
    """Order rows by their log density, the least likely first, with the columns that make the first ones so.

    Args:
        model: of a table.
        rows: with the model's columns.  Those with missing cells have no density of their own, and are left out with a
            warning; :func:`impute` fills them.
        first: for how many of them reasons are looked for.
        log_z: of the model; estimated if None.  All rows share its error, so their order has none of it.
        seed: of the places within cells.

    Returns:
        ``row``, the number of each; ``log_density`` in nats and the table's units, a density for continuous columns and
        a probability for discrete ones; ``held_out_rows_less_likely``, a share; ``because``, in words.

    Raises:
        InvalidInput: for other columns, unknown categories, or no row without missing cells.

    Example:
        >>> import numpy as np, pandas as pd
        >>> frame = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
        >>> model = ep.tables.fit(frame, steps=20, progress=False)
        >>> found = ep.tables.score(model, pd.concat([frame[:20], pd.DataFrame({"a": [0.0], "b": [30.0]})]))
        >>> int(found.row[0]), "b" in found.because[0]
        (20, True)
    """
    check_count("first", first, at_least=0)
    table = model.rows_of(rows, missing=True)
    numbers, values = _complete(table)
    log_z = model.log_normalizer() if log_z is None else log_z
    scores = model.log_prob(empty_like(table, values), log_z, seed=seed)
    held_out = model.held_out[~np.isnan(model.held_out).any(1)]
    reference = np.sort(model.log_prob(empty_like(model.table, held_out), log_z, seed=seed))
    order = np.argsort(scores, kind="stable")
    because = [reasons(surprises(model, values[i], seed=seed)) for i in order[:first]]
    return pd.DataFrame(
        {
            "row": numbers[order],
            "log_density": scores[order],
            "held_out_rows_less_likely": np.searchsorted(reference, scores[order]) / max(1, len(reference)),
            "because": because + [""] * (len(order) - len(because)),
        }
    )


def _complete(table: Table) -> tuple[NDArray[np.int64], Array]:
    """Return the rows without missing cells, by number and value."""
    gaps = np.asarray(table.missing.any(1))
    if gaps.all():
        raise InvalidInput(f"{table.source} must have rows without missing cells to score; got none: impute them first")
    if gaps.any():
        warn_user(
            f"{int(gaps.sum())} of {len(gaps)} rows of {table.source} have missing cells, and no score: they are left "
            "out; impute them first to score them"
        )
    return np.flatnonzero(~gaps), table.values[~gaps]


def reasons(found: list[Surprise]) -> str:
    """Say which columns are rare given the others, the rarest first; that none is by itself, where none is."""
    rare = [own for own in found if own.probability < _RARE]
    if not rare:
        return "no column by itself"
    return "; ".join(
        f"{own.column} = {own.value} ({'' if own.usual.startswith(_OUTSIDE) else 'given the others '}{own.usual})"
        for own in rare[:3]
    )


@checked
def surprises(model: TableModel, row: Array, *, seed: int = 0) -> list[Surprise]:
    """Compare each column of one row, ``(d,)``, with its conditional distribution given the others, the rarest first.

    A column's values are tried one after another on a grid of its coordinate, or each category and small number of
    values by draws within its cell; the others stay as they are.  Values outside of what a column can be come first,
    with probability 0, and for the other columns the nearest value of the training rows stands in their place.

    Example:
        >>> import numpy as np, pandas as pd
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> model = ep.tables.fit(pd.DataFrame(x, columns=["a", "b"]), steps=5, progress=False)
        >>> [surprise.column for surprise in ep.tables.surprises(model, np.array([0.0, 30.0]))]
        ['b', 'a']
    """
    generator = torch.Generator().manual_seed(seed)
    found, row = _outside(model, row)
    outside = {own.column for own in found}
    base, _ = model.transform.encode(row[None], generator)
    for j, (name, column) in enumerate(zip(model.columns, model.transform.columns, strict=True)):
        if name in outside:
            continue
        if isinstance(column, Numbers):
            values, mass, own = _on_a_grid(model, base, row, j)
        else:
            values, mass, own = _by_cells(model, row, j, generator)
        probability = float(mass[mass <= mass[own] * (1.0 + 1e-9)].sum())
        found.append(Surprise(name, model.words(j, row[j]), probability, _usual(model, j, values, mass)))
    return sorted(found, key=lambda surprise: surprise.probability)


def _outside(model: TableModel, row: Array) -> tuple[list[Surprise], Array]:
    """Return the columns whose value is outside of what they can be, and the row with the nearest ones that occur."""
    found, inside = [], row.copy()
    for j in model.outside(row):
        rows = model.rows[~np.isnan(model.rows[:, j]), j]
        low, high = (model.words(j, value) for value in (rows.min(), rows.max()))
        usual = f"{_OUTSIDE} of what the column can be: {low} to {high} in the training rows"
        found.append(Surprise(model.columns[j], model.words(j, row[j]), 0.0, usual))
        inside[j] = rows[np.abs(rows - row[j]).argmin()]
    return found, inside


def _on_a_grid(model: TableModel, base: Array, row: Array, j: int) -> tuple[Array, Array, int]:
    """Return values along a column, their conditional probabilities and the place of the row's own."""
    place = model.transform.places()[j]
    own = float(base[0, place.start])
    grid = np.sort(np.append(_GRID, own))
    points = np.repeat(base, len(grid), 0)
    points[:, place.start] = grid
    log_density = model.minus_energy(_tensor(model, points))
    widths = np.gradient(grid)
    # The row's own point is compared by its density, so it stands for as much of the grid as the others do.
    at = int(np.searchsorted(grid, own))
    widths[max(at - 1, 0) : at + 2] = widths.max()
    mass = np.exp(log_density - log_density.max()) * widths
    return model.transform.decode(points)[:, j], mass / mass.sum(), at


def _by_cells(model: TableModel, row: Array, j: int, generator: torch.Generator) -> tuple[Array, Array, int]:
    """Return a discrete column's values, their conditional probabilities and the place of the row's own."""
    column: Any = model.transform.columns[j]
    values = column.values if hasattr(column, "values") else np.arange(float(column.count))
    rows = np.repeat(row[None], len(values), 0)
    rows[:, j] = values
    drawn = []
    for _ in range(_DRAWS):
        z, weight = model.transform.encode(rows, generator)
        drawn.append(np.where(np.isneginf(weight), -np.inf, model.minus_energy(_tensor(model, z)) + weight))
    log_mass = np.logaddexp.reduce(np.stack(drawn), 0)
    mass = np.exp(log_mass - log_mass.max())
    return values, mass / mass.sum(), int(np.abs(values - row[j]).argmin())


def _tensor(model: TableModel, points: Array) -> Tensor:
    return torch.as_tensor(points).to(model.ebm.loc)


def _usual(model: TableModel, j: int, values: Array, mass: Array) -> str:
    """Say where the most of a column's conditional mass is."""
    if model.table.labels[j] or len(values) <= 2:
        likely = np.argsort(-mass)[:2]
        return "mostly " + " or ".join(model.words(j, values[i]) for i in likely[: 1 if mass[likely[0]] > 0.8 else 2])
    total = np.cumsum(mass)
    low, high = (values[min(int(np.searchsorted(total, q)), len(values) - 1)] for q in (0.025, 0.975))
    return f"{model.words(j, low)} to {model.words(j, high)}"

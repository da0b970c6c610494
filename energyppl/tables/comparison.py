"""Two tables: whether they come from one distribution, where they differ, and which rows do."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from energyppl._checks import check_count, checked
from energyppl.data.tables import Table, table_from_rows
from energyppl.data.transforms import TableTransform
from energyppl.errors import InvalidInput
from energyppl.metrics.two_sample import energy_distance_test
from energyppl.tables.model import Rows, empty_like
from energyppl.tables.quality import column_tests, pair_tests

__all__ = ["Comparison", "compare"]

_COMPARED = 2000  # rows of each table
_NEIGHBOURS = 20
_LIKE = 0.05  # p-values below say that tables differ
_FALSE_ROWS = 0.1  # share of the rows that are named as odd, though they are not (Benjamini & Hochberg 1995)


class Comparison(NamedTuple):
    """Findings of :func:`compare`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> found = ep.tables.compare(rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + [0.0, 2.0])
        >>> found.columns.column[0], len(found.verdict) > 0
        ('c1', True)
    """

    p_value: float  # of the two-sample test
    statistic: float  # the squared energy distance, in coordinates of unit variance
    columns: pd.DataFrame  # column, p_value, said: the worst first
    pairs: pd.DataFrame  # columns, one, other (correlations), p_value: the worst first
    rows: pd.DataFrame  # table ("first", "second"), row, own_neighbours, p_value: rows where one table is alone
    verdict: list[str]

    def __str__(self) -> str:
        return "\n".join([f"energy distance {self.statistic:.4f}, p = {self.p_value:.3f}", *self.verdict])


@checked
def compare(
    first: Rows,
    second: Rows,
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    missing: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Test whether two tables are draws of one distribution, and find columns, pairs and rows that differ.

    The energy distance of up to 2000 rows of each, in coordinates of both tables together, is tested by relabelling.
    A row is odd if so many of its 20 nearest neighbours in both tables are of its own table as chance would hardly give
    (a binomial test; a tenth of those that are named are named by chance at most).

    Args:
        first: a table with independent rows.
        second: another one, with the first one's columns.
        columns: to compare; all if None.
        drop: columns to leave out.
        missing: ``"drop"`` leaves rows with missing cells out; None refuses them.
        seed: of the rows that are taken, and of the relabellings.

    Raises:
        InvalidInput: for tables that can't be compared: other columns, missing cells, fewer than 10 rows.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> found = ep.tables.compare(rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + [0.0, 2.0])
        >>> found.p_value < 0.01, found.columns.column[0]
        (True, 'c1')
    """
    check_count("seed", seed, at_least=0)
    if missing not in (None, "drop"):
        raise InvalidInput(f"missing must be 'drop' or None; got {missing!r}: impute the tables first to keep all rows")
    one, other = (table_from_rows(rows, columns=columns, drop=drop, missing=missing) for rows in (first, second))
    one, other = _alike(one, other)
    both = empty_like(one, np.concatenate([one.values, other.values]))
    transform = TableTransform.fit(both)
    generator = torch.Generator().manual_seed(seed)
    chosen = [
        torch.randperm(len(own.values), generator=generator)[:_COMPARED].sort().values.numpy() for own in (one, other)
    ]
    values = [own.values[rows] for own, rows in zip((one, other), chosen, strict=True)]
    z = [torch.as_tensor(transform.encode(own, generator)[0]) for own in values]
    test = energy_distance_test(z[0], z[1], generator=generator)
    tests = pd.DataFrame(column_tests(both, values[0], values[1], ("the first table", "the second")))
    pairs = pd.DataFrame(pair_tests(transform, *values), columns=["columns", "one", "other", "p_value"])
    rows = _odd_rows(z, chosen, generator)
    return Comparison(test.p_value, test.statistic, tests, pairs, rows, _verdict(test.p_value, tests, pairs, rows))


def _alike(one: Table, other: Table) -> tuple[Table, Table]:
    """Return both tables with the first one's columns and the categories of both."""
    if set(one.columns) != set(other.columns):
        raise InvalidInput(
            f"both tables must have the same columns; {one.source} has {', '.join(one.columns)}, {other.source} has "
            f"{', '.join(other.columns)}: choose those of both"
        )
    frames = [one.frame(), other.frame()[list(one.columns)]]
    rows = pd.concat(frames, ignore_index=True).astype(_common(frames))
    both = table_from_rows(rows, columns=one.columns)
    count = len(one.values)
    return empty_like(both, both.values[:count]), empty_like(both, both.values[count:])


def _common(frames: list[pd.DataFrame]) -> dict[str, Any]:
    """Return dtypes for columns of booleans in one table alone, which would become objects."""
    return {
        name: "float64"
        for name in frames[0].columns
        if {frame[name].dtype.kind for frame in frames} in ({"b", "i"}, {"b", "f"})
    }


def _odd_rows(z: list[torch.Tensor], chosen: list[NDArray[np.int64]], generator: torch.Generator) -> pd.DataFrame:
    """Find rows whose neighbours are of their own table much more often than chance has it."""
    from scipy import stats  # takes half a second to import

    points = torch.cat(z)
    owner = np.concatenate([np.full(len(own), i) for i, own in enumerate(z)])
    count = min(_NEIGHBOURS, len(points) - 1)
    shuffled, neighbours = torch.randperm(len(points), generator=generator), []  # of rows equally far, any are taken
    for part in torch.arange(len(points)).split(1000):
        distance = torch.cdist(points[part], points)
        distance[torch.arange(len(part)), part] = torch.inf
        neighbours.append(shuffled[distance[:, shuffled].topk(count, largest=False).indices])
    own = (owner[torch.cat(neighbours).numpy()] == owner[:, None]).sum(1)
    share = np.array([(len(one) - 1) / (len(points) - 1) for one in z])[owner]
    p_value = stats.binom.sf(own - 1, count, share)
    order = np.argsort(p_value, kind="stable")
    bound = _FALSE_ROWS * np.arange(1, len(order) + 1) / len(order)
    below = np.flatnonzero(p_value[order] <= bound)
    odd = order[: int(below[-1]) + 1] if len(below) else order[:0]
    rows = np.concatenate(chosen)
    return pd.DataFrame(
        {
            "table": np.array(["first", "second"])[owner[odd]],
            "row": rows[odd],
            "own_neighbours": own[odd] / count,
            "p_value": p_value[odd],
        }
    )


def _verdict(p_value: float, columns: pd.DataFrame, pairs: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    if p_value >= _LIKE and len(columns) and columns.p_value[0] >= 0.01:
        said = [f"the two tables may well come from one distribution (p = {p_value:.3f})"]
    else:
        said = [f"the two tables differ (p = {p_value:.3f})"]
    worst = columns.iloc[0]
    if worst.p_value < 0.01:
        names = ", ".join(repr(name) for name in columns.column[columns.p_value < 0.01])
        said.append(f"columns that differ: {names}; of {worst.column!r} {worst.said}")
    if len(pairs) and pairs.p_value[0] < 0.01:
        pair = pairs.iloc[0]
        said.append(
            f"the pair that differs most is {' and '.join(map(repr, pair['columns']))}: correlation {pair['one']:+.2f} "
            f"and {pair['other']:+.2f} of the transformed columns"
        )
    if len(rows):
        lie = "1 row lies" if len(rows) == 1 else f"{len(rows)} rows lie"
        said.append(f"{lie} where the other table has hardly any, the oddest first in the list")
    return said

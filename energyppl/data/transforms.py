"""Transforms of a table's columns to coordinates in which a smooth density can be learned, and back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from energyppl._checks import checked
from energyppl.data.columns import KINDS, Categories, Coordinates, FewValues, Numbers, TwoValues
from energyppl.data.grids import decimals_of, gap_of, whole_steps
from energyppl.data.hashed import hashed_uniforms
from energyppl.data.monotone import Atoms, Base, fit_spline
from energyppl.data.tables import Table
from energyppl.errors import InvalidInput

__all__ = ["TableTransform"]

Array = NDArray[np.float64]

_CHOICES = ("auto", "none", "log", "logit", "quantile")
_FEW = 20  # distinct values, at most, of a column that is taken value by value
_DESIGNED = 3  # rows, at least, that have each of few values of a long lattice: hardly any row has another one
_HEAVY = 8.0  # of the central 99 % over the central half: a Gaussian's is 3.8, a logistic's 4.8, Cauchy's 64
_WILD = 30.0  # central halves from the median to an end: one such cell would set the scale of all others
_SKEWED = 0.35  # of the quantile skewness of the central 95 %; an exponential's is .58
_NEAR = 5.0  # widths from the median to a bound: beyond, a Gaussian does not reach it
_EDGE = 0.008  # of the rows in a fiftieth of the range, at an edge; a uniform column has .02, a Gaussian .0005
_CROWD = 4  # of them at least: the outermost row is always there, and by chance two or three of a Gaussian's
_FEWEST_ROWS = 100  # that a shape is judged by
_FEWEST_BESIDE = 20  # rows beside heaps
_SPIKE, _MAX_ATOMS = 0.02, 5
_ROWS_A_KNOT, _MAX_KNOTS = 15, 33
_ROOM = 3  # distances between the outermost rows that a column is left beyond its ends, for rows to come
_FARTHEST = 1e12  # standard deviations: beyond, energies overflow
_BEYOND = 4.0  # standard deviations: where a value beyond its column's ends is put, if it has no coordinate


@dataclass(frozen=True, eq=False)
class TableTransform:
    """Columns as coordinates of about unit variance, with everything that leads back to the table.

    A row's density is the mean of the coordinates' density times a weight over draws of :meth:`encode`.  It is a
    density for each unit of a continuous column, and a probability mass for each value of a discrete column or a
    category: nats that compare with those of any other model of the same columns.  A value that is repeated in a
    continuous column counts as a mass where it occurs.

    Attributes:
        names: of the columns.
        columns: how each is taken.
        loc: of the coordinates, ``(D,)``.
        scale: of the coordinates, ``(D,)``.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> table = ep.data.table_from_array(np.stack([np.exp(rng.normal(size=500)), rng.integers(3, size=500)], 1))
        >>> transform = ep.data.TableTransform.fit(table)
        >>> transform.words()
        {'c0': 'by its log', 'c1': '3 values, by their shares of the normal scores'}
        >>> z, log_weight = transform.encode(table.values, torch.Generator().manual_seed(0))
        >>> np.allclose(transform.decode(z), table.values)
        True
    """

    names: tuple[str, ...]
    columns: tuple[Coordinates, ...]
    loc: Array
    scale: Array

    @classmethod
    @checked
    def fit(cls, table: Table, kinds: Mapping[str, str] | None = None) -> "TableTransform":
        """Choose how each column is taken, by its rows that are not missing.

        Args:
            table: rows to train on.
            kinds: for columns by name, ``none``, ``log``, ``logit``, ``quantile`` or ``auto``; what is not named is
                ``auto``: categories, and few values (of a lattice that is mostly empty those that occur), by their
                cells, else the logarithm of a column that this brings nearer to a Gaussian, logit between two edges
                that rows crowd at, normal scores of other skewed, heavy-tailed or one-sided columns and of those with
                repeated values, and nothing otherwise.

        Raises:
            InvalidInput: for another word, a column that there is not, one of categories, or the logarithm of what is
                not positive.
        """
        kinds = dict(kinds or {})
        odd = [f"{name}={kind}" for name, kind in kinds.items() if kind not in _CHOICES or name not in table.columns]
        if odd:
            raise InvalidInput(
                f"transforms must be one of {', '.join(_CHOICES)} for one of {', '.join(table.columns)}; got "
                f"{', '.join(odd)}"
            )
        texts = [
            repr(name)
            for name, labels in zip(table.columns, table.labels, strict=True)
            if labels and kinds.get(name, "auto") != "auto"
        ]
        if texts:
            raise InvalidInput(f"categories have no transform; got one for {', '.join(texts)}: leave it out")
        parts = zip(table.columns, table.values.T, table.grids, table.labels, table.dtypes, strict=True)
        columns = tuple(
            _choose(name, values[~np.isnan(values)], grid, len(labels), dtype, kinds.get(name, "auto"))
            for name, values, grid, labels, dtype in parts
        )
        width = sum(column.width for column in columns)
        plain = cls(table.columns, columns, np.zeros(width), np.ones(width))
        z, _ = plain.encode(table.values, torch.Generator().manual_seed(0))
        loc, scale = np.nanmean(z, 0), np.nanstd(z, 0)
        for column, place in zip(columns, plain.places(), strict=True):
            if isinstance(column, FewValues) or (isinstance(column, Numbers) and column.spline is not None):
                loc[place], scale[place] = 0.0, 1.0  # normal scores
        return cls(table.columns, columns, loc, np.where(scale > 0.0, scale, 1.0))

    @property
    def width(self) -> int:
        """The number of coordinates, D."""
        return len(self.loc)

    @property
    def random(self) -> bool:
        """True if rows are spread over cells, so that encoding them draws."""
        return any(column.random for column in self.columns)

    def places(self) -> tuple[slice, ...]:
        """Return which coordinates belong to each column."""
        found, end = [], 0
        for column in self.columns:
            found.append(slice(end, end + column.width))
            end += column.width
        return tuple(found)

    def words(self) -> dict[str, str]:
        """Say how each column is taken."""
        return {name: column.words() for name, column in zip(self.names, self.columns, strict=True)}

    def encode(self, values: Array, generator: torch.Generator) -> tuple[Array, Array]:
        """Draw coordinates of rows, and the log weight of the draw.

        Args:
            values: ``(n, d)``, as :class:`Table` holds them; coordinates of missing cells are NaN.
            generator: of the places within cells, on the CPU.

        Returns:
            Coordinates ``(n, D)``, and log weights ``(n,)`` in nats, −∞ for rows outside of the columns' ranges;
            missing cells count nothing.
        """
        drawn = [torch.rand(len(values), c.width, dtype=torch.float64, generator=generator) for c in self.columns]
        return self.encode_at(values, torch.cat(drawn, 1).numpy())

    def encode_at(self, values: Array, u: Array) -> tuple[Array, Array]:
        """Return coordinates of rows and their log weights as :meth:`encode` does, at places within cells.

        Args:
            values: ``(n, d)``, likewise.
            u: uniform numbers, ``(n, D)``.
        """
        z, weight = np.empty((len(values), self.width)), np.zeros(len(values))
        for x, column, place in zip(values.T, self.columns, self.places(), strict=True):
            with np.errstate(invalid="ignore"):
                own, log_weight = column.encode(x, u[:, place])
            z[:, place] = np.where(np.isnan(x)[:, None], np.nan, own)
            weight += np.where(np.isnan(x), 0.0, log_weight - np.log(self.scale[place]).sum())
        z = (z - self.loc) / self.scale
        absurd = np.abs(z) > _FARTHEST
        outside = absurd.any(1) | np.isnan(weight)
        return np.where(absurd, 0.0, z), np.where(outside, -np.inf, weight)

    def spreads(self, values: Array, count: int, seed: int) -> Iterator[tuple[Array, Array]]:
        """Yield coordinates and log weights of rows as :meth:`encode` does, ``count`` times if cells are drawn from.

        The places within cells are chosen by a row's own values, so that equal rows have equal ones wherever they are.

        Args:
            values: ``(n, d)``, likewise.
            count: how many times.
            seed: of the places.
        """
        for u in hashed_uniforms(values, self.width, count if self.random else 1, seed):
            yield self.encode_at(values, u)

    def middles(self, values: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Return the middles of the cells of rows, for a model that is told the rows and has no density of them.

        Args:
            values: ``(n, d)``, as :class:`Table` holds them, without missing cells.

        Returns:
            Coordinates ``(n, D)``, the same at every call; and which rows have a value that its column can't be,
            ``(n,)``, which is put at the nearest one that it can be.
        """
        z, outside = np.empty((len(values), self.width)), np.zeros(len(values), bool)
        for x, column, place in zip(values.T, self.columns, self.places(), strict=True):
            with np.errstate(invalid="ignore"):
                own, log_weight = column.encode(x, np.full((len(x), column.width), 0.5))
            z[:, place] = own
            outside |= ~np.isfinite(own).all(1) | ~np.isfinite(log_weight)
        z = (z - self.loc) / self.scale
        absurd = np.abs(z) > _FARTHEST
        return np.where(absurd, np.sign(z) * _BEYOND, np.nan_to_num(z)), outside | absurd.any(1)

    def jumping(self) -> tuple[int, ...]:
        """Return the numbers of the columns whose values have cells that :meth:`jump` goes between."""
        return tuple(j for j, column in enumerate(self.columns) if not isinstance(column, Numbers))

    def jump(self, z: Array, j: int, u: Array) -> tuple[Array, Array]:
        """Take rows to another value of a column: the same place in its cell.

        Args:
            z: coordinates ``(n, D)``.
            j: the column's number, of :meth:`jumping`.
            u: uniform numbers ``(n,)`` that choose the values; the way back is as likely to be chosen.

        Returns:
            Coordinates ``(n, D)``, and the logarithm of the slope of the map, ``(n,)``.
        """
        column, place = self.columns[j], self.places()[j]
        assert not isinstance(column, Numbers)
        loc, scale, found = self.loc[place], self.scale[place], z.copy()
        there, log_slope = column.jump(z[:, place] * scale + loc, u)
        found[:, place] = (there - loc) / scale
        return found, log_slope

    def part(self, names: Sequence[str]) -> "TableTransform":
        """Return the transform of some of the columns, in the order of ``names``."""
        chosen, places = [self.names.index(name) for name in names], self.places()
        loc, scale = (np.concatenate([own[places[j]] for j in chosen]) for own in (self.loc, self.scale))
        return TableTransform(tuple(names), tuple(self.columns[j] for j in chosen), loc, scale)

    def decode(self, z: Array, *, rounded: bool = True) -> Array:
        """Return the rows ``(n, d)`` of coordinates ``(n, D)``; discrete columns on their values if ``rounded``."""
        z = z * self.scale + self.loc
        parts = zip(self.columns, self.places(), strict=True)
        return np.stack([column.decode(z[:, place], rounded=rounded) for column, place in parts], 1)

    def tree(self) -> dict[str, Any]:
        """Return all of it as lists, numbers and strings, for :func:`energyppl.save_checkpoint`."""
        return {
            "names": list(self.names),
            "columns": [column.tree() for column in self.columns],
            "loc": self.loc.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "TableTransform":
        """Build a transform from :meth:`tree`.

        Raises:
            KeyError, TypeError, ValueError: if the tree is of something else.
        """
        columns = tuple(KINDS[own["class"]].from_tree(own) for own in tree["columns"])
        loc, scale = (np.asarray(tree[name], np.float64) for name in ("loc", "scale"))
        widths = {len(loc), len(scale), sum(column.width for column in columns)}
        if len(widths) != 1 or len(tree["names"]) != len(columns):
            raise ValueError(f"a transform's parts are of different widths, {sorted(widths)}")
        if loc.ndim != 1 or not (np.isfinite(loc).all() and np.isfinite(scale).all() and (scale > 0.0).all()):
            raise ValueError("a transform's coordinates are not finite")
        return cls(tuple(tree["names"]), columns, loc, scale)


# --- How a column is taken ---


def _choose(name: str, x: Array, grid: Array, categories: int, dtype: str, kind: str) -> Coordinates:
    if categories > 2:
        return Categories(categories)
    if kind == "auto" and len(grid) and len(np.unique(x)) == 2:
        return TwoValues(np.unique(x))
    if kind == "auto" and len(values := _few_values(x, grid)):
        counts = np.bincount(FewValues(values, np.empty(0)).place(x), minlength=len(values))
        shares = (counts + 0.5) / (counts.sum() + 0.5 * len(values))
        edges = np.concatenate([[0.0], np.cumsum(shares)])
        return FewValues(values, edges / edges[-1])
    gap = gap_of(grid)
    if not gap and dtype.lower().startswith(("int", "uint")):
        gap = whole_steps(x)
    atoms = None if gap or kind not in ("auto", "quantile") else _atoms(x)
    smooth = x[~np.isin(x, atoms.values)] if atoms is not None else x
    spread = smooth + gap * (np.random.default_rng(0).random(len(smooth)) - 0.5)
    if len(smooth) < _FEWEST_BESIDE:
        atoms = None
    # The ends of a lattice are those of all rows, as its values are: a held-out row at an end has a density.
    every = np.concatenate([x, grid])
    ends = (float(every.min()), float(every.max()))
    base, quantile = _shape(name, ends, len(x), spread, gap, kind if atoms is None else "quantile", len(grid) > 0)
    spline = None
    if quantile:
        knots = int(np.clip(len(spread) // _ROWS_A_KNOT, 5, _MAX_KNOTS))
        spline = fit_spline(base.forward(spread)[0], knots)
    named = "quantile" if quantile else ("none" if base.kind == "none" else base.kind)
    low, high = _range(ends, base, gap)
    return Numbers(named, base, spline, atoms, gap, low, high, decimals_of(smooth))


def _few_values(x: Array, grid: Array) -> Array:
    """Return the values of a column that is taken value by value, none of any other.

    They are all of a short lattice, and of a long one those that occur, if most of it never does and each of them
    several times, as in a designed experiment.
    """
    if len(grid) <= _FEW:
        return grid
    counts = np.bincount(FewValues(grid, np.empty(0)).place(x), minlength=len(grid))
    found: Array = grid[counts > 0]
    designed = len(found) <= _FEW and len(grid) > 2 * len(found) and counts[counts > 0].min() >= _DESIGNED
    return found if designed else np.empty(0)


def _atoms(x: Array) -> Atoms | None:
    """Find the values of a continuous column that too many rows share for a smooth density."""
    values, counts = np.unique(x, return_counts=True)
    often = (counts > _SPIKE * len(x)) & (counts >= 10)
    if not often.any() or len(values) < 3:
        return None
    chosen = np.sort(values[np.argsort(-np.where(often, counts, 0))[: min(_MAX_ATOMS, int(often.sum()))]])
    masses = np.array([(x == value).mean() for value in chosen])
    rest = x[~np.isin(x, chosen)]
    below = np.array([(rest < value).mean() if len(rest) else 0.5 for value in chosen])
    return Atoms(chosen, masses, below)


def _range(ends: tuple[float, float], base: Base, gap: float) -> tuple[float, float]:
    """Return the least and the largest value that samples may take."""
    if gap:
        return ends
    low, high = (0.0 if ends[0] >= 0.0 else -np.inf), np.inf
    if base.kind == "logit" or (base.kind == "log" and base.sign > 0):
        low = max(low, base.low)
    if base.kind == "logit":
        high = base.high
    elif base.kind == "log" and base.sign < 0:
        high = base.low
    return float(low), float(high)


def _shape(
    name: str, ends: tuple[float, float], count: int, spread: Array, gap: float, kind: str, on_grid: bool
) -> tuple[Base, bool]:
    """Return a column's closed-form map, and whether a spline to normal scores follows it."""
    (low, high), extent = ends, ends[1] - ends[0]
    crowded = ((spread <= low + 0.02 * extent).mean(), (spread >= high - 0.02 * extent).mean())
    few, least = count < _FEWEST_ROWS, max(_EDGE, _CROWD / len(spread))
    at_low, at_high = (bool(share >= least) and not few for share in crowded)
    # Cells reach half a gap beyond the ends, and a logarithm needs some room there.
    margin = gap if gap else extent / max(count, 20)
    below, above = (0.0, 0.0) if gap and on_grid else _edge_spacings(spread, extent)
    lower = low - max(margin, below)
    if not gap and low > 0.0 and (low <= 5.0 * margin or not at_low):
        lower = 0.0
    natural = [end for end in (1.0, 100.0) if end - 5.0 * margin <= high < end and not gap]
    upper = natural[0] if natural else high + max(margin, above)
    if kind == "none":
        return Base("none"), False
    if kind == "log":
        if low <= 0.0 and not gap:
            raise InvalidInput(f"{name!r} must be positive for its logarithm; got {low:g}: choose quantile")
        return Base("log", lower), False
    if kind == "logit":
        return Base("logit", lower, upper), False
    q = np.quantile(spread, _LEVELS)
    width, half = max((q[5] - q[1]) / 3.92, 1e-300), max(q[4] - q[2], 1e-300)
    wild = max(high - q[3], q[3] - low) / half > _WILD
    heavy = (q[6] - q[0]) / half > _HEAVY or wild
    skew = (q[5] + q[1] - 2.0 * q[3]) / (3.92 * width)
    if kind == "auto" and at_low and at_high and not heavy and abs(skew) < _SKEWED:
        return Base("logit", lower, upper), False
    if (low >= 0.0 and q[3] < _NEAR * width) or (at_low and skew > _SKEWED):
        base = Base("log", lower)
        plain = kind == "auto" and (few or ((lower == 0.0 or gap > 0.0) and _better_in_logs(base, spread)))
        return base, not plain
    if kind == "auto" and not wild and (few or not (heavy or abs(skew) > _SKEWED)):
        return Base("none"), False
    if at_high and skew < -_SKEWED and not heavy:
        return Base("log", upper, sign=-1.0), True
    return Base("asinh", float(q[3]), float(half if heavy else width)), True


def _edge_spacings(x: Array, extent: float) -> tuple[float, float]:
    """Return how far the few lowest and the few highest rows lie apart, a twentieth of the range at most.

    Another row lies beyond the ends by more than that with a probability of 2⁻³ over the number of rows, about, if the
    density is even there.
    """
    x, few = np.sort(x), min(_ROOM, len(x) - 1)
    return min(float(x[few] - x[0]), 0.05 * extent), min(float(x[-1] - x[-1 - few]), 0.05 * extent)


_LEVELS = (0.005, 0.025, 0.25, 0.5, 0.75, 0.975, 0.995)


def _better_in_logs(base: Base, x: Array) -> bool:
    """Tell whether a Gaussian describes a column's logarithms better than the column, and not badly."""
    t, slope = base.forward(x)
    q = np.quantile(t, _LEVELS)
    straight = abs(q[1] + q[5] - 2.0 * q[3]) < _SKEWED * (q[5] - q[1]) and (q[6] - q[0]) < _HEAVY * (q[4] - q[2])
    return bool(straight and float(slope.mean()) - np.log(t.std()) > -np.log(x.std()))

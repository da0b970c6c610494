"""Columns as coordinates of a continuous density: numbers, few values, categories; each with its way back.

A column's ``encode`` draws a point of its coordinates and a log weight such that the density or mass of the value is
the mean of density × weight over such draws: the weight holds the slope of the map (a density for each unit of the
column) and, for a value with a cell of its own, one over the density of the draw (a probability mass).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from energyppl._numerals import plain
from energyppl.data.codes import draw_in_cells, log_density_in_cells
from energyppl.data.grids import ROUNDING
from energyppl.data.monotone import (
    MAPS,
    Array,
    Atoms,
    Base,
    Spline,
    from_tree,
    log_normal,
    require_rising,
    tree_of,
    truncated_normal,
)

__all__ = ["KINDS", "Categories", "Coordinates", "FewValues", "Numbers", "TwoValues"]

_HEAP = 0.4  # width of the noise of two values at −1 and 1


@dataclass(frozen=True, eq=False)
class Numbers:
    """A column of numbers: continuous, on a lattice whose cells are filled evenly, or with some repeated values.

    Attributes:
        kind: ``none``, ``log``, ``logit`` or ``quantile``.
        base: the closed-form map.
        spline: on top of it, to normal scores; None but for ``quantile``.
        atoms: repeated values, or None.
        gap: between a lattice's values; 0 for a continuous column.
        low: the least value that is returned.
        high: the largest.
        decimals: that values are rounded to; None to leave all digits.

    Example:
        >>> import numpy as np
        >>> table = ep.data.table_from_array(np.exp(np.random.default_rng(0).normal(size=(500, 1))))
        >>> type(ep.data.TableTransform.fit(table).columns[0]).__name__
        'Numbers'
    """

    kind: str
    base: Base
    spline: Spline | None
    atoms: Atoms | None
    gap: float
    low: float
    high: float
    decimals: int | None = None
    width: ClassVar[int] = 1

    @property
    def random(self) -> bool:
        """True if encoding a value draws from its cell."""
        return self.gap > 0.0 or self.atoms is not None

    def words(self) -> str:
        """Say how the column is taken."""
        said = {"none": "as it is", "quantile": "by its normal scores"}.get(self.kind, f"by its {self.kind}")
        if self.gap:
            said += f", in steps of {plain(self.gap, 6)}"
        if self.atoms is not None:
            said += ", with " + ", ".join(
                f"{plain(value, 6)} in {mass:.0%} of the rows"
                for value, mass in zip(self.atoms.values, self.atoms.masses, strict=True)
            )
        return said

    def nearest(self, value: float) -> float:
        """Return the nearest value of the column's lattice, beyond its ends too; of a continuous column the value."""
        return float(self._lattice(np.float64(value))) if self.gap else value

    def encode(self, x: Array, u: Array) -> tuple[Array, Array]:
        """Return coordinates ``(n, 1)`` and log weights ``(n,)`` of values ``(n,)``, by uniform numbers ``(n, 1)``."""
        weight = np.zeros_like(x)
        if self.gap:
            x, weight = self._on_lattice(x) + self.gap * (u[:, 0] - 0.5), weight + np.log(self.gap)
        t, slope = self.base.forward(x)
        weight = weight + slope
        if self.spline is not None:
            with np.errstate(invalid="ignore"):
                t, slope = self.spline.forward(t)
            weight = weight + slope
        if self.atoms is None:
            return t[:, None], weight
        z, slope = self.atoms.make_room(t)
        weight = weight + slope
        low, high = self.atoms.spans()
        for value, start, end in zip(self.atoms.values, low, high, strict=True):
            own = x == value
            draws = truncated_normal(np.full(own.sum(), start), np.full(own.sum(), end), u[own, 0])
            z[own], weight[own] = draws, np.log(end - start) - log_normal(draws)
        return z[:, None], weight

    def _lattice(self, x: Any) -> Any:
        """Return the nearest values of the lattice, beyond its ends too."""
        return self.low + np.rint((x - self.low) / self.gap) * self.gap

    def _on_lattice(self, x: Array) -> Array:
        """Return values without their rounding, so that none leaves its cell: float32 keeps about seven digits."""
        nearest = self._lattice(x)
        return np.where(np.abs(x - nearest) < ROUNDING * self.gap, nearest, x)

    def decode(self, z: Array, *, rounded: bool = True) -> Array:
        """Return the values of coordinates ``(n, 1)``, on the lattice and in its decimals unless not ``rounded``."""
        t, atom = z[:, 0], None
        if self.atoms is not None:
            atom, t = self.atoms.find(t)
        if self.spline is not None:
            t = self.spline.inverse(t)
        x = self.base.inverse(t)
        if atom is not None and self.atoms is not None:
            x = np.where(atom >= 0, self.atoms.values[atom], x)
        if not rounded:
            return x
        if self.gap:
            x = self._lattice(x)
        if self.decimals is not None:
            x = np.round(x, self.decimals)
            x = x if self.gap else self.base.inside(x, 10.0**-self.decimals)
        return np.clip(x, self.low, self.high)

    def tree(self) -> dict[str, Any]:
        """Return the column as lists, numbers and strings."""
        parts = {name: None if (own := getattr(self, name)) is None else tree_of(own) for name in _PARTS}
        rest = {name: getattr(self, name) for name in ("kind", "gap", "low", "high", "decimals")}
        return {"class": "Numbers", **rest, **parts}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Numbers":
        """Build a column from :meth:`tree`.

        Raises:
            KeyError, TypeError, ValueError: if the tree is of something else.
        """
        parts = {name: from_tree(part, tree[name]) for name, part in _PARTS.items()}
        found = cls(**parts, **{name: tree[name] for name in ("kind", "gap", "low", "high", "decimals")})
        known = found.kind in _KINDS and all(isinstance(n, float | int) for n in (found.gap, found.low, found.high))
        decimals = found.decimals is None or (type(found.decimals) is int and 0 <= found.decimals < 300)
        if not (known and decimals and 0.0 <= found.gap < np.inf and found.low < found.high and found.base is not None):
            raise ValueError(f"a column of numbers has the range {found.low} to {found.high} and steps of {found.gap}")
        return found


_KINDS = (*MAPS, "quantile")
_PARTS: dict[str, type[Any]] = {"base": Base, "spline": Spline, "atoms": Atoms}


@dataclass(frozen=True, eq=False)
class FewValues:
    """A column of few numbers: each value has the share of the normal scores that it has of the rows.

    Attributes:
        values: ``(k,)``, increasing.
        edges: the probabilities between which they lie, from 0 to 1, ``(k + 1,)``.

    Example:
        >>> table = ep.data.table_from_array((torch.arange(60) % 4).numpy())
        >>> column = ep.data.TableTransform.fit(table).columns[0]
        >>> column.values, column.edges
        (array([0., 1., 2., 3.]), array([0.  , 0.25, 0.5 , 0.75, 1.  ]))
    """

    values: Array
    edges: Array
    width: ClassVar[int] = 1
    random: ClassVar[bool] = True

    def words(self) -> str:
        """Say how the column is taken."""
        return f"{len(self.values)} values, by their shares of the normal scores"

    def place(self, x: Array) -> NDArray[np.int64]:
        """Return the number of the nearest value."""
        middles = 0.5 * (self.values[1:] + self.values[:-1])
        place: NDArray[np.int64] = np.searchsorted(middles, x).astype(np.int64)
        return place

    def encode(self, x: Array, u: Array) -> tuple[Array, Array]:
        """Return coordinates ``(n, 1)`` and log weights ``(n,)`` of values ``(n,)``, by uniform numbers ``(n, 1)``.

        A value that the column never had has no mass.
        """
        k = self.place(x)
        low, high = self.edges[k], self.edges[k + 1]
        z = truncated_normal(low, high, u[:, 0])
        gap = float(np.diff(self.values).min())
        known = np.abs(x - self.values[k]) <= 1e-6 * gap
        weight = np.where(known, np.log(high - low) - log_normal(z), -np.inf)
        return z[:, None], np.where(np.isnan(x), np.nan, weight)

    def decode(self, z: Array, *, rounded: bool = True) -> Array:
        """Return the values of coordinates ``(n, 1)``; between them, by the place in the cell, unless ``rounded``."""
        p = ndtr(z[:, 0])
        k = np.clip(np.searchsorted(self.edges, p, side="right") - 1, 0, len(self.values) - 1)
        if rounded:
            return np.asarray(self.values[k])
        inside = (p - self.edges[k]) / (self.edges[k + 1] - self.edges[k]) - 0.5
        gaps = np.diff(self.values)
        left, right = np.concatenate([gaps[:1], gaps])[k], np.concatenate([gaps, gaps[-1:]])[k]
        found: Array = self.values[k] + inside * np.where(inside < 0.0, left, right)
        return found

    def jump(self, z: Array, u: Array) -> tuple[Array, Array]:
        """Return the same place in another value's cell for points ``(n, 1)``, and the log slope of that map, ``(n,)``.

        ``u``, uniform numbers ``(n,)``, choose the values; the way back is as likely to be chosen.
        """
        p, widths = ndtr(z[:, 0]), np.diff(self.edges)
        k = np.clip(np.searchsorted(self.edges, p, side="right") - 1, 0, len(widths) - 1)
        other = _another(k, len(widths), u)
        there = truncated_normal(self.edges[other], self.edges[other + 1], (p - self.edges[k]) / widths[k])
        return there[:, None], np.log(widths[other] / widths[k]) + log_normal(z[:, 0]) - log_normal(there)

    def tree(self) -> dict[str, Any]:
        """Return the column as lists, numbers and strings."""
        return {"class": "FewValues", **tree_of(self)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "FewValues":
        """Build a column from :meth:`tree`.

        Raises:
            KeyError, TypeError, ValueError: if the tree is of something else.
        """
        values, edges = (np.asarray(tree[name], np.float64) for name in ("values", "edges"))
        require_rising("a column's values", values, 2)
        require_rising("a column's edges", edges, 2)
        if len(edges) != len(values) + 1 or edges[0] != 0.0 or edges[-1] != 1.0:
            raise ValueError(f"a column of {len(values)} values has {len(edges)} edges, {edges[0]} to {edges[-1]}")
        return cls(values, edges)


@dataclass(frozen=True, eq=False)
class TwoValues:
    """A column of two numbers, or of two categories: a heap of Gaussian noise at −1 and one at 1, cut off at 0.

    Attributes:
        values: both, ``(2,)``, increasing.

    Example:
        >>> table = ep.data.table_from_array((torch.arange(60) % 2).numpy())
        >>> ep.data.TableTransform.fit(table).columns[0].values
        array([0., 1.])
    """

    values: Array
    width: ClassVar[int] = 1
    random: ClassVar[bool] = True

    def words(self) -> str:
        """Say how the column is taken."""
        return "two values, a heap for each"

    def encode(self, x: Array, u: Array) -> tuple[Array, Array]:
        """Return coordinates ``(n, 1)`` and log weights ``(n,)`` of values ``(n,)``, by uniform numbers ``(n, 1)``."""
        upper = x > self.values.mean()
        inside = float(ndtr(1.0 / _HEAP))
        off = truncated_normal(np.full(len(x), 1.0 - inside), np.ones(len(x)), u[:, 0])
        z = np.where(upper, 1.0, -1.0) * (1.0 + _HEAP * off)
        known = np.abs(x - self.values[upper.astype(np.int64)]) <= 1e-6 * float(np.ptp(self.values))
        weight = np.where(known, np.log(inside * _HEAP) - log_normal(off), -np.inf)
        return z[:, None], np.where(np.isnan(x), np.nan, weight)

    def decode(self, z: Array, *, rounded: bool = True) -> Array:
        """Return the values of coordinates ``(n, 1)``; on the line between them unless ``rounded``."""
        if rounded:
            return np.asarray(self.values[(z[:, 0] > 0.0).astype(np.int64)])
        found: Array = self.values.mean() + 0.5 * np.ptp(self.values) * z[:, 0]
        return found

    def jump(self, z: Array, u: Array) -> tuple[Array, Array]:
        """Return the same place in the other heap for points ``(n, 1)``, and the log slope of that map, 0."""
        return -z, np.zeros(len(z))

    def tree(self) -> dict[str, Any]:
        """Return the column as lists, numbers and strings."""
        return {"class": "TwoValues", **tree_of(self)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "TwoValues":
        """Build a column from :meth:`tree`.

        Raises:
            KeyError, TypeError, ValueError: if the tree is of something else.
        """
        values = np.asarray(tree["values"], np.float64)
        require_rising("a column's two values", values, 2)
        if len(values) != 2:
            raise ValueError(f"a column of two values has {len(values)}")
        return cls(values)


@dataclass(frozen=True, eq=False)
class Categories:
    """A column of three categories or more: one-hot codes with Gaussian noise, cut off where another code is larger.

    The cells, where one coordinate is the largest, fill all of space, so a category's mass is the density's over its
    cell (an argmax flow; Hoogeboom et al. 2021).  On a mixed table of 4,000 rows the differences of Gumbel variables,
    whose density has no gaps between the cells, gave the same likelihood of held-out rows, but samples that had lost a
    third of what hangs on the category; heaps apart keep it.

    Attributes:
        count: of the categories, k; each has a coordinate.

    Example:
        >>> import pandas as pd
        >>> table = ep.data.table_from_frame(pd.DataFrame({"kind": ["cat", "dog", "owl"] * 20}))
        >>> ep.data.TableTransform.fit(table).columns[0].count
        3
    """

    count: int
    random: ClassVar[bool] = True
    noise: ClassVar[float] = 0.2  # of the codes

    @property
    def width(self) -> int:
        """The number of coordinates."""
        return self.count

    def words(self) -> str:
        """Say how the column is taken."""
        return f"{self.count} categories, by one-hot codes with noise"

    def encode(self, x: Array, u: Array) -> tuple[Array, Array]:
        """Return coordinates ``(n, k)`` and log weights of categories ``(n,)``, by uniform numbers ``(n, k)``."""
        own = np.nan_to_num(x).astype(np.int64)
        z = draw_in_cells(own, u, self.noise)
        return np.where(np.isnan(x)[:, None], np.nan, z), -log_density_in_cells(z, own, self.noise)

    def decode(self, z: Array, *, rounded: bool = True) -> Array:
        """Return the categories of coordinates ``(n, k)``."""
        largest: Array = z.argmax(1).astype(np.float64)
        return largest

    def jump(self, z: Array, u: Array) -> tuple[Array, Array]:
        """Return points ``(n, k)`` with the largest coordinate exchanged for another one, and the log slope, 0.

        ``u``, uniform numbers ``(n,)``, choose the others; the way back is as likely to be chosen.
        """
        own, rows, found = z.argmax(1), np.arange(len(z)), z.copy()
        other = _another(own, self.count, u)
        found[rows, own], found[rows, other] = z[rows, other], z[rows, own]
        return found, np.zeros(len(z))

    def tree(self) -> dict[str, Any]:
        """Return the column as lists, numbers and strings."""
        return {"class": "Categories", "count": self.count}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Categories":
        """Build a column from :meth:`tree`."""
        if type(tree["count"]) is not int or not 1 < tree["count"] < 1_000_000:
            raise ValueError(f"a column has {tree['count']} categories")
        return cls(tree["count"])


def _another(own: NDArray[np.int64], count: int, u: Array) -> NDArray[np.int64]:
    """Return another one of so many values for each, by uniform numbers."""
    other: NDArray[np.int64] = (own + 1 + (u * (count - 1)).astype(np.int64)) % count
    return other


KINDS: dict[str, Any] = {cls.__name__: cls for cls in (Numbers, FewValues, TwoValues, Categories)}
Coordinates = Numbers | FewValues | TwoValues | Categories

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
from scipy.special import gammaln, ndtr

from energyppl.data.monotone import (
    Array,
    Atoms,
    Base,
    Spline,
    from_tree,
    log_normal,
    tree_of,
    truncated_normal,
)

__all__ = ["KINDS", "Categories", "Coordinates", "FewValues", "Numbers"]


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
    """

    kind: str
    base: Base
    spline: Spline | None
    atoms: Atoms | None
    gap: float
    low: float
    high: float
    width: ClassVar[int] = 1

    @property
    def random(self) -> bool:
        """Whether encoding a value draws from its cell."""
        return self.gap > 0.0 or self.atoms is not None

    def words(self) -> str:
        """Say how the column is taken."""
        said = {"none": "as it is", "quantile": "by its normal scores"}.get(self.kind, f"by its {self.kind}")
        if self.gap:
            said += f", in steps of {self.gap:.6g}"
        if self.atoms is not None:
            said += ", with " + ", ".join(
                f"{value:.6g} in {mass:.0%} of the rows"
                for value, mass in zip(self.atoms.values, self.atoms.masses, strict=True)
            )
        return said

    def encode(self, x: Array, u: Array) -> tuple[Array, Array]:
        """Return coordinates ``(n, 1)`` and log weights ``(n,)`` of values ``(n,)``, by uniform numbers ``(n, 1)``."""
        weight = np.zeros_like(x)
        if self.gap:
            x, weight = x + self.gap * (u[:, 0] - 0.5), weight + np.log(self.gap)
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

    def decode(self, z: Array, *, rounded: bool = True) -> Array:
        """Return the values of coordinates ``(n, 1)``, on the lattice unless not ``rounded``."""
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
            x = self.low + np.rint((x - self.low) / self.gap) * self.gap
        return np.clip(x, self.low, self.high)

    def tree(self) -> dict[str, Any]:
        """Return the column as lists, numbers and strings."""
        parts = {name: None if (own := getattr(self, name)) is None else tree_of(own) for name in _PARTS}
        return {"class": "Numbers", "kind": self.kind, "gap": self.gap, "low": self.low, "high": self.high, **parts}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Numbers":
        """Build a column from :meth:`tree`."""
        parts = {name: from_tree(part, tree[name]) for name, part in _PARTS.items()}
        return cls(tree["kind"], **parts, gap=tree["gap"], low=tree["low"], high=tree["high"])


_PARTS: dict[str, type[Any]] = {"base": Base, "spline": Spline, "atoms": Atoms}


@dataclass(frozen=True, eq=False)
class FewValues:
    """A column of few numbers, or of two categories: each value has the share of the normal scores that it has of rows.

    Attributes:
        values: ``(k,)``, increasing.
        edges: the probabilities between which they lie, from 0 to 1, ``(k + 1,)``.
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

    def tree(self) -> dict[str, Any]:
        """Return the column as lists, numbers and strings."""
        return {"class": "FewValues", **tree_of(self)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "FewValues":
        """Build a column from :meth:`tree`."""
        return cls(np.asarray(tree["values"], np.float64), np.asarray(tree["edges"], np.float64))


@dataclass(frozen=True, eq=False)
class Categories:
    """A column of three categories or more, as the differences of Gumbel variables of which its own is the largest.

    With shares p_c the largest of G_c ~ Gumbel(log p_c) is c with probability p_c (Gumbel's trick; Maddison et al. 2014
    draw the others given the largest), so encoded rows have a smooth density without walls, and the cells fill all of
    space, which one-hot codes with noise leave holes in (Hoogeboom et al. 2021).

    Attributes:
        shares: p_c, ``(k,)``; the coordinates are ``G_c − G_k`` for c < k, ``(k − 1)``.
    """

    shares: Array
    random: ClassVar[bool] = True

    @property
    def width(self) -> int:
        """The number of coordinates."""
        return len(self.shares) - 1

    def words(self) -> str:
        """Say how the column is taken."""
        return f"{len(self.shares)} categories, by {self.width} differences of Gumbel variables"

    def encode(self, x: Array, u: Array) -> tuple[Array, Array]:
        """Return coordinates ``(n, k − 1)`` and log weights of categories ``(n,)``, by uniforms ``(n, k)``."""
        k, log_p = len(self.shares), np.log(self.shares)
        own = np.nan_to_num(x).astype(np.int64)
        u = np.clip(u, 1e-12, 1.0 - 1e-12)
        rows = np.arange(len(x))
        top = -np.log(-np.log(u[rows, own]))
        free = log_p - np.log(-np.log(u))
        g = -np.logaddexp(-free, -top[:, None])  # a Gumbel variable given that it is less than the largest
        g[rows, own] = top
        z = g[:, :-1] - g[:, -1:]
        off = z - (log_p[:-1] - log_p[-1])
        log_density = gammaln(k) - off.sum(1) - k * np.logaddexp(0.0, _log_sum(-off))
        return np.where(np.isnan(x)[:, None], np.nan, z), log_p[own] - log_density

    def decode(self, z: Array, *, rounded: bool = True) -> Array:
        """Return the categories of coordinates ``(n, k − 1)``."""
        largest: Array = np.concatenate([z, np.zeros((len(z), 1))], 1).argmax(1).astype(np.float64)
        return largest

    def tree(self) -> dict[str, Any]:
        """Return the column as lists, numbers and strings."""
        return {"class": "Categories", **tree_of(self)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Categories":
        """Build a column from :meth:`tree`."""
        return cls(np.asarray(tree["shares"], np.float64))


def _log_sum(values: Array) -> Array:
    found: Array = np.logaddexp.reduce(values, axis=1)
    return found


KINDS: dict[str, Any] = {cls.__name__: cls for cls in (Numbers, FewValues, Categories)}
Coordinates = Numbers | FewValues | Categories

"""Transforms of a table's columns to coordinates in which a smooth density can be learned, and back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from energyppl._checks import checked
from energyppl.data.choices import choose
from energyppl.data.columns import KINDS, Coordinates, FewValues, Numbers
from energyppl.data.hashed import hashed_uniforms
from energyppl.data.tables import Table
from energyppl.errors import InvalidInput

__all__ = ["TableTransform"]

Array = NDArray[np.float64]

_CHOICES = ("auto", "none", "log", "logit", "quantile")
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
            choose(name, values[~np.isnan(values)], grid, len(labels), dtype, kinds.get(name, "auto"))
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

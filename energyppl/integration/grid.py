"""Grids of equal cells over a box, and the options of integrals on them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from energyppl._checks import check_count, check_fields, check_positive, shape_text
from energyppl.errors import InvalidInput

__all__ = ["Grid", "GridOptions"]


@dataclass(frozen=True)
class Grid:
    """Grid of equal cells over a box of one or two dimensions; the nodes are the cells' centres.

    >>> ep.Grid((-4.0, -4.0), (4.0, 4.0), (16, 16)).size
    256

    Attributes:
        low: the box's lower corner, one number per dimension.
        high: its upper corner.
        points: cells along each dimension, at least 8.

    Raises:
        InvalidInput: lengths differ, more than two dimensions, an empty or infinite side, or too few points.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    points: tuple[int, ...]

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("low", "high", "points"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 1 <= len(self.low) <= 2:
            raise InvalidInput(
                f"low must have one or two dimensions; got {len(self.low)}: estimate the normalizer by sampling instead"
            )
        if not len(self.low) == len(self.high) == len(self.points):
            raise InvalidInput(
                f"low, high and points must be equally long; got {len(self.low)}, {len(self.high)} and "
                f"{len(self.points)}: pass one number per dimension"
            )
        for low, high, points in zip(self.low, self.high, self.points, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InvalidInput(f"low must be finite and below high; got {low} and {high}: swap or change them")
            check_count("points", points, at_least=8)

    @classmethod
    def around(cls, data: Tensor, *, margin: float = 0.5, points: int = 256) -> "Grid":
        """Span the box that holds the data and ``margin`` times their range more on every side.

        Args:
            data: ``(n, d)`` with d of 1 or 2, or ``(n,)``.
            margin: share of the range added on each side, not negative.
            points: cells along each dimension.
        """
        if data.dim() not in (1, 2) or len(data) < 2 or not bool(torch.isfinite(data).all()):
            raise InvalidInput(
                f"data must be at least two finite rows (n, d); got {shape_text(data.shape)}: pass the points to cover"
            )
        if not (math.isfinite(margin) and margin >= 0):
            raise InvalidInput(f"margin must be finite and not negative; got {margin}: 0.5 is usual")
        rows = data.detach().reshape(len(data), -1).double()
        low, high = rows.amin(0), rows.amax(0)
        if not bool((high > low).all()):
            raise InvalidInput("data must vary in every dimension; got a constant column: give Grid its corners")
        extra = margin * (high - low)
        return cls(tuple((low - extra).tolist()), tuple((high + extra).tolist()), (points,) * rows.shape[1])

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.low)

    @property
    def size(self) -> int:
        """Number of nodes."""
        return math.prod(self.points)

    @property
    def cell(self) -> float:
        """Volume of one cell, which is every node's weight."""
        return math.prod((b - a) / n for a, b, n in zip(self.low, self.high, self.points, strict=True))

    @property
    def weights(self) -> Tensor:
        """Every node's weight ``(n,)``, float64; they add up to the box's volume."""
        return torch.full((self.size,), self.cell, dtype=torch.float64)

    def axes(self) -> list[Tensor]:
        """Return the nodes' coordinates along each dimension, float64."""
        return [
            a + (torch.arange(n, dtype=torch.float64) + 0.5) * ((b - a) / n)
            for a, b, n in zip(self.low, self.high, self.points, strict=True)
        ]

    def nodes(self) -> Tensor:
        """Return all nodes ``(n, d)``, float64, the last dimension running fastest."""
        return torch.cat(list(self.chunks(self.size)))

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Yield the nodes in order, at most ``size`` rows at a time (a fine grid is never held whole)."""
        axes = self.axes()
        for start in range(0, self.size, size):
            index = torch.arange(start, min(start + size, self.size))
            if self.dim == 1:
                yield axes[0][index].unsqueeze(1)
            else:
                yield torch.stack([axes[0][index // self.points[1]], axes[1][index % self.points[1]]], 1)


@dataclass(frozen=True)
class GridOptions:
    """Options of an integral on a grid.

    Attributes:
        tolerance: largest error of log Z, in nats, and largest share of the mass that may leak out of the box.
        max_points: most points per dimension.
        dtype: of the points given to the potential; that of its networks, else torch's default, if None.  The sums are
            in float64 whatever it is.
        chunk: points evaluated at a time.

    Raises:
        InvalidInput: for numbers out of range.

    Example:
        >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (1,))
        >>> options = ep.integration.GridOptions(tolerance=1e-6)
        >>> grid = ep.Grid((-9.0,), (9.0,), (64,))
        >>> round(float(ep.integration.expectation(lambda x: x.square().sum(-1), bell, grid, options=options)), 4)
        1.0
    """

    tolerance: float = 1e-3
    max_points: int = 4096
    dtype: torch.dtype | None = None
    chunk: int = 4096  # of a network 65,536 take 2.4 times as long, since their layers leave the cache

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("tolerance", self.tolerance)
        check_count("max_points", self.max_points, at_least=8)
        check_count("chunk", self.chunk)

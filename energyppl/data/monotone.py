"""Monotone maps of one column onto the line, each with its inverse and the logarithm of its slope."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

__all__ = ["MAPS", "Atoms", "Base", "Spline", "fit_spline", "require_rising"]

Array = NDArray[np.float64]

_FARTHEST = 8.0  # normal scores beyond are taken as this where probabilities are needed
MAPS = ("none", "log", "logit", "asinh")


@dataclass(frozen=True, eq=False)
class Base:
    """A closed-form map: ``none``, ``log`` of the distance to a bound, ``logit`` between two, or ``asinh``.

    Attributes:
        kind: its name.
        low: the bound, the lower of two, or the middle of ``asinh``.
        high: the upper bound, or the width of ``asinh``.
        sign: −1 for a ``log`` of the distance to an upper bound.
    """

    kind: str
    low: float = 0.0
    high: float = 1.0
    sign: float = 1.0

    def require(self) -> None:
        """Require what a map of each kind needs.

        Raises:
            ValueError: otherwise.
        """
        ends = [self.low, self.high, self.sign]
        plain = self.kind in MAPS and all(isinstance(end, float | int) and np.isfinite(end) for end in ends)
        fits = plain and self.sign in (-1, 1)
        if not fits or (self.kind == "logit" and self.low >= self.high) or (self.kind == "asinh" and self.high <= 0):
            raise ValueError(f"a column's map is {self.kind!r} with {ends}")

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return the map of values, ``(n,)``, and the logarithm of its slope."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.kind == "log":
                t = np.log(np.maximum(self.sign * (x - self.low), 0.0))
                return self.sign * t, -t
            if self.kind == "logit":
                below, above = np.log(np.maximum(x - self.low, 0.0)), np.log(np.maximum(self.high - x, 0.0))
                return below - above, np.log(self.high - self.low) - below - above
        if self.kind == "asinh":
            u = (x - self.low) / self.high
            return np.arcsinh(u), -0.5 * np.log1p(np.square(u)) - np.log(self.high)
        return x, np.zeros_like(x)

    def inverse(self, t: Array) -> Array:
        """Return the values that are mapped to ``t``."""
        if self.kind == "log":
            return self.low + self.sign * np.exp(np.clip(self.sign * t, -700.0, 700.0))
        if self.kind == "logit":
            p = 0.5 * (1.0 + np.tanh(0.5 * t))
            return self.low + (self.high - self.low) * p
        if self.kind == "asinh":
            return self.low + self.high * np.sinh(np.clip(t, -700.0, 700.0))
        return t

    def inside(self, x: Array, unit: float) -> Array:
        """Return rounded values, those at a bound, where there is no density, a unit farther in."""
        if self.kind == "log":
            return np.where(self.sign * (x - self.low) <= 0.0, x + self.sign * unit, x)
        if self.kind == "logit":
            x = np.where(x <= self.low, x + unit, x)
            return np.where(x >= self.high, x - unit, x)
        return x


@dataclass(frozen=True, eq=False)
class Spline:
    """A monotone rational-quadratic spline with linear tails (Gregory & Delbourgo 1982; Durkan et al. 2019).

    Attributes:
        x: knots, increasing, ``(k,)``.
        y: their values, increasing.
        slope: their slopes, positive.

    Example:
        >>> import numpy as np
        >>> from energyppl.data.monotone import Spline
        >>> spline = Spline(x=np.array([0.0, 1.0, 2.0]), y=np.array([0.0, 3.0, 4.0]), slope=np.array([2.0, 2.0, 1.0]))
        >>> y, _ = spline.forward(np.array([0.5, 1.0]))
        >>> y[1], np.allclose(spline.inverse(y), [0.5, 1.0])
        (np.float64(3.0), True)
    """

    x: Array
    y: Array
    slope: Array

    def require(self) -> None:
        """Require knots that rise, and positive slopes.

        Raises:
            ValueError: otherwise.
        """
        require_rising("a spline's knots", self.x, 2)
        require_rising("a spline's values", self.y, 2)
        if not self.x.shape == self.y.shape == self.slope.shape:
            raise ValueError("a spline's parts are of different lengths")
        if not (np.isfinite(self.slope).all() and (self.slope > 0.0).all()):
            raise ValueError("a spline's slopes are not positive")

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return the spline at ``x``, ``(n,)``, and the logarithm of its slope there."""
        k, width, height, s = self._piece(self.x, x)
        left, right = self.slope[k], self.slope[k + 1]
        xi = np.clip((x - self.x[k]) / width, 0.0, 1.0)
        both = xi * (1.0 - xi)
        below = s + (left + right - 2.0 * s) * both
        y = self.y[k] + height * (s * xi * xi + left * both) / below
        log_slope = 2.0 * np.log(s / below) + np.log(right * xi * xi + 2.0 * s * both + left * (1.0 - xi) ** 2)
        under, over = x < self.x[0], x > self.x[-1]
        y = np.where(under, self.y[0] + self.slope[0] * (x - self.x[0]), y)
        y = np.where(over, self.y[-1] + self.slope[-1] * (x - self.x[-1]), y)
        ends = np.where(under, np.log(self.slope[0]), np.log(self.slope[-1]))
        return y, np.where(under | over, ends, log_slope)

    def inverse(self, y: Array) -> Array:
        """Return where the spline is ``y``."""
        k, width, height, s = self._piece(self.y, y)
        left, right = self.slope[k], self.slope[k + 1]
        off = np.clip(y - self.y[k], 0.0, height)
        bend = left + right - 2.0 * s
        a, b, c = height * (s - left) + off * bend, height * left - off * bend, -s * off
        xi = -2.0 * c / (b + np.sqrt(np.maximum(b * b - 4.0 * a * c, 0.0)))
        x = self.x[k] + width * xi
        x = np.where(y < self.y[0], self.x[0] + (y - self.y[0]) / self.slope[0], x)
        found: Array = np.where(y > self.y[-1], self.x[-1] + (y - self.y[-1]) / self.slope[-1], x)
        return found

    def _piece(self, knots: Array, at: Array) -> tuple[NDArray[np.int64], Array, Array, Array]:
        k = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2).astype(np.int64)
        width, height = self.x[k + 1] - self.x[k], self.y[k + 1] - self.y[k]
        return k, width, height, height / width


def fit_spline(t: Array, knots: int) -> Spline:
    """Fit the map of values to their normal scores: knots at quantiles, evenly spaced in their scores.

    Slopes are the geometric means of the neighbouring pieces', so that the density has no steps.
    """
    ordered = np.sort(t)
    edge, end = (float(ndtri(share)) for share in (max(0.004, 4.0 / len(t)), 0.5 / len(t)))
    scores = np.concatenate([[end], np.linspace(edge, -edge, knots), [-end]])
    places = np.quantile(ordered, ndtr(scores))
    places[[0, -1]] = ordered[[0, -1]]  # so that a wild cell is no farther out than the largest of so many
    keep = np.concatenate([[True], np.diff(places) > 1e-9 * max(float(places[-1] - places[0]), 1e-300)])
    places, scores = places[keep], scores[keep]
    if len(places) < 3:
        places = np.array([ordered[0], ordered[len(ordered) // 2], ordered[-1]]) + np.array([-1e-6, 0.0, 1e-6])
        scores = np.array([edge, 0.0, -edge])
    pieces = np.log(np.diff(scores) / np.diff(places))
    inner = 0.5 * (pieces[1:] + pieces[:-1])
    return Spline(places, scores, np.exp(np.concatenate([pieces[:1], inner, pieces[-1:]])))


@dataclass(frozen=True, eq=False)
class Atoms:
    """Values that many rows share, in a column that is continuous otherwise: each gets its share of the normal scores.

    Attributes:
        values: ``(a,)``, increasing.
        masses: their shares of the rows.
        below: the shares of the continuous rows below each.

    Example:
        >>> import numpy as np
        >>> from energyppl.data.monotone import Atoms
        >>> zero = Atoms(values=np.array([0.0]), masses=np.array([0.5]), below=np.array([0.4]))  # half are 0
        >>> start, end = zero.spans()
        >>> round(float(start[0]), 3), round(float(end[0]), 3)
        (0.2, 0.7)
    """

    values: Array
    masses: Array
    below: Array

    def require(self) -> None:
        """Require values that rise, with shares of the rows that leave some to the others.

        Raises:
            ValueError: otherwise.
        """
        require_rising("repeated values", self.values, 1)
        if not self.values.shape == self.masses.shape == self.below.shape:
            raise ValueError("the parts of repeated values are of different lengths")
        shares = np.concatenate([self.below, [self.masses.sum()]])
        rise = (np.diff(self.below) >= 0.0).all()
        if not (rise and (self.masses > 0.0).all() and (shares >= 0.0).all() and (shares <= 1.0).all()):
            raise ValueError("the shares of repeated values are none")
        if not self.masses.sum() < 1.0:
            raise ValueError("repeated values leave no rows to the others")

    def spans(self) -> tuple[Array, Array]:
        """Return the probabilities between which each value lies, ``(a,)`` each."""
        continuous = 1.0 - self.masses.sum()
        start = continuous * self.below + np.concatenate([[0.0], np.cumsum(self.masses)[:-1]])
        return start, start + self.masses

    def make_room(self, score: Array) -> tuple[Array, Array]:
        """Return where the score of a continuous row lies between the atoms, and the logarithm of the map's slope."""
        continuous, score = 1.0 - self.masses.sum(), np.clip(score, -_FARTHEST, _FARTHEST)
        p = ndtr(score)
        before = (p[:, None] > self.below) @ self.masses
        # From the nearer end, so that the upper tail keeps its digits.
        upper = continuous * ndtr(-score) + self.masses.sum() - before
        z = np.where(p < 0.5, ndtri(np.maximum(continuous * p + before, 1e-300)), -ndtri(np.maximum(upper, 1e-300)))
        return z, np.log(continuous) - 0.5 * np.square(score) + 0.5 * np.square(z)

    def find(self, z: Array) -> tuple[NDArray[np.int64], Array]:
        """Return the atom that each score belongs to, −1 for none, and the score that it has without atoms."""
        low, high = self.spans()
        p, continuous = ndtr(z), 1.0 - self.masses.sum()
        inside = (p[:, None] >= low) & (p[:, None] < high)
        atom = np.where(inside.any(1), inside.argmax(1), -1)
        before = (p[:, None] >= high) @ self.masses
        own, rest = (p - before) / continuous, (ndtr(-z) - (self.masses.sum() - before)) / continuous
        score = np.where(p < 0.5, ndtri(np.clip(own, 1e-16, 1.0)), -ndtri(np.clip(rest, 1e-16, 1.0)))
        return atom, np.clip(score, -_FARTHEST, _FARTHEST)


def log_normal(z: Array) -> Array:
    """Return the standard normal's log density."""
    found: Array = -0.5 * np.square(z) - 0.5 * np.log(2.0 * np.pi)
    return found


def truncated_normal(low: Array, high: Array, u: Array) -> Array:
    """Return draws of a standard normal whose probabilities lie between two bounds, by uniform numbers ``u``."""
    p = low + (high - low) * u
    q = (1.0 - high) + (high - low) * (1.0 - u)
    found: Array = np.where(p < 0.5, ndtri(np.clip(p, 1e-300, 1.0)), -ndtri(np.clip(q, 1e-300, 1.0)))
    return found


def tree_of(value: Any) -> dict[str, Any]:
    """Return a map's fields as lists and numbers."""
    return {name: own.tolist() if isinstance(own, np.ndarray) else own for name, own in vars(value).items()}


def from_tree(cls: type[Any], tree: Mapping[str, Any] | None) -> Any:
    """Build a map from its fields.

    Raises:
        TypeError, ValueError: if they are none.
    """
    if tree is None:
        return None
    own = {name: np.asarray(own, np.float64) if isinstance(own, list) else own for name, own in tree.items()}
    found = cls(**own)
    found.require()
    return found


def require_rising(name: str, values: Array, at_least: int) -> None:
    """Require finite numbers, each above the one before it.

    Raises:
        ValueError: otherwise.
    """
    if values.ndim != 1 or len(values) < at_least:
        raise ValueError(f"{name} must be {at_least} or more; got shape {values.shape}")
    if not (np.isfinite(values).all() and (np.diff(values) > 0.0).all()):
        raise ValueError(f"{name} do not rise")

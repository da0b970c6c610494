"""Uniform numbers that hang on a row's values alone, so that equal rows get equal ones wherever they are."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["hashed_uniforms"]


def hashed_uniforms(values: NDArray[np.float64], width: int, count: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield uniform numbers in [0, 1) for rows, ``(n, width)``, ``count`` times.

    Args:
        values: the rows, ``(n, d)``; NaN counts as 0.
        width: numbers for each row.
        count: how many times.
        seed: gives others.

    Example:
        >>> import numpy as np
        >>> from energyppl.data.hashed import hashed_uniforms
        >>> first, second = hashed_uniforms(np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]), width=3, count=2, seed=0)
        >>> np.array_equal(first[0], first[2]), np.array_equal(first[0], first[1]), np.array_equal(first, second)
        (True, False, False)
    """
    row = np.full(len(values), seed, np.uint64)
    for x in values.T:
        row = _mixed(row ^ np.ascontiguousarray(np.nan_to_num(x) + 0.0).view(np.uint64))  # −0 is 0 then
    at = np.arange(width, dtype=np.uint64)
    for draw in range(count):
        mixed = _mixed(row[:, None] ^ _mixed(at + np.uint64(draw * width)))
        yield (mixed >> np.uint64(11)) * 2.0**-53


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a hash of each number (SplitMix64; Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return found

"""One-hot codes with Gaussian noise, cut off where another code is larger: the cells of categories."""

import functools

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from energyppl.data.monotone import log_normal, truncated_normal

__all__ = ["draw_in_cells", "log_density_in_cells"]

Array = NDArray[np.float64]


def draw_in_cells(own: NDArray[np.int64], u: Array, noise: float) -> Array:
    """Return points ``(n, k)`` around the codes of categories ``(n,)``, by uniform numbers ``(n, k)``."""
    rows = np.arange(len(own))
    grid, cumulative = _largest(u.shape[1], noise)
    top = np.interp(u[rows, own], cumulative / cumulative[-1], grid)
    bound = np.repeat(ndtr(top / noise)[:, None], u.shape[1], 1)
    z = noise * truncated_normal(np.zeros_like(u), bound, u)
    z[rows, own] = top
    return z


def log_density_in_cells(z: Array, own: NDArray[np.int64], noise: float) -> Array:
    """Return the log densities with which points ``(n, k)`` of the cells are drawn, ``(n,)``."""
    off = z / noise
    off[np.arange(len(own)), own] -= 1.0 / noise
    inside = _largest(z.shape[1], noise)[1][-1]
    density: Array = log_normal(off).sum(1) - z.shape[1] * np.log(noise) - np.log(inside)
    return density


@functools.cache
def _largest(count: int, noise: float) -> tuple[Array, Array]:
    """Return a grid of the own coordinate, and its distribution where all others are smaller, up to it."""
    grid = np.linspace(1.0 - 8.0 * noise, 1.0 + 8.0 * noise, 4001)
    density = np.exp(log_normal((grid - 1.0) / noise)) / noise * ndtr(grid / noise) ** (count - 1)
    return grid, np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])

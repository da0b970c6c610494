"""Probabilities of categories under a density of their one-hot codes with noise."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energyppl.data.codes import draw_in_cells, log_density_in_cells
from energyppl.data.columns import Categories

__all__ = ["POINTS", "category_probabilities"]

_WIDTHS = (1.0, 2.0)  # of the proposals, in those of the codes' noise: a density may be wider than the codes are
POINTS = 1024  # in a category's cell

LogDensity = Callable[[NDArray[np.float64]], Tensor]
"""Maps points of a column's coordinates, ``(n, k)``, to log densities, ``(n, rows)``, up to a constant of each row."""


def category_probabilities(column: Categories, log_density: LogDensity) -> Tensor:
    """Integrate densities over the cells of categories, ``(rows, k)``, float64, and bring the sums to 1.

    By importance sampling at Sobol points of two Gaussians around each code, of the codes' noise and of twice that, cut
    off at the cell and weighed as one mixture (Owen & Zhou 2000).  By the codes' noise alone one point of a thousand
    has most of the weight where the density is wider than the codes.
    """
    masses = []
    for own in range(column.count):
        points, log_proposal = _in_cell(column.count, own, column.noise)
        masses.append((log_density(points).double().cpu() - torch.as_tensor(log_proposal)[:, None]).logsumexp(0))
    return torch.stack(masses, 1).softmax(1)


def _in_cell(count: int, own: int, noise: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points of a category's cell, and the log density of the mixture that they are drawn from."""
    each = POINTS // len(_WIDTHS)
    drawn = []
    for number, width in enumerate(_WIDTHS):
        sobol = torch.quasirandom.SobolEngine(count, scramble=True, seed=len(_WIDTHS) * own + number)
        uniform = sobol.draw(each, dtype=torch.float64).clamp(1e-9, 1.0 - 1e-9).numpy()
        drawn.append(draw_in_cells(np.full(each, own), uniform, width * noise))
    points = np.concatenate(drawn)
    parts = [log_density_in_cells(points, np.full(len(points), own), width * noise) for width in _WIDTHS]
    return points, np.logaddexp.reduce(parts, 0) - np.log(len(_WIDTHS))

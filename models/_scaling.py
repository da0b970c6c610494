"""Standardization that a few rows can't ruin."""

from collections.abc import Sequence

import torch
from torch import Tensor

from energyppl.errors import warn_user

__all__ = ["robust_scaling"]

_HEAVY = 10.0  # times the standard deviation that a Gaussian with the same central 95 % of rows has
_CENTRAL = 3.919928  # the width of those in a Gaussian, in standard deviations


def robust_scaling(
    rows: Tensor, loc: Tensor, scale: Tensor, names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Replace mean and standard deviation by the median and the central 95 % where a few rows rule them.

    A coordinate is one of those where the standard deviation is above ten times the width of the central 95 % of rows
    / 3.92, which are equal for a Gaussian (quartiles would miss a mode of a tenth of the rows): one cell of 1e8 would
    make all other rows one point in float32.

    Args:
        rows: ``(n, *event)``, float64.
        loc: the mean, ``(*event)``.
        scale: the standard deviation, ``(*event)``.
        names: of the coordinates; their numbers if None.

    Returns:
        loc and scale, ``(*event)``.
    """
    ordered = rows.flatten(1).sort(0).values
    low, middle, high = (ordered[round(q * (len(ordered) - 1))].reshape(loc.shape) for q in (0.025, 0.5, 0.975))
    width = (high - low) / _CENTRAL
    heavy = (scale > _HEAVY * width) & (width > 2.0 * torch.finfo(torch.float32).eps * middle.abs())
    places = heavy.flatten().nonzero()[:, 0].tolist()
    if not places:
        return loc, scale
    named = ", ".join(repr(names[i]) if names is not None else str(i) for i in places[:20])
    warn_user(
        f"a few rows rule the standard deviation of coordinate(s) {named}, which is more than {_HEAVY:.0f} times what "
        "the central 95 % of the rows say: their median and width standardize them instead. Look for wrong cells "
        "there, or take the logarithm of a positive column",
    )
    return torch.where(heavy, middle, loc), torch.where(heavy, width, scale)

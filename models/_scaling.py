"""Standardization that a few rows can't ruin."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from energyppl.errors import warn_user
from energyppl.potentials.covariance import narrowest_width

__all__ = ["one_scale", "robust_scaling", "robustly_standardized", "warn_of_hidden_direction", "warn_of_narrow_halves"]

_HEAVY = 10.0  # times the standard deviation that a Gaussian with the same central 95 % of rows has
_HALF = 1.348980  # the width of the central half of a Gaussian, in standard deviations
_HIDDEN = 2.0  # times the rows' width: a noise by which a density loses .4 nats
_LEAST_NOISE = 0.001  # below it a schedule can't help
_MOST_ROWS, _MOST_COLUMNS = 20_000, 64  # that noise is judged by
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
    loc, scale, heavy = _robust(rows, loc, scale)
    places = heavy.flatten().nonzero()[:, 0].tolist()
    if places:
        named = ", ".join(repr(names[i]) if names is not None else str(i) for i in places[:20])
        warn_user(
            f"a few rows rule the standard deviation of coordinate(s) {named}, which is more than {_HEAVY:.0f} times "
            "what the central 95 % of the rows say: their median and width standardize them instead. Look for wrong "
            "cells there, or take the logarithm of a positive column",
        )
    return loc, scale


def _robust(rows: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loc and scale as :func:`robust_scaling` does, and where it replaced them."""
    ordered = rows.flatten(1).sort(0).values
    low, middle, high = (ordered[round(q * (len(ordered) - 1))].reshape(loc.shape) for q in (0.025, 0.5, 0.975))
    width = (high - low) / _CENTRAL
    heavy = (scale > _HEAVY * width) & (width > 2.0 * torch.finfo(torch.float32).eps * middle.abs())
    return torch.where(heavy, middle, loc), torch.where(heavy, width, scale), heavy


def robustly_standardized(rows: Tensor) -> Tensor:
    """Return rows ``(n, d)`` as :func:`robust_scaling` standardizes them, without its warning."""
    rows = rows.double()
    loc, scale, _ = _robust(rows, rows.mean(0), rows.std(0))
    return (rows - loc) / scale.clamp(min=1e-300)


def one_scale(rows: Tensor, loc: Tensor) -> tuple[Tensor, Tensor]:
    """Return loc and one scale for all coordinates; the medians and their width where a few cells rule the deviation.

    Args:
        rows: ``(n, *event)``, float64.
        loc: the means, ``(*event)``; equal ones stay equal, as those of an image's channel.

    Returns:
        loc, ``(*event)``, and the scale, ``()``.
    """
    scale = (rows - loc).square().mean().sqrt()
    middle = rows.median(0).values
    if loc.dim() == 3:
        middle = middle.flatten(1).median(1).values[:, None, None].expand(loc.shape)
    cells = (rows - middle).flatten()
    width = (_quantile(cells, 0.975) - _quantile(cells, 0.025)) / _CENTRAL
    if not _HEAVY * width < scale or not bool(width > 0.0):
        return loc, scale
    warn_user(
        f"a few cells rule the standard deviation of all coordinates, which is more than {_HEAVY:.0f} times what the "
        "central 95 % of the cells say: the medians and their width standardize them instead. Look for wrong cells"
    )
    return middle, width


def warn_of_narrow_halves(rows: Tensor, scale: Tensor) -> None:
    """Warn where half of the rows or more lie within a small part of what one standard deviation has become.

    Such are columns of mostly one value, and those of which a tenth lies far from the others.

    Args:
        rows: ``(n, *event)``.
        scale: that standardizes them, ``(*event)``.
    """
    low, high = _quantile(rows, 0.25), _quantile(rows, 0.75)
    places = (scale > _HEAVY / _HALF * (high - low)).flatten().nonzero()[:, 0].tolist()
    if places:
        warn_user(
            f"the standard deviation of coordinate(s) {', '.join(map(str, places[:20]))} is more than {_HEAVY:.0f} "
            "times what the central half of the rows says: most rows nearly share one value there, and few lie far "
            "away, which a smooth density tells apart poorly. Transform the column, or leave it to ep.tables.fit, "
            "which knows repeated values and heavy tails where there are rows enough to tell them"
        )


def warn_of_hidden_direction(rows: Tensor, noise: float) -> None:
    """Warn where the noise of level 0 is wider than rows in the direction in which they vary least.

    Args:
        rows: standardized, ``(n, d)``.
        noise: its standard deviation, likewise.
    """
    if noise <= _LEAST_NOISE or not 2 <= rows.shape[1] <= _MOST_COLUMNS:
        return
    ratio = noise / max(narrowest_width(rows[:: max(1, len(rows) // _MOST_ROWS)]), 1e-6)
    if ratio > _HIDDEN:
        lost = 0.5 * (1.0 / (1.0 + ratio**2) - 1.0 + math.log1p(ratio**2))
        warn_user(
            f"level 0's noise, {noise:.3g} of each coordinate's standard deviation, is {ratio:.3g} times as wide as "
            f"the data in the direction in which they vary least, so densities are about {lost:.2g} nats a row too "
            "low: coordinates nearly determine each other. Drop one, or take a schedule with less noise at level 0, as "
            "NoiseSchedule.cosine(levels, log_snr_max=ep.models.suited_log_snr_max(data))"
        )


def _quantile(rows: Tensor, share: float) -> Tensor:
    return rows.kthvalue(1 + round(share * (len(rows) - 1)), 0).values

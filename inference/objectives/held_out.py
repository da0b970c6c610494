"""Measures of held-out data with the same noise at every call."""

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from energyppl._checks import append_dims, check_data, check_kind
from energyppl._seeds import seeded
from energyppl.autodiff.gradient import energy_only, gradient_only
from energyppl.inference.levels.contract import EnergyModel, LevelModel
from energyppl.inference.objectives.contract import diffuse

__all__ = ["MEASURE_SEED", "conditional_contrast", "denoising_error", "fixed_noise", "row_weights", "weighted_mean"]

_NEAR, _FAR = 0.1, 1.5  # how far noise lies from its data point, in standard deviations
_OUTLYING = 50.0  # widths of a column
MEASURE_SEED = 7_482_913  # nobody's: data drawn after manual_seed(0) would be the very noise that seed 0 gives


def fixed_noise() -> AbstractContextManager[None]:
    """Make random numbers the same at every call; outside they go on undisturbed."""
    return seeded(MEASURE_SEED)


def conditional_contrast(model: EnergyModel, data: Tensor, level: int = 0) -> float:
    """Return the conditional noise contrast ``E log(1 + exp(U(x) − U(y)))``, y = x + noise (Ceylan & Gutmann 2018).

    As y given x is as likely as x given y, the noise's density and log Z cancel: a proper score of the energy itself,
    at the same cost in any dimension.  The lengths of the noise are spread evenly, on a log scale, from 0.1 to 1.5
    standard deviations.  It follows the likelihood where denoising does not, whose optimum is another density: that of
    the data with its noise.

    Args:
        model: any energy in standardized coordinates.
        data: held-out rows, ``(n, *event)``.
        level: of a model of levels.

    Returns:
        Lower is better, and log 2 is what a constant energy gets; the noise is the same at every call.

    Example:
        >>> ep.objectives.conditional_contrast(ep.EBM(ep.MLPEnergy((2,), levels=1)), torch.randn(200, 2)) > 0.0
        True
    """
    check_kind("data", data, Tensor)
    check_kind("level", level, int)
    check_data("data", data, model.event_shape)
    with fixed_noise():
        x = diffuse(model, data, level).detach()
        length = _NEAR * (_FAR / _NEAR) ** append_dims(torch.rand(len(x), device=x.device).to(x), x)
        y = x + length / math.sqrt(max(1, x[0].numel())) * torch.randn_like(x)
    own, theirs = energy_only(model.potential(level), torch.cat([x, y])).split(len(x))
    return float(nn.functional.softplus(own - theirs).mean())


def denoising_error(model: LevelModel, data: Tensor) -> float:
    """Return the denoising error ``mean |σ̄ ∇U(x_t) − ε|² / dimensions`` over the levels above 0 (Vincent 2011).

    A proper score that needs no normalizer; the noise is the same at every call.  Level 0 is left out if there are
    others: at the edges of a sharp density its score is dominated by where exactly an edge lies, and gets worse while
    the density gets better.

    Args:
        model: energies at the levels of a schedule.
        data: held-out rows, ``(n, *event)``.

    Returns:
        Lower is better, and 1 is what a constant energy gets.
    """
    total, schedule = 0.0, model.schedule
    clean, generator = model.to_unit(data), torch.Generator().manual_seed(MEASURE_SEED)
    judged = range(min(1, schedule.levels - 1), schedule.levels)
    for t in judged:
        alpha, sigma = schedule.alpha_bar[t].to(clean), schedule.sigma_bar[t].to(clean)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        grad = gradient_only(model.potential(t), alpha * clean + sigma * noise)
        error = ((sigma * grad - noise) ** 2).reshape(len(clean), -1).mean(1)
        total += weighted_mean(error, clean)
    return total / len(judged)


def row_weights(clean: Tensor) -> Tensor:
    """Return how much each standardized row ``(n, *event)`` counts in a denoising loss, ``(n,)``: 1, but for outliers.

    The loss of a row grows with its squared distance, so one wild cell a thousand standard deviations out would rule
    all gradients and the choice of the best weights.  A row r widths out in some coordinate, r beyond 50, counts by
    (50/r)².  In columns that are standardized by their standard deviation none of fewer than 2,500 rows lies as far,
    but a category that is rarer than one in 2,500 does, and counts for less than its share.
    """
    farthest = clean.reshape(len(clean), -1).abs().amax(1) / _OUTLYING
    return farthest.clamp(min=1.0) ** -2


def weighted_mean(values: Tensor, clean: Tensor) -> float:
    """Return the mean of standardized rows' values ``(n,)``, in which far rows count for less, :func:`row_weights`."""
    weight = row_weights(clean)
    return float((weight * values).sum() / weight.sum())

"""Annealing through noise levels: log Z of a model, from white noise down to the level asked for.

The energies of the noisier levels were trained to cover what lies between the modes of the sharper ones, so noise takes
the place of temperature.  Forward runs go beside the bridge from a model's own samples, which may leave out mass.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from energyppl._checks import check_data
from energyppl.errors import warn_user
from energyppl.inference.adaptation.warmup import adapt
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.levels.contract import EnergyModel
from energyppl.inference.normalizing.forward import combined, forward_runs
from energyppl.inference.normalizing.log_normalizer import log_normalizer
from energyppl.inference.normalizing.methods import BAR, Annealing
from energyppl.inference.normalizing.paths import Draws
from energyppl.integration.estimates import LogNormalizer
from energyppl.potentials.algebra import Potential
from energyppl.potentials.bases import Base, GaussianBase

__all__ = ["anneal_through_levels"]

_RELAXED = 200  # moves of MALA that take the model's own samples to its energy


def anneal_through_levels(
    model: EnergyModel,
    level: int,
    stops: Sequence[Potential],
    marginal_std: float,
    *,
    method: Annealing | None,
    samples: Draws | None,
    tolerance: float | None,
    max_evaluations: int | None,
    confidence: float,
    progress: bool,
    base: Base | None = None,
) -> LogNormalizer:
    """Estimate log Z of a level's marginal in data coordinates, nats; see ``RecoveryEBM.log_normalizer``.

    Args:
        model: whose level it is.
        level: which one.
        stops: energies in coordinates of unit variance, of the level asked for and then of noisier ones, if any.
        marginal_std: standard deviation of the level's standardized points.
        method: how to anneal; :class:`BAR` if None.
        samples: draws of the level in data coordinates; the model's own if None.
        tolerance: as in :func:`log_normalizer`.
        max_evaluations: likewise.
        confidence: probability that the interval is meant to cover log Z with.
        progress: show a bar.
        base: density of the noisiest points in coordinates of unit variance; N(0, I) if None.

    Returns:
        The mass near the samples by the bridge and that far from them by forward runs; ``forward``, ``bridge`` and
        ``unvisited`` say what each found.  Only the forward estimate of an explicit ``AIS`` or ``SMC``.
    """
    draws, used = _unit_draws(model, level, stops[0], samples, marginal_std)
    method = BAR() if method is None else method
    if not method.waypoints:
        method = replace(method, waypoints=tuple(reversed(stops[1:])))
    if base is None:
        base = GaussianBase(torch.zeros_like(model.loc), torch.ones_like(model.loc))
    jacobian = float(model.scale.log().sum()) + model.event_shape.numel() * math.log(marginal_std)
    ahead = forward_runs(stops[0], base, method) if type(method) is BAR else None
    if ahead is not None and max_evaluations is not None:
        max_evaluations = max(1, max_evaluations - ahead.evaluations)
    with warnings.catch_warnings():
        if ahead is not None:  # what the bridge notices is said below, together with what it is compared with
            warnings.filterwarnings("ignore", message="log Z: ")
        found = log_normalizer(
            stops[0],
            samples=draws if method.reverse else None,
            base=base,
            method=method,
            tolerance=tolerance,
            max_evaluations=max_evaluations,
            confidence=confidence,
            progress=progress,
        )
    if ahead is not None:
        found = combined(found, ahead, torch.cat(used))
        if tolerance is not None and 0.5 * (found.upper - found.lower) > tolerance:
            found = replace(found, stopped="the forward runs beside the bridge leave more uncertain than the tolerance")
        if found.warning:
            warn_user(f"log Z: {found.warning}")
    return found + jacobian


def _unit_draws(
    model: EnergyModel, level: int, target: Potential, samples: Draws | None, marginal_std: float
) -> tuple[Draws, list[Tensor]]:
    """Return draws of a level in coordinates of unit variance, and a list that those which are used are noted in."""

    def to_unit(x: Tensor) -> Tensor:
        return model.to_unit(x) / marginal_std

    def given(x: Tensor) -> Tensor:
        return to_unit(check_data("samples", x, model.event_shape))

    used: list[Tensor] = []
    if isinstance(samples, Tensor):
        used.append(given(samples))
        return used[0], used

    def draws(count: int) -> Tensor:
        if callable(samples):
            used.append(given(samples(count)))
        else:
            x = to_unit(model.sample((count,), level=level))
            x = x[torch.isfinite(x).reshape(count, -1).all(1)]
            used.append(adapt(MALA(0.1), target, x, _RELAXED).state.x)
        return used[-1]

    return draws, used

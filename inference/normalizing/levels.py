"""log Z of a model of noise levels by annealing through its own levels, from white noise down to the one asked for.

Noise, not temperature, is what takes modes apart gradually here: the energies of the noisier levels were trained to
cover what lies between the modes of the sharper ones.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from energyppl.inference.adaptation.warmup import adapt
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.normalizing.log_normalizer import BAR, Annealing, log_normalizer
from energyppl.inference.normalizing.paths import Draws
from energyppl.integration.estimates import LogNormalizer
from energyppl.potentials.algebra import Potential
from energyppl.potentials.bases import GaussianBase

__all__ = ["LevelModel", "anneal_through_levels"]

_RELAXED = 200  # moves of MALA that take the model's own samples to its energy


class LevelModel(Protocol):
    """What annealing through levels needs of a model; ``energyppl.models.RecoveryEBM`` is one."""

    event_shape: torch.Size
    loc: Tensor
    scale: Tensor

    def to_unit(self, data: Tensor) -> Tensor:
        """Data in the coordinates of the energies."""
        ...

    def sample(self, sample_shape: tuple[int, ...], *, level: int) -> Tensor:
        """Draws of a level's marginal in data coordinates, about."""
        ...


def anneal_through_levels(
    model: LevelModel,
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
) -> LogNormalizer:
    """Log Z of a level's marginal in data coordinates; see ``RecoveryEBM.log_normalizer``.

    Args:
        model: whose level it is.
        level: which one.
        stops: energies in coordinates of unit variance, of the level asked for and then of noisier ones, if any.
        marginal_std: standard deviation of the level's standardized points.
        method: how to anneal; :class:`BAR` if None.
        samples: draws of the level in data coordinates; the model's own if None.
        tolerance: as in :func:`log_normalizer`.
        max_evaluations: likewise.
        confidence: level of the interval.
        progress: show a bar.
    """

    def to_unit(x: Tensor) -> Tensor:
        return model.to_unit(x) / marginal_std

    def own(count: int) -> Tensor:
        x = to_unit(model.sample((count,), level=level))
        x = x[torch.isfinite(x).reshape(count, -1).all(1)]
        return adapt(MALA(0.1), stops[0], x, _RELAXED).state.x

    def given(count: int) -> Tensor:
        assert callable(samples)
        return to_unit(samples(count))

    draws: Draws = own if samples is None else to_unit(samples) if isinstance(samples, Tensor) else given
    method = BAR() if method is None else method
    if not method.waypoints:
        method = replace(method, waypoints=tuple(reversed(stops[1:])))
    found = log_normalizer(
        stops[0],
        samples=draws if method.reverse else None,
        base=GaussianBase(torch.zeros_like(model.loc), torch.ones_like(model.loc)),
        method=method,
        tolerance=tolerance,
        max_evaluations=max_evaluations,
        level=confidence,
        progress=progress,
    )
    jacobian = float(model.scale.log().sum()) + model.event_shape.numel() * math.log(marginal_std)
    return found + jacobian

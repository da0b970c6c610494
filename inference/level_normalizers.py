"""log Z of a model of noise levels by annealing through its own levels, from white noise down to the one asked for.

Noise, not temperature, is what takes modes apart gradually here: the energies of the noisier levels were trained to
cover what lies between the modes of the sharper ones.
"""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from energyppl.bases import GaussianBase
from energyppl.inference.adaptation import adapt
from energyppl.inference.annealing_paths import Draws
from energyppl.inference.langevin import MALA
from energyppl.inference.log_normalizers import BAR, Annealing, log_normalizer
from energyppl.inference.objectives import RecoveryModel
from energyppl.normalizer import LogNormalizer
from energyppl.potential import AtLevel

__all__ = ["LevelModel", "anneal_through_levels"]

_RELAXED = 200  # moves of MALA that take the model's own samples to its energy


class LevelModel(RecoveryModel, Protocol):
    """What annealing through levels needs of a model; ``energyppl.models.RecoveryEBM`` is one."""

    loc: Tensor
    scale: Tensor

    def potential(self, level: Tensor) -> AtLevel:
        """The energy at a level, in standardised coordinates."""
        ...

    def sample(self, sample_shape: tuple[int, ...], *, level: int) -> Tensor:
        """Draws of a level's marginal in data coordinates, about."""
        ...


def anneal_through_levels(
    model: LevelModel,
    level: int,
    *,
    method: Annealing | None,
    samples: Draws | None,
    tolerance: float | None,
    most_evaluations: int | None,
    level_of_interval: float,
    progress: bool,
) -> LogNormalizer:
    """Log Z of a level's marginal in data coordinates; see ``RecoveryEBM.log_normalizer``.

    All levels are looked at in coordinates of unit variance, in which the base is N(0, I).
    """
    spread = model.schedule.spread.to(model.loc)
    top = model.schedule.levels - 1
    # The network itself sees points of unit variance.
    stops = [replace(model.potential(torch.tensor(t)), scale=1.0) for t in range(level, top + 1)]

    def inward(x: Tensor) -> Tensor:
        return model.standardized(x) / spread[level]

    def own(count: int) -> Tensor:
        x = inward(model.sample((count,), level=level))
        x = x[torch.isfinite(x).reshape(count, -1).all(1)]
        return adapt(MALA(0.1), stops[0], x, _RELAXED).state.x

    def given(count: int) -> Tensor:
        assert callable(samples)
        return inward(samples(count))

    draws: Draws = own if samples is None else inward(samples) if isinstance(samples, Tensor) else given
    method = BAR() if method is None else method
    if not method.waypoints:
        method = replace(method, waypoints=tuple(reversed(stops[1:])))
    found = log_normalizer(
        stops[0],
        samples=draws if method.reverse else None,
        base=GaussianBase(torch.zeros_like(model.loc), torch.ones_like(model.loc)),
        method=method,
        tolerance=tolerance,
        most_evaluations=most_evaluations,
        level=level_of_interval,
        progress=progress,
    )
    jacobian = float(model.scale.log().sum()) + model.event_shape.numel() * float(spread[level].log())
    return found + jacobian

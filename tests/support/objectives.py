"""The objectives that train one energy, in one table for all tests of them."""

from typing import Any

import torch
from pyro.distributions import Normal

import energyppl as ep

__all__ = []

# A new objective is one line.
OF_ONE_ENERGY: list[Any] = [
    ep.objectives.NoiseContrastive(),
    ep.objectives.NoiseContrastive(
        ep.potentials.DistributionBase(Normal(0.0, 1.2 * torch.ones(2)).to_event(1)), ratio=2
    ),
    ep.objectives.ContrastiveDivergence(steps=3),
    ep.objectives.ContrastiveDivergence(ep.Langevin(0.05), steps=3),
    ep.objectives.ExactLikelihood(points=32),
    ep.objectives.ExactScoreMatching(),
    ep.objectives.SlicedScoreMatching(projections=2),
    ep.objectives.DenoisingScoreMatching(0.3),
]

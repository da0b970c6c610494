"""The objectives that train one energy, in one table, and one evaluation of an objective."""

from typing import Any

import torch
from pyro.distributions import Normal
from torch import Tensor

import energyppl as ep
from energyppl.inference.objectives.contract import Loss

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


def loss_of(objective: Any, model: Any, batch: Tensor, state: Any = None) -> Loss:
    """Return an objective's loss, with a fresh state unless one is given."""
    found: Loss = objective.loss(model, objective.init(model) if state is None else state, batch)
    return found


def measure_of(objective: Any, model: Any, data: Tensor, state: Any = None) -> float:
    """Return an objective's measure, likewise."""
    found: float = objective.measure(model, objective.init(model) if state is None else state, data)
    return found

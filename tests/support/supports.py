"""Normalized densities on every kind of support, as energies whose log Z is known: an offset, with its sign turned."""

from collections.abc import Callable

import torch
from torch import distributions as td
from torch import nn

import energyppl as ep

OFFSET = 1.5


def _ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape)


DENSITIES: dict[str, Callable[[], td.Distribution]] = {
    "positive": lambda: td.Independent(td.Gamma(3.0 * _ones(2), 2.0 * _ones(2), validate_args=False), 1),
    "nonnegative": lambda: td.Independent(td.HalfNormal(_ones(1), validate_args=False), 1),
    "greater than": lambda: td.Independent(td.Pareto(1.5 * _ones(1), 4.0 * _ones(1), validate_args=False), 1),
    "interval": lambda: td.Independent(td.Uniform(-_ones(2), 3.0 * _ones(2), validate_args=False), 1),
    "unit interval": lambda: td.Independent(td.Beta(2.0 * _ones(1), 3.0 * _ones(1), validate_args=False), 1),
    "simplex": lambda: td.Dirichlet(torch.tensor([2.0, 3.0, 4.0]), validate_args=False),
    "two simplexes": lambda: td.Independent(td.Dirichlet(2.0 * _ones(2, 3), validate_args=False), 1),
    "correlations": lambda: td.LKJCholesky(2, 2.0, validate_args=False),  # torch draws wrongly from 3 dimensions on
    "mixture": lambda: td.MixtureSameFamily(
        td.Categorical(_ones(2)),
        td.Independent(td.Gamma(torch.tensor([[2.0], [6.0]]), _ones(2, 1), validate_args=False), 1),
        validate_args=False,
    ),
}


# How energies go on outside of their support, where these densities are zero: mirrored, or flat for ever.
OUTSIDE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys(("positive", "nonnegative", "greater than", "unit interval", "mixture"), torch.abs),
    "interval": lambda x: x.clamp(-1.0, 2.999),
}


class Minus(nn.Module):
    """``factor * (OFFSET − log p)``, whose log Z over the support, at a factor of one, is −OFFSET."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.density = density = DENSITIES[name]()
        self.outside = OUTSIDE.get(name, torch.Tensor.clone)
        self.event_shape = density.event_shape
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        energy: torch.Tensor = self.factor * (OFFSET - self.density.log_prob(self.outside(x)))
        return energy


def on_support(name: str, **options: object) -> tuple[ep.EnergyDistribution, td.Distribution]:
    """Make an ``EnergyDistribution`` on a named support, and the density that it is."""
    energy = Minus(name)
    support = energy.density.support
    return ep.EnergyDistribution(energy, support=support, **options), energy.density  # type: ignore[arg-type]

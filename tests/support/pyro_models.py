"""Pyro models with known posteriors."""

import dataclasses
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = []


CHAINS = 64


LIMIT = 4.0  # standard errors, of 64 chains: 1.7e-4 two-sided for one number (Student's t, 63 degrees of freedom)


def nested(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("groups", 3, dim=-1):
        a = pyro.sample("a", dist.Normal(mu, 1.0))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        with pyro.plate("rows", 4, dim=-2):
            pyro.sample("y", dist.Normal(a, sigma), obs=y)


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    model: Callable[[], None]
    site: str
    mean: Tensor
    variance: Tensor


def conjugate_normal(y: Tensor | None = None) -> Known:
    y = 1.0 + torch.randn(10) if y is None else y

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    variance = 1.0 / (0.25 + len(y))
    return Known(model, "mu", variance * y.sum(), torch.tensor(variance))

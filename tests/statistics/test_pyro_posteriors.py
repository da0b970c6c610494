"""Pyro models whose posteriors are known, sampled by our kernels."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import energyppl as ep
from tests.support.pyro_models import CHAINS, LIMIT, Known, conjugate_normal

SOME_DIVERGE = pytest.mark.filterwarnings("ignore:.* of the draws diverged:UserWarning")


def beta_binomial() -> Known:
    def model() -> None:
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        pyro.sample("y", dist.Binomial(20, p), obs=torch.tensor(14.0))

    posterior = torch.distributions.Beta(16.0, 9.0)
    return Known(model, "p", posterior.mean, posterior.variance)


def gamma_poisson() -> Known:
    y = torch.poisson(torch.full((8,), 2.5))

    def model() -> None:
        rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
        with pyro.plate("rows", 8):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    posterior = torch.distributions.Gamma(3.0 + y.sum(), 9.0)
    return Known(model, "rate", posterior.mean, posterior.variance)


def linear_regression() -> Known:
    x = torch.randn(15, 3) @ torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 0.3]])
    y = x @ torch.tensor([1.0, -1.0, 0.5]) + 0.5 * torch.randn(15)

    def model() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("rows", 15):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    covariance = (torch.eye(3) + x.T @ x / 0.25).inverse()
    return Known(model, "w", covariance @ x.T @ y / 0.25, covariance.diagonal())


KNOWN = {f.__name__: f for f in (conjugate_normal, beta_binomial, gamma_poisson, linear_regression)}


def worst_z(x: Tensor, mean: Tensor, variance: Tensor) -> float:
    """Largest deviation of a mean or second central moment of ``(chains, draws, *shape)``, in standard errors."""
    x, mean, variance = x.double(), mean.double(), variance.double()
    averages = torch.stack([(x - mean).mean(1), ((x - mean) ** 2).mean(1) - variance])
    return float((averages.mean(1) / (averages.std(1) / math.sqrt(len(x)))).abs().max())


@SOME_DIVERGE
@pytest.mark.parametrize("kernel", [ep.ChEES(), ep.NUTS()], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("name", list(KNOWN))
def test_exact_posteriors(name: str, kernel: Any) -> None:
    """Means and variances within 4 standard errors: 24 numbers, a false alarm in 1 of 240 runs of the table."""
    known = KNOWN[name]()
    chains = ep.sample_chains(kernel, known.model, chains=CHAINS, draws=300, warmup=200, progress=False)
    assert worst_z(chains.samples[known.site], known.mean, known.variance) < LIMIT


def test_the_posterior_check_can_fail() -> None:
    """Negative control: a likelihood that is a twentieth too wide."""
    known = conjugate_normal(torch.full((40,), 1.0))
    wide = poutine.scale(known.model, 0.9)
    chains = ep.sample_chains(ep.ChEES(), wide, chains=CHAINS, draws=300, warmup=200, progress=False)
    assert worst_z(chains.samples["mu"], known.mean, known.variance) > LIMIT

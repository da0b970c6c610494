"""Posteriors of models with holes in their data are those of the data that were seen.

Chains are independent, so errors come from the spread between chains' averages; a limit of 4 standard errors of 64
chains is passed by chance with probability 1.7e-4 (Student's t, 63 degrees of freedom).
"""

import math
from collections.abc import Callable
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import energyppl as ep
from tests.support.pyro_models import CHAINS, LIMIT

Y = torch.tensor([1.2, 0.7, math.nan, 0.4, math.nan, 1.9])
SEEN = torch.isfinite(Y)
SUM, COUNT = float(Y[SEEN].sum()), int(SEEN.sum())


def obs_mask() -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", 6), pyro.validation_enabled(False):
        pyro.sample("y", dist.Exponential(rate), obs=Y, obs_mask=SEEN)


def masked_distribution() -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", 6), pyro.validation_enabled(False):
        pyro.sample("y", dist.Exponential(rate).mask(SEEN), obs=Y)


def masked_latent() -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", 6):
        pyro.sample("ragged", dist.Exponential(1.0).mask(SEEN))
        with pyro.validation_enabled(False):
            pyro.sample("y", dist.Exponential(rate).mask(SEEN), obs=Y)


def z_scores(x: Tensor, mean: float, variance: float) -> float:
    """Largest deviation of the mean and the second central moment, in standard errors."""
    x = x.double()
    averages = torch.stack([(x - mean).mean(1), ((x - mean) ** 2).mean(1) - variance])
    return float((averages.mean(1) / (averages.std(1) / math.sqrt(len(x)))).abs().max())


@cache  # the negative control looks at the same chains
def chains_of(model: Callable[[], None]) -> ep.Chains:
    return ep.sample_chains(ep.ChEES(), model, chains=CHAINS, draws=200, warmup=150, progress=False)


def worst_z(chains: ep.Chains, seen: int = COUNT) -> float:
    shape, rate = 2.0 + seen, 1.0 + SUM
    return z_scores(chains.samples["rate"], shape / rate, shape / rate**2)


@pytest.mark.parametrize("model", [obs_mask, masked_distribution, masked_latent], ids=lambda m: m.__name__)
def test_the_rate_is_that_of_the_rows_that_were_seen(model: Callable[[], None]) -> None:
    """Gamma(2 + 4, 1 + their sum): 6 numbers, a false alarm in 1 of 1,000 runs; and all numbers stay small."""
    chains = chains_of(model)
    assert worst_z(chains) < LIMIT
    assert float(chains.draws.abs().max()) < 1e3
    if model is obs_mask:  # y | rate averages 1 / rate, whose mean is (1 + Σ) / (6 − 1)
        missing = chains.samples["y_unobserved"][..., ~SEEN].double().mean((1, 2))
        assert abs(float(missing.mean()) - (1.0 + SUM) / 5.0) < LIMIT * float(missing.std()) / math.sqrt(CHAINS)


def test_the_check_can_fail() -> None:
    """Negative control: the posterior of six rows."""
    assert worst_z(chains_of(obs_mask), seen=6) > LIMIT


def test_a_mask_larger_than_its_site_covers_what_is_missing() -> None:
    """No plate, one distribution and three data: chains move though one of them is not a number."""

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor([1.0, math.nan, 2.0]))

    chains = ep.sample_chains(ep.HMC(), model, chains=4, draws=10, warmup=30, progress=False)
    assert float(chains.acceptance.mean()) > 0.3

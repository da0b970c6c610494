"""Simulation-based calibration (Talts et al. 2018) of sampling Pyro models: ranks of the truth among posterior draws.

Draw parameters from the prior, data given them, and sample the posterior: the rank of the true value among the draws is
uniform, whatever the data, if model, Jacobians, kernel and warm-up are all right.  Many data sets are sampled at once
by a model that has a plate of them, which is one larger target; their posteriors stay independent.

Draws of one chain must be nearly independent for ranks to be uniform: of each of 16 chains 4 draws are kept, 15 or more
trajectories apart, and one of the 64 is left out, so that 64 ranks fall into 8 equal bins.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.stats import chisquare
from torch import Tensor

import energyppl as ep

ALARM = 0.01  # of each model's table, over all its numbers (Bonferroni); the four tables together: .04
CHAINS, KEPT, BINS = 16, 4, 8

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.* of the draws diverged:UserWarning")]


# --- Models of many data sets: each site ends in (…, sets) ---


def eight_schools(sets: int, y: Tensor | None = None, wrong: float = 1.0) -> None:
    """Rubin (1981), non-centred; ``wrong`` times the errors that the data have.

    tau is half normal: a half-Cauchy draws one of 1,000 now and then, whose posterior is needle-thin without centring,
    and that data set's steps would be all data sets' in the plate (with it R-hat is above 2 in 5 of 10 plates).
    """
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])[:, None]
    with pyro.plate("sets", sets, dim=-1):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfNormal(5.0))
        with pyro.plate("schools", 8, dim=-2):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + tau * eta)
            pyro.sample("y", dist.Normal(theta, wrong * sigma), obs=y)


ROWS = torch.randn(100, 5, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.tensor([1, 1, 0.5, 0.5, 2.0]))
ROWS[:, 0] = 1.0


def logistic(sets: int, y: Tensor | None = None) -> None:
    """Five coefficients, an intercept among them, and 100 rows."""
    with pyro.plate("sets", sets, dim=-1):
        with pyro.plate("coefficients", 5, dim=-2):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        logits = ROWS @ w
        with pyro.plate("rows", 100, dim=-2):
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def houses() -> tuple[Tensor, Tensor]:
    """919 houses in 85 counties, from 1 to over 100 in each as in Minnesota, a fifth with measurements upstairs."""
    generator = torch.Generator().manual_seed(2)
    share = torch.linspace(0.0, 4.0, 85).exp()
    more = torch.multinomial(share, 919 - 85, replacement=True, generator=generator)
    upstairs = (torch.rand(919, generator=generator) < 0.2).float()
    return torch.cat([torch.arange(85), more]), upstairs


COUNTY, UPSTAIRS = houses()


def radon(sets: int, y: Tensor | None = None) -> None:
    """Varying intercepts of 85 counties, non-centred (Gelman & Hill 2006, chapter 12)."""
    with pyro.plate("sets", sets, dim=-1):
        mu = pyro.sample("mu", dist.Normal(1.0, 1.0))
        spread = pyro.sample("spread", dist.HalfNormal(0.5))
        slope = pyro.sample("slope", dist.Normal(-0.5, 0.5))
        sigma = pyro.sample("sigma", dist.LogNormal(-0.3, 0.3))
        with pyro.plate("counties", 85, dim=-2):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            alpha = pyro.deterministic("alpha", mu + spread * eta)
        mean = alpha[COUNTY] + slope * UPSTAIRS[:, None]
        with pyro.plate("houses", 919, dim=-2):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)


@dataclasses.dataclass(frozen=True)
class Reckless(ep.HMC):
    """Keeps every end of a trajectory, as an unadjusted kernel does."""

    def step(self, potential: Any, state: Any) -> Any:
        new, info = super().step(potential, state._replace(energy=torch.full_like(state.energy, 1e30)))
        return new, info


# --- The check ---


def ranks(
    model: Callable[..., None],
    quantities: dict[str, list[int] | None],
    sets: int,
    at_once: int,
    *,
    kernel: Any,
    wrong: dict[str, float] | None = None,
    warmup: int = 300,
) -> dict[str, Tensor]:
    """Ranks from 0 to 63 of the true values, ``(sets,)`` each, of some rows of some sites."""
    found: dict[str, list[Tensor]] = {}
    for _ in range(0, sets, at_once):
        truth = poutine.trace(model).get_trace(at_once)
        y = truth.nodes["y"]["value"]
        chains = ep.sample_chains(
            kernel,
            model,
            at_once,
            y,
            chains=CHAINS,
            draws=KEPT,
            thin=15,
            warmup=warmup,
            progress=False,
            **(wrong or {}),
        )
        assert not bool(chains.stuck.any())
        for name, rows in quantities.items():
            draws = chains.samples[name].flatten(0, 1)[1:]
            below = (draws < truth.nodes[name]["value"]).sum(0)
            if rows is None:
                found.setdefault(name, []).append(below)
            else:
                for row in rows:
                    found.setdefault(f"{name}[{row}]", []).append(below[row])
    return {name: torch.cat(parts) for name, parts in found.items()}


def p_values(found: dict[str, Tensor]) -> dict[str, float]:
    """Of a chi-square test of uniform ranks, with 7 degrees of freedom."""
    counts = {name: torch.bincount(rank * BINS // (CHAINS * KEPT), minlength=BINS) for name, rank in found.items()}
    return {name: float(chisquare(count.numpy()).pvalue) for name, count in counts.items()}


# model, what is ranked (rows of a site; None if it has none), data sets, how many together, kernel
CASES: dict[str, tuple[Callable[..., None], dict[str, list[int] | None], int, int, Any]] = {
    "eight schools": (eight_schools, {"mu": None, "tau": None, "theta": list(range(8))}, 200, 20, ep.ChEES()),
    "logistic regression": (logistic, {"w": list(range(5))}, 200, 50, ep.ChEES()),
    "logistic regression, NUTS": (logistic, {"w": list(range(5))}, 200, 20, ep.NUTS()),
    "radon": (
        radon,
        {"mu": None, "spread": None, "slope": None, "sigma": None, "alpha": [0, 20, 42, 63, 84]},
        200,
        20,
        ep.ChEES(),
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_ranks_of_the_truth_are_uniform(name: str) -> None:
    """The smallest p-value of a model's table, times its numbers, is above .01."""
    model, quantities, sets, at_once, kernel = CASES[name]
    found = p_values(ranks(model, quantities, sets, at_once, kernel=kernel))
    print(f"\n{name}: " + ", ".join(f"{key} {p:.3f}" for key, p in found.items()))
    assert min(found.values()) * len(found) > ALARM, found


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "errors half as large": ("eight schools", {"wrong": {"wrong": 0.5}}),
    "a kernel that accepts everything": ("logistic regression", {"kernel": Reckless(0.45, 5), "warmup": 0}),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_fails_the_same_check(name: str) -> None:
    """Negative controls: a model whose likelihood is not the data's, and a kernel without its accept step."""
    case, options = WRONG[name]
    model, quantities, sets, at_once, kernel = CASES[case]
    found = p_values(ranks(model, quantities, sets, at_once, **{"kernel": kernel, **options}))
    print(f"\n{name}: " + ", ".join(f"{key} {p:.1e}" for key, p in found.items()))
    assert min(found.values()) * len(found) < ALARM, found

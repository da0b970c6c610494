"""Simulation-based calibration (Talts et al. 2018): our kernels on Pyro models, and what must not pass.

False-alarm rate: .001 for each check of this file that must pass, whatever its number of quantities.  What must fail
has the same threshold.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.autodiff.gradient import energy_and_grad
from energyppl.inference.kernels.contract import Info, State
from tests.support.kernels import HalfSquaredMALA

ALARM = 0.001
OPTIONS: dict[str, Any] = {"progress": False, "false_alarm": ALARM}


# --- Any sampler of the posterior N(y / 2, 1 / 2) of y ~ N(mu, 1), mu ~ N(0, 1) ---


def of_width(factor: float, shift: float = 0.0) -> Callable[[Tensor, int], Tensor]:
    """The exact posterior, wider and shifted in its standard deviations."""
    width = 0.5**0.5
    return lambda y, count: y[:, None] / 2 + width * (shift + factor * torch.randn(len(y), count))


SAMPLERS: dict[str, tuple[Callable[[Tensor, int], Tensor], str]] = {  # and what is said of it
    "exact": (of_width(1.0), ""),
    "overconfident": (of_width(0.6), "overconfident"),
    "too wide": (of_width(1.7), "too far apart"),
    "too high": (of_width(1.0, 0.6), "too high"),
    "too low": (of_width(1.0, -0.6), "too low"),
}


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_samplers_that_are_wrong_fail_and_the_exact_one_passes(name: str) -> None:
    """Of 300 data sets.  Each wrong one failed in 300 of 300 checks that were simulated before."""
    sampler, words = SAMPLERS[name]
    found = ep.evaluation.calibrate_sampler(
        torch.randn, lambda mu: mu + torch.randn(len(mu)), sampler, replicates=300, false_alarm=ALARM
    )
    assert found.passed == (name == "exact"), found
    assert words in "; ".join(found.problems())
    half_covered = found.coverage(nominal=(0.5,))["parameters"]
    if name in ("exact", "overconfident", "too wide"):  # a shift hardly shows in central intervals
        assert bool(half_covered.problems(ALARM)) == (name != "exact")


# --- Kernels on a Pyro model ---


def line(x: Tensor, y: Tensor | None = None, noise: float = 1.0) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, noise * scale), obs=y)


def loud(x: Tensor) -> None:
    line(x, noise=2.0)


X = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))


@dataclasses.dataclass(frozen=True)
class Reckless(ep.HMC):
    """Keeps every end of a trajectory, as an unadjusted kernel does."""

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        return super().step(potential, state._replace(energy=torch.full_like(state.energy, 1e30)))


@dataclasses.dataclass(frozen=True)
class Prior:
    """Draws from the prior and forgets the data."""

    def init(self, potential: Any, x: Tensor) -> State:
        return State(x, *energy_and_grad(potential, x))

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        x = torch.randn_like(state.x) * torch.tensor([1.0, 1.0, 0.5])
        moved = torch.ones_like(state.energy, dtype=torch.bool)
        return self.init(potential, x), Info(moved.to(x), moved, ~moved)


@dataclasses.dataclass(frozen=True)
class Still(Prior):
    """Stays where it began."""

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        moved = torch.ones_like(state.energy, dtype=torch.bool)
        return state, Info(moved.to(state.x), moved, ~moved)


RIGHT: dict[str, Any] = {"MALA": ep.MALA(0.3), "HMC": ep.HMC(steps=4)}
WRONG: dict[str, tuple[Any, dict[str, Any]]] = {
    "MALA with another ratio": (HalfSquaredMALA(0.5), {}),
    "every proposal accepted": (Reckless(0.45, 5), {"warmup": 1}),
    "draws of the prior": (Prior(), {"warmup": 1}),
    "chains that stay": (Still(), {"warmup": 1}),
    "data of a louder model": (ep.MALA(0.3), {"simulator": loud}),
}


@pytest.mark.parametrize("name", list(RIGHT))
def test_kernels_are_calibrated(name: str) -> None:
    found = ep.evaluation.calibrate(line, None, RIGHT[name], (X,), observed=["y"], replicates=100, **OPTIONS)
    assert found.passed, found


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_fails(name: str) -> None:
    """Negative controls; draws of the prior are known by the log joint density alone."""
    kernel, options = WRONG[name]
    found = ep.evaluation.calibrate(
        line, None, kernel, (X,), observed=["y"], replicates=100, **{**OPTIONS, "max_thin": 10, **options}
    )
    assert not found.passed, found
    if name == "draws of the prior":
        assert {key for key, p in found.p_values.items() if p < found.threshold} == {"log joint density"}


# --- Larger models ---


SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools() -> None:
    """Rubin (1981), non-centred; tau is half normal, since a half-Cauchy draws one of 1,000 now and then."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, SIGMA))


ROWS = torch.randn(100, 5, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.tensor([1, 1, 0.5, 0.5, 2.0]))
ROWS[:, 0] = 1.0


def logistic() -> None:
    """Five coefficients, an intercept among them, and 100 rows."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
    with pyro.plate("rows", 100):
        pyro.sample("y", dist.Bernoulli(logits=ROWS @ w))


def houses() -> tuple[Tensor, Tensor]:
    """919 houses in 85 counties, from 1 to over 100 in each as in Minnesota, a fifth with measurements upstairs."""
    generator = torch.Generator().manual_seed(2)
    share = torch.linspace(0.0, 4.0, 85).exp()
    more = torch.multinomial(share, 919 - 85, replacement=True, generator=generator)
    upstairs = (torch.rand(919, generator=generator) < 0.2).float()
    return torch.cat([torch.arange(85), more]), upstairs


COUNTY, UPSTAIRS = houses()


def radon() -> None:
    """Varying intercepts of 85 counties, non-centred (Gelman & Hill 2006, chapter 12)."""
    mu = pyro.sample("mu", dist.Normal(1.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(0.5))
    slope = pyro.sample("slope", dist.Normal(-0.5, 0.5))
    sigma = pyro.sample("sigma", dist.LogNormal(-0.3, 0.3))
    with pyro.plate("counties", 85):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        alpha = pyro.deterministic("alpha", mu + spread * eta)
    with pyro.plate("houses", 919):
        pyro.sample("y", dist.Normal(alpha[COUNTY] + slope * UPSTAIRS, sigma))


LARGER: dict[str, tuple[Callable[[], None], Any]] = {
    "eight schools": (eight_schools, ep.ChEES()),
    "logistic regression": (logistic, ep.ChEES()),
    "logistic regression, NUTS": (logistic, ep.NUTS()),
    "radon": (radon, ep.ChEES()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LARGER))
def test_larger_models_are_calibrated(name: str) -> None:
    model, kernel = LARGER[name]
    found = ep.evaluation.calibrate(model, None, kernel, observed=["y"], replicates=200, **OPTIONS)
    assert found.passed, found


@pytest.mark.slow
def test_a_kernel_that_accepts_everything_fails_on_a_larger_model() -> None:
    kernel = Reckless(0.45, 5)
    found = ep.evaluation.calibrate(logistic, None, kernel, observed=["y"], warmup=1, replicates=200, **OPTIONS)
    assert not found.passed, found

"""Our kernels in Pyro's MCMC, and our potentials under Pyro's own inference."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS, SVI, Importance, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.ops.stats import effective_sample_size
from torch import Tensor
from torch.distributions import constraints

import energyppl as ep
from energyppl.errors import InvalidInput
from tests.support.pyro_models import CHAINS, conjugate_normal, nested

# Standard errors, of 64 chains.  This file compares 38 numbers with known ones: one false alarm in a thousand runs of
# it leaves 2.6e-5 to each (Bonferroni), two-sided, by Student's t with 63 degrees of freedom.  Twelve further seeds of
# the deblurring posterior show no bias: their pooled means are off by 2.1 standard errors at most.
LIMIT = 4.54

PYRO_KERNELS: dict[str, tuple[Any, int, int]] = {  # kernel, chains, draws
    "HMC": (ep.HMC(), 1, 1000),
    "NUTS": (ep.NUTS(), 1, 1000),
    "ChEES": (ep.ChEES(), 16, 200),
    "MALA": (ep.MALA(0.1), 16, 300),
}


@pytest.mark.parametrize("name", list(PYRO_KERNELS))
def test_our_kernels_in_pyros_mcmc(name: str) -> None:
    """Mean and variance within 4.5 standard errors by Pyro's effective sample size: 8 numbers, 1 alarm in 18,000."""
    kernel, chains, draws = PYRO_KERNELS[name]
    known = conjugate_normal()
    ours = ep.PyroKernel(kernel, known.model, chains=chains)
    mcmc = MCMC(ours, num_samples=draws, warmup_steps=200, disable_progbar=True)
    mcmc.run()
    mu = mcmc.get_samples()["mu"]
    assert mu.shape == ((draws,) if chains == 1 else (draws, chains))
    rows = mu.reshape(draws, chains).T.double()
    for values, expected in ((rows, known.mean), ((rows - known.mean) ** 2, known.variance)):
        ess = float(effective_sample_size(values, chain_dim=0, sample_dim=1))
        assert ess > 100.0
        assert abs(float(values.mean() - expected)) < 4.5 * float(values.std()) / math.sqrt(ess)
    assert type(ours.kernel) is type(kernel)
    assert ours.kernel.step_size != kernel.step_size, "tuned"
    assert repr(ours._given) == repr(kernel), "as it was"
    diagnostics = mcmc.diagnostics()
    assert diagnostics["divergences"] == {"chain 0": []}
    assert 0.5 < diagnostics["acceptance rate"]["chain 0"] <= 1.0
    assert float(diagnostics["mu"]["r_hat"].max()) < 1.1
    mcmc.summary()
    predicted = Predictive(known.model, {"mu": mu.flatten()[:50]})()
    assert predicted["y"].shape == (50, 10)


def test_pyros_mcmc_without_warm_up_and_from_given_points() -> None:
    """The kernel stays as it is and begins where ``initial_params`` says, unconstrained as in Pyro, again if rerun."""
    model, y = nested, torch.randn(4, 3)
    kernel = ep.PyroKernel(ep.MALA(1e-5), model)
    start = {"mu": torch.tensor(2.0), "a": torch.tensor([1.0, 2.0, 3.0]), "sigma": torch.tensor([0.5, 1.0, 2.0])}
    kernel.initial_params = {name: value.log() if name == "sigma" else value for name, value in start.items()}
    for _ in range(2):
        mcmc = MCMC(kernel, num_samples=3, warmup_steps=0, disable_progbar=True)
        mcmc.run(y)
        for site, value in start.items():
            torch.testing.assert_close(mcmc.get_samples()[site], value.expand(3, *value.shape), rtol=0.0, atol=1e-3)
    assert kernel.kernel.step_size == 1e-5
    normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), torch.Size((2,)))
    positive = ep.EnergyDistribution(normal, support=constraints.positive)
    for target, chains in ((normal, 1), (normal, 4), (positive, 1), (positive, 4)):
        kernel = ep.PyroKernel(ep.MALA(1e-5), target, chains=chains)
        point = torch.full((2,) if chains == 1 else (chains, 2), 1.5)
        kernel.initial_params = {"x": point.log() if target is positive else point}
        mcmc = MCMC(kernel, num_samples=3, warmup_steps=0, disable_progbar=True)
        mcmc.run()
        torch.testing.assert_close(mcmc.get_samples()["x"], point.expand(3, *point.shape), rtol=0.0, atol=1e-3)
    with pytest.raises(InvalidInput, match=r"MCMC\.run sets it up"):
        _ = ep.PyroKernel(ep.MALA(0.1), normal).initial_params
    with pytest.raises(InvalidInput, match="got one chain"):
        MCMC(ep.PyroKernel(ep.ChEES(), normal), num_samples=3, disable_progbar=True).run()


@pytest.mark.filterwarnings("ignore:num_chains=2 is more than available_cpu:UserWarning")  # then one after another
def test_two_processes_of_pyros_mcmc() -> None:
    known = conjugate_normal()
    mcmc = MCMC(
        ep.PyroKernel(ep.HMC(), known.model), num_samples=50, warmup_steps=50, num_chains=2, disable_progbar=True
    )
    mcmc.run()
    mu = mcmc.get_samples(group_by_chain=True)["mu"]
    assert mu.shape == (2, 50)
    assert not torch.equal(mu[0], mu[1])


# --- Our potentials under Pyro's inference ---

HUMPS = ep.toys.EightGaussians().diffused(1.0, 0.8)
BANANA = ep.toys.Banana(curvature=0.5, scale=1.0)
BLUR = torch.tensor([[1.0, 0.5]])


def prior(toy: Any) -> ep.EnergyDistribution:
    return ep.EnergyDistribution(toy, sampler=lambda _, shape, like: toy.sample(shape)).unnormalized()


def denoising(y: Tensor) -> None:
    x = pyro.sample("x", prior(HUMPS))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def deblurring(y: Tensor) -> None:
    x = pyro.sample("x", prior(BANANA))
    pyro.sample("y", dist.Normal(x @ BLUR.T, 0.3).to_event(1), obs=y)


# model, what was seen, the posterior's energy for quadrature
EBM_PRIORS: dict[str, tuple[Callable[[Tensor], None], Tensor, Callable[[Tensor], Tensor]]] = {
    "denoising": (
        denoising,
        torch.tensor([2.5, 1.5]),
        lambda x: HUMPS(x) + 0.5 * ((x - torch.tensor([2.5, 1.5])) ** 2).sum(-1),
    ),
    "deblurring": (
        deblurring,
        torch.tensor([1.0]),
        lambda x: BANANA(x) + 0.5 * ((x @ BLUR.T - 1.0) / 0.3).square().sum(-1),
    ),
}


def moments(name: str) -> tuple[Tensor, Tensor]:
    """Means of x1, x2 and of their central products, by quadrature."""
    grid = ep.Grid((-9.0, -9.0), (9.0, 9.0), (256, 256))
    exact = ep.quadrature(ep.Energy(EBM_PRIORS[name][2], torch.Size((2,))), grid)
    return exact.mean, exact.covariance


def statistics(x: Tensor, mean: Tensor) -> Tensor:
    """x1, x2, and the central products that make the covariance, ``(*batch, 6)``."""
    away = x.double() - mean
    return torch.cat([away, (away[..., :, None] * away[..., None, :]).flatten(-2)], -1)


@pytest.mark.parametrize("name", list(EBM_PRIORS))
def test_an_energy_as_prior_with_our_kernel(name: str) -> None:
    """Mean and covariance of a toy's posterior within ``LIMIT`` standard errors of quadrature, 10 numbers in all."""
    model, y, _ = EBM_PRIORS[name]
    mean, covariance = moments(name)
    chains = ep.sample_chains(ep.ChEES(), model, (y,), chains=CHAINS, draws=400, warmup=200, progress=False)
    averages = statistics(chains.samples["x"], mean).mean(1) - torch.cat([torch.zeros(2), covariance.flatten()])
    assert float((averages.mean(0) / (averages.std(0) / math.sqrt(CHAINS))).abs().max()) < LIMIT


@pytest.mark.parametrize("kernel", [NUTS, HMC])
@pytest.mark.parametrize("name", list(EBM_PRIORS))
def test_an_energy_as_prior_under_pyros_kernels(name: str, kernel: Any) -> None:
    """Within 4.5 standard errors by Pyro's effective sample size, of few draws; 20 numbers in all: 1e-4."""
    model, y, _ = EBM_PRIORS[name]
    mean, covariance = moments(name)
    made = kernel(model) if kernel is NUTS else kernel(model, step_size=0.3, num_steps=5)
    mcmc = MCMC(made, num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run(y)
    values = statistics(mcmc.get_samples()["x"], mean)
    expected = torch.cat([torch.zeros(2), covariance.flatten()])
    for row, exact in zip(values.T, expected, strict=True):
        ess = float(effective_sample_size(row[None], chain_dim=0, sample_dim=1).clamp(max=300.0))
        assert ess > 15.0
        assert abs(float(row.mean() - exact)) < 4.5 * float(row.std()) / math.sqrt(ess)


GAUSSIAN = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), torch.Size((2,)))


def two_sites(y: Tensor) -> None:
    """N(0, I) written as an energy, and a scale of the noise that does not matter to it."""
    x = pyro.sample("x", ep.EnergyDistribution(GAUSSIAN, sampler=lambda _, s, like: torch.randn(*s, 2)).unnormalized())
    pyro.sample("other", dist.LogNormal(0.5, 0.3))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize("guide_of", ["AutoNormal", "AutoGuideList"])
def test_an_energy_under_svi(guide_of: str) -> None:
    """The mean-field posterior is N(y/2, ½) and LogNormal(.5, .3); the tolerance is the optimizer's."""
    y = torch.tensor([2.0, -1.0])
    if guide_of == "AutoNormal":
        guide: Any = AutoNormal(two_sites)
    else:
        guide = AutoGuideList(two_sites)
        guide.append(AutoNormal(poutine.block(two_sites, expose=["x"])))
        guide.append(AutoNormal(poutine.block(two_sites, expose=["other"])))
    svi = SVI(two_sites, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(num_particles=2))
    losses = [svi.step(y) for _ in range(400)]
    assert all(math.isfinite(loss) for loss in losses)
    draws = Predictive(guide, num_samples=4000)(y)
    assert float((draws["x"].mean(0) - y / 2).abs().max()) < 0.15
    assert float((draws["x"].var(0) - 0.5).abs().max()) < 0.15
    assert float(draws["other"].log().mean()) == pytest.approx(0.5, abs=0.1)


def test_an_energy_among_pyros_handlers() -> None:
    """trace, condition, replay, Predictive; Importance's weights are the likelihood's."""
    y = torch.tensor([2.5, 1.5])
    trace = poutine.trace(denoising).get_trace(y)
    x = trace.nodes["x"]["value"]
    expected = -HUMPS(x) + dist.Normal(x, 1.0).log_prob(y).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    again = poutine.trace(poutine.replay(denoising, trace)).get_trace(y)
    assert torch.equal(again.nodes["x"]["value"], x)
    held = poutine.trace(poutine.condition(denoising, {"x": torch.zeros(2)})).get_trace(y)
    assert held.nodes["x"]["is_observed"]
    assert Predictive(denoising, num_samples=5)(y)["x"].shape == (5, 2)
    weighed = Importance(denoising, num_samples=20).run(y)
    for one, weight in zip(weighed.exec_traces, weighed.log_weights, strict=True):
        likelihood = dist.Normal(one.nodes["x"]["value"], 1.0).log_prob(y).sum()
        torch.testing.assert_close(torch.as_tensor(weight), likelihood, rtol=1e-4, atol=1e-4)

"""Distributions with a support: log Z, chains, contrastive gradients and angles against what is known."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import energyppl as ep
from energyppl.errors import NotNormalizable
from tests.support.supports import DENSITIES, OFFSET, on_support

METHODS = {
    "AIS": ep.normalizing.AIS(128),
    "SMC": ep.normalizing.SMC(128),
    "BAR": ep.normalizing.BAR(128),
    "ReverseAIS": ep.normalizing.ReverseAIS(128),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DENSITIES)
def test_log_z_is_that_of_the_support(name: str, method: str) -> None:
    """The interval at 99.99 % holds log Z: a false alarm in 280 runs of the table of 36.

    Its half width stays below 0.6 nats, so that log Z over all of ℝⁿ (infinite, or off by 0.69 and more) is outside.
    """
    p, density = on_support(name)
    how = METHODS[method]
    samples = density.sample((600,)) if how.reverse else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "log Z: ", UserWarning)  # heavy tails of a reverse run alone
        found = ep.log_normalizer(p, samples=samples, method=how, confidence=0.9999)
    assert found.lower < -OFFSET < found.upper
    assert found.upper - found.lower < 1.2


@pytest.mark.parametrize("name", sorted(DENSITIES.keys() - {"interval"}))  # whose uniform energy has nothing to learn
def test_the_contrastive_gradient_vanishes_at_the_truth(name: str) -> None:
    """E_data ∂U = E_model ∂U, by 4,000 pairs of a draw and where a corrected kernel moves it: z below 4.5.

    False alarms: 6e-5 in all.  Chains on the bare potential leave the support, where U is NaN or falls for ever.
    """
    p, density = on_support(name, log_normalizer=ep.objectives.Contrastive(ep.MALA(0.3), steps=20))
    data = density.sample((4000,))
    log_prob = p.log_prob(data)
    # Each row's gradient of the one parameter: −U(data) + U(negative) at a factor of one.
    rows = torch.autograd.functional.jacobian(
        lambda factor: torch.func.functional_call(p.potential, {"factor": factor}, (data,)), p.potential.factor.detach()
    )
    assert bool(torch.isfinite(log_prob).all())
    (total,) = torch.autograd.grad(log_prob.sum(), p.potential.factor)
    # The variance of a difference of two independent energies; negatives, which begin at the data, have less.
    assert abs(float(total)) < 4.5 * float(rows.std()) * math.sqrt(2.0 * len(data))


def test_contrastive_learning_on_a_support_finds_the_rate() -> None:
    """The exponential's rate within 4.5 standard errors, 1/√n, and an optimizer's tenth: 7e-6 false alarms."""
    rate = torch.nn.Parameter(torch.tensor(0.3))
    data = torch.distributions.Exponential(2.0).sample((2000, 1))
    site = ep.EnergyDistribution(
        ep.Energy(lambda x: (rate.exp() * x).sum(-1), (1,)),
        support=torch.distributions.constraints.positive,
        log_normalizer=ep.objectives.Contrastive(ep.MALA(0.3), steps=20),
    )
    optimizer = torch.optim.Adam([rate], lr=0.05)
    for _ in range(120):
        optimizer.zero_grad()
        (-site.log_prob(data).mean()).backward()
        optimizer.step()
    assert abs(float(rate.detach().exp()) / 2.0 - 1.0) < 4.5 / math.sqrt(len(data)) + 0.1


def test_ends_that_differ_over_the_batch() -> None:
    """Uniform on three intervals: means of 64 independent chains, |z| < 4.5 each, 2e-5 false alarms; none leaves."""
    low = torch.tensor([[0.0], [-3.0], [10.0]])
    support = torch.distributions.constraints.interval(low, low + torch.tensor([[1.0], [4.0], [0.5]]))
    flat = ep.Energy(lambda x: 0.0 * x.sum(-1), (1,))
    p = ep.EnergyDistribution(flat, batch_shape=(3,), support=support)
    chains = ep.sample_chains(ep.HMC(steps=4), p, chains=64, draws=200, warmup=200, progress=False)
    x = chains.samples["x"]
    assert x.shape == (64, 200, 3, 1)
    assert bool(support.check(x).all())
    means = x.mean(1).squeeze(-1)
    z = (means.mean(0) - (low[:, 0] + torch.tensor([0.5, 2.0, 0.25]))) / (means.std(0) / 8.0)
    assert float(z.abs().max()) < 4.5


def draws_of(model: object, name: str) -> Tensor:
    chains = ep.sample_chains(ep.HMC(steps=4), model, chains=64, draws=400, warmup=300, progress=False)
    return chains.samples[name]  # (chains, draws, *site)


def require_mean(values: Tensor, expected: float) -> None:
    """|z| < 4.5 of 64 independent chains' means, Student's t with 63 degrees: 3e-5."""
    means = values.flatten(2).mean((1, 2)) if values.dim() > 2 else values.mean(1)
    assert abs(float((means.mean() - expected) / (means.std() / 8.0))) < 4.5


def test_angles_as_latents() -> None:
    """VonMises(3, 5) straddles ±π: E cos(θ − 3) = I₁(5) / I₀(5), and no draw outside of [−π, π)."""

    def model() -> None:
        pyro.sample("angle", dist.VonMises(torch.tensor(3.0), torch.tensor(5.0)))

    log_z = ep.log_normalizer(ep.sampling.ModelPotential.trace(model))
    assert abs(log_z.estimate) < 4.5 * log_z.standard_error, "it has log Z of its density, 0, whatever stands for it"
    assert log_z.standard_error < 0.1
    angle = draws_of(model, "angle")
    assert float(angle.min()) >= -math.pi
    assert float(angle.max()) <= math.pi
    five = torch.tensor(5.0)
    require_mean((angle - 3.0).cos(), float(torch.special.i1(five) / torch.special.i0(five)))


def test_a_likelihood_that_does_not_repeat_itself() -> None:
    """θ ~ VonMises(0, ½), y ~ N(θ, 1): the posterior mean over one period by quadrature, not over all of ℝ."""

    def model() -> None:
        angle = pyro.sample("angle", dist.VonMises(torch.tensor(0.0), torch.tensor(0.5)).expand([1]).to_event(1))
        pyro.sample("y", dist.Normal(angle, 1.0).to_event(1), obs=torch.tensor([3.0]))

    grid = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    weight = torch.softmax(0.5 * grid.cos() - 0.5 * (grid - 3.0) ** 2, 0)
    require_mean(draws_of(model, "angle"), float((weight * grid).sum()))


def test_mixtures_with_to_event_as_latents() -> None:
    """Two coordinates, each ½ N(−1, 1) + ½ N(2, 1): mean ½."""

    def model() -> None:
        parts = dist.Normal(torch.tensor([[-1.0, 2.0], [-1.0, 2.0]]), 1.0)
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2, 2)), parts).to_event(1))

    x = draws_of(model, "x")
    assert x.shape == (64, 400, 2)
    require_mean(x, 0.5)


def test_the_smallest_share_of_a_simplex_in_float32() -> None:
    """Dirichlet(¼, ¼, ¼): P(x₁ < 1e-8) = 7.5e-3 by Beta(¼, ½); torch's stick-breaking stops at 1e-7.

    |z| < 4.5 of 64 independent chains' shares: 3e-5.
    """
    p = ep.EnergyDistribution(
        ep.Energy(lambda x: 0.75 * x.log().sum(-1), (3,)), support=torch.distributions.constraints.simplex
    )
    chains = ep.sample_chains(ep.HMC(steps=8), p, chains=64, draws=1000, warmup=500, progress=False)
    small = 1e-8  # P = small^¼ / (¼ B(¼, ½)), to 1e-8
    beta = math.exp(math.lgamma(0.25) + math.lgamma(0.5) - math.lgamma(0.75))
    require_mean((chains.samples["x"][..., 2] < small).double(), small**0.25 / (0.25 * beta))


IMPROPER: dict[str, tuple[Callable[[Tensor], Tensor], Any, int]] = {
    "1/x on (0, 1)": (lambda x: x.log().sum(-1), constraints.unit_interval, 1),
    "1/(1 − x) on (0, 1)": (lambda x: (1.0 - x).log().sum(-1), constraints.unit_interval, 1),
    "1/x in one of two": (lambda x: x[..., 0].log(), constraints.unit_interval, 2),
    "a Dirichlet of concentration 0": (lambda x: x.log().sum(-1), constraints.simplex, 3),
    "1/x above 0": (lambda x: x.log().sum(-1), constraints.positive, 1),
}


@pytest.mark.parametrize("name", IMPROPER)
def test_densities_that_rise_too_fast_at_an_edge_are_refused(name: str) -> None:
    energy, support, size = IMPROPER[name]
    with pytest.raises(NotNormalizable, match="it rises by 0"):
        ep.log_normalizer(
            ep.EnergyDistribution(ep.Energy(energy, (size,)), support=support), method=ep.normalizing.AIS(64, 8)
        )


def test_matrices_that_rounding_makes_singular_are_no_error() -> None:
    """Far out entries round to ±1, which torch's density and the way back refuse."""
    density = dist.LKJ(3, 1.5)
    p = ep.EnergyDistribution(ep.Energy(lambda x: -density.log_prob(x), (3, 3)), support=density.support)
    assert float(ep.log_normalizer(p, method=ep.normalizing.AIS(256, 30))) == pytest.approx(0.0, abs=0.15)


def test_those_that_rise_slowly_enough_are_not() -> None:
    """x^−.95 on (0, 1), whose log Z is log 20, and its like on a simplex."""
    for energy, support, size, right in (
        (lambda x: 0.95 * x.log().sum(-1), constraints.unit_interval, 1, math.log(20.0)),
        (lambda x: 0.9 * x[..., 0].log(), constraints.simplex, 3, math.lgamma(0.1) - math.lgamma(2.1)),
    ):
        p = ep.EnergyDistribution(ep.Energy(energy, (size,)), support=support)
        assert float(ep.log_normalizer(p, method=ep.normalizing.AIS(512, 40))) == pytest.approx(right, abs=0.15)

"""Learned priors of latents: their log Z and its gradient, posterior chains as a guide, and marginal likelihoods.

Monte Carlo errors are those of independent chains; ``LIMIT`` standard errors are passed by chance once in 150,000 for
each number, and 45 numbers are compared: 3e-4 for the file.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

import energyppl as ep
from energyppl.inference.normalizing.annealing import effective_size

LIMIT = 4.5


def followed(updates: int) -> ep.models.LatentPrior:
    """A prior of the plane whose correction grows from nothing to some nats."""
    net = ep.MLPEnergy((2,), levels=1, hidden=16, depth=1, frequencies=4, frequency_range=(0.5, 2.0))
    prior, final = ep.models.LatentPrior(net, chains=2000), 8.0 * net.readout.weight.detach()
    for share in torch.linspace(0.0, 1.0, updates + 1)[1:]:
        with torch.no_grad():
            net.readout.weight.copy_(share * final)
        prior.track()
    return prior


def test_log_z_and_its_gradient_follow_the_weights() -> None:
    """Against quadrature: the value, and the gradient with respect to the readout, a mean of hidden units."""
    prior = followed(40)
    exact = prior.log_normalizer()  # on a grid
    weights = prior.log_weights[1]
    error = float((weights - weights.logsumexp(0)).exp().mul(len(weights)).std()) / math.sqrt(len(weights))
    assert exact.method == "quadrature"
    assert abs(prior.tracked_log_z - exact.estimate) < LIMIT * error
    # Negative control: the log Z of N(0, 1) that chains began with.
    assert abs(math.log(2.0 * math.pi) - exact.estimate) > 10.0 * error

    z = torch.cartesian_prod(*[torch.linspace(-6.0, 6.0, 241)] * 2)
    readout = prior.net.readout.weight
    mass = torch.softmax(-prior.potential()(z), 0).detach()
    per_point = torch.func.jacrev(
        lambda w: torch.func.functional_call(prior.net, {"readout.weight": w}, (z[::7], torch.tensor(0)))
    )
    units = per_point(readout.detach())[:, 0].detach()  # of every seventh point
    spread = units.std(0)
    (truth,) = torch.autograd.grad((mass * prior.potential()(z)).sum(), readout)
    (found,) = torch.autograd.grad(
        prior.marginal().log_prob(torch.zeros(1, 2)).sum() + prior.potential()(torch.zeros(2)), readout
    )
    size = float(effective_size(prior.log_weights[0]))
    assert size > 500.0
    assert float(((found - truth).abs()[0] / spread).max()) * math.sqrt(size) < LIMIT
    assert float((truth.abs()[0] / spread).max()) * math.sqrt(size) > 2.0 * LIMIT, "zero would be told from it"


# --- x = a z + noise: the posterior is known ---

SLOPE, NOISE = 1.5, 0.5


def linear(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(SLOPE))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * z, NOISE), obs=x)


def gradient(guide: ep.objectives.PosteriorGuide, x: Tensor) -> float:
    """Of the loss of SVI, for each row."""
    pyro.clear_param_store()
    Trace_ELBO().loss_and_grads(linear, guide, x)
    found = pyro.param("slope").grad
    assert found is not None
    return -float(found) / len(x)


@pytest.mark.parametrize(("steps", "right"), [(30, True), (1, False)])
def test_a_posterior_guide_makes_svi_em(steps: int, right: bool) -> None:
    """The gradient is that of log N(x; 0, a² + s²); one small step from the prior, the negative control, misses it."""
    x = 1.3 * torch.randn(4000)
    variance = SLOPE**2 + NOISE**2
    exact = SLOPE * (x.square() / variance - 1.0) / variance
    guide = ep.objectives.PosteriorGuide(linear, ep.MALA(0.5 if right else 0.01), steps=steps, adapt=False)
    z_mean, z_variance = SLOPE * x / variance, NOISE**2 / variance
    # Of z (x − a z) / s² given x, for the Monte Carlo error; its mean is the exact gradient.
    moved = z_mean + z_variance**0.5 * torch.randn(500, 4000)
    error = float((moved * (x - SLOPE * moved) / NOISE**2).std(0).square().mean().sqrt()) / math.sqrt(len(x))
    away = abs(gradient(guide, x) - float(exact.mean()))
    assert (away < LIMIT * error) == right


@pytest.mark.parametrize("guided", [False, True])
def test_marginal_likelihood(guided: bool) -> None:
    """Of every row within ``LIMIT`` errors, and of their mean; a log Z that is off by a tenth shows."""

    def near(x: Tensor) -> None:
        variance = SLOPE**2 + NOISE**2
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(SLOPE * x / variance, 1.3 * NOISE / variance**0.5))

    x = torch.linspace(-3.0, 3.0, 20)
    options = {"guide": near if guided else None, "particles": 1000, "temperatures": 60}
    found = ep.normalizing.marginal_log_likelihood(linear, (x,), **options)
    exact = dist.Normal(0.0, math.hypot(SLOPE, NOISE)).log_prob(x).double()
    assert float(((found.log_likelihood - exact) / found.standard_error).abs().max()) < LIMIT
    assert abs(found.mean.value - float(exact.mean())) < LIMIT * found.annealing_error
    assert found.annealing_error < 0.1 / (2.0 * LIMIT)
    wrong = ep.normalizing.marginal_log_likelihood(linear, (x,), log_z=0.1, **options)
    assert abs(wrong.mean.value - float(exact.mean())) > LIMIT * wrong.annealing_error

"""Any Pyro model as a potential, our kernels in Pyro's MCMC, and our potentials under Pyro's own inference."""

import dataclasses
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
from pyro.nn import PyroModule, PyroSample
from pyro.ops.stats import effective_sample_size
from torch import Tensor
from torch.distributions import biject_to, constraints

import energyppl as ep
from energyppl.errors import EnergyPPLError, InvalidInput

CHAINS = 64
LIMIT = 4.0  # standard errors, of 64 chains: 1.7e-4 two-sided for one number (Student's t, 63 degrees of freedom)
SOME_DIVERGE = pytest.mark.filterwarnings("ignore:.* of the draws diverged:UserWarning")


# --- Models ---


def nested(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("groups", 3, dim=-1):
        a = pyro.sample("a", dist.Normal(mu, 1.0))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        with pyro.plate("rows", 4, dim=-2):
            pyro.sample("y", dist.Normal(a, sigma), obs=y)


def dirichlet(y: Tensor) -> None:
    with pyro.plate("dice", 2):
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
        pyro.sample("y", dist.Categorical(p), obs=y)


def lkj(y: Tensor) -> None:
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=scale[:, None] * factor), obs=y)


def dynamic(y: Tensor) -> None:
    top = pyro.sample("top", dist.Gamma(3.0, 1.0))
    share = pyro.sample("share", dist.Uniform(0.0, top))
    pyro.sample("low", dist.Uniform(-share, share))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(share, 1.0), obs=y)


def mixture(y: Tensor) -> None:
    def humps(middle: Tensor) -> Any:
        parts = dist.Normal(middle + torch.tensor([-1.0, 2.0]), 0.7)
        return dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), parts)

    z = pyro.sample("z", humps(torch.zeros(1)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", humps(z[..., None]), obs=y)


def sequential(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.StudentT(4.0, 0.0, 1.0))
    for i in pyro.plate("times", 3):
        x = pyro.sample(f"x{i}", dist.Normal(mu, 1.0))
        pyro.sample(f"y{i}", dist.Normal(x, 0.5), obs=y[i])


class Linear(PyroModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[torch.nn.Linear](2, 1)
        self.layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.layer.bias = PyroSample(dist.Normal(0.0, 5.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean = self.layer(x).squeeze(-1)
        sigma = pyro.sample("sigma", dist.Exponential(1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def masked(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.5):
        tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
        with pyro.plate("rows", len(y)), poutine.mask(mask=y > 0):
            pyro.sample("y", dist.Normal(mu, tau), obs=y)
    pyro.factor("extra", -0.1 * mu.abs())


def deterministic(y: Tensor) -> None:
    with pyro.plate("parts", 2):
        a = pyro.sample("a", dist.Beta(2.0, 2.0))
    odds = pyro.deterministic("odds", a / (1.0 - a))
    pyro.sample("y", dist.Normal(odds.sum(), 1.0), obs=y.sum())


def double(y: Tensor) -> None:
    one = torch.ones((), dtype=torch.float64)
    mu = pyro.sample("mu", dist.Normal(0.0 * one, one))
    s = pyro.sample("s", dist.HalfCauchy(one))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.StudentT(3.0 * one, mu, s), obs=y.double())


def multinomial(y: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    pyro.sample("y", dist.Multinomial(int(y.sum()), p), obs=y)


MODELS: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]] = {
    "nested plates": (nested, lambda: (torch.randn(4, 3),)),
    "Dirichlet": (dirichlet, lambda: (torch.tensor([0, 2]),)),
    "multinomial": (multinomial, lambda: (torch.tensor([3.0, 5.0, 2.0]),)),
    "LKJ": (lkj, lambda: (torch.randn(6, 3),)),
    "supports that depend on sites": (dynamic, lambda: (torch.randn(5),)),
    "mixture": (mixture, lambda: (torch.randn(5),)),
    "sequential plate": (sequential, lambda: (torch.randn(3),)),
    "PyroModule": (Linear(), lambda: (torch.randn(7, 2), torch.randn(7))),
    "mask, scale and factor": (masked, lambda: (torch.randn(6),)),
    "deterministic": (deterministic, lambda: (torch.randn(3),)),
    "float64": (double, lambda: (torch.randn(4),)),
}


def potential_of(name: str) -> tuple[ep.ModelPotential, Callable[..., Any], tuple[Any, ...]]:
    model, make = MODELS[name]
    args = make()
    return ep.ModelPotential.trace(model, *args), model, args


def latent(potential: ep.ModelPotential, z: Tensor) -> dict[str, Tensor]:
    values = potential.constrain(z)
    return {site.name: values[site.name] for site in potential.sites}


def by_pyro(potential: ep.ModelPotential, model: Any, args: tuple[Any, ...], z: Tensor) -> float:
    """Minus Pyro's log joint at one point, with the log-Jacobians, site by site, of the supports in Pyro's trace."""
    values = {name: value[0] for name, value in latent(potential, z[None]).items()}
    trace = poutine.trace(poutine.condition(model, values)).get_trace(*args)
    total = float(trace.log_prob_sum())
    for name, value in values.items():
        support = trace.nodes[name]["fn"].support
        if isinstance(support, constraints.MixtureSameFamilyConstraint):
            support = support.base_constraint
        transform = biject_to(support)
        total += float(transform.log_abs_det_jacobian(transform.inv(value), value).sum())
    return -total


@pytest.mark.parametrize("name", list(MODELS))
def test_energies_are_minus_pyros_log_joint(name: str) -> None:
    potential, model, args = potential_of(name)
    assert potential.vectorized
    size = sum(math.prod(site.shape) for site in potential.sites)
    assert potential.event_shape == (size,)
    z = torch.randn(20, size, dtype=potential.dtype)
    energies = potential(z)
    assert energies.dtype == (torch.float64 if name == "float64" else torch.float32)
    expected = torch.tensor([by_pyro(potential, model, args, point) for point in z]).to(energies)
    torch.testing.assert_close(energies, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", list(MODELS))
def test_gradients_and_batches(name: str) -> None:
    """The hot door equals autograd point by point; any batch shape equals its points."""
    potential, _, _ = potential_of(name)
    z = torch.randn(2, 3, *potential.event_shape, dtype=potential.dtype)
    energy, grad = ep.energy_and_grad(potential, z)
    rows = []
    for point in z.reshape(6, -1):
        leaf = point.clone().requires_grad_()
        value = potential(leaf)
        rows.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    assert energy.shape == (2, 3)
    torch.testing.assert_close(energy.flatten(), torch.stack([r[0] for r in rows]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad.reshape(6, -1), torch.stack([r[1] for r in rows]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(MODELS))
def test_variables_round_trip(name: str) -> None:
    """To each site's own support and back; shapes; observed data and their log likelihood."""
    potential, model, args = potential_of(name)
    z = torch.randn(2, 3, *potential.event_shape, dtype=potential.dtype)
    values = potential.constrain(z)
    trace = poutine.trace(model).get_trace(*args)
    for site in potential.sites:
        assert values[site.name].shape == (2, 3, *trace.nodes[site.name]["value"].shape)
    again = potential.unconstrain(latent(potential, z), torch.Size((2, 3)))
    torch.testing.assert_close(again, z, rtol=2e-3, atol=2e-3)
    assert set(values) - {site.name for site in potential.sites} == ({"odds"} if name == "deterministic" else set())
    held = {k: v[1, 2] for k, v in latent(potential, z).items()}
    trace = poutine.trace(poutine.condition(model, held)).get_trace(*args)
    trace.compute_log_prob()
    data = {f"y{i}" for i in range(3)} if name == "sequential plate" else {"y"}
    likelihood = potential.log_likelihood(z)
    assert set(likelihood) == set(potential.observed()) == data
    for site_name in data:
        node = trace.nodes[site_name]
        assert torch.equal(potential.observed()[site_name], node["value"])
        torch.testing.assert_close(likelihood[site_name][1, 2], node["log_prob"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", list(MODELS))
def test_one_point_without_a_batch(name: str) -> None:
    """``(D,)`` is a point too: its energy, its variables and the way back, as in a batch of one."""
    potential, _, _ = potential_of(name)
    z = torch.randn(potential.event_shape, dtype=potential.dtype)
    torch.testing.assert_close(potential(z), potential(z[None])[0])
    alone, batch = potential.constrain(z), potential.constrain(z[None])
    for site, value in batch.items():
        torch.testing.assert_close(alone[site], value[0])
    torch.testing.assert_close(potential.unconstrain(alone, torch.Size()), z, rtol=2e-3, atol=2e-3)


def branching(y: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    if float(p.detach()[0]) > 2.0:  # a question that a batch has no one answer to
        raise AssertionError("p is a probability")
    pyro.sample("y", dist.Multinomial(int(y.sum()), p), obs=y)


@SOME_DIVERGE
def test_a_model_that_vmap_can_not_follow_is_evaluated_point_by_point() -> None:
    """With a warning, and the same numbers; the posterior is Dirichlet(1 + y), 3 means at 5 standard errors: 5e-4."""
    y = torch.tensor([3.0, 5.0, 2.0])
    with pytest.warns(UserWarning, match=r"can't be batched over chains \(.*\); each chain is evaluated on its own"):
        potential = ep.ModelPotential.trace(branching, y)
    assert not potential.vectorized
    z = torch.randn(2, 3, 2)
    energy, grad = ep.energy_and_grad(potential, z)
    expected = [by_pyro(potential, branching, (y,), point) for point in z.reshape(6, 2)]
    torch.testing.assert_close(energy.flatten(), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    leaf = z.clone().requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(potential(leaf).sum(), leaf)[0], rtol=1e-4, atol=1e-4)
    with pytest.warns(UserWarning, match="can't be batched"):
        chains = ep.sample_chains(ep.HMC(0.3, 2), branching, y, chains=16, draws=40, warmup=30, progress=False)
    means = chains.samples["p"].mean(1)
    z_score = (means.mean(0) - (1.0 + y) / 13.0) / (means.std(0) / 4.0)
    assert float(z_score.abs().max()) < 5.0  # Student's t with 15 degrees of freedom: 1.6e-4 two-sided


def subsampled(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def coin(y: Tensor) -> None:
    side = pyro.sample("side", dist.Bernoulli(0.5))
    mu = pyro.sample("mu", dist.Normal(side, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y.sum())


def random(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu + torch.randn(()), 1.0), obs=y.sum())


def observed_only(y: Tensor) -> None:
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y.sum())


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "discrete": (coin, "latent site 'side' is discrete: gradients can't move it. Sum it out"),
    "subsampling": (subsampled, "plate 'rows' subsamples 2 of 5 rows.*give MCMC all the data"),
    "random": (random, "log density changes from run to run: it must not draw at random"),
    "nothing latent": (observed_only, "no latent site: there is nothing to sample"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_models_that_can_not_be_sampled_are_refused(name: str) -> None:
    model, message = REFUSED[name]
    with pytest.raises(InvalidInput, match=message):
        ep.sample_chains(ep.NUTS(), model, torch.randn(5), progress=False)


def test_sites_must_stay_and_starts_must_be_whole() -> None:
    switch = [False]

    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        if switch[0]:
            pyro.sample("b", dist.Normal(0.0, 1.0))

    potential = ep.ModelPotential.trace(model)
    switch[0] = True
    with pytest.raises(EnergyPPLError, match="latent site 'b' now that it did not have before"):
        potential(torch.zeros(1))
    y = torch.randn(4, 3)
    for init, message in (
        ({"mu": torch.zeros(4)}, "missing: a, sigma"),
        (
            {"mu": torch.zeros(3), "a": torch.zeros(4, 3), "sigma": torch.ones(4, 3)},
            r"init\['mu'\].*\(4,\); got \(3,\)",
        ),
    ):
        with pytest.raises(InvalidInput, match=message):
            ep.sample_chains(ep.NUTS(), nested, y, chains=4, init=init, progress=False)
    start = {"mu": torch.arange(4.0), "a": torch.randn(4, 3), "sigma": 1.0 + torch.rand(4, 3)}
    chains = ep.sample_chains(ep.MALA(1e-4), nested, y, chains=4, draws=1, warmup=0, init=start, progress=False)
    for site, value in start.items():
        torch.testing.assert_close(chains.samples[site][:, 0], value, rtol=0.0, atol=1e-2)


# --- Posteriors that are known ---


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


# --- Our kernels in pyro.infer.MCMC ---

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
    """The kernel stays as it is and begins where ``initial_params`` says, for models and potentials, again if rerun."""
    model, y = nested, torch.randn(4, 3)
    kernel = ep.PyroKernel(ep.MALA(1e-5), model)
    start = {"mu": torch.tensor(2.0), "a": torch.tensor([1.0, 2.0, 3.0]), "sigma": torch.tensor([0.5, 1.0, 2.0])}
    kernel.initial_params = start
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
        kernel.initial_params = {"x": point}
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
    """Mean and covariance of a toy's posterior within 4 standard errors of quadrature; 10 numbers in all: 2e-3."""
    model, y, _ = EBM_PRIORS[name]
    mean, covariance = moments(name)
    chains = ep.sample_chains(ep.ChEES(), model, y, chains=CHAINS, draws=400, warmup=200, progress=False)
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
    """The mean-field posterior is N(y/2, ½) and LogNormal(.5, .3); the tolerance is the optimiser's."""
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

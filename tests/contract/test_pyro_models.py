"""Any Pyro model as a potential, our kernels in Pyro's MCMC, and our potentials under Pyro's own inference."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample
from torch import Tensor
from torch.distributions import biject_to

import energyppl as ep
from energyppl.errors import EnergyPPLError, InvalidInput
from tests.support.pyro_models import nested

SOME_DIVERGE = pytest.mark.filterwarnings("ignore:.* of the draws diverged:UserWarning")


# --- Models ---


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
    pyro.factor("level0_fraction", -0.1 * mu.abs())


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


def potential_of(name: str) -> tuple[ep.sampling.ModelPotential, Callable[..., Any], tuple[Any, ...]]:
    model, make = MODELS[name]
    args = make()
    return ep.sampling.ModelPotential.trace(model, *args), model, args


def latent(potential: ep.sampling.ModelPotential, z: Tensor) -> dict[str, Tensor]:
    values = potential.constrain(z)
    return {site.name: values[site.name] for site in potential.sites}


def by_pyro(potential: ep.sampling.ModelPotential, model: Any, args: tuple[Any, ...], z: Tensor) -> float:
    """Minus Pyro's log joint at one point, with the log-Jacobians, site by site, of the supports in Pyro's trace."""
    values = {name: value[0] for name, value in latent(potential, z[None]).items()}
    trace = poutine.trace(poutine.condition(model, values)).get_trace(*args)
    total = float(trace.log_prob_sum())
    for name, value in values.items():
        support = trace.nodes[name]["fn"].support
        support = getattr(support, "base_constraint", support) if "Mixture" in type(support).__name__ else support
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
        # Each datum's own density, as ArviZ's converter of Pyro has it, whatever it counts for; a masked one is none.
        kept = torch.as_tensor(True if node["mask"] is None else node["mask"])
        own = torch.where(kept, node["unscaled_log_prob"], 0.0)
        torch.testing.assert_close(likelihood[site_name][1, 2], own, rtol=1e-3, atol=1e-3)


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
        potential = ep.sampling.ModelPotential.trace(branching, y)
    assert not potential.vectorized
    z = torch.randn(2, 3, 2)
    energy, grad = ep.energy_and_grad(potential, z)
    expected = [by_pyro(potential, branching, (y,), point) for point in z.reshape(6, 2)]
    torch.testing.assert_close(energy.flatten(), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    leaf = z.clone().requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(potential(leaf).sum(), leaf)[0], rtol=1e-4, atol=1e-4)
    with pytest.warns(UserWarning, match="can't be batched"):
        chains = ep.sample_chains(ep.HMC(0.3, 2), branching, (y,), chains=16, draws=40, warmup=30, progress=False)
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
        ep.sample_chains(ep.NUTS(), model, (torch.randn(5),), progress=False)


def test_sites_must_stay_and_starts_must_be_whole() -> None:
    switch = [False]

    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        if switch[0]:
            pyro.sample("b", dist.Normal(0.0, 1.0))

    potential = ep.sampling.ModelPotential.trace(model)
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
            ep.sample_chains(ep.NUTS(), nested, (y,), chains=4, init=init, progress=False)
    start = {"mu": torch.arange(4.0), "a": torch.randn(4, 3), "sigma": 1.0 + torch.rand(4, 3)}
    chains = ep.sample_chains(ep.MALA(1e-4), nested, (y,), chains=4, draws=1, warmup=0, init=start, progress=False)
    for site, value in start.items():
        torch.testing.assert_close(chains.samples[site][:, 0], value, rtol=0.0, atol=1e-2)

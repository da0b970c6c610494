"""Masks, reparametrizations and names of a Pyro model's sites: what is a coordinate, and what goes to which group."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.reparam import ConjugateReparam, LocScaleReparam, TransformReparam
from torch import Tensor

import energyppl as ep
from energyppl.errors import InvalidInput

SEEN = torch.tensor([True, False, True, True])
UNSEEN = ~SEEN
pytestmark = [pytest.mark.filterwarnings("ignore::energyppl.errors.ChainWarning")]  # a few draws, as they come


def trace(model: Any, *args: Any) -> ep.sampling.ModelPotential:
    return ep.sampling.ModelPotential.trace(model, *args)


def same_density(one: Any, other: Any, size: int) -> None:
    """Two models with the same coordinates have the same energies and gradients, all finite, up to one constant."""
    a, b = trace(one), trace(other)
    assert a.event_shape == b.event_shape == (size,)
    z = 2.0 * torch.randn(20, size)
    (energy, slope), (expected, wanted) = ep.energy_and_grad(a, z), ep.energy_and_grad(b, z)
    assert bool(torch.isfinite(energy).all() and torch.isfinite(slope).all())
    torch.testing.assert_close(energy - energy[0], expected - expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-4)


# likelihood given a positive latent site, data inside its support
LIKELIHOODS: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
    "Normal": (lambda s: dist.Normal(0.0, s), torch.tensor([0.5, 0.1, -1.0, 2.0])),
    "Exponential": (lambda s: dist.Exponential(s), torch.tensor([0.5, 0.1, 1.0, 2.0])),
    "Gamma": (lambda s: dist.Gamma(2.0, s), torch.tensor([0.5, 0.1, 1.0, 2.0])),
    "Beta": (lambda s: dist.Beta(s, 2.0), torch.tensor([0.5, 0.1, 0.9, 0.2])),
    "LogNormal": (lambda s: dist.LogNormal(s, 1.0), torch.tensor([0.5, 0.1, 1.0, 2.0])),
    "HalfCauchy": (lambda s: dist.HalfCauchy(s), torch.tensor([0.5, 0.1, 1.0, 2.0])),
    "Uniform whose end is latent": (lambda s: dist.Uniform(0.0, 5.0 + s), torch.tensor([0.5, 0.1, 1.0, 2.0])),
    "StudentT": (lambda s: dist.StudentT(3.0, 0.0, s), torch.tensor([0.5, 0.1, -1.0, 2.0])),
    "MultivariateNormal": (lambda s: dist.MultivariateNormal(torch.zeros(2), s * torch.eye(2)), torch.randn(4, 2)),
    "Dirichlet": (lambda s: dist.Dirichlet(s * torch.ones(3)), torch.softmax(torch.randn(4, 3), -1)),
    "two events": (lambda s: dist.Gamma(2.0, s).expand([2]).to_event(1), torch.rand(4, 2) + 0.5),
}


@pytest.mark.parametrize("hole", [math.nan, -1.0], ids=str)
@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_what_obs_mask_hides_is_sampled_and_what_it_shows_is_not(name: str, hole: float) -> None:
    """The same density as of a model with one latent site for the missing row; whatever marks it as missing."""
    make, data = LIKELIHOODS[name]
    holed = data.clone()
    holed[UNSEEN] = hole

    def masked() -> None:
        s = pyro.sample("s", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 4), pyro.validation_enabled(False):
            pyro.sample("y", make(s), obs=holed, obs_mask=SEEN)

    def by_hand() -> None:
        s = pyro.sample("s", dist.Gamma(2.0, 1.0))
        with pyro.plate("seen", 3):
            pyro.sample("y", make(s), obs=data[SEEN])
        with pyro.plate("unseen", 1):
            pyro.sample("missing", make(s))

    size = 1 + make(torch.ones(())).shape().numel() - (name == "Dirichlet")
    same_density(masked, by_hand, size)
    potential = trace(masked)
    values = potential.constrain(torch.randn(3, size))
    assert bool(torch.isfinite(values["y_unobserved"]).all())
    torch.testing.assert_close(values["y"][:, SEEN], data[SEEN].expand(3, *data[SEEN].shape))
    assert torch.equal(values["y"][:, UNSEEN], values["y_unobserved"][:, UNSEEN])
    torch.testing.assert_close(potential.observed()["y_observed"], holed, equal_nan=True)


LATENT: dict[str, Callable[[Any], Any]] = {
    "a handler": lambda fn: poutine.mask(mask=SEEN)(lambda: pyro.sample("a", fn))(),
    "a distribution's": lambda fn: pyro.sample("a", fn.mask(SEEN)),
    "inside to_event": lambda fn: pyro.sample("a", fn.expand([4]).mask(SEEN).to_event(1)),
}


@pytest.mark.parametrize("prior", [dist.Normal(0.0, 1.0), dist.Gamma(2.0, 3.0)], ids=["Normal", "Gamma"])
@pytest.mark.parametrize("name", list(LATENT))
def test_masked_entries_of_ragged_latent_sites_are_no_coordinates(name: str, prior: Any) -> None:
    """A ragged array: row 1 has neither a prior nor data."""
    y = torch.randn(4)

    def ragged() -> None:
        if name == "inside to_event":
            a = LATENT[name](prior)
        else:
            with pyro.plate("rows", 4):
                a = LATENT[name](prior)
        with pyro.plate("data", 4), poutine.mask(mask=SEEN):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    def short() -> None:
        with pyro.plate("rows", 3):
            a = pyro.sample("a", prior)
            pyro.sample("y", dist.Normal(a, 1.0), obs=y[SEEN])

    same_density(ragged, short, 3)
    potential = trace(ragged)
    z = torch.randn(5, 3)
    a = potential.constrain(z)["a"]
    assert a.shape == (5, 4)
    assert len(a[:, 1].unique()) == 1
    given = a.clone()
    given[:, 1] = math.nan  # of no consequence
    torch.testing.assert_close(potential.unconstrain({"a": given}, torch.Size((5,))), z, rtol=1e-4, atol=1e-4)


def test_a_masked_prior_whose_site_is_used_stays_a_coordinate() -> None:
    """An improper prior, on purpose: the factor makes it N(3, 1), whose energy is all there is."""

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).mask(False).to_event(1))
        pyro.factor("f", -0.5 * ((x - 3.0) ** 2).sum())

    z = torch.randn(5, 2)
    torch.testing.assert_close(trace(model)(z), 0.5 * ((z - 3.0) ** 2).sum(-1))


def nothing_left() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0).mask(False))


def discrete_holes() -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", 4):
        pyro.sample("y", dist.Poisson(rate), obs=torch.ones(4), obs_mask=SEEN)


def test_discrete_data_with_holes_can_be_masked() -> None:
    """As the refusal of obs_mask says: the energy is that of the rows that were seen."""

    def masked() -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 4), pyro.validation_enabled(False):
            pyro.sample("y", dist.Poisson(rate).mask(SEEN), obs=torch.tensor([1.0, math.nan, 3.0, 0.0]))

    def short() -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Poisson(rate), obs=torch.tensor([1.0, 3.0, 0.0]))

    same_density(masked, short, 1)


def named(name: str) -> Callable[[], None]:
    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample(name, dist.Normal(0.0, 1.0))

    return model


def deterministic_chain() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.deterministic("chain", 2.0 * a)


def observed_draw() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("draw", dist.Normal(a, 1.0), obs=torch.tensor(0.5))


def torchs_own() -> None:
    pyro.sample("x", torch.distributions.Normal(0.0, 1.0))


def no_distribution() -> None:
    pyro.sample("x", ep.EBM(ep.MLPEnergy((2,), hidden=4, depth=1, frequencies=2)))


def mask_of_entries() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with poutine.mask(mask=torch.ones(3, 2, dtype=torch.bool)):
        pyro.sample("y", dist.Normal(x, 1.0).expand([3, 2]).to_event(1), obs=torch.zeros(3, 2))


def conjugate() -> None:
    with poutine.reparam(config={"rate": ConjugateReparam(dist.Gamma(3.0, 2.0))}):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.sample("x", dist.Normal(rate, 1.0))


REFUSED: dict[str, tuple[Callable[[], None], str]] = {
    "torch's own": (torchs_own, r"site 'x' has torch's own Normal, .* use pyro\.distributions\.Normal"),
    "a model": (no_distribution, r"site 'x' needs a distribution; got EBM, .*: pass \.marginal\(\) of it"),
    "a mask of entries": (mask_of_entries, r"mask of site 'y' must broadcast to batch_shape \(3,\); got \(3, 2\)"),
    "draws of a handler": (conjugate, "changes from run to run: it must not draw at random"),
    "chain": (named("chain"), "a site can't be called 'chain': ArviZ has a dimension of that name"),
    "draw": (named("draw"), "a site can't be called 'draw'"),
    "sample": (named("sample"), "a site can't be called 'sample'"),
    "the axis of another": (named("a_dim_0"), "'a_dim_0': ArviZ has a dimension of 'a' of that name"),
    "a deterministic site": (deterministic_chain, "a site can't be called 'chain'"),
    "data": (observed_draw, "a site can't be called 'draw'"),
    "all masked": (nothing_left, "masks take every latent entry out of the model"),
    "discrete holes": (discrete_holes, r"the entries of 'y' that obs_mask leaves open are discrete.*\.mask\(seen\)"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_models_are_refused_before_they_are_sampled(name: str) -> None:
    model, message = REFUSED[name]
    with pytest.raises(InvalidInput, match=message):
        ep.sample_chains(ep.HMC(), model, chains=2, draws=2, warmup=2, progress=False)


def test_other_names_are_kept() -> None:
    chains = ep.sample_chains(ep.HMC(), named("a_dim_1"), chains=2, draws=5, warmup=5, progress=False)
    assert set(chains.to_arviz().posterior.data_vars) == {"a", "a_dim_1"}


# --- ArviZ groups ---

Y = torch.tensor([28.0, 8.0, -3.0])


def schools(config: dict[str, Any]) -> Callable[[], None]:
    def model() -> None:
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("school", 3), poutine.reparam(config=config):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, 12.0), obs=Y)

    return model


def observed_deltas() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    pyro.sample("double", dist.Delta(2.0 * mu), obs=2.0 * mu)
    pyro.sample("drawn", dist.Delta(3.0 * mu))
    pyro.sample("fixed", dist.Delta(torch.tensor(1.0)), obs=torch.tensor(1.0))
    with pyro.plate("school", 3):
        pyro.sample("y", dist.Normal(mu, 12.0), obs=Y)


def number() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=2.0)


GROUPS: dict[str, tuple[Callable[[], None], set[str], set[str], set[str]]] = {
    # model, posterior, observed data, log likelihood
    "centred": (schools({}), {"mu", "tau", "theta"}, {"y"}, {"y"}),
    "non-centred": (
        schools({"theta": LocScaleReparam(0.0)}),
        {"mu", "tau", "theta", "theta_decentered"},
        {"y"},
        {"y"},
    ),
    "transformed": (schools({"tau": TransformReparam()}), {"mu", "tau", "theta"}, {"y"}, {"y"}),
    "observed Deltas": (observed_deltas, {"mu", "double", "drawn"}, {"y", "fixed"}, {"y"}),
    "a number as data": (number, {"mu"}, {"y"}, {"y"}),
}


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")  # of 200 draws
@pytest.mark.filterwarnings("ignore:The point-wise LOO is the same with the sum")  # of one number
@pytest.mark.parametrize("name", list(GROUPS))
def test_sites_go_to_their_groups(name: str) -> None:
    model, posterior, data, likelihood = GROUPS[name]
    chains = ep.sample_chains(ep.HMC(), model, chains=4, draws=50, warmup=50, progress=False)
    idata = chains.to_arviz(log_likelihood=True)
    assert set(idata.posterior.data_vars) == posterior
    assert set(idata.observed_data.data_vars) == data
    assert set(idata.log_likelihood.data_vars) == likelihood
    for site in posterior:
        assert idata.posterior[site].shape[:2] == (4, 50)
        assert float(idata.posterior[site].std()) > 0.0
    loo = az.loo(idata)
    assert math.isfinite(float(loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd))  # ArviZ 0.x and 1.x


def test_a_transformed_latent_site_and_its_base_are_posterior() -> None:
    def model() -> None:
        with poutine.reparam(config={"tau": TransformReparam()}):
            tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, tau), obs=torch.tensor(0.5))

    potential = trace(model)
    z = torch.randn(6, 1)
    values = potential.constrain(z)
    assert set(values) == {"tau", "tau_base"}
    torch.testing.assert_close(values["tau"], z[:, 0].exp())
    assert set(potential.observed()) == {"y"}


# --- Starts, pickles ---


def pair() -> None:
    pyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("s", dist.Gamma(2.0, 1.0))


def square(x: Tensor) -> Tensor:
    return 0.5 * (x * x).sum(-1)


NORMAL = ep.Energy(square, torch.Size((2,)))
STARTS: dict[str, tuple[Any, Any, str]] = {
    "missing": (pair, {"a": torch.zeros(2)}, "initial_params must give every latent site a value; missing: s"),
    "unknown": (
        pair,
        {"a": torch.zeros(2), "s": torch.zeros(()), "b": torch.zeros(())},
        "initial_params must name the model's latent sites, a, s; got b",
    ),
    "shape": (
        pair,
        {"a": torch.zeros(3), "s": torch.zeros(())},
        r"initial_params\['a'\] must have the unconstrained shape \(1, 2\); got \(1, 3\)",
    ),
    "NaN": (pair, {"a": torch.full((2,), math.nan), "s": torch.zeros(())}, r"initial_params\['a'\] must be finite"),
    "a number": (pair, {"a": torch.zeros(2), "s": 0.0}, r"initial_params\['s'\] must be a tensor; got float"),
    "no dictionary": (pair, torch.zeros(3), "initial_params must be a dictionary of sites; got Tensor"),
    "of a potential, by another name": (NORMAL, {"y": torch.zeros(2)}, "initial_params must be {'x': …}"),
    "of a potential, its shape": (NORMAL, {"x": torch.zeros(3)}, r"the unconstrained shape \(2,\); got \(3,\)"),
    "of a potential, NaN": (NORMAL, {"x": torch.full((2,), math.nan)}, "initial_params must be finite"),
}


@pytest.mark.parametrize("name", list(STARTS))
def test_initial_params_are_checked(name: str) -> None:
    model, params, message = STARTS[name]
    kernel = ep.PyroKernel(ep.HMC(), model)
    kernel.initial_params = params
    with pytest.raises(InvalidInput, match=message):
        kernel.setup(5)


def test_init_is_checked_too() -> None:
    good = {"a": torch.zeros(4, 2), "s": torch.ones(4)}
    for init, message in (
        ({**good, "b": torch.zeros(4)}, "init must name the model's latent sites, a, s; got b"),
        ({**good, "s": torch.tensor([1.0, 1.0, math.nan, 1.0])}, r"init\['s'\] must be finite and inside"),
        ({**good, "s": -torch.ones(4)}, r"init\['s'\] must be finite and inside"),
    ):
        with pytest.raises(InvalidInput, match=message):
            ep.sample_chains(ep.HMC(), pair, chains=4, draws=2, warmup=0, init=init, progress=False)
    ep.sample_chains(ep.HMC(), pair, chains=4, draws=2, warmup=0, init=good, progress=False)


@pytest.mark.parametrize("target", [NORMAL, pair], ids=["potential", "model"])
def test_chains_can_be_pickled(target: Any) -> None:
    chains = ep.sample_chains(ep.HMC(), target, chains=4, draws=10, warmup=10, progress=False)
    again = pickle.loads(pickle.dumps(chains))
    for name, value in chains.samples.items():
        assert torch.equal(again.samples[name], value)
    assert again.problems() == chains.problems()
    assert set(again.to_arviz().posterior.data_vars) == set(chains.samples)


@pytest.mark.parametrize("target", [NORMAL, pair], ids=["potential", "model"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_pyros_mcmc_can_be_pickled(target: Any, warmup: int) -> None:
    mcmc = MCMC(ep.PyroKernel(ep.HMC(), target), num_samples=10, warmup_steps=warmup, disable_progbar=True)
    pickle.loads(pickle.dumps(mcmc))
    mcmc.run()
    again = pickle.loads(pickle.dumps(mcmc))
    for name, value in mcmc.get_samples().items():
        assert torch.equal(again.get_samples()[name], value)
    assert again.kernel.diagnostics() == mcmc.kernel.diagnostics()
    again.run()  # anew

"""Conditional energies and the posteriors that they give, against answers that are known."""

import math

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, Uniform

import energyppl as ep
from energyppl.models import ConditionalEBM, MLPEnergy, posterior, simulate

SCHEDULE = ep.NoiseSchedule.cosine(6, log_snr_max=4.6, log_snr_min=-6.0)
PRIOR = Independent(Uniform(-2.0 * torch.ones(2), 2.0 * torch.ones(2)), 1)
NOISE = 0.3


def kl_of_a_regression(y: Tensor, context: Tensor, steps: int) -> tuple[float, float]:
    """Train on rows, and return KL(truth ‖ model) over contexts and the rms of log Z where training implies 0."""
    torch.manual_seed(0)
    ebm = ConditionalEBM(MLPEnergy(1, context_shape=1, hidden=64, depth=2, frequencies=16), SCHEDULE)
    ep.fit(ebm, (y, context), steps=steps, progress=False)
    asked, grid = torch.linspace(-1.8, 1.8, 19), torch.linspace(-6.0, 6.0, 1201)
    p = ebm.given(asked[:, None])
    with torch.no_grad():
        log_q = p.log_prob(grid[:, None, None].expand(-1, 19, 1))
        log_z = p.quadrature() - p.implied_log_normalizer()
    alpha, noise = float(SCHEDULE.alpha_bar[0]), float(SCHEDULE.sigma_bar[0] * ebm.scale)
    mean = alpha * asked.sin() + (1.0 - alpha) * float(ebm.loc)
    log_p = Normal(mean, (alpha**2 * (0.1 + 0.1 * asked.abs()) ** 2 + noise**2).sqrt()).log_prob(grid[:, None])
    kl = (log_p.exp() * (log_p - log_q)).sum(0) * float(grid[1] - grid[0])
    return float(kl.mean()), float(log_z.square().mean().sqrt())


def test_a_heteroscedastic_density_is_learned() -> None:
    """KL of .05 nats is far from what shuffled contexts, the negative control, give, a nat and more."""
    torch.manual_seed(0)
    c = 4.0 * torch.rand(3000, 1) - 2.0
    y = c.sin() + (0.1 + 0.1 * c.abs()) * torch.randn(3000, 1)
    kl, log_z = kl_of_a_regression(y, c, 300)
    assert kl < 0.05
    assert log_z < 0.1
    assert kl_of_a_regression(y, c.flip(0), 50)[0] > 0.5, "negative control"


def gaussian(theta: Tensor) -> Tensor:
    return theta + NOISE * torch.randn_like(theta)


@pytest.fixture(scope="module")
def likelihood() -> ConditionalEBM:
    torch.manual_seed(0)
    net = MLPEnergy(2, context_shape=2, hidden=64, depth=2, frequencies=16)
    schedule = ep.NoiseSchedule.cosine(6, log_snr_max=6.0, log_snr_min=-6.0)
    ebm = ConditionalEBM(net, schedule)
    ep.fit(ebm, simulate(gaussian, PRIOR, 3000), steps=300, progress=False)
    return ebm


def test_the_posterior_of_a_gaussian_simulator_is_a_gaussian(likelihood: ConditionalEBM) -> None:
    """Of four observations: N(mean, .15²).  A quarter of that width is what training may be off, tens of Monte Carlo
    standard errors; with the observations of others, the negative control, the mean is widths away.
    """
    torch.manual_seed(1)
    x = torch.tensor([0.5, -0.4]) + NOISE * torch.randn(4, 2)
    width = NOISE / 2.0

    def draws(observed: Tensor) -> Tensor:
        given_x = posterior(likelihood, PRIOR, observed)
        chains = ep.sample_chains(ep.HMC(), given_x, chains=128, draws=20, warmup=40, progress=False)
        assert float(chains.r_hat().max()) < 1.1
        return chains.samples["x"].flatten(0, 1)

    found = draws(x)
    assert float((found.mean(0) - x.mean(0)).abs().max()) < 0.25 * width
    assert float((found.std(0) / width - 1.0).abs().max()) < 0.25
    assert float((draws(-x).mean(0) - x.mean(0)).abs().max()) > width, "negative control"


def test_a_site_of_a_pyro_model_gives_the_same_posterior(likelihood: ConditionalEBM) -> None:
    """Means of both within a fifth of the posterior's width, seven standard errors of what is worth 1,300 draws."""
    torch.manual_seed(2)
    x = torch.tensor([0.5, -0.4])

    def model(x: Tensor) -> None:
        theta = pyro.sample("theta", pyro.distributions.Uniform(-2.0 * torch.ones(2), 2.0 * torch.ones(2)).to_event(1))
        pyro.sample("x", likelihood.given(theta), obs=x)

    options = {"chains": 128, "draws": 20, "warmup": 40, "progress": False}
    site = ep.sample_chains(ep.HMC(), model, (x,), **options).samples["theta"].flatten(0, 1)  # type: ignore[arg-type]
    own = ep.sample_chains(ep.HMC(), posterior(likelihood, PRIOR, x), **options).samples["x"].flatten(0, 1)  # type: ignore[arg-type]
    assert float((site.mean(0) - own.mean(0)).abs().max()) < 0.2 * NOISE
    assert float((site.std(0) / own.std(0)).log().abs().max()) < 0.2


@pytest.mark.parametrize("moved", [True, False])
def test_draws_of_the_prior_reach_both_of_two_modes_far_narrower_than_it(
    moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundredth wide in four dimensions, where no draw of the prior is.  A share of a fifth too much is seven of its
    standard deviations (.03, of eight runs); merely resampled, the negative control, draws are copies of one.
    """
    torch.manual_seed(0)
    prior = Independent(Uniform(-torch.ones(4), torch.ones(4)), 1)

    def energy(theta: Tensor) -> Tensor:
        apart = [(theta - side).square().sum(-1) / (2.0 * 0.01**2) for side in (-0.5, 0.5)]
        return -torch.logaddexp(-apart[0], -apart[1])

    if not moved:
        monkeypatch.setattr("energyppl.models.simulation._EFFECTIVE", 0)
    likelihood = ep.Energy(energy, (4,))
    given_x = ep.EnergyDistribution(likelihood, sampler=ep.models.Resampled(prior, energy), support=prior.support)
    theta = given_x.sample((500,))
    right = theta[:, 0] > 0.0
    reached = 0.3 < float(right.double().mean()) < 0.7
    assert reached == moved
    if moved:
        assert float((theta[right] - 0.5).std() / 0.01) == pytest.approx(1.0, abs=0.3)


def test_fewer_draws_of_the_prior_than_chains_serve_them_all() -> None:
    prior = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)

    def energy(theta: Tensor) -> Tensor:
        return 5e4 * theta.square().sum(-1)

    begin = ep.models.Resampled(prior, energy, tried=50)
    target = ep.potentials.Sum(ep.potentials.DistributionBase(prior), ep.Energy(energy, (2,)))
    found = begin(ep.potentials.Constrained(target, prior.support), torch.Size((100,)), torch.zeros(()))
    assert found.shape == (100, 2)
    assert len(found.unique(dim=0)) > 50


def fails_sometimes(theta: Tensor) -> Tensor:
    x = gaussian(theta)
    return torch.where(theta[:, :1] > 1.5, math.nan, x)


def test_simulations_that_fail_are_named_and_dropped_on_request() -> None:
    with pytest.raises(ep.InvalidInput, match=r"NaN or infinity in \d+ of 400 rows \(\d+, .*drop_failed=True"):
        simulate(fails_sometimes, PRIOR, 400)
    rows = simulate(fails_sometimes, PRIOR, 400, drop_failed=True)
    assert len(rows.x) == len(rows.parameters) < 400
    assert torch.isfinite(rows.x).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda ebm: simulate(
                gaussian,
                Independent(Uniform(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0 + 1e-9]), validate_args=False), 1),
                50,
            ),
            r"parameter\(s\) \[1\] are constant",
        ),
        (lambda ebm: simulate(gaussian, Normal(torch.zeros(2), 1.0), 50), r"no batch_shape; got \(\) and \(2,\)"),
        (
            lambda ebm: simulate(lambda theta: theta[:3], PRIOR, 50),
            r"return floating-point data \(50, \*event\) for 50 parameters; got \(3",
        ),
        (lambda ebm: simulate(lambda theta: theta.long().numpy(), PRIOR, 50), "got an array of int64"),
        (lambda ebm: simulate(lambda theta: theta.long(), PRIOR, 50), "simulated data must be floating point"),
        (lambda ebm: simulate(lambda theta: math.nan * theta, PRIOR, 50, drop_failed=True), "0 gave finite data"),
        (lambda ebm: posterior(ebm, PRIOR, torch.zeros(3)), r"observed must end in event_shape \(2,\)"),
        (lambda ebm: posterior(ebm, PRIOR, torch.full((2,), math.nan)), "observed must be finite"),
        (lambda ebm: posterior(ebm, PRIOR.expand([3]), torch.zeros(2)), "must be of one vector"),
        (
            lambda ebm: posterior(ebm, Independent(Normal(torch.zeros(3), 1.0), 1), torch.zeros(2)),
            r"prior must be of parameters \(2,\), the model's contexts; got \(3,\)",
        ),
        (lambda ebm: posterior(ep.RecoveryEBM(MLPEnergy(2), SCHEDULE), PRIOR, torch.zeros(2)), "got RecoveryEBM"),
    ],
)
def test_bad_input_is_said(likelihood: ConditionalEBM, make: object, message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        make(likelihood)  # type: ignore[operator]


def test_a_site_of_one_number_is_batched_over_chains() -> None:
    """Its log Z is integrated on one grid for all chains, without a warning that they run one by one."""
    torch.manual_seed(0)
    ebm = ConditionalEBM(MLPEnergy(1, context_shape=1, hidden=16, depth=2, frequencies=4), SCHEDULE)
    c = 2.0 * torch.rand(500, 1) - 1.0
    ep.fit(ebm, (c + 0.3 * torch.randn(500, 1), c), steps=20, progress=False)

    def model(y: Tensor) -> None:
        c = pyro.sample("c", pyro.distributions.Uniform(-torch.ones(1), torch.ones(1)).to_event(1))
        pyro.sample("y", ebm.given(c), obs=y)

    chains = ep.sample_chains(ep.MALA(0.1), model, (torch.zeros(1),), chains=4, draws=3, warmup=0, progress=False)
    points = chains.samples["c"][:, -1]
    with torch.no_grad():
        alone = torch.stack([ebm.given(c).log_prob(torch.zeros(1)) for c in points])
        mapped = torch.func.vmap(lambda c: ebm.given(c).log_prob(torch.zeros(1)))(points)
    assert torch.allclose(alone, mapped, atol=1e-4)

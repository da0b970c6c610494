"""The base of a continuous network: covariance and heavy tails of the rows."""

import copy

import pytest
import torch

import energyppl as ep
from energyppl.models.networks.scale_mixture import NoisedMixture, ScaleMixture
from tests.support.gradients import require_equal, require_traced

SCHEDULE = ep.NoiseSchedule.cosine(4)


def heavy_rows(count: int = 2000) -> torch.Tensor:
    """Two Gaussian columns and one of Student's t with two degrees of freedom."""
    rows = torch.randn(count, 3)
    rows[:, 2] = torch.distributions.StudentT(2.0).sample((count,))
    rows[0, 2] = 40.0
    return rows


@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 4.6])
def test_the_mixture_is_normalized_at_every_level(log_snr: float) -> None:
    """A sum over a grid that reaches 12 of the widest component, spaced by .02: exact but for float32."""
    mixture = ScaleMixture(1)
    mixture.fit(heavy_rows()[:, 2:])
    grid = torch.arange(-600.0, 600.0, 0.02)[:, None]
    mass = float((-mixture(grid, torch.tensor(log_snr))).double().exp().sum()) * 0.02
    assert mixture.heavy
    assert mass == pytest.approx(1.0, abs=1e-3)


def test_many_rows_are_thinned_without_losing_the_tail() -> None:
    rows = heavy_rows(40_000)
    many, few = ScaleMixture(3), ScaleMixture(3)
    many.fit(rows)
    few.fit(rows[:2000])
    torch.testing.assert_close(many.log_weights.logsumexp(-1), torch.zeros(3), atol=1e-5, rtol=0.0)
    assert float(many.variances[2, -1].sqrt()) == pytest.approx(float(rows.abs().max()))
    assert float(few.variances[2, -1].sqrt()) == pytest.approx(float(rows[:2000].abs().max()))


def test_noise_of_the_mixtures_draws_gives_its_own_marginal() -> None:
    """Characteristic functions: φ at a level is φ_0(α t) exp(−σ² t²/2), by sums over a grid."""
    mixture = ScaleMixture(1).double()
    mixture.fit(heavy_rows()[:, 2:])
    grid = torch.arange(-600.0, 600.0, 0.01, dtype=torch.float64)

    def characteristic(log_snr: float, t: float) -> float:
        density = (-mixture(grid[:, None], torch.tensor(log_snr, dtype=torch.float64))).exp()
        return float((density * (t * grid).cos()).sum()) * 0.01

    log_snr = torch.tensor(1.0, dtype=torch.float64)
    alpha, noise = float(log_snr.sigmoid().sqrt()), float((-log_snr).sigmoid())
    for t in (0.3, 1.0):
        exact = characteristic(30.0, alpha * t) * float(torch.tensor(-0.5 * noise * t * t).exp())
        assert characteristic(1.0, t) == pytest.approx(exact, abs=1e-4)


def test_a_far_row_costs_what_its_tail_is_worth() -> None:
    """Under N(0, I) it would cost 800 nats, under Student's t about 12; light columns leave the energy as it was."""
    torch.manual_seed(0)
    heavy, light = (ep.RecoveryEBM(ep.MLPEnergy((3,)), SCHEDULE) for _ in range(2))
    rows = heavy_rows()
    heavy.standardize(rows / rows.std(0) * torch.tensor([1.0, 1.0, 2.5]))
    light.standardize(torch.randn(2000, 3))
    far = torch.tensor([[0.0, 0.0, 40.0]])
    with torch.no_grad():
        heavy_cost, light_cost = (
            float(ebm.potential(0)(far) - ebm.potential(0)(torch.zeros(1, 3))) for ebm in (heavy, light)
        )
    assert heavy_cost < 30.0
    assert light_cost == pytest.approx(800.0, abs=1.0)


def test_tails_travel_with_the_weights_and_an_energy_seen_before_is_seen_anew() -> None:
    ebm = ep.RecoveryEBM(ep.MLPEnergy((3,)), SCHEDULE)
    other, x = copy.deepcopy(ebm), 5.0 * torch.randn(10, 3)
    before = ep.energy_and_grad(ebm.potential(0), x)[0]
    ebm.standardize(heavy_rows())
    after = ep.energy_and_grad(ebm.potential(0), x)[0]
    assert float((after - before).abs().max()) > 0.1
    other.load_state_dict(ebm.state_dict())
    torch.testing.assert_close(ep.energy_and_grad(other.potential(0), x)[0], after)


def correlated_rows(count: int = 2000) -> torch.Tensor:
    """Three Gaussian columns, two of which nearly agree."""
    rows = torch.randn(count, 3)
    rows[:, 1] = 0.95 * rows[:, 0] + (1.0 - 0.95**2) ** 0.5 * rows[:, 1]
    return rows


@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 4.6])
def test_light_columns_have_the_rows_covariance_noised_and_a_heavy_one_stands_beside_them(log_snr: float) -> None:
    rows, level = correlated_rows(100_000).double(), torch.tensor(log_snr, dtype=torch.float64)
    light, both, heavy = ScaleMixture(3).double(), ScaleMixture(4).double(), ScaleMixture(1).double()
    tail = heavy_rows(100_000)[:, 2:].double()
    light.fit(rows)
    both.fit(torch.cat([rows, tail], 1))
    heavy.fit(tail)
    noised = level.sigmoid() * rows.T @ rows / len(rows) + (-level).sigmoid() * torch.eye(3).double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(3).double(), noised)
    x, far = rows[:50], tail[:50]
    torch.testing.assert_close(-light(x, level), exact.log_prob(x), atol=0.01, rtol=0.0)  # of shrinkage, .001 of .05
    torch.testing.assert_close(both(torch.cat([x, far], 1), level), light(x, level) + heavy(far, level))


def test_few_rows_draw_the_covariance_towards_independence() -> None:
    few, many = ScaleMixture(8), ScaleMixture(8)
    few.fit(torch.randn(5, 8))
    many.fit(torch.randn(2000, 2) @ torch.randn(2, 8) + 0.01 * torch.randn(2000, 8))
    assert float(few.variances.min()) > 0.1
    assert float(many.variances.min()) < 0.01  # a negative control: many rows are believed


def test_samples_of_an_untrained_model_have_the_rows_correlation() -> None:
    """4000 pairs at a correlation near .94 (.95 with level 0's noise): four standard errors are .008."""
    torch.manual_seed(0)
    net = ep.MLPEnergy((3,), hidden=8, depth=1)
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(20, log_snr_max=4.6, log_snr_min=-6.0))
    ebm.standardize(correlated_rows(20_000))
    found = float(torch.corrcoef(ebm.sample((4000,)).T)[0, 1])
    assert found == pytest.approx(0.95 * float(ebm.schedule.alpha_bar[0] ** 2), abs=0.012)


def test_the_amplitude_of_features_falls_with_their_frequency_in_many_columns() -> None:
    many, few = ep.MLPEnergy((9,)), ep.MLPEnergy((8,))
    assert few.amplitude is None
    assert many.amplitude is not None
    assert many.amplitude[:9].tolist() == [1.0] * 9
    assert float(many.amplitude.min()) == pytest.approx(1.0 / 12.0)
    assert ep.MLPEnergy((9,), levels=4).amplitude is None
    with pytest.raises(ep.InvalidInput, match="feature_decay"):
        ep.MLPEnergy((9,), feature_decay=float("nan"))


def test_runs_for_log_z_begin_at_the_noisiest_density() -> None:
    """At λ_min energies are the base's own up to rounding; where tails are light the base is N(0, I)."""
    net, points = ep.MLPEnergy((3,), hidden=8), 5.0 * torch.randn(50, 3)
    assert net.noisiest_base() is None
    net.fit_base(heavy_rows())
    base = net.noisiest_base()
    assert base is not None
    torch.nn.init.normal_(net.readout.weight)  # which says nothing at λ_min
    torch.testing.assert_close(base(points), net(points, torch.tensor(net.log_snr_min)), rtol=1e-4, atol=1e-3)
    assert base.sample(7).shape == (7, 3)


def test_draws_of_the_base_have_its_density_and_its_correlation() -> None:
    """20,000 draws: shares within 5 standard errors of sums over a grid, .018, a correlation near .84 within .011."""
    heavy, light = ScaleMixture(1), ScaleMixture(3)
    heavy.fit(heavy_rows()[:, 2:])
    light.fit(correlated_rows(20_000))
    log_snr, grid = torch.tensor(2.0), torch.arange(-600.0, 600.0, 0.02)[:, None]
    density = (-heavy(grid, log_snr)).exp() * 0.02
    draws = NoisedMixture(heavy, log_snr).sample(20_000)
    for width in (0.5, 2.0, 8.0):
        exact = float(density[grid[:, 0].abs() < width].sum())
        assert float((draws.abs() < width).float().mean()) == pytest.approx(exact, abs=0.018)
    found = float(torch.corrcoef(NoisedMixture(light, log_snr).sample(20_000).T)[0, 1])
    assert found == pytest.approx(0.95 * float(log_snr.sigmoid()), abs=0.014)


def test_a_narrow_direction_with_tails_has_a_mixture_of_its_own() -> None:
    """Two columns whose difference has Student's tails, of 3 degrees of freedom and .05 wide, beside a Gaussian's."""
    student = torch.distributions.StudentT(torch.tensor(3.0, dtype=torch.float64))
    common, tails = torch.randn(20_000, 1).double(), student.sample((20_000, 1))
    rows = torch.cat([common + 0.05 * tails, common - 0.05 * tails, torch.randn(20_000, 1).double()], 1)
    rows = rows / rows.std(0)
    base = ScaleMixture(3).double()
    base.fit(rows)
    assert int((base.variances[:, -1] > base.variances[:, 0]).sum()) == 1
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.cov(rows.T))
    gained = -base(rows, torch.tensor(30.0, dtype=torch.float64)) - gaussian.log_prob(rows)
    along = torch.distributions.Normal(0.0, float(tails.std()))
    possible = float((student.log_prob(tails) - along.log_prob(tails)).mean())
    assert 0.5 * possible < float(gained.mean()) < possible + 0.01  # no component is narrower than the rows' own width
    light = ScaleMixture(3).double()
    light.fit(correlated_rows().double())
    assert not light.heavy  # a negative control: a narrow direction without tails


def test_a_trace_follows_a_tail_that_moves_to_another_column() -> None:
    """Which columns have mixtures is part of what is traced."""
    net, x = ep.MLPEnergy((3,)), torch.randn(50, 3)
    potential = ep.RecoveryEBM(net, SCHEDULE).potential(1)
    for column in (0, 2, 0):
        rows = torch.randn(500, 3)
        rows[0, column] = 20.0
        net.fit_base(rows)
        require_traced(potential, x)
        require_equal(potential, x)

"""Covariances of rows: narrow directions stay narrow, few rows say little of correlations."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.models.networks.scale_mixture import ScaleMixture
from energyppl.models.of_columns import with_noise_that_pays
from energyppl.potentials.covariance import shrunk_covariance
from energyppl.potentials.mixture_fit import fit_mixture
from energyppl.tables.training import gaussian_draws

WIDTHS = torch.tensor([1.0, 0.8, 1.2, 0.01], dtype=torch.float64)  # along axes that are no columns


def narrow_rows(count: int) -> Tensor:
    """Rows of four columns, one of which the three others say to about a hundredth."""
    axes = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    rows = (torch.randn(count, 4, dtype=torch.float64) * WIDTHS) @ axes.T
    centred: Tensor = rows - rows.mean(0)
    return centred


def excess(rows: Tensor, covariance: Tensor) -> float:
    """By how much rows are likelier under their own covariance than under another, in nats a row."""
    own = torch.distributions.MultivariateNormal(rows.new_zeros(rows.shape[1]), rows.T @ rows / len(rows))
    other = torch.distributions.MultivariateNormal(rows.new_zeros(rows.shape[1]), covariance)
    return float((own.log_prob(rows) - other.log_prob(rows)).mean())


def test_a_narrow_direction_stays_narrow() -> None:
    """Shrinkage by a formula made it ten times too wide, 1.5 nats a row."""
    rows = narrow_rows(1000)
    assert excess(rows, shrunk_covariance(rows)) < 0.02
    means, factors, weights, _ = fit_mixture(rows, defensive=False)
    mixture = ep.potentials.MixtureBase(means, factors, weights)
    own = torch.distributions.MultivariateNormal(rows.new_zeros(4), rows.T @ rows / len(rows))
    assert float((own.log_prob(rows) + mixture(rows)).mean()) < 0.05


def test_the_base_of_a_network_is_as_narrow_as_rows() -> None:
    rows = narrow_rows(1000)
    base = ScaleMixture(4).double()
    base.fit(rows / rows.std(0))
    own = torch.distributions.MultivariateNormal(
        rows.new_zeros(4), rows.T @ rows / len(rows) / rows.std(0).outer(rows.std(0))
    )
    energy = base(rows / rows.std(0), torch.tensor(20.0, dtype=torch.float64))
    assert float((own.log_prob(rows / rows.std(0)) + energy).mean()) < 0.02


@pytest.mark.parametrize("count", [2, 5, 12, 30])
def test_few_rows_say_little_of_correlations(count: int) -> None:
    """The covariance of independent columns is nearer to the truth than that of the rows themselves."""
    rows = torch.randn(count, 20, dtype=torch.float64)
    rows = rows - rows.mean(0)
    found = shrunk_covariance(rows)
    assert bool(torch.isfinite(torch.linalg.cholesky(found)).all())
    off = found - torch.diag(found.diagonal())
    raw = rows.T @ rows / count
    assert float(off.norm()) < 0.7 * float((raw - torch.diag(raw.diagonal())).norm())
    torch.testing.assert_close(found.diagonal(), raw.diagonal())


def test_rows_of_a_group_are_left_out_together() -> None:
    """Each of twelve draws stands there fifty times: taken for 600, they would seem to determine 20 columns.

    Of 300 seeds 3 % have an entry above .35 (.53 at most), none fails the second comparison.
    """
    draws = torch.randn(12, 20, dtype=torch.float64)
    rows = (draws - draws.mean(0)).repeat_interleave(50, 0)
    groups = torch.arange(12).repeat_interleave(50)
    torch.testing.assert_close(shrunk_covariance(rows, groups), torch.diag(rows.square().mean(0)), atol=0.35, rtol=0.0)
    assert float(shrunk_covariance(rows).tril(-1).norm()) > 2.0 * float(shrunk_covariance(rows, groups).tril(-1).norm())


@pytest.mark.parametrize("count", [60, 200])
def test_a_constant_column_changes_nothing_for_the_others(count: int) -> None:
    """It had counted as the likelier the less was shrunk, so that nothing was."""
    rows = torch.randn(count, 21, dtype=torch.float64)
    rows = rows - rows.mean(0)
    rows[:, 7] = 0.0
    others = torch.arange(21) != 7
    found = shrunk_covariance(rows)
    torch.testing.assert_close(found[others][:, others], shrunk_covariance(rows[:, others]))
    assert float(found[7, 7]) == pytest.approx(1e-4, rel=0.2)
    assert float(found[7, others].abs().max()) == 0.0
    rows[::4, 7] = 1.0  # constant in three of the folds
    assert bool(torch.isfinite(torch.linalg.cholesky(shrunk_covariance(rows - rows.mean(0)))).all())
    assert shrunk_covariance(torch.zeros(10, 0, dtype=torch.float64)).shape == (0, 0)


@pytest.mark.parametrize("columns", [3, 70])  # clusters are looked for in 64 at most
def test_constant_columns_with_one_scale_for_all(columns: int) -> None:
    """As the edges of images; the mixture of clusters had no Cholesky factor, and the base negative variances."""
    rows = torch.randn(300, columns)
    rows[:, 1] = 2.0
    ebm = ep.RecoveryEBM(ep.MLPEnergy((columns,), hidden=8, depth=1), ep.NoiseSchedule.cosine(3, log_snr_min=-6.0))
    ebm.standardize(rows, isotropic=True)
    assert float(ebm.net.base.variances.min()) > 0.0  # type: ignore[union-attr,operator]
    assert bool(torch.isfinite(ebm.potential(0)(ebm.to_unit(rows))).all())
    base = ep.potentials.MixtureBase.fitted(rows[:, :3], torch.Size((3,)))
    assert bool(torch.isfinite(base(rows[:, :3])).all())


def test_draws_that_can_not_be_scaled_are_refused() -> None:
    draws = torch.randn(50, 3, dtype=torch.float64)
    draws[0, 0] = 1e200
    with pytest.raises(ep.EnergyPPLError, match="spread too widely"):
        fit_mixture(draws)


def test_level_zero_has_less_noise_than_the_narrowest_direction() -> None:
    rows = narrow_rows(500)
    width = float(torch.linalg.eigvalsh(torch.corrcoef(rows.T))[0].sqrt())
    top = ep.models.suited_log_snr_max(rows)
    assert top is not None
    schedule = ep.models.model_of_columns(4, log_snr_max=top).schedule
    assert float(schedule.sigma_bar[0]) == pytest.approx(0.5 * width, rel=0.05)
    assert ep.models.suited_log_snr_max(torch.randn(500, 4)) == pytest.approx(
        float(ep.models.model_of_columns(4).schedule.log_snr[0])
    )
    assert ep.models.suited_log_snr_max(rows, least=13.0) == 13.0
    assert (
        ep.models.suited_log_snr_max(torch.full((500, 4), torch.nan)) == ep.models.suited_log_snr_max(rows[:3]) == 4.6
    )


def test_a_few_wild_cells_neither_hide_nor_make_a_narrow_direction() -> None:
    wild = torch.randn(2000, 4)
    wild[0, :2] = 1e3
    assert ep.models.suited_log_snr_max(wild) == 4.6
    flag = torch.randn(2000, 4)
    flag[:, 2] = (torch.arange(2000) % 100 == 0).float()  # whose rows lie beyond 6 standard deviations
    assert ep.models.suited_log_snr_max(flag) == ep.models.suited_log_snr_max(flag[:, 2:3].expand(2000, 3)) == 4.6
    near = torch.randn(2000, 4)
    near[:, 1] = near[:, 0] + 0.01 * torch.randn(2000)
    near[:5, 1] = 1e3
    assert ep.models.suited_log_snr_max(near) > 9.0


@pytest.mark.parametrize(
    "rows", [torch.randn(5), np.zeros((5, 2)), torch.ones(5, 2, dtype=torch.long), torch.full((5, 3), torch.inf)]
)
def test_rows_of_another_kind_are_refused(rows: Any) -> None:
    with pytest.raises(ep.InvalidInput, match="rows must"):
        ep.models.suited_log_snr_max(rows)


def test_a_model_says_that_its_noise_hides_what_columns_say_of_each_other() -> None:
    rows = narrow_rows(500).float()
    ebm = ep.RecoveryEBM(ep.MLPEnergy((4,), hidden=8), ep.NoiseSchedule.cosine(4, log_snr_max=4.6, log_snr_min=-6.0))
    with pytest.warns(UserWarning, match="nats a row too low: coordinates nearly determine each other"):
        ebm.standardize(rows)
    fine = ep.NoiseSchedule.cosine(4, log_snr_max=ep.models.suited_log_snr_max(rows), log_snr_min=-6.0)
    pair = torch.randn(500, 2)
    pair[:, 1] = pair[:, 0] + 0.001 * torch.randn(500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ep.RecoveryEBM(ep.MLPEnergy((4,), hidden=8), fine).standardize(rows)
        ep.RecoveryEBM(ep.MLPEnergy((4,), hidden=8), ebm.schedule).standardize(torch.randn(500, 4))
        by_class = torch.randn(30_000, 4)
        by_class[:, 0] = torch.arange(30_000) // 15_000  # rows in order
        ep.RecoveryEBM(ep.MLPEnergy((4,), hidden=8), ebm.schedule).standardize(by_class)
        ep.models.model_of_columns(2, log_snr_max=ep.models.suited_log_snr_max(pair)).standardize(pair)
    with pytest.warns(UserWarning, match="suited_log_snr_max"):
        ep.models.model_of_columns(2).standardize(pair)


def test_a_table_whose_columns_nearly_determine_each_other_has_its_density() -> None:
    """Level 0's noise and a base as wide as that lost 2 nats a row; the rows' own covariance is .01 from the truth."""
    rows = narrow_rows(1200)
    model = ep.tables.fit(rows.numpy(), steps=2, progress=False)
    own = torch.distributions.MultivariateNormal(rows.new_zeros(4), torch.cov(rows.T))
    implied = model.mean_over_cells(model.held_out, model.minus_energy) - float(model.ebm.scale.log().sum())
    assert float(own.log_prob(torch.as_tensor(model.held_out)).mean()) - float(implied.mean()) < 0.1


def test_level_zero_keeps_the_noise_that_held_out_rows_do_not_mind() -> None:
    """By networks as they begin, whose density is the rows' own Gaussian: a narrow direction alone needs less noise."""
    for rows, kept in ((narrow_rows(600).float(), True), (torch.randn(600, 4), False)):
        ebm = ep.models.model_of_columns(4, log_snr_max=12.0, hidden=8, depth=1)
        ebm.standardize(rows)
        found = with_noise_that_pays(ebm, 4.6, None, rows[:500], rows[500:])
        assert (found is ebm) == kept
        assert found.net is ebm.net
        torch.testing.assert_close(found.to_unit(rows), ebm.to_unit(rows))
        again = with_noise_that_pays(found, 12.0, None, rows[:500], rows[500:])
        assert again is found  # a schedule with no more noise is not tried
    assert found.schedule.levels == ep.models.model_of_columns(4).schedule.levels
    assert bool((found.level_kernel.step_sizes > 0.0).all())


def test_smooth_rows_keep_the_noise_and_levels_that_were_asked_for_are_made() -> None:
    model = ep.tables.fit(torch.randn(300, 4).numpy(), steps=2, progress=False)
    assert model.ebm.schedule.levels == 20
    assert ep.tables.fit(torch.randn(300, 4).numpy(), steps=2, levels=3, progress=False).ebm.schedule.levels == 3


def test_gaps_are_filled_within_the_narrowest_direction() -> None:
    """Squared distances in the rows' own widths are 4 on average, of about 340 rows within .9, 6 standard errors.

    With a covariance that is shrunk by n / (n + d), and .0001 on its diagonal, they were 8 to 60.
    """
    rows = narrow_rows(1000)
    rows = rows / rows.std(0)
    gaps = torch.rand(1000, 4) < 0.1
    filled = gaussian_draws(rows.where(~gaps, torch.nan), torch.Generator().manual_seed(0))[gaps.any(1)]
    squares = (filled @ torch.linalg.inv(torch.cov(rows.T)) * filled).sum(1)
    assert 3.1 < float(squares.mean()) < 4.9

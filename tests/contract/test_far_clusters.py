"""The base of a continuous network where rows lie in clusters far apart: one Gaussian for each, noised exactly."""

import copy

import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.models.networks.clusters import find_clusters
from energyppl.models.networks.scale_mixture import NoisedMixture, ScaleMixture

AWAY, WIDTH, SHARE = 7.0, 0.3, 0.05  # of the far cluster: its place in the first column, standard deviation, mass


def rows_of_two(count: int, size: int) -> Tensor:
    """N(0, I) and a narrow cluster far out in the first column, in random order."""
    rows = torch.randn(count, size)
    far = torch.rand(count) < SHARE
    rows[far] *= WIDTH
    rows[far, 0] += AWAY
    return rows


def noised_truth(log_snr: float, size: int) -> torch.distributions.MixtureSameFamily:
    """The density of such rows with the noise of a log-SNR."""
    signal = torch.tensor(log_snr, dtype=torch.float64).sigmoid()
    means = torch.zeros(2, size, dtype=torch.float64)
    means[1, 0] = AWAY
    widths = (signal * torch.tensor([1.0, WIDTH], dtype=torch.float64).square() + 1.0 - signal).sqrt()
    parts = torch.distributions.Independent(
        torch.distributions.Normal(signal.sqrt() * means, widths[:, None].expand(2, size)), 1
    )
    shares = torch.tensor([1.0 - SHARE, SHARE], dtype=torch.float64)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(shares), parts)


def test_far_rows_are_a_cluster_and_no_tail() -> None:
    torch.manual_seed(0)
    base, rows = ScaleMixture(3), rows_of_two(4000, 3)
    base.fit(rows)
    assert (base.clusters, base.heavy) == (2, False)
    counted = float((rows[:, 0] > 0.5 * AWAY).double().mean())  # some of which N(0, I) has
    assert float(base.cluster_weights[:2].amin()) == pytest.approx(counted, abs=0.001)
    without = ScaleMixture(3, clustered=False)
    without.fit(rows)
    assert (without.clusters, without.heavy) == (1, True)  # a negative control


@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 4.6])
def test_clusters_have_the_density_of_their_rows_at_every_level(log_snr: float) -> None:
    """Of 100,000 rows shares and moments are within 1 %, and so are log densities of rows, to .05."""
    torch.manual_seed(0)
    base, level = ScaleMixture(2).double(), torch.tensor(log_snr, dtype=torch.float64)
    base.fit(rows_of_two(100_000, 2))
    x = noised_truth(log_snr, 2).sample((200,))
    torch.testing.assert_close(-base(x, level), noised_truth(log_snr, 2).log_prob(x), atol=0.05, rtol=0.0)
    torch.testing.assert_close(base(x, level.expand(200)), base(x, level))
    axis = torch.arange(-8.0, 12.0, 0.05, dtype=torch.float64)
    mass = float((-base(torch.cartesian_prod(axis, axis), level)).exp().sum()) * 0.05**2
    assert mass == pytest.approx(1.0, abs=1e-6)


def test_a_heavy_column_stands_beside_the_clusters_of_the_others() -> None:
    torch.manual_seed(0)
    rows = rows_of_two(20_000, 2)
    tail = torch.distributions.StudentT(2.0).sample((20_000, 1)).clamp(-60.0, 60.0)
    both, one, heavy = ScaleMixture(3), ScaleMixture(2), ScaleMixture(1)
    both.fit(torch.cat([rows, tail], 1))
    one.fit(rows)
    heavy.fit(tail)
    assert (both.clusters, both.heavy, one.clusters, heavy.heavy) == (2, True, 2, True)
    level, x, far = torch.tensor(1.0), rows[:50], tail[:50]
    other = far.flip(0)  # as independent of the others, it changes energies by its own whatever the clusters are
    changed = both(torch.cat([x, far], 1), level) - both(torch.cat([x, other], 1), level)
    torch.testing.assert_close(changed, heavy(far, level) - heavy(other, level), atol=1e-4, rtol=0.0)
    # A heavy column widens the clusters that are looked for, so a row or two may change sides.
    torch.testing.assert_close(
        both(torch.cat([x, far], 1), level), one(x, level) + heavy(far, level), atol=0.1, rtol=0.0
    )


@pytest.mark.parametrize("shape", ["blob", "ring", "tail", "near"])
def test_rows_that_are_joined_are_one_cluster(shape: str) -> None:
    torch.manual_seed(0)
    rows = torch.randn(4000, 3)
    if shape == "ring":
        rows[:, :2] = rows[:, :2] / rows[:, :2].norm(dim=1, keepdim=True) + 0.05 * torch.randn(4000, 2)
    if shape == "tail":
        rows[:, 0] = rows[:, 0].exp()
    if shape == "near":
        rows[:400] = 0.3 * rows[:400] + 1.5
    assert int(find_clusters((rows - rows.mean(0)) / rows.std(0), 8).max()) == 0


def test_no_more_clusters_than_asked_for_and_none_of_a_few_rows() -> None:
    torch.manual_seed(0)
    corners = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]])
    rows = corners.repeat(1000, 1) + 0.2 * torch.randn(4000, 3)
    assert len(find_clusters(rows, 8).unique()) == 4
    assert len(find_clusters(rows, 3).unique()) <= 3
    lonely = torch.randn(1000, 3)
    lonely[:5] += 30.0
    assert int(find_clusters(lonely, 8).max()) == 0
    assert int(find_clusters(torch.randn(9, 3), 8).max()) == 0


def test_random_numbers_go_on_as_if_no_clusters_had_been_looked_for() -> None:
    found = []
    for clustered in (True, False):
        torch.manual_seed(0)
        ScaleMixture(2, clustered=clustered).fit(rows_of_two(500, 2))
        found.append(torch.rand(3))
    torch.testing.assert_close(*found)


def test_draws_of_the_noisiest_density_have_the_clusters_shares() -> None:
    """20,000 draws: a share of .05 within five standard errors, .0077, the far ones' mean and width within .05.

    Of rows and draws the mean's standard error is .015, so 1e-3 of seeds fail, where no draw of N(0, I) is among them.
    """
    torch.manual_seed(0)
    base = ScaleMixture(2)
    base.fit(rows_of_two(20_000, 2))
    log_snr = torch.tensor(3.0)
    draws = NoisedMixture(base, log_snr).sample(20_000)
    far = draws[draws[:, 0] > 0.5 * AWAY]
    own = float(base.cluster_weights[:2].amin())
    assert len(far) / len(draws) == pytest.approx(own, abs=0.0077)
    far = far[far[:, 0] > 0.75 * AWAY]
    assert float(far[:, 0].mean()) == pytest.approx(AWAY * float(log_snr.sigmoid().sqrt()), abs=0.05)
    exact = float((log_snr.sigmoid() * WIDTH**2 + (-log_snr).sigmoid()).sqrt())
    assert float(far[:, 1].std()) == pytest.approx(exact, abs=0.05)


def test_an_untrained_model_has_the_masses_of_clusters_in_density_and_samples() -> None:
    """2,000 samples: five standard errors of a share of .05 are .024."""
    torch.manual_seed(0)
    net = ep.MLPEnergy((3,), hidden=8, depth=1)
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(20, log_snr_max=4.6, log_snr_min=-6.0))
    rows = rows_of_two(4000, 3)
    ebm.standardize(rows)
    base = net.noisiest_base()
    assert base is not None
    x = torch.randn(50, 3)
    torch.testing.assert_close(base(x), net(x, torch.tensor(net.log_snr_min)), rtol=1e-4, atol=1e-3)
    samples = ebm.sample((2000,))
    counted = float((rows[:, 0] > 0.5 * AWAY).double().mean())
    assert float((samples[:, 0] > 0.5 * AWAY).double().mean()) == pytest.approx(counted, abs=0.024)


def test_clusters_travel_with_the_weights_and_older_weights_have_none() -> None:
    torch.manual_seed(0)
    ebm = ep.RecoveryEBM(ep.MLPEnergy((3,), hidden=8), ep.NoiseSchedule.cosine(4))
    other, old = copy.deepcopy(ebm), copy.deepcopy(ebm)
    ebm.standardize(rows_of_two(2000, 3))
    weights, x = ebm.state_dict(), torch.randn(10, 3)
    other.load_state_dict(weights)
    torch.testing.assert_close(other.potential(0)(x), ebm.potential(0)(x))
    new = ("base.centers", "base.cluster_")
    before = {name: value for name, value in old.state_dict().items() if not any(part in name for part in new)}
    assert len(before) == len(weights) - 4
    ebm.load_state_dict(before)
    assert ebm.net.base.clusters == 1
    torch.testing.assert_close(ebm.potential(0)(x), old.potential(0)(x))


def test_a_network_of_classes_has_one_gaussian() -> None:
    """Classes may be clusters, and each has a density of its own."""
    net = ep.MLPEnergy((3,), hidden=8, classes=2)
    net.fit_base(rows_of_two(2000, 3))
    assert net.base is not None
    assert net.base.clusters == 1

"""Calibration and coverage: shapes, exact values, messages, pictures, and posterior predictive draws in ArviZ."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.errors import InvalidInput
from energyppl.inference.sampling.replicates import simulate_replicates
from tests.support.chains import SOME_DIVERGE

evaluation = ep.evaluation


# --- Tests of uniform ranks: every possible outcome is looked at, so nothing is left to chance ---

OUTCOMES = torch.tensor(list(itertools.product(range(4), repeat=4)))  # of four ranks among three draws


def test_p_values_are_probabilities() -> None:
    """Of all outcomes, the share with a p-value of p or less is p: the statistic's own distribution is exact."""
    p_values = torch.tensor([evaluation.ecdf_test(row, draws=3) for row in OUTCOMES], dtype=torch.float64)
    for p in p_values.unique():
        assert float((p_values <= p + 1e-9).double().mean()) == pytest.approx(float(p), abs=1e-6)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_bands_hold_whole_functions(confidence: float) -> None:
    """At least the share that is promised, of all outcomes; and less if they were a count narrower."""
    bands = evaluation.ecdf_bands(4, draws=3, confidence=confidence)
    function = (OUTCOMES[:, :, None] < torch.arange(1, 4)).double().mean(1)
    inside = ((function >= bands.lower - 1e-9) & (function <= bands.upper + 1e-9)).all(1)
    assert confidence <= float(inside.double().mean())
    assert bands.thresholds.tolist() == [0.25, 0.5, 0.75]


def test_chi_square_is_scipys() -> None:
    ranks = torch.tensor([0, 0, 1, 2, 3, 3, 3, 3])
    assert evaluation.chi_square_test(ranks, 3, bins=2) == pytest.approx(math.erfc(math.sqrt((1 + 1) / 4 / 2)))


# --- Coverage ---


def test_coverage_counts_ranks() -> None:
    """Of ranks 0 to 99, once each, every interval holds its share; narrow ones hold less, and are named."""
    ranks = torch.arange(100)
    found = evaluation.rank_coverage(ranks, 99, nominal=(0.5, 0.9, 0.999))
    assert found.nominal.tolist() == pytest.approx([0.5, 0.9, 1.0])
    assert torch.allclose(found.observed, found.nominal)
    assert bool((found.lower < found.nominal)[:2].all() and (found.upper[:2] > found.nominal[:2]).all())
    assert found.problems() == []
    extreme = torch.where(ranks < 50, 0, 99)
    assert "90.0% intervals hold 0.0% of the truths, too few" in evaluation.rank_coverage(extreme, 99).problems()[2]
    assert "too many" in evaluation.rank_coverage(torch.full((100,), 50), 99).problems()[0]
    assert "Coverage of 100 truths" in repr(found)


def test_coverage_of_groups() -> None:
    truth, draws = torch.tensor([0.0, 9.0, 0.0, 9.0]), torch.linspace(-1.0, 1.0, 9).expand(4, 9)
    found = evaluation.coverage(truth, draws, nominal=(0.6,), groups=torch.tensor([0, 1, 0, 1]))
    assert found.observed.tolist() == [[1.0, 0.0]]
    assert found.counts.tolist() == [2, 2]


# --- Models ---


def line(x: Tensor, y: Tensor | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    mean = pyro.deterministic("mean", x @ slope)
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


X = torch.linspace(-1.0, 1.0, 12).reshape(6, 2)
SMALL: dict[str, Any] = {
    "replicates": 6, "chains": 2, "draws": 7, "warmup": 20, "max_thin": 2, "progress": False
}  # fmt: skip


def test_ranks_of_all_entries_and_of_the_log_joint() -> None:
    found = evaluation.calibrate(line, None, ep.MALA(0.3), (X, torch.zeros(6)), at_once=3, **SMALL)
    assert list(found.ranks) == ["slope[0]", "slope[1]", "scale", "log joint density"]
    assert all(rank.shape == (6,) and int(rank.min()) >= 0 and int(rank.max()) <= 7 for rank in found.ranks.values())
    assert set(found.p_values) == set(found.chi_square(2)) == set(found.coverage()) == set(found.ranks)
    assert found.threshold == 0.01 / 4
    assert "6 replicates of 7 draws, 4 quantities" in repr(found)


def test_quantities_prior_and_simulator_of_ones_own() -> None:
    """Ranks of what is asked for; the prior's and the simulator's values are those that data come from."""

    def prior(count: int) -> dict[str, Tensor]:
        return {"slope": torch.full((count, 2), 50.0), "scale": torch.full((count,), 0.1)}

    def quantities(values: Any) -> dict[str, Tensor]:
        return {"largest": values["mean"].amax(-1)}

    kernel, options = ep.MALA(0.3), {"observed": ["y"], "quantities": quantities, **SMALL}
    found = evaluation.calibrate(line, prior, kernel, (X,), **options)
    assert list(found.ranks) == ["largest", "log joint density"]

    def other(x: Tensor) -> None:
        line(x)
        pyro.sample("unused", dist.Normal(0.0, 1.0))

    assert "largest" in evaluation.calibrate(line, prior, kernel, (X,), simulator=other, **options).ranks


def test_any_sampler() -> None:
    found = evaluation.calibrate_sampler(
        lambda n: {"a": torch.randn(n, 2)},
        lambda theta: theta["a"] + torch.randn(len(theta["a"]), 2),
        lambda data, count: {"a": data[:, None] / 2 + 0.5**0.5 * torch.randn(len(data), count, 2)},
        quantities=lambda values: {"sum": values["a"].sum(-1)},
        replicates=30,
        draws=9,
    )
    assert found.ranks["sum"].shape == (30,)


def nothing_observed() -> None:
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def broken(x: Tensor) -> None:
    pyro.deterministic("y", math.nan * x)


def calibrated(*args: Any, **options: Any) -> Any:
    return evaluation.calibrate(*args, **{**SMALL, **options})


MESSAGES: dict[str, tuple[Callable[[], Any], str]] = {
    "no data": (lambda: calibrated(nothing_observed, None, ep.HMC()), "observes nothing with these arguments"),
    "unknown data": (lambda: calibrated(line, None, ep.HMC(), (X,), observed=["z"]), "observed must name sites"),
    "a class": (lambda: calibrated(line, None, ep.HMC, (X,), observed=["y"]), "kernel must have init and step"),
    "one chain": (lambda: calibrated(line, None, ep.HMC(), (X,), chains=1), "chains must be a whole .* at least 2"),
    "false alarm": (lambda: calibrated(line, None, ep.HMC(), (X,), false_alarm=2.0), "false_alarm must lie between"),
    "prior of a tensor": (
        lambda: calibrated(line, torch.randn, ep.HMC(), (X,), observed=["y"]),
        "prior must return a dictionary of sites",
    ),
    "prior of one row": (
        lambda: calibrated(line, lambda n: {"slope": torch.zeros(1, 2)}, ep.HMC(), (X,), observed=["y"]),
        "prior must return 6 draws of site 'slope'",
    ),
    "simulator of NaN": (
        lambda: calibrated(line, None, ep.HMC(), (X,), observed=["y"], simulator=broken),
        "got NaN or infinity at site 'y' of replicate 0",
    ),
    "simulator without data": (
        lambda: calibrated(line, None, ep.HMC(), (X,), observed=["y"], simulator=lambda x: None),
        "the simulator has no site 'y'",
    ),
    "draws of another shape": (
        lambda: evaluation.calibrate_sampler(torch.randn, lambda t: t, lambda y, n: torch.zeros(n, len(y))),
        r"its draws \(n, L, \*shape\) = \(200, 63",
    ),
    "ranks too large": (lambda: evaluation.ecdf_test(torch.tensor([3, 9]), 8), "ranks must lie between 0 and 8"),
    "ranks that are no numbers": (lambda: evaluation.ecdf_test(torch.rand(4), 8), "ranks must be whole numbers"),
    "no ranks": (lambda: evaluation.ecdf_test(torch.zeros(0, dtype=torch.long), 8), r"ranks must have shape \(n,\)"),
    "bins that don't divide": (lambda: evaluation.chi_square_test(torch.arange(8), 7, 3), "bins must divide the 8"),
    "truth of another shape": (
        lambda: evaluation.coverage(torch.zeros(3), torch.zeros(4, 9)),
        r"truth must be \(n,\) and draws \(n, L\)",
    ),
    "NaN in draws": (lambda: evaluation.coverage(torch.zeros(3), torch.full((3, 9), math.nan)), "draws must be finite"),
    "no coverage": (lambda: evaluation.coverage(torch.zeros(3), torch.zeros(3, 9), nominal=()), "at least one"),
    "groups of another shape": (
        lambda: evaluation.coverage(torch.zeros(3), torch.zeros(3, 9), groups=torch.tensor([0])),
        "one for each of the 3 truths",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MESSAGES))
def test_bad_input_is_named(name: str) -> None:
    call, words = MESSAGES[name]
    with pytest.raises(InvalidInput, match=words):
        call()


def test_pictures(tmp_path: Path) -> None:
    ranks = {"mu": torch.randint(0, 64, (200,)), "a name that is long": torch.zeros(200, dtype=torch.long)}
    found = evaluation.coverage(torch.randn(200), torch.randn(200, 99))
    bands = evaluation.ecdf_bands(200, 63)
    for name, figure in {
        "histogram": ep.plots.rank_histogram(ranks, 63, title="ranks"),
        "ecdf": ep.plots.rank_ecdf(ranks, 63, title="ranks", bands=bands[:3]),
        "coverage": ep.plots.coverage_plot(
            {"mu": (found.nominal, found.observed, found.lower, found.upper)}, title="coverage"
        ),
    }.items():
        picture = matplotlib.image.imread(ep.plots.save_figure(figure, tmp_path / f"{name}.png"))
        assert picture.std() > 0.01


def counties(y: Tensor) -> None:
    """A deterministic site in a plate, which another plate looks up."""
    with pyro.plate("counties", 3):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        alpha = pyro.deterministic("alpha", 2.0 * eta)
    with pyro.plate("houses", len(y)):
        pyro.sample("y", dist.Normal(alpha[torch.arange(len(y)) % 3], 0.5), obs=y)


def test_deterministic_sites_of_a_plate_keep_their_shape_where_data_are_drawn_anew() -> None:
    replicates, truth = simulate_replicates(counties, (torch.zeros(7),), {}, 5)
    assert replicates.values[0].shape == (5, 7)
    assert truth.shape == (5, 3)
    chains = ep.sample_chains(ep.MALA(0.1), counties, (torch.zeros(7),), chains=4, draws=3, warmup=0, progress=False)
    assert chains.potential.predictive(chains.draws)["y"].shape == (4, 3, 7)


# --- Posterior predictive draws ---


def counts(y: Tensor) -> None:
    """Data whose draws vmap can't follow."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


@SOME_DIVERGE
@pytest.mark.filterwarnings("ignore:.*disagree.*")
@pytest.mark.parametrize("model", [line, counts])
def test_posterior_predictive_draws_in_arviz(model: Any) -> None:
    args = (X, X.sum(-1)) if model is line else (torch.tensor([1.0, 2.0, 0.0]),)
    chains = ep.sample_chains(ep.HMC(), model, args, chains=4, draws=30, warmup=60, progress=False)
    data = chains.to_arviz(posterior_predictive=True)
    drawn = data.posterior_predictive["y"]
    assert drawn.shape == (4, 30, len(args[-1]))
    assert len(np.unique(drawn.values)) > 5, "drawn anew for each draw"
    assert "posterior_predictive" not in chains.to_arviz()
    if model is line:  # of few counts ArviZ draws no densities
        if hasattr(az, "plot_ppc"):  # ArviZ 0.x
            az.plot_ppc(data, num_pp_samples=5)
        else:
            az.plot_ppc_dist(data, num_samples=5)
        plt.close("all")
    arviz_base = pytest.importorskip("arviz_base", reason="ArviZ 1.x's data structures are not installed")
    new = chains.to_arviz(posterior_predictive=True, arviz=arviz_base)
    assert new["posterior_predictive"]["y"].dims[:2] == ("chain", "draw")


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (torch.tensor([-5, 1, 20]), "ranks must lie between 0 and 9"),
        (torch.empty(0, dtype=torch.long), "ranks must have shape"),
        (torch.zeros(3, 3, dtype=torch.long), "ranks must have shape"),
        (torch.tensor([0.5, 1.0]), "ranks must"),
    ],
)
def test_coverage_of_impossible_ranks_is_refused(ranks: torch.Tensor, message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        ep.evaluation.rank_coverage(ranks, 9)

"""What ArviZ makes of chains, under 0.x and 1.x."""

from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import energyppl as ep
from tests.support.chains import KERNELS, NORMAL, SOME_DIVERGE, sample


def regression(x: Tensor, y: Tensor, slope: bool = True) -> None:
    """A model with a vector site, a positive one, a deterministic one and a plate of data."""
    weight = pyro.sample("weight", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    mean = pyro.deterministic("mean", weight[0] + (weight[1] * x if slope else 0.0 * x))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def data() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1.0, 1.0, 40)
    return x, 0.5 + 1.5 * x + 0.4 * torch.randn(40)


def groups(idata: Any) -> set[str]:
    """Names of the groups, of ArviZ 0.x's InferenceData and of 1.x's DataTree."""
    names = idata.groups() if callable(idata.groups) else idata.groups
    return {str(name).strip("/") for name in names} - {""}


STATS = {"lp", "energy", "diverging", "acceptance_rate", "step_size", "tree_depth", "n_steps"}
LACKS: dict[str, set[str]] = {
    "HMC": {"tree_depth"},
    "ChEES": {"tree_depth"},
    "MALT": {"tree_depth"},
    "NUTS": set(),
    "MALA": {"tree_depth", "energy"},
    "cycle": {"tree_depth", "energy", "step_size"},
}


@SOME_DIVERGE  # early in the warm-up
@pytest.mark.parametrize("kernel", list(LACKS))
def test_arviz_has_every_group(kernel: str) -> None:
    """Names and shapes (chain, draw) of the posterior, the statistics, the warm-up and the data; and what they hold."""
    x, y = data()
    chains = sample(KERNELS[kernel], regression, x, y, chains=4, draws=40, warmup=60, keep_warmup=True)
    idata = chains.to_arviz()
    assert groups(idata) == {
        "posterior", "sample_stats", "warmup_posterior", "warmup_sample_stats", "observed_data"
    }  # fmt: skip
    for posterior, stats, draws in (
        (idata.posterior, idata.sample_stats, 40),
        (idata.warmup_posterior, idata.warmup_sample_stats, 60),
    ):
        assert {name: v.shape for name, v in posterior.data_vars.items()} == {
            "weight": (4, draws, 2), "sigma": (4, draws), "mean": (4, draws, 40)
        }  # fmt: skip
        assert posterior["sigma"].dims == ("chain", "draw")
        assert set(stats.data_vars) == STATS - LACKS[kernel] or (kernel == "cycle" and draws == 60)  # HMC's own
        assert all(stats[name].dims == ("chain", "draw") for name in stats.data_vars)
        assert bool((posterior["sigma"] > 0).all())
    stats, attrs = idata.sample_stats, idata.posterior.attrs
    assert np.array_equal(stats["lp"].values, -chains.energy.numpy())
    if "energy" in stats:
        assert bool((stats["energy"] >= -stats["lp"] - 1e-3).all()), "kinetic energies are not negative"
        assert float((stats["energy"] + stats["lp"]).mean()) < 10.0, "of 3 coordinates"
    if "step_size" in stats:
        step = torch.as_tensor(chains.kernel.step_size)  # type: ignore[attr-defined]
        assert np.allclose(stats["step_size"].values, step.numpy())
    assert stats["diverging"].dtype == bool
    assert stats["n_steps"].dtype.kind == "i"
    assert np.array_equal(idata.observed_data["y"].values, y.numpy())
    assert attrs["inference_library"] == "energyppl"
    assert attrs["inference_library_version"] == ep.__version__
    assert attrs["tuning_steps"] == 60
    assert attrs["kernel"].startswith(type(KERNELS[kernel]).__name__)


@SOME_DIVERGE
@pytest.mark.parametrize("kernel", ["cycle", "mixture"])
def test_statistics_that_only_some_steps_have_are_missing_or_nan(kernel: str) -> None:
    """Not what happened to be in memory: filled with 7s here."""
    kernels = {
        "cycle": ep.kernels.Cycle(ep.MALA(0.5), ep.NUTS()),
        "mixture": ep.kernels.Mixture(ep.MALA(0.5), ep.NUTS()),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda t, **o: torch.full_like(t, 7.0, **o))
        patch.setattr(torch, "empty", lambda *s, **o: torch.full(s[0] if isinstance(s[0], tuple) else s, 7.0, **o))
        chains = sample(kernels[kernel], NORMAL, chains=4, draws=40, warmup=40, keep_warmup=True)
    assert chains.warmup is not None
    for part in (chains, chains.warmup):
        if part.total_energy is not None:
            kinetic = part.total_energy - part.energy
            assert bool((torch.isnan(kinetic) | (kinetic >= -1e-3)).all())
            assert not bool((part.total_energy == 7.0).any())
        assert part.tree_depth is None or not bool((part.tree_depth == 7).any())


def test_arviz_reads_round_trips_and_plots(tmp_path: Path) -> None:
    x, y = data()
    chains = sample(ep.NUTS(), regression, x, y, chains=4, draws=150, warmup=100, keep_warmup=True)
    idata = chains.to_arviz()
    summary = az.summary(idata, var_names=["weight", "sigma"])
    assert list(summary.index) == ["weight[0]", "weight[1]", "sigma"]
    assert bool((summary["r_hat"] < 1.05).all())
    assert bool((az.ess(idata, var_names=["weight"])["weight"] > 100).all())
    assert float(az.rhat(idata, var_names=["sigma"])["sigma"]) < 1.05
    assert bool((az.bfmi(idata) > 0.3).all())
    az.plot_trace(idata, var_names=["weight", "sigma"])
    az.plot_energy(idata)
    az.plot_rank(idata, var_names=["weight"])
    plt.close("all")
    idata.to_netcdf(str(tmp_path / "chains.nc"))
    again = az.from_netcdf(str(tmp_path / "chains.nc"))
    try:
        assert groups(again) == groups(idata)
        for group in groups(idata):
            assert again[group].equals(idata[group]), group
        assert again.posterior.attrs["kernel"] == repr(chains.kernel)
    finally:
        again.close()


@SOME_DIVERGE
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values")  # ArviZ 0.23 under pandas 3.1
def test_arviz_compares_models_by_leave_one_out() -> None:
    """Data with a slope prefer the model that has one; the log likelihood is the density of each row."""
    x, y = data()
    found = {}
    for name, slope in (("line", True), ("flat", False)):
        chains = sample(ep.ChEES(), regression, x, y, slope, chains=16, draws=100)
        found[name] = chains.to_arviz(log_likelihood=True)
        assert found[name].log_likelihood["y"].shape == (16, 100, 40)
    post = found["flat"].posterior
    mean, sigma = torch.tensor(post["mean"].values), torch.tensor(post["sigma"].values)[..., None]
    expected = torch.distributions.Normal(mean, sigma).log_prob(y).numpy()
    assert np.allclose(found["flat"].log_likelihood["y"].values, expected, rtol=1e-4, atol=1e-4)
    loo = az.loo(found["line"])
    assert (loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd) < 0.0  # ArviZ 0.x and 1.x
    assert not loo.warning
    table = az.compare(found)
    assert list(table.index) == ["line", "flat"]
    assert abs(table["elpd_diff"].iloc[1]) > 5.0  # ArviZ 1.x counts it downwards


def test_a_likelihood_whose_log_z_was_left_out_is_refused() -> None:
    """Before, each datum's log likelihood was off by log Z, .92 here, and ``az.loo`` by that times the data."""
    bell = ep.EnergyDistribution(ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (1,)), log_normalizer=0.919)
    y = torch.tensor([[0.5], [-1.0]])

    def model(normalized: bool) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 2):
            pyro.sample("y", (bell if normalized else bell.unnormalized()).mask(torch.tensor(True)), obs=y)

    whole, open_ended = (
        ep.sample_chains(ep.HMC(), model, (known,), chains=2, draws=4, warmup=0, progress=False)
        for known in (True, False)
    )
    found = torch.tensor(whole.to_arviz(log_likelihood=True).log_likelihood["y"].values)
    torch.testing.assert_close(found, (-0.5 * y[:, 0].square() - 0.919).expand(2, 4, 2))
    with pytest.raises(ep.InvalidInput, match="site 'y' must be normalized"):
        open_ended.to_arviz(log_likelihood=True)
    assert open_ended.to_arviz().posterior["mu"].shape == (2, 4)


def test_the_same_groups_under_arviz_1() -> None:
    arviz_base = pytest.importorskip("arviz_base", reason="ArviZ 1.x's data structures are not installed")
    x, y = data()
    chains = sample(ep.NUTS(), regression, x, y, chains=4, draws=40, warmup=60, keep_warmup=True)
    new, old = (chains.to_arviz(log_likelihood=True, **o) for o in ({"arviz": arviz_base}, {}))
    assert type(new).__name__ == "DataTree"
    assert set(new.children) == groups(old)
    for group in groups(old):
        assert set(new[group].data_vars) == set(old[group].data_vars)
        for name in old[group].data_vars:
            assert new[group][name].dims[:2] == old[group][name].dims[:2]
            assert np.array_equal(new[group][name].values, old[group][name].values)
    assert new.attrs["inference_library"] == "energyppl"


def test_a_potential_has_no_data_for_arviz() -> None:
    idata = sample(ep.HMC(0.5), NORMAL, chains=4, draws=20, warmup=0).to_arviz(log_likelihood=True)
    assert groups(idata) == {"posterior", "sample_stats"}
    assert set(idata.posterior.data_vars) == {"x"}


def test_the_log_likelihood_is_each_datum_s_own_whatever_it_counts_for() -> None:
    """Under a scale, as for a part of the data, leave-one-out would count each as often; what is masked is no datum."""
    y, seen = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([True, False, True])

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3), pyro.poutine.scale(scale=10.0), pyro.poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    idata = sample(ep.HMC(0.1), model, chains=2, draws=4, warmup=0).to_arviz(log_likelihood=True)
    mean = torch.tensor(idata.posterior["mean"].values)[..., None]
    expected = dist.Normal(mean, 1.0).log_prob(y) * seen
    assert np.allclose(idata.log_likelihood["y"].values, expected, atol=1e-5)

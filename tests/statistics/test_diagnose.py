"""``energyppl diagnose``: what it writes and prints, what it finds, what it refuses; and the pictures of chains."""

import csv
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import energyppl as ep
from energyppl import plots
from energyppl.cli import diagnosis
from energyppl.cli.main import main
from energyppl.inference.evaluation.chains import EnergyDrift

RNG = np.random.default_rng(1)
ROWS = np.stack([1e6 + 5e3 * RNG.normal(size=80), np.arange(80) % 4], 1)  # a large offset, and a discrete column
FILES = {
    *("chains.nc", "chains_summary.csv", "chains_trace.png", "chains_rank.png", "chains_energy.png"),
    *("chains_drift.png", "chains_levels.png"),
}
SMALL = ("--chains", "8", "--draws", "20")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests must not change its model."""
    folder = tmp_path_factory.mktemp("diagnosed")
    np.savetxt(folder / "table.csv", ROWS, delimiter=",", header="income/year,draw", comments="", fmt="%.10g")
    arguments = ["fit", folder / "table.csv", "--out", folder / "run", "--steps", 20, "--levels", 3]
    assert main([str(a) for a in arguments]) == 0
    return folder / "run"


def diagnose(*arguments: Any) -> int:
    return main(["diagnose", *(str(a) for a in arguments)])


def test_diagnose_writes_and_prints(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in run.iterdir()}
    assert diagnose(run, *SMALL, "--seed", 3, "--out", tmp_path / "new" / "folder") == 0
    printed = capsys.readouterr().out
    for word in (
        "worst R-hat",
        "smallest ESS",
        "divergences",
        "stuck",
        "not finite",
        "energy drift",
        "BFMI",
        "verdict",
    ):
        assert word in printed
    assert "8 of 20 draws, 4 begun at held-out data" in printed
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == FILES
    assert {path.name for path in run.iterdir()} == before

    with (tmp_path / "new" / "folder" / "chains_summary.csv").open(encoding="utf-8") as file:
        rows = {row["variable"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["income_year", "draw_"]  # names that netCDF and ArviZ can hold
    assert abs(float(rows["income_year"]["mean"]) - 1e6) < 2e4  # in the table's units
    assert {"r_hat", "ess_bulk", "ess_tail"} <= set(rows["draw_"])


@pytest.fixture(scope="module")
def diagnosed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a diagnosis; tests must not change it."""
    folder = tmp_path_factory.mktemp("diagnosis")
    assert diagnose(run, *SMALL, "--out", folder) == 0
    return folder


def test_arviz_reads_the_file(diagnosed: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ announces its next version
        import arviz

        data = arviz.from_netcdf(str(diagnosed / "chains.nc"))
        values = data["posterior"]["income_year"].values
        energy = data["sample_stats"]["energy"].values
        groups = {str(group).strip("/") for group in (data.groups() if callable(data.groups) else data.groups)}
    assert values.shape == energy.shape == (8, 20)
    assert values.dtype == np.float64
    # float32 would round to steps of 1/16 here.
    assert (values != values.astype(np.float32)).any()
    assert "warmup_posterior" in groups


def test_same_seed_same_chains_and_files_are_replaced(run: Path, diagnosed: Path, tmp_path: Path) -> None:
    first, content = ((folder / "chains_summary.csv") for folder in (diagnosed, tmp_path))
    assert diagnose(run, *SMALL, "--out", tmp_path) == 0
    assert content.read_bytes() == first.read_bytes()
    assert diagnose(run, *SMALL, "--out", tmp_path, "--seed", 1) == 0
    assert content.read_bytes() != first.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_default_folder_is_the_run_and_its_model_stays(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "run"
    own.mkdir()
    for name in ("model.ckpt", "run.json", "training.ckpt"):
        (own / name).write_bytes((run / name).read_bytes())
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    assert diagnose(own, *SMALL) == 0
    assert {path.name for path in own.iterdir()} == FILES | set(before)
    assert all((own / name).read_bytes() == old for name, old in before.items())


def test_chains_that_leave_the_data_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The negative control: held-out rows where the model has no mass."""
    tree = ep.load_checkpoint(run / "model.ckpt")
    tree["held_out"][:, 0] += 8 * 5e3
    ep.save_checkpoint(tmp_path / "model.ckpt", tree)
    assert diagnose(tmp_path, "--chains", 32, "--draws", 60) == 0
    printed = capsys.readouterr().out
    assert "chains leave the data" in printed
    assert "don't end where held-out rows lie" in printed


def test_one_column(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", ROWS[:, 0])
    assert main(["fit", str(tmp_path / "t.npy"), "--out", str(tmp_path / "run"), "--steps", "3"]) == 0
    assert diagnose(tmp_path / "run", "--chains", 5, "--draws", 20) == 0


def test_another_kernel(run: Path, tmp_path: Path) -> None:
    report = diagnosis.diagnose_run(run, chains=4, draws=20, out=tmp_path, kernel=ep.MALA(0.1), progress=False)
    assert report["bfmi"] is None
    assert "chains_energy.png" not in report["pictures"]
    json.dumps(report)


def test_it_refuses_what_is_no_run_and_too_little(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "file").touch()
    for arguments, words in (
        ((tmp_path / "absent", "--out", out), "no finished model"),
        ((tmp_path, "--out", out), "no finished model"),
        ((tmp_path / "file", "--out", out), "no finished model"),
        ((run, "--chains", 3, "--out", out), "chains must be"),
        ((run, "--draws", 0, "--out", out), "draws must be"),
        ((run, "--seed", -1, "--out", out), "seed must be"),
        ((run, "--out", tmp_path / "file"), "file"),
    ):
        capsys.readouterr()
        assert diagnose(*arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert words in lines[0]
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_an_early_stop_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stops:
        step_size = 0.1

        def init(self, potential: Any, x: torch.Tensor) -> Any:
            raise KeyboardInterrupt

        def step(self, potential: Any, state: Any) -> Any:
            raise AssertionError("never reached")

    monkeypatch.setattr(diagnosis, "ChEES", Stops)
    monkeypatch.setattr(diagnosis, "_WARMUP", 0)
    assert diagnose(run, *SMALL, "--out", tmp_path) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", "--help"])
    assert stop.value.code == 0
    assert "--chains" in capsys.readouterr().out


# --- The verdict ---

HEALTHY: dict[str, Any] = {
    "interrupted": False,
    "draws": 1000,
    "not_finite": [],
    "stuck": [],
    "drift": EnergyDrift(0.01, 0.02, 0.5, 1.0, 1.0, 0.02, 0),
    "held_out_energy": 1.05,
    "held_out_energy_error": 0.02,
    "halves_p_value": 0.4,
    "data_p_value": 0.3,
    "r_hat": {"value": 1.002, "variable": "a"},
    "ess_bulk": {"value": 3000.0, "variable": "a"},
    "ess_tail": {"value": 2000.0, "variable": "a"},
    "diverging": 0.0,
    "bfmi": 0.9,
}


def test_healthy_chains_have_no_verdict() -> None:
    assert diagnosis._verdict(HEALTHY) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"interrupted": True}, "stopped early"),
        ({"not_finite": [3]}, "not finite"),
        ({"stuck": [3]}, "hardly moved"),
        ({"drift": EnergyDrift(0.0, 0.02, 0.0, 3.0, 3.0, 0.02, 0)}, "1.95 nats higher"),
        ({"drift": EnergyDrift(-0.5, 0.02, -25.0, 1.4, 0.9, 0.02, 0)}, "still falls"),
        ({"halves_p_value": 0.0002}, "different places"),
        ({"data_p_value": 0.0002}, "where held-out rows lie"),
        ({"r_hat": {"value": 1.2, "variable": "a"}}, "disagree about a"),
        ({"r_hat": {"value": np.inf, "variable": "a"}}, "disagree about a"),
        ({"ess_tail": {"value": 30.0, "variable": "a"}}, "effective draws"),
        ({"diverging": 0.001}, "0.10% of the draws diverged"),
        ({"bfmi": 0.1}, "BFMI"),
    ],
)
def test_each_trouble_has_its_sentence(change: dict[str, Any], words: str) -> None:
    found = diagnosis._verdict({**HEALTHY, **change})
    assert len(found) == 1
    assert words in found[0]


def test_without_a_drift_there_is_still_a_verdict() -> None:
    assert diagnosis._verdict({**HEALTHY, "drift": None, "bfmi": None}) == []


def test_names_that_a_file_can_hold() -> None:
    assert diagnosis._names(["a/b", "a_b", "chain", "chain_", "x"]) == ["a_b", "a_b_", "chain_", "chain__", "x"]


def test_bfmi_of_known_energies() -> None:
    """Independent energies: E (E' − E)² is twice the variance.  A random walk's changes are small beside it."""
    energy = torch.randn(4, 4000, dtype=torch.float64)
    found = diagnosis._bfmi(energy)
    assert found is not None
    assert found == pytest.approx(2.0, abs=0.2)
    walk = diagnosis._bfmi(energy.cumsum(1))
    assert walk is not None
    assert walk < 0.05
    assert diagnosis._bfmi(None) is None
    assert diagnosis._bfmi(torch.full((2, 10), torch.inf)) is None
    assert diagnosis._bfmi(torch.ones(2, 10)) is None


# --- Pictures ---

DRAWS = torch.randn(6, 120)
BROKEN = torch.where(torch.arange(6)[:, None] == 1, torch.nan, DRAWS)
TWO = {"from data": np.arange(3), "from samples": np.arange(3, 6)}
FIGURES: dict[str, Callable[[], Figure]] = {
    "trace": lambda: plots.trace_plot({"a": DRAWS, "b": BROKEN}, title="t", groups=TWO),
    "trace of one": lambda: plots.trace_plot({"a name of many letters": DRAWS}, title="t"),
    "trace that stands still": lambda: plots.trace_plot({"a": torch.full((3, 20), 1e6)}, title="t"),
    "trace of nothing finite": lambda: plots.trace_plot({"a": torch.full((3, 20), torch.nan)}, title="t"),
    "rank": lambda: plots.rank_plot(dict.fromkeys("abcde", DRAWS), title="t"),
    "rank of few draws": lambda: plots.rank_plot({"a": BROKEN[:, :7]}, title="t"),
    "energy": lambda: plots.energy_plot(BROKEN, title="t"),
    "energy that stands still": lambda: plots.energy_plot(torch.ones(3, 20), title="t"),
    "energy of nothing finite": lambda: plots.energy_plot(torch.full((3, 20), torch.inf), title="t"),
    "drift": lambda: plots.drift_plot({"a": BROKEN, "b": DRAWS[:1]}, title="t", warmup=9, reference=("r", 0.1)),
    "levels": lambda: plots.level_plot(torch.rand(6), title="t"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_becomes_a_png(name: str, tmp_path: Path) -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    before = pyplot.get_fignums() if pyplot else []
    picture = matplotlib.image.imread(plots.save_figure(FIGURES[name](), tmp_path / "figure.png"))
    assert picture.shape[0] > 300
    assert picture.std() > 0.01
    assert (pyplot.get_fignums() if pyplot else []) == before


def test_rank_map_of_chains_that_differ() -> None:
    """A chain below all others has all its draws in the lowest ranks; equal draws are not told apart by their chain."""
    apart = torch.stack([torch.arange(100.0), 100.0 + torch.arange(100.0)])
    share = plots.rank_plot({"a": apart}, title="t", bins=10).axes[0].images[0].get_array()
    np.testing.assert_allclose(share, np.repeat([[2.0, 0.0], [0.0, 2.0]], 5, axis=1))
    share = plots.rank_plot({"a": torch.zeros(2, 100)}, title="t", bins=10).axes[0].images[0].get_array()
    np.testing.assert_allclose(share, 1.0)

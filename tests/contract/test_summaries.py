"""Objects say what they are in a line, and in a table in notebooks; figures show themselves there."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import energyppl as ep
from energyppl.inference.training.history import Record


def recovery() -> ep.RecoveryEBM:
    return ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))


def chains() -> ep.Chains:
    return ep.sample_chains(ep.HMC(), ep.toys.Rings(), chains=4, draws=10, warmup=0, progress=False)


def history() -> ep.History:
    measures = [math.nan, 3.0, math.nan, 2.5]
    records = [Record(i, 9.0 - i, 1e-3, 1.0, measures[i], {"energy_gap": 0.25 * i}) for i in range(4)]
    return ep.History(tuple(records), "all 4 steps made")


def log_z() -> ep.LogNormalizer:
    return ep.LogNormalizer(1.0, 0.3, 0.4, 1.6, 100, "annealing <both ways>", warning="modes were missed")


OBJECTS = {
    "recovery": (recovery, ["RecoveryEBM", "(2,)", "MLPEnergy", "not yet", "3, noise", "CrankNicolson"]),
    "joint": (
        lambda: ep.JointEBM(ep.MLPEnergy((2,), levels=4), ep.NoiseSchedule.cosine(levels=3)),
        ["JointEBM", "(2,)", "4, noise"],
    ),
    "one energy": (lambda: ep.EBM(ep.MLPEnergy((3,), levels=1)), ["EBM", "(3,)"]),
    "multi-scale": (
        lambda: ep.MultiscaleEBM(ep.MLPEnergy((3,), levels=1), [4.0, 1.0], base_sigma=1.0),
        ["MultiscaleEBM", "(3,)"],
    ),
    "product": (lambda: ep.product(recovery(), recovery()), ["Product", "(2,)"]),
    "history": (history, ["4 steps", "2.5 at best, at step 3", "loss 6 in the last 1 steps", "all 4 steps made"]),
    "chains": (chains, ["Chains: 4 chains of 10 draws", "HMC"]),
    "log Z": (log_z, ["1.0000 ± 0.3 nats", "annealing", "not to be trusted"]),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_repr_is_short_and_says_what_it_is(name: str) -> None:
    make, words = OBJECTS[name]
    text = repr(make())
    assert len(text.splitlines()) <= 6
    assert len(text) <= 800
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("name", OBJECTS)
def test_notebooks_show_a_table(name: str) -> None:
    html = OBJECTS[name][0]()._repr_html_()
    assert html.startswith("<div>")
    assert html.count("<tr>") >= 2
    assert "<both ways>" not in html, "texts are escaped"


def test_training_standardizes_the_model_and_its_summary_says_so() -> None:
    ebm = recovery()
    ebm.standardize(torch.randn(100, 2))
    assert "standardized: to the data" in repr(ebm)


def test_history_without_a_step_has_a_summary() -> None:
    empty = ep.History((), "stopped by hand")
    assert repr(empty) == "History(0 steps; stopped by hand)"
    assert "stopped by hand" in empty._repr_html_()


def test_figure_shows_itself() -> None:
    figure = ep.plots.scatter_panels({"data": torch.randn(20, 2)}, title="t")
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_script_shows_figures_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENERGYPPL_PICTURES", raising=False)
    ep.plots.show(Figure(), "a")
    monkeypatch.setenv("ENERGYPPL_PICTURES", str(tmp_path / "other"))
    ep.plots.show(Figure(), "b")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")) == [
        "other/b.png",
        "pictures/a.png",
    ]
    assert capsys.readouterr().out.splitlines() == ["pictures/a.png", str(tmp_path / "other" / "b.png")]


def test_pyplot_forgets_a_figure_that_was_shown(tmp_path: Path) -> None:
    """ArviZ draws with pyplot, which would show its figures once more at the end of a cell."""
    program = (
        "import matplotlib.pyplot as plt, energyppl as ep\n"
        "ep.plots.show(plt.figure(), 'a')\n"
        "assert plt.get_fignums() == []"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Commands whose numbers are estimates: the demo's measurements, log Z and scores of a run."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import energyppl as ep
from energyppl.cli import demo
from energyppl.cli.main import main
from tests.support.cli import fit_wide


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"_TRAINING_ROWS": 2000, "_HELD_OUT_ROWS": 500, "_SAMPLES": 300, "_TESTED": 200, "_GRID": 40}
    for name, small in sizes.items():
        monkeypatch.setattr(demo, name, small)
    monkeypatch.setattr(ep, "MLPEnergy", partial(ep.MLPEnergy, hidden=16))
    out = tmp_path / "pictures"
    assert main(["demo", "--data", "two-moons", "--steps", "30", "--seed", "3", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "log Z" in printed
    assert str(out) in printed
    report = json.loads((out / "report.json").read_text())
    assert {path.name for path in out.glob("*.png")} == set(report["pictures"])
    assert report["seed"] == 3
    assert report["training"]["steps"] == 30
    held = report["held_out"]
    difference = held["negative_log_likelihood"] - held["true_entropy"]
    assert abs(difference - held["excess"]) < 5 * held["negative_log_likelihood_standard_error"]
    assert held["excess"] > 0
    assert sum(report["modes"]["samples"]) == pytest.approx(1.0, abs=1e-3)


def test_logz_and_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Densities come in the table's units, outliers first; the kept log Z serves until the model changes."""
    wide_run = fit_wide(tmp_path)
    assert main(["logz", str(wide_run / "run"), "--tolerance", "0.5"]) == 0
    assert "log Z = " in capsys.readouterr().out
    kept = json.loads((wide_run / "run" / "logz.json").read_text())
    assert (wide_run / "run" / "log_weights.png").stat().st_size > 5000
    rows = np.loadtxt(wide_run / "table.csv", delimiter=",", skiprows=1)
    rows[7] = [9.0, 900.0, 0.09]
    np.savetxt(tmp_path / "new.csv", rows[:, [2, 0, 1]], delimiter=",", header="c,a,b", comments="")  # another order
    out = tmp_path / "scores.csv"
    assert main(["score", str(wide_run / "run"), str(tmp_path / "new.csv"), "--out", str(out)]) == 0
    assert f"known to ± {kept['log_z']['standard_error']:.2g} nats" in capsys.readouterr().out
    scores = np.loadtxt(out, delimiter=",", skiprows=1, usecols=(0, 1, 2))
    assert scores[0, 0] == 7
    assert (np.diff(scores[:, 1]) >= 0).all()
    assert sorted(scores[:, 0]) == list(range(200))
    # Gaussian columns of sd 1, 100 and .01: the mean log density is about −3/2 log 2πe, whatever the units.
    assert np.median(scores[:, 1]) == pytest.approx(-1.5 * np.log(2 * np.pi * np.e) + 0.5, abs=1.0)

"""The command line as a user meets it: fit, sample, show, score, and one clear line for what goes wrong."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import energyppl as ep
from energyppl._files import locked
from energyppl.cli.main import main
from tests.support.cli import fit_wide
from tests.support.damage import Bomb

COMMANDS = ("demo", "fit", "average", "sample", "show", "diagnose", "logz", "score", "impute", "predict", "compare")
RNG = np.random.default_rng(1)
ROWS = np.stack([1e6 + 5e3 * RNG.normal(size=80), np.arange(80) % 4], 1)  # a large offset, and a discrete column


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line of error of a command that must exit with 2."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("energyppl: "))
    return line


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    np.savetxt(path, ROWS, delimiter=",", header="income,rooms", comments="", fmt="%.10g")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("shared")
    np.savez(folder / "table.npz", rows=ROWS, other=ROWS[:, 0])
    arguments = ["fit", folder / "table.npz", "--array", "rows", "--out", folder / "run", "--steps", 20, "--levels", 3]
    assert main([str(a) for a in arguments]) == 0
    return folder / "run"


# --- Help ---


@pytest.mark.parametrize("command", [(sys.executable, "-m", "energyppl"), (Path(sys.executable).parent / "energyppl",)])
def test_help_of_both_entrances(command: tuple[str | Path, ...]) -> None:
    result = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert all(f"    {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "." in capsys.readouterr().out


# --- demo ---


def test_demo_refuses_a_bad_name_and_lists_the_good_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "demo", "--data", "moons", "--out", tmp_path / "out")
    assert "'moons'" in line
    assert all(name in line for name in ep.toys.TWO_DIMENSIONAL)
    assert "steps" in fails(capsys, "demo", "--steps", 0, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- fit, sample, show ---


def test_fit_sample_show(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["fit", str(table), "--out", str(run), "--steps", "20", "--levels", "3", "--batch-size", "32"]) == 0
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["transforms"]["rooms"] == "4 values, by their shares of the normal scores"
    assert record["settings"]["batch_size"] == 32
    assert record["rows"] == {"training": 72, "validation": 0, "held_out": 8}
    printed = capsys.readouterr().out
    for word in (
        "rooms 4 values, by their shares of the normal scores",
        "log density",
        "level 0's noise, 0.0074 of a transformed column's standard deviation",
        "training alone implies 0",
        "verdict",
        "a mixture of Gaussians",
        "independent columns",
    ):
        assert word in printed
    assert json.loads((run / "logz.json").read_text())["log_z"]["confidence"] == 0.95

    assert main(["sample", str(run), "-n", "30", "--out", str(tmp_path / "x.csv")]) == 0
    samples = np.loadtxt(tmp_path / "x.csv", delimiter=",", skiprows=1)
    assert (tmp_path / "x.csv").read_text().startswith("income,rooms\n")
    assert samples.shape == (30, 2)
    assert set(samples[:, 1]) <= {0.0, 1.0, 2.0, 3.0}
    assert abs(samples[:, 0].mean() - 1e6) < 1e4

    assert main(["show", str(run), "-n", "100"]) == 0
    printed = capsys.readouterr().out
    for word in ("income", "rooms", "72 for training, 8 held out", "20 steps", "pairs.png", "correlation", "95%"):
        assert word in printed
    report = json.loads((run / "report.json").read_text())
    assert report["compared"]["rooms"]["held_out"]["mean"] < 3
    assert math.isfinite(report["log_density"]["value"])
    assert len(report["verdict"]) >= 2
    assert all(Path(path).exists() for path in report["pictures"])


def test_a_model_that_cannot_be_measured_is_kept(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, said in ((ep.errors.NotNormalizable("it falls"), "it falls"), (KeyboardInterrupt(), "energyppl show")):
        monkeypatch.setattr("energyppl.cli.commands.quality_of_run", lambda *_, error=error, **__: _raise(error))
        run = tmp_path / said.replace(" ", "")
        assert main(["fit", str(table), "--out", str(run), "--steps", "2", "--levels", "2"]) == 0
        assert f"the model is trained, {'but' if said == 'it falls' else 'and'}" in capsys.readouterr().out
        assert (run / "model.ckpt").exists()


def _raise(error: BaseException) -> None:
    raise error


def test_samples_repeat_and_raw_ones_are_continuous(run: Path, tmp_path: Path) -> None:
    for name, extra in (("a.npy", []), ("b.npy", []), ("c.npy", ["--seed", "1"]), ("raw.npz", ["--raw"])):
        assert main(["sample", str(run), "-n", "40", "--out", str(tmp_path / name), *extra]) == 0
    a, b, c = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    with np.load(tmp_path / "raw.npz") as archive:
        assert len(np.unique(archive["values"][:, 1])) == 40
        assert archive["columns"].tolist() == ["c0", "c1"]


def test_one_column_of_a_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", ROWS[:, 0])
    assert main(["fit", str(tmp_path / "t.npy"), "--out", str(tmp_path / "run"), "--steps", "3"]) == 0
    assert main(["show", str(tmp_path / "run"), "-n", "20"]) == 0


def test_interrupted_run_goes_on_bit_for_bit(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    begin = ["--steps", "30", "--levels", "3", "--seed", "7"]
    assert main(["fit", str(table), "--out", str(whole), *begin]) == 0

    def save_then_stop(path: Path, tree: Any) -> None:
        ep.save_checkpoint(path, tree)
        if len(tree["records"]) == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[ep.fit.__module__], "save_checkpoint", save_then_stop)
        assert main(["fit", str(table), "--out", str(run), *begin]) == 130
    assert "training.ckpt holds the first 10 steps" in capsys.readouterr().err
    assert "has not finished" in fails(capsys, "show", run)

    assert main(["fit", str(table), "--out", str(run)]) == 0  # the settings are remembered
    assert "steps 10 to 30" in capsys.readouterr().out
    ours, theirs = (ep.load_checkpoint(folder / "model.ckpt")["ebm"]["weights"] for folder in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    assert main(["fit", str(table), "--out", str(run)]) == 0
    assert "nothing left to do" in capsys.readouterr().out


# --- What goes wrong ---


def test_fit_refuses_bad_tables_and_writes_nothing(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, run = tmp_path / "bad.csv", tmp_path / "run"
    assert "there is no file" in fails(capsys, "fit", tmp_path / "absent.csv", "--out", run)
    bad.write_text("a,b\n" + "".join(f"{i / 2},1\n" for i in range(20)))
    assert "constant: 'b'" in fails(capsys, "fit", bad, "--out", run)
    for third, message in (("a", "more than once: 'a'"), ("c", "'c' is a copy of 'a'")):
        lines = (f"{x},{y},{x}\n" for x, y in RNG.normal(size=(20, 2)))
        bad.write_text(f"a,b,{third}\n" + "".join(lines))
        assert message in fails(capsys, "fit", bad, "--out", run)
    for arguments in (
        ("--steps", 0),
        ("--levels", -1),
        ("--learning-rate", "nan"),
        ("--batch-size", 0),
        ("--seed", -1),
    ):
        assert str(arguments[0])[2:].replace("-", "_") in fails(capsys, "fit", table, "--out", run, *arguments)
    assert not run.exists()


def test_run_of_other_data_or_settings_is_left_alone(
    run: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert "other options" in fails(capsys, "fit", run.parent / "table.npz", "--out", run, "--batch-size", 21)
    assert "steps must be more than the 20" in fails(
        capsys, "fit", run.parent / "table.npz", "--out", run, "--steps", 9
    )
    assert "another model" in fails(capsys, "fit", run.parent / "table.npz", "--out", run, "--levels", 4)
    other = table.with_name("other.npz")
    np.savez(other, rows=ROWS + 1.0 * (ROWS > 1e6))
    assert "is a run of another table" in fails(capsys, "fit", other, "--out", run)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_sample_and_show_refuse_what_is_no_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no finished model" in fails(capsys, "sample", tmp_path, "--out", tmp_path / "x.npy")
    assert "no finished model" in fails(capsys, "show", tmp_path / "absent")
    assert "must end in" in fails(capsys, "sample", run, "--out", tmp_path / "x.txt")
    assert "number of samples" in fails(capsys, "sample", run, "-n", 0, "--out", tmp_path / "x.npy")
    (tmp_path / "file").touch()
    fails(capsys, "sample", run, "--out", tmp_path / "file" / "x.npy")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.mark.parametrize("name", ["model.ckpt", "training.ckpt"])
def test_damaged_checkpoints(name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "executed"
    whole = (run / name).read_bytes()
    torch.save({"weights": Bomb(target)}, tmp_path / "torch.pt")
    ep.save_checkpoint(tmp_path / "list.ckpt", [1, 2])
    other = "training.ckpt" if name == "model.ckpt" else "model.ckpt"
    damaged = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "pickle": pickle.dumps(Bomb(target)),
        "torch": (tmp_path / "torch.pt").read_bytes(),
        "another kind": (run / other).read_bytes(),
        "a list": (tmp_path / "list.ckpt").read_bytes(),
    }
    for kind, content in damaged.items():
        folder = tmp_path / kind.replace(" ", "-")
        folder.mkdir()
        (folder / "run.json").write_bytes((run / "run.json").read_bytes())
        (folder / name).write_bytes(content)
        if name == "model.ckpt":
            line = fails(capsys, "sample", folder, "--out", folder / "x.npy")
        else:
            line = fails(capsys, "fit", run.parent / "table.npz", "--out", folder)
        assert name in line, kind
        assert {path.name for path in folder.iterdir()} == {"run.json", name}
    assert not target.exists()


def test_damaged_weights_and_notes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = ep.load_checkpoint(run / "model.ckpt")
    weights = tree["ebm"]["weights"]
    changes: dict[str, Any] = {
        "columns": ["a"],
        "ebm": {**tree["ebm"], "weights": {**weights, "net.film": weights["net.film"] * torch.nan}},
        "curves": {},
        "format": "x",
    }
    for key, value in changes.items():
        ep.save_checkpoint(tmp_path / "model.ckpt", {**tree, key: value})
        assert "not a model that energyppl fit made" in fails(capsys, "show", tmp_path), key
    ep.save_checkpoint(tmp_path / "model.ckpt", tree)
    assert main(["show", str(tmp_path), "-n", "20"]) == 0  # the model stands alone


NOTES: dict[str, str] = {
    "no end": "{",
    "a list": "[]",
    "nothing in it": "{}",
    "deep": "[" * 100_000,
    "settings of another kind": '{"settings": 3, "seconds": 1}',
    "an unknown setting": '{"settings": {"stepz": 20}, "seconds": 1}',
    "steps in words": '{"settings": {"steps": "twenty"}, "seconds": 1}',
    "an array's number": '{"settings": {"array": 3}, "seconds": 1}',
    "a rate that is no number": '{"settings": {"learning_rate": NaN}, "seconds": 1}',
    "a rate of truth": '{"settings": {"learning_rate": true}, "seconds": 1}',
    "time that is no number": '{"settings": SETTINGS, "seconds": NaN}',
    "time in words": '{"settings": SETTINGS, "seconds": "long"}',
    "no time": '{"settings": SETTINGS}',
    "no text": "\xff",
}


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "copied"))


@pytest.mark.parametrize("name", list(NOTES))
def test_a_run_json_edited_by_hand_is_refused_by_name(
    name: str, run: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = json.dumps(json.loads((run / "run.json").read_text())["settings"])
    (copied / "run.json").write_bytes(NOTES[name].replace("SETTINGS", settings).encode("latin-1"))
    assert f"{copied / 'run.json'} is damaged" in fails(capsys, "fit", run.parent / "table.npz", "--out", copied)


@pytest.mark.parametrize("content", [b"", b"\0" * 512, b"\n"])
def test_an_empty_run_json_does_not_block_a_whole_checkpoint(content: bytes, run: Path, copied: Path) -> None:
    (copied / "run.json").write_bytes(content)
    arguments = ["fit", run.parent / "table.npz", "--array", "rows", "--out", copied, "--steps", 20, "--levels", 3]
    with pytest.warns(UserWarning, match=r"run.json is empty: settings that are not given now have their defaults"):
        assert main([str(a) for a in arguments]) == 0
    assert json.loads((copied / "run.json").read_text())["steps"] == 20


def test_a_run_is_trained_by_one_process(run: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("fit", run.parent / "table.npz", "--out", copied)
    with locked(copied):
        assert f"{copied} is in use by process {os.getpid()} on " in fails(capsys, *arguments)
    assert main([str(a) for a in arguments]) == 0
    assert sorted(path.name for path in copied.iterdir()) == sorted(path.name for path in run.iterdir())


# --- Normalizing and scoring ---


@pytest.fixture(scope="module")
def wide_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three columns and its table; tests must not change it."""
    return fit_wide(tmp_path_factory.mktemp("wide"))


def test_score_of_what_does_not_fit(wide_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two, other = tmp_path / "two.csv", tmp_path / "other.csv"
    np.savetxt(two, np.random.default_rng(0).normal(size=(20, 2)), delimiter=",", header="a,b", comments="")
    np.savetxt(other, np.random.default_rng(0).normal(size=(20, 3)), delimiter=",", header="a,b,z", comments="")
    run = wide_run / "run"
    twice = tmp_path / "twice.csv"
    twice.write_text((wide_run / "table.csv").read_text().replace("a,b,c", "a,b,a"))
    assert "more than once: 'a'" in fails(capsys, "score", run, twice)
    assert "must have the 3 columns" in fails(capsys, "score", run, two)
    assert "must have the columns a, b, c" in fails(capsys, "score", run, other)
    assert "must end in .csv" in fails(capsys, "score", run, wide_run / "table.csv", "--out", tmp_path / "x.npy")
    assert "no finished model" in fails(capsys, "logz", tmp_path)
    assert "tolerance must be positive" in fails(capsys, "logz", run, "--tolerance", "0")


@pytest.fixture(scope="module")
def normalized(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its log Z and its table, ``t.csv``; tests must not change it."""
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("normalized") / "run"))
    np.savetxt(folder / "t.csv", ROWS, delimiter=",", header="income,rooms", comments="", fmt="%.10g")
    assert main(["logz", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"estimate": float("nan")},
        {"estimate": float("inf"), "upper": float("inf")},
        {"estimate": "3"},
        {"estimate": None},
        {"lower": 1e9},
        {"standard_error": float("nan")},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_logz_json_edited_by_hand_is_refused_by_name(
    change: dict[str, Any], normalized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(normalized, tmp_path / "copied"))
    table, path = copied / "t.csv", copied / "logz.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "log_z": {**kept["log_z"], **change}}))
    assert f"{path} is damaged" in fails(capsys, "score", copied, table, "--out", copied / "s.csv")
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        assert f"{path} is damaged" in fails(capsys, "score", copied, table, "--out", copied / "s.csv")
    assert not (copied / "s.csv").exists()
    path.write_text("")  # a crash left it
    assert main(["score", str(copied), str(table), "--out", str(copied / "s.csv")]) == 0


def test_discrete_columns_are_scored_by_their_cells(run: Path, tmp_path: Path) -> None:
    """A two-column run normalizes by quadrature, and its scores are finite in the table's units."""
    np.savetxt(tmp_path / "t.csv", ROWS, delimiter=",", header="income,rooms", comments="", fmt="%.10g")
    assert main(["score", str(run), str(tmp_path / "t.csv"), "--out", str(tmp_path / "s.csv")]) == 0
    assert np.isfinite(np.loadtxt(tmp_path / "s.csv", delimiter=",", skiprows=1, usecols=(0, 1, 2))).all()

"""The command line on images: fit, sample and show, and one clear line for what goes wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import energyppl as ep
from energyppl.cli.image_runs import _IMAGES, _RECORD, holds_images, is_image_run, load_image_run
from energyppl.cli.images import _of_all_classes
from energyppl.cli.main import main
from tests.support.image_files import idx, save_png

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 256, (24, 6, 5), dtype=np.uint8)


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line on stderr of a command that must exit with 2."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    line: str = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("energyppl: ")
    return line


def does(*arguments: Any) -> None:
    assert main([str(a) for a in arguments]) == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two classes; tests must not change it."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "pictures").mkdir()
    for i, picture in enumerate(GREY):
        save_png(folder / "pictures" / ("dots", "lines")[i % 2] / f"{i}.png", picture)
    does("fit", folder / "pictures", "--out", folder / "run", "--steps", 3, "--levels", 4)
    return folder / "run"


def test_a_folder_of_classes_is_trained_on_and_kept(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["images"] == {"training": 22, "held_out": 2, "size": [1, 6, 5], "grey": 256}, "grey, not colour"
    assert record["classes"] == ["dots", "lines"]
    assert sum(record["class_counts"]) == 22
    assert len(record["class_counts"]) == 2
    assert all((run / name).exists() for name in ("samples.png", "training.png", "training.ckpt"))
    ebm = ep.load(run / "model.ebm")
    assert ebm.given(1, guidance=1.0).sample((2,)).shape == (2, 1, 6, 5)
    assert is_image_run(run)


def test_a_finished_run_stays_and_goes_on_with_its_own_settings(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    does("fit", run.parent / "pictures", "--out", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "run.json").read_text())["steps"] == 3


def test_samples_in_arrays_and_sheets(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    does("sample", run, "-n", 5, "--label", "lines", "--guidance", 0.5, "--out", tmp_path / "x.npy")
    does("sample", run, "-n", 3, "--out", tmp_path / "x.npz")
    does("sample", run, "-n", 3, "--out", tmp_path / "x.png")
    out = capsys.readouterr().out
    assert "5 samples of class lines" in out
    assert "3 samples of all classes" in out
    assert "8 gradients" in out, "four levels, twice for guidance"
    assert np.load(tmp_path / "x.npy").dtype == np.uint8
    assert np.load(tmp_path / "x.npy").shape == (5, 6, 5)
    assert np.load(tmp_path / "x.npz")["samples"].shape == (3, 6, 5)
    assert (tmp_path / "x.png").stat().st_size > 0


def test_classes_are_drawn_as_often_as_in_training(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**record, "class_counts": [0, 22]}))
    found = load_image_run(copied)
    assert torch.equal(_of_all_classes(found, 50).conditions, torch.ones(50, dtype=torch.long))


def test_show_compares_and_draws(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    does("show", run, "-n", 2)
    out = capsys.readouterr().out
    assert all(word in out for word in ("mean pixel", "nearest image", "verdict", "dots, lines"))
    assert all((run / name).exists() for name in ("neighbours.png", "denoised.png"))


def test_idx_files_with_labels_and_arrays(tmp_path: Path) -> None:
    (tmp_path / "images-idx3-ubyte").write_bytes(idx(GREY))
    (tmp_path / "labels").write_bytes(idx(np.arange(24) % 3))
    options = ("--labels", tmp_path / "labels", "--steps", 1, "--levels", 2)
    does("fit", tmp_path / "images-idx3-ubyte", "--out", tmp_path / "run", *options)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["classes"] == ["0", "1", "2"]


def test_a_number_that_no_label_has_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "images.npz", x=np.repeat(GREY[:4], 6, 0), y=1 + np.arange(24) % 2)  # copies, too
    does("fit", tmp_path / "images.npz", "--out", tmp_path / "run", "--steps", 1, "--levels", 2)
    out = ("--out", tmp_path / "x.npy")
    assert "no training image is of class '0'" in fails(capsys, "sample", tmp_path / "run", "--label", "0", *out)
    does("show", tmp_path / "run", "-n", 2)
    assert "most held-out images are copies of training images" in capsys.readouterr().out


def test_what_is_of_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", x=GREY, y=np.arange(24))
    np.savez(tmp_path / "table.npz", x=GREY[0])
    np.save(tmp_path / "images.npy", GREY)
    np.save(tmp_path / "table.npy", GREY[0])
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "digits").write_bytes(idx(GREY))
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    for name in ("images.npz", "images.npy", "digits", ""):
        assert holds_images(tmp_path / name), name
    for name in ("table.npz", "table.npy", "table.csv", "damaged.npz", "absent.npy"):
        assert not holds_images(tmp_path / name), name
    assert not holds_images(tmp_path / "images.npz", "y")


def test_what_goes_wrong_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, out = run.parent / "pictures", tmp_path / "run"
    few = tmp_path / "few"
    save_png(few / "a.png", GREY[0])
    odd = tmp_path / "odd"
    save_png(odd / "a.png", GREY[0])
    save_png(odd / "b.png", GREY[1, :3])
    np.savez(tmp_path / "labels.npz", x=GREY, y=np.arange(23))
    np.save(tmp_path / "far.npy", GREY / 100.0)
    for arguments, words in (
        (("fit", few, "--out", out), "at least 10 images; got 1"),
        (("fit", odd, "--out", out), "one size; got 6×5"),
        (("fit", tmp_path / "labels.npz", "--out", out), "must have shape (24,), one for each image; got (23,)"),
        (("fit", tmp_path / "far.npy", "--out", out), "must lie in its value_range (0, 1)"),
        (("fit", pictures, "--out", out, "--levels", 1), "levels must be a whole number of at least 2"),
        (("fit", pictures, "--out", run, "--batch-size", 8), "options"),
        (("sample", run, "--out", tmp_path / "x.csv"), "must end in .npy, .npz or .png for images"),
        (("sample", run, "--label", "cats", "--out", tmp_path / "x.npy"), "one of dots, lines; got 'cats'"),
        (("sample", run, "--guidance", 1, "--out", tmp_path / "x.npy"), "guidance needs a class"),
        (("show", run, "-n", 0), "n must be a whole number of at least 1"),
        (("diagnose", run), "for tables, and"),
        (("logz", run), "for tables, and"),
        (("score", run, "x.csv"), "for tables, and"),
    ):
        assert words in fails(capsys, *arguments), arguments
    assert not (out / "run.json").exists()


def test_tables_have_no_labels_and_runs_no_two_kinds(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    table = tmp_path / "table"  # a run of a table, as far as images look at it
    table.mkdir()
    (table / "run.json").write_text("{}")
    (table / "training.ckpt").touch()
    labelled = ("fit", tmp_path / "table.csv", "--out", tmp_path / "new", "--labels", "y")
    assert "only images have labels" in fails(capsys, *labelled)
    assert "only images have classes" in fails(capsys, "sample", table, "--label", "a", "--out", "x.npy")
    assert "holds a run of a table" in fails(capsys, "fit", run.parent / "pictures", "--out", table)
    assert "holds a run of images" in fails(capsys, "fit", tmp_path / "table.csv", "--out", run)


def test_damaged_runs_are_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "images.ckpt").write_bytes(b"nothing")
    assert "images.ckpt" in fails(capsys, "show", tmp_path / "run")
    (tmp_path / "run" / "model.ebm").unlink()
    assert "no finished model" in fails(capsys, "show", tmp_path / "run")


def test_a_record_edited_by_hand_is_refused_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    edits = [{key: value for key, value in record.items() if key != name} for name in _RECORD]
    edits += [{**record, name: other} for name in _RECORD for other in (None, [1], {"a": 1})]
    edits += [{**record, "images": {**record["images"], name: "x"}} for name in _IMAGES]
    edits += [{**record, "class_counts": counts} for counts in ([22], [0, 0], [-1, 23])]
    edits += [{**record, "classes": ["one"]}, {**record, "images": {**record["images"], "size": [1, 5, 6]}}]
    for edit in edits:
        (copied / "run.json").write_text(json.dumps(edit))
        assert f"{copied} is damaged" in fails(capsys, "show", copied), edit
    (copied / "run.json").write_text(json.dumps({**record, "seconds": "long"}))
    more = ("fit", run.parent / "pictures", "--out", copied, "--steps", 3)
    assert f"{copied / 'run.json'} is damaged" in fails(capsys, *more)


def test_an_empty_record_does_not_block_a_whole_checkpoint(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (copied / "run.json").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"run.json is empty: settings that are not given now have their defaults"):
        does("fit", run.parent / "pictures", "--out", copied, "--steps", 3, "--levels", 4)
    assert json.loads((copied / "run.json").read_text())["steps"] == 3

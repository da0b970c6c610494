"""Paths at which nothing can be written or read: one sentence that names the path, in Python and in the shell."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import energyppl as ep
from energyppl.cli.main import main
from energyppl.errors import InvalidInput

LONG = "n" * 300
PLACES: dict[str, tuple[str, str]] = {  # below the folder, and what is said
    "a file for a folder": ("file/model", "what stands there is no folder: choose another path"),
    "a file far above": ("file/folder/model", "what stands there is no folder: choose another path"),
    "a folder": ("folder", "it is a folder: name a file"),
    "a long name": (LONG, "its name is too long: choose a shorter one"),
    "a long folder": (f"{LONG}/model", "its name is too long: choose a shorter one"),
    "links in a circle": ("circle/model", "what stands there is no folder: choose another path"),
}
WRITERS: dict[str, Callable[[Any], Any]] = {
    "a model": lambda path: ep.save(ep.EBM(ep.MLPEnergy(2, hidden=4, depth=1, levels=1)), path),
    "a checkpoint": lambda path: ep.save_checkpoint(path, {"x": 1}),
    "a picture": lambda path: ep.plots.save_figure(ep.plots.scatter_panels({"x": torch.zeros(2, 2)}, title=""), path),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    return tmp_path


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", PLACES)
def test_what_can_t_be_written_is_refused_by_name(place: str, writer: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    below, said = PLACES[place]
    with pytest.raises(InvalidInput) as caught:
        WRITERS[writer](folder / below)
    assert str(folder) in str(caught.value)
    assert said in str(caught.value)
    assert sorted(folder.rglob("*")) == before  # nothing is left over


@pytest.mark.parametrize("path", ["", "a\0b", b"model", 3, None])
@pytest.mark.parametrize("use", [*WRITERS.values(), ep.load, ep.load_checkpoint, ep.data.read_table, ep.tables.load])
def test_what_is_no_path_is_refused(use: Callable[[Any], Any], path: Any) -> None:
    with pytest.raises(InvalidInput, match=r"path must (be a text or a |name a file or a folder; got )"):
        use(path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_place_without_permission(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretended, since the tests may run as the system's administrator, who may write everywhere."""

    def forbidden(path: Any, *_: Any) -> int:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr("energyppl._files.os.open", forbidden)
    with pytest.raises(InvalidInput, match=r"model can't be used: (you have no permission|its file system)"):
        ep.save_checkpoint(tmp_path / "model", {"x": 1})


COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "fit into a file": (("fit", "t.csv", "--out", "file"), "file can't be used: what stands there is no folder"),
    "fit below a file": (("fit", "t.csv", "--out", "file/run"), "what stands there is no folder"),
    "fit into a long name": (("fit", "t.csv", "--out", LONG), "its name is too long"),
    "fit a long name": (("fit", f"{LONG}.csv", "--out", "run"), "its name is too long"),
    "fit into a circle": (("fit", "t.csv", "--out", "circle"), "can't be used"),
    "show a file": (("show", "file"), "there is no finished model in file"),
    "show a long name": (("show", LONG), "its name is too long"),
    "a demo into a file": (
        ("demo", "--out", "file", "--steps", "1"),
        "file can't be used: what stands there is no folder",
    ),
    "compare with a folder": (("compare", "t.csv", "folder"), "folder"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_say_it_in_a_sentence(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    np.savetxt("t.csv", np.random.default_rng(0).normal(size=(30, 2)), delimiter=",", header="a,b", comments="")
    arguments, said = COMMANDS[name]
    assert main([*arguments, "--quiet"] if name != "a demo into a file" else arguments) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("energyppl: "))
    assert said in line
    assert "Errno" not in line


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_an_option_that_is_no_path(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "t.csv", "--out", path])
    assert caught.value.code == 2
    assert f"argument --out: expected a path; got {path!r}" in capsys.readouterr().err

"""Run folders of images: what tells them from tables, and what the commands read and write there."""

import gzip
import json
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from energyppl._checks import check_count, check_positive, require_kinds
from energyppl.autodiff.devices import move_to
from energyppl.autodiff.private import has_fast_bfloat16
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.cli.runs import kept_settings, read_json
from energyppl.data.arrays import member_shapes
from energyppl.errors import CheckpointError, InvalidInput, first_line
from energyppl.models import RecoveryEBM, load, save

__all__ = [
    "KIND",
    "ImageRun",
    "ImageSettings",
    "holds_images",
    "image_settings",
    "is_image_run",
    "keep_image_run",
    "load_image_run",
    "require_table_run",
]

KIND = "images"
_RECORD: dict[str, Any] = {  # of what run.json says of a finished run
    "source": str,
    "classes": list[str],
    "class_counts": list[int],  # of the training images
    "images": dict[str, Any],
    "steps": int,
    "seconds": float,
    "stopped": str,
    "held_out_error": float,
}
_IMAGES: dict[str, Any] = {"training": int, "held_out": int, "size": list[int], "grey": int}


@dataclass(frozen=True)
class ImageSettings:
    """The options of ``energyppl fit`` for images; ``run.json`` keeps them.  None is what suits images."""

    array: str | None = None
    labels: str | None = None
    seed: int = 0
    steps: int | None = None
    levels: int = 50
    batch_size: int | None = None
    learning_rate: float | None = None
    bfloat16: bool | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "levels", "batch_size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), at_least=2 if name == "levels" else 1)
        check_count("seed", self.seed, at_least=0)
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)


@dataclass(frozen=True, eq=False)
class ImageRun:
    """A trained model of images, with some of the images."""

    ebm: RecoveryEBM
    held_out: Tensor  # (m, channels, height, width) in [0, 1]
    rows: Tensor  # (n, ...), training images, some of them if they are many
    classes: tuple[str, ...]
    record: dict[str, Any]


def holds_images(path: Path, array: str | None = None) -> bool:
    """Tell whether a path is of images and not a table: a folder, an IDX file, or an array of three dimensions or more.

    Only headers are read; what can't be read is left to the table's reader to refuse.
    """
    if path.is_dir():
        return True
    kind = path.suffix.lower()
    try:
        if kind == ".npz":
            with zipfile.ZipFile(path) as archive:
                shapes = member_shapes(archive)
            chosen = shapes.values() if array is None else [shapes[array]]
            return any(len(shape) >= 3 for shape in chosen)
        if kind == ".npy":
            return bool(np.load(path, mmap_mode="r", allow_pickle=False).ndim >= 3)
        if kind in (".csv", ".tsv", ".txt", ".parquet", ".xlsx"):
            return False
        with gzip.open(path) if kind == ".gz" else path.open("rb") as file:
            start = file.read(4)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError):
        return False
    return kind == ".idx" or (start[:2] == b"\0\0" and start[3:4] in (b"\x03", b"\x04"))


def is_image_run(run: Path) -> bool:
    """Tell whether a run's folder was made from images; a damaged ``run.json`` is left to others to refuse."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return (run / "images.ckpt").exists()
    return isinstance(record, dict) and record.get("kind") == KIND


def require_table_run(run: Path, command: str) -> None:
    """Refuse a run of images.

    Raises:
        InvalidInput: for one.
    """
    if is_image_run(run):
        raise InvalidInput(
            f"energyppl {command} is for tables, and {run} is a run of images: use energyppl show, or "
            f'energyppl.load("{run / "model.ebm"}") in Python'
        )


def image_settings(run: Path, chosen: dict[str, Any]) -> ImageSettings:
    """Put the settings chosen now on top of those that the run was begun with, and these on top of the defaults.

    Raises:
        InvalidInput: for a setting that images don't have, that is out of range or that a run was not begun with, or a
            run of a table.
        CheckpointError: if ``run.json`` is damaged.
    """
    usual = settings = ImageSettings(bfloat16=has_fast_bfloat16())
    path = run / "run.json"
    if (run / "training.ckpt").exists() and path.exists():
        if not is_image_run(run):
            raise InvalidInput(f"{run} holds a run of a table, and these are images: choose another folder")
        settings = kept_settings(path, usual)
    unknown = set(chosen) - {field.name for field in fields(ImageSettings)}
    if unknown:
        named = ", ".join(map(_option, sorted(unknown)))
        raise InvalidInput(f"{named} is for tables, and these are images: leave it out")
    # Which images and labels they are is compared by the checkpoint, not by how their files are named.
    odd = [
        name for name, value in chosen.items() if name not in ("array", "labels") and value != getattr(settings, name)
    ]
    if odd and settings is not usual:
        raise InvalidInput(
            f"{run} holds a run that was begun with other options ({', '.join(map(_option, odd))}), which images go on "
            "with: leave them out, or choose another folder"
        )
    return replace(settings, **chosen)


def _option(name: str) -> str:
    """Return a setting as the command line calls it."""
    return "--" + {"transforms": "transform"}.get(name, name).replace("_", "-")


def keep_image_run(run: Path, ebm: RecoveryEBM, held_out: Tensor, rows: Tensor) -> None:
    """Write a trained model and its images, each file whole or not at all."""
    save(ebm, run / "model.ebm")
    save_checkpoint(run / "images.ckpt", {"held_out": held_out, "rows": rows})


def load_image_run(run: Path, device: str | None = None) -> ImageRun:
    """Load what :func:`fit_images` kept, the model on a device, such as "cuda"; on the CPU if None.

    Raises:
        CheckpointError: if there is no finished model, or a file is damaged.
    """
    if not (run / "model.ebm").exists():
        raise CheckpointError(f"there is no finished model in {run}: give the same fit command again")
    ebm = load(run / "model.ebm")
    if device is not None:
        move_to(ebm, device)
    record = read_json(run / "run.json")
    tree = load_checkpoint(run / "images.ckpt")
    try:
        assert record is not None, "run.json is empty"
        require_kinds(record, _RECORD, every=True)
        require_kinds(record["images"], _IMAGES, every=True)
        held_out, rows = tree["held_out"], tree["rows"]
        if {held_out.shape[1:], rows.shape[1:]} != {ebm.event_shape} or len(held_out) < 2:
            raise ValueError("its images are of another size than its model")
        if not all(part.is_floating_point() and bool(torch.isfinite(part).all()) for part in (held_out, rows)):
            raise ValueError("its images are not finite")
        if len(record["classes"]) not in (0, ebm.net.classes) or list(ebm.event_shape) != record["images"]["size"]:
            raise ValueError("its record is of other images than its model")
        counts = record["class_counts"]
        if len(counts) != len(record["classes"]) or min(counts, default=0) < 0 or (counts and not any(counts)):
            raise ValueError("its counts are of other classes")
        return ImageRun(ebm, held_out, rows, tuple(record["classes"]), record)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{run} is damaged ({first_line(error)}): fit it again") from error

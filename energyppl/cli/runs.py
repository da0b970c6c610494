"""Run folders: what ``energyppl fit`` trains on a table and keeps, and what the other commands read.

``run.json`` is for people, and says which settings to go on with; ``training.ckpt`` continues an interrupted run bit
for bit; ``model.ckpt`` stands alone, as :mod:`energyppl.tables.storage` writes it.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from energyppl._files import locked, write_json
from energyppl._progress import doing
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.cli.endings import finished
from energyppl.data.tables import Table, read_table
from energyppl.errors import CheckpointError, InvalidInput, warn_user
from energyppl.integration.estimates import LogNormalizer
from energyppl.tables.conditional_model import ConditionalTableModel
from energyppl.tables.model import TableModel
from energyppl.tables.storage import load, save
from energyppl.tables.training import FitSettings, Prepared, prepare, require_same_run, train

__all__ = [
    "Settings",
    "begun",
    "damaged_json",
    "decimal_of_run",
    "fit_table",
    "interrupted",
    "kept_settings",
    "known_log_z",
    "load_any_run",
    "load_run",
    "read_json",
    "require_same_table",
    "seconds_before",
    "settings_for",
]

SettingsKind = TypeVar("SettingsKind")
_LOG_Z = "logz.json"


@dataclass(frozen=True)
class Settings(FitSettings):
    """The options of ``energyppl fit``; ``run.json`` keeps them.  None is what suits the number of coordinates."""

    array: str | None = None
    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    missing: str | None = None
    decimal: str = "."
    predict: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.array, str | None):
            raise InvalidInput(f"array must be the name of an array; got {self.array!r}")
        for name in ("columns", "drop", "predict"):
            chosen = getattr(self, name)
            if not isinstance(chosen, list | tuple | None) or not all(isinstance(one, str) for one in chosen or ()):
                raise InvalidInput(f"{name} must be names of columns; got {chosen!r}")
            object.__setattr__(self, name, None if chosen is None else tuple(chosen))

    def read(self, file: Path, like: Table | None = None) -> Table:
        """Read a table as these settings say; of the columns of another one if it is to be ``like`` it."""
        chosen: dict[str, Any] = {} if like is not None else {"columns": self.columns, "drop": self.drop}
        return read_table(file, array=self.array, missing=self.missing, decimal=self.decimal, like=like, **chosen)


def settings_for(run: Path, chosen: dict[str, Any]) -> Settings:
    """Put the settings chosen now on top of those that the run was begun with, and these on top of the defaults.

    A ``run.json`` that is empty, as a crash of the machine may leave it, is passed over with a warning.

    Raises:
        CheckpointError: if ``run.json`` is damaged.
        InvalidInput: for a setting out of its range.
    """
    settings, path = Settings(), run / "run.json"
    if (run / "training.ckpt").exists() and path.exists():
        settings = kept_settings(path, settings)
    return replace(settings, **chosen)


def kept_settings(path: Path, usual: SettingsKind) -> SettingsKind:
    """Return the settings that ``run.json`` keeps; the usual ones, with a warning, where a crash left it empty."""
    kept = read_json(path)
    if kept is None:
        warn_user(f"{path} is empty: settings that are not given now have their defaults")
        return usual
    with damaged_json(path):
        return type(usual)(**kept["settings"])


def decimal_of_run(run: Path) -> str:
    """Return the mark of decimals in the table that a run was begun with; a point if ``run.json`` is lost."""
    path = run / "run.json"
    return kept_settings(path, Settings()).decimal if path.exists() else "."


def fit_table(
    file: Path, run: Path, settings: Settings, *, device: str | None = None, progress: bool = True
) -> TableModel:
    """Train on the table in ``file`` and keep everything in ``run``; go on if it holds a checkpoint.

    A finished run whose ``settings`` ask for more steps than it made is extended, its learning rate falling anew.

    Returns:
        The model as ``model.ckpt`` has it, whose ``record`` is that in ``run.json``.

    Raises:
        InvalidInput: for a table that can't be used; nothing is written then.
        CheckpointError: if the run holds a damaged checkpoint, or one of another table or other settings.
        EnergyPPLError: if another process holds the run.
        TrainingDiverged: see :func:`energyppl.fit`.
    """
    with doing(f"reading {file}", show=progress):
        table = settings.read(file)
        prepared = prepare(table, settings.transforms)
    settings = replace(settings, **_numbers(settings.resolved(prepared.transform.width)))
    with locked(run):
        return _train(table, prepared, run, settings, device, progress)


def _numbers(settings: FitSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("steps", "batch_size")}


def _train(
    table: Table, prepared: Prepared, run: Path, settings: Settings, device: str | None, progress: bool
) -> TableModel:
    """Train, and keep the model and the record."""
    checkpoint = run / "training.ckpt"
    before = _steps_made(checkpoint) if checkpoint.exists() else None
    if before is not None:
        require_same_table(run / "run.json", table)
    earlier = 0.0 if before is None else seconds_before(run / "run.json")
    record = begun(table, prepared, settings, earlier)
    own = FitSettings(**{field.name: getattr(settings, field.name) for field in fields(FitSettings)})
    extended = None if before is None else _extended(checkpoint, prepared, own, device)
    # Of a checkpoint nothing is written until it turned out to be of this table and these settings.  Then run.json
    # comes first: wherever that stops, it asks for steps that the checkpoint has or can still be given.
    if before is None or extended is not None:
        write_json(run / "run.json", record)
    if extended is not None:
        save_checkpoint(checkpoint, extended)
    return finished(
        run,
        {**record, "steps_before": before or 0},
        lambda: train(table, prepared, own, checkpoint=checkpoint, device=device, progress=progress),
    )


def _digest(table: Table) -> str:
    """Return what tells a table from others: of its values in their order, names and categories."""
    names = json.dumps([table.columns, [list(map(str, labels)) for labels in table.labels]])
    return blake2b(np.ascontiguousarray(table.values).tobytes() + names.encode(), digest_size=16).hexdigest()


def require_same_table(path: Path, table: Table) -> None:
    """Require the table that a run was begun with: the same coordinates may stand for other values.

    Raises:
        CheckpointError: for another one.
    """
    kept = read_json(path) if path.exists() else None
    if kept is not None and kept.get("digest") not in (None, _digest(table)):
        raise CheckpointError(
            f"{path.parent} is a run of another table, {kept.get('source')}; got {table.source}, whose values, "
            "columns, categories or order differ: choose another folder"
        )


def begun(table: Table, prepared: Prepared, settings: Settings, seconds: float) -> dict[str, Any]:
    """Return the record of a training that begins, or goes on after ``seconds``."""
    return {
        "status": "training",
        "source": table.source,
        "rows": {
            "training": len(prepared.rows),
            "validation": 0 if prepared.validation is None else len(prepared.validation),
            "held_out": len(prepared.held_out),
        },
        "columns": list(table.columns),
        "transforms": prepared.transform.words(),
        "missing": int(table.missing.sum()),
        "digest": _digest(table),
        "settings": asdict(settings),
        "seconds": seconds,
    }


def _extended(checkpoint: Path, prepared: Prepared, settings: FitSettings, device: str | None) -> dict[str, Any] | None:
    """Return a finished run's checkpoint with more steps to make, if that is what the settings ask for.

    Raises:
        InvalidInput: if they ask for fewer than it was begun with.
        CheckpointError: if it is damaged, or one of another table or other settings.
    """
    tree = load_checkpoint(checkpoint)
    try:
        asked, options = settings.steps, tree["options"]
        if asked is None or asked == options["steps"]:
            return None
        if asked < options["steps"]:
            raise InvalidInput(
                f"steps must be more than the {options['steps']} that the run was begun with; got {asked}: leave "
                "--steps out to go on, or choose another folder"
            )
        require_same_run(prepared, replace(settings, steps=options["steps"]), checkpoint, device=device)
        # The early stop begins anew: what was clearly worse may come back once the rate is high again.
        more = {**options, "steps": asked, "evaluate_every": min(asked, max(10, asked // 40))}
        return {**tree, "options": more, "stopped": "", "early": {**tree["early"], "stale": 0}}
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint} is damaged ({error}): use another copy or begin again") from error


def seconds_before(path: Path) -> float:
    """Return the time that earlier sessions of a run took, 0 where ``run.json`` was lost."""
    kept = read_json(path) if path.exists() else None
    if kept is None:
        return 0.0
    with damaged_json(path):
        seconds = float(kept["seconds"])
        if not (math.isfinite(seconds) and seconds >= 0.0):
            raise ValueError(f"seconds is {seconds}")
    return seconds


def interrupted(run: Path) -> str:
    """Tell somebody who stopped ``fit`` where the checkpoint is, and how to go on."""
    checkpoint = run / "training.ckpt"
    if not checkpoint.exists():
        return f"stopped before the first checkpoint; nothing to go on from in {run} yet"
    return f"stopped; {checkpoint} holds the first {_steps_made(checkpoint)} steps: the same command goes on from there"


def load_run(run: Path, *, device: str | None = None) -> TableModel:
    """Load the model that :func:`fit_table` kept in ``run``.

    Raises:
        InvalidInput: if the run predicts some columns from others, which is no density of rows.
        CheckpointError: if there is no finished model, or its file is damaged or something else.
    """
    model = load_any_run(run, device=device)
    if isinstance(model, ConditionalTableModel):
        raise InvalidInput(
            f"{run} predicts {', '.join(model.targets)} from other columns and has no density of whole rows: use "
            f"energyppl predict {run} TABLE --out FILE"
        )
    return model


def load_any_run(run: Path, *, device: str | None = None) -> TableModel | ConditionalTableModel:
    """Load the model of a run of either kind, as :func:`load_run`."""
    path = run / "model.ckpt"
    if not path.exists():
        unfinished = (run / "training.ckpt").exists()
        why = (
            "its training has not finished: give the same fit command again"
            if unfinished
            else "first run energyppl fit"
        )
        raise CheckpointError(f"there is no finished model in {run}; {why}")
    return load(path, device=device)


def known_log_z(
    run: Path,
    model: TableModel,
    *,
    seed: int,
    tolerance: float | None = None,
    progress: bool = False,
    anew: bool = False,
) -> LogNormalizer:
    """Return log Z of a model's coordinates from ``logz.json`` if it is of this model, else estimate and keep it.

    Raises:
        CheckpointError: if the file is damaged.
    """
    found = None if anew else _kept_log_z(run, model)
    if found is None:
        torch.manual_seed(seed)
        with doing("estimating log Z", show=progress and tolerance is None):  # in one batch of runs
            found = model.log_normalizer(tolerance=tolerance, progress=progress and tolerance is not None)
        write_json(run / _LOG_Z, {"model": model.ebm.checksum(), "log_z": found.to_dict()})
        save(model, run / "model.ckpt")  # which knows it too from now on
    return found


def _kept_log_z(run: Path, model: TableModel) -> LogNormalizer | None:
    """Return log Z from ``logz.json``, if it is there and of this very model."""
    path = run / _LOG_Z
    kept = read_json(path) if path.exists() else None
    if kept is None:
        return None
    with damaged_json(path):
        if kept["model"] != model.ebm.checksum():
            return None
        found = LogNormalizer.from_dict(kept["log_z"])
        if not (found.lower <= found.estimate <= found.upper and found.standard_error >= 0.0):
            raise ValueError(f"log Z = {found.estimate} does not lie within {found.lower} to {found.upper}")
        if not math.isfinite(found.estimate):
            raise ValueError(f"log Z = {found.estimate}")
    return found


# --- Files ---


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file that a command wrote; None if it is empty, as a crash of the machine may leave it.

    Raises:
        CheckpointError: if there is none, or it holds anything else than an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}: first run the command that writes it") from None
    except ValueError as error:
        raise _damage(path, error) from error
    if not text.strip("\0 \t\r\n"):
        return None
    with damaged_json(path):
        found = json.loads(text)
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}")
    return found


@contextmanager
def damaged_json(path: Path) -> Iterator[None]:
    """Turn whatever using a JSON file raises inside into a CheckpointError that names the file."""
    try:
        yield
    except (AttributeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damage(path, error) from error


def _damage(path: Path, error: Exception) -> CheckpointError:
    reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return CheckpointError(f"{path} is damaged ({reason}): undo what was changed in it, or move it away")


def _steps_made(checkpoint: Path) -> int:
    state = load_checkpoint(checkpoint)
    if not isinstance(state, dict) or not isinstance(state.get("records"), list):
        raise CheckpointError(f"{checkpoint} is not a training checkpoint: it belongs to something else, move it away")
    return len(state["records"])

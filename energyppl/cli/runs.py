"""Run folders: what ``energyppl fit`` trains on a table and keeps, and what the other commands read.

``run.json`` is for people, and says which settings to go on with; ``training.ckpt`` continues an interrupted run bit
for bit; ``model.ckpt`` stands alone: weights, scaling, grids of discrete columns, held-out rows, training curves, and
the record of the training.
"""

import json
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from energyppl._checks import check_count, check_positive
from energyppl._files import locked, whole_file, write_csv, write_json
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.data.tables import Table, dequantize, read_table, requantize, require_different_columns
from energyppl.errors import CheckpointError, EnergyPPLError, InvalidInput, TrainingDiverged, first_line, warn_user
from energyppl.inference.training.fit import fit
from energyppl.inference.training.history import History
from energyppl.inference.training.options import TrainingOptions, suited_options
from energyppl.models import MLPEnergy, RecoveryEBM
from energyppl.models._scaling import robust_scaling
from energyppl.schedule import NoiseSchedule

__all__ = [
    "FittedTable",
    "Settings",
    "damaged_json",
    "fit_table",
    "interrupted",
    "load_run",
    "read_json",
    "settings_for",
    "write_samples",
]

_FORMAT = "energyppl-table-3"
_CURVES = ("step", "loss", "gradient_norm", "held_out")
_CURVES_OF_SOME = ("energy_gap", "acceptance", "denoising", "tie")  # objectives
_RECORD = ("source", "rows", "columns", "dequantized", "spikes", "settings", "steps", "seconds", "stopped")
_KEPT_ROWS = 4000  # training rows kept with the model, for its pictures


@dataclass(frozen=True)
class Settings:
    """The options of ``energyppl fit``; ``run.json`` keeps them.  None is what suits the number of columns."""

    array: str | None = None
    seed: int = 0
    steps: int | None = None
    levels: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "levels", "batch_size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("seed", self.seed, at_least=0)
        if not isinstance(self.array, str | None):
            raise InvalidInput(f"array must be the name of an array; got {self.array!r}")
        if self.learning_rate is not None:
            if not isinstance(self.learning_rate, (int, float)) or isinstance(self.learning_rate, bool):
                raise InvalidInput(f"learning_rate must be a number; got {self.learning_rate!r}")
            check_positive("learning_rate", self.learning_rate)

    def resolved(self, columns: int) -> "Settings":
        """Return the settings for a table of so many columns, with a number wherever there was None."""
        steps, levels, batch_size = (1500, 6, 512) if columns <= 2 else (2000, 20, 256)
        return replace(
            self,
            steps=self.steps or steps,
            levels=self.levels or levels,
            batch_size=self.batch_size or batch_size,
        )


@dataclass(frozen=True, eq=False)
class FittedTable:
    """A trained model of a table, with the scaling and the grids that lead back to the table's units."""

    ebm: RecoveryEBM
    columns: tuple[str, ...]
    loc: NDArray[np.float64]  # (d,)
    scale: NDArray[np.float64]  # (d,)
    grids: tuple[NDArray[np.float64], ...]  # the values of discrete columns, empty for continuous ones
    rows: NDArray[np.float64]  # (n, d), training rows in the table's units, some of them if they are many
    held_out: NDArray[np.float64]  # (m, d), in the table's units
    curves: dict[str, NDArray[np.float64]]  # of the training, by name
    record: dict[str, Any] = field(default_factory=dict)  # of the training, as in run.json

    def sample(self, count: int, *, raw: bool = False) -> NDArray[np.float64]:
        """Draw samples ``(count, d)`` in the table's units, discrete columns rounded to their values unless ``raw``."""
        check_count("the number of samples", count)
        x = self.ebm.sample((count,)).double().cpu().numpy() * self.scale + self.loc
        if not np.isfinite(x).all():
            raise EnergyPPLError("the model's samples are not finite: its training went wrong, fit it again")
        return x if raw else requantize(x, self.grids)


def settings_for(run: Path, chosen: dict[str, Any]) -> Settings:
    """Put the settings chosen now on top of those that the run was begun with, and these on top of the defaults.

    A ``run.json`` that is empty, as a crash of the machine may leave it, is passed over with a warning.

    Raises:
        CheckpointError: if ``run.json`` is damaged.
        InvalidInput: for a setting out of its range.
    """
    settings, path = Settings(), run / "run.json"
    if (run / "training.ckpt").exists() and path.exists():
        kept = read_json(path)
        if kept is None:
            warn_user(f"{path} is empty: settings that are not given now have their defaults")
        else:
            with damaged_json(path):
                settings = Settings(**kept["settings"])
    return replace(settings, **chosen)


def fit_table(file: Path, run: Path, settings: Settings, *, progress: bool = True) -> tuple[dict[str, Any], Table]:
    """Train on the table in ``file`` and keep everything in ``run``; go on if it holds a checkpoint.

    Returns:
        The record in ``run.json`` at the end, and the table as it was read.

    Raises:
        InvalidInput: for a table that can't be used; nothing is written then.
        CheckpointError: if the run holds a damaged checkpoint, or one of another table or other settings.
        EnergyPPLError: if another process holds the run.
        TrainingDiverged: see :func:`energyppl.fit`.
    """
    table = read_table(file, array=settings.array)
    require_different_columns(table)
    settings = settings.resolved(len(table.columns))
    prepared = _prepare(table)
    with locked(run):
        return _train(table, prepared, run, settings, progress), table


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A table's numbers as they are trained on."""

    standard: torch.Tensor  # (n, d), dequantized and standardized, float32
    loc: NDArray[np.float64]  # (d,)
    scale: NDArray[np.float64]  # (d,)
    rows: NDArray[np.int64]  # numbers of the training rows
    held_out: NDArray[np.int64]


def _prepare(table: Table) -> _Prepared:
    """Dequantize, split and standardize, by fixed seeds: a continued run must see the same numbers in the same rows."""
    spread = dequantize(table, torch.Generator().manual_seed(0)).values
    order = np.random.default_rng(0).permutation(len(spread))
    aside = min(max(2, len(spread) // 10), 10_000)
    held_out, rows = order[:aside], order[aside:]
    with np.errstate(over="ignore", under="ignore"):
        loc, scale = spread[rows].mean(0), spread[rows].std(0)
    for what, bad in (("vary in the training rows", ~(scale > 0)), ("have a finite variance", ~np.isfinite(scale))):
        if bad.any():
            names = ", ".join(repr(name) for name, is_bad in zip(table.columns, bad, strict=True) if is_bad)
            raise InvalidInput(f"every column of {table.source} must {what}; {names} doesn't: drop or rescale it")
    robust = robust_scaling(torch.as_tensor(spread[rows]), torch.as_tensor(loc), torch.as_tensor(scale), table.columns)
    loc, scale = (value.numpy() for value in robust)
    return _Prepared(torch.as_tensor((spread - loc) / scale, dtype=torch.float32), loc, scale, rows, held_out)


def _train(table: Table, prepared: _Prepared, run: Path, settings: Settings, progress: bool) -> dict[str, Any]:
    """Train, and keep the model and the record."""
    pyro.set_rng_seed(settings.seed)
    assert settings.levels is not None
    ebm, checkpoint = _build(len(table.columns), settings.levels), run / "training.ckpt"
    before = _steps_made(checkpoint) if checkpoint.exists() else None
    earlier = 0.0 if before is None else _seconds(run / "run.json")
    record = _begun(table, prepared, settings, earlier)
    if before is None:  # else nothing is written until the checkpoint turned out to be of this table and these settings
        write_json(run / "run.json", record)
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "a few rows rule")  # which was said by the column's name
            history = fit(
                ebm,
                prepared.standard[prepared.rows],
                held_out=prepared.standard[prepared.held_out],
                options=_options(settings, ebm),
                checkpoint=checkpoint,
                progress=progress,
            )
    except TrainingDiverged as error:
        write_json(run / "run.json", {**record, "status": f"diverged: {error}"})
        raise
    record |= {
        "status": "finished",
        "seconds": round(record["seconds"] + time.perf_counter() - began, 2),
        "steps": len(history.records),
        "steps_before": before or 0,
        "stopped": history.stopped,
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
    }
    _save(run, _fitted(ebm, table, prepared, history, record))
    write_json(run / "run.json", record)
    return record


def _begun(table: Table, prepared: _Prepared, settings: Settings, seconds: float) -> dict[str, Any]:
    """Return the record of a training that begins, or goes on after ``seconds``."""
    return {
        "status": "training",
        "source": table.source,
        "rows": {"training": len(prepared.rows), "held_out": len(prepared.held_out)},
        "columns": list(table.columns),
        "dequantized": {n: gap for n, gap in zip(table.columns, table.discrete, strict=True) if gap},
        "spikes": table.spikes(),
        "settings": asdict(settings),
        "seconds": seconds,
    }


def _fitted(
    ebm: RecoveryEBM, table: Table, prepared: _Prepared, history: History, record: dict[str, Any]
) -> FittedTable:
    """Return the trained model with all that the other commands need."""
    rows, held_out = (table.values[index] for index in (prepared.rows[:_KEPT_ROWS], prepared.held_out))
    recorded = history.records[-1].values if history.records else {}
    kept = [*_CURVES, *(name for name in _CURVES_OF_SOME if name in recorded)]
    curves = {name: history.column(name) for name in kept}
    scaling = (prepared.loc, prepared.scale, table.grids)
    return FittedTable(ebm, table.columns, *scaling, rows, held_out, curves, record)


def _options(settings: Settings, ebm: RecoveryEBM) -> TrainingOptions:
    assert settings.steps is not None
    assert settings.batch_size is not None
    return replace(
        suited_options(ebm.default_objective(), ebm),
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        evaluate_every=min(settings.steps, max(10, settings.steps // 40)),
        patience=8,  # a fifth of the run: a small table is soon learned by heart
    )


def _seconds(path: Path) -> float:
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


def load_run(run: Path) -> FittedTable:
    """Load the model that :func:`fit_table` kept in ``run``.

    Raises:
        CheckpointError: if there is no finished model, or its file is damaged or something else.
    """
    path = run / "model.ckpt"
    if not path.exists():
        unfinished = (run / "training.ckpt").exists()
        why = (
            "its training has not finished: give the same fit command again"
            if unfinished
            else "first run energyppl fit"
        )
        raise CheckpointError(f"there is no finished model in {run}; {why}")
    tree = load_checkpoint(path)
    try:
        if tree["format"] != _FORMAT:
            raise ValueError(f"its format is {tree['format']!r}")
        columns = tuple(str(name) for name in tree["columns"])
        size = len(columns)
        loc, scale, rows, held_out = (tree[name].double().numpy() for name in ("loc", "scale", "rows", "held_out"))
        grids = tuple(grid.double().numpy() for grid in tree["grids"])
        widths = {size, len(loc), len(scale), len(grids), rows.shape[1], held_out.shape[1]}
        if len(widths) != 1 or len(held_out) < 2 or len(rows) < 2:
            raise ValueError(f"its parts are of different widths, {sorted(widths)}")
        ebm = _build(size, tree["levels"])
        ebm.load_state_dict(tree["weights"])
        if not all(bool(torch.isfinite(value).all()) for value in ebm.state_dict().values()):
            raise ValueError("its weights are not finite")
        some = [name for name in _CURVES_OF_SOME if name in tree["curves"]]
        curves = {name: tree["curves"][name].numpy() for name in (*_CURVES, *some)}
        record = {name: tree["record"][name] for name in _RECORD}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path} is not a model that energyppl fit made ({reason}): fit it again") from error
    return FittedTable(ebm, columns, loc, scale, grids, rows, held_out, curves, record)


def write_samples(fitted: FittedTable, count: int, out: Path, *, raw: bool = False) -> None:
    """Write samples ``(count, d)`` in the table's units to a ``.npy``, ``.npz`` or ``.csv`` file, whole or not at all.

    Raises:
        InvalidInput: for another kind of file, or a count below one.
    """
    kind = out.suffix.lower()
    if kind not in (".npy", ".npz", ".csv"):
        raise InvalidInput(f"{out} must end in .npy, .npz or .csv; got {out.suffix or 'no ending'!r}")
    values = fitted.sample(count, raw=raw)
    if kind == ".csv":
        write_csv(out, fitted.columns, values.tolist())
        return
    with whole_file(out) as file:
        if kind == ".npy":
            np.save(file, values, allow_pickle=False)
        else:
            np.savez(file, values=values, columns=np.array(fitted.columns))


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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damage(path, error) from error


def _damage(path: Path, error: Exception) -> CheckpointError:
    reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return CheckpointError(f"{path} is damaged ({reason}): undo what was changed in it, or move it away")


def _build(size: int, levels: int) -> RecoveryEBM:
    if size <= 2:
        return RecoveryEBM(MLPEnergy((size,), levels=levels), NoiseSchedule.cosine(levels))
    # In many columns the edges and spikes of a table are too many to be learned to a hundredth of its spread.
    return RecoveryEBM(MLPEnergy((size,)), NoiseSchedule.cosine(levels, log_snr_max=4.6, log_snr_min=-6.0))


def _save(run: Path, fitted: FittedTable) -> None:
    tree = {
        "format": _FORMAT,
        "columns": list(fitted.columns),
        "levels": fitted.ebm.schedule.levels,
        "weights": dict(fitted.ebm.state_dict()),
        "loc": torch.as_tensor(fitted.loc),
        "scale": torch.as_tensor(fitted.scale),
        "grids": [torch.as_tensor(grid) for grid in fitted.grids],
        "rows": torch.as_tensor(fitted.rows),
        "held_out": torch.as_tensor(fitted.held_out),
        "curves": {name: torch.as_tensor(values) for name, values in fitted.curves.items()},
        "record": fitted.record,
    }
    save_checkpoint(run / "model.ckpt", tree)


def _steps_made(checkpoint: Path) -> int:
    state = load_checkpoint(checkpoint)
    if not isinstance(state, dict) or not isinstance(state.get("records"), list):
        raise CheckpointError(f"{checkpoint} is not a training checkpoint: it belongs to something else, move it away")
    return len(state["records"])

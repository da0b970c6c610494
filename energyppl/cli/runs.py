"""A run folder: what ``energyppl fit`` trains on a table and keeps, and what ``sample`` and ``show`` read from it.

``run.json`` is for people (and says which settings to go on with), ``training.ckpt`` continues an interrupted run bit
for bit, ``model.ckpt`` stands alone: weights, scaling, grids of discrete columns, held-out rows, training curves.
"""

import csv
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from energyppl import plots
from energyppl._checks import check_count, check_positive
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.data.tables import Table, dequantize, read_table, requantize
from energyppl.errors import CheckpointError, EnergyPPLError, InvalidInput, TrainingDiverged
from energyppl.inference.training.fit import TrainingOptions, fit
from energyppl.inference.training.history import History
from energyppl.metrics.two_sample import energy_distance_test
from energyppl.models import MLPEnergy, RecoveryEBM
from energyppl.schedule import NoiseSchedule

__all__ = [
    "FittedTable",
    "Settings",
    "fit_table",
    "interrupted",
    "load_run",
    "settings_for",
    "show_run",
    "write_samples",
]

_FORMAT = "energyppl-table-2"
_CURVES = ("step", "energy_gap", "acceptance", "gradient_norm", "held_out")
_KEPT_ROWS = 4000  # training rows kept with the model, for its pictures


@dataclass(frozen=True)
class Settings:
    """What a user can choose for ``energyppl fit``; kept in ``run.json``."""

    array: str | None = None
    seed: int = 0
    steps: int = 1500
    levels: int = 6
    batch_size: int = 512
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "levels", "batch_size"):
            check_count(name, getattr(self, name))
        check_count("seed", self.seed, at_least=0)
        if self.learning_rate is not None:
            if not isinstance(self.learning_rate, (int, float)):
                raise InvalidInput(f"learning_rate must be a number; got {self.learning_rate!r}")
            check_positive("learning_rate", self.learning_rate)


@dataclass(frozen=True, eq=False)
class FittedTable:
    """A trained model of a table, with what it takes to speak the table's own units."""

    ebm: RecoveryEBM
    columns: tuple[str, ...]
    loc: NDArray[np.float64]  # (d,)
    scale: NDArray[np.float64]  # (d,)
    grids: tuple[NDArray[np.float64], ...]  # the values of discrete columns, empty for continuous ones
    rows: NDArray[np.float64]  # (n, d), training rows in the table's units, some of them if they are many
    held_out: NDArray[np.float64]  # (m, d), in the table's units
    curves: dict[str, NDArray[np.float64]]

    def sample(self, count: int, *, raw: bool = False) -> NDArray[np.float64]:
        """Samples ``(count, d)`` in the table's units; discrete columns rounded to their values unless ``raw``."""
        check_count("the number of samples", count)
        x = self.ebm.sample((count,)).double().cpu().numpy() * self.scale + self.loc
        if not np.isfinite(x).all():
            raise EnergyPPLError("the model's samples are not finite: its training went wrong, fit it again")
        return x if raw else requantize(x, self.grids)


def settings_for(run: Path, chosen: dict[str, Any]) -> Settings:
    """The settings chosen now, on top of those that the run was begun with, on top of the defaults.

    Raises:
        CheckpointError: if ``run.json`` is not one of ours.
        InvalidInput: for a setting out of its range.
    """
    kept: dict[str, Any] = {}
    if (run / "training.ckpt").exists() and (run / "run.json").exists():
        kept = _read_json(run)["settings"]
    try:
        return Settings(**{**kept, **chosen})
    except TypeError as error:
        raise CheckpointError(f"{run / 'run.json'} has other settings than this version's ({error})") from error


def fit_table(file: Path, run: Path, settings: Settings, *, progress: bool = True) -> tuple[dict[str, Any], Table]:
    """Train on the table in ``file`` and keep everything in ``run``; go on if it holds a checkpoint.

    Returns:
        What ``run.json`` says at the end, and the table as it was read.

    Raises:
        InvalidInput: for a table that can't be used; nothing is written then.
        CheckpointError: if the run holds a damaged checkpoint, or one of another table or other settings.
        TrainingDiverged: see :func:`energyppl.fit`.
    """
    table = read_table(file, array=settings.array)
    # Fixed seeds: a continued run must see the same numbers in the same rows.
    spread = dequantize(table, torch.Generator().manual_seed(0)).values
    order = np.random.default_rng(0).permutation(len(spread))
    aside = min(max(2, len(spread) // 10), 10_000)
    held_out, rows = order[:aside], order[aside:]
    loc, scale = spread[rows].mean(0), spread[rows].std(0)
    still = [repr(name) for name, sd in zip(table.columns, scale, strict=True) if not sd > 0]
    if still:
        raise InvalidInput(f"{table.source} must vary in the training rows; constant there: {', '.join(still)}")
    standard = torch.as_tensor((spread - loc) / scale, dtype=torch.float32)

    pyro.set_rng_seed(settings.seed)
    ebm = _build(len(table.columns), settings.levels)
    options = TrainingOptions(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        evaluate_every=min(settings.steps, max(10, settings.steps // 40)),
        patience=8,  # a fifth of the run: a small table is soon learned by heart
    )
    checkpoint = run / "training.ckpt"
    before = _steps_made(checkpoint) if checkpoint.exists() else None
    record: dict[str, Any] = {
        "status": "training",
        "source": table.source,
        "rows": {"training": len(rows), "held_out": len(held_out)},
        "columns": list(table.columns),
        "dequantized": {n: gap for n, gap in zip(table.columns, table.discrete, strict=True) if gap},
        "spikes": table.spikes(),
        "settings": asdict(settings),
        "seconds": 0.0,
    }
    if before is not None:
        # Nothing is written until the checkpoint has turned out to belong to this table and these settings.
        record["seconds"] = _read_json(run).get("seconds", 0.0) if (run / "run.json").exists() else 0.0
    else:
        run.mkdir(parents=True, exist_ok=True)
        _write_json(run, record)
    began = time.perf_counter()
    try:
        history = fit(
            ebm,
            standard[rows],
            held_out=standard[held_out],
            options=options,
            checkpoint=checkpoint,
            progress=progress,
        )
    except TrainingDiverged as error:
        _write_json(run, {**record, "status": f"diverged: {error}"})
        raise
    record["seconds"] = round(record["seconds"] + time.perf_counter() - began, 2)
    record |= {
        "status": "finished",
        "steps": len(history.records),
        "steps_before": before or 0,
        "stopped": history.stopped,
    }
    record["versions"] = {"torch": torch.__version__, "numpy": np.__version__}
    kept = rows[:_KEPT_ROWS]
    fitted = FittedTable(
        ebm, table.columns, loc, scale, table.grids, table.values[kept], table.values[held_out], _curves(history)
    )
    _save(run, fitted)
    _write_json(run, record)
    return record, table


def interrupted(run: Path) -> str:
    """What to tell somebody who stopped ``fit``: where the checkpoint is, and how to go on."""
    checkpoint = run / "training.ckpt"
    if not checkpoint.exists():
        return f"stopped before the first checkpoint; nothing to go on from in {run} yet"
    return f"stopped; {checkpoint} holds the first {_steps_made(checkpoint)} steps: the same command goes on from there"


def load_run(run: Path) -> FittedTable:
    """The model that :func:`fit_table` kept in ``run``.

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
        curves = {name: tree["curves"][name].numpy() for name in _CURVES}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is not a model that energyppl fit made ({reason}): fit it again") from error
    return FittedTable(ebm, columns, loc, scale, grids, rows, held_out, curves)


def write_samples(fitted: FittedTable, count: int, out: Path, *, raw: bool = False) -> None:
    """Write samples ``(count, d)`` in the table's units to a ``.npy``, ``.npz`` or ``.csv`` file, whole or not at all.

    Raises:
        InvalidInput: for another kind of file, or a count below one.
    """
    kind = out.suffix.lower()
    if kind not in (".npy", ".npz", ".csv"):
        raise InvalidInput(f"{out} must end in .npy, .npz or .csv; got {out.suffix or 'no ending'!r}")
    values = fitted.sample(count, raw=raw)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    if kind == ".csv":
        with part.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(fitted.columns)
            writer.writerows(values.tolist())
    else:
        with part.open("wb") as file:
            if kind == ".npy":
                np.save(file, values, allow_pickle=False)
            else:
                np.savez(file, values=values, columns=np.array(fitted.columns))
    part.replace(out)


def show_run(run: Path, *, count: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Compare held-out rows with samples, draw pictures, and write both into ``run``.

    Args:
        run: made by :func:`fit_table`.
        count: samples to draw.
        seed: of the samples.

    Returns:
        What was trained and how it went, as in ``run.json``; for each column the mean, the standard deviation and three
        quantiles of the held-out rows and the samples; the largest difference of correlations, with its columns; a
        two-sample test in standardized coordinates.
    """
    fitted, record = load_run(run), _read_json(run)
    pyro.set_rng_seed(seed)
    samples = fitted.sample(count)
    report = {**record, **_compare(fitted, samples)}
    step = fitted.curves["step"]
    titles = {
        "loss: energy gap, nats": "energy_gap",
        "acceptance": "acceptance",
        "gradient norm": "gradient_norm",
        "held-out score error": "held_out",
    }
    name = Path(str(record["source"])).name
    figures = {
        "pairs.png": plots.pair_plot(fitted.rows, samples, fitted.columns, title=name),
        "training.png": plots.training_curves(
            {title: (step, fitted.curves[key]) for title, key in titles.items()}, title=f"{name}: training"
        ),
    }
    report["pictures"] = [str(plots.save_figure(figure, run / file)) for file, figure in figures.items()]
    _write_json(run, report, "report.json")
    return report


def _compare(fitted: FittedTable, samples: NDArray[np.float64]) -> dict[str, Any]:
    sides = {"held_out": fitted.held_out, "samples": samples}
    columns = {}
    for j, name in enumerate(fitted.columns):
        columns[name] = {
            side: dict(
                zip(
                    ("mean", "sd", "5%", "50%", "95%"),
                    [float(x[:, j].mean()), float(x[:, j].std()), *np.quantile(x[:, j], [0.05, 0.5, 0.95]).tolist()],
                    strict=True,
                )
            )
            for side, x in sides.items()
        }
    found: dict[str, Any] = {"compared": columns}
    if len(fitted.columns) > 1:
        with np.errstate(invalid="ignore", divide="ignore"):  # a rare value can be missing from few held-out rows
            here, there = (np.corrcoef(x.T) for x in sides.values())
        difference = np.nan_to_num(np.abs(here - there))
        i, j = divmod(int(difference.argmax()), len(difference))
        found["largest_correlation_difference"] = {
            "columns": [fitted.columns[i], fitted.columns[j]],
            "held_out": float(np.nan_to_num(here[i, j])),
            "samples": float(np.nan_to_num(there[i, j])),
            "standard_error": 1.0 / math.sqrt(len(fitted.held_out)),
        }
    x, y = (torch.as_tensor((v[:1000] - fitted.loc) / fitted.scale) for v in sides.values())
    test = energy_distance_test(x, y)
    found["energy_distance"] = {"statistic": test.statistic, "p_value": test.p_value, "rows": [len(x), len(y)]}
    return found


def _build(size: int, levels: int) -> RecoveryEBM:
    # In many columns the edges and spikes of a table are too many to be learned to a hundredth of its spread.
    sharpest = 9.8 if size <= 2 else 4.6
    return RecoveryEBM(MLPEnergy((size,), levels=levels), NoiseSchedule.cosine(levels, log_snr_max=sharpest))


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
    }
    save_checkpoint(run / "model.ckpt", tree)


def _curves(history: History) -> dict[str, NDArray[np.float64]]:
    return {name: history.column(name) for name in _CURVES}


def _steps_made(checkpoint: Path) -> int:
    state = load_checkpoint(checkpoint)
    if not isinstance(state, dict) or not isinstance(state.get("records"), list):
        raise CheckpointError(f"{checkpoint} is not a training checkpoint: it belongs to something else, move it away")
    return len(state["records"])


def _read_json(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["settings"], dict) or not isinstance(record["source"], str):
            raise TypeError("its settings are missing")
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}: {run} is not a run of energyppl fit") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): fit again into another folder") from error
    found: dict[str, Any] = record
    return found


def _write_json(run: Path, record: dict[str, Any], name: str = "run.json") -> None:
    part = run / f"{name}.part"
    part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    part.replace(run / name)

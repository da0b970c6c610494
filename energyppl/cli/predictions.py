"""``energyppl fit --predict`` and ``energyppl predict``: some columns of a table given the others.

A run's folder holds ``run.json`` for people, ``training.ckpt`` to go on from if it was stopped, and ``model.ckpt``, as
:mod:`energyppl.tables.storage` writes it.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from energyppl._files import locked, write_json
from energyppl._progress import doing
from energyppl.cli.endings import finished
from energyppl.cli.image_runs import require_table_run
from energyppl.cli.row_files import write_frame
from energyppl.cli.runs import (
    Settings,
    begun,
    damaged_json,
    load_any_run,
    read_json,
    require_same_table,
    seconds_before,
)
from energyppl.errors import EnergyPPLError, InvalidInput
from energyppl.tables.conditional_model import ConditionalTableModel
from energyppl.tables.conditional_quality import prediction_quality
from energyppl.tables.conditional_training import require_no_imputing, targets_first, train_conditional
from energyppl.tables.training import FitSettings, prepare

__all__ = ["fit_predictions", "predict_run"]


def fit_predictions(
    file: Path, run: Path, settings: Settings, *, device: str | None = None, progress: bool = True
) -> tuple[ConditionalTableModel, dict[str, Any]]:
    """Train on the table in ``file`` to predict ``settings.predict``, and keep everything in ``run``.

    Returns:
        The model, whose ``record`` is that in ``run.json``, and its quality, of which an error has the verdict alone.

    Raises:
        InvalidInput: for a table that can't be used, or a run that is finished or of another kind.
        CheckpointError: if the run holds a damaged checkpoint, or one of another table or other settings.
        TrainingDiverged: see :func:`energyppl.fit`.
    """
    assert settings.predict is not None
    require_no_imputing(settings.missing)
    with doing(f"reading {file}", show=progress):
        table = targets_first(settings.read(file), settings.predict)
        _require_unfinished(run, settings.predict)
        prepared = prepare(table, settings.transforms)
    own = FitSettings(**{field.name: getattr(settings, field.name) for field in fields(FitSettings)})
    with locked(run):
        path, checkpoint = run / "run.json", run / "training.ckpt"
        going_on = checkpoint.exists()
        if going_on:
            require_same_table(path, table)
        record = begun(table, prepared, settings, seconds_before(path) if going_on else 0.0)
        if not going_on:
            write_json(path, record)
        count = len(settings.predict)
        model = finished(
            run,
            record,
            lambda: train_conditional(
                table, prepared, count, own, checkpoint=checkpoint, device=device, progress=progress
            ),
        )
    try:
        with doing("predicting held-out rows", show=progress):
            found = prediction_quality(model, seed=settings.seed)
    except EnergyPPLError as error:
        found = {"verdict": [f"the model is trained, but how good it is could not be measured: {error}"]}
    return model, found


def _require_unfinished(run: Path, predict: tuple[str, ...]) -> None:
    """Require a run that can be begun, or gone on with after a stop.

    Raises:
        InvalidInput: for one that is finished, or of another kind.
    """
    path = run / "run.json"
    kept = read_json(path) if path.exists() else None
    with damaged_json(path):
        before = None if kept is None else Settings(**kept["settings"]).predict
    begun = any((run / name).exists() for name in ("training.ckpt", "model.ckpt"))
    if begun and kept is not None and before != predict:
        raise InvalidInput(f"{run} holds a run of another kind, or that predicts other columns: choose another folder")
    if (run / "model.ckpt").exists():
        raise InvalidInput(
            f"{run} holds a finished run, which predicts {', '.join(predict)} and can't go on: choose another folder "
            "to train again, say with more --steps"
        )


def predict_run(
    run: Path,
    file: Path,
    out: Path,
    settings: Settings,
    *,
    draws: int = 200,
    confidence: float = 0.9,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> tuple[ConditionalTableModel, pd.DataFrame]:
    """Predict the target columns of a table's rows, and write a line for each row.

    Args:
        run: made by ``energyppl fit --predict``.
        file: a table with the columns that are given.
        out: a .csv, .npy, .npz or .parquet file to write, as :meth:`ConditionalTableModel.predict` says.
        settings: how to read the table.
        draws: for each row.
        confidence: of the intervals.
        seed: of the draws.
        device: where to work.
        progress: say what is being done.

    Raises:
        InvalidInput: for a run of another kind, or a table without those columns or with missing cells.
    """
    require_table_run(run, "predict")
    model = load_any_run(run, device=device)
    if not isinstance(model, ConditionalTableModel):
        raise InvalidInput(
            f"{run} is a density of whole rows, which predicts no column: train one that does by energyppl fit TABLE "
            "--predict NAME"
        )
    with doing(f"reading {file}", show=progress):
        table = settings.read(file, model.given_table)
    found = model.predict(table, draws=draws, confidence=confidence, seed=seed, progress=progress)
    write_frame(found, out, decimal=settings.decimal)
    return model, found

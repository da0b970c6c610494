"""The end of a training in a run's folder: its model, and a record that says how it went."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from energyppl._files import write_json
from energyppl.errors import TrainingDiverged
from energyppl.inference.training.history import History
from energyppl.tables.conditional_model import ConditionalTableModel
from energyppl.tables.model import TableModel
from energyppl.tables.storage import save

__all__ = ["finished", "trained"]

Model = TypeVar("Model")
TableKind = TypeVar("TableKind", TableModel, ConditionalTableModel)


def trained(
    run: Path, record: dict[str, Any], train: Callable[[], tuple[Model, History]]
) -> tuple[Model, History, dict[str, Any]]:
    """Train, and return what came of it and the record of how it ended.

    Raises:
        TrainingDiverged: if training does, which ``run.json`` says then.
    """
    began = time.perf_counter()
    try:
        model, history = train()
    except TrainingDiverged as error:
        write_json(run / "run.json", {**record, "status": f"diverged: {error}"})
        raise
    ended = {
        "status": "finished",
        "seconds": round(record["seconds"] + time.perf_counter() - began, 2),
        "steps": len(history.records),
        "stopped": history.stopped,
    }
    return model, history, record | ended


def finished(run: Path, record: dict[str, Any], train: Callable[[], tuple[TableKind, History]]) -> TableKind:
    """Train on a table, and keep the model and the record of how it ended.

    Raises:
        TrainingDiverged: if training does, which ``run.json`` says then.
    """
    model, _, record = trained(run, record, train)
    record["versions"] = {"torch": str(torch.__version__), "numpy": np.__version__, "pandas": pd.__version__}
    model = replace(model, record=record)
    save(model, run / "model.ckpt")
    write_json(run / "run.json", record)
    return model

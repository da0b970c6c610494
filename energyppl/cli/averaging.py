"""``energyppl average``: the mean of several runs of one table, in a run's folder of its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from energyppl._files import locked, write_json
from energyppl.cli.comparison import record_of
from energyppl.cli.image_runs import require_table_run
from energyppl.cli.runs import load_run, read_json
from energyppl.errors import InvalidInput
from energyppl.tables.averaging import average
from energyppl.tables.model import TableModel
from energyppl.tables.storage import save

__all__ = ["average_runs", "require_no_average"]

_OF_A_RUN = ("model.ckpt", "training.ckpt", "images.ckpt", "run.json")


def average_runs(runs: Sequence[Path], out: Path, *, device: str | None = None) -> TableModel:
    """Average the models of runs, and keep the model and its record in ``out``.

    Args:
        runs: folders that ``fit`` made of one table, from other seeds.
        out: a folder that holds no run yet.
        device: where to work.

    Raises:
        InvalidInput: for fewer than two runs, one that is given twice, runs of other rows or options, or a folder that
            holds a run.
        CheckpointError: if a run has no finished model, or its file is damaged.
    """
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        raise InvalidInput(
            "an average needs two runs or more, each once: fit the table with --seed 1, --seed 2 and so on"
        )
    for run in runs:
        require_table_run(run, "average")
    if any((out / name).exists() for name in _OF_A_RUN):
        raise InvalidInput(f"{out} holds a run already: choose another folder for the average")
    models = [load_run(run, device=device) for run in runs]
    try:
        model = average(models)
    except InvalidInput as error:
        numbered = ", ".join(f"{index} is {run}" for index, run in enumerate(runs))
        raise InvalidInput(f"{error} (model {numbered})") from None
    model = replace(model, record={**record_of(model), "status": "finished"})
    with locked(out):
        save(model, out / "model.ckpt")
        write_json(out / "run.json", model.record)
    return model


def require_no_average(run: Path) -> None:
    """Refuse to train in the folder of an average, which would be lost.

    Raises:
        InvalidInput: for such a folder.
    """
    path = run / "run.json"
    if path.exists() and "averaged" in (read_json(path) or {}):
        raise InvalidInput(f"{run} holds an average of runs: choose another folder, or go on with one of the runs")

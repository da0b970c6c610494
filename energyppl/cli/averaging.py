"""``energyppl average``: the mean of several runs of one table, in a run's folder of its own."""

from collections.abc import Sequence
from pathlib import Path

from energyppl._files import locked, write_json
from energyppl.cli.image_runs import is_image_run, require_table_run
from energyppl.cli.runs import load_run
from energyppl.errors import InvalidInput
from energyppl.tables.averaging import average
from energyppl.tables.model import TableModel
from energyppl.tables.storage import save

__all__ = ["average_runs"]

_OF_A_RUN = ("model.ckpt", "training.ckpt", "run.json")


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
    if is_image_run(out) or any((out / name).exists() for name in _OF_A_RUN):
        raise InvalidInput(f"{out} holds a run already: choose another folder for the average")
    model = average([load_run(run, device=device) for run in runs])
    with locked(out):
        save(model, out / "model.ckpt")
        write_json(out / "run.json", model.record)
    return model

"""Models of tables in files: weights, transforms, the columns' names and categories, and rows to judge them by."""

import os
from typing import Any

import torch

from energyppl._checks import as_path
from energyppl.autodiff.devices import move_to
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.data.tables import Table
from energyppl.data.transforms import TableTransform
from energyppl.errors import CheckpointError, first_line
from energyppl.models.recovery import RecoveryEBM
from energyppl.models.storage import model_of_tree, tree_of_model
from energyppl.tables.model import TableModel

__all__ = ["load", "save"]

_FORMAT = "energyppl-table-5"


def save(model: TableModel, path: str | os.PathLike[str]) -> None:
    """Write a model of a table to one file, whole or not at all; it holds some of the training rows.

    Kept as well are the kernel and log Z, if it was estimated, so that densities are the same after :func:`load`.

    Args:
        model: that :func:`fit` trained.
        path: of the file.

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> model = ep.tables.fit(np.random.default_rng(0).normal(size=(50, 2)), steps=2, progress=False)
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.ckpt"
        >>> ep.tables.save(model, file)
        >>> ep.tables.load(file).sample(3, seed=0).equals(model.sample(3, seed=0))
        True
    """
    table = model.table
    tree = {
        "format": _FORMAT,
        "columns": list(table.columns),
        "labels": [list(own) for own in table.labels],
        "dtypes": list(table.dtypes),
        "grids": [torch.as_tensor(grid) for grid in table.grids],
        "source": table.source,
        "transform": model.transform.tree(),
        "ebm": tree_of_model(model.ebm),
        "rows": torch.as_tensor(table.values),
        "held_out": torch.as_tensor(model.held_out),
        "validation": None if model.validation is None else torch.as_tensor(model.validation),
        "curves": {name: torch.as_tensor(values) for name, values in model.curves.items()},
        "record": model.record,
    }
    save_checkpoint(path, tree)


def load(path: str | os.PathLike[str], *, device: str | torch.device | None = None) -> TableModel:
    """Read a model that :func:`save`, or the command ``fit``, wrote.

    Args:
        path: of the file, or of a run's folder, whose ``model.ckpt`` it is then.
        device: where the model is to be; the CPU if None.

    Raises:
        CheckpointError: if it is damaged or something else.

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> model = ep.tables.fit(np.random.default_rng(0).normal(size=(50, 2)), steps=2, progress=False)
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.ckpt"
        >>> ep.tables.save(model, file)
        >>> ep.tables.load(file).columns == model.columns
        True
    """
    path = as_path(path)
    path = path / "model.ckpt" if path.is_dir() else path
    tree = load_checkpoint(path)
    try:
        if tree["format"] != _FORMAT:
            raise ValueError(f"its format is {tree['format']!r}")
        model = _built(tree)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path} is not a model that energyppl fit made ({reason}): fit it again") from error
    if device is not None:
        move_to(model.ebm, device)
    return model


def _built(tree: dict[str, Any]) -> TableModel:
    """Build the model of a file's tree."""
    columns = tuple(str(name) for name in tree["columns"])
    rows, held_out = (tree[name].double().numpy() for name in ("rows", "held_out"))
    validation = None if tree["validation"] is None else tree["validation"].double().numpy()
    grids = tuple(grid.double().numpy() for grid in tree["grids"])
    labels = tuple(tuple(own) for own in tree["labels"])
    dtypes = tuple(str(dtype) for dtype in tree["dtypes"])
    transform = TableTransform.from_tree(tree["transform"])
    kept = (rows.T, held_out.T, held_out.T if validation is None else validation.T)
    widths = {len(part) for part in (columns, grids, labels, dtypes, transform.columns, *kept)}
    if len(widths) != 1 or len(held_out) < 2 or len(rows) < 2:
        raise ValueError(f"its parts are of different widths, {sorted(widths)}")
    ebm = model_of_tree(tree["ebm"])
    if not isinstance(ebm, RecoveryEBM) or tuple(ebm.event_shape) != (transform.width,):
        raise ValueError(f"its model is a {type(ebm).__name__} of points {tuple(ebm.event_shape)}")
    if not all(bool(torch.isfinite(value).all()) for value in ebm.state_dict().values()):
        raise ValueError("its weights are not finite")
    curves = {str(name): values.numpy() for name, values in tree["curves"].items()}
    if not {"step", "held_out"} <= curves.keys():
        raise KeyError("curves")
    record = dict(tree["record"])
    table = Table(rows, columns, grids, str(tree["source"]), labels, dtypes)
    return TableModel(ebm, transform, table, held_out, curves, record, validation)

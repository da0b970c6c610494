"""Models of tables in files: weights, transforms, the columns' names and categories, and rows to judge them by."""

import os
from typing import Any

import numpy as np
import torch

from energyppl._checks import as_path, checked, require_kinds
from energyppl.autodiff.devices import move_to
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.data.columns import Categories, TwoValues
from energyppl.data.frames import Label
from energyppl.data.monotone import require_rising
from energyppl.data.tables import Table
from energyppl.data.transforms import TableTransform
from energyppl.errors import CheckpointError, first_line
from energyppl.models.conditional import ConditionalEBM
from energyppl.models.recovery import RecoveryEBM
from energyppl.models.storage import model_of_tree, tree_of_model
from energyppl.tables.conditional_model import ConditionalTableModel
from energyppl.tables.model import Array, TableModel

__all__ = ["load", "save"]

_FORMAT = "energyppl-table-5"
_CONDITIONAL = "energyppl-conditional-table-1"
_RECORD: dict[str, Any] = {  # of what a record may hold
    "source": str,
    "rows": dict[str, int],
    "columns": list[str],
    "transforms": dict[str, str],
    "missing": int,
    "settings": dict[str, Any],
    "seconds": float,
    "steps": int,
    "steps_before": int,
    "averaged": int,
    "stopped": str,
}


@checked
def save(model: TableModel | ConditionalTableModel, path: str | os.PathLike[str]) -> None:
    """Write a model of a table to one file, whole or not at all; it holds some of the training rows.

    Kept as well are the kernel and log Z, if it was estimated, so that densities are the same after :func:`load`.

    Args:
        model: that :func:`fit` or :func:`fit_conditional` trained.
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
    if isinstance(model, ConditionalTableModel):
        own: dict[str, Any] = {
            "format": _CONDITIONAL,
            "target": model.target.tree(),
            "context": model.context.tree(),
            "varying": torch.as_tensor(model.varying),
        }
    else:
        own = {"format": _FORMAT, "transform": model.transform.tree()}
    tree = {
        **own,
        "columns": list(table.columns),
        "labels": [list(labels) for labels in table.labels],
        "dtypes": list(table.dtypes),
        "grids": [torch.as_tensor(grid) for grid in table.grids],
        "source": table.source,
        "ebm": tree_of_model(model.ebm),
        "rows": torch.as_tensor(table.values),
        "held_out": torch.as_tensor(model.held_out),
        "validation": None if model.validation is None else torch.as_tensor(model.validation),
        "curves": {name: torch.as_tensor(values) for name, values in model.curves.items()},
        "record": model.record,
    }
    save_checkpoint(path, tree)


def load(
    path: str | os.PathLike[str], *, device: str | torch.device | None = None
) -> TableModel | ConditionalTableModel:
    """Read a model that :func:`save`, or the command ``fit``, wrote: a :class:`ConditionalTableModel` if it is one.

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
        if tree["format"] not in (_FORMAT, _CONDITIONAL):
            raise ValueError(f"its format is {tree['format']!r}")
        model = _built(tree)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path} is not a model that energyppl fit made ({reason}): fit it again") from error
    if device is not None:
        move_to(model.ebm, device)
    return model


def _built(tree: dict[str, Any]) -> TableModel | ConditionalTableModel:
    """Build the model of a file's tree."""
    table, held_out, validation = _table(tree)
    ebm = model_of_tree(tree["ebm"])
    if not all(bool(torch.isfinite(value).all()) for value in ebm.state_dict().values()):
        raise ValueError("its weights are not finite")
    curves = {str(name): values.numpy() for name, values in tree["curves"].items()}
    if not {"step", "held_out"} <= curves.keys() or len({values.shape for values in curves.values()}) != 1:
        raise ValueError(f"its curves are {', '.join(curves) or 'none'}")
    record = dict(tree["record"])
    require_kinds(record, _RECORD)
    if "rows" in record and len(record["rows"]) not in (3, 5):
        raise ValueError(f"its record counts rows of {len(record['rows'])} kinds")
    judged = (table, held_out, curves, record, validation)
    if tree["format"] == _CONDITIONAL:
        target, context = (TableTransform.from_tree(tree[name]) for name in ("target", "context"))
        _require_columns(table, target, context)
        varying = tree["varying"].numpy()
        if varying.dtype != np.int64 or not set(varying.tolist()) <= set(range(context.width)):
            raise ValueError(f"its contexts are coordinates {varying.tolist()[:9]} of {context.width}")
        _require_kind(ebm, ConditionalEBM, target.width)
        if tuple(ebm.context_shape) != (len(varying),):
            raise ValueError(f"its model is told contexts {tuple(ebm.context_shape)}")
        return ConditionalTableModel(ebm, target, context, varying, *judged)
    transform = TableTransform.from_tree(tree["transform"])
    _require_columns(table, transform)
    _require_kind(ebm, RecoveryEBM, transform.width)
    return TableModel(ebm, transform, *judged)


def _require_kind(ebm: Any, kind: type[Any], width: int) -> None:
    if not isinstance(ebm, kind) or tuple(ebm.event_shape) != (width,):
        raise ValueError(f"its model is a {type(ebm).__name__} of points {tuple(ebm.event_shape)}")


def _require_columns(table: Table, *parts: TableTransform) -> None:
    """Require transforms of the table's columns, of categories where it has categories."""
    if sum((part.names for part in parts), ()) != table.columns:
        raise ValueError(f"its transforms are of other columns than {', '.join(table.columns)}")
    for name, labels, own in zip(table.columns, table.labels, (c for part in parts for c in part.columns), strict=True):
        places = len(labels) if len(labels) > 2 else 0  # two categories are two values
        if (own.count if isinstance(own, Categories) else 0) != places:
            raise ValueError(f"the transform of column {name!r} does not fit its {len(labels)} categories")
        if len(labels) == 2 and not (isinstance(own, TwoValues) and own.values.tolist() == [0.0, 1.0]):
            raise ValueError(f"the transform of column {name!r} does not fit its two categories")


def _table(tree: dict[str, Any]) -> tuple[Table, Array, Array | None]:
    """Return the table of a file's tree, its held-out rows, and those that chose the weights."""
    columns, dtypes = (tuple(tree[name]) for name in ("columns", "dtypes"))
    rows, held_out = (_rows(name, tree[name]) for name in ("rows", "held_out"))
    validation = None if tree["validation"] is None else _rows("validation", tree["validation"])
    grids = tuple(grid.double().numpy() for grid in tree["grids"])
    labels = tuple(tuple(own) for own in tree["labels"])
    kept = [rows, held_out] + ([] if validation is None else [validation])
    widths = {len(part) for part in (columns, grids, labels, dtypes, *(part.T for part in kept))}
    if len(widths) != 1 or len(held_out) < 2 or len(rows) < 2:
        raise ValueError(f"its parts are of different widths, {sorted(widths)}")
    if len(set(columns)) < len(columns) or not all(isinstance(name, str) for name in (*columns, *dtypes)):
        raise ValueError(f"its columns are {', '.join(map(str, columns))}")
    for name, grid, own in zip(columns, grids, labels, strict=True):
        require_rising(f"the values of column {name!r}", grid, 0)
        if len(own) == 1 or len(set(own)) < len(own) or not all(isinstance(label, Label) for label in own):
            raise ValueError(f"the categories of column {name!r} are {own[:9]}")
    table = Table(rows, columns, grids, str(tree["source"]), labels, dtypes)
    for part in kept:
        table.frame(part)  # which refuses what is no category
    return table, held_out, validation


def _rows(name: str, values: torch.Tensor) -> Array:
    """Return a file's rows, ``(n, d)``; NaN is a missing cell."""
    if not values.is_floating_point():
        raise ValueError(f"its {name} are {values.dtype}")
    rows: Array = values.double().numpy()
    if rows.ndim != 2 or np.isinf(rows).any():
        raise ValueError(f"its {name} are not finite numbers in rows and columns, {rows.shape}")
    return rows

"""One model of a table out of several that were trained on it from other seeds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from energyppl.errors import InvalidInput
from energyppl.models.averaging import averaged
from energyppl.tables.model import TableModel

__all__ = ["average"]


def average(models: Sequence[TableModel]) -> TableModel:
    """Return the model whose energy is the mean of several models' of one table: :func:`energyppl.models.averaged`.

    Where rows are few, models that were trained from other seeds err differently, and their errors partly cancel: the
    density is usually better than one model's, and better than theirs are on average.  Its log Z is estimated anew, and
    each of its answers costs as many evaluations.  Where the models disagree about the masses of groups of rows, its
    samples lie between its density and what the noisy levels say.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(200, 3))
    >>> models = [ep.tables.fit(rows, steps=5, seed=seed, progress=False) for seed in range(2)]
    >>> ep.tables.average(models).log_prob(rows[:4]).shape
    (4,)

    Args:
        models: of :func:`energyppl.tables.fit`, of the same rows with the same options but for ``seed``, or what makes
            a training longer or shorter.

    Returns:
        A model with copies of their weights, judged by the same held-out rows.  Its ``curves`` are empty, and its
        ``record`` counts the models as ``averaged``, and the steps and seconds of all.

    Raises:
        InvalidInput: for fewer than two models, one that predicts columns from others, models of other rows, columns or
            transforms, or two that are the same.
    """
    if not isinstance(models, Sequence) or len(models) < 2:
        raise InvalidInput("an average needs a list of at least two models: fit the table with several seeds")
    first = models[0]
    for index, model in enumerate(models):
        if not isinstance(model, TableModel):
            raise InvalidInput(
                f"an average is of densities of whole rows, as tables.fit trains them; model {index} is a "
                f"{type(model).__name__}"
            )
        odd = _difference(model, first)
        if odd:
            raise InvalidInput(
                f"the models of an average must be of the same rows; model {index} has other {odd} than model 0: fit "
                "the table with other seeds and otherwise the same options"
            )
    checksums = [model.ebm.checksum() for model in models]
    for index, checksum in enumerate(checksums):
        if checksum in checksums[:index]:
            raise InvalidInput(
                f"models {checksums.index(checksum)} and {index} are the same: fit the table with another seed"
            )
    count = len(models)
    record: dict[str, Any] = {
        **first.record,
        "steps": sum(int(model.record.get("steps", 0)) for model in models),
        "stopped": f"the average of {count} models",
        "averaged": count,
    }
    record.pop("steps_before", None)
    if all("seconds" in model.record for model in models):
        record["seconds"] = round(sum(float(model.record["seconds"]) for model in models), 2)
    ebm = averaged(*(model.ebm for model in models))
    ebm.measure_moves()  # in the plane; above, a sample makes as many moves anyway
    return replace(first, ebm=ebm, curves={name: values[:0] for name, values in first.curves.items()}, record=record)


def _difference(model: TableModel, first: TableModel) -> str:
    """Name what two models of the same rows have in common and these have not; nothing if they are alike."""
    if model.columns != first.columns:
        return "columns"
    if model.table.labels != first.table.labels:
        return "categories"
    if not _equal(model.transform.tree(), first.transform.tree()):
        return "transforms"
    sides = ((model.rows, first.rows), (model.held_out, first.held_out), (model.validation, first.validation))
    return "" if all(_equal(one, other) for one, other in sides) else "rows"


def _equal(one: Any, other: Any) -> bool:
    """Compare trees of arrays, tensors, numbers and strings; NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other)

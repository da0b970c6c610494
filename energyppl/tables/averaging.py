"""One model of a table out of several that were trained on it from other seeds."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

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
    _require_of_one_table(models)
    first = models[0]
    ebm = averaged(*(model.ebm for model in models))
    ebm.measure_moves()  # in the plane; above, a sample makes as many moves anyway
    no_curves = {name: values[:0] for name, values in first.curves.items()}
    return replace(first, ebm=ebm, curves=no_curves, record=_record(models))


def _require_of_one_table(models: Sequence[TableModel]) -> None:
    """Require two models or more of the same rows, none of them twice."""
    if not isinstance(models, Sequence) or len(models) < 2:
        raise InvalidInput("an average needs a list of at least two models: fit the table with several seeds")
    for index, model in enumerate(models):
        if not isinstance(model, TableModel):
            raise InvalidInput(
                f"an average is of densities of whole rows, as tables.fit trains them; model {index} is a "
                f"{type(model).__name__}"
            )
        odd = _difference(model, models[0])
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


def _record(models: Sequence[TableModel]) -> dict[str, Any]:
    """Return the first model's record, with the steps and seconds of all."""
    record = {
        **models[0].record,
        "steps": sum(int(model.record.get("steps", 0)) for model in models),
        "stopped": f"the average of {len(models)} models",
        "averaged": len(models),
    }
    record.pop("steps_before", None)
    if all("seconds" in model.record for model in models):
        record["seconds"] = round(sum(float(model.record["seconds"]) for model in models), 2)
    return record


def _difference(model: TableModel, first: TableModel) -> str:
    """Name what two models of the same rows have in common and these have not; nothing if they are alike."""
    if model.columns != first.columns:
        return "columns"
    if model.table.labels != first.table.labels:
        return "categories"
    ours, theirs = (json.dumps(one.transform.tree(), sort_keys=True) for one in (model, first))
    if ours != theirs:
        return "transforms"
    if (model.validation is None) != (first.validation is None):
        return "rows"
    sides = [(model.rows, first.rows), (model.held_out, first.held_out)]
    if model.validation is not None and first.validation is not None:
        sides.append((model.validation, first.validation))
    return "" if all(np.array_equal(one, other, equal_nan=True) for one, other in sides) else "rows"

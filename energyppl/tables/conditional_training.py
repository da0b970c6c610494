"""Training of some columns' density given the others."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from energyppl._checks import checked
from energyppl._seeds import seeded
from energyppl.data.tables import Table, table_from_rows
from energyppl.errors import InvalidInput
from energyppl.inference.training.fit import fit as fit_model
from energyppl.inference.training.history import History
from energyppl.inference.training.options import TrainingOptions, suited_options
from energyppl.models import ConditionalEBM, MLPEnergy
from energyppl.schedule import NoiseSchedule
from energyppl.tables.conditional_model import ConditionalTableModel, columns_of
from energyppl.tables.model import Rows
from energyppl.tables.training import CURVES, FitSettings, Prepared, choosing, outcome, prepare

__all__ = ["fit_conditional", "require_no_imputing", "targets_first", "train_conditional"]

LOG_SNR_MAX = 9.0  # of one number, a noise of .011: smooth densities are learned as well as with .05, sharp ones better
_OF_SEVERAL = 6.0  # whose chains would have to find narrow regions, and whose log Z is not integrated
_LOG_SNR_MIN = -6.0
_APART = 0.6  # log-SNRs of neighbouring levels, on average
_FEW_ROWS = 500  # of which what a context does can't be learned in detail: on 350 smoothness was worth a quarter nat
_VARIES = 1e-6  # standard deviations of a context's coordinate


@checked
def fit_conditional(
    rows: Rows,
    predict: str | Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    missing: str | None = None,
    transforms: Mapping[str, str] | None = None,
    steps: int | None = None,
    levels: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> ConditionalTableModel:
    """Train a density of some columns of a table given all others, p(price | rest) say.

    Columns are transformed as by :func:`energyppl.tables.fit`, and rows held out as there: a tenth judges the model,
    and from 1000 rows on another tenth chooses the weights, which in smaller tables the held-out rows do.  The density
    is a :class:`energyppl.models.ConditionalEBM`, trained by its own objective; of fewer than 500 rows it is smoother
    in the given columns.

    >>> import numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> rooms = rng.integers(1, 6, 200)
    >>> homes = pd.DataFrame({"rooms": rooms, "price": 100.0 * rooms + 30.0 * rng.normal(size=200)})
    >>> ep.tables.fit_conditional(homes, "price", steps=5, levels=3, progress=False)
    ConditionalTableModel(price given rooms; 180 training rows kept, 20 held out)

    Args:
        rows: the table, as :func:`energyppl.tables.fit` takes it.
        predict: the column, or columns, to predict.
        columns: to use, the predicted ones among them; all if None.
        drop: columns to leave out.
        missing: ``"drop"`` leaves rows with missing cells out; they are refused if None.
        transforms: for columns by name, how they are taken, as :meth:`energyppl.data.TableTransform.fit` says.
        steps: updates at most; 2000 if None.
        levels: of noise; 25 if None, or 20 for targets of several coordinates.
        batch_size: rows in a batch; 256 if None.
        learning_rate: the optimizer's; .002 if None.
        seed: of everything random.
        checkpoint: a file to keep the run in; if it exists the run goes on from it.
        device: where to train, such as ``"cuda"``.
        progress: show a bar.

    Raises:
        InvalidInput: for a column to predict that there is not, none that is left to predict from, and columns that
            can't be learned, such as constants and sums of others.
        CheckpointError: for a checkpoint of other rows or settings.
        TrainingDiverged: see :func:`energyppl.fit`.
    """
    require_no_imputing(missing)
    settings = FitSettings(seed, steps, levels, batch_size, learning_rate, transforms)
    table = targets_first(table_from_rows(rows, columns=columns, drop=drop, missing=missing), predict)
    prepared = prepare(table, transforms)
    path = None if checkpoint is None else Path(checkpoint)
    count = 1 if isinstance(predict, str) else len(predict)
    return train_conditional(table, prepared, count, settings, checkpoint=path, device=device, progress=progress)[0]


def require_no_imputing(missing: str | None) -> None:
    """Refuse to train on filled gaps.

    Raises:
        InvalidInput: if that is asked for.
    """
    if missing == "impute":
        raise InvalidInput(
            "predicting columns from others needs rows without missing cells; got missing='impute': choose 'drop', "
            "--missing drop, or impute the table first by a model of all its columns"
        )


def targets_first(table: Table, predict: str | Sequence[str]) -> Table:
    """Return the table with the columns to predict first.

    Raises:
        InvalidInput: for no column, one that there is not, or all columns.
    """
    names = (predict,) if isinstance(predict, str) else tuple(predict)
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InvalidInput(f"predict must be a column's name or several different ones; got {predict!r}")
    unknown = [repr(name) for name in names if name not in table.columns]
    if unknown:
        raise InvalidInput(
            f"predict must name columns of {table.source}; got {', '.join(unknown)}: they are "
            f"{', '.join(table.columns)}"
        )
    rest = tuple(name for name in table.columns if name not in names)
    if not rest:
        raise InvalidInput(
            f"a column must be left to predict from; got all of {', '.join(names)} to predict: name fewer, or train "
            "a density of whole rows by ep.tables.fit, which is energyppl fit without --predict"
        )
    return columns_of(table, (*names, *rest))


def train_conditional(
    table: Table,
    prepared: Prepared,
    targets: int,
    settings: FitSettings,
    *,
    checkpoint: Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[ConditionalTableModel, History]:
    """Train on a prepared table whose first ``targets`` columns are predicted; see :func:`fit_conditional`."""
    target, context = (prepared.transform.part(names) for names in (table.columns[:targets], table.columns[targets:]))
    middles, _ = context.middles(table.values[:, targets:])
    varying = np.flatnonzero(middles[prepared.rows].std(0) > _VARIES)  # not so is a category that training rows lack
    y, c = prepared.z[:, : target.width], torch.as_tensor(middles[:, varying], dtype=torch.float32)
    rows, aside = prepared.rows, choosing(prepared)
    few = len(rows) < _FEW_ROWS
    with seeded(settings.seed):
        net = MLPEnergy((target.width,), context_shape=len(varying), context_frequencies=0 if few else 4)
        top = LOG_SNR_MAX if target.width == 1 else _OF_SEVERAL
        levels = settings.levels or round((top - _LOG_SNR_MIN) / _APART)
        schedule = NoiseSchedule.cosine(levels, log_snr_max=top, log_snr_min=_LOG_SNR_MIN)
        ebm = ConditionalEBM(net, schedule)
        history = fit_model(
            ebm,
            (y[rows], c[rows]),
            held_out=(y[aside], c[aside]),
            options=_options(settings, ebm, few),
            checkpoint=checkpoint,
            device=device,
            progress=progress,
        )
    kept = outcome(table, prepared, settings, history, CURVES)
    return ConditionalTableModel(ebm, target, context, varying, **kept), history


def _options(settings: FitSettings, ebm: ConditionalEBM, few: bool) -> TrainingOptions:
    suited = suited_options(ebm.default_objective(), ebm)
    suited = replace(suited, weight_decay=1.0) if few else suited
    names = ("steps", "batch_size", "learning_rate")
    chosen = {name: own for name in names if (own := getattr(settings, name)) is not None}
    options = replace(suited, **chosen)
    return replace(options, evaluate_every=min(options.steps, suited.evaluate_every))

"""Training of a table's density: rows are split, transformed, learned, and gaps filled along the way."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from energyppl._checks import check_count, check_positive, checked
from energyppl._progress import doing
from energyppl._seeds import seeded
from energyppl.autodiff.devices import move_to
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.data.dependence import require_different_columns, require_no_sums, warn_of_codes
from energyppl.data.tables import Table, table_from_rows
from energyppl.data.transforms import TableTransform
from energyppl.errors import CheckpointError, InvalidInput, warn_user
from energyppl.inference.training.fit import fit as fit_model
from energyppl.inference.training.history import History
from energyppl.inference.training.options import TrainingOptions, suited_options
from energyppl.inference.training.run import Training
from energyppl.models import RecoveryEBM, model_of_columns, suited_log_snr_max
from energyppl.models.of_columns import TRAINED_LOG_SNR_MAX, with_noise_that_pays
from energyppl.potentials.covariance import shrunk_covariance
from energyppl.tables.conditional import draw_unknown
from energyppl.tables.model import Rows, TableModel, empty_like

__all__ = [
    "CURVES",
    "FitSettings",
    "Prepared",
    "choosing",
    "fit",
    "gaussian_draws",
    "outcome",
    "prepare",
    "require_same_run",
    "train",
]

CURVES = ("step", "loss", "gradient_norm", "held_out")
_CURVES_OF_SOME = ("energy_gap", "acceptance", "denoising", "tie")  # objectives
_KEPT_ROWS = 4000  # training rows kept with the model
_SPLIT_IN_THREE = 1000  # rows: from here a tenth is enough to choose the weights, and another to judge them
_AUGMENTATIONS = 30  # draws of gaps by a Gaussian before the first training


@dataclass(frozen=True)
class FitSettings:
    """Settings of a training on a table; None is what suits the number of coordinates."""

    seed: int = 0
    steps: int | None = None
    levels: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    transforms: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "levels", "batch_size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("seed", self.seed, at_least=0)
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        if self.transforms is not None and not isinstance(self.transforms, Mapping):
            raise InvalidInput(f"transforms must be a dictionary from columns to words; got {self.transforms!r}")
        if self.transforms is not None:
            object.__setattr__(self, "transforms", dict(self.transforms))

    def resolved(self, width: int) -> "FitSettings":
        """Return the settings for so many coordinates, with their numbers of steps and of rows in a batch."""
        return replace(self, steps=self.steps or (1500 if width <= 2 else 1000), batch_size=self.batch_size or 512)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A table's numbers as they are trained on."""

    transform: TableTransform
    z: torch.Tensor  # (n, D), float32; NaN where a cell is missing
    rows: NDArray[np.int64]  # numbers of the training rows
    held_out: NDArray[np.int64]  # of those that judge the model
    validation: NDArray[np.int64] | None  # of those that choose the weights; None if the held-out rows do


def prepare(table: Table, transforms: Mapping[str, str] | None = None) -> Prepared:
    """Split and transform by fixed seeds: a continued run must see the same numbers in the same rows.

    A tenth of the rows is held out; from 1000 rows on another tenth chooses the weights, below the held-out rows do.
    """
    warn_of_codes(table)
    require_different_columns(table)
    require_no_sums(table)
    order = np.random.default_rng(0).permutation(len(table.values))
    aside = min(max(2, len(order) // 10), 10_000)
    held_out, rows = order[:aside], order[aside:]
    validation = None
    if len(order) >= _SPLIT_IN_THREE:
        validation, rows = rows[:aside], rows[aside:]
    training = empty_like(table, table.values[rows])
    constant = [
        repr(name)
        for name, x in zip(table.columns, training.values.T, strict=True)
        if np.isnan(x).all() or np.nanmax(x) == np.nanmin(x)
    ]
    if constant:
        raise InvalidInput(
            f"every column of {table.source} must vary in the training rows; {', '.join(constant)} doesn't: drop it"
        )
    transform = TableTransform.fit(training, transforms)
    z, weight = transform.encode(table.values, torch.Generator().manual_seed(0))
    outside = np.isneginf(weight)
    rows, held_out = _within(rows, held_out, outside, table.source)
    if validation is not None:
        rows, validation = _within(rows, validation, outside, table.source)
    return Prepared(transform, torch.as_tensor(z, dtype=torch.float32), rows, held_out, validation)


def _within(
    rows: NDArray[np.int64], aside: NDArray[np.int64], outside: NDArray[np.bool_], source: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Leave out rows aside that have no coordinates, and so no density; training rows stand in for the last two."""
    lost = int(outside[aside].sum())
    if not lost:
        return rows, aside
    warn_user(
        f"{lost} of {len(aside)} held-out rows of {source} lie outside of the range that the training rows leave "
        "their columns: they judge nothing, and have the density 0 under the model (transforms={name: 'none'}, "
        "--transform NAME=none, gives a column no end)"
    )
    aside = aside[~outside[aside]]
    few = max(0, 2 - len(aside))
    return rows[: len(rows) - few], np.concatenate([aside, rows[len(rows) - few :]])


@checked
def fit(
    rows: Rows,
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
) -> TableModel:
    """Train a density of a table's rows: numbers, counts, booleans and categories, each by a transform of its own.

    A tenth of the rows is held out to judge the model, and from 1000 rows on another tenth chooses the weights, which
    in smaller tables the held-out rows do.  Above two coordinates the network is continuous in the noise level and
    trained by score matching tied across levels (``tutorials/10_tables.py``); the same rows choose level 0's noise, .1
    or .037 of a column's spread, or less where columns nearly determine each other.

    >>> import numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> frame = pd.DataFrame({"income": np.exp(rng.normal(10, 1, 200)), "rooms": rng.integers(1, 6, 200)})
    >>> model = ep.tables.fit(frame, steps=20, progress=False)
    >>> model.sample(3, seed=0).dtypes.astype(str).tolist()
    ['float64', 'int64']
    >>> model.log_prob(frame[:5]).shape
    (5,)

    Args:
        rows: a frame, a :class:`~energyppl.data.Table`, or an array ``(n, d)``.
        columns: to learn, in this order; all if None.
        drop: columns to leave out.
        missing: of rows with missing cells: ``"drop"`` leaves them out; ``"impute"`` trains on them, their gaps filled
            by draws of a Gaussian of the coordinates first and, after a first training of half as many steps, by
            conditional chains of the model itself (a stochastic EM of two rounds; Celeux & Diebolt 1985).
        transforms: for columns by name, how they are taken, as :meth:`energyppl.data.TableTransform.fit` says.
        steps: updates at most; 1500, or 1000 above two coordinates, if None.  Half as many more come before them where
            gaps are filled, and are no part of the model's ``curves``.
        levels: of noise; if None 6, or 20 or 24 above two coordinates; more where columns nearly determine each other.
        batch_size: rows in a batch; 512 if None.
        learning_rate: the optimizer's; .01 if None.
        seed: of everything random, but for the first fill of gaps.
        checkpoint: a file to keep the run in; if it exists the run goes on from it.  Filled gaps are kept beside it, in
            a file of its name that ends in ``.completed.ckpt``.
        device: where to train, such as ``"cuda"``.
        progress: show a bar.

    Raises:
        InvalidInput: for columns that can't be learned, all of them named.
        CheckpointError: for a checkpoint of other rows or settings.
        TrainingDiverged: see :func:`energyppl.fit`.
    """
    table = table_from_rows(rows, columns=columns, drop=drop, missing=missing)
    settings = FitSettings(seed, steps, levels, batch_size, learning_rate, transforms)
    prepared = prepare(table, transforms)
    path = None if checkpoint is None else Path(checkpoint)
    return train(table, prepared, settings, checkpoint=path, device=device, progress=progress)[0]


def train(
    table: Table,
    prepared: Prepared,
    settings: FitSettings,
    *,
    checkpoint: Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> tuple[TableModel, History]:
    """Train on a prepared table; see :func:`fit`."""
    settings = settings.resolved(prepared.transform.width)
    with seeded(settings.seed):
        ebm, z = _untrained(prepared, settings), prepared.z
        if bool(torch.isnan(z).any()):
            z = _completed(ebm, prepared, settings, checkpoint, device, progress)
        history = fit_model(
            ebm,
            z[prepared.rows],
            held_out=z[choosing(prepared)],
            options=_options(settings, ebm),
            checkpoint=checkpoint,
            device=device,
            progress=progress,
        )
        if prepared.transform.width > 2:
            suited = suited_log_snr_max(prepared.z[prepared.rows])
            ebm = with_noise_that_pays(ebm, suited, settings.levels, z[prepared.rows], z[choosing(prepared)])
    recorded = history.records[-1].values if history.records else {}
    kept = [*CURVES, *(name for name in _CURVES_OF_SOME if name in recorded)]
    return TableModel(ebm, prepared.transform, **outcome(table, prepared, settings, history, kept)), history


def outcome(
    table: Table, prepared: Prepared, settings: FitSettings, history: History, curves: Sequence[str]
) -> dict[str, Any]:
    """Return what a model keeps of its training beside the weights, by the names of its fields."""
    validation = prepared.validation
    return {
        "table": empty_like(table, table.values[prepared.rows[:_KEPT_ROWS]]),
        "held_out": table.values[prepared.held_out],
        "curves": {name: history.column(name) for name in curves},
        "record": {"steps": len(history.records), "stopped": history.stopped, "settings": asdict(settings)},
        "validation": None if validation is None else table.values[validation],
    }


def choosing(prepared: Prepared) -> NDArray[np.int64]:
    """Return the numbers of the rows that choose the weights."""
    return prepared.held_out if prepared.validation is None else prepared.validation


def require_same_run(
    prepared: Prepared, settings: FitSettings, checkpoint: Path, *, device: str | torch.device | None = None
) -> None:
    """Require a checkpoint that :func:`train` would go on from; nothing is changed.

    Raises:
        CheckpointError: if it is damaged, or one of other rows or settings.
    """
    settings = settings.resolved(prepared.transform.width)
    with seeded(settings.seed):
        ebm, z = _untrained(prepared, settings), prepared.z
        if bool(torch.isnan(z).any()):
            z = _kept_rows(checkpoint, ebm, prepared, settings)
        if device is not None:
            move_to(ebm, device)
        training = Training(ebm, z[prepared.rows], held_out=z[choosing(prepared)], options=_options(settings, ebm))
        training.load_state_dict(load_checkpoint(checkpoint))


def _untrained(prepared: Prepared, settings: FitSettings) -> RecoveryEBM:
    """Build a model with the log-SNR at level 0 up to which tables are trained, or more if rows need it."""
    suited = suited_log_snr_max(prepared.z[prepared.rows], least=TRAINED_LOG_SNR_MAX)
    return model_of_columns(prepared.transform.width, levels=settings.levels, log_snr_max=suited)


def _options(settings: FitSettings, ebm: RecoveryEBM) -> TrainingOptions:
    assert settings.steps is not None
    assert settings.batch_size is not None
    return replace(
        suited_options(ebm.default_objective(), ebm),
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        evaluate_every=min(settings.steps, max(10, settings.steps // 40)),
        patience=8,  # a fifth of the run: a small table is soon learned by heart
    )


# --- Gaps ---


def _completed(
    ebm: RecoveryEBM,
    prepared: Prepared,
    settings: FitSettings,
    checkpoint: Path | None,
    device: str | torch.device | None,
    progress: bool,
) -> torch.Tensor:
    """Fill gaps by draws of the model itself, which is first trained on gaps filled by a Gaussian; its weights stay."""
    kept = None if checkpoint is None else _beside(checkpoint, "completed")
    if checkpoint is not None and checkpoint.exists():
        return _kept_rows(checkpoint, ebm, prepared, settings)
    if kept is not None and kept.exists() and _is_of(tree := load_checkpoint(kept), prepared, settings):
        return _taken(tree, ebm)
    assert settings.steps is not None
    first = replace(settings, steps=(settings.steps + 1) // 2)
    z = gaussian_draws(prepared.z, torch.Generator().manual_seed(0))  # one standardization for all seeds: see average
    early = None if checkpoint is None else _beside(checkpoint, "first")
    fit_model(
        ebm,
        z[prepared.rows],
        held_out=z[choosing(prepared)],
        options=_options(first, ebm),
        checkpoint=early,
        device=device,
        progress=progress,
    )
    gaps = torch.isnan(prepared.z).any(1)
    with doing("filling the gaps by draws of this first model", show=progress):
        z[gaps] = draw_unknown(ebm, prepared.z[gaps], transform=prepared.transform).to(z)
    if kept is not None:
        save_checkpoint(kept, {"key": _key(prepared, settings), "z": z, "weights": dict(ebm.state_dict())})
        if early is not None:
            early.unlink(missing_ok=True)
    return z


def _beside(checkpoint: Path, what: str) -> Path:
    """Return a file of a run's gaps, named after its checkpoint: a folder may hold several runs."""
    return checkpoint.with_name(f"{checkpoint.stem}.{what}.ckpt")


def _key(prepared: Prepared, settings: FitSettings) -> str:
    """Return a digest of what filled gaps depend on; steps may be added to a run, so they are none of it."""
    rest = [prepared.transform.tree(), settings.seed, settings.levels]
    digest = blake2b(prepared.z.numpy().tobytes(), digest_size=16)
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()


def _is_of(tree: Any, prepared: Prepared, settings: FitSettings) -> bool:
    return isinstance(tree, dict) and tree.get("key") == _key(prepared, settings)


def _kept_rows(checkpoint: Path, ebm: RecoveryEBM, prepared: Prepared, settings: FitSettings) -> torch.Tensor:
    """Return the filled rows that a run goes on with.

    Raises:
        CheckpointError: if they are missing, or those of other rows or settings.
    """
    kept = _beside(checkpoint, "completed")
    tree = load_checkpoint(kept) if kept.exists() else None
    if tree is None or not _is_of(tree, prepared, settings):
        why = "is missing" if tree is None else "was made with other rows, transforms, seed or levels"
        raise CheckpointError(
            f"{kept}, which holds the filled rows that {checkpoint} was trained on, {why}: continue with the same, or "
            "write to another place"
        )
    return _taken(tree, ebm)


def _taken(tree: dict[str, Any], ebm: RecoveryEBM) -> torch.Tensor:
    """Load the weights that filled the gaps, and return the rows."""
    ebm.load_state_dict(tree["weights"])
    completed: torch.Tensor = tree["z"]
    return completed


def gaussian_draws(z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Fill gaps, NaN, by draws of a Gaussian that is fitted along (data augmentation; Schafer 1997, section 5.4).

    Rows with the same gaps share one regression.
    """
    gaps, rows = torch.isnan(z), z.double()
    mean = rows.nanmean(0)
    filled = torch.where(gaps, mean, rows)
    patterns, group = gaps.unique(dim=0, return_inverse=True)
    members = [(pattern, (group == i).nonzero()[:, 0]) for i, pattern in enumerate(patterns) if bool(pattern.any())]
    for _ in range(_AUGMENTATIONS):
        mean = filled.mean(0)
        covariance = shrunk_covariance(filled - mean)
        for pattern, place in members:
            known = ~pattern
            noise = torch.randn(len(place), int(pattern.sum()), dtype=torch.float64, generator=generator)
            slope = torch.linalg.solve(covariance[known][:, known], covariance[known][:, pattern])
            rest = covariance[pattern][:, pattern] - covariance[pattern][:, known] @ slope
            factor = torch.linalg.cholesky(0.5 * (rest + rest.mT) + 1e-9 * torch.eye(len(rest)).to(rest))
            centre = mean[pattern] + (filled[place][:, known] - mean[known]) @ slope
            filled[place[:, None], pattern.nonzero()[:, 0]] = centre + noise @ factor.mT
    return filled.to(z)

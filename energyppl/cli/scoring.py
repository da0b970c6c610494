"""``energyppl logz`` and ``energyppl score``: log Z of a trained run, and normalized log densities of rows."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import energyppl as ep
from energyppl._progress import doing
from energyppl.cli.row_files import write_frame
from energyppl.cli.runs import Settings, known_log_z, load_run
from energyppl.errors import InvalidInput
from energyppl.integration.estimates import LogNormalizer
from energyppl.tables.outliers import score

__all__ = ["logz_run", "score_run"]


def logz_run(
    run: Path, *, tolerance: float | None = None, seed: int = 0, device: str | None = None, progress: bool = True
) -> tuple[LogNormalizer, list[str]]:
    """Estimate log Z of a run's level 0 and keep it in ``logz.json``, with a picture of the weights if there are any.

    Args:
        run: made by ``energyppl fit``.
        tolerance: half the interval's width to reach, in nats; by quadrature (up to two coordinates) or one batch of
            runs if None.
        seed: of the runs.
        device: where to work.
        progress: show a bar.

    Returns:
        log Z of the coordinates' energy, and the pictures.
    """
    found = known_log_z(run, load_run(run, device=device), seed=seed, tolerance=tolerance, progress=progress, anew=True)
    pictures = []
    if found.trace is not None:
        figure = ep.plots.log_weight_histogram(found, title=f"{run.name}: log weights")
        pictures.append(str(ep.plots.save_figure(figure, run / "log_weights.png")))
    return found, pictures


def score_run(
    run: Path,
    file: Path,
    out: Path,
    settings: Settings,
    *,
    first: int = 10,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score a table's rows by their log densities under a run's model, least likely first, and write them.

    Args:
        run: made by ``energyppl fit``; its ``logz.json`` is used if it is of this model, else log Z is estimated.
        file: a table with the run's columns.
        out: a .csv file to write, with the columns of :func:`energyppl.tables.score`.
        settings: how to read the table.
        first: for how many rows to look for reasons.
        seed: of the places within cells.
        device: where to work.
        progress: say what is being done.

    Returns:
        The rows in order, their mean with its error, that of held-out rows, and log Z.

    Raises:
        InvalidInput: for a table with other columns.
        CheckpointError: if ``logz.json`` is damaged.
        EnergyPPLError: if a density is not a number.
    """
    model = load_run(run, device=device)
    if out.suffix.lower() != ".csv":
        raise InvalidInput(f"{out} must end in .csv; got {out.suffix or 'no ending'!r}")
    with doing(f"reading {file}", show=progress):
        table = replace(settings, missing="impute").read(file, model.table)  # rows with gaps are left out with a word
    log_z = known_log_z(run, model, seed=seed, progress=progress)
    with doing(f"scoring {len(table.values):,} rows", show=progress):
        found = score(model, table, first=first, log_z=log_z, seed=seed)
        held_out = model.held_out[~np.isnan(model.held_out).any(1)]
        reference = model.log_prob(held_out, log_z, seed=seed)
    write_frame(found, out, decimal=settings.decimal)
    scores = found.log_density.to_numpy()
    finite = scores[np.isfinite(scores)]
    error = float(finite.std(ddof=1)) / math.sqrt(len(finite)) if len(finite) > 1 else math.nan
    return {
        "rows": found,
        "mean": float(finite.mean()) if len(finite) else -math.inf,
        "impossible": len(scores) - len(finite),
        "standard_error": math.hypot(error, log_z.standard_error),
        "held_out_mean": float(reference.mean()),
        "log_z": log_z,
    }

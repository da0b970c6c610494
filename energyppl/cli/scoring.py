"""``energyppl logz`` and ``energyppl score``: log Z of a trained run, and normalized log densities of rows."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from energyppl._checks import check_count
from energyppl._files import write_csv, write_json
from energyppl.cli.runs import FittedTable, damaged_json, load_run, read_json
from energyppl.data.tables import Table, read_table, smallest_gaps
from energyppl.errors import EnergyPPLError, InvalidInput
from energyppl.integration.estimates import LogNormalizer
from energyppl.plots.base import save_figure
from energyppl.plots.normalizers import log_weight_histogram

__all__ = ["known_log_z", "log_densities", "logz_run", "over_cells", "score_run"]

_SPREADS = 16  # draws of a discrete value's cell that its density is averaged over
_KEPT = "logz.json"


def logz_run(
    run: Path, *, tolerance: float | None = None, seed: int = 0, progress: bool = True
) -> tuple[LogNormalizer, list[str]]:
    """Estimate log Z of a run's level 0 and keep it in ``logz.json``, with a picture of the weights if there are any.

    Args:
        run: made by ``energyppl fit``.
        tolerance: half the interval's width to reach, in nats; by quadrature (up to two columns) or one batch of runs
            if None.
        seed: of the runs.
        progress: show a bar.

    Returns:
        log Z in the table's units, and the pictures.
    """
    return _estimated(run, load_run(run), tolerance, seed, progress)


def _estimated(
    run: Path, fitted: FittedTable, tolerance: float | None, seed: int, progress: bool
) -> tuple[LogNormalizer, list[str]]:
    pyro.set_rng_seed(seed)
    found = fitted.ebm.log_normalizer(tolerance=tolerance, progress=progress) + float(np.log(fitted.scale).sum())
    pictures = []
    if found.trace is not None:
        figure = log_weight_histogram(found, title=f"{run.name}: log weights")
        pictures.append(str(save_figure(figure, run / "log_weights.png")))
    write_json(run / _KEPT, {"model": fitted.ebm.checksum(), "log_z": found.to_dict()})
    return found, pictures


def score_run(run: Path, file: Path, out: Path, *, array: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Score a table's rows by their log densities under a run's model, in the table's units, least likely first.

    A discrete value is scored by the mean density over its cell.  All rows share the error of log Z, so their order has
    none of it.

    Args:
        run: made by ``energyppl fit``; its ``logz.json`` is used if it is of this model, else log Z is estimated.
        file: a table with the run's columns.
        out: a .csv file to write: row number, log density, the share of held-out rows that are less likely.
        array: which array of an archive.
        seed: of the spread of discrete values.

    Returns:
        The rows in order, their mean with its error, and log Z.

    Raises:
        InvalidInput: for a table with other columns.
        CheckpointError: if ``logz.json`` is damaged.
        EnergyPPLError: if a density is not a number.
    """
    fitted = load_run(run)
    if out.suffix.lower() != ".csv":
        raise InvalidInput(f"{out} must end in .csv; got {out.suffix or 'no ending'!r}")
    table = read_table(file, array=array)
    order = _order(table, fitted)
    log_z = known_log_z(run, fitted, seed=seed)
    pyro.set_rng_seed(seed)
    scores = log_densities(fitted, table.values[:, order], log_z)
    reference = np.sort(log_densities(fitted, fitted.held_out, log_z))
    below = np.searchsorted(reference, scores) / len(reference)
    rows = np.argsort(scores, kind="stable")
    found = [(int(i), float(scores[i]), float(below[i])) for i in rows]
    write_csv(out, ["row", "log_density", "held_out_rows_less_likely"], found)
    finite = scores[np.isfinite(scores)]
    error = float(finite.std(ddof=1)) / math.sqrt(len(finite)) if len(finite) > 1 else math.nan
    return {
        "rows": found,
        "mean": float(scores.mean()),
        "standard_error": math.hypot(error, log_z.standard_error),
        "held_out_mean": float(reference.mean()),
        "log_z": log_z,
    }


def _order(table: Table, fitted: FittedTable) -> list[int]:
    """Match a table's columns with the run's: by name, or by place where either has no names."""
    wanted = ", ".join(fitted.columns)
    if len(table.columns) != len(fitted.columns):
        raise InvalidInput(
            f"{table.source} must have the {len(fitted.columns)} columns of the run, {wanted}; got "
            f"{len(table.columns)}: {', '.join(table.columns)}"
        )
    if set(table.columns) == set(fitted.columns):
        return [table.columns.index(name) for name in fitted.columns]
    numbered = tuple(f"c{i}" for i in range(len(table.columns)))
    if numbered not in (table.columns, fitted.columns):
        raise InvalidInput(f"{table.source} must have the columns {wanted}; got {', '.join(table.columns)}")
    return list(range(len(table.columns)))


def log_densities(fitted: FittedTable, values: NDArray[np.float64], log_z: LogNormalizer) -> NDArray[np.float64]:
    """Evaluate log densities ``(n,)`` of rows ``(n, d)`` in the table's units."""
    check_count("rows", len(values))

    def minus_energy(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        standard = torch.as_tensor((rows - fitted.loc) / fitted.scale).to(fitted.ebm.loc)
        with torch.no_grad():
            parts = [fitted.ebm.marginal().energy(part) for part in standard.split(65_536)]
        return -torch.cat(parts).double().numpy()

    scores = over_cells(fitted, values, minus_energy) - log_z.estimate
    if np.isnan(scores).any():
        row = int(np.isnan(scores).argmax())
        raise EnergyPPLError(f"the density of row {row} is not a number: the model's training went wrong, fit it again")
    return scores


def over_cells(
    fitted: FittedTable, values: NDArray[np.float64], log_density: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return the log of the mean density over each row's cells of discrete values, ``(n, d)`` to ``(n,)``."""
    width = np.array(smallest_gaps(fitted.grids))
    spreads = _SPREADS if width.any() else 1
    noises = (torch.rand(*values.shape, dtype=torch.float64).numpy() - 0.5 for _ in range(spreads))
    drawn = torch.as_tensor(np.stack([log_density(values + noise * width) for noise in noises]))
    mean: NDArray[np.float64] = (torch.logsumexp(drawn, 0) - math.log(spreads)).numpy()
    return mean


def known_log_z(run: Path, fitted: FittedTable, *, seed: int) -> LogNormalizer:
    """Return log Z in the table's units from ``logz.json`` if it is of this model, else estimate and keep it."""
    return _kept(run, fitted) or _estimated(run, fitted, None, seed, progress=False)[0]


def _kept(run: Path, fitted: FittedTable) -> LogNormalizer | None:
    """Return log Z from ``logz.json``, if it is there and of this very model.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = run / _KEPT
    kept = read_json(path) if path.exists() else None
    if kept is None:
        return None
    with damaged_json(path):
        if kept["model"] != fitted.ebm.checksum():
            return None
        found = LogNormalizer.from_dict(kept["log_z"])
        if not (found.lower <= found.estimate <= found.upper and found.standard_error >= 0.0):
            raise ValueError(f"log Z = {found.estimate} does not lie within {found.lower} to {found.upper}")
        if not math.isfinite(found.estimate):
            raise ValueError(f"log Z = {found.estimate}")
    return found

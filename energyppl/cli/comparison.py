"""``energyppl show``: a trained run's held-out rows against its samples, in numbers and pictures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import energyppl as ep
from energyppl._files import write_json
from energyppl._progress import doing
from energyppl.cli.runs import known_log_z, load_run
from energyppl.tables.model import TableModel
from energyppl.tables.quality import quality

__all__ = ["quality_of_run", "record_of", "show_run"]

_SAMPLES = 1000


def quality_of_run(run: Path, fitted: TableModel, *, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """Measure the model of a run on its held-out rows."""
    torch.manual_seed(seed)
    with doing(f"drawing {_SAMPLES:,} samples", show=progress):
        samples = fitted.sample_values(_SAMPLES)
    log_z = known_log_z(run, fitted, seed=seed, progress=progress)
    with doing("comparing with held-out rows", show=progress):
        return quality(fitted, samples, log_z, seed=seed)


def show_run(
    run: Path, *, count: int = 2000, seed: int = 0, device: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Compare held-out rows with samples, draw pictures, and write both into ``run``.

    Args:
        run: made by :func:`fit_table`.
        count: samples to draw.
        seed: of the samples.
        device: where to work.
        progress: say what is being done.

    Returns:
        The record of the training, as in ``run.json``; for each column the mean, the standard deviation and three
        quantiles of the held-out rows and the samples; the largest difference of correlations, with its columns; and
        what :func:`quality` finds.
    """
    fitted = load_run(run, device=device)
    torch.manual_seed(seed)
    with doing(f"drawing {count:,} samples", show=progress):
        samples = fitted.sample_values(count)
    log_z = known_log_z(run, fitted, seed=seed, progress=progress)
    with doing("comparing with held-out rows", show=progress):
        report = {**record_of(fitted), **_compare(fitted, samples), **quality(fitted, samples, log_z, seed=seed)}
    step = fitted.curves["step"]
    titles = {
        "energy gap, nats": "energy_gap",
        "acceptance": "acceptance",
        "denoising error": "denoising",
        "error of the level tie": "tie",
        "gradient norm": "gradient_norm",
        "held-out measure": "held_out",
    }
    name = Path(report["source"]).name
    rows, values = fitted.rows[~np.isnan(fitted.rows).any(1)], fitted.table.names_of_values()
    with doing("drawing pictures", show=progress):
        figures = {
            "pairs.png": ep.plots.pair_plot(rows, samples, fitted.columns, title=name, categories=values),
        }
        if len(step):  # an average was not trained itself
            curves = {title: (step, fitted.curves[key]) for title, key in titles.items() if key in fitted.curves}
            figures["training.png"] = ep.plots.training_curves(curves, title=f"{name}: training")
        report["pictures"] = [str(ep.plots.save_figure(figure, run / file)) for file, figure in figures.items()]
    write_json(run / "report.json", report)
    return report


def record_of(fitted: TableModel) -> dict[str, Any]:
    """Return the record of a run, or as much of it as a model tells that was trained and saved in Python."""
    validation = 0 if fitted.validation is None else len(fitted.validation)
    own = {
        "source": fitted.table.source,
        "rows": {"training": len(fitted.rows), "validation": validation, "held_out": len(fitted.held_out)},
        "columns": list(fitted.columns),
        "transforms": fitted.transform.words(),
        "missing": int(fitted.table.missing.sum()),
        "steps": len(fitted.curves["step"]),
        "seconds": 0.0,
        "stopped": "",
    }
    return {**own, **fitted.record}


def _compare(fitted: TableModel, samples: NDArray[np.float64]) -> dict[str, Any]:
    held_out = fitted.held_out[~np.isnan(fitted.held_out).any(1)]
    sides = {"held_out": held_out, "samples": samples}
    columns, shares = {}, {}
    for j, (name, labels) in enumerate(zip(fitted.columns, fitted.table.names_of_values(), strict=True)):
        if labels:
            counts = {side: np.bincount(x[:, j].astype(int), minlength=len(labels)) for side, x in sides.items()}
            shares[name] = {
                str(label): {side: float(count[i] / count.sum()) for side, count in counts.items()}
                for i, label in enumerate(labels)
            }
            continue
        columns[name] = {
            side: dict(
                zip(
                    ("mean", "sd", "5%", "50%", "95%"),
                    [float(x[:, j].mean()), float(x[:, j].std()), *np.quantile(x[:, j], [0.05, 0.5, 0.95]).tolist()],
                    strict=True,
                )
            )
            for side, x in sides.items()
        }
    found: dict[str, Any] = {"compared": columns, "shares": shares}
    numbers = [j for j, labels in enumerate(fitted.table.labels) if not labels]
    if len(numbers) > 1:
        with np.errstate(invalid="ignore", divide="ignore"):  # a rare value can be missing from few held-out rows
            here, there = (np.corrcoef(x[:, numbers].T) for x in sides.values())
        difference = np.nan_to_num(np.abs(here - there))
        i, j = divmod(int(difference.argmax()), len(difference))
        own = float(np.nan_to_num(here[i, j]))
        found["largest_correlation_difference"] = {
            "columns": [fitted.columns[numbers[i]], fitted.columns[numbers[j]]],
            "held_out": own,
            "samples": float(np.nan_to_num(there[i, j])),
            "standard_error": (1.0 - own**2) / math.sqrt(len(held_out)),  # of Gaussian columns
        }
    return found

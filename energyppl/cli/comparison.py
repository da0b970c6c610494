"""``energyppl show``: a trained run's held-out rows against its samples, in numbers and pictures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
from numpy.typing import NDArray

from energyppl import plots
from energyppl._files import write_json
from energyppl.cli.quality import quality
from energyppl.cli.runs import FittedTable, load_run
from energyppl.cli.scoring import known_log_z

__all__ = ["show_run"]


def show_run(run: Path, *, count: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Compare held-out rows with samples, draw pictures, and write both into ``run``.

    Args:
        run: made by :func:`fit_table`.
        count: samples to draw.
        seed: of the samples.

    Returns:
        The record of the training, as in ``run.json``; for each column the mean, the standard deviation and three
        quantiles of the held-out rows and the samples; the largest difference of correlations, with its columns; and
        what :func:`quality` finds.
    """
    fitted = load_run(run)
    pyro.set_rng_seed(seed)
    samples = fitted.sample(count)
    report = {
        **fitted.record,
        **_compare(fitted, samples),
        **quality(fitted, samples, known_log_z(run, fitted, seed=seed), seed=seed),
    }
    step = fitted.curves["step"]
    titles = {
        "energy gap, nats": "energy_gap",
        "acceptance": "acceptance",
        "denoising error": "denoising",
        "error of the level tie": "tie",
        "gradient norm": "gradient_norm",
        "held-out measure": "held_out",
    }
    name = Path(str(fitted.record["source"])).name
    figures = {
        "pairs.png": plots.pair_plot(fitted.rows, samples, fitted.columns, title=name),
        "training.png": plots.training_curves(
            {title: (step, fitted.curves[key]) for title, key in titles.items() if key in fitted.curves},
            title=f"{name}: training",
        ),
    }
    report["pictures"] = [str(plots.save_figure(figure, run / file)) for file, figure in figures.items()]
    write_json(run / "report.json", report)
    return report


def _compare(fitted: FittedTable, samples: NDArray[np.float64]) -> dict[str, Any]:
    sides = {"held_out": fitted.held_out, "samples": samples}
    columns = {}
    for j, name in enumerate(fitted.columns):
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
    found: dict[str, Any] = {"compared": columns}
    if len(fitted.columns) > 1:
        with np.errstate(invalid="ignore", divide="ignore"):  # a rare value can be missing from few held-out rows
            here, there = (np.corrcoef(x.T) for x in sides.values())
        difference = np.nan_to_num(np.abs(here - there))
        i, j = divmod(int(difference.argmax()), len(difference))
        found["largest_correlation_difference"] = {
            "columns": [fitted.columns[i], fitted.columns[j]],
            "held_out": float(np.nan_to_num(here[i, j])),
            "samples": float(np.nan_to_num(there[i, j])),
            "standard_error": 1.0 / math.sqrt(len(fitted.held_out)),
        }
    return found

"""Quality of a trained run: held-out log density, log Z, a two-sample test of its samples, and a verdict."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from energyppl.cli.runs import FittedTable, load_run
from energyppl.cli.scoring import known_log_z, log_densities, over_cells
from energyppl.data.tables import smallest_gaps
from energyppl.integration.estimates import LogNormalizer
from energyppl.metrics.two_sample import energy_distance_test

__all__ = ["quality", "quality_of_run"]

_LIKE = 0.05  # p-values below say that samples differ
_FAR_APART = 0.5  # nats between log Z and what training alone implies


def quality_of_run(run: Path, *, count: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Measure a run on its held-out rows, by as many samples."""
    fitted = load_run(run)
    pyro.set_rng_seed(seed)
    samples = fitted.sample(count)
    return quality(fitted, samples, known_log_z(run, fitted, seed=seed), seed=seed)


def quality(
    fitted: FittedTable, samples: NDArray[np.float64], log_z: LogNormalizer, *, seed: int = 0
) -> dict[str, Any]:
    """Measure a run on its held-out rows.

    Args:
        fitted: the trained model and its table.
        samples: of the model, ``(n, d)`` in the table's units.
        log_z: in the table's units.
        seed: of the spread of discrete values.

    Returns:
        ``log_density``, the mean over held-out rows in nats and the table's units, with its standard error, log Z's
        included; ``gaussian``, by how much it is above that of a Gaussian with the training rows' mean and covariance;
        ``log_z``, in standardized coordinates, where training alone implies 0; ``energy_distance``, a two-sample test
        of samples and held-out rows; and ``verdict``, sentences.
    """
    pyro.set_rng_seed(seed)
    own = log_densities(fitted, fitted.held_out, log_z)
    rows = fitted.rows
    of_cells = np.square(smallest_gaps(fitted.grids)) / 12.0  # the variance of uniform noise as wide as each
    covariance = np.cov(rows.T).reshape(rows.shape[1], -1) + np.diag(of_cells)
    gaussian = over_cells(fitted, fitted.held_out, _gaussian(rows.mean(0), covariance))
    x, y = (torch.as_tensor((v[:1000] - fitted.loc) / fitted.scale) for v in (fitted.held_out, samples))
    test = energy_distance_test(x, y)
    std = float(fitted.ebm.schedule.marginal_std[0])
    jacobian = float(fitted.ebm.scale.log().sum()) + len(fitted.scale) * math.log(std) + np.log(fitted.scale).sum()
    found = {
        "log_density": _mean(own, log_z.standard_error),
        "gaussian": _mean(own - gaussian, log_z.standard_error),
        "log_z": {
            "value": log_z.estimate - jacobian,
            "standard_error": log_z.standard_error,
            "method": log_z.method,
            "warning": log_z.warning,
        },
        "energy_distance": {"statistic": test.statistic, "p_value": test.p_value, "rows": [len(x), len(y)]},
    }
    return {**found, "verdict": _verdict(found)}


def _gaussian(
    mean: NDArray[np.float64], covariance: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return a Gaussian's log density of rows; columns that are constant in the rows get a little width."""
    width = np.sqrt(np.diag(covariance))
    floor = np.where(width > 0.0, 1e-6 * width, 1e-6 * np.maximum(np.abs(mean), 1e-300))
    factor = np.linalg.cholesky(covariance + np.diag(floor**2))

    def log_density(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        white = solve_triangular(factor, (rows - mean).T, lower=True)
        constant = np.log(np.diag(factor)).sum() + 0.5 * len(mean) * math.log(2.0 * math.pi)
        found: NDArray[np.float64] = -0.5 * np.square(white).sum(0) - constant
        return found

    return log_density


def _mean(values: NDArray[np.float64], more: float) -> dict[str, float]:
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return {"value": float(values.mean()), "standard_error": math.hypot(error, more)}


def _verdict(found: dict[str, Any]) -> list[str]:
    above, log_z, p_value = found["gaussian"], found["log_z"], found["energy_distance"]["p_value"]
    amount = f"{abs(above['value']):.3f} ± {above['standard_error']:.3f} nats a row"
    gaussian = "a Gaussian with the training rows' mean and covariance"
    if not math.isfinite(above["value"]) or not math.isfinite(above["standard_error"]):
        said = ["the log density of held-out rows is not known: some have none under the model, or log Z is refuted"]
    elif above["value"] > 2.0 * above["standard_error"]:
        said = [f"held-out rows are likelier than under {gaussian}, by {amount}"]
    elif above["value"] < -2.0 * above["standard_error"]:
        said = [
            f"{gaussian} describes held-out rows better, by {amount}: the rows may be too few, or training too short"
        ]
    else:
        said = [f"held-out rows are about as likely as under {gaussian} ({amount})"]
    if p_value >= _LIKE:
        said.append(f"the two-sample test can't tell samples from held-out rows (p = {p_value:.3f})")
    else:
        said.append(f"samples differ from held-out rows (p = {p_value:.3f}): energyppl show draws where")
    if log_z["warning"]:
        said.append(f"log Z, and with it every log density, is in doubt: {log_z['warning']}")
    elif abs(log_z["value"]) > _FAR_APART + 2.0 * log_z["standard_error"]:
        said.append(
            f"log Z is {log_z['value']:+.2f} where training alone implies 0: log densities here use the estimate, and "
            "implied_log_prob would be off by as much"
        )
    return said

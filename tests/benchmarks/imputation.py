"""Missing cells of real tables: draws of conditional chains beside the mean, nearest neighbours and regressions.

``python -m tests.benchmarks imputation FILE.npz ARRAY [ARRAY …] [--share .1] [--depending] [--seeds N] [--steps N]``

Cells are removed at random, or (``--depending``) from half of the columns with a probability that grows with the rank
of a column that stays whole.  ``ep.tables.fit(missing="impute")`` trains on the table with its gaps and
``ep.tables.impute`` draws the cells; nobody sees their values.  Beside it: each column's mean, scikit-learn's
``KNNImputer`` (10 neighbours, columns standardized) and ``IterativeImputer`` (Bayesian ridge regressions; for intervals
as many draws of its posterior, ``sample_posterior``).

For each: the root mean squared error in standard deviations of the column; the log score, the mean log density of a
normal with the draws' mean and deviation (of the column for the mean, of removed known cells for neighbours), in nats
in the same units, higher is better; and how many 95 % intervals hold the cell (quantiles of the draws, else ± 1.96
deviations).  ± is the standard error over cells.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import energyppl as ep
from tests.benchmarks.likelihood import read_arrays

Array = NDArray[np.float64]
_NEIGHBOURS = 10


def remove(values: Array, share: float, depending: bool, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose the cells to remove, no row losing all of its own."""
    n, d = values.shape
    if not depending:
        holes = rng.random((n, d)) < share
    else:
        whole = rng.permutation(d)[: (d + 1) // 2]
        holes = np.zeros((n, d), bool)
        for j in np.setdiff1d(np.arange(d), whole):
            rank = values[:, rng.choice(whole)].argsort().argsort() / n
            chance = 2.0 * share * d / (d - len(whole)) * rank  # of mean share · d / (columns that lose cells)
            holes[:, j] = rng.random(n) < np.minimum(chance, 0.9)
    holes[holes.all(1), 0] = False
    return holes


def by_chains(values: Array, steps: int | None, draws: int, seed: int) -> Array:
    """Draws of all missing cells, ``(m, n, d)``."""
    table = ep.data.table_from_frame(ep.data.table_from_array(np.nan_to_num(values)).frame(values), missing="impute")
    model = ep.tables.fit(table, missing="impute", steps=steps, seed=seed, progress=False)
    found = ep.tables.impute(model, table, draws=draws, seed=seed)
    return np.stack([frame.to_numpy(np.float64) for frame in found.completed()])


def by_regressions(values: Array, draws: int, seed: int) -> tuple[Array, Array]:
    """Best values ``(n, d)`` and draws ``(m, n, d)`` of scikit-learn's iterative imputer."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    best = IterativeImputer(random_state=seed).fit_transform(values)
    drawn = IterativeImputer(sample_posterior=True, random_state=seed, max_iter=5)
    return best, np.stack([drawn.set_params(random_state=seed + i).fit_transform(values) for i in range(draws)])


def by_neighbours(values: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Best values ``(n, d)`` and the deviation of each column's errors, on known cells that are removed for it."""
    from sklearn.impute import KNNImputer

    more = ~np.isnan(values) & (rng.random(values.shape) < 0.1)
    tried = KNNImputer(n_neighbors=_NEIGHBOURS).fit_transform(np.where(more, np.nan, values))
    deviation = np.array(
        [np.std((tried - values)[more[:, j], j]) if more[:, j].any() else 1.0 for j in range(len(more.T))]
    )
    return KNNImputer(n_neighbors=_NEIGHBOURS).fit_transform(values), np.maximum(deviation, 1e-3)


def line(name: str, truth: Array, best: Array, mean: Array, sd: Array, low: Array, high: Array) -> str:
    """One method's figures on the removed cells, ``(k,)`` each, in standard deviations of the columns."""
    off, width = best - truth, np.maximum(sd, 1e-3)
    scores = -0.5 * np.square((truth - mean) / width) - np.log(width) - 0.5 * np.log(2.0 * np.pi)
    inside = (low <= truth) & (truth <= high)
    rmse = float(np.sqrt(np.square(off).mean()))
    error = float(np.square(off).std() / np.sqrt(len(off)) / (2.0 * rmse))
    return (
        f"    {name:14} RMSE {rmse:.3f} ± {error:.3f}, log score {scores.mean():+.3f} ± "
        f"{scores.std() / np.sqrt(len(off)):.3f}, 95 % intervals hold {inside.mean():.1%}"
    )


def compare(name: str, values: Array, args: argparse.Namespace, seed: int) -> None:
    """Print the figures of one table and one choice of cells."""
    rng = np.random.default_rng(seed)
    values = np.unique(values, axis=0)[: args.rows] if args.rows else values
    values = values[rng.permutation(len(values))]
    holes = remove(values, args.share, args.depending, rng)
    gappy = np.where(holes, np.nan, values)
    mean, sd = np.nanmean(gappy, 0), np.nanstd(gappy, 0)
    unit, truth = (gappy - mean) / sd, ((values - mean) / sd)[holes]
    began = time.process_time()
    drawn = (by_chains(gappy, args.steps, args.draws, seed) - mean)[:, holes] / np.broadcast_to(sd, holes.shape)[holes]
    seconds = time.process_time() - began
    tails = np.percentile(drawn, [2.5, 97.5], axis=0, method="weibull")  # hold one more draw with 95 %; else 93 of 100
    zero = np.zeros_like(truth)
    how = "depending on others" if args.depending else "at random"
    print(f"{name} {values.shape}, {holes.sum()} cells removed {how}, seed {seed}; {seconds:.0f} CPU s for the chains")
    print(line("chains", truth, drawn.mean(0), drawn.mean(0), drawn.std(0, ddof=1), *tails))
    print(line("mean", truth, zero, zero, zero + 1.0, zero - 1.96, zero + 1.96))
    try:
        best, deviation = by_neighbours(unit, rng)
        best, width = best[holes], np.broadcast_to(deviation, holes.shape)[holes]
        print(line("neighbours", truth, best, best, width, best - 1.96 * width, best + 1.96 * width))
        best, posterior = by_regressions(unit, args.draws, seed)
        centre, width = posterior[:, holes].mean(0), posterior[:, holes].std(0, ddof=1)
        print(line("regressions", truth, best[holes], centre, width, centre - 1.96 * width, centre + 1.96 * width))
    except ImportError as missing:
        print(f"    scikit-learn left out: {missing}")
    print("", end="", flush=True)


def main(arguments: list[str]) -> None:
    """Some lines for each table and seed."""
    parser = argparse.ArgumentParser(prog="imputation", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("arrays", nargs="+")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--depending", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--rows", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name, values in read_arrays(args.file, args.arrays).items():
        for seed in range(args.seeds):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scikit-learn's, of sweeps that have not converged
                compare(name, values, args, seed)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

"""Tables: quantiles, marginals and correlations of samples against rows that trained nothing.

``python -m tests.benchmarks tables [FILE.npz [ARRAY …]]``

Without a file five made tables are trained, of log-normal, Cauchy, bounded, discrete and mixed columns, 4,000 rows
each, and 20,000 samples are compared with the truth, which 200,000 fresh rows stand for: quantiles 1, 5, 25, 50, 75, 95
and 99 % of each column in standard errors of as many rows as were held out (400, by bootstrap of the fresh ones), and
rank correlations, which heavy tails do not spoil.  Those of 400 held-out rows are off by .1 to .15 themselves, so they
are no measure.  The table's own rows are what a model can know of the truth, and samples are compared with them too;
their own distance from the truth shrinks with ``--rows``.

With a file each numeric table of it is trained as ``energyppl fit`` does and as many samples
compared with its held-out rows: the worst column's Kolmogorov–Smirnov distance, the worst difference of two
correlations, and the energy-distance two-sample test on standardized rows.  Beside each, the same for real rows: what
chance alone gives.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.stats import ks_2samp

import energyppl as ep
from energyppl.cli.runs import Settings, fit_table
from energyppl.metrics.two_sample import energy_distance_test
from tests.benchmarks.made_tables import MARGINALS

Array = NDArray[np.float64]
_SHARES = np.array([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
_SAMPLES, _FRESH = 20_000, 200_000


def compare(x: Array, y: Array) -> str:
    """Worst KS distance, worst correlation difference, and the two-sample test's p-value."""
    worst = max(ks_2samp(a, b).statistic for a, b in zip(x.T, y.T, strict=True))
    corr = float(np.abs(np.corrcoef(x.T) - np.corrcoef(y.T)).max())
    loc, scale = y.mean(0), y.std(0)
    a, b = (torch.as_tensor((v[:1500] - loc) / scale) for v in (x, y))
    test = energy_distance_test(a, b, 300)
    return f"KS {worst:.3f}, correlation {corr:.3f}, energy distance {test.statistic:.4f} (p {test.p_value:.3f})"


def coded(frame: pd.DataFrame) -> Array:
    """A frame's columns as numbers, a category by an indicator column each."""
    return pd.get_dummies(frame).to_numpy(np.float64)


def quantiles(x: Array, y: Array, held_out: int, rng: Generator) -> tuple[float, float, float]:
    """Compare quantiles of columns ``x`` with those of ``y``: the worst in standard errors, and two shares.

    The standard error is of a quantile of ``held_out`` rows.  The shares are of the columns' quantiles that are more
    than two and more than three of them off.
    """
    off = []
    for own, other in zip(x.T, y.T, strict=True):
        drawn = np.quantile(rng.choice(other, (200, held_out)), _SHARES, axis=1)
        error = np.maximum(drawn.std(1), 1e-12)
        off.append(np.abs(np.quantile(own, _SHARES) - np.quantile(other, _SHARES)) / error)
    every = np.concatenate(off)
    return float(every.max()), float((every > 2.0).mean()), float((every > 3.0).mean())


def ranks(x: Array) -> Array:
    """Correlations of ranks, ``(d, d)``."""
    return np.atleast_2d(pd.DataFrame(x).corr(method="spearman").to_numpy(np.float64))


def made(name: str, draw: Callable[[Generator, int], pd.DataFrame], rows: int, steps: int | None, seed: int) -> None:
    """Train on a made table and compare samples with fresh rows."""
    rng = np.random.default_rng(seed)
    training, fresh = draw(rng, rows), draw(rng, _FRESH)
    began = time.process_time()
    model = ep.tables.fit(training, steps=steps, seed=seed, progress=False)
    trained = time.process_time() - began
    samples, truth = coded(model.sample(_SAMPLES, seed=seed)), coded(fresh)
    own, held_out = coded(training), len(model.held_out)
    print(f"{name}, {rows} rows, seed {seed}, {trained:.0f} CPU s; quantiles in standard errors of {held_out} rows")
    for what, x in (
        ("samples", samples),
        ("the table's rows", own),
        (f"{held_out} fresh rows", coded(draw(rng, held_out))),
    ):
        worst, two, three = quantiles(x, truth, held_out, rng)
        off, known = (float(np.abs(ranks(x) - ranks(other)).max()) for other in (truth, own))
        print(
            f"  {what:16} worst {worst:5.2f}, {two:.1%} over 2, {three:.1%} over 3; rank correlations off the truth by "
            f"{off:.3f}, off the table's rows by {known:.3f}"
        )
    print("", end="", flush=True)


def from_file(path: Path, arrays: list[str], steps: int | None) -> None:
    """Train on a file's tables and compare samples with held-out rows."""
    with np.load(path, allow_pickle=False) as archive:
        chosen = {name: archive[name] for name in arrays or archive.files}
    for name, values in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.npy"
            np.save(file, values)
            begin = time.process_time()
            fitted = fit_table(file, Path(folder) / "run", Settings(steps=steps), progress=False)
            record, samples = fitted.record, fitted.sample_values(len(fitted.held_out))
        print(
            f"{name} {values.shape}, {time.process_time() - begin:.0f} CPU s, {record['steps']} steps "
            f"({record['stopped']})"
        )
        print(f"  samples  against held out: {compare(samples, fitted.held_out)}")
        print(f"  training against held out: {compare(fitted.rows, fitted.held_out)}", flush=True)


def main(arguments: list[str]) -> None:
    """Some lines for each table."""
    parser = argparse.ArgumentParser(prog="tables", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("arrays", nargs="*")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=MARGINALS, help="made tables to take")
    parser.add_argument("--steps", type=int, help="of training; what suits a table if left out")
    parser.add_argument("--rows", type=int, default=4000, help="of a made table (default: 4000)")
    parser.add_argument("--seeds", type=int, default=1, help="of made tables, how many (default: 1)")
    parser.add_argument("--first", type=int, default=0, help="the first of these seeds (default: 0)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.file is not None:
        from_file(args.file, args.arrays, args.steps)
        return
    for name in args.only or MARGINALS:
        for seed in range(args.first, args.first + args.seeds):
            made(name, MARGINALS[name], args.rows, args.steps, seed)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

"""Real tables: marginals and correlations of samples against held-out rows.

``python -m tests.benchmarks tables FILE.npz [ARRAY …]``

Fits each numeric table of the file as ``energyppl fit`` does and compares as many samples with its held-out rows: the
worst column's Kolmogorov–Smirnov distance, the worst difference of two correlations, and the energy-distance two-sample
test on standardized rows.  Beside each, the same for training rows against held-out rows: what chance alone gives.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from energyppl.cli.runs import Settings, fit_table
from energyppl.metrics.two_sample import energy_distance_test


def compare(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """Worst KS distance, worst correlation difference, and the two-sample test's p-value."""
    worst = max(ks_2samp(a, b).statistic for a, b in zip(x.T, y.T, strict=True))
    corr = float(np.abs(np.corrcoef(x.T) - np.corrcoef(y.T)).max())
    loc, scale = y.mean(0), y.std(0)
    a, b = (torch.as_tensor((v[:1500] - loc) / scale) for v in (x, y))
    test = energy_distance_test(a, b, 300)
    return f"KS {worst:.3f}, correlation {corr:.3f}, energy distance {test.statistic:.4f} (p {test.p_value:.3f})"


def main(arguments: list[str]) -> None:
    """One line for each table."""
    parser = argparse.ArgumentParser(prog="tables", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("arrays", nargs="*")
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args(arguments)
    with np.load(args.file, allow_pickle=False) as archive:
        chosen = {name: archive[name] for name in args.arrays or archive.files}
    for name, values in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.npy"
            np.save(path, values)
            begin = time.perf_counter()
            fitted = fit_table(path, Path(folder) / "run", Settings(steps=args.steps), progress=False)
            record = fitted.record
            samples = fitted.sample_values(len(fitted.held_out))
        print(
            f"{name} {values.shape}, {time.perf_counter() - begin:.0f} s, {record['steps']} steps ({record['stopped']})"
        )
        print(f"  samples  against held out: {compare(samples, fitted.held_out)}")
        print(f"  training against held out: {compare(fitted.rows, fitted.held_out)}", flush=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

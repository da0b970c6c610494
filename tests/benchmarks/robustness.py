"""Figure 3: seeds × learning rates, on the checkerboard or on tables: divergences, and the worst run beside the median.

``python -m tests.benchmarks robustness [FILE.npz [ARRAY …]] [--seeds N] [--first N] [--updates N]``

Without a file the checkerboard, with and without the Fourier features that once ran away: 32 Gaussian ones of scale 2,
those of the run that diverged when its chains started at the noisy point; ``none`` is the plain perceptron.  Asked for:
no divergence, and no gap above twice the median of its rate.

With a file, airfoil and concrete of it or the arrays named, the defaults of ``fit`` at half, once and twice the
learning rate that suits a table.  The rows are split 0's of ``likelihood``, whose test rows have the same noise in all
runs; each figure is minus their mean log density in nats, log Z estimated by ``log_normalizer``.  Asked for: no
divergence, and no run worse than the median of its rate by more than .3 nats.
"""

import argparse
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import energyppl as ep
from tests.benchmarks.density import gap
from tests.benchmarks.likelihood import read_arrays, split

RATES = (5e-4, 1e-3, 2e-3)  # on the checkerboard
FACTORS = (0.5, 1.0, 2.0)  # of the rate that suits a table

Run = Callable[[int, int | None], float]  # of a seed and a number of updates; the figure that is to be small

POINTS = 512  # of the grid of the gap, along each axis


def on_checkerboard(features: bool, rate: float, seed: int, updates: int | None) -> float:
    """The gap of level 0 after training, in nats."""
    torch.manual_seed(seed)
    toy = ep.toys.Checkerboard()
    data = toy.sample((50_000,))
    net = ep.MLPEnergy((2,), frequencies=32 if features else 0)
    if features:
        net.frequencies.copy_(2.0 * torch.randn_like(net.frequencies))
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(6))
    ebm.standardize(data, isotropic=True)  # so that the truth at a level is the toy with isotropic noise
    ep.fit(ebm, data, options=ep.TrainingOptions(steps=updates or 1500, learning_rate=rate), progress=False)
    return gap(ebm, toy, points=POINTS)


def on_table(rows: Sequence[Tensor], rate: float, seed: int, updates: int | None) -> float:
    """Minus the mean log density of test rows, the last of three sets, in nats of standardized columns."""
    train, valid, test = rows
    torch.manual_seed(seed)
    ebm = ep.models.model_of_columns(train.shape[1])
    options = ep.Training(ebm, train).options
    options = replace(options, learning_rate=rate, steps=updates or options.steps)
    ep.fit(ebm, train, held_out=valid, options=options, progress=False)
    torch.manual_seed(0)
    noisy = ebm.diffuse(test, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of log Z: a run that it is in doubt for shows as one far from the median
        log_z = ebm.log_normalizer()
    with torch.no_grad():
        return log_z.estimate + float(ebm.marginal().energy(noisy).mean())


def table_cases(file: Path, arrays: list[str]) -> dict[str, Run]:
    """Return a run for each table and rate, by name."""
    cases: dict[str, Run] = {}
    for name, table in read_arrays(file, arrays).items():
        *rows, _ = split(table, 0)
        objective = ep.objectives.LevelScoreMatching()
        suited = objective.default_optimizer(ep.models.model_of_columns(table.shape[1]), len(rows[0]))
        usual = suited.learning_rate or 1e-3
        for rate in (factor * usual for factor in FACTORS):
            cases[f"{name} rate {rate:.0e}"] = partial(on_table, rows, rate)
    return cases


def checkerboard_cases() -> dict[str, Run]:
    """Return a run for each rate, with features and without, by name."""
    return {
        f"{'features' if features else 'none':8} rate {rate:.0e}": partial(on_checkerboard, features, rate)
        for features in (True, False)
        for rate in RATES
    }


def main(arguments: list[str]) -> None:
    """Print every run, then the table."""
    parser = argparse.ArgumentParser(prog="robustness", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("arrays", nargs="*", default=["airfoil", "concrete"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--updates", type=int)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = checkerboard_cases() if args.file is None else table_cases(args.file, args.arrays)
    found: dict[str, list[float]] = defaultdict(list)
    for seed in range(args.first, args.first + args.seeds):
        for name, run in cases.items():
            try:
                found[name].append(run(seed, args.updates))
            except ep.TrainingDiverged as error:
                print(f"DIVERGED: {error}", flush=True)
                found[name].append(float("inf"))
            print(f"{name} seed {seed}: {found[name][-1]:.4f}", flush=True)
    for name, gaps in found.items():
        middle, worst = statistics.median(gaps), max(gaps)
        print(
            f"{name}: median {middle:.4f}, worst {worst:.4f} (by {worst - middle:.4f}, {worst / middle:.2f} × median), "
            f"{sum(g == float('inf') for g in gaps)} of {len(gaps)} diverged"
        )

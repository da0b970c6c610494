"""Figure 3: seeds × learning rates on the checkerboard, with and without the Fourier features that once ran away.

``python -m tests.benchmarks robustness [--seeds N] [--first N] [--updates N]``

The features are 32 Gaussian ones of scale 2, those of the run that diverged when its chains started at the noisy point;
``none`` is the plain perceptron.  Asked for: no divergence, and no gap above twice the median of its rate.
"""

import argparse
import statistics
from collections import defaultdict

import torch

import energyppl as ep
from tests.benchmarks.density import gap

POINTS = 512  # of the grid of the gap, along each axis


def run(features: bool, rate: float, seed: int, updates: int) -> float:
    """The gap of level 0 after training, in nats; infinity if training diverged."""
    torch.manual_seed(seed)
    toy = ep.toys.Checkerboard()
    data = toy.sample((50_000,))
    net = ep.MLPEnergy((2,), frequencies=32 if features else 0)
    if features:
        net.frequencies.copy_(2.0 * torch.randn_like(net.frequencies))
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(6))
    ebm.standardize(data, isotropic=True)  # so that the truth at a level is the toy with isotropic noise
    try:
        ep.fit(ebm, data, options=ep.TrainingOptions(steps=updates, learning_rate=rate), progress=False)
    except ep.TrainingDiverged as error:
        print(f"DIVERGED: {error}", flush=True)
        return float("inf")
    return gap(ebm, toy, points=POINTS)


def main(arguments: list[str]) -> None:
    """Print every run, then the table."""
    parser = argparse.ArgumentParser(prog="robustness", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--updates", type=int, default=1500)
    args = parser.parse_args(arguments)
    found: dict[tuple[bool, float], list[float]] = defaultdict(list)
    for seed in range(args.first, args.first + args.seeds):
        for features in (True, False):
            for rate in (5e-4, 1e-3, 2e-3):
                found[features, rate].append(run(features, rate, seed, args.updates))
                name = "features" if features else "none"
                print(f"{name:8} rate {rate:.0e} seed {seed}: {found[features, rate][-1]:.4f}", flush=True)
    for (features, rate), gaps in found.items():
        middle, worst = statistics.median(gaps), max(gaps)
        print(
            f"{'features' if features else 'none':8} rate {rate:.0e}: median {middle:.4f}, worst {worst:.4f} "
            f"({worst / middle:.2f} × median), {sum(g == float('inf') for g in gaps)} of {len(gaps)} diverged"
        )

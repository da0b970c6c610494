"""Figure 2b: generation from white noise on five toys, as a curve over energy evaluations per sample.

``python -m tests.benchmarks generation [--steps N] [--size N] [TOY …]``

For each budget: share of samples on the support (data noised to level 0 beside it), the largest deviation of a mode's
mass from fresh data's and its chi-square p-value, and the energy-distance two-sample test of 2,000 samples against
2,000 fresh points noised to level 0.  One evaluation is one call of the network for one chain (Crank–Nicolson needs no
gradient).
"""

import argparse

import torch
from scipy.stats import chi2_contingency
from torch import Tensor

import energyppl as ep
from energyppl.metrics.two_sample import energy_distance_test
from tests.benchmarks.density import FIVE, gap, train


def masses(toy: ep.toys.Toy, x: Tensor) -> Tensor:
    """How many points belong to each mode."""
    return torch.bincount(toy.modes(x), minlength=toy.number_of_modes)


def report(name: str, ebm: ep.RecoveryEBM, toy: ep.toys.Toy, budgets: tuple[int, ...], size: int) -> None:
    """One line for each number of steps."""
    fresh = ebm.diffuse(toy.sample((size,)), 0)
    other = ebm.diffuse(toy.sample((20_000,)), 0)
    print(f"{name}: gap of level 0 {gap(ebm, toy):.4f}, data on the support {share(toy, other):.3f}", flush=True)
    for steps in budgets:
        found = ebm.generate((size,), steps=steps)
        x = ebm.loc + ebm.scale * found.x
        ours, theirs = masses(toy, x), masses(toy, other)
        keep = (ours + theirs) > 0
        chi2 = chi2_contingency(torch.stack([ours, theirs])[:, keep].numpy()).pvalue if int(keep.sum()) > 1 else 1.0
        deviation = float((ours / ours.sum() - theirs / theirs.sum()).abs().max())
        test = energy_distance_test(x, fresh, 400)
        print(
            f"  {found.evaluations:5} evaluations: on support {share(toy, x):.3f}, mode mass off by {deviation:.3f} "
            f"(chi-square p {chi2:.3f}), energy distance {test.statistic:.5f} (p {test.p_value:.3f})",
            flush=True,
        )


def share(toy: ep.toys.Toy, x: Tensor) -> float:
    """Share of points on the support."""
    return float(toy.on_support(x).float().mean())


def main(arguments: list[str]) -> None:
    """Train each toy with the defaults and print its curve."""
    parser = argparse.ArgumentParser(prog="generation", description=__doc__)
    parser.add_argument("toys", nargs="*", default=FIVE)
    parser.add_argument("--steps", type=int, default=ep.TrainingOptions().steps, help="updates")
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    for name in args.toys:
        ebm, toy, seconds = train(name, args.seed, ep.TrainingOptions(steps=args.steps))
        print(f"{name}: trained in {seconds:.0f} s", flush=True)
        report(name, ebm, toy, (2, 5, 10, 20, 40, 80), args.size)

"""Figure 4 of the samplers: which kernel brings a RecoveryEBM's samples from white noise to fresh data, at what cost.

``python -m tests.benchmarks recovery [TOY …] [--steps N] [--points N] [--digits digits8x8.npz]``

Trains each toy with the defaults (or the 8×8 digits of the file, 64 dimensions, a third held out), tunes each kernel
at every level with :meth:`RecoveryEBM.tune`, and prints for each budget the evaluations a sample cost, the share on the
support where it is known, and the energy-distance two-sample test against fresh data noised to level 0.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import energyppl as ep
from energyppl.metrics.two_sample import energy_distance_test
from tests.benchmarks.density import FIVE, train

# The kernel, and how many of its moves at each level come to about 120 and 250 evaluations a sample over 6 levels.
KERNELS: dict[str, tuple[Any, tuple[int, int]]] = {
    "Crank-Nicolson": (ep.kernels.CrankNicolson(), (20, 40)),
    "Crank-Nicolson Langevin": (ep.kernels.CrankNicolsonLangevin(), (20, 40)),
    "MALA": (ep.MALA(0.5), (20, 40)),
    "HMC, 3 steps": (ep.HMC(0.5, 3, 0.3), (7, 13)),
    "HMC, 8 steps": (ep.HMC(0.5, 8, 0.3), (3, 5)),
    "MALT, 4 steps": (ep.kernels.MALT(0.5, 4, 1.0), (5, 10)),
    "NUTS": (ep.NUTS(0.5, 4), (2, 4)),
}


def curve(name: str, ebm: ep.RecoveryEBM, data: Tensor, fresh: Tensor, share: Callable[[Tensor], str]) -> None:
    """One line for each kernel and budget."""
    for label, (kernel, budgets) in KERNELS.items():
        if isinstance(kernel, ep.kernels.CrankNicolson) and data[0].numel() > 4:
            continue  # without a gradient it stands still in many dimensions
        tuning = ebm.tune(data[:6000], kernel)
        for steps in budgets:
            found = ebm.generate((len(fresh),), steps=steps)
            x = ebm.loc + ebm.scale * found.x
            test = energy_distance_test(x, fresh, 400)
            print(
                f"{name:14} {label:24} {found.evaluations:5} evaluations{share(x)}, energy distance "
                f"{test.statistic:.5f} (p {test.p_value:.3f}), acceptance {float(tuning.acceptance.mean()):.2f}",
                flush=True,
            )


def digits(file: Path, seed: int) -> None:
    """8×8 digits as 64 dimensions, their grey values spread evenly over a sixteenth."""
    torch.manual_seed(seed)
    with np.load(file, allow_pickle=False) as archive:
        grey = torch.as_tensor(archive["x"].reshape(-1, 64).astype(np.float32))
    x = ((grey + torch.rand_like(grey)) / 17.0)[torch.randperm(len(grey))]
    rows, fresh = x[: 2 * len(x) // 3], x[2 * len(x) // 3 :]
    ebm = ep.RecoveryEBM(ep.MLPEnergy((64,), hidden=256), ep.NoiseSchedule.cosine(6))
    history = ep.fit(ebm, rows, options=ep.TrainingOptions(steps=3000), progress=False)
    print(f"digits: {len(rows)} rows, {len(history.records)} updates ({history.stopped})", flush=True)
    noised = ebm.diffuse(fresh, 0)
    test = energy_distance_test(ebm.diffuse(rows[: len(fresh)], 0), noised, 400)
    print(f"digits, training rows against held out: energy distance {test.statistic:.5f} (p {test.p_value:.3f})")
    curve("digits", ebm, rows, noised, lambda x: "")


def main(arguments: list[str]) -> None:
    """Train, tune and print."""
    parser = argparse.ArgumentParser(prog="recovery", description=__doc__)
    parser.add_argument("toys", nargs="*", default=FIVE)
    parser.add_argument("--steps", type=int, default=ep.TrainingOptions().steps, help="updates, on toys")
    parser.add_argument("--points", type=int, default=2000, help="samples of each kernel and budget, on toys")
    parser.add_argument("--digits", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.digits is not None:
        digits(args.digits, args.seed)
        return
    for name in args.toys:
        ebm, toy, seconds = train(name, args.seed, ep.TrainingOptions(steps=args.steps))
        print(f"{name}: trained in {seconds:.0f} s", flush=True)
        fresh = ebm.diffuse(toy.sample((args.points,)), 0)
        data = toy.sample((3 * args.points,))
        curve(name, ebm, data, fresh, lambda x: f", on support {toy.on_support(x).float().mean():.3f}")  # noqa: B023

"""Cooperative training beside plain recovery likelihood on 2-D toys: density, and generation in few steps.

``python -m tests.benchmarks cooperative [--seconds N] [--published] [--ablation] [TOY …]``

Each objective trains for as many seconds of one core (the plain one's default run takes about that long), so that what
the initializer costs is paid for.  For each: KL(truth ‖ level 0) by quadrature, and the share of 4,000 samples on
the support at 1 to 40 moves a level, beside the data's, with the seconds that they took.  ``--published`` adds CDRL's
own choices, a fixed width and negatives from the initializer's chains.  ``--ablation`` is the paper's: 15, 8, 5 and 3
moves a level in training *and* generation, for as many updates each; quality is the energy distance of 4,000 samples
from fresh data, in units of what two samples of the data give on average.
"""

import argparse
import copy
import time
from typing import cast

import torch

import energyppl as ep
from energyppl.inference.objectives.contract import Objective
from energyppl.metrics.two_sample import energy_distance_test
from tests.benchmarks.budget import training_within
from tests.benchmarks.density import FIVE, gap
from tests.benchmarks.generation import share

STEPS = (1, 2, 3, 5, 8, 15, 40)
ABLATION = (15, 8, 5, 3)


def train(
    name: str, initializer: ep.MLPInitializer | None, objective: ep.CooperativeRecovery | None, seconds: float
) -> tuple[ep.RecoveryEBM, ep.toys.Toy, str]:
    """A model trained for so many seconds, its toy, and how it went."""
    torch.manual_seed(0)
    toy = ep.toys.TWO_DIMENSIONAL[name]()
    data = toy.sample((50_000,))

    def build(updates: int) -> ep.Training:
        torch.manual_seed(1)
        start = copy.deepcopy(initializer)  # the first steps only measure how many there is time for
        ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(6), initializer=start)
        ebm.standardize(data, isotropic=True)
        return ep.Training(ebm, data, objective, options=ep.TrainingOptions(steps=updates))

    training = training_within(seconds, build, skip=20, over=60)
    ebm = cast(ep.RecoveryEBM, training.model)
    try:
        for _ in training:
            pass
    except ep.TrainingDiverged as error:
        return ebm, toy, f"diverged: {str(error).split(':')[1].strip()[:60]}"
    return ebm, toy, f"{len(training.finish().records)} updates"


def timed(ebm: ep.RecoveryEBM, toy: ep.toys.Toy, steps: int) -> str:
    """The share of samples on the support, and the seconds that they took."""
    ebm.sample((4000,), steps=1)  # traced before the clock runs
    began = time.process_time()
    drawn = ebm.sample((4000,), steps=steps)
    return f"{steps}: {share(toy, drawn):.3f} ({time.process_time() - began:.2f} s)"


def distance_between(x: torch.Tensor, y: torch.Tensor) -> float:
    """The energy distance of two samples."""
    return energy_distance_test(x, y, permutations=1).statistic


def ablation(toys: list[str], updates: int = 1500) -> None:
    """A line for each toy: quality against moves a level, both objectives."""
    for name in toys:
        torch.manual_seed(0)
        toy = ep.toys.TWO_DIMENSIONAL[name]()
        data = toy.sample((50_000,))
        unit = sum(distance_between(toy.sample((4000,)), toy.sample((4000,))) for _ in range(5)) / 5
        for case in ("recovery", "cooperative"):
            found = []
            for steps in ABLATION:
                torch.manual_seed(1)
                initializer = ep.MLPInitializer((2,), learn_scale=True) if case == "cooperative" else None
                ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(6), initializer=initializer)
                ebm.standardize(data, isotropic=True)
                kind = ep.RecoveryLikelihood if initializer is None else ep.CooperativeRecovery
                objective: Objective = kind(steps=steps)
                ep.fit(ebm, data, objective, options=ep.TrainingOptions(steps=updates), progress=False)
                torch.manual_seed(2)
                drawn = ebm.sample((4000,), steps=steps)
                fresh = ebm.diffuse(toy.sample((4000,)), 0)
                distance = distance_between(drawn, fresh) / unit
                found.append(f"{steps}: {share(toy, drawn):.3f}, distance {distance:.1f}, gap {gap(ebm, toy):.4f}")
            print(f"{name}: {case:12} {'; '.join(found)}", flush=True)


def main(arguments: list[str]) -> None:
    """Two lines for each toy, three with ``--published``."""
    parser = argparse.ArgumentParser(prog="cooperative", description=__doc__)
    parser.add_argument("toys", nargs="*", default=FIVE)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--ablation", action="store_true")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.ablation:
        ablation(args.toys)
        return
    for name in args.toys:
        cases: dict[str, tuple[ep.MLPInitializer | None, ep.CooperativeRecovery | None]] = {
            "recovery": (None, None),
            "cooperative": (ep.MLPInitializer((2,), learn_scale=True), ep.CooperativeRecovery()),
        }
        if args.published:
            cases["fixed width"] = (ep.MLPInitializer((2,)), ep.CooperativeRecovery())
            cases["fixed width, CDRL's negatives"] = (
                ep.MLPInitializer((2,)),
                ep.CooperativeRecovery(from_initializer=True),
            )
        for case, (initializer, objective) in cases.items():
            ebm, toy, how = train(name, initializer, objective, args.seconds)
            if how.startswith("diverged"):
                print(f"{name}: {case:25} {how}", flush=True)
                continue
            data = share(toy, ebm.diffuse(toy.sample((20_000,)), 0))
            torch.manual_seed(2)
            shares = ", ".join(timed(ebm, toy, steps) for steps in STEPS)
            print(
                f"{name}: {case:25} {how}, gap {gap(ebm, toy):.4f}; moves a level and share on the support (data "
                f"{data:.3f}): {shares}",
                flush=True,
            )


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

"""Cooperative training beside plain recovery likelihood on 2-D toys: density, and generation in few steps.

``python -m tests.benchmarks cooperative [--seconds N] [--published] [TOY …]``

Each objective trains for as many seconds (the plain one's default run takes about that long on an idle core), so that
what the initializer costs is paid for.  For each: KL(truth ‖ level 0) by quadrature, and the share of 4,000 samples on
the support at 1 to 40 moves a level, beside the data's.  ``--published`` adds CDRL's own choice, negatives from the
initializer's chains.
"""

import argparse
import time

import torch

import energyppl as ep
from tests.benchmarks.density import FIVE, gap
from tests.benchmarks.generation import share

STEPS = (1, 2, 3, 5, 8, 15, 40)


def train(
    name: str, objective: ep.CooperativeRecovery | None, seconds: float
) -> tuple[ep.RecoveryEBM, ep.toys.Toy, str]:
    """A model trained for so many seconds, its cosine decay fitted to the speed of the first updates."""
    torch.manual_seed(0)
    toy = ep.toys.TWO_DIMENSIONAL[name]()
    data = toy.sample((50_000,))
    updates = 1
    for attempt in ("speed", "run"):
        torch.manual_seed(1)
        ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(6))
        ebm.standardize(data, isotropic=True)
        if attempt == "speed":
            training = ep.Training(ebm, data, objective, options=ep.TrainingOptions(steps=10_000))
            for _ in range(20):
                next(training)
            began = time.perf_counter()
            for _ in range(60):
                next(training)
            updates = max(100, int(60 * seconds / (time.perf_counter() - began)))
            continue
        try:
            history = ep.fit(ebm, data, objective, options=ep.TrainingOptions(steps=updates), progress=False)
        except ep.TrainingDiverged as error:
            return ebm, toy, f"diverged: {str(error).split(':')[1].strip()[:60]}"
    return ebm, toy, f"{len(history.records)} updates"


def main(arguments: list[str]) -> None:
    """Two lines for each toy, three with ``--published``."""
    parser = argparse.ArgumentParser(prog="cooperative", description=__doc__)
    parser.add_argument("toys", nargs="*", default=FIVE)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--published", action="store_true")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in args.toys:
        cases: dict[str, ep.CooperativeRecovery | None] = {
            "recovery": None,
            "cooperative": ep.CooperativeRecovery(initializer=ep.MLPInitializer((2,), learn_scale=True)),
            "cooperative, fixed width": ep.CooperativeRecovery(initializer=ep.MLPInitializer((2,))),
        }
        if args.published:
            cases["CDRL's negatives"] = ep.CooperativeRecovery(
                initializer=ep.MLPInitializer((2,)), from_initializer=True
            )
        for case, objective in cases.items():
            ebm, toy, how = train(name, objective, args.seconds)
            if how.startswith("diverged"):
                print(f"{name}: {case:25} {how}", flush=True)
                continue
            data = share(toy, ebm.diffuse(toy.sample((20_000,)), 0))
            torch.manual_seed(2)
            shares = ", ".join(f"{steps}: {share(toy, ebm.sample((4000,), steps=steps)):.3f}" for steps in STEPS)
            print(
                f"{name}: {case:25} {how}, gap {gap(ebm, toy):.4f}; moves a level and share on the support (data "
                f"{data:.3f}): {shares}",
                flush=True,
            )


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

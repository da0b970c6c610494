"""Is log Z without samples ever wrong without a word?  On 17 multimodal, skewed, heavy-tailed and far-away targets.

``python -m tests.benchmarks silent_misses [--repeats N] [--first SEED] [TARGET …]``

For each target: how often the 95 % interval holds log Z, how often there is a warning or a refusal, how often neither,
and how often that is a silent miss: no warning, and log Z both outside of the interval and more than .1 nats off.
"""

import argparse
import time
import warnings

import torch

import energyppl as ep
from tests.benchmarks.mode_targets import MODE_TARGETS

MISS = 0.1  # nats


def misses(name: str, repeats: int, first: int = 0) -> tuple[int, int, float]:
    """Print a target's line; returns repeats covered or warned, silent misses, and mean evaluations."""
    errors, held, said, either, silent, cost, words = [], 0, 0, 0, 0, 0, set()
    began = time.perf_counter()
    for seed in range(first, first + repeats):
        known = MODE_TARGETS[name]()
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = ep.log_normalizer(known.potential)
        except ep.EnergyPPLError as error:
            said, either = said + 1, either + 1
            words.add(str(error)[:90])
            continue
        holds, off = found.lower <= known.log_z <= found.upper, found.estimate - known.log_z
        held, said = held + holds, said + (found.warning is not None)
        words |= {str(found.warning)[:90]} if found.warning else set()
        either += holds or found.warning is not None
        silent += not holds and found.warning is None and abs(off) > MISS
        errors.append(off)
        cost += found.evaluations
    misses = torch.tensor(errors or [float("nan")])
    evaluations = cost / max(1, len(errors))
    print(
        f"{name:35} covers {held:3}, says so {said:3}, either {either:3}, silent misses {silent:3} of {repeats}; "
        f"error {float(misses.mean()):+.3f} rms {float(misses.square().mean().sqrt()):.3f}; "
        f"{evaluations:,.0f} evaluations, "
        f"{(time.perf_counter() - began) / repeats:.1f} s",
        flush=True,
    )
    for word in sorted(words):
        print(f"    {word}", flush=True)
    return either, silent, evaluations


def main(arguments: list[str]) -> None:
    """One line for each target, and all of them together."""
    parser = argparse.ArgumentParser(prog="silent_misses", description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(MODE_TARGETS))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first repeat")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    either, silent, cost = zip(*[misses(name, args.repeats, args.first) for name in args.targets], strict=True)
    runs = args.repeats * len(args.targets)
    print(
        f"together: covered or warned {sum(either) / runs:.3f}, silent misses {sum(silent) / runs:.3f} of {runs}; "
        f"{sum(cost) / len(cost):,.0f} evaluations"
    )

"""Do intervals for log Z cover, and are Ẑ and its bounds on the right side?  On 14 targets whose log Z is known.

``python -m tests.benchmarks coverage [--repeats N] [--without-samples] [--bounds] [TARGET …]``

For each target: how often the 95 % interval holds log Z, among all repeats and among those that carry no warning, the
root-mean-square error beside the mean standard error, and the cost.  ``--bounds`` z-tests E Ẑ = Z and
E[lower] ≤ log Z ≤ E[upper] of plain forward and reverse runs at three lengths; the run that keeps the last
temperature's energy, as TensorFlow Probability's does, is a negative control in
``tests/statistics/test_log_normalizers.py``.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import energyppl as ep
from energyppl.inference.normalizing.annealing import anneal, pilot_run
from tests.benchmarks.normalizer_targets import TARGETS, Known


def guess(known: Known) -> ep.potentials.GaussianBase:
    """The centred Gaussian that a user without samples would begin from."""
    shape = known.potential.event_shape
    return ep.potentials.GaussianBase(torch.zeros(shape), torch.full(shape, known.spread))


def coverage(name: str, repeats: int, samples: bool, particles: int) -> tuple[int, int, int]:
    """Print a target's line; returns how many intervals held, how many carry no warning, and how many of those held."""
    errors, held, unflagged, unflagged_held, stated, cost = [], 0, 0, 0, 0.0, 0
    began, failed = time.perf_counter(), 0
    for repeat in range(repeats):
        known = TARGETS[name]()
        torch.manual_seed(repeat)
        method = (ep.normalizing.BAR if samples else ep.normalizing.SMC)(particles)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = ep.log_normalizer(
                    known.potential,
                    samples=known.draw if samples else None,
                    base=None if samples else guess(known),
                    method=method,
                )
        except ep.EnergyPPLError:
            failed += 1
            continue
        holds = found.lower <= known.log_z <= found.upper
        held += holds
        if found.warning is None:
            unflagged, unflagged_held = unflagged + 1, unflagged_held + holds
        errors.append(found.estimate - known.log_z)
        stated, cost = stated + found.standard_error, cost + found.evaluations
    done = max(1, len(errors))
    error = torch.tensor(errors)
    print(
        f"{name:31} covers {held / done:.3f}, unwarned {unflagged_held / max(1, unflagged):.3f} of {unflagged}; rmse "
        f"{float(error.square().mean().sqrt()):.4f}, bias {float(error.mean()):+.4f}, stated {stated / done:.4f}; "
        f"{cost / done:,.0f} evaluations, {(time.perf_counter() - began) / repeats:.2f} s"
        + (f"; {failed} refused" if failed else ""),
        flush=True,
    )
    return held, unflagged, unflagged_held


def bounds(name: str, temperatures: int, repeats: int = 20_000) -> None:
    """z of E Ẑ = Z, of Crooks's theorem, and of both bounds, in runs of MALA on a schedule of ``temperatures``."""
    known, base = TARGETS[name](), guess(TARGETS[name]())
    torch.manual_seed(temperatures)
    kernel = ep.MALA(1.0)
    schedule = pilot_run(base, known.potential, base.sample(500), kernel).schedule.resampled(temperatures)
    forward = anneal(base, known.potential, schedule, base.sample(repeats), kernel).log_weights - known.log_z
    reverse = (
        anneal(base, known.potential, schedule, known.draw(repeats), kernel, reverse=True).log_weights + known.log_z
    )
    lower, upper = (_z(w) for w in (forward, reverse))
    print(
        f"{name:31} {temperatures:4} temperatures: z of E Z {_z(forward.exp() - 1.0):+.1f}, of Crooks "
        f"{_crooks(forward, reverse):+.1f}; lower bound {float(forward.mean()):+.3f} (z {lower:+.0f}), upper "
        f"{-float(reverse.mean()):+.3f} (z {-upper:+.0f})",
        flush=True,
    )


def _z(values: Tensor) -> float:
    return float(values.mean() / (values.std() / math.sqrt(len(values))))


def _crooks(forward: Tensor, reverse: Tensor) -> float:
    """E min(1, w) is the same of forward and reverse runs, and bounded, so its z can be trusted (Crooks 1999)."""
    a, b = forward.exp().clamp(max=1.0), reverse.exp().clamp(max=1.0)
    return float((a.mean() - b.mean()) / math.sqrt(float(a.var() / len(a) + b.var() / len(b))))


def main(arguments: list[str]) -> None:
    """One line for each target, and the pooled coverage."""
    parser = argparse.ArgumentParser(prog="coverage", description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--particles", type=int, default=512)
    parser.add_argument("--without-samples", action="store_true")
    parser.add_argument("--bounds", action="store_true")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run: Callable[..., Any] = coverage
    if args.bounds:
        for name in args.targets:
            for temperatures in (4, 16, 64):
                bounds(name, temperatures)
        return
    pooled = [run(name, args.repeats, not args.without_samples, args.particles) for name in args.targets]
    held, unflagged, unflagged_held = (sum(column) for column in zip(*pooled, strict=True))
    print(
        f"pooled: covers {held / (args.repeats * len(pooled)):.3f}, unwarned {unflagged_held / max(1, unflagged):.3f}"
    )


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

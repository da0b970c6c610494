"""Samplers: effective draws per second and per gradient, ours beside Pyro's, NumPyro's, BlackJAX's and the EBM kits'.

``python -m tests.benchmarks samplers [--targets …] [--samplers …] [--chains …] [--draws N] [--repeats N] [--json F]``

Six energies, which ``sampler_targets.py`` writes again in jax: a banana, ten Gaussian coordinates whose variances span
a factor of 1,000, eight schools, a logistic regression of 25 columns, a perceptron fitted to rings, and a convolutional
energy of 8 x 8 images.  All chains start in N(0, I), in float32, on as many cores as ``--threads`` says.  The defaults
take about a quarter of an hour on one core.

ESS is ArviZ's bulk ESS of the worst coordinate or squared coordinate, from at most 256 chains and scaled up to all; R̂
is the worst rank-normalized one, over the same.  "off" is the largest error of a mean, in standard deviations, or of a
variance, as a share; where it is beyond chance, or R̂ above 1.1, it is marked ``!``, and the ESS means nothing.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
import warnings
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import torch
from torch import Tensor

import energyppl as ep
from tests.benchmarks.peers import PEERS, Adapter, Problem, Run
from tests.benchmarks.sampler_targets import TARGETS, Banana, jax_energy, make, truth

# --- Our samplers ----------------------------------------------------------------------------------------------------


def ours(kernel: str) -> Adapter:
    """The adapter of one of our kernels, with its defaults."""

    def adapter(problem: Problem) -> Run:
        torch.manual_seed(problem.seed)
        start = problem.start.reshape(-1, *problem.energy.event_shape)
        chains = ep.sample_chains(
            getattr(ep, kernel)(),
            problem.energy,
            chains=problem.chains,
            draws=problem.draws,
            warmup=problem.warmup,
            init=start,
            progress=False,
        )
        return Run(
            chains.draws.flatten(2).numpy(),
            warmup_seconds=chains.warmup_seconds,
            compile_seconds=0.0,  # tracing takes less than a tenth of a second, and is part of the warm-up
            seconds=chains.seconds,
            gradients=float(chains.gradients),
            batches=float(chains.steps.max(0).values.sum()),
        )

    return adapter


OURS = {"ours-chees": "ChEES", "ours-nuts": "NUTS", "ours-hmc": "HMC"}


def find(name: str) -> tuple[Adapter | None, str, int]:
    """The sampler's adapter, or None with the reason why there is none, and the most chains it is asked for."""
    if name in OURS:
        missing = [part for part in ("sample_chains", OURS[name]) if not hasattr(ep, part)]
        return (None, f"energyppl has no {missing[0]}", 0) if missing else (ours(OURS[name]), "", 10**9)
    adapter, module, install, most = PEERS[name]
    found = importlib.util.find_spec(module) is not None
    return (adapter, "", most) if found else (None, f"not installed: {install} (see tests/benchmarks/peers.py)", 0)


# --- Measuring -------------------------------------------------------------------------------------------------------


def quality(draws: np.ndarray, most: int = 256) -> tuple[float, float]:
    """The worst bulk ESS over coordinates and their squares, scaled up to all chains, and the worst R̂."""
    some = draws[:most].astype(np.float64)
    columns = [c for x in np.moveaxis(some, -1, 0) for c in (x, x**2)]
    ess = min(float(az.ess(c, method="bulk")) for c in columns)
    r_hat = max(float(az.rhat(c, method="rank")) for c in columns)
    return ess * len(draws) / len(some), r_hat


def deviation(problem: Problem, draws: np.ndarray, known: tuple[Tensor, Tensor] | None) -> tuple[float, float]:
    """The largest error of a mean or variance and the largest in standard errors, which is near 3 by chance alone.

    Where the moments aren't known it is Stein's identity that must hold: E ∇U = 0 and E x_i ∂U/∂x_i = 1.  Standard
    errors come from the means of chains, cut in pieces if there are fewer than 40, so from no estimate of an ESS.
    """
    x = torch.tensor(draws[:1000])
    if known is None:
        event = problem.energy.event_shape
        rows = x.reshape(-1, *event).split(4096)
        grad = torch.cat([ep.energy_and_grad(problem.energy, part)[1] for part in rows]).reshape(x.shape)
        sd = x.flatten(0, 1).std(0)
        values = torch.cat([grad * sd, x * grad - 1], -1).double()
    else:
        mean, variance = known
        z = (x.double() - mean) / variance.sqrt()
        values = torch.cat([z, z.square() - 1], -1)
    pieces = math.ceil(40 / len(x))
    length = x.shape[1] // pieces
    means = values[:, : pieces * length].reshape(len(x) * pieces, length, -1).mean(1)
    error = means.mean(0).abs()
    return float(error.max()), float((error / (means.std(0) / math.sqrt(len(means)))).max())


def measure(adapter: Adapter, problem: Problem, known: tuple[Tensor, Tensor] | None) -> dict[str, float]:
    """One run's figures."""
    run = adapter(problem)
    if run.draws.shape != (problem.chains, problem.draws, problem.start.shape[1]):
        raise ValueError(f"draws of shape {run.draws.shape}")
    if not np.isfinite(run.draws).all():
        raise ValueError("draws that are not finite")
    ess, r_hat = quality(run.draws)
    off, errors = deviation(problem, run.draws, known)
    return {
        "warmup_seconds": run.warmup_seconds,
        "compile_seconds": run.compile_seconds,
        "seconds": run.seconds,
        "gradients": run.gradients,
        "batches": run.batches,
        "gradients_per_draw": run.gradients / problem.draws,
        "batches_per_draw": run.batches / problem.draws,
        "ess": ess,
        "r_hat": r_hat,
        "ess_per_second": ess / run.seconds,
        "ess_per_second_with_warmup": ess / (run.seconds + run.warmup_seconds),
        "ess_per_second_with_all": ess / (run.seconds + run.warmup_seconds + run.compile_seconds),
        "ess_per_1000_gradients": 1000 * ess / (run.gradients * problem.chains),
        "off": off,
        "off_in_standard_errors": errors,
    }


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("warm-up s", "warmup_seconds", ",.3f"),
    ("compile s", "compile_seconds", ",.3f"),
    ("sampling s", "seconds", ",.3f"),
    ("grads/draw", "gradients_per_draw", ",.1f"),
    ("slowest", "batches_per_draw", ",.1f"),
    ("ESS", "ess", ",.0f"),
    ("R-hat", "r_hat", ".3f"),
    ("ESS/s", "ess_per_second", ",.0f"),
    ("with warm-up", "ess_per_second_with_warmup", ",.0f"),
    ("and compiling", "ess_per_second_with_all", ",.0f"),
    ("ESS/1000 grads", "ess_per_1000_gradients", ",.1f"),
)


def line(row: dict[str, Any]) -> str:
    """A row of the table, as wide as its head."""
    cells = [f"{row['sampler']:24}"]
    cells += [f"{'' if math.isnan(row[key]) else format(row[key], form):>{len(head)}}" for head, key, form in COLUMNS]
    wrong = row["r_hat"] > 1.1 or (row["off"] > 0.03 and row["off_in_standard_errors"] > 5)
    return "  ".join(cells) + f"  {row['off']:.3f}{'!' if wrong else ''}"


def check_same(problem: Problem) -> None:
    """Require that the energy in jax is the one in torch, at the starting points and further out."""
    if importlib.util.find_spec("jax") is None:
        return
    import jax

    x = 2 * problem.start[:64]
    theirs = np.asarray(jax.vmap(jax_energy(problem.name, problem.energy))(x.numpy()))
    np.testing.assert_allclose(theirs, problem.flat(x).numpy(), rtol=1e-4, atol=1e-4)


def limit(threads: int) -> None:
    """Keep this process to that many cores: jax knows no other way."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def main(arguments: list[str]) -> None:
    """Print a table for each target and number of chains."""
    names = [*OURS, *PEERS]
    parser = argparse.ArgumentParser(prog="samplers", description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=[*TARGETS])
    most = [name for name in names if name != "blackjax-nuts"]  # the pooled one is faster
    parser.add_argument("--samplers", nargs="+", choices=names, default=most)
    parser.add_argument("--chains", nargs="+", type=int, default=[4, 64])
    parser.add_argument("--draws", type=int, help="500; 200 from 1,000 chains, 50 from 10,000")
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=1, help="seeds; the table has the medians")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write every run's figures")
    args = parser.parse_args(arguments)
    limit(args.threads)
    ep.energy_and_grad(Banana(), torch.zeros(1, 2))  # the first trace of all imports what traces, for a second
    found = {name: find(name) for name in args.samplers}
    for name, (adapter, reason, _) in found.items():
        if adapter is None:
            print(f"{name}: skipped, {reason}")
    rows: list[dict[str, Any]] = []
    for target in args.targets:
        energy = make(target)
        known = truth(target, energy)
        for chains in args.chains:
            draws = args.draws or (500 if chains < 1000 else 200 if chains < 10_000 else 50)
            print(f"\n{target}, {chains:,} chains, {args.warmup} moves of warm-up, {draws} draws")
            print("  ".join([f"{'':24}", *[head for head, _, _ in COLUMNS], "off"]), flush=True)
            for name, (adapter, _, at_most) in found.items():
                if adapter is None or chains > at_most:
                    continue
                runs: list[dict[str, Any]] = []
                said: set[str] = set()
                for seed in range(args.repeats):
                    start = torch.randn(chains, energy.event_shape.numel(), generator=torch.manual_seed(seed))
                    problem = Problem(target, energy, start, draws, args.warmup, seed)
                    check_same(problem)
                    try:
                        with warnings.catch_warnings(record=True) as caught:
                            warnings.simplefilter("always")
                            runs.append(measure(adapter, problem, known))
                        said |= {str(warning.message).splitlines()[0][:150] for warning in caught}
                    except Exception as error:  # a peer's, whatever it is: the other rows are still wanted
                        print(f"{name:24}  failed: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
                        break
                    label = {"target": target, "sampler": name, "chains": chains, "draws": draws, "seed": seed}
                    rows.append({**label, "warmup": args.warmup, **runs[-1]})
                if runs:
                    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
                    print(line({"sampler": name, **middle}), flush=True)
                for text in sorted(said):
                    print(f"{'':24}  warned: {text}")
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")

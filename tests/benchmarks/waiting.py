"""What a user waits for: whole processes, from the command to the result, everything included.

``python -m tests.benchmarks waiting [--rows N] [--samples N] [--chains N …] [--samplers …] [--steps N] [--repeats N]``

Each row is a new process on one thread: starting Python, importing, tracing or compiling, warm-up and work.  A row is
the median of its repeats in seconds of wall clock, with the fastest and the slowest and the median of the processor's
seconds; all rows take turns, so that a busy moment of the machine falls on all of them.  The ratios to ``import torch,
pyro`` are those of turns.

Chains are of the banana of ``samplers``; a peer's own import counts, that of torch, which it has no need of, does not.
The defaults take about five minutes on an idle machine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_LIBRARIES = "import torch, pyro"
_USED = "import energyppl as ep; ep.fit, ep.RecoveryEBM, ep.sample_chains, ep.log_normalizer, ep.toys"


class Turn(NamedTuple):
    """One process: its seconds, and what it printed."""

    wall: float
    cpu: float
    said: str


def run(*command: str | Path) -> Turn:
    """Run one process on one thread to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled, and not anew in each process
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False
    )
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")
    return Turn(wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout)


def commands(folder: Path, turn: int, samples: int, steps: int | None) -> dict[str, tuple[str | Path, ...]]:
    """The rows but for chains: what is run for each.  Each turn fits a run of its own: a finished one takes no time."""
    model, table, fitted = folder / "model.ebm", folder / "table.csv", folder / f"run-{turn}"
    load = f"import torch, energyppl as ep; ebm = ep.load({str(model)!r})"
    few = () if steps is None else ("--steps", str(steps))
    return {
        _LIBRARIES: ("-c", _LIBRARIES),
        "import energyppl": ("-c", "import energyppl"),
        "… and use its names": ("-c", _USED),
        "energyppl --help": ("-m", "energyppl", "--help"),
        "a wrong command": ("-c", "from energyppl.cli.main import main\ntry: main(['fit'])\nexcept SystemExit: pass"),
        "load, one log_prob": ("-c", f"{load}; print(float(ebm.log_prob(torch.zeros(2))))"),
        f"load, {samples:,} samples": ("-c", f"{load}; print(ebm.sample(({samples},)).std())"),
        "fit of a table, by command": ("-m", "energyppl", "fit", table, "--out", fitted, *few),
        "sample of it, by command": ("-m", "energyppl", "sample", fitted, "--out", folder / "x.npy"),
    }


def prepare(folder: Path, rows: int, steps: int | None) -> None:
    """Write a table of four correlated columns, one of them skewed, and a model of two columns."""
    import energyppl as ep

    rng = np.random.default_rng(0)
    first = rng.normal(size=(rows, 4)) @ rng.normal(size=(4, 4))
    first[:, 3] = np.exp(0.3 * first[:, 3])
    np.savetxt(folder / "table.csv", first, delimiter=",", header="a,b,c,d", comments="")
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=6))
    ep.fit(ebm, ep.toys.Checkerboard().sample((20_000,)), steps=steps or 300, progress=False)
    ep.save(ebm, folder / "model.ebm")


def chains(name: str, count: int, draws: int, warmup: int) -> None:
    """Sample the banana in this process, and print what came of it as JSON; each row of chains runs this."""
    begin = time.perf_counter()
    from tests.benchmarks import peers, sampler_targets, samplers

    imported = time.perf_counter() - begin if name in peers.PEERS else 0.0
    adapter, missing, most = samplers.find(name)
    if adapter is None or count > most:
        print(json.dumps({"missing": missing or f"not asked for {count} chains"}))
        return
    import torch

    torch.manual_seed(0)
    problem = peers.Problem("banana", sampler_targets.make("banana"), torch.randn(count, 2), draws, warmup, 0)
    found = adapter(problem)
    begin = time.perf_counter()
    ess, r_hat = samplers.quality(found.draws)
    print(json.dumps({"aside": imported + time.perf_counter() - begin, "ess": ess, "r_hat": r_hat}))


def chain_rows(names: list[str], counts: list[int], draws: int, warmup: int, repeats: int) -> None:
    """Print effective samples a second of whole processes, and their seconds."""
    for count in counts:
        for name in names:
            call = f"from tests.benchmarks.waiting import chains; chains({name!r}, {count}, {draws}, {warmup})"
            seconds: list[float] = []
            found: dict[str, Any] = {}
            for _ in range(repeats):
                turn = run("-c", call)
                found = json.loads(turn.said.splitlines()[-1])
                seconds.append(turn.wall - found.get("aside", 0.0))
            if "missing" in found:
                print(f"{name:24} {count:6,} chains: {found['missing']}")
                continue
            wall = statistics.median(seconds)
            print(
                f"{name:24} {count:6,} chains x {draws:,}: {wall:7.2f} s [{min(seconds):.2f}, {max(seconds):.2f}], "
                f"{found['ess'] / wall:12,.0f} ESS a second, R-hat {found['r_hat']:.3f}",
                flush=True,
            )


def main(arguments: list[str]) -> None:
    """Print one line for each thing that is waited for."""
    parser = argparse.ArgumentParser(prog="waiting", description=__doc__)
    parser.add_argument("--rows", type=int, default=1000, help="of the table")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, help="of training; the defaults without")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chains", type=int, nargs="*", default=[4, 64, 1000])
    parser.add_argument("--samplers", nargs="+", default=["ours-chees", "ours-nuts"], help="as in samplers, or peers")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=300)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, args.rows, args.steps)
        turns: dict[str, list[Turn]] = {}
        for turn in range(args.repeats):
            for row, command in commands(folder, turn, args.samples, args.steps).items():
                turns.setdefault(row, []).append(run(*command))
        for row, found in turns.items():
            walls = [turn.wall for turn in found]
            ratio = statistics.median(a.wall / b.wall for a, b in zip(found, turns[_LIBRARIES], strict=True))
            print(
                f"{row:28} {statistics.median(walls):7.2f} s [{min(walls):.2f}, {max(walls):.2f}], processor "
                f"{statistics.median(turn.cpu for turn in found):.2f} s; {ratio:.2f} x the libraries",
                flush=True,
            )
    chain_rows(args.samplers, args.chains, args.draws, args.warmup, args.repeats)

"""Two processes beside one: throughput of training, of chains and of log Z, and the density that both learn.

Beside it what the machine allows: two processes that know nothing of each other, with half of the work each.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

import energyppl as ep
from energyppl.inference.objectives.contract import KernelState
from energyppl.potentials import Potential
from tests.support.processes import run, values

COLUMNS = 8


class Took(NamedTuple):
    """Seconds of one process, by the clock and of its processor, and a figure of what came out."""

    clock: float
    processor: float
    figure: float


def timed(work: Callable[[], float]) -> Took:
    clock, processor = time.perf_counter(), time.process_time()
    figure = work()
    return Took(time.perf_counter() - clock, time.process_time() - processor, figure)


def truth(count: int) -> Tensor:
    """Rows of a banana in the first two of eight columns, the others normal."""
    x = torch.randn(count, COLUMNS)
    return torch.cat([x[:, :1], x[:, 1:2] + 0.5 * x[:, :1] ** 2 - 0.5, x[:, 2:]], 1)


def training(steps: int, batch: int) -> Took:
    """Train by the table defaults; the figure is the implied log likelihood bound of fresh rows, nats."""
    data, fresh = truth(20_000), truth(4_000)
    ebm = ep.RecoveryEBM(ep.MLPEnergy((COLUMNS,)), ep.NoiseSchedule.cosine(20))
    objective = ep.objectives.LevelScoreMatching()
    options = ep.TrainingOptions(steps=steps, batch_size=batch, evaluate_every=steps, learning_rate=2e-3, ema=0.995)
    run = ep.Training(ebm, data, objective, options=options)
    next(run)  # traces what is traced

    def work() -> float:
        list(run)
        return 0.0

    took = timed(work)
    run.finish()
    return took._replace(figure=-objective.measure(ebm, cast(KernelState, run.state), fresh))


def network() -> Potential:
    """A network's energy, whose cost is that of chains on a model."""
    torch.manual_seed(2)
    net = ep.MLPEnergy((COLUMNS,), levels=1)
    return ep.EBM(net).potential()


def chains(count: int, draws: int) -> Took:
    """Sample the energy; the figure is the mean energy of the draws."""
    potential = network()

    def work(count: int = count, draws: int = draws) -> float:
        found = ep.sample_chains(ep.HMC(), potential, chains=count, draws=draws, warmup=draws, progress=False)
        return float(found.energy.double().mean())

    work(64, 5)  # imports and traces, as the first update of the training does
    return timed(work)


def log_z(particles: int) -> Took:
    """Normalize the energy by sequential Monte Carlo; the figure is log Z."""
    potential = network()
    base = ep.potentials.GaussianBase(torch.zeros(COLUMNS), torch.full((COLUMNS,), 1.5))

    def work(particles: int = particles) -> float:
        method = ep.normalizing.SMC(particles=particles)
        return ep.log_normalizer(potential, base=base, method=method).estimate

    work(256)
    return timed(work)


def main(arguments: Sequence[str]) -> None:
    """Run each piece of work in one process, in two, and half of it in each of two apart; forked, one thread each."""
    parser = argparse.ArgumentParser(prog="processes", description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="updates of training (default: 100)")
    parser.add_argument("--batch", type=int, default=4096, help="rows in a batch (default: 4096)")
    parser.add_argument("--chains", type=int, default=4096, help="chains (default: 4096)")
    parser.add_argument("--draws", type=int, default=50, help="draws of each, and steps of warm-up (default: 50)")
    parser.add_argument("--particles", type=int, default=32_768, help="particles of log Z (default: 32768)")
    options = parser.parse_args(arguments)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}: times by the clock mean something where two cores are "
        "idle; the processor's time of a process is what they would be there, at most, without waiting",
        flush=True,
    )
    print(
        f"{'':10} {'one process':>32} {'two processes, the slower':>32} {'two apart':>32} {'clock':>8} {'apart':>8} "
        f"{'processor':>10}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, work, sizes, half in (
            ("training", training, (options.steps, options.batch), (options.steps, options.batch // 2)),
            ("chains", chains, (options.chains, options.draws), (options.chains // 2, options.draws)),
            ("log Z", log_z, (options.particles,), (options.particles // 2,)),
        ):
            one = values(run(work, Path(folder) / f"{name}1", *sizes, count=1, limit=3600.0))[0]
            two = slower(values(run(work, Path(folder) / f"{name}2", *sizes, count=2, limit=3600.0)))
            apart = slower(values(run(work, Path(folder) / f"{name}3", *half, limit=3600.0, together=False)))
            cells = (f"{t.clock:8.1f} s, {t.processor:6.1f} s, {t.figure:8.3f}" for t in (one, two, apart))
            print(
                f"{name:10} {'   '.join(f'{cell:>32}' for cell in cells)} {one.clock / two.clock:7.2f}x "
                f"{one.clock / apart.clock:7.2f}x {one.processor / two.processor:9.2f}x",
                flush=True,
            )


def slower(took: list[Took]) -> Took:
    """The longer times of processes, and the figure of the first."""
    return Took(max(t.clock for t in took), max(t.processor for t in took), took[0].figure)

"""DRL, CDRL, DA-EBM and MDSM on tables: each from its own objective alone, and from the weights of score matching.

``python -m tests.benchmarks table_systems FILE.npz [ARRAY …] [--systems NAME …] [--splits N] [--seconds N]``

The rows are those of ``likelihood``: a split's test rows with noise of a tenth of a standard deviation, which is level
0's.  All systems have the default perceptron of tables.  Each trains for ``--seconds`` of CPU time from scratch, and
for half as long from the weights that ``score``, score matching tied across levels, reached in ``--seconds``.

A line has the mean log density of the test rows, by how much that is above the weights that ``score`` reached (on the
same rows, with standard errors, both log Z's included), log Z (standardized; a level tie implies 0) and whether it
warned, and the p-value of a two-sample test of 1,000 samples against training rows.  MDSM's one energy serves all its
noise levels and is no −log p in few columns; exp(−U) is normalized all the same.  Images are rows of those of their
pixels that change.
"""

import argparse
import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import energyppl as ep
from tests.benchmarks.budget import training_within
from tests.benchmarks.likelihood import as_rows, read_arrays, split
from tests.benchmarks.warm_systems import close_levels, in_coordinates_of, joint

RATE = 2e-4  # of what goes on from trained weights
LEVELS = ep.NoiseSchedule.cosine(20, log_snr_max=4.6, log_snr_min=-6.0)
SIGMAS = torch.logspace(0.6, -1.0, 32)  # of MDSM, in standard deviations; the last is level 0's
CHAINS = 4096
SAMPLES = 1000
BRIDGE = ep.normalizing.BAR(192)  # fewer particles than the default: there are ten log Z's to a split


@dataclass(frozen=True)
class TableSystem:
    """A model of so many columns from scratch, one from trained weights and data, and the objective of both."""

    cold: Callable[[int], Any]
    warm: Callable[[ep.RecoveryEBM, Tensor], Any]
    objective: Callable[[Any, Tensor], Any]


def table_systems() -> dict[str, TableSystem]:
    """Return the systems by name."""
    return {
        "score": TableSystem(recovery, lambda ebm, x: ebm, lambda model, x: ep.objectives.LevelScoreMatching()),
        "recovery": TableSystem(recovery, lambda ebm, x: ebm, lambda model, x: ep.RecoveryLikelihood()),
        "cooperative": TableSystem(
            lambda size: cooperative(ep.MLPEnergy((size,), continuous=True)),
            lambda ebm, x: in_coordinates_of(ebm, cooperative(ebm.net)),
            lambda model, x: ep.CooperativeRecovery(),
        ),
        "joint": TableSystem(joint_from_scratch, joint, joint_likelihood),
        "multi-scale": TableSystem(
            lambda size: ep.MultiscaleEBM(ep.MLPEnergy((size,), levels=1), SIGMAS),
            lambda ebm, x: in_coordinates_of(ebm, ep.MultiscaleEBM(AtLevel0(ebm), SIGMAS)),
            lambda model, x: ep.objectives.MultiscaleScoreMatching(),
        ),
    }


def recovery(size: int) -> ep.RecoveryEBM:
    """The default model of tables."""
    return ep.RecoveryEBM(ep.MLPEnergy((size,), continuous=True), LEVELS)


def cooperative(net: nn.Module) -> ep.RecoveryEBM:
    """A network with CDRL's second one."""
    return ep.RecoveryEBM(net, LEVELS, initializer=ep.MLPInitializer(net.event_shape, learn_scale=True))  # type: ignore[arg-type]


def joint_from_scratch(size: int) -> ep.JointEBM:
    """A joint energy over points and levels that lie as close as chains need them."""
    schedule = close_levels(LEVELS, size)
    return ep.JointEBM(ep.MLPEnergy((size,), levels=schedule.levels + 1), schedule)


def joint_likelihood(model: ep.JointEBM, x: Tensor) -> ep.PersistentLikelihood:
    """Persistent likelihood with a level tie, whose chains begin at data of all levels."""
    chains = ep.objectives.ChainBuffer(model.event_shape, CHAINS, model.levels)
    clean = model.to_unit(x[torch.randint(len(x), (CHAINS,))])
    chains.x.copy_(model.schedule.diffuse(clean, chains.level))
    return ep.PersistentLikelihood(buffer=chains, tie=1.0)


class AtLevel0(nn.Module):
    """A model's energy at level 0, as the network that a ``MultiscaleEBM`` divides by σ0²."""

    def __init__(self, ebm: ep.RecoveryEBM) -> None:
        super().__init__()
        self.net, self.event_shape = ebm.net, ebm.event_shape
        self.log_snr, self.factor = float(ebm.schedule.log_snr[0]), float(SIGMAS[-1]) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the energies."""
        energy: Tensor = self.factor * self.net(x, x.new_full((), self.log_snr))
        return energy


def trained(
    build: Callable[[], Any],
    objective: Callable[[Any, Tensor], Any],
    train: Tensor,
    valid: Tensor,
    seconds: float,
    rate: float | None = None,
) -> tuple[Any, str]:
    """Train a model for so many CPU seconds, and say how many updates that were."""

    def prepared(updates: int) -> ep.Training:
        torch.manual_seed(1)
        model = build()
        if not bool(model.is_standardized):
            model.standardize(train)
        own = objective(model, train)
        suited = ep.Training(model, train, own, held_out=valid).options
        options = replace(
            suited, steps=updates, learning_rate=rate, evaluate_every=max(20, updates // 30), patience=1000
        )
        return ep.Training(model, train, own, held_out=valid, options=options)

    training = training_within(seconds, prepared, skip=3, over=10, least=2)
    for _ in training:
        pass
    return training.model, f"{len(training.finish().records)} updates"


@dataclass(frozen=True)
class Judged:
    """Log densities of rows under a model, and how far its samples are from data."""

    log_density: Tensor  # (n,), nats of standardized columns
    log_z: ep.LogNormalizer  # likewise
    p_value: float

    def words(self) -> str:
        """A line's figures but for the difference to other weights."""
        mean, error = _mean_and_error(self.log_density, self.log_z)
        doubt = ", warns" if self.log_z.warning else ""
        known = f"log Z {self.log_z.estimate:+.3f} ± {self.log_z.standard_error:.3f}{doubt}"
        return f"{mean:8.3f} ± {error:.3f}; {known}; samples p = {self.p_value:.3f}"


def judged(model: Any, noisy: Tensor, real: Tensor) -> Judged:
    """Judge a model by noisy rows and by its samples beside real ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what log Z warns of is printed, and late chains show in p
        unit = model.to_unit(model.sample((SAMPLES,)))
        if isinstance(model, ep.MultiscaleEBM):  # which refuses to be normalized
            potential = model.potential()
            log_z = ep.log_normalizer(
                potential, samples=ep.adapt(ep.MALA(0.1), potential, unit, 200).state.x, method=BRIDGE
            )
        else:
            log_z = model.log_normalizer(method=BRIDGE) - float(model.scale.log().sum())
    with torch.no_grad():
        log_density = -model.potential(0)(model.to_unit(noisy)).double() - log_z.estimate
    return Judged(log_density, log_z, ep.metrics.energy_distance_test(unit, model.to_unit(real)).p_value)


def _mean_and_error(values: Tensor, *log_z: ep.LogNormalizer) -> tuple[float, float]:
    spread = float(values.std()) / math.sqrt(len(values))
    return float(values.mean()), math.hypot(spread, *(one.standard_error for one in log_z))


def compare(values: np.ndarray, names: list[str], seed: int, seconds: float, label: str) -> None:
    """Print the lines of a split."""
    train, valid, test, _ = split(values, seed)
    size = train.shape[1]
    systems = table_systems()
    ebm, words = trained(lambda: recovery(size), systems["score"].objective, train, valid, seconds)
    noisy, real = ebm.diffuse(test, 0), ebm.diffuse(train[torch.randperm(len(train))[:SAMPLES]], 0)
    reached = judged(ebm, noisy, real)
    print(f"{label}, split {seed}: score ({words}): {reached.words()}", flush=True)
    for name in names:
        system = systems[name]
        starts: dict[str, tuple[Callable[[], Any], float, float | None]] = {
            "from scratch": (lambda own=system: own.cold(size), seconds, None),  # type: ignore[misc]
            "warm": (lambda own=system: own.warm(copy.deepcopy(ebm), train), 0.5 * seconds, RATE),  # type: ignore[misc]
        }
        for start, (build, given, rate) in starts.items():
            if (name, start) == ("score", "from scratch"):
                continue
            try:
                model, words = trained(build, system.objective, train, valid, given, rate)
                found = judged(model, noisy, real)
            except ep.errors.EnergyPPLError as error:
                print(f"  {name}, {start}: {type(error).__name__}: {error}", flush=True)
                continue
            above = found.log_density - reached.log_density
            mean, error_ = _mean_and_error(above, found.log_z, reached.log_z)
            print(f"  {name}, {start} ({words}): {found.words()}; {mean:+.3f} ± {error_:.3f} above score", flush=True)


def main(arguments: list[str]) -> None:
    """Print the lines of every table and split."""
    parser = argparse.ArgumentParser(prog="table_systems", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("arrays", nargs="*", default=["concrete"])
    parser.add_argument("--systems", nargs="+", choices=list(table_systems()), default=list(table_systems()))
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the first split's number, which is its seed")
    parser.add_argument("--seconds", type=float, default=25.0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name, values in read_arrays(args.file, args.arrays).items():
        rows = as_rows(values)
        for seed in range(args.first, args.first + args.splits):
            compare(rows, args.systems, seed, args.seconds, name)

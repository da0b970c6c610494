"""Figure 2: density on five toys, trained by recovery likelihood with one set of defaults.

``python -m tests.benchmarks density [--steps N] [--seconds X] [--exact] [TOY …]``

The gap is the expected held-out NLL of level 0 minus its true entropy, KL(truth ‖ model), by quadrature on a grid finer
than the noise of level 0.  ``--seconds`` makes as many updates as fit into so many seconds of the processor, in place
of a number of them.  ``--exact`` trains the same network for as many updates by exact maximum likelihood: log Z of
level 0 by jittered quadrature on a 96 × 96 grid.
"""

import argparse
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import energyppl as ep
from tests.benchmarks.budget import training_within

POINTS = 768  # of the grid along each axis
FIVE = ("checkerboard", "rings", "pinwheel", "eight-gaussians", "spirals")


def true_log_prob(ebm: ep.RecoveryEBM, toy: ep.toys.Toy, x: Tensor, level: int = 0) -> Tensor:
    """The true log density of the data at a level, at data points ``x``; the noise must be isotropic in data units."""
    alpha, sigma = float(ebm.schedule.alpha_bar[level]), float(ebm.schedule.sigma_bar[level] * ebm.scale[0])
    noisy = toy.diffused(alpha, sigma)
    shift = (1.0 - alpha) * ebm.loc.to(x)
    return torch.cat([noisy.log_prob(part - shift) for part in x.split(65536)])


def gap(ebm: ep.RecoveryEBM, toy: ep.toys.Toy, level: int = 0, points: int | None = None) -> float:
    """KL(truth ‖ model) of a level in nats, both normalized on one grid."""
    points = POINTS if points is None else points
    half = 3.0 + 1.5 * float(ebm.schedule.sigma_bar[level])
    axis = torch.linspace(-half, half, points + 1, dtype=torch.float64)[:-1] + half / points
    z = torch.cartesian_prod(axis, axis)
    x = ebm.loc.double() + ebm.scale.double() * z
    cell = (2 * half / points) ** 2 * float(ebm.scale.double().prod())
    truth = true_log_prob(ebm, toy, x, level)
    with torch.no_grad():
        potential = ebm.potential(level)
        energy = torch.cat([potential(part.to(ebm.loc)).double() for part in z.split(65536)])
    log_z = torch.logsumexp(-energy, 0) + math.log(cell)
    mass = truth.exp() * cell
    assert abs(float(mass.sum()) - 1.0) < 5e-3, f"the grid misses the truth: its mass is {float(mass.sum()):.4f}"
    return float((mass * (truth + energy + log_z))[mass > 0].sum())


def train(
    name: str, seed: int, options: ep.TrainingOptions, size: int = 50_000, within: float | None = None
) -> tuple[ep.RecoveryEBM, ep.toys.Toy, float]:
    """A model trained with the defaults, the toy, and the seconds that training took: the processor's if ``within``."""
    torch.manual_seed(seed)
    toy = ep.toys.TWO_DIMENSIONAL[name]()
    data = toy.sample((size,))

    def build() -> ep.RecoveryEBM:
        torch.manual_seed(seed)
        ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(6))
        ebm.standardize(data, isotropic=True)  # so that the truth at a level is the toy with isotropic noise
        return ebm

    if within is not None:
        training = training_within(
            within, lambda steps: ep.Training(build(), data, options=replace(options, steps=steps))
        )
        begin = time.process_time()
        for _ in training:
            pass
        training.finish()
        print(f"{name}: {len(training.records):,} updates")
        return training.model, toy, time.process_time() - begin
    ebm, begin = build(), time.perf_counter()
    ep.fit(ebm, data, options=options, progress=False)
    return ebm, toy, time.perf_counter() - begin


def train_exactly(
    name: str, seed: int, options: ep.TrainingOptions, nodes: int = 96
) -> tuple[ep.RecoveryEBM, ep.toys.Toy, float]:
    """The same network, data, optimizer and number of updates, by exact maximum likelihood of level 0.

    Each update normalizes on a grid whose nodes are jittered within their cells, an unbiased estimate of Z.
    """
    torch.manual_seed(seed)
    toy = ep.toys.TWO_DIMENSIONAL[name]()
    data = toy.sample((50_000,))
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(6))
    ebm.standardize(data, isotropic=True)  # so that the truth at a level is the toy with isotropic noise
    begin = time.perf_counter()
    ep.fit(ebm, data, ExactLikelihood(nodes), options=options, progress=False)
    return ebm, toy, time.perf_counter() - begin


@dataclass(frozen=True)
class ExactLikelihood:
    """−log p of level 0, normalized by jittered quadrature on ``nodes``² cells."""

    nodes: int

    def init(self, model: ep.RecoveryEBM) -> nn.Module:
        """Nothing is learned beside the weights."""
        return nn.Module()

    def loss(self, model: ep.RecoveryEBM, state: nn.Module, batch: Tensor) -> ep.objectives.Loss:
        """Mean negative log-likelihood of the batch."""
        x = model.schedule.diffuse(model.to_unit(batch), 0)
        half = 3.0
        axis = (torch.arange(self.nodes) + 0.5) * (2 * half / self.nodes) - half
        grid = torch.cartesian_prod(axis, axis)
        grid = grid + (torch.rand_like(grid) - 0.5) * (2 * half / self.nodes)
        potential = model.potential(0)
        log_z = torch.logsumexp(-potential(grid), 0) + 2 * math.log(2 * half / self.nodes)
        return ep.objectives.Loss(potential(x).mean() + log_z)

    def measure(self, model: ep.RecoveryEBM, state: nn.Module, data: Tensor) -> float:
        """The same on held-out data, with the same noise and jitter each time."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return float(self.loss(model, state, data).value)


def main(arguments: list[str]) -> None:
    """Print one line for each toy."""
    parser = argparse.ArgumentParser(prog="density", description=__doc__)
    parser.add_argument("toys", nargs="*", default=FIVE)
    parser.add_argument("--steps", type=int, default=ep.TrainingOptions().steps)
    parser.add_argument("--seconds", type=float, help="of the processor, in place of updates")
    parser.add_argument("--batch", type=int, default=ep.TrainingOptions().batch_size)
    parser.add_argument("--rate", type=float, default=ep.TrainingOptions().learning_rate)
    parser.add_argument("--exact", action="store_true", help="by exact maximum likelihood, to compare with")
    parser.add_argument("--levels", type=int, default=1, help="how many levels to print the gap of")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.exact and args.seconds is not None:
        parser.error("--exact makes as many updates as --steps says: leave --seconds out")
    for name in args.toys:
        options = ep.TrainingOptions(steps=args.steps, batch_size=args.batch, learning_rate=args.rate)
        if args.exact:
            ebm, toy, seconds = train_exactly(name, args.seed, options)
        else:
            ebm, toy, seconds = train(name, args.seed, options, within=args.seconds)
        levels = " ".join(f"{gap(ebm, toy, t):.4f}" for t in range(args.levels))
        print(f"{name:16} {seconds:5.1f} s   gap by level {levels}", flush=True)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

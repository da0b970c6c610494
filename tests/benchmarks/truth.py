"""Gap to the true entropy in 5, 10 and 20 dimensions: RecoveryEBM with the defaults on densities that are known.

``python -m tests.benchmarks truth [TARGET …] [--dimensions 5 10 20] [--rows 1000 10000 100000] [--steps N]
[--particles N] [--samples N] [--members N] [--seed N]``

The targets are a mixture of five correlated Gaussians, a product of bananas, and a ring times Gaussians.  The gap is
the expected log density of level 0's truth less that of the model, KL(truth ‖ model), over 4,000 fresh rows: ± holds
the error of the rows' paired differences and that of log Z.  Beside it: log Z (standardized; training alone implies 0),
the p-value of a two-sample test of 1,000 samples against fresh rows, and CPU seconds of training.  With ``--members``
the model is the average of as many, each of which sets other rows aside to choose its weights.
"""

import argparse
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import energyppl as ep

FRESH = 4000


@dataclass(frozen=True)
class Product:
    """Independent blocks of coordinates, each a toy with a noised density."""

    blocks: tuple[ep.toys.NoisyToy, ...]

    def sample(self, count: int) -> Tensor:
        """Exact draws, ``(count, d)``."""
        return torch.cat([block.sample((count,)) for block in self.blocks], 1)

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The log density of ``alpha * x0 + sigma * noise``, ``(n, d)`` to ``(n,)``."""
        parts = x.double().split([block.event_shape.numel() for block in self.blocks], 1)
        pairs = zip(self.blocks, parts, strict=True)
        return torch.stack([block.diffused(alpha, sigma).log_prob(part) for block, part in pairs]).sum(0)


def gaussian(dimensions: int) -> tuple[ep.toys.NoisyToy, ...]:
    """A standard Gaussian, or nothing."""
    return (ep.toys.GaussianMixture(torch.zeros(1, dimensions), torch.eye(dimensions)[None]),) if dimensions else ()


def target(name: str, dimensions: int) -> Product:
    """One of the targets; the mixture's centres and covariances are drawn with a fixed seed."""
    if name == "bananas":
        bananas = (ep.toys.Banana(),) * (dimensions // 2)
        return Product((*bananas, *gaussian(dimensions % 2)))
    if name == "ring":
        return Product((ep.toys.Rings(radii=(1.5,), sd=0.2), *gaussian(dimensions - 2)))
    generator = torch.Generator().manual_seed(dimensions)
    means = 2.0 * torch.randn(5, dimensions, generator=generator)
    factors = torch.randn(5, dimensions, dimensions, generator=generator) / math.sqrt(dimensions)
    covariances = 0.5 * factors @ factors.mT + 0.2 * torch.eye(dimensions)
    weights = torch.tensor([0.35, 0.25, 0.2, 0.15, 0.05])
    return Product((ep.toys.GaussianMixture(means, covariances, weights),))


def measure(name: str, dimensions: int, rows: int, args: argparse.Namespace) -> None:
    """Train on one target and print its line."""
    truth = target(name, dimensions)
    torch.manual_seed(args.seed)
    data = truth.sample(rows)
    began, updates, ebms = time.process_time(), 0, []
    for _ in range(args.members):
        ebm = ep.RecoveryEBM(
            ep.MLPEnergy((dimensions,)), ep.NoiseSchedule.cosine(20, log_snr_max=4.6, log_snr_min=-6.0)
        )
        ebm.standardize(data, isotropic=True)  # so that the truth at a level is the target with isotropic noise
        updates += len(ep.fit(ebm, data, steps=args.steps, progress=False).records)
        ebms.append(ebm)
    ebm = ebms[0] if len(ebms) == 1 else ep.models.averaged(*ebms)
    seconds = time.process_time() - began
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning is part of what is printed
        log_z = ebm.log_normalizer(method=ep.normalizing.BAR(args.particles))
    fresh = ebm.diffuse(truth.sample(FRESH), 0)
    scale = float(ebm.scale.log().sum())
    alpha, sigma = float(ebm.schedule.alpha_bar[0]), float(ebm.schedule.sigma_bar[0] * ebm.scale[0])
    with torch.no_grad():
        own = ebm.implied_log_prob(fresh).double() + scale - log_z.estimate
        below = truth.log_prob(fresh - (1.0 - alpha) * ebm.loc, alpha, sigma) - own
    gap, error = float(below.mean()), math.hypot(float(below.std()) / math.sqrt(FRESH), log_z.standard_error)
    samples = ebm.sample((args.samples,))
    p_value = ep.metrics.energy_distance_test(samples, fresh[: args.samples]).p_value
    print(
        f"{name}, {dimensions}-D, {rows} rows: gap {gap:.3f} ± {error:.3f} (goal {0.02 * dimensions:.2f}); "
        f"log Z {log_z.estimate - scale:.3f} ± {log_z.standard_error:.3f}{', warns' if log_z.warning else ''}; "
        f"samples p = {p_value:.3f}; {updates} updates, {seconds:.0f} CPU s",
        flush=True,
    )


def main(arguments: Sequence[str]) -> None:
    """One line for each target, dimension and number of rows."""
    names = ("mixture", "bananas", "ring")
    parser = argparse.ArgumentParser(prog="truth", description=__doc__)
    parser.add_argument("targets", nargs="*", default=names, metavar="TARGET", help=", ".join(names))
    parser.add_argument("--dimensions", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--rows", nargs="+", type=int, default=[1000, 10_000, 100_000])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--particles", type=int, default=ep.normalizing.BAR().particles, help="of log Z")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--members", type=int, default=1, help="models to average")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if unknown := set(args.targets) - set(names):
        parser.error(f"unknown targets {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    torch.set_num_threads(1)
    for name in args.targets:
        for dimensions in args.dimensions:
            for rows in args.rows:
                measure(name, dimensions, rows, args)

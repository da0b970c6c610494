"""Masses of separated regions: a crescent and a far, narrow mode, in the density and in samples.

``python -m tests.benchmarks masses [--by recovery score both] [--shares .01 .03 .1] [--distances 3 5 10] [--tie W …]
[--dimensions D]``

By recovery likelihood with a level tie on a network with whole levels, by score matching tied across continuous levels,
or by that and then recovery likelihood, which sharpens edges.

The far mode has a share of the mass, at a distance in standard deviations of the crescent.  Above two dimensions the
crescent has Gaussian columns besides, of its own standard deviation, the far mode is round, and models are trained by
the defaults of ``fit``.

For each density and each weight of the level tie it prints the gap KL(truth ‖ model) of level 0 in nats, the far mode's
mass over its true one under the density and among samples (and among the training data), the CPU seconds of training,
log Z, which the tie brings to 0, and what ``ep.evaluation.region_masses`` says of it.  Gap, mass and log Z are by
quadrature in the plane, above by importance sampling from truth, far mode and a Gaussian with four times the truth's
covariance.
"""

import argparse
import math
import time
from typing import NamedTuple, cast

import torch
from torch import Tensor

import energyppl as ep
from tests.benchmarks.density import true_log_prob

ARC, WIDTH = 32, 0.12
NODES = 1200
POINTS = 100_000


def crescent_and_mode(share: float, distance: float, dimensions: int = 2) -> ep.toys.GaussianMixture:
    """A half circle of radius 1 and a round mode with a ``share`` of the mass, the last component.

    The mode has a standard deviation of .1 in the plane, and .2 above, where points are farther from each other.
    """
    angle = torch.linspace(0.0, math.pi, ARC, dtype=torch.float64)
    arc = torch.stack([angle.cos(), angle.sin()], 1)
    arc = arc - arc.mean(0)
    spread = float((arc.var(0, correction=0) + WIDTH**2).mean().sqrt())
    means = torch.zeros(ARC + 1, dimensions, dtype=torch.float64)
    means[:ARC, :2], means[ARC, 0] = arc, distance * spread
    variances = torch.full((ARC + 1, dimensions), spread**2, dtype=torch.float64)
    variances[:ARC, :2], variances[ARC] = WIDTH**2, (0.1 if dimensions == 2 else 0.2) ** 2
    weights = torch.cat([torch.full((ARC,), (1.0 - share) / ARC), torch.tensor([share])])
    return ep.toys.GaussianMixture(means, torch.diag_embed(variances), weights)


class Masses(NamedTuple):
    """Masses and gap of a density."""

    gap: float  # KL(truth ‖ model), nats
    far: float  # mass of the far mode
    log_z: float  # of exp(−U) at level 0, in the energy's coordinates


@torch.no_grad()
def masses(ebm: ep.RecoveryEBM, toy: ep.toys.GaussianMixture) -> Masses:
    """Integrate a model's density of level 0 over a box about all components, in the plane."""
    low, high = toy.means.amin(0) - 12.0 * WIDTH, toy.means.amax(0) + 12.0 * WIDTH
    cells = (high - low) / NODES
    axes = [a + step * (torch.arange(NODES) + 0.5) for a, step in zip(low, cells, strict=True)]
    x = torch.cartesian_prod(*axes)
    truth = true_log_prob(ebm, toy, x)
    potential = ebm.potential(0)
    energy = torch.cat([potential(ebm.to_unit(part.to(ebm.loc))).double() for part in x.split(65536)])
    log_cell = float(cells.log().sum())
    log_z = float(torch.logsumexp(-energy, 0)) + log_cell
    gap = float((truth.exp() * (truth + energy + log_z)).nan_to_num().sum()) * math.exp(log_cell)
    far = float((-energy - log_z + log_cell).exp()[is_far(toy, x)].sum())
    return Masses(gap, far, log_z - float(ebm.scale.log().sum()))


@torch.no_grad()
def weighted_masses(ebm: ep.RecoveryEBM, toy: ep.toys.GaussianMixture, points: int) -> Masses:
    """The same in any dimension, by importance sampling from a mixture of three with known densities."""
    far = ep.toys.GaussianMixture(toy.means[ARC:], toy.covariances[ARC:])
    drawn = toy.sample((10_000,))
    wide = ep.toys.GaussianMixture(drawn.mean(0, keepdim=True), 4.0 * torch.cov(drawn.T)[None], torch.ones(1))
    parts = ((toy, 0.4), (far, 0.3), (wide, 0.3))
    x = torch.cat([ebm.diffuse(part.sample((round(share * points),)).to(ebm.loc), 0) for part, share in parts]).double()
    log_truth, of_mode, of_wide = (true_log_prob(ebm, part, x) for part, _ in parts)
    log_shares = [math.log(share) for _, share in parts]
    log_proposal = (torch.stack([log_truth, of_mode, of_wide], 1) + torch.tensor(log_shares)).logsumexp(1)
    potential = ebm.potential(0)
    energy = torch.cat([potential(ebm.to_unit(part.to(ebm.loc))).double() for part in x.split(8192)])
    log_z = float((-energy - log_proposal).logsumexp(0)) - math.log(len(x))
    mass = (-energy - log_proposal - log_z).exp() / len(x)
    of_far = (math.log(float(cast(Tensor, toy.weights)[ARC])) + of_mode - log_truth).exp()
    gap = float(((log_truth - log_proposal).exp() * (log_truth + energy + log_z)).mean())
    return Masses(gap, float((mass * of_far).sum()), log_z - float(ebm.scale.log().sum()))


def is_far(toy: ep.toys.GaussianMixture, x: Tensor) -> Tensor:
    """Tell whether points belong to the far mode."""
    return torch.cat([toy.modes(part) for part in x.split(65536)]) == ARC


def trained(data: Tensor, by: str, tie: float, steps: int | None) -> ep.RecoveryEBM:
    """Train a model in one of three ways, or above two dimensions by the defaults."""
    if data.shape[1] > 2:
        ebm = ep.models.model_of_columns(data.shape[1])
        ebm.standardize(data, isotropic=True)
        ep.fit(ebm, data, steps=steps, progress=False)
        return ebm
    continuous = by != "recovery"
    schedule = ep.NoiseSchedule.cosine(6, log_snr_min=-6.0) if continuous else ep.NoiseSchedule.cosine(6)
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), continuous=continuous), schedule)
    ebm.standardize(data, isotropic=True)  # so that the truth at level 0 is the toy with isotropic noise
    if continuous:
        ep.fit(ebm, data, ep.objectives.LevelScoreMatching(), steps=steps, progress=False)
    if by != "score":
        ep.fit(ebm, data, ep.RecoveryLikelihood(tie=tie), steps=steps, progress=False)
    return ebm


def report(by: str, share: float, distance: float, tie: float, args: argparse.Namespace) -> None:
    """Train once and print a line."""
    torch.manual_seed(args.seed)
    toy = crescent_and_mode(share, distance, args.dimensions)
    data = toy.sample((args.size,)).float()
    begin = time.process_time()
    ebm = trained(data, by, tie, args.steps)
    seconds = time.process_time() - begin
    found = masses(ebm, toy) if args.dimensions == 2 else weighted_masses(ebm, toy, args.points)
    samples = ebm.sample((args.samples,))
    own, drawn = (float(is_far(toy, x).double().mean()) for x in (data, samples))
    said = ep.evaluation.region_masses(ebm, data, samples=samples).problems()
    print(
        f"{by}, {args.dimensions}-D: {100 * share:3.0f} % at {distance:2.0f} sd, tie {tie:g}: gap {found.gap:.4f}, "
        f"far mode's mass over its own {found.far / share:.2f} in the density, {drawn / share:.2f} in samples, "
        f"{own / share:.2f} in the data; "
        f"log Z {found.log_z:+.3f} ({seconds:.0f} s); region_masses says {'; '.join(said[:2]) or 'nothing'}",
        flush=True,
    )


def main(arguments: list[str]) -> None:
    """Print one line for each share, distance and weight of the tie."""
    parser = argparse.ArgumentParser(prog="masses", description=__doc__)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.01, 0.03, 0.1])
    parser.add_argument("--distances", type=float, nargs="*", default=[3.0, 5.0, 10.0])
    parser.add_argument("--tie", type=float, nargs="*", default=[ep.RecoveryLikelihood().tie])
    parser.add_argument("--by", nargs="*", choices=("recovery", "score", "both"), default=["recovery", "score", "both"])
    parser.add_argument("--steps", type=int, help="updates of each training; what suits it if left out")
    parser.add_argument("--size", type=int, default=50_000, help="rows of training data")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dimensions", type=int, default=2)
    parser.add_argument("--points", type=int, default=POINTS, help="draws of importance sampling above two dimensions")
    args = parser.parse_args(arguments)
    if args.dimensions > 2:
        args.by, args.tie = ["score"], [1.0]
    for share in args.shares:
        for distance in args.distances:
            for by in args.by:
                for tie in args.tie if by != "score" else args.tie[:1]:
                    report(by, share, distance, tie, args)

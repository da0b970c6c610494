"""Joint persistent training beside its relatives: the 1-D mixture, and four rings in one table.

``python -m tests.benchmarks joint [--seconds N] [--steps N] [--chains N] [--samples N] [--repeats N] [--points N]
[--widths SD …] [CASE …]``

First ¾ N(−2, .1²) + ¼ N(2, .1²) with the paper's energy of 81 knots (Zhang, Tan & Ou 2023), 1,200 updates of 10 moves,
``--repeats`` seeds: the energy gap U(−2) − U(2), which is −1.0986, and the mass on the left, .75, beside that of the
points themselves.  The paper has 1,000 points, whose log odds have a standard error of .073; of 10,000 it is .023.
Then four rings of sd .15 and .01: each case trains one network for ``--seconds`` of CPU time.  The gap is the held-out
NLL of the normalized level 0 less the truth's (where level 0 has noise of its own, of data with that noise); shares of
the rings are those of chains of ``--steps`` MALA moves from the data, of such from white noise, and of the model's own
samples.  Gradients are those of chains and loss in training, in millions of points.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.objectives.contract import Objective
from tests.benchmarks.budget import training_within

Model = ep.EBM | ep.JointEBM | ep.RecoveryEBM
CASES: dict[str, tuple[type[Model], Callable[[], Objective], int]] = {  # and the gradients for each row of a batch
    "joint": (ep.JointEBM, ep.PersistentLikelihood, 22),
    "persistent": (ep.EBM, ep.PersistentLikelihood, 22),
    "hybrid": (ep.EBM, lambda: ep.PersistentLikelihood(rejuvenate=0.05), 22),
    "noise": (ep.EBM, lambda: ep.PersistentLikelihood(rejuvenate=1.0, num_steps=100), 102),
    "contrastive": (ep.EBM, lambda: ep.objectives.ContrastiveDivergence(steps=20), 22),
    "recovery": (ep.RecoveryEBM, ep.RecoveryLikelihood, 7),
    "cooperative": (
        ep.RecoveryEBM,
        ep.CooperativeRecovery,
        7,
    ),
    "level-scores": (
        ep.RecoveryEBM,
        ep.objectives.LevelScoreMatching,
        2,
    ),  # MDSM told the noise: the energy alone has no density
}


class Knots(nn.Module):
    """``x²/100 + Σ θ_j ReLU(x − ξ_j)`` with 81 knots, a row of weights for each level."""

    event_shape = torch.Size((1,))

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.register_buffer("knots", torch.linspace(-4.0, 4.0, 81))
        self.weights = nn.Parameter(torch.zeros(levels, 81))

    knots: Tensor

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        z = x[..., 0]
        weights = nn.functional.embedding(level, self.weights)
        return z * z / 100.0 + (weights * torch.relu(z[..., None] - self.knots)).sum(-1)


def schedule() -> ep.NoiseSchedule:
    """The paper's six noise levels for toys, and the clean one."""
    return ep.NoiseSchedule.sqrtcumlinear(6, start=0.01, end=0.3)


def recovery_schedule(sd: float) -> ep.NoiseSchedule:
    """The default's, its first level sharpened until its noise is well below the rings' width."""
    return ep.NoiseSchedule.cosine(6) if sd >= 0.1 else ep.NoiseSchedule.cosine(8, log_snr_max=13.0)


def mixture(joint: bool, seed: int, points: int) -> tuple[float, float, float]:
    """The energy gap of a trained model, NaN if it diverged, its mass on the left, and that of its training points."""
    torch.manual_seed(seed)
    data = ep.toys.OneDimensionalMixture().sample((points,))
    model: Model = ep.JointEBM(Knots(7), schedule()) if joint else ep.EBM(Knots(1), event_shape=(1,))
    model.is_standardized.fill_(True)  # the knots lie in data coordinates
    objective = ep.PersistentLikelihood(slots=1000, num_steps=10, sweeps=1)
    options = ep.TrainingOptions(steps=1200, batch_size=900, learning_rate=0.01, patience=1000)
    try:
        ep.fit(model, data, objective, options=options, progress=False)
    except ep.TrainingDiverged:
        return float("nan"), float("nan"), float("nan")
    potential = model.marginal().potential
    grid = torch.linspace(-6.0, 6.0, 4001)[:, None]
    with torch.no_grad():
        ends = potential(torch.tensor([[-2.0], [2.0]]))
        mass = torch.softmax(-potential(grid), 0)
    return float(ends[0] - ends[1]), float(mass[:2000].sum()), float((data < 0.0).double().mean())


def rings(case: str, sd: float, seconds: float) -> tuple[Model, ep.toys.Rings, Tensor]:
    """A model trained for so many seconds, its toy, and its data."""
    torch.manual_seed(0)
    toy = ep.toys.Rings(sd=sd)
    data = toy.sample((50_000,))
    kind, objective, gradients = CASES[case]

    def build(updates: int) -> ep.Training:
        torch.manual_seed(1)
        net = ep.MLPEnergy((2,), levels=8)
        model: Model
        if kind is ep.EBM:
            model = ep.EBM(net)
        else:
            start = ep.MLPInitializer((2,), learn_scale=True) if case == "cooperative" else None
            noise = schedule() if kind is ep.JointEBM else recovery_schedule(sd)
            model = ep.JointEBM(net, noise) if kind is ep.JointEBM else ep.RecoveryEBM(net, noise, initializer=start)
        model.standardize(data, isotropic=True)
        options = ep.TrainingOptions(steps=updates, evaluate_every=max(100, updates // 10), patience=1000)
        return ep.Training(model, data, objective(), options=options)

    training = training_within(seconds, build)
    for _ in training:
        pass
    model = cast(Model, training.model)
    history = training.finish()
    if isinstance(model, ep.RecoveryEBM) and case == "level-scores":
        model.tune(data[:2000])  # score matching has no chains
    count = len(history.records)
    taken = count * training.options.batch_size * gradients / 1e6
    print(f"  {case}: {count} updates, {taken:.1f} million gradients", end="", flush=True)
    return model, toy, data


def shares(x: Tensor) -> list[float]:
    """Percent of points nearest to each ring."""
    found = x.reshape(-1, 2).norm(dim=-1).round().clamp(1, 4)
    return [round(100.0 * float((found == ring).double().mean()), 1) for ring in (1, 2, 3, 4)]


def main(arguments: list[str]) -> None:
    """Lines for the mixture, and one for each case and width of rings."""
    parser = argparse.ArgumentParser(prog="joint", description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--chains", type=int, default=400)
    parser.add_argument("--samples", type=int, default=4000, help="of the model's own sampler")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--widths", type=float, nargs="*", default=[0.15, 0.01])
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for joint in (True, False) if args.repeats else ():
        found = [mixture(joint, seed, args.points) for seed in range(args.repeats)]
        name = "joint" if joint else "persistent"
        columns = [[round(value, 3) for value in column] for column in zip(*found, strict=True)]
        print(
            f"1-D mixture, {name}: energy gap {columns[0]} (truth -1.099), mass on the left {columns[1]} (truth .75; "
            f"of the points {columns[2]})",
            flush=True,
        )
    for sd in args.widths:
        print(f"four rings of sd {sd}, {args.seconds:.0f} s each; percent on each ring:")
        for case in args.cases:
            try:
                model, toy, data = rings(case, sd, args.seconds)
            except ep.TrainingDiverged as error:
                print(f"  {case}: diverged: {str(error)[:90]}", flush=True)
                continue
            fresh = model.diffuse(toy.sample((20_000,)), 0)
            if isinstance(model, ep.RecoveryEBM):  # whose level 0 has noise of its own
                truth = toy.diffused(1.0, float(model.schedule.sigma_bar[0] * model.scale[0])).log_prob(fresh)
            else:
                truth = toy.log_prob(fresh)
            with torch.no_grad():
                difference = truth - model.log_prob(fresh)
            run = ep.long_run(model, data, steps=args.steps, kept=50, chains=args.chains, progress=False)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                own = model.sample((args.samples,))
            ends = (run.from_data.chains.draws[:, -5:], run.from_noise.chains.draws[:, -5:], own)
            problems = "; ".join([*run.problems, *(str(warning.message)[:60] for warning in caught)])
            print(
                f", NLL gap {float(difference.mean()):.4f} ± {float(difference.std()) / 20_000**0.5:.4f}; after "
                f"{args.steps} moves from data {shares(ends[0])}, from noise {shares(ends[1])}; own samples "
                f"{shares(own)}; {problems}",
                flush=True,
            )


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

"""Simulation-based inference: unnormalized neural likelihoods beside a flow's, on two tasks of the sbi benchmark.

``python -m tests.benchmarks sbi [two_moons] [slcp] [--simulations N] [--observations N] [--steps N] [--draws N]
[--tried N]``

The simulators are those of Lueckmann et al. 2021 ("Benchmarking simulation-based inference", appendix T):

- *two moons*: 2 parameters, evenly in [−1, 1]²; a crescent in the plane, shifted such that the posterior is two
  crescents.  Reference draws are exact: noise is drawn, and the parameters that it leaves possible are worked out.
- *SLCP* (simple likelihood, complex posterior): 5 parameters, evenly in [−3, 3]⁵; four draws from a Gaussian in the
  plane; the posterior has four modes, alike but for the signs of two scales.  Reference draws are 1,000 chains on the
  known likelihood, begun by resampling a million draws of the prior; the signs are drawn anew, which is exact.

Both methods learn p(x | θ) from the same 10,000 simulations, a tenth of which validates; their posteriors are sampled
by the same many chains, which begin where ``Resampled`` puts draws of the prior:

- energy: a ``ConditionalEBM`` with the defaults of ``fit``, noise-contrastive estimation with a learned proposal;
  ``models.posterior``;
- NLE: zuko's neural spline flow of x given θ (neural likelihood estimation), 64 and 128 units wide, without and with a
  weight decay of 0.3, AdamW and averaged weights as the energy has them, for as many CPU seconds each as the energy's
  training took, or until it has not validated better for long; the one that validates best;
- known: the true likelihood, sampled by the same chains, which shows what the chains by themselves cost.

The figure is the classifier two-sample test (C2ST): the accuracy, over five folds, of scikit-learn's perceptron (two
layers of ten units for each dimension) at telling a method's draws from the reference's, 0.5 being best.
"""

import argparse
import copy
import itertools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Uniform
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import energyppl as ep

BATCH, EVERY, PATIENCE = 256, 50, 20  # rows of the flow's batch; its evaluations; of which none is the best
WIDTHS, DECAYS, AVERAGED = (64, 128), (0.0, 0.3), 0.995
CHAINS, WARMUP = 1000, 100
ITERATIONS = 1000  # of the classifier at most


# --- Tasks ---


def two_moons(theta: Tensor) -> Tensor:
    """Simulate two moons, ``(n, 2)`` to ``(n, 2)``."""
    return _crescent(len(theta)) + _moved(theta)


def _crescent(count: int) -> Tensor:
    angle = math.pi * (torch.rand(count) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(count)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)


def _moved(theta: Tensor) -> Tensor:
    return torch.stack([-(theta[..., 0] + theta[..., 1]).abs(), theta[..., 1] - theta[..., 0]], -1) / math.sqrt(2.0)


def two_moons_energy(theta: Tensor, x: Tensor) -> Tensor:
    """Minus two moons' known log likelihood of ``x``, ``(2,)``, up to a constant, at parameters ``(*batch, 2)``."""
    apart = x - _moved(theta) - torch.tensor([0.25, 0.0])
    radius = apart.norm(dim=-1)
    return torch.where(apart[..., 0] > 0.0, 0.5 * ((radius - 0.1) / 0.01).square() + radius.log(), math.inf)


def two_moons_posterior(x: Tensor, count: int) -> Tensor:
    """Draw exactly from the posterior of two moons given one ``x``, ``(2,)``."""
    kept: list[Tensor] = []
    while sum(map(len, kept)) < count:
        apart = math.sqrt(2.0) * (x - _crescent(4 * count))  # −|θ₁ + θ₂| and θ₂ − θ₁, whose Jacobian is constant
        total = -apart[:, 0] * torch.where(torch.rand(len(apart)) < 0.5, -1.0, 1.0)
        theta = 0.5 * torch.stack([total - apart[:, 1], total + apart[:, 1]], -1)
        kept.append(theta[(apart[:, 0] <= 0.0) & (theta.abs() < 1.0).all(-1)])
    return torch.cat(kept)[:count]


def slcp(theta: Tensor) -> Tensor:
    """Simulate four draws of SLCP's Gaussian, ``(n, 5)`` to ``(n, 8)``."""
    return _slcp_gaussian(theta).sample((4,)).movedim(0, -2).flatten(-2)


def _slcp_gaussian(theta: Tensor) -> MultivariateNormal:
    """Return its Gaussian, by the Cholesky factor of [[s₁², ρ s₁ s₂], [ρ s₁ s₂, s₂²]]."""
    first, second, rho = theta[..., 2].square(), theta[..., 3].square(), theta[..., 4].tanh()
    zero = torch.zeros_like(rho)
    rows = [torch.stack([first, zero], -1), torch.stack([rho * second, (1.0 - rho.square()).sqrt() * second], -1)]
    factor = torch.stack(rows, -2) + 1e-6 * torch.eye(2)
    return MultivariateNormal(theta[..., :2], scale_tril=factor, validate_args=False)


def slcp_energy(theta: Tensor, x: Tensor) -> Tensor:
    """Minus SLCP's known log likelihood of ``x``, ``(8,)``, at parameters ``(*batch, 5)``."""
    gaussian = _slcp_gaussian(theta)
    return -sum((gaussian.log_prob(row) for row in x.reshape(4, 2)), torch.zeros(()))


@dataclass(frozen=True)
class Task:
    """A simulator, minus its log likelihood, and its prior."""

    simulator: Callable[[Tensor], Tensor]
    energy: Callable[..., Tensor]  # of parameters and x
    limit: float
    parameters: int
    data: int

    @property
    def prior(self) -> Independent:
        ends = torch.full((self.parameters,), self.limit)
        return Independent(Uniform(-ends, ends, validate_args=False), 1)


TASKS = {
    "two_moons": Task(two_moons, two_moons_energy, 1.0, 2, 2),
    "slcp": Task(slcp, slcp_energy, 3.0, 5, 8),
}


# --- Posteriors ---


def chains_of(posterior: ep.EnergyDistribution, draws: int) -> Tensor:
    """Draw from a posterior by many chains, each of which gives its last point of several runs."""
    chains = min(CHAINS, draws)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # chains stay in their mode, which R̂ notices
        found = ep.sample_chains(
            ep.HMC(steps=5),
            posterior,
            chains=chains,
            draws=math.ceil(draws / chains),
            thin=10,
            warmup=WARMUP,
            progress=False,
        )
    return found.samples["x"].flatten(0, 1)[:draws]


@dataclass(frozen=True, eq=False)
class Known:
    """Energy of parameters by a likelihood that is known or was learned otherwise, under a flat prior."""

    energy: Callable[[Tensor], Tensor]
    event_shape: torch.Size

    def __call__(self, x: Tensor) -> Tensor:
        return self.energy(x)


@dataclass(frozen=True, eq=False)
class NegativeLogLikelihood:
    """Minus a learned log density of one x, as a function of parameters."""

    log_prob: Callable[[Tensor, Tensor], Tensor]
    x: Tensor

    def __call__(self, theta: Tensor) -> Tensor:
        return -self.log_prob(self.x.expand(*theta.shape[:-1], -1), theta)


def by_likelihood(task: Task, energy: Callable[[Tensor], Tensor], tried: int | None = None) -> ep.EnergyDistribution:
    """The posterior of minus a log likelihood, whose chains begin at resampled draws of the prior."""
    potential = Known(energy, torch.Size((task.parameters,)))
    begin = ep.models.Resampled(task.prior, energy, tried)
    return ep.EnergyDistribution(potential, sampler=begin, like=torch.zeros(()), support=task.prior.support)


def reference(name: str, task: Task, x: Tensor, draws: int, tried: int) -> Tensor:
    """Draws of the true posterior."""
    if name == "two_moons":
        return two_moons_posterior(x, draws)
    found = chains_of(by_likelihood(task, partial(task.energy, x=x), tried), draws)
    found[:, 2:4] *= torch.randn(len(found), 2).sign()  # the likelihood knows these two by their squares
    return found


def energy_model(task: Task, rows: Any, steps: int | None) -> ep.models.ConditionalEBM:
    """Train the energy."""
    net = ep.MLPEnergy(task.data, context_shape=task.parameters)
    schedule = ep.NoiseSchedule.cosine(20, log_snr_max=12.0, log_snr_min=-6.0)
    ebm = ep.models.ConditionalEBM(net, schedule)
    ep.fit(ebm, rows, steps=steps, progress=False)
    return ebm


def flow_model(task: Task, rows: Any, seconds: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Train the flows; the log density of x given θ of the one that validates best."""
    loc, scale = rows.x.mean(0), rows.x.std(0)
    x, theta = (rows.x - loc) / scale, rows.parameters / task.limit
    found = [_flow(width, decay, x, theta, seconds) for width, decay in itertools.product(WIDTHS, DECAYS)]
    _, flow = max(found, key=lambda one: one[0])

    def log_prob(x: Tensor, theta: Tensor) -> Tensor:
        value: Tensor = flow(theta / task.limit).log_prob((x - loc) / scale)
        return value

    return log_prob


def _flow(width: int, decay: float, x: Tensor, theta: Tensor, seconds: float) -> tuple[float, Any]:
    import zuko

    flow = zuko.flows.NSF(x.shape[1], context=theta.shape[1], hidden_features=(width, width))
    averaged = AveragedModel(flow, multi_avg_fn=get_ema_multi_avg_fn(AVERAGED))
    aside = len(x) // 10
    optimizer = torch.optim.AdamW(flow.parameters(), lr=1e-3, weight_decay=decay)
    best, weights, since, step = -math.inf, copy.deepcopy(flow.state_dict()), 0, 0
    order: list[Tensor] = []
    began = time.process_time()
    while since < PATIENCE and time.process_time() - began < seconds:
        if not order:
            order = list((aside + torch.randperm(len(x) - aside)).split(BATCH))
        some = order.pop()
        optimizer.zero_grad()
        (-flow(theta[some]).log_prob(x[some]).mean()).backward()
        optimizer.step()
        averaged.update_parameters(flow)
        step += 1
        if step % EVERY == 0:
            with torch.no_grad():
                now = float(averaged(theta[:aside]).log_prob(x[:aside]).mean())
            since += 1
            if now > best:
                best, weights, since = now, copy.deepcopy(averaged.module.state_dict()), 0
    print(f"  flow {width} wide, decay {decay}: {step} updates, validates at {best:.3f} nats", flush=True)
    flow.load_state_dict(weights)
    for weight in flow.parameters():
        weight.requires_grad_(False)
    return best, flow


def c2st(ours: Tensor, theirs: Tensor, seed: int) -> float:
    """Accuracy of a classifier that tells two sets of draws apart, over five folds."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    loc, scale = theirs.mean(0), theirs.std(0)
    data = torch.cat([(ours - loc) / scale, (theirs - loc) / scale]).double().numpy()
    labels = np.repeat([0, 1], [len(ours), len(theirs)])
    units = 10 * data.shape[1]
    classifier = MLPClassifier(
        activation="relu", hidden_layer_sizes=(units, units), max_iter=ITERATIONS, random_state=seed
    )
    folds = KFold(n_splits=5, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a classifier that has not converged
        return float(cross_val_score(classifier, data, labels, cv=folds, scoring="accuracy").mean())


def compare(name: str, args: argparse.Namespace) -> None:
    """Print a line for each observation of a task, and one for all."""
    task, draws = TASKS[name], args.draws
    torch.manual_seed(0)
    rows = ep.models.simulate(task.simulator, task.prior, args.simulations)
    began = time.process_time()
    ebm = energy_model(task, rows, args.steps)
    trained = time.process_time()
    try:
        log_prob = flow_model(task, rows, trained - began)
    except ImportError as missing:
        print(f"NLE left out: {missing}", flush=True)
        log_prob = None
    print(
        f"{name}: training on {args.simulations} simulations, energy {trained - began:.0f} CPU s, flows "
        f"{time.process_time() - trained:.0f} CPU s",
        flush=True,
    )
    scores: dict[str, list[float]] = {"energy": [], "NLE": [], "known": []}
    for seed in range(args.observations):
        torch.manual_seed(1000 + seed)
        x = task.simulator(task.prior.sample((1,)))[0]
        truth = reference(name, task, x, draws, args.tried)
        posteriors = {
            "energy": ep.models.posterior(ebm, task.prior, x),
            "known": by_likelihood(task, partial(task.energy, x=x)),
        }
        if log_prob is not None:
            nle = NegativeLogLikelihood(log_prob, x)
            posteriors["NLE"] = by_likelihood(task, nle)
        for label, posterior in posteriors.items():
            scores[label].append(c2st(chains_of(posterior, draws), truth, seed))
        line = ", ".join(f"{label} {found[-1]:.3f}" for label, found in scores.items() if found)
        print(f"{name}, observation {seed}: C2ST {line}; {time.process_time() - began:.0f} CPU s so far", flush=True)
    means = ", ".join(f"{label} {np.mean(found):.3f}" for label, found in scores.items() if found)
    print(f"{name}, {args.observations} observations: C2ST {means}", flush=True)


def main(arguments: list[str]) -> None:
    """Both tasks."""
    parser = argparse.ArgumentParser(prog="sbi", description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--observations", type=int, default=5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--draws", type=int, default=5_000)
    parser.add_argument("--tried", type=int, default=1_000_000)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in args.tasks:
        compare(name, args)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

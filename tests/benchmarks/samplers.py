"""Samplers: effective draws per second and per gradient, ours beside Pyro's, NumPyro's, BlackJAX's and the EBM kits'.

``python -m tests.benchmarks samplers [--targets …] [--samplers …] [--chains …] [--draws N] [--repeats N] [--json F]``

Six energies, which ``peers.py`` writes again in jax: a banana, ten Gaussian coordinates whose variances span a factor
of 1,000, eight schools, a logistic regression of 25 columns, a perceptron fitted to rings, and a convolutional energy
of 8 x 8 images.  All chains start in N(0, I), in float32, on as many cores as ``--threads`` says.  The defaults take
about a quarter of an hour on one core.

ESS is ArviZ's bulk ESS of the worst coordinate or squared coordinate, from at most 256 chains and scaled up to all; R̂
is the worst rank-normalized one, over the same.  "off" is the largest error of a mean, in standard deviations, or of a
variance, as a share; where it is beyond chance, or R̂ above 1.1, it is marked ``!``, and the ESS means nothing.
"""

import argparse
import hashlib
import importlib.util
import inspect
import json
import math
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import energyppl as ep
from tests.benchmarks.peers import PEERS, Adapter, Problem, Run, jax_energy

# --- Energies --------------------------------------------------------------------------------------------------------


class Banana(nn.Module):
    """``ep.toys.Banana(curvature=0.5, scale=1.0)`` without its constant."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("curvature", torch.tensor(0.5))
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unbind(-1)
        ridge = self.curvature * (first.square() - self.scale.square())
        return 0.5 * ((first / self.scale).square() + (second - ridge).square())


class Gaussian(nn.Module):
    """Ten independent coordinates, standard deviations 0.1 to 3.16: a condition number of 1,000."""

    event_shape = torch.Size((10,))

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sd", torch.logspace(-1, 0.5, 10))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x / self.sd).square().sum(-1)


class Schools(nn.Module):
    """Eight schools (Rubin 1981; Gelman et al. 2013, section 5.5), not centred: μ ~ N(0, 5²), τ ~ half-Cauchy(5)."""

    event_shape = torch.Size((10,))  # (μ, log τ, (θ − μ) / τ)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("effect", torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]))
        self.register_buffer("error", torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]))

    def forward(self, x: Tensor) -> Tensor:
        mu, log_tau, z = x[..., 0], x[..., 1], x[..., 2:]
        tau = log_tau.exp()
        misfit = (mu.unsqueeze(-1) + tau.unsqueeze(-1) * z - self.effect) / self.error
        prior = 0.5 * (mu / 5.0).square() + torch.log1p((tau / 5.0).square()) - log_tau + 0.5 * z.square().sum(-1)
        return prior + 0.5 * misfit.square().sum(-1)


class Logistic(nn.Module):
    """Logistic regression on 1,000 made rows of 24 correlated columns and a constant, its weights N(0, 1)."""

    event_shape = torch.Size((25,))

    def __init__(self) -> None:
        super().__init__()
        shared = torch.randn(1000, 4) @ torch.randn(4, 24)
        columns = torch.cat([torch.ones(1000, 1), 0.5 * shared + torch.randn(1000, 24)], 1)
        chance = torch.sigmoid(columns @ (0.3 * torch.randn(25)))
        self.register_buffer("columns", columns)
        self.register_buffer("outcome", (torch.rand(1000) < chance).float())

    def forward(self, x: Tensor) -> Tensor:
        logit = x @ self.columns.T
        return 0.5 * x.square().sum(-1) + functional.softplus(logit).sum(-1) - logit @ self.outcome


class Rings(nn.Module):
    """A perceptron 2 → 128 → 128 → 1 fitted to four rings wide enough (sd 0.25) that chains cross between them."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))
        self.register_buffer("confinement", torch.tensor(0.05))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1) + 0.5 * self.confinement * x.square().sum(-1)

    def fit(self) -> None:
        """Regression to the rings' own energy U, as 10 asinh(U / 10) so that far points don't take over."""
        toy = ep.toys.Rings(sd=0.25)
        optimizer = torch.optim.Adam(self.parameters(), 3e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4000)
        for _ in range(4000):
            near = toy.sample((256,)) + 0.3 * torch.randn(256, 2)
            x = torch.cat([near, 14 * torch.rand(256, 2) - 7])
            wanted = 10 * torch.asinh(toy(x).clamp(min=-5) / 10)
            loss = (self(x) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


class Digits(nn.Module):
    """A small convolutional energy of 8 x 8 images, 1 → 32 → 64 channels, with a confining quadratic."""

    event_shape = torch.Size((1, 8, 8))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 64, 3, padding=1)
        self.last = nn.Linear(64, 1, bias=False)
        self.register_buffer("confinement", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 1, 8, 8)
        hidden = functional.silu(self.second(functional.silu(self.first(rows))))
        energy = self.last(hidden.sum((2, 3))).squeeze(-1) + 0.5 * self.confinement * rows.square().sum((1, 2, 3))
        return energy.reshape(x.shape[:-3])

    def fit(self, noise: float = 0.5) -> None:
        """Denoising score matching (Vincent 2011) on images of two smooth blobs."""
        optimizer = torch.optim.Adam(self.parameters(), 1e-3)
        grid = torch.arange(8.0)
        for _ in range(400):
            center = 1 + 6 * torch.rand(64, 2, 2, 1)
            bump = (-0.5 * ((grid - center) / 1.2).square()).exp()  # (64, blobs, axes, 8)
            clean = 2 * torch.einsum("nbi,nbj->nij", bump[:, :, 0], bump[:, :, 1]).unsqueeze(1) - 0.5
            eps = torch.randn_like(clean)
            x = (clean + noise * eps).requires_grad_(True)
            (grad,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
            loss = (noise * grad - eps).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


TARGETS: dict[str, Callable[[], nn.Module]] = {
    "banana": Banana,
    "gaussian": Gaussian,
    "schools": Schools,
    "logistic": Logistic,
    "rings": Rings,
    "digits": Digits,
}


def make(name: str) -> nn.Module:
    """The energy, fitted once and kept in the temporary folder under the hash of its source."""
    cls = TARGETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        energy = cls()
        if hasattr(energy, "fit"):
            source = hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()[:16]
            path = Path(tempfile.gettempdir()) / f"energyppl-benchmark-{name}-{source}.pt"
            if path.exists():
                energy.load_state_dict(torch.load(path, weights_only=True))
            else:
                energy.fit()
                torch.save(energy.state_dict(), path)
    return energy.requires_grad_(False).eval()


def truth(name: str, energy: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Means and variances of the coordinates, float64; None where nobody knows them."""
    if name == "banana":
        return torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 1.5], dtype=torch.float64)
    if name == "gaussian":
        return torch.zeros(10, dtype=torch.float64), energy.sd.double().square()
    if name == "rings":  # on a grid: a spacing of 0.02 resolves it, and beyond 9 there is nothing
        axis = torch.linspace(-9, 9, 901)
        x = torch.cartesian_prod(axis, axis)
        weight = (-torch.cat([energy(part) for part in x.split(20_000)]).double()).softmax(0).unsqueeze(1)
        mean = (weight * x).sum(0)
        return mean, (weight * (x - mean).square()).sum(0)
    return None


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
    theirs = np.asarray(jax.vmap(jax_energy(problem))(x.numpy()))
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
            for name, (adapter, _, most) in found.items():
                if adapter is None or chains > most:
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

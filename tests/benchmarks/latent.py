"""Latent priors on 8 × 8 digits: an energy as prior, by SVI and by MCMC-EM, beside a VAE with a Gaussian prior.

``python -m tests.benchmarks latent FILE.npz [--seeds N] [--steps N] [--rows N] [--samples N]``

``FILE.npz`` holds ``x`` (n, 8, 8), grey values 0 to 16, and ``y``; scikit-learn's digits are such.  Each seed leaves
another digit out of training: it is what the anomaly score, −log p(x) by annealing, is to find among held-out rows of
the other nine.  Decoders and encoders are perceptrons; the VAE's are so much wider that all have equally many weights.
Beside it: the two-sample energy distance of samples and held-out rows with its p-value, the root-mean-square error of
reconstructions, and the held-out log likelihood by annealing with its interval.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import energyppl as ep

LATENT, HIDDEN, PRIOR_HIDDEN = 10, 128, 64


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        *(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs))
    )


def count(*modules: nn.Module) -> int:
    """How many weights."""
    return sum(p.numel() for module in modules for p in module.parameters())


class Latent(nn.Module):
    """z ~ prior, x ~ N(decoder(z), scale²), and an encoder."""

    def __init__(self, hidden: int, learned: bool) -> None:
        super().__init__()
        self.decoder, self.encoder = perceptron(LATENT, hidden, 64), perceptron(64, hidden, 2 * LATENT)
        self.log_scale = nn.Parameter(torch.tensor(-1.5))
        net = ep.MLPEnergy((LATENT,), levels=1, hidden=PRIOR_HIDDEN, depth=2, axis_features=0)
        self.prior = ep.models.LatentPrior(net) if learned else None

    def density(self) -> Any:
        """The prior as a Pyro distribution."""
        return dist.Normal(torch.zeros(LATENT), 1.0).to_event(1) if self.prior is None else self.prior.marginal()

    def model(self, x: Tensor) -> None:
        """The Pyro model."""
        pyro.module("latent", self)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", self.density())
            pyro.sample("x", dist.Normal(self.decoder(z), self.log_scale.exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortized posterior."""
        pyro.module("latent", self)
        with pyro.plate("rows", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.clamp(-6.0, 2.0).exp()).to_event(1))

    @torch.no_grad()
    def samples(self, n: int) -> Tensor:
        """Draw with the noise of the pixels, from fresh chains of the prior."""
        z = torch.randn(n, LATENT) if self.prior is None else self.prior.sample((n,), steps=300)
        mean = self.decoder(z)
        return mean + self.log_scale.exp() * torch.randn_like(mean)


def train(latent: Latent, guide: Callable[[Tensor], Any], x: Tensor, steps: int) -> None:
    """Plain SVI, whichever the guide; the learning rate falls to a tenth."""
    pyro.clear_param_store()
    rate = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 2e-3}, "gamma": 0.1 ** (1.0 / steps)}
    optimizer: Any = pyro.optim.ExponentialLR(rate)  # type: ignore[attr-defined]  # made when pyro is imported
    svi = SVI(latent.model, guide, optimizer, Trace_ELBO())
    for _ in range(steps):
        svi.step(x[torch.randint(len(x), (128,))])
        optimizer.step()


def run(seed: int, x: Tensor, y: Tensor, args: argparse.Namespace) -> dict[str, list[float]]:
    """The figures of one split, by method."""
    torch.manual_seed(seed)
    known = (y != seed % 10).nonzero()[:, 0]
    known = known[torch.randperm(len(known))]
    held, train_rows = x[known[: len(known) // 4]][: args.rows], x[known[len(known) // 4 :]]
    strange = x[y == seed % 10][: args.rows]
    learned = Latent(HIDDEN, True)
    wide = HIDDEN
    while count(Latent(wide, False)) < count(learned):
        wide += 1
    found = {}
    for name in ("VAE", "energy prior, SVI", "energy prior, MCMC-EM"):
        torch.manual_seed(100 + seed)
        latent = Latent(wide, False) if name == "VAE" else Latent(HIDDEN, True)
        chains = ep.objectives.PosteriorGuide(latent.model, steps=args.chain_steps)
        by_chains = name.endswith("EM")
        began = time.process_time()
        train(latent, chains if by_chains else latent.guide, train_rows, args.steps)
        spent = time.process_time() - began
        log_z: Any = 0.0
        if latent.prior is not None:
            latent.prior.track()
            log_z = latent.prior.log_normalizer(method=ep.normalizing.BAR(256))
        guide = None if by_chains else latent.guide
        scores = [
            ep.normalizing.marginal_log_likelihood(latent.model, (rows,), guide=guide, log_z=log_z, particles=32)
            for rows in (held, strange)
        ]
        with torch.no_grad():
            z = chains.draw(held)["z"] if by_chains else latent.encoder(held)[:, :LATENT]
            error = float((latent.decoder(z) - held).square().mean().sqrt())
        test = ep.metrics.energy_distance_test(latent.samples(args.samples), held)
        area = ep.evaluation.auroc(*(-score.log_likelihood for score in scores))
        gap = 0.0 if latent.prior is None else latent.prior.tracked_log_z - log_z.estimate
        found[name] = [test.statistic, test.p_value, error, float(scores[0].mean), area.value]
        print(
            f"digit {seed % 10} left out, {name}: {count(latent)} weights, {spent:.0f} CPU s; energy distance "
            f"{test.statistic:.4f} (p {test.p_value:.3f}), reconstruction {error:.4f}, held out {scores[0]}, "
            f"AUROC {area}; pixels' scale {float(latent.log_scale.exp()):.3f}, tracked log Z off by {gap:+.2f}",
            flush=True,
        )
    return found


def main(arguments: list[str]) -> None:
    """A line for each seed and method, then means and standard errors."""
    parser = argparse.ArgumentParser(prog="latent", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--chain-steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=150)
    parser.add_argument("--samples", type=int, default=500)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with np.load(args.file, allow_pickle=False) as archive:
        x = torch.as_tensor(archive["x"].reshape(-1, 64).astype(np.float32) / 16.0)
        y = torch.as_tensor(archive["y"].astype(np.int64))
    runs = [run(seed, x, y, args) for seed in range(args.seeds)]
    names = ("energy distance", "p-value", "reconstruction", "log likelihood", "AUROC")
    for method in runs[0]:
        values = torch.tensor([found[method] for found in runs])
        spread = values.std(0) / len(runs) ** 0.5 if len(runs) > 1 else torch.zeros(len(names))
        shown = ", ".join(f"{n} {m:.4f} ± {s:.4f}" for n, m, s in zip(names, values.mean(0), spread, strict=True))
        print(f"{method}: {shown}")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

"""Conditional densities: three with a known truth, and regression tables beside flows, mixtures and Gaussians.

``python -m tests.benchmarks conditional [FILE.npz] [TABLE …] [--splits N] [--steps N] [--rows N] [--seeds N]
[--contexts N] [--log-snr-max X]``

*Truth*: y in one dimension given one number c, evenly between −2 and 2: a Gaussian whose width grows (heteroscedastic),
two modes whose weights change, and a long tail that grows.  A ``ConditionalEBM`` with the defaults of ``fit`` learns
from 10,000 pairs; KL(truth ‖ model) in nats is integrated on a grid and averaged over 100 contexts, the truth having
level 0's noise too; beside it the log Z of each context, in coordinates of unit variance, where training implies 0.

*Tables* (with a FILE): the last column given all others.  A tenth of the rows is held out, another tenth validates;
columns are standardized by the training rows and a discrete target is spread over its gaps.  All methods learn the
target with level 0's noise, of ``--log-snr-max`` (that of ``fit_conditional`` by default), drawn anew, and are scored
once on the same noisy test rows:

- ``ConditionalEBM`` with the defaults of ``fit``; log Z is integrated for each row;
- zuko's conditional neural spline flow and a mixture-density network (Bishop 1994), each at two widths and two weight
  decays, the mixture with 5 and 10 components: Adam for as many CPU seconds each as the EBM's training took, the
  weights and the setting that validate best;
- a Gaussian with one width, around a linear function and around a perceptron, likewise.

Figures are mean log densities in nats of the standardized target ± standard errors, paired differences, and the share
of noisy test targets inside central 90 % intervals.  zuko is left out if it is not installed.
"""

import argparse
import copy
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import energyppl as ep
from energyppl.data.tables import dequantize, table_from_array
from energyppl.tables.conditional_training import LOG_SNR_MAX
from tests.benchmarks.likelihood import read_arrays

TABLES = ("airfoil", "concrete", "wine", "energy")
GRID = 3000
BATCH, EVERY, PATIENCE = 256, 25, 20  # rows of a peer's batch; its evaluations; of which none is the best
WIDTHS, DECAYS, COMPONENTS = (64, 128), (0.0, 1e-2), (5, 10)

Density = Callable[[Tensor, Tensor], Tensor]  # y (n, 1) and contexts (n, k) to log densities (n,)


# --- The truth ---


class Truth(NamedTuple):
    """Mixture of Gaussians given c, to which an exponential variable may be added."""

    mean: Tensor  # (n, components)
    sd: Tensor
    weight: Tensor
    tail: Tensor | None = None  # (n,), the mean of what is added

    def sample(self) -> Tensor:
        """Draw y, ``(n, 1)``."""
        which = torch.multinomial(self.weight, 1)
        y = self.mean.gather(1, which) + self.sd.gather(1, which) * torch.randn(len(which), 1)
        return y if self.tail is None else y + self.tail[:, None] * torch.empty(len(y), 1).exponential_()

    def log_prob(self, y: Tensor, alpha: float, shift: float, noise: float) -> Tensor:
        """The log density of ``alpha · y + shift + noise · ε`` at ``y``, ``(nodes, n)``, float64."""
        mean, sd = alpha * self.mean.double() + shift, (alpha**2 * self.sd.double() ** 2 + noise**2).sqrt()
        if self.tail is None:
            normal = torch.distributions.Normal(mean, sd)
            return torch.logsumexp(self.weight.double().log() + normal.log_prob(y[..., None]), -1)
        rate, mean, sd = 1.0 / (alpha * self.tail.double()), mean[:, 0], sd[:, 0]  # exponentially modified Gaussian
        a = (mean + rate * sd**2 - y) / (math.sqrt(2.0) * sd)
        low, high = a.clamp(max=0.0), a.clamp(min=0.0)
        log_erfc = torch.where(a > 0.0, torch.special.erfcx(high).log() - high**2, torch.special.erfc(low).log())
        return (0.5 * rate).log() + 0.5 * rate * (2.0 * mean + rate * sd**2 - 2.0 * y) + log_erfc


def heteroscedastic(c: Tensor) -> Truth:
    return Truth(torch.sin(2.0 * c)[:, None], (0.1 + 0.125 * (c + 2.0))[:, None], torch.ones(len(c), 1))


def bimodal(c: Tensor) -> Truth:
    share = torch.sigmoid(c)
    mean = torch.stack([0.5 * c - 1.0 - 0.3 * torch.cos(c), 0.5 * c + 1.0], -1)
    sd = torch.stack([torch.full_like(c, 0.2), 0.3 + 0.05 * c], -1)
    return Truth(mean, sd, torch.stack([share, 1.0 - share], -1))


def skewed(c: Tensor) -> Truth:
    return Truth((0.5 * c**2)[:, None], torch.full_like(c, 0.15)[:, None], torch.ones(len(c), 1), 0.6 * (0.5 * c).exp())


TRUTHS: tuple[Callable[[Tensor], Truth], ...] = (heteroscedastic, bimodal, skewed)


def against_truth(truth: Callable[[Tensor], Truth], rows: int, steps: int | None, seed: int, contexts: int) -> None:
    """Print one truth's line for one seed."""
    torch.manual_seed(seed)
    c = 4.0 * torch.rand(rows) - 2.0
    y = truth(c).sample()
    schedule = ep.NoiseSchedule.cosine(20, log_snr_max=4.6, log_snr_min=-6.0)
    ebm = ep.models.ConditionalEBM(ep.MLPEnergy(1, context_shape=1), schedule)
    began = time.process_time()
    ep.fit(ebm, (y, c[:, None]), steps=steps, progress=False)
    seconds = time.process_time() - began
    asked = 4.0 * (torch.arange(contexts) + 0.5) / contexts - 2.0
    p = ebm.given(asked[:, None])
    grid = torch.linspace(float(y.min()) - 2.0, float(y.max()) + 2.0, GRID)
    with torch.no_grad():
        log_q = p.log_prob(grid[:, None, None].expand(-1, contexts, 1)).double()
        log_z = p.quadrature() - p.implied_log_normalizer()
    alpha, sigma = float(schedule.alpha_bar[0]), float(schedule.sigma_bar[0])
    shift, noise = float((1.0 - alpha) * ebm.loc), float(sigma * ebm.scale)
    log_p = truth(asked).log_prob(grid.double()[:, None], alpha, shift, noise)
    cell = float(grid[1] - grid[0])
    kl = (log_p.exp() * (log_p - log_q)).nan_to_num(0.0).sum(0) * cell
    mass = float((log_p.exp().sum(0) * cell).sub(1.0).abs().max())
    print(
        f"{truth.__name__}, seed {seed}: KL {float(kl.mean()):.4f} (at most {float(kl.max()):.4f}) nats; implied log Z "
        f"off by {float(log_z.mean()):+.3f} on average, {float(log_z.abs().mean()):.3f} in absolute terms, "
        f"{float(log_z.abs().max()):.3f} at most; training {seconds:.0f} CPU s; the grid misses {mass:.1g} of the mass",
        flush=True,
    )


# --- Tables ---


class Split(NamedTuple):
    """Standardized targets ``(n, 1)`` and contexts ``(n, k)``."""

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def split(values: NDArray[np.float64], seed: int) -> Split:
    """Split a table; its last column is the target."""
    spread = dequantize(table_from_array(values), torch.Generator().manual_seed(seed)).values[:, -1:]
    rows = np.concatenate([spread, values[:, :-1]], 1).astype(np.float64)
    order = np.random.default_rng(seed).permutation(len(rows))
    aside = len(rows) // 10
    test, valid, train = order[:aside], order[aside : 2 * aside], order[2 * aside :]
    varies = rows[train].std(0) > 0.0
    rows = rows[:, varies]
    standard = torch.as_tensor((rows - rows[train].mean(0)) / rows[train].std(0), dtype=torch.float32)
    return Split(*((standard[part, :1], standard[part, 1:]) for part in (train, valid, test)))


class MixtureDensity(nn.Module):
    """A mixture of Gaussians whose parameters a perceptron returns (Bishop 1994)."""

    def __init__(self, size: int, width: int, components: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * components)
        )

    def mixture(self, context: Tensor) -> torch.distributions.MixtureSameFamily:
        logits, mean, log_sd = self.net(context).chunk(3, -1)
        normal = torch.distributions.Normal(mean, nn.functional.softplus(log_sd) + 0.005, validate_args=False)
        weights = torch.distributions.Categorical(logits=logits)
        return torch.distributions.MixtureSameFamily(weights, normal, validate_args=False)

    def log_prob(self, y: Tensor, context: Tensor) -> Tensor:
        found: Tensor = self.mixture(context).log_prob(y[:, 0])
        return found

    def cdf(self, y: Tensor, context: Tensor) -> Tensor:
        found: Tensor = self.mixture(context).cdf(y[:, 0])
        return found


class OneWidth(nn.Module):
    """A Gaussian of one width around a function: linear for width 0, else a perceptron."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        hidden = [nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()] if width else []
        self.net = nn.Sequential(*hidden, nn.Linear(width or size, 1))
        self.log_sd = nn.Parameter(torch.zeros(()))

    def normal(self, context: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.net(context)[:, 0], self.log_sd.exp(), validate_args=False)

    def log_prob(self, y: Tensor, context: Tensor) -> Tensor:
        found: Tensor = self.normal(context).log_prob(y[:, 0])
        return found

    def cdf(self, y: Tensor, context: Tensor) -> Tensor:
        found: Tensor = self.normal(context).cdf(y[:, 0])
        return found


class Flow(nn.Module):
    """Zuko's conditional neural spline flow of one variable."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        import zuko

        self.flow = zuko.flows.NSF(1, context=size, hidden_features=(width, width))

    def log_prob(self, y: Tensor, context: Tensor) -> Tensor:
        found: Tensor = self.flow(context).log_prob(y)
        return found

    def cdf(self, y: Tensor, context: Tensor) -> Tensor:
        """Through the base, up to the direction of the transform, which a central interval does not see."""
        z = self.flow(context).transform(y)
        return torch.special.ndtr(z[:, 0])


PEERS: dict[str, list[Callable[[int], Any]]] = {
    "NSF": [lambda k, w=w: Flow(k, w) for w in WIDTHS],  # type: ignore[misc]
    "MDN": [lambda k, w=w, m=m: MixtureDensity(k, w, m) for w, m in itertools.product(WIDTHS, COMPONENTS)],  # type: ignore[misc]
    "Gaussian MLP": [lambda k, w=w: OneWidth(k, w) for w in WIDTHS],  # type: ignore[misc]
    "Gaussian linear": [lambda k: OneWidth(k, 0)],
}


def peer(builds: list[Callable[[int], Any]], rows: Split, noise: Callable[[Tensor], Tensor], seconds: float) -> Any:
    """Train every setting, and return the one that validates best with its validation score and setting in words."""
    noisy_valid = noise(rows.valid[0])
    found = [
        _trained(build(rows.train[1].shape[1]), decay, rows, noise, noisy_valid, seconds)
        for build in builds
        for decay in DECAYS
    ]
    return max(found, key=lambda one: one[0])


def _trained(
    model: Any, decay: float, rows: Split, noise: Callable[[Tensor], Tensor], noisy_valid: Tensor, seconds: float
) -> tuple[float, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
    best, weights, since, step = -math.inf, copy.deepcopy(model.state_dict()), 0, 0
    y, context = rows.train
    began = time.process_time()
    order: list[Tensor] = []
    while time.process_time() - began < seconds and since < PATIENCE:
        if not order:
            order = list(torch.randperm(len(y)).split(min(BATCH, len(y))))
        some = order.pop()
        optimizer.zero_grad()
        (-model.log_prob(noise(y[some]), context[some]).mean()).backward()
        optimizer.step()
        step += 1
        if step % EVERY == 0:
            with torch.no_grad():
                now = float(model.log_prob(noisy_valid, rows.valid[1]).mean())
            since += 1
            if now > best:
                best, weights, since = now, copy.deepcopy(model.state_dict()), 0
    model.load_state_dict(weights)
    return best, model


def compare(
    name: str, values: NDArray[np.float64], steps: int | None, seed: int, top: float
) -> dict[str, tuple[float, float]]:
    """Print a split's line; return what the peers are below the EBM in nats, and every method's coverage."""
    rows = split(values, seed)
    torch.manual_seed(seed)
    schedule = ep.NoiseSchedule.cosine(20, log_snr_max=top, log_snr_min=-6.0)
    ebm = ep.models.ConditionalEBM(ep.MLPEnergy(1, context_shape=rows.train[1].shape[1]), schedule)
    began = time.process_time()
    history = ep.fit(ebm, rows.train, held_out=rows.valid, steps=steps, progress=False)
    seconds = time.process_time() - began

    def noise(y: Tensor) -> Tensor:
        return ebm.diffuse(y, 0)

    noisy, context = noise(rows.test[0]), rows.test[1]
    with torch.no_grad():
        p = ebm.given(context)
        own = p.log_prob(noisy).double()
        low, high = p.interval(0.9)
        implied = float((p.quadrature() - p.implied_log_normalizer()).square().mean().sqrt())
    inside = (noisy[:, 0] > low) & (noisy[:, 0] < high)
    cells = [f"EBM {float(own.mean()):7.3f} ± {_error(own):.3f} (covers {float(inside.float().mean()):.1%})"]
    found = {"covered": (float(inside.sum()), float(len(inside)))}
    for label, builds in PEERS.items():
        try:
            _, model = peer(builds, rows, noise, seconds)
        except ImportError as missing:
            cells.append(f"{label} left out: {missing}")
            continue
        with torch.no_grad():
            theirs, place = model.log_prob(noisy, context).double(), model.cdf(noisy, context)
        below = own - theirs
        found[label] = (float(below.mean()), _error(below))
        covers = float(((place > 0.05) & (place < 0.95)).float().mean())
        cells.append(f"above {label} by {found[label][0]:+.3f} ± {found[label][1]:.3f} (covers {covers:.1%})")
    far = int(p.is_far.sum())
    print(
        f"{name}, split {seed}: {', '.join(cells)}; log Z rms {implied:.3f}; {far} far; training {seconds:.0f} CPU s, "
        f"{len(history.records)} updates",
        flush=True,
    )
    return found


def _error(rows: Tensor) -> float:
    return float(rows.std()) / math.sqrt(len(rows))


def over_splits(name: str, values: NDArray[np.float64], steps: int | None, splits: int, top: float) -> None:
    """Print a line for each split, and one for all."""
    found = [compare(name, values, steps, seed, top) for seed in range(splits)]
    covered, count = (sum(one["covered"][i] for one in found) for i in range(2))
    cells = [f"90 % intervals cover {covered / count:.1%} of {count:.0f}"]
    for label in PEERS:
        if label in found[0]:
            means = np.array([one[label][0] for one in found])
            error = math.sqrt(sum(one[label][1] ** 2 for one in found)) / len(found)
            cells.append(f"EBM above {label} by {means.mean():+.3f} ± {error:.3f}")
    print(f"{name} ({len(values)} × {values.shape[1]}), {splits} splits: {', '.join(cells)}", flush=True)


def main(arguments: list[str]) -> None:
    """The three truths, and the tables of a file."""
    parser = argparse.ArgumentParser(prog="conditional", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("tables", nargs="*", default=list(TABLES))
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--contexts", type=int, default=100)
    parser.add_argument("--log-snr-max", type=float, default=LOG_SNR_MAX)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for truth, seed in itertools.product(TRUTHS, range(args.seeds)):
        against_truth(truth, args.rows, args.steps, seed, args.contexts)
    if args.file is None:
        return
    for name, values in read_arrays(args.file, args.tables).items():
        over_splits(name, values, args.steps, args.splits, args.log_snr_max)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

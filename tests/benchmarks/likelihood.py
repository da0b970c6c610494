"""Held-out log likelihood of real tables: RecoveryEBM beside a neural spline flow and a mixture of Gaussians.

``python -m tests.benchmarks likelihood FILE.npz [ARRAY …] [--splits N] [--first N] [--steps N] [--peers PEER …]
[--log-snr-max X] [--members N]``

For each split a tenth of the rows is held out, another tenth validates; columns are standardized by the training
rows, and discrete ones spread over their gaps.  Level 0 of the EBM is the density of rows with a little noise (of a
log-SNR of 4.6, a standard deviation of .1, unless ``--log-snr-max`` says otherwise; tables have that or 6.6), so all
three are scored once on the same noisy test rows, and the peers learn from rows with noise drawn likewise.

- RecoveryEBM with the defaults of ``fit``, or the average of ``--members`` of them from other seeds; log Z by
  ``log_normalizer``, whose error is part of the uncertainty;
- zuko's neural spline flow, its own size and one twice as wide, Adam for as many seconds each as the EBM's training
  took, the weights and the size that validate best (stopping early once they have not improved for long);
- scikit-learn's mixture of Gaussians, full covariances, the number of components that validates best.

Images, arrays of more than two dimensions, are rows of their pixels, those that never change left out; their figures
are also bits for each pixel, of grey levels with that noise.

Figures are mean log densities in nats of standardized columns, ± standard errors.  Differences are of the same rows, so
their errors are smaller than the two means'; over splits, ± is the standard error of the mean of the splits' own.
Beside them: log Z (standardized), by forward runs and by the bridge, its stochastic bounds by the bridge's runs in both
directions, what training alone implies (log Z = 0), the p-value of a two-sample test of 1,000 samples, gradients for
each sample, and CPU seconds.  Peers that are not installed are left out: ``pip install --no-deps zuko`` and ``pip
install scikit-learn``.
"""

import argparse
import copy
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import energyppl as ep
from energyppl.data.tables import dequantize, table_from_array

PEERS = ("NSF", "GMM")
TABLES = ("airfoil", "concrete", "wine", "energy", "skillcraft")
BATCH = 512
COPIES = 4  # of the training rows, each with its own noise, for the mixture, which can't draw it anew
PATIENCE = 40  # evaluations of the flow, 25 updates apart, none of which is the best
WIDTHS = (64, 128)  # of the flow's networks

Rows = Callable[[Tensor], Tensor]  # (n, d) to log densities (n,), or to noisy rows (n, d)


def split(values: NDArray[np.float64], seed: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Standardized training, validation and test rows, ``(n, d)`` each, and what to know about the table."""
    table = table_from_array(values)
    spread = dequantize(table, torch.Generator().manual_seed(seed)).values
    order = np.random.default_rng(seed).permutation(len(spread))
    aside = len(spread) // 10
    test, valid, train = order[:aside], order[aside : 2 * aside], order[2 * aside :]
    standard = torch.as_tensor((spread - spread[train].mean(0)) / spread[train].std(0), dtype=torch.float32)

    notes = []
    known = {row.tobytes() for row in table.values[train]}
    twice = sum(row.tobytes() in known for row in table.values[test])
    if twice:
        notes.append(f"{twice} of {aside} test rows are also training rows")
    repeated = [
        name
        for name, column, gap in zip(table.columns, table.values.T, table.discrete, strict=True)
        if not gap and len(np.unique(column)) < 0.5 * len(column)
    ]
    if repeated:
        notes.append(f"no gap found, but values repeat, in {', '.join(repeated)}: only level 0's noise widens those")
    spikes = table.spikes()
    if spikes:
        notes.append("spikes: " + ", ".join(f"{name} {share:.0%}" for name, share in spikes.items()))
    return standard[train], standard[valid], standard[test], notes


def flow(train: Tensor, valid: Tensor, noise: Rows, seconds: float) -> tuple[Rows, str]:
    """The log density of the neural spline flow that validates best, and how its training went."""
    found = [_flow(width, train, valid, noise, seconds) for width in WIDTHS]
    _, log_prob, words = max(found, key=lambda one: one[0])
    return log_prob, words


def _flow(width: int, train: Tensor, valid: Tensor, noise: Rows, seconds: float) -> tuple[float, Rows, str]:
    import zuko

    model = zuko.flows.NSF(train.shape[1], hidden_features=(width, width))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    best, weights, since, step, found = -math.inf, copy.deepcopy(model.state_dict()), 0, 0, 0
    began = time.process_time()
    order: list[Tensor] = []
    while time.process_time() - began < seconds and since < PATIENCE:
        if not order:
            order = list(torch.randperm(len(train)).split(min(BATCH, len(train))))
        optimizer.zero_grad()
        (-model().log_prob(noise(train[order.pop()])).mean()).backward()
        optimizer.step()
        step += 1
        if step % 25 == 0:
            with torch.no_grad():
                now = float(model().log_prob(valid).mean())
            since += 1
            if now > best:
                best, weights, since, found = now, copy.deepcopy(model.state_dict()), 0, step
    why = "stopped early" if since >= PATIENCE else "time used up"
    model.load_state_dict(weights)
    spent = time.process_time() - began
    return (
        best,
        lambda x: model().log_prob(x),
        f"width {width}, {step} updates in {spent:.0f} s, {why}, best at {found}",
    )


def mixture(train: Tensor, valid: Tensor) -> tuple[Rows, str]:
    """A mixture of Gaussians as a log density, and how many components validate best."""
    from sklearn.mixture import GaussianMixture

    began = time.perf_counter()
    fitted = {k: GaussianMixture(k, random_state=0).fit(train.double()) for k in (1, 2, 5, 10, 20, 40)}
    scores = {k: float(model.score(valid.double())) for k, model in fitted.items()}
    best = max(scores, key=lambda k: scores[k])

    def log_prob(x: Tensor) -> Tensor:
        return torch.as_tensor(fitted[best].score_samples(x.double()))

    return log_prob, f"{best} components, {time.perf_counter() - began:.0f} s"


def compare(
    name: str,
    values: NDArray[np.float64],
    steps: int | None,
    seed: int,
    peers: Sequence[str] = PEERS,
    log_snr_max: float | None = None,
    members: int = 1,
) -> dict[str, tuple[float, float]]:
    """Print a split's line; return what the peers are below the EBM, in nats, with standard errors."""
    image, values = values.ndim > 2, as_rows(values)
    train, valid, test, notes = split(values, seed)
    torch.manual_seed(seed)
    ebms, updates, ended = [], 0, ""
    began = time.process_time()
    for _ in range(members):
        ebm = ep.models.model_of_columns(train.shape[1], log_snr_max=log_snr_max)
        options = None if steps is None else replace(ep.Training(ebm, train).options, steps=steps)
        history = ep.fit(ebm, train, held_out=valid, options=options, progress=False)
        ebms.append(ebm)
        updates, ended = updates + len(history.records), history.stopped
    ebm = ebms[0] if members == 1 else ep.models.averaged(*ebms)
    seconds = time.process_time() - began

    def noise(x: Tensor) -> Tensor:
        return ebm.diffuse(x, 0)

    noisy, noisy_valid = noise(test), noise(valid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning is part of what is printed
        log_z = ebm.log_normalizer()
    scale = float(ebm.scale.log().sum())
    with torch.no_grad():
        own = (ebm.implied_log_prob(noisy) + scale - log_z.estimate).double()
    error = math.hypot(_error(own), log_z.standard_error)
    generated = ebm.generate((1000,))
    fresh = ebm.to_unit(noise(train[torch.randperm(len(train))[:1000]]))
    p_value = ep.metrics.energy_distance_test(generated.x, fresh).p_value
    cells = [f"EBM {float(own.mean()):8.3f} ± {error:.3f}"]
    if image:  # grey levels are whole numbers, spread by a uniform of variance 1/12
        bit, pixels = math.log(2.0) * values.shape[1], float(0.5 * np.log(values.var(0) + 1.0 / 12.0).sum())
        cells[0] += (
            f" ({(pixels - float(own.mean())) / bit:.3f} ± {error / bit:.3f} bits for each of {len(values[0])} pixels)"
        )
    apart: dict[str, tuple[float, float]] = {}

    def peer(label: str, log_prob: Rows, words: str) -> None:
        with torch.no_grad():
            below = own - (log_prob(noisy).double())
        apart[label] = (float(below.mean()), math.hypot(_error(below), log_z.standard_error))
        cells.append(f"above {label} by {apart[label][0]:+.3f} ± {apart[label][1]:.3f}")
        notes.append(f"{label}: {words}")

    for label, build in (
        ("NSF", lambda: flow(train, noisy_valid, noise, seconds)),
        ("GMM", lambda: mixture(noise(train.repeat(COPIES, 1)), noisy_valid)),
    ):
        if label not in peers:
            continue
        try:
            peer(label, *build())
        except ImportError as missing:
            notes.append(f"{label} left out: {missing}")
    values_of = {key: getattr(log_z, key, None) for key in ("forward", "bridge")}
    both = ", ".join(f"{key} {value.value - scale:.3f}" for key, value in values_of.items() if value is not None)
    notes.append(f"log Z {log_z.estimate - scale:.3f} ± {log_z.standard_error:.3f} ({both}; implied 0)")
    if log_z.lower_bound is not None and log_z.upper_bound is not None:
        low, high = log_z.lower_bound - scale, log_z.upper_bound - scale
        notes.append(f"bounds of the runs to it and from samples {low:.3f} and {high:.3f}, {high - low:+.3f} apart")
    if log_z.warning:
        notes.append(f"log Z warns: {log_z.warning}")
    notes.append(f"log-SNR of level 0 {float(ebm.schedule.log_snr[0]):.2f}, {ebm.schedule.levels} levels")
    notes.append(
        f"samples: p = {p_value:.3f}, {generated.evaluations} gradients each; training {seconds:.0f} CPU s, "
        f"{updates} updates ({ended})"
    )
    print("\n    ".join((f"{name}, split {seed}: {', '.join(cells)}", *notes)), flush=True)
    return apart


def _error(rows: Tensor) -> float:
    return float(rows.std()) / math.sqrt(len(rows))


def read_arrays(file: Path, names: list[str]) -> dict[str, NDArray[np.float64]]:
    """Return arrays of an .npz file by name, in float64."""
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name].astype(np.float64) for name in names}


def as_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a table as it is, and images as rows of those of their pixels that change."""
    if values.ndim < 3:
        return values
    flat = values.reshape(len(values), -1)
    return flat[:, flat.std(0) > 0]


def main(arguments: list[str]) -> None:
    """One line for each split of each table, and one for all of a table's splits."""
    parser = argparse.ArgumentParser(prog="likelihood", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("arrays", nargs="*", default=list(TABLES))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first split's number, which is its seed")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--log-snr-max", type=float, help="of level 0")
    parser.add_argument("--members", type=int, default=1, help="models to average")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with np.load(args.file, allow_pickle=False) as archive:
        chosen = {name: archive[name] for name in args.arrays}
    for name, values in chosen.items():
        seeds = range(args.first, args.first + args.splits)
        found = [compare(name, values, args.steps, seed, args.peers, args.log_snr_max, args.members) for seed in seeds]
        for label in sorted({label for one in found for label in one}):
            means, errors = zip(*(one[label] for one in found), strict=True)
            error = math.sqrt(sum(e * e for e in errors)) / len(errors)
            print(
                f"{name} ({len(values)} × {values.shape[1]}), {len(means)} splits: EBM above {label} by "
                f"{np.mean(means):+.3f} ± {error:.3f} (splits {', '.join(f'{m:+.2f}' for m in means)})",
                flush=True,
            )


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

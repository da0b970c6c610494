"""Held-out log likelihood of real tables: RecoveryEBM beside a neural spline flow and a mixture of Gaussians.

``python -m tests.benchmarks likelihood FILE.npz [ARRAY …] [--steps N] [--seed N]``

A tenth of each table's rows is held out, another tenth validates; columns are standardized by the training rows, and
discrete ones spread over their gaps.  Level 0 of the EBM is the density of rows with a little noise (standard deviation
0.1), so all three are scored on the same noisy test rows, and the peers learn from rows with noise drawn likewise.

- RecoveryEBM, defaults; log Z by annealing through its levels, whose error is part of the uncertainty;
- zuko's neural spline flow, defaults, Adam for as many seconds as the EBM's training took, the weights that validate
  best (stopping early once they have not improved for long);
- scikit-learn's mixture of Gaussians, full covariances, the number of components that validates best.

Figures are mean log densities in nats of standardized columns, ± standard errors.  Differences are of the same rows, so
their errors are smaller than the two means'.  Peers that are not installed are left out: ``pip install zuko
scikit-learn``.  An interval of log Z that its own forward runs refute is replaced by the bound that they prove.
"""

import argparse
import copy
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import energyppl as ep
from energyppl.data.tables import dequantize, table_from_array

TABLES = ("airfoil", "concrete", "wine", "energy", "skillcraft")
BATCH = 512
COPIES = 4  # of the training rows, each with its own noise, for the mixture, which can't draw it anew
PATIENCE = 40  # evaluations of the flow, 25 updates apart, none of which is the best

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
    """The log density of a neural spline flow trained for as many seconds, and how its training went."""
    import zuko

    model = zuko.flows.NSF(train.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    best, weights, since, step, found = -math.inf, copy.deepcopy(model.state_dict()), 0, 0, 0
    began = time.perf_counter()
    order: list[Tensor] = []
    while time.perf_counter() - began < seconds and since < PATIENCE:
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
    return lambda x: model().log_prob(
        x
    ), f"{step} updates in {time.perf_counter() - began:.0f} s, {why}, best at {found}"


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


def compare(name: str, values: NDArray[np.float64], steps: int, seed: int) -> None:
    """Print a table's line, and below it what log Z says and how training went."""
    train, valid, test, notes = split(values, seed)
    torch.manual_seed(seed)
    ebm = ep.RecoveryEBM(ep.MLPEnergy(train.shape[1:]), ep.NoiseSchedule.cosine(6, log_snr_max=4.6))
    began = time.perf_counter()
    history = ep.fit(ebm, train, held_out=valid, options=ep.TrainingOptions(steps=steps), progress=False)
    seconds = time.perf_counter() - began
    notes.append(f"EBM: {len(history.records)} updates in {seconds:.0f} s ({history.stopped})")

    def noise(x: Tensor) -> Tensor:
        return ebm.diffuse(x, 0)

    noisy, noisy_valid = noise(test), noise(valid)
    cells, own, from_log_z, refuted = [], None, 0.0, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning is part of what is printed
            log_z = ebm.log_normalizer()
        found = ep.evaluation.mean_log_likelihood(ebm.marginal(), noisy, log_z)
        floor, refuted = log_z.lower, math.isinf(log_z.upper)
        with torch.no_grad():
            own = -ebm.marginal().energy(noisy).double() - (floor if refuted else log_z.estimate)
        if refuted:
            cells.append(f"EBM < {float(own.mean()):8.3f} ± {_error(own):.3f} (its log Z is refuted)")
            notes.append(f"log Z is above {floor:.3f} (95 %, by Markov); its estimate alone would give EBM {found}")
        else:
            from_log_z = found.from_log_z
            cells.append(f"EBM {found.value:8.3f} ± {found.standard_error:.3f}{' (log Z warns)' * bool(log_z.warning)}")
        notes += str(log_z).splitlines()
    except ep.EnergyPPLError as error:
        cells.append("EBM        —")
        notes.append(f"EBM has no log Z: {error}")

    def peer(label: str, log_prob: Rows, words: str) -> None:
        with torch.no_grad():
            rows = log_prob(noisy).double()
        cells.append(f"{label} {float(rows.mean()):8.3f} ± {_error(rows):.3f}")
        if own is not None:
            above, apart = rows - own, math.hypot(_error(rows - own), from_log_z)
            words += f"; above the EBM by {'at least ' * refuted}{float(above.mean()):+.3f} ± {apart:.3f} on those rows"
        notes.append(f"{label}: {words}")

    try:
        peer("NSF", *flow(train, noisy_valid, noise, seconds))
    except ImportError as error:
        notes.append(f"NSF left out: {error}")
    try:
        peer("GMM", *mixture(noise(train.repeat(COPIES, 1)), noisy_valid))
    except ImportError as error:
        notes.append(f"GMM left out: {error}")
    line = f"{name} ({len(values)} × {train.shape[1]}): {', '.join(cells)}"
    print("\n    ".join((line, *(note.strip() for note in notes))), flush=True)


def _error(rows: Tensor) -> float:
    return float(rows.std()) / math.sqrt(len(rows))


def main(arguments: list[str]) -> None:
    """One line for each table, and what to know about it."""
    parser = argparse.ArgumentParser(prog="likelihood", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("arrays", nargs="*", default=list(TABLES))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with np.load(args.file, allow_pickle=False) as archive:
        chosen = {name: archive[name] for name in args.arrays}
    for name, values in chosen.items():
        compare(name, values, args.steps, args.seed)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

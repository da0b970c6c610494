"""Forty tables and more, real and made: each trained or refused, and what the verdict says of it.

``python -m tests.benchmarks verdicts [UCI.npz] [--only NAME …] [--seconds 8 | --steps N] [--whole]``

A line for each table: rows and columns, what became of it, CPU seconds, the mean log density of held-out rows in the
table's units, by how many nats it is above that under a mixture of Gaussians and under independent columns, the
two-sample test of samples, log Z.  ``--whole`` prints the verdict's sentences below.  A table that is trained though it
should be refused, refused though it should train, or refused for another reason, is marked by ``WRONG``, and the last
line counts these.  Without scikit-learn its tables are left out, without a file those of the file.
"""

import argparse
import functools
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import energyppl as ep
from tests.benchmarks.made_tables import MADE, sklearn_tables

_MOST_COLUMNS = 30
_REFUSED = {  # tables of the file that are refused, and what to drop then
    "bike": ("'c4' is a copy", ["c4", "c5"]),
    "sml": ("constant", ["c2", "c20", "c21", "c22"]),
    "solar": ("constant", ["c9"]),
    "keggdirected": ("'c15' is a copy", ["c15"]),
}


@functools.cache
def steps_in_a_second(columns: int) -> float:
    """Updates in a second of the processor, of a model of so many columns."""
    rows = np.random.default_rng(0).normal(size=(600, columns))
    took = []
    for steps in (2, 10, 60):  # the first one traces what is traced
        began = time.process_time()
        ep.tables.fit(rows, steps=steps, progress=False)
        took.append(time.process_time() - began)
    return 50.0 / max(took[2] - took[1], 1e-3)


def gathered(file: Path | None) -> dict[str, tuple[pd.DataFrame, str, str | None]]:
    """Every table by name, what its refusal should say, if it should be refused, and how gaps are taken."""
    found: dict[str, tuple[pd.DataFrame, str, str | None]] = {}
    for name, kind in MADE.items():
        found[name] = kind.draw(np.random.default_rng(0), kind.rows), kind.refused, kind.missing
    try:
        for name, frame in sklearn_tables().items():
            found[f"{name} (sklearn)"] = frame, "", None
    except ImportError as missing:
        print(f"scikit-learn's tables are left out: {missing}")
    if file is not None:
        with np.load(file, allow_pickle=False) as archive:
            for name in sorted(archive.files, key=lambda name: archive[name].size):
                if archive[name].shape[1] <= _MOST_COLUMNS:
                    frame = pd.DataFrame(archive[name], columns=[f"c{i}" for i in range(archive[name].shape[1])])
                    why, drop = _REFUSED.get(name, ("", []))
                    found[name] = frame, why, None
                    if drop:
                        found[f"{name}, {len(drop)} dropped"] = frame.drop(columns=drop), "", None
    return found


def about(found: dict[str, Any]) -> str:
    """The measurements in one line."""
    above = ", ".join(
        f"{name} {found[name]['value']:+.2f} ± {found[name]['standard_error']:.2f}"
        for name in ("mixture", "independent")
    )
    log_z, test = found["log_z"], found["energy_distance"]
    doubt = " IN DOUBT" if log_z["warning"] else ""
    density = f"log density {found['log_density']['value']:.2f} ± {found['log_density']['standard_error']:.2f}"
    return f"{density}, above {above}; samples p = {test['p_value']:.3f}; log Z {log_z['value']:+.2f}{doubt}"


def judge(name: str, frame: pd.DataFrame, refused: str, missing: str | None, args: argparse.Namespace) -> bool:
    """Print what becomes of a table; tell whether it is what should."""
    began = time.process_time()
    head = f"{name:22} {len(frame):>7,} × {frame.shape[1]:<3}"
    try:
        steps = args.steps or max(20, min(2000, int(args.seconds * steps_in_a_second(frame.shape[1]))))
        model = ep.tables.fit(frame, steps=steps, missing=missing, progress=False)
        made = len(model.curves["step"])
        found = ep.tables.quality(model)
    except ep.EnergyPPLError as error:
        right = bool(refused) and refused in str(error)
        print(f"{head} {'' if right else 'WRONG '}refused: {' '.join(str(error).split())}", flush=True)
        return right
    right = not refused
    took = time.process_time() - began
    print(f"{head} {'' if right else 'WRONG '}trained, {made} steps, {took:.0f} CPU s: {about(found)}", flush=True)
    if args.whole:
        print("\n".join(f"    - {sentence}" for sentence in found["verdict"]), flush=True)
    return right


def main(arguments: list[str]) -> None:
    """A line for each table, and how many went wrong."""
    parser = argparse.ArgumentParser(prog="verdicts", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="tables to take")
    parser.add_argument("--seconds", type=float, default=8.0, help="of training, about (default: 8)")
    parser.add_argument("--steps", type=int, help="updates in place of those of so many seconds; fit makes 1000")
    parser.add_argument("--whole", action="store_true", help="print the verdict's sentences")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tables = gathered(args.file)
    chosen = {name: own for name, own in tables.items() if args.only is None or name in args.only}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log Z's, which the line repeats
        right = [judge(name, *own, args) for name, own in chosen.items()]
    print(f"{sum(right)} of {len(right)} tables were trained or refused as they should be")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

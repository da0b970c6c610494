"""``python -m tests.benchmarks NAME [options]``: run one benchmark; without a name, list them."""

import importlib
import sys

NAMES = (
    "cooperative",
    "cost",
    "coverage",
    "density",
    "generation",
    "guided",
    "images",
    "imputation",
    "joint",
    "learned",
    "likelihood",
    "log_z",
    "masses",
    "microcanonical",
    "recovery",
    "robustness",
    "samplers",
    "silent_misses",
    "systems",
    "tables",
    "temperature",
    "truth",
)


def main() -> None:
    """Run the benchmark named on the command line."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        for name in NAMES:
            summary = (importlib.import_module(f"tests.benchmarks.{name}").__doc__ or "").splitlines()[0]
            print(f"python -m tests.benchmarks {name:14} {summary}")
        return
    importlib.import_module(f"tests.benchmarks.{sys.argv[1]}").main(sys.argv[2:])


main()

"""``python -m tests.benchmarks NAME [options]``: run one benchmark; without a name, list them."""

import importlib
import sys

NAMES = (
    "conditional",
    "cooperative",
    "cost",
    "coverage",
    "density",
    "generation",
    "guided",
    "images",
    "imputation",
    "joint",
    "larger_than_memory",
    "latent",
    "learned",
    "likelihood",
    "log_z",
    "masses",
    "microcanonical",
    "processes",
    "recovery",
    "robustness",
    "samplers",
    "sbi",
    "silent_misses",
    "systems",
    "table_systems",
    "tables",
    "temperature",
    "truth",
    "verdicts",
    "waiting",
)


def main() -> None:
    """Run the benchmark named on the command line."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        for name in NAMES:
            summary = (importlib.import_module(f"tests.benchmarks.{name}").__doc__ or "").splitlines()[0]
            print(f"python -m tests.benchmarks {name:18} {summary}")
        return
    importlib.import_module(f"tests.benchmarks.{sys.argv[1]}").main(sys.argv[2:])


main()

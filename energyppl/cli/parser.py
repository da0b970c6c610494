"""The commands' options: a parser that imports neither torch nor what the commands do.

A new command is a parser here and a function of the same name in ``commands.py``.
"""

import argparse
from pathlib import Path

from energyppl import __version__

__all__ = ["TOYS", "make_parser"]

TOYS = (  # the names in energyppl.toys.TWO_DIMENSIONAL, which is not imported for a help text
    "banana",
    "checkerboard",
    "eight-gaussians",
    "funnel",
    "pinwheel",
    "rings",
    "spirals",
    "swiss-roll",
    "two-moons",
)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; the namespace that it returns names the command in ``command``."""
    parser = argparse.ArgumentParser(
        prog="energyppl", description="Train energy-based models of tables, sample them, and judge them."
    )
    parser.add_argument("--version", action="version", version=f"energyppl {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, formatter_class=_Formatter)
        added.set_defaults(command=name)
        return added

    demo = command("demo", "Train a small model on a 2-D toy whose truth is known, measure it and draw it.")
    demo.add_argument("--data", default="checkerboard", metavar="NAME", help=f"one of {', '.join(TOYS)}")
    demo.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder for pictures and report.json"
    )
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random")
    demo.add_argument("--steps", type=int, default=1500, metavar="N", help="training steps at most")

    fit = command("fit", "Train a model on a table of numbers, or go on with an earlier run, and say how good it is.")
    fit.add_argument("file", type=Path, metavar="FILE", help="a .npy, .npz or .csv table")
    fit.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder to keep the run in")
    fit.add_argument("--array", metavar="NAME", help="which array of an .npz that holds several")
    fit.add_argument("--seed", type=int, metavar="N", help="seed of everything random (default: 0)")
    fit.add_argument(
        "--steps", type=int, metavar="N", help="training steps at most (default: 1500, or 2000 above two columns)"
    )
    fit.add_argument("--levels", type=int, metavar="N", help="noise levels (default: 6, or 20 above two columns)")
    fit.add_argument(
        "--batch-size", type=int, metavar="N", help="rows in a batch (default: 512, or 256 above two columns)"
    )
    fit.add_argument(
        "--learning-rate", type=float, metavar="X", help="Adam's learning rate (default: .004, above two columns .002)"
    )

    sample = command("sample", "Draw samples from a trained run, in the units of its table.")
    sample.add_argument("run", type=Path, metavar="RUN", help="folder that fit made")
    sample.add_argument("-n", type=int, default=1000, metavar="N", help="how many")
    sample.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .npy, .npz or .csv file to write")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples")
    sample.add_argument("--raw", action="store_true", help="leave discrete columns continuous instead of rounding them")

    show = command("show", "Compare a trained run with held-out rows: likelihood, samples, pictures, a verdict.")
    show.add_argument("run", type=Path, metavar="RUN", help="folder that fit made")
    show.add_argument("-n", type=int, default=2000, metavar="N", help="how many samples to compare")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples")

    diagnose = command("diagnose", "Run long Markov chains on a trained run's energy and diagnose them.")
    diagnose.add_argument("run", type=Path, metavar="RUN", help="folder that fit made")
    diagnose.add_argument(
        "--chains", type=int, default=64, metavar="N", help="how many chains; half begin at held-out data"
    )
    diagnose.add_argument("--draws", type=int, default=1000, metavar="N", help="draws of each chain")
    diagnose.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the chains")
    diagnose.add_argument("--out", type=Path, metavar="DIR", help="folder to write into (default: RUN)")

    logz = command("logz", "Estimate a trained run's normalizing constant, and keep it for score.")
    logz.add_argument("run", type=Path, metavar="RUN", help="folder that fit made")
    logz.add_argument("--tolerance", type=float, metavar="NATS", help="half-width of the interval for log Z to reach")
    logz.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the runs")

    score = command("score", "Score a table's rows by normalized log density, outliers first.")
    score.add_argument("run", type=Path, metavar="RUN", help="folder that fit made")
    score.add_argument("file", type=Path, metavar="FILE", help="a .npy, .npz or .csv table with the run's columns")
    score.add_argument("--array", metavar="NAME", help="which array of an .npz that holds several")
    score.add_argument("--out", type=Path, default=Path("scores.csv"), metavar="FILE", help="a .csv file to write")
    score.add_argument("--first", type=int, default=10, metavar="N", help="how many rows to print")
    score.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the spread of discrete values")
    return parser


class _Formatter(argparse.HelpFormatter):
    """A help formatter that adds each option's default, unless it is None or False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return action.help
        return f"{action.help} (default: %(default)s)"

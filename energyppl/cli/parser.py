"""The commands' options: a parser that imports neither torch nor what the commands do.

A new command is a function of its options and a row of ``_COMMANDS`` here, and a function of the same name in
``commands.py``.
"""

import argparse
from collections.abc import Callable
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
        prog="energyppl", description="Train energy-based models of tables or images, sample them, and judge them."
    )
    parser.add_argument("--version", action="version", version=f"energyppl {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    for name, (text, add_options) in _COMMANDS.items():
        added = commands.add_parser(name, help=text, description=text, formatter_class=_Formatter)
        added.set_defaults(command=name)
        add_options(added)
    return parser


_READ = "a .csv, .tsv, .txt, .dat, .data, .npy, .npz, .parquet or .xlsx"
_WRITTEN = "a .csv, .npy, .npz or .parquet"


def _table_file(parser: argparse.ArgumentParser, more: str = "", *, decimal: str = "as the run's table has it") -> None:
    """Add the options of reading a table."""
    parser.add_argument("file", type=_path, metavar="FILE", help=f"{_READ} table; text may be gzipped{more}")
    parser.add_argument(
        "--array", metavar="NAME", help="which array of an .npz, or sheet of an .xlsx, that holds several"
    )
    parser.add_argument(
        "--decimal", metavar="MARK", help=f"mark of decimals in text, a point or a comma (default: {decimal})"
    )


def _where(parser: argparse.ArgumentParser) -> None:
    """Add where to work, and how quietly."""
    parser.add_argument("--device", metavar="NAME", help="where to work, such as cuda (default: the CPU)")
    parser.add_argument("--quiet", action="store_true", help="say nothing on the way")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="checkerboard", metavar="NAME", help=f"one of {', '.join(TOYS)}")
    parser.add_argument(
        "--out", type=_path, default=Path("demo"), metavar="DIR", help="folder for pictures and report.json"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random")
    parser.add_argument("--steps", type=int, default=1500, metavar="N", help="training steps at most")


def _fit(parser: argparse.ArgumentParser) -> None:
    _table_file(parser, "; or images: a folder of PNGs and JPEGs, an IDX file, an array", decimal=".")
    parser.add_argument("--out", type=_path, required=True, metavar="RUN", help="folder to keep the run in")
    _columns_to_learn(parser)
    parser.add_argument(
        "--labels", metavar="FILE", help="classes of images: an .npy or IDX file, or the name of an .npz's array"
    )
    _training(parser)
    _where(parser)


def _columns_to_learn(parser: argparse.ArgumentParser) -> None:
    """Add which columns of a table to learn, and as what."""
    parser.add_argument("--columns", type=_names, metavar="A,B", help="columns to learn, in this order (default: all)")
    parser.add_argument("--drop", type=_names, metavar="A,B", help="columns to leave out")
    parser.add_argument(
        "--predict", type=_names, metavar="A,B", help="columns to predict from all others, for energyppl predict"
    )
    parser.add_argument(
        "--missing",
        choices=("drop", "impute"),
        help="what becomes of rows with missing cells: left out, or trained on with the gaps drawn by the model along "
        "the way (default: they are refused)",
    )
    parser.add_argument(
        "--transform",
        type=_transforms,
        dest="transforms",
        metavar="A=KIND,B=KIND",
        help="how columns are taken: none, log, logit, quantile or auto (default: auto)",
    )


def _training(parser: argparse.ArgumentParser) -> None:
    """Add how to train."""
    parser.add_argument("--seed", type=int, metavar="N", help="seed of everything random (default: 0)")
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="training steps at most, after half as many with --missing impute; more than a finished run of "
        "a table made extend it, but with --predict (default: 1500, or 1000 above two coordinates)",
    )
    parser.add_argument(
        "--levels",
        type=int,
        metavar="N",
        help="noise levels (default: 6, or 20 to 24 above two coordinates, more for nearly dependent columns)",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="rows in a batch (default: 512)")
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="X",
        help="the optimizer's learning rate (default: .01, and .002 with --predict)",
    )


def _average(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        type=_path,
        nargs="+",
        metavar="RUN",
        help="folders that fit made of one table, each with another --seed",
    )
    parser.add_argument("--out", type=_path, required=True, metavar="DIR", help="folder to keep the average in")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples and of log Z's runs")
    _where(parser)


def _sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, metavar="RUN", help="folder that fit made")
    parser.add_argument("-n", type=int, default=1000, metavar="N", help="how many")
    parser.add_argument(
        "--given", type=_values, metavar="A=1,B=x", help="values of some columns, given which the others are drawn"
    )
    parser.add_argument(
        "--label", metavar="NAME", help="draw images of this class (default: of all, as often as in training)"
    )
    parser.add_argument("--guidance", type=float, metavar="W", help="how much to sharpen the class (default: 1)")
    parser.add_argument(
        "--out",
        type=_path,
        required=True,
        metavar="FILE",
        help=f"{_WRITTEN} file to write; of images .npy, .npz, or .png for a sheet",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples")
    parser.add_argument("--raw", action="store_true", help="leave discrete columns continuous instead of rounding them")
    _where(parser)


def _show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, metavar="RUN", help="folder that fit made")
    parser.add_argument("-n", type=int, default=2000, metavar="N", help="how many samples to compare")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples")
    _where(parser)


def _diagnose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, metavar="RUN", help="folder that fit made")
    parser.add_argument(
        "--chains", type=int, default=64, metavar="N", help="how many chains; half begin at held-out data"
    )
    parser.add_argument("--draws", type=int, default=1000, metavar="N", help="draws of each chain")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the chains")
    parser.add_argument("--out", type=_path, metavar="DIR", help="folder to write into (default: RUN)")
    _where(parser)


def _logz(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, metavar="RUN", help="folder that fit made")
    parser.add_argument("--tolerance", type=float, metavar="NATS", help="half-width of the interval for log Z to reach")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the runs")
    _where(parser)


def _score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, metavar="RUN", help="folder that fit made")
    _table_file(parser)
    parser.add_argument("--out", type=_path, default=Path("scores.csv"), metavar="FILE", help="a .csv file to write")
    parser.add_argument("--first", type=int, default=10, metavar="N", help="how many rows to print and to explain")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the spread of discrete values")
    _where(parser)


def _impute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, metavar="RUN", help="folder that fit made")
    _table_file(parser)
    parser.add_argument("--out", type=_path, required=True, metavar="FILE", help=f"{_WRITTEN} file for the best values")
    parser.add_argument("--draws", type=int, default=40, metavar="M", help="of each missing cell")
    parser.add_argument(
        "--multiple", type=int, default=0, metavar="M", help="completed tables to write besides, one for each draw"
    )
    parser.add_argument(
        "--cells", type=_path, metavar="FILE", help="a .csv file for each cell's mean, deviation and 95 %% interval"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws")
    _where(parser)


def _predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_path, metavar="RUN", help="folder that fit --predict made")
    _table_file(parser)
    parser.add_argument("--out", type=_path, required=True, metavar="FILE", help=f"{_WRITTEN} file to write")
    parser.add_argument("--draws", type=int, default=200, metavar="N", help="for each row")
    parser.add_argument("--confidence", type=float, default=0.9, metavar="P", help="of the intervals")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws")
    _where(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=_path, metavar="A", help=f"{_READ} table")
    parser.add_argument("second", type=_path, metavar="B", help="another one with the same columns")
    parser.add_argument("--columns", type=_names, metavar="A,B", help="columns to compare (default: all)")
    parser.add_argument("--drop", type=_names, metavar="A,B", help="columns to leave out")
    parser.add_argument("--missing", choices=("drop",), help="leave rows with missing cells out")
    parser.add_argument("--array", metavar="NAME", help="which array of .npz files, or sheet of .xlsx ones")
    parser.add_argument("--decimal", default=".", metavar="MARK", help="mark of decimals in text")
    parser.add_argument("--out", type=_path, metavar="FILE", help="a .csv file for the rows that differ")
    parser.add_argument("--first-rows", type=int, default=10, metavar="N", help="how many of these to print")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the test")
    parser.add_argument("--quiet", action="store_true", help="say nothing on the way")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path; got {text!r}")
    return Path(text)


def _values(text: str) -> dict[str, str]:
    """Return ``A=1,B=x`` as a dictionary."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not pairs or any(not mark or not name.strip() for name, mark, _ in pairs):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE,NAME=VALUE; got {text!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _transforms(text: str) -> dict[str, str]:
    return _values(text)


class _Formatter(argparse.HelpFormatter):
    """A help formatter that adds each option's default, unless it is None or False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return action.help
        return f"{action.help} (default: %(default)s)"


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "demo": ("Train a small model on a 2-D toy whose truth is known, measure it and draw it.", _demo),
    "fit": ("Train a model on a table or on images, or go on with an earlier run, and say how good it is.", _fit),
    "average": (
        "Average runs of one table: usually a better density where rows are few, at the cost of all.",
        _average,
    ),
    "sample": ("Draw samples from a trained run, in the units of its table or as images.", _sample),
    "show": ("Compare a trained run with held-out rows or images: measures, pictures, a verdict.", _show),
    "diagnose": ("Run long Markov chains on a trained run's energy and diagnose them.", _diagnose),
    "logz": ("Estimate the normalizing constant of a table's run, and keep it for score.", _logz),
    "score": ("Score a table's rows by normalized log density, outliers first, and say what is odd.", _score),
    "impute": ("Fill a table's missing cells by draws given the cells that are there.", _impute),
    "predict": ("Predict columns of a table's rows from the others, with intervals.", _predict),
    "compare": ("Test whether two tables are of one distribution, and find what differs.", _compare),
}

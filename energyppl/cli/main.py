"""The commands ``energyppl demo``, ``fit``, ``sample``, ``show``, ``diagnose``, ``logz`` and ``score``."""

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch

import energyppl as ep
from energyppl.cli.comparison import show_run
from energyppl.cli.demo import run_demo
from energyppl.cli.diagnosis import diagnose_run
from energyppl.cli.quality import quality_of_run
from energyppl.cli.runs import fit_table, interrupted, load_run, settings_for, write_samples
from energyppl.cli.scoring import logz_run, score_run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for an error that a user can mend, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    if "OMP_NUM_THREADS" not in os.environ:
        # A second thread gains a fifth on an idle machine, and on a busy one its waiting costs twenty times as much.
        torch.set_num_threads(1)
    try:
        _check_seed(options.seed)  # all commands have one
        options.command(options)
    except (ep.EnergyPPLError, OSError) as error:
        print(f"energyppl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nenergyppl: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="energyppl", description="Train energy-based models of tables, sample them, and judge them."
    )
    parser.add_argument("--version", action="version", version=f"energyppl {ep.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, formatter_class=_Formatter)
        added.set_defaults(command=run)
        return added

    names = ", ".join(ep.toys.TWO_DIMENSIONAL)
    demo = command("demo", _demo, "Train a small model on a 2-D toy whose truth is known, measure it and draw it.")
    demo.add_argument("--data", default="checkerboard", metavar="NAME", help=f"one of {names}")
    demo.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder for pictures and report.json"
    )
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random")
    demo.add_argument("--steps", type=int, default=1500, metavar="N", help="training steps at most")

    fit = command(
        "fit", _fit, "Train a model on a table of numbers, or go on with an earlier run, and say how good it is."
    )
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

    sample = command("sample", _sample, "Draw samples from a trained run, in the units of its table.")
    sample.add_argument("run", type=Path, metavar="RUN", help="folder that fit made")
    sample.add_argument("-n", type=int, default=1000, metavar="N", help="how many")
    sample.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .npy, .npz or .csv file to write")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples")
    sample.add_argument("--raw", action="store_true", help="leave discrete columns continuous instead of rounding them")

    show = command("show", _show, "Compare a trained run with held-out rows: likelihood, samples, pictures, a verdict.")
    show.add_argument("run", type=Path, metavar="RUN", help="folder that fit made")
    show.add_argument("-n", type=int, default=2000, metavar="N", help="how many samples to compare")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples")

    diagnose = command("diagnose", _diagnose, "Run long Markov chains on a trained run's energy and diagnose them.")
    diagnose.add_argument("run", type=Path, metavar="RUN", help="folder that fit made")
    diagnose.add_argument(
        "--chains", type=int, default=64, metavar="N", help="how many chains; half begin at held-out data"
    )
    diagnose.add_argument("--draws", type=int, default=1000, metavar="N", help="draws of each chain")
    diagnose.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the chains")
    diagnose.add_argument("--out", type=Path, metavar="DIR", help="folder to write into (default: RUN)")

    logz = command("logz", _logz, "Estimate a trained run's normalizing constant, and keep it for score.")
    logz.add_argument("run", type=Path, metavar="RUN", help="folder that fit made")
    logz.add_argument("--tolerance", type=float, metavar="NATS", help="half-width of the interval for log Z to reach")
    logz.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the runs")

    score = command("score", _score, "Score a table's rows by normalized log density, outliers first.")
    score.add_argument("run", type=Path, metavar="RUN", help="folder that fit made")
    score.add_argument("file", type=Path, metavar="FILE", help="a .npy, .npz or .csv table with the run's columns")
    score.add_argument("--array", metavar="NAME", help="which array of an .npz that holds several")
    score.add_argument("--out", type=Path, default=Path("scores.csv"), metavar="FILE", help="a .csv file to write")
    score.add_argument("--first", type=int, default=10, metavar="N", help="how many rows to print")
    score.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the spread of discrete values")
    return parser


def _check_seed(seed: int | None) -> None:
    if seed is not None and not 0 <= seed < 2**32:
        raise ep.InvalidInput(f"seed must be a whole number from 0 to 4294967295; got {seed}")


class _Formatter(argparse.HelpFormatter):
    """A help formatter that adds each option's default, unless it is None or False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return action.help
        return f"{action.help} (default: %(default)s)"


def _demo(options: argparse.Namespace) -> None:
    report = run_demo(options.data, options.out, seed=options.seed, steps=options.steps)
    held, log_z, training = report["held_out"], report["log_normalizer"], report["training"]
    sampling, test, modes = report["sampling"], report["energy_distance"], report["modes"]
    _table(
        f"{report['data']}, seed {report['seed']}",
        {
            "training": f"{training['steps']} steps in {training['seconds']:.0f} s; {training['stopped']}",
            "held-out −log p": f"{_error(held, 'negative_log_likelihood')} nats",
            "entropy of the truth": f"{held['true_entropy']:.4f} nats",
            "excess (KL)": f"{_error(held, 'excess')} nats",
            "log Z": f"{log_z['estimate']:.5f} ± {log_z['standard_error']:.1g} nats, by {log_z['method']}",
            "on the support": f"samples {report['support']['samples']:.1%}, data {report['support']['data']:.1%}",
            "mass of the modes": f"{len(modes['data'])} modes, off by {modes['largest_difference']:.3f} at most",
            "energy distance": f"{test['statistic']:.4f}, p = {test['p_value']:.3f} ({test['samples_each']} each)",
            "cost of a sample": f"{sampling['energy_evaluations_per_sample']} evaluations of the energy",
            "pictures": f"{', '.join(report['pictures'])} and report.json in {options.out}",
        },
    )


def _fit(options: argparse.Namespace) -> None:
    names = ("array", "seed", "steps", "levels", "batch_size", "learning_rate")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    settings = settings_for(options.out, chosen)
    try:
        record, _ = fit_table(options.file, options.out, settings)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interrupted(options.out)) from None
    before = record["steps_before"]
    try:
        with _warnings_of_log_z_ignored():
            found = quality_of_run(options.out, seed=record["settings"]["seed"])
        measured, verdict = _quality(found), found["verdict"]
    except ep.EnergyPPLError as error:
        measured, verdict = {}, [f"the model is trained, but how good it is could not be measured: {error}"]
    except KeyboardInterrupt:
        measured, verdict = {}, [f"the model is trained, and energyppl show {options.out} measures how good it is"]
    _table(
        record["source"],
        {
            **_about(record),
            **measured,
            "this time": "nothing left to do: the run was finished"
            if before == record["steps"]
            else (f"steps {before} to {record['steps']}" if before else "from the beginning"),
            "kept in": f"{options.out} (model.ckpt, training.ckpt, run.json{', logz.json' if measured else ''})",
            "next": f"energyppl show {options.out}",
        },
    )
    _say(verdict)


def _sample(options: argparse.Namespace) -> None:
    fitted = load_run(options.run)
    pyro.set_rng_seed(options.seed)
    write_samples(fitted, options.n, options.out, raw=options.raw)
    print(f"{options.n} samples of {', '.join(fitted.columns)} in {options.out}")


def _show(options: argparse.Namespace) -> None:
    with _warnings_of_log_z_ignored():
        report = show_run(options.run, count=options.n, seed=options.seed)
    lines = {**_about(report)}
    if "largest_correlation_difference" in report:
        worst = report["largest_correlation_difference"]
        lines["correlation"] = (
            f"worst for {' and '.join(worst['columns'])}: held-out {worst['held_out']:+.3f} (error about "
            f"{worst['standard_error']:.2f}), samples {worst['samples']:+.3f}"
        )
    lines |= _quality(report)
    lines["pictures"] = ", ".join(report["pictures"])
    _table(report["source"], lines)
    heads = ("mean", "sd", "5%", "50%", "95%")
    print("\n" + " " * 27 + "".join(f"{head:>12}" for head in heads))
    for name, sides in report["compared"].items():
        for side, values in sides.items():
            label = f"{name[:16]:<16}" if side == "held_out" else " " * 16
            print(f"{label} {side.replace('_', '-'):<10}" + "".join(f"{values[head]:>12.4g}" for head in heads))
    _say(report["verdict"])


def _diagnose(options: argparse.Namespace) -> None:
    out = options.run if options.out is None else options.out
    report = diagnose_run(options.run, chains=options.chains, draws=options.draws, seed=options.seed, out=out)
    r_hat, bulk, tail, drift = (report[name] for name in ("r_hat", "ess_bulk", "ess_tail", "drift"))
    count, draws = report["chains"], report["draws"]
    lines = {
        "chains": f"{count} of {draws} draws, {report['from_data']} begun at held-out data, the others at samples",
        "kernel": f"{report['kernel']}, acceptance {report['acceptance']:.2f}, {report['gradients_per_draw']:.1f} "
        f"gradients a draw; {report['seconds']:.0f} s",
        "worst R-hat": f"{r_hat['value']:.4f} ({r_hat['variable']})",
        "smallest ESS": f"bulk {bulk['value']:.0f} ({bulk['variable']}), tail {tail['value']:.0f} ({tail['variable']}),"
        f" of {count * draws} draws",
        "divergences": f"{report['diverging']:.2%} of the draws",
        "stuck": _listed(report["stuck"], count),
        "not finite": _listed(report["not_finite"], count),
    }
    if drift is None:
        lines["energy drift"] = "unknown: fewer than two chains from data have finite energies"
    else:
        lines["energy drift"] = (
            f"{drift.slope:+.3f} ± {drift.standard_error:.3f} nats per 1,000 draws (z = {drift.z:+.1f}), from data"
        )
        lines["mean energy"] = (
            f"held-out data {report['held_out_energy']:.3f} ± {report['held_out_energy_error']:.3f} nats, chains from "
            f"data at their end {drift.last:.3f} ± {drift.last_error:.3f}"
        )
    lines["last draws"] = (
        f"like held-out rows: p = {report['data_p_value']:.3f}; the same for both halves: p = "
        f"{report['halves_p_value']:.3f}"
    )
    lines["BFMI"] = "unknown" if report["bfmi"] is None else f"{report['bfmi']:.2f} in the worst chain"
    lines["levels"] = "acceptance " + ", ".join(f"{share:.2f}" for share in report["level_acceptance"])
    lines["written"] = f"{', '.join(['chains.nc', 'chains_summary.csv', *report['pictures']])} in {out}"
    _table(str(options.run), lines)
    verdict = report["verdict"] or ["chains agree with each other and stay where the data are"]
    _say(verdict)


def _logz(options: argparse.Namespace) -> None:
    with _warnings_of_log_z_ignored():
        found, pictures = logz_run(options.run, tolerance=options.tolerance, seed=options.seed)
    print(found)
    print(f"  kept in {', '.join([str(options.run / 'logz.json'), *pictures])}")


def _score(options: argparse.Namespace) -> None:
    with _warnings_of_log_z_ignored():
        report = score_run(options.run, options.file, options.out, array=options.array, seed=options.seed)
    log_z, count = report["log_z"], len(report["rows"])
    _table(
        str(options.file),
        {
            "mean log density": f"{report['mean']:.4f} ± {report['standard_error']:.2g} nats, {count} rows",
            "held-out rows": f"{report['held_out_mean']:.4f} nats on average",
            "log Z": f"{log_z.estimate:.4f} ± {log_z.standard_error:.2g} nats, by {log_z.method}",
            **({"warning": log_z.warning} if log_z.warning else {}),
            "written": str(options.out),
        },
    )
    print(f"\n{'row':>8}{'log density':>14}   held-out rows less likely")
    for row, score, below in report["rows"][: options.first]:
        print(f"{row:>8}{score:>14.4f}   {below:.1%}")


@contextmanager
def _warnings_of_log_z_ignored() -> Iterator[None]:
    """Ignore what log Z would warn of inside: it is in the result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "log Z: ")
        yield


def _quality(found: dict[str, Any]) -> dict[str, str]:
    log_z, test = found["log_z"], found["energy_distance"]
    density, rows = found["log_density"], test["rows"]
    mean, of_log_z = (f"{value['value']:.3f} ± {value['standard_error']:.3f}" for value in (density, log_z))
    return {
        "log density": f"{mean} nats, held-out rows on average, log Z's error included; they also chose the weights",
        "log Z": f"{of_log_z} in standardized columns, where training alone implies 0, by {log_z['method']}",
        "energy distance": f"{test['statistic']:.4f}, p = {test['p_value']:.3f} ({rows[0]} held-out rows, {rows[1]} "
        "samples)",
    }


def _say(verdict: list[str]) -> None:
    print("\nverdict:" + "".join(f"\n  - {sentence}" for sentence in verdict))


def _listed(chains: list[int], count: int) -> str:
    if not chains:
        return f"none of {count} chains"
    more = ", …" if len(chains) > 10 else ""
    return f"{len(chains)} of {count} chains: {', '.join(map(str, chains[:10]))}{more}"


def _about(record: dict[str, Any]) -> dict[str, str]:
    lines = {
        "rows": f"{record['rows']['training']} for training, {record['rows']['held_out']} held out",
        "columns": ", ".join(record["columns"]),
        "training": f"{record['steps']} steps in {record['seconds']:.0f} s; {record['stopped']}",
    }
    if record["dequantized"]:
        gaps = ", ".join(f"{name} ({gap:.3g})" for name, gap in record["dequantized"].items())
        lines["dequantized"] = f"{gaps}: discrete, spread over their smallest gap while training"
    if record["spikes"]:
        shares = ", ".join(f"{name} ({share:.0%} of rows)" for name, share in record["spikes"].items())
        lines["warning"] = f"one value repeats in {shares}: a smooth density can't hold such a spike"
    return lines


def _error(values: dict[str, float], name: str) -> str:
    return f"{values[name]:.4f} ± {values[f'{name}_standard_error']:.4f}"


def _table(title: str, lines: dict[str, str]) -> None:
    print(f"\n{title}")
    width = max(len(name) for name in lines)
    for name, text in lines.items():
        print(f"  {name:<{width}}  {text}")

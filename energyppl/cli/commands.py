"""The commands: each function runs the command of its name and prints what it found."""

import argparse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import pandas as pd
import torch

import energyppl as ep
from energyppl._checks import check_count
from energyppl._numerals import plain
from energyppl._progress import doing
from energyppl.cli.averaging import average_runs, require_no_average
from energyppl.cli.comparison import quality_of_run, show_run
from energyppl.cli.demo import run_demo
from energyppl.cli.diagnosis import diagnose_run
from energyppl.cli.image_runs import holds_images, is_image_run, require_table_run
from energyppl.cli.images import fit_images, sample_images, show_images
from energyppl.cli.predictions import fit_predictions, predict_run
from energyppl.cli.printing import about, listed, print_table, quality_lines, say, with_error
from energyppl.cli.row_files import check_kind_of_file, write_frame
from energyppl.cli.runs import Settings, decimal_of_run, fit_table, interrupted, load_run, settings_for
from energyppl.cli.scoring import logz_run, score_run
from energyppl.tables.model import TableModel

__all__ = ["average", "compare", "demo", "diagnose", "fit", "impute", "logz", "predict", "sample", "score", "show"]


def demo(options: argparse.Namespace) -> None:
    """Train a model on a toy, and print how near it comes to the truth."""
    report = run_demo(options.data, options.out, seed=options.seed, steps=options.steps)
    held, log_z, training = report["held_out"], report["log_normalizer"], report["training"]
    sampling, test, modes = report["sampling"], report["energy_distance"], report["modes"]
    print_table(
        f"{report['data']}, seed {report['seed']}",
        {
            "training": f"{training['steps']} steps in {training['seconds']:.0f} s; {training['stopped']}",
            "held-out −log p": f"{with_error(held, 'negative_log_likelihood')} nats",
            "entropy of the truth": f"{held['true_entropy']:.4f} nats",
            "excess (KL)": f"{with_error(held, 'excess')} nats",
            "log Z": f"{log_z['estimate']:.5f} ± {log_z['standard_error']:.1g} nats, by {log_z['method']}",
            "on the support": f"samples {report['support']['samples']:.1%}, data {report['support']['data']:.1%}",
            "mass of the modes": f"{len(modes['data'])} modes, off by {modes['largest_difference']:.3f} at most",
            "energy distance": f"{test['statistic']:.4f}, p = {test['p_value']:.3f} ({test['samples_each']} each)",
            "cost of a sample": f"{sampling['energy_evaluations_per_sample']} evaluations of the energy",
            "pictures": f"{', '.join(report['pictures'])} and report.json in {options.out}",
        },
    )


_OF_FIT = (
    *("array", "columns", "drop", "predict", "missing", "decimal", "transforms", "labels"),
    *("seed", "steps", "levels", "batch_size", "learning_rate"),
)


def fit(options: argparse.Namespace) -> None:
    """Train on a table or on images, and print how good the model is."""
    chosen = {name: getattr(options, name) for name in _OF_FIT if getattr(options, name) is not None}
    talk = not options.quiet
    require_no_average(options.out)
    if holds_images(options.file, options.array):
        _fit_images(options, chosen)
        return
    if options.labels is not None:
        raise ep.InvalidInput(f"only images have labels; {options.file} is a table: leave --labels out")
    if is_image_run(options.out):
        raise ep.InvalidInput(f"{options.out} holds a run of images, and this is a table: choose another folder")
    settings = settings_for(options.out, chosen)
    if settings.predict is not None:
        _fit_predictions(options, settings)
        return
    try:
        model = fit_table(options.file, options.out, settings, device=options.device, progress=talk)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interrupted(options.out)) from None
    record, before = model.record, model.record["steps_before"]
    measured, verdict = _measured(options.out, model, seed=record["settings"]["seed"], talk=talk)
    print_table(
        record["source"],
        {
            **about(record),
            **measured,
            "this time": "nothing left to do: the run was finished"
            if before == record["steps"]
            else (f"steps {before} to {record['steps']}" if before else "from the beginning"),
            "kept in": f"{options.out} (model.ckpt, training.ckpt, run.json{', logz.json' if measured else ''})",
            "next": f"energyppl show {quote(str(options.out))}",
        },
    )
    say(verdict)


def average(options: argparse.Namespace) -> None:
    """Average the models of several runs of one table, and print how good that is."""
    model = average_runs(options.runs, options.out, device=options.device)
    measured, verdict = _measured(options.out, model, seed=options.seed, talk=not options.quiet)
    print_table(
        model.record["source"],
        {
            **about(model.record),
            **measured,
            "kept in": f"{options.out} (model.ckpt, run.json{', logz.json' if measured else ''})",
            "next": f"energyppl show {quote(str(options.out))}",
        },
    )
    say(verdict)


def _measured(run: Path, model: TableModel, *, seed: int, talk: bool) -> tuple[dict[str, str], list[str]]:
    """Measure how good the model of a run is, or say why that is not known."""
    try:
        with _warnings_of_log_z_ignored():
            found = quality_of_run(run, model, seed=seed, progress=talk)
        return quality_lines({**model.record, **found}), found["verdict"]
    except ep.EnergyPPLError as error:
        return {}, [f"the model is trained, but how good it is could not be measured: {error}"]
    except KeyboardInterrupt:
        return {}, [f"the model is trained, and energyppl show {run} measures how good it is"]


def _fit_images(options: argparse.Namespace, chosen: dict[str, Any]) -> None:
    try:
        lines = fit_images(options.file, options.out, chosen, device=options.device, progress=not options.quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interrupted(options.out)) from None
    print_table(str(options.file), lines)


def _fit_predictions(options: argparse.Namespace, settings: Settings) -> None:
    where = {"device": options.device, "progress": not options.quiet}
    try:
        model, found = fit_predictions(options.file, options.out, settings, **where)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interrupted(options.out)) from None
    lines = {"predicted": ", ".join(model.targets), **about(model.record)}
    if "log_density" in found:
        lines["log density"] = "{value:.3f} ± {standard_error:.2g} nats a held-out row".format(**found["log_density"])
    print_table(
        model.record["source"], {**lines, "next": f"energyppl predict {options.out} TABLE --out predictions.csv"}
    )
    say(found["verdict"])


def predict(options: argparse.Namespace) -> None:
    """Predict columns of a table's rows from the others, and write a line for each row."""
    check_kind_of_file(options.out)
    require_table_run(options.run, "predict")
    settings = Settings(array=options.array, decimal=options.decimal or decimal_of_run(options.run))
    chosen = {name: getattr(options, name) for name in ("draws", "confidence", "seed", "device")}
    model, found = predict_run(options.run, options.file, options.out, settings, progress=not options.quiet, **chosen)
    far = f"{found.far.sum()} of them far from those it was trained with"
    print(f"{', '.join(model.targets)} of {len(found)} rows, {far}, in {options.out}")


def sample(options: argparse.Namespace) -> None:
    """Draw from a run and write the samples."""
    if is_image_run(options.run):
        _sample_images(options)
        return
    if options.run.is_dir() and (options.label is not None or options.guidance is not None):
        raise ep.InvalidInput(
            f"only images have classes; {options.run} is of a table: leave --label and --guidance out"
        )
    model = load_run(options.run, device=options.device)
    check_kind_of_file(options.out)
    check_count("the number of samples", options.n)
    torch.manual_seed(options.seed)
    with doing(f"drawing {options.n:,} samples", show=not options.quiet):
        if options.given:
            frame = model.sample(options.n, options.given, seed=options.seed)
        elif options.raw:
            frame = pd.DataFrame(model.sample_values(options.n, rounded=False), columns=list(model.columns))
        else:
            frame = model.sample(options.n)
    write_frame(frame, options.out, decimal=decimal_of_run(options.run))
    given = ", given " + ", ".join(f"{name}={value}" for name, value in (options.given or {}).items())
    print(f"{options.n} samples of {', '.join(model.columns)} in {options.out}{given if options.given else ''}")


def _sample_images(options: argparse.Namespace) -> None:
    if options.given or options.raw:
        raise ep.InvalidInput(f"--given and --raw are for tables; {options.run} is of images: leave them out")
    of_class = {"label": options.label, "guidance": options.guidance, "seed": options.seed}
    print(sample_images(options.run, options.n, options.out, device=options.device, **of_class))


def impute(options: argparse.Namespace) -> None:
    """Fill a table's missing cells, and write the best values, the cells and completed tables."""
    require_table_run(options.run, "impute")
    model = load_run(options.run, device=options.device)
    check_kind_of_file(options.out)
    check_count("--draws", options.draws)
    check_count("--multiple", options.multiple, at_least=0)
    settings = Settings(array=options.array, decimal=options.decimal or decimal_of_run(options.run), missing="impute")
    with doing(f"reading {options.file}", show=not options.quiet):
        table = settings.read(options.file, model.table)
    draws = max(options.draws, options.multiple)
    found = ep.tables.impute(model, table, draws=draws, seed=options.seed, progress=not options.quiet)
    write_frame(found.best(), options.out, decimal=settings.decimal)
    written = [str(options.out)]
    for number, frame in enumerate(found.completed()[: options.multiple], 1):
        path = options.out.with_name(f"{options.out.stem}-{number}{options.out.suffix}")
        write_frame(frame, path, decimal=settings.decimal)
        written.append(str(path))
    if options.cells is not None:
        write_frame(found.cells(), options.cells, decimal=settings.decimal)
        written.append(str(options.cells))
    counts = {name: int((found.places[:, 1] == j).sum()) for j, name in enumerate(model.columns)}
    print_table(
        str(options.file),
        {
            "missing cells": ", ".join(f"{name} {count}" for name, count in counts.items() if count),
            "draws": f"{draws} of each, given the cells that are there",
            "written": ", ".join(written),
        },
    )


def compare(options: argparse.Namespace) -> None:
    """Test whether two tables are of one distribution, and print what differs."""
    names = ("array", "columns", "drop", "missing")
    chosen = {name: value for name in names if (value := getattr(options, name)) is not None}
    check_count("--first-rows", options.first_rows, at_least=0)
    for file in (options.first, options.second):
        if holds_images(file):
            raise ep.InvalidInput(f"energyppl compare is for tables, and {file} holds images")
    settings = Settings(decimal=options.decimal, **chosen)
    with doing(f"reading {options.first} and {options.second}", show=not options.quiet):
        one, other = (
            replace(settings, array=settings.array if file.suffix.lower() in (".npz", ".xlsx") else None).read(file)
            for file in (options.first, options.second)
        )
    with doing("comparing", show=not options.quiet):
        found = ep.tables.compare(one, other, seed=options.seed)
    if options.out is not None:
        write_frame(found.rows, options.out, decimal=settings.decimal)
    print_table(
        f"{options.first} and {options.second}",
        {
            "rows": f"{len(one.values)} and {len(other.values)}",
            "energy distance": f"{found.statistic:.4f}, p = {found.p_value:.3f}",
            **{f"column {own.column}": f"{own.said} (p = {own.p_value:.2g})" for own in found.columns[:5].itertuples()},
            **({"written": str(options.out)} if options.out else {}),
        },
    )
    if len(found.rows) and options.first_rows:
        print(f"\n{'table':>8}{'row':>8}   neighbours of its own table")
        for own in found.rows[: options.first_rows].itertuples():
            print(f"{own.table:>8}{own.row:>8}   {own.own_neighbours:.0%}")
    say(found.verdict)


def show(options: argparse.Namespace) -> None:
    """Compare a run with its held-out rows or images, and print both beside each other."""
    if is_image_run(options.run):
        lines, verdict = show_images(options.run, options.n, seed=options.seed, device=options.device)
        print_table(str(options.run), lines)
        say(verdict)
        return
    with _warnings_of_log_z_ignored():
        chosen = {"count": options.n, "seed": options.seed, "device": options.device}
        report = show_run(options.run, progress=not options.quiet, **chosen)
    lines = {**about(report)}
    if "largest_correlation_difference" in report:
        worst = report["largest_correlation_difference"]
        lines["correlation"] = (
            f"of the columns as they are, worst for {' and '.join(worst['columns'])}: held-out "
            f"{worst['held_out']:+.3f} (error about {worst['standard_error']:.2f}), samples {worst['samples']:+.3f}"
        )
    lines |= quality_lines(report)
    lines["pictures"] = ", ".join(report["pictures"])
    print_table(report["source"], lines)
    heads = ("mean", "sd", "5%", "50%", "95%")
    print("\n" + " " * 27 + "".join(f"{head:>12}" for head in heads))
    for name, sides in report["compared"].items():
        for side, values in sides.items():
            label = f"{name[:16]:<16}" if side == "held_out" else " " * 16
            print(f"{label} {side.replace('_', '-'):<10}" + "".join(f"{plain(values[head]):>12}" for head in heads))
    for name, labels in report["shares"].items():
        print(f"{name[:16]:<16} share of rows, held-out and samples")
        for label, sides in labels.items():
            print(f"{'':<17}{label[:24]:<24}{sides['held_out']:>8.1%}{sides['samples']:>8.1%}")
    say(report["verdict"])


def diagnose(options: argparse.Namespace) -> None:
    """Run long chains on a run's energy, and print what they show."""
    require_table_run(options.run, "diagnose")
    out = options.run if options.out is None else options.out
    chosen = {name: getattr(options, name) for name in ("chains", "draws", "seed", "device")}
    report = diagnose_run(options.run, out=out, progress=not options.quiet, **chosen)
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
        "stuck": listed(report["stuck"], count),
        "not finite": listed(report["not_finite"], count),
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
    print_table(str(options.run), lines)
    say(report["verdict"] or ["chains agree with each other and stay where the data are"])


def logz(options: argparse.Namespace) -> None:
    """Estimate a run's log Z and print it."""
    require_table_run(options.run, "logz")
    with _warnings_of_log_z_ignored():
        chosen = {name: getattr(options, name) for name in ("tolerance", "seed", "device")}
        found, pictures = logz_run(options.run, progress=not options.quiet, **chosen)
    print(found)
    print("  of the transformed columns; fit and show say it of standardized ones")
    print(f"  kept in {', '.join([str(options.run / 'logz.json'), *pictures])}")


def score(options: argparse.Namespace) -> None:
    """Score the rows of a table, and print the strangest with what makes them so."""
    require_table_run(options.run, "score")
    settings = Settings(array=options.array, decimal=options.decimal or decimal_of_run(options.run))
    chosen = {name: getattr(options, name) for name in ("first", "seed", "device")}
    with _warnings_of_log_z_ignored():
        report = score_run(options.run, options.file, options.out, settings, progress=not options.quiet, **chosen)
    log_z, impossible = report["log_z"], report["impossible"]
    left_out = f"; {impossible} more have density 0, by a value that their column can't be" if impossible else ""
    rows = f"{len(report['rows']) - impossible} rows{left_out}"
    print_table(
        str(options.file),
        {
            "mean log density": f"{report['mean']:.4f} ± {report['standard_error']:.2g} nats, {rows}",
            "held-out rows": f"{report['held_out_mean']:.4f} nats on average",
            "log Z": f"known to ± {log_z.standard_error:.2g} nats, by {log_z.method}",
            **({"warning": log_z.warning} if log_z.warning else {}),
            "written": f"{options.out}, whose rows are counted from 0",
        },
    )
    print(f"\n{'row':>8}{'log density':>14}   held-out rows less likely")
    for own in report["rows"][: options.first].itertuples():
        print(f"{own.row:>8}{own.log_density:>14.4f}   {own.held_out_rows_less_likely:>6.1%}   {own.because}")


@contextmanager
def _warnings_of_log_z_ignored() -> Iterator[None]:
    """Ignore what log Z would warn of inside: it is in the result."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "log Z: ")
        yield

"""The commands: each function runs the command of its name and prints what it found."""

import argparse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro

import energyppl as ep
from energyppl.cli.comparison import show_run
from energyppl.cli.demo import run_demo
from energyppl.cli.diagnosis import diagnose_run
from energyppl.cli.quality import quality_of_run
from energyppl.cli.runs import fit_table, interrupted, load_run, settings_for, write_samples
from energyppl.cli.scoring import logz_run, score_run

__all__ = ["demo", "diagnose", "fit", "logz", "sample", "score", "show"]


def demo(options: argparse.Namespace) -> None:
    """Train a model on a toy, and print how near it comes to the truth."""
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


def fit(options: argparse.Namespace) -> None:
    """Train on a table, and print how good the model is."""
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


def sample(options: argparse.Namespace) -> None:
    """Draw from a run and write the samples."""
    fitted = load_run(options.run)
    pyro.set_rng_seed(options.seed)
    write_samples(fitted, options.n, options.out, raw=options.raw)
    print(f"{options.n} samples of {', '.join(fitted.columns)} in {options.out}")


def show(options: argparse.Namespace) -> None:
    """Compare a run with its held-out rows, and print both beside each other."""
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


def diagnose(options: argparse.Namespace) -> None:
    """Run long chains on a run's energy, and print what they show."""
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


def logz(options: argparse.Namespace) -> None:
    """Estimate a run's log Z and print it."""
    with _warnings_of_log_z_ignored():
        found, pictures = logz_run(options.run, tolerance=options.tolerance, seed=options.seed)
    print(found)
    print(f"  kept in {', '.join([str(options.run / 'logz.json'), *pictures])}")


def score(options: argparse.Namespace) -> None:
    """Score the rows of a table, and print the strangest."""
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

"""More public callables with arguments that work: pictures, files, chains and levels, and what evaluation takes."""

import math
import pathlib
import tempfile
from functools import partial

import numpy as np
import pandas as pd
import torch

import energyppl as ep
from tests.support.fuzz import LOG_Z, NORMAL, ROWS, SCHEDULE, Calls, network, recovery


def _chains() -> ep.Chains:
    return ep.sample_chains(ep.MALA(0.5), NORMAL, chains=4, draws=6, warmup=0, progress=False)


def pictures() -> Calls:
    """Return the callables of ``ep.plots``."""
    p, square, image, titled = ep.plots, torch.rand(8, 8), torch.rand(4, 1, 8, 8), partial(partial, title="t")
    extent = (-1.0, 1.0, -1.0, 1.0)
    pair = (torch.arange(5.0), torch.rand(5))
    four = (torch.tensor([0.5, 0.9]), torch.tensor([0.5, 0.9]), torch.tensor([0.4, 0.8]), torch.tensor([0.6, 1.0]))
    trace = ep.log_normalizer(NORMAL, samples=torch.randn(200, 2), method=ep.normalizing.BAR(32, 4))
    figure = p.scatter_panels({"x": ROWS}, title="")
    path = pathlib.Path(tempfile.mkdtemp()) / "a.png"
    return {
        "coverage_plot": (titled(p.coverage_plot), {"coverages": {"a": four}}),
        "density_grid": (
            titled(p.density_grid),
            {"rows": {"a": [square]}, "titles": ["x"], "extent": extent},
        ),
        "drift_plot": (titled(p.drift_plot), {"energies": {"a": torch.rand(4, 20)}, "warmup": 0}),
        "energy_landscape": (
            titled(p.energy_landscape),
            {"energy": square, "extent": extent, "data": ROWS, "height": 3.0},
        ),
        "energy_plot": (titled(p.energy_plot), {"total_energy": torch.rand(4, 20)}),
        "gap_plot": (titled(p.gap_plot), {"estimates": {"a": [LOG_Z, LOG_Z]}, "log_z": 0.1}),
        "image_grid": (titled(p.image_grid), {"images": image, "columns": 2}),
        "image_strips": (titled(p.image_strips), {"strips": {"a": [image[0], image[1]]}, "titles": ["x", "y"]}),
        "level_plot": (titled(p.level_plot), {"acceptance": torch.rand(3)}),
        "line_plot": (titled(p.line_plot), {"curves": {"a": pair}, "labels": ("x", "y")}),
        "log_weight_histogram": (titled(p.log_weight_histogram), {"found": trace, "log_z": 1.8}),
        "neighbour_grid": (titled(p.neighbour_grid), {"samples": image, "neighbours": image[:, None]}),
        "noise_to_data": (
            titled(p.noise_to_data),
            {"path": [ROWS, ROWS], "titles": ["a", "b"], "trajectories": 2},
        ),
        "pair_plot": (titled(p.pair_plot), {"data": ROWS, "samples": ROWS, "columns": ["a", "b"]}),
        "rank_ecdf": (titled(p.rank_ecdf), {"ranks": {"a": torch.arange(20) % 11}, "draws": 10}),
        "rank_histogram": (
            titled(p.rank_histogram),
            {"ranks": {"a": torch.arange(20) % 11}, "draws": 10, "bins": 4},
        ),
        "rank_plot": (titled(p.rank_plot), {"variables": {"a": torch.rand(4, 20)}, "bins": 4}),
        "save_figure": (partial(p.save_figure, path=path), {"figure": figure}),
        "scatter_panels": (titled(p.scatter_panels), {"panels": {"a": ROWS}, "labels": ("x", "y")}),
        "score_histograms": (titled(p.score_histograms), {"scores": {"a": torch.rand(30)}}),
        "temperature_plot": (titled(p.temperature_plot), {"found": trace}),
        "trace_plot": (titled(p.trace_plot), {"variables": {"a": torch.rand(4, 20)}}),
        "training_curves": (titled(p.training_curves), {"curves": {"a": pair}}),
    }


def files_and_chains() -> Calls:
    """Return the callables that read and write files, and those of chains, levels and log Z."""
    folder = pathlib.Path(tempfile.mkdtemp())
    ep.save(recovery(), folder / "model")
    ep.save_checkpoint(folder / "state", {"x": 1})
    frame = pd.DataFrame({"a": np.arange(30.0) ** 1.5, "b": np.sin(np.arange(30.0))})
    frame.to_csv(folder / "t.csv", index=False)
    np.save(folder / "images.npy", np.arange(320, dtype=np.uint8).reshape(5, 8, 8))
    table = ep.tables.fit(frame, steps=1, levels=2, progress=False)
    ep.tables.save(table, folder / "table")
    given = ep.tables.fit_conditional(frame, "b", steps=1, levels=2, progress=False)
    ebm, n, k, lv = recovery(), ep.normalizing, ep.kernels, ep.levels
    chains, joint = _chains(), ep.JointEBM(network(), SCHEDULE)
    joint.standardize(ROWS)
    base, drawn = ep.potentials.GaussianBase(torch.zeros(2), torch.ones(2)), torch.randn(16, 2)
    level = torch.zeros(len(ROWS), dtype=torch.long)
    grid = ep.Grid((-5.0,), (5.0,), (64,))
    log_p = lambda x: -0.5 * (x * x).sum(-1) - 0.5 * math.log(2.0 * math.pi)  # noqa: E731
    small = {"particles": 8, "temperatures": 4}
    with_guide = ep.RecoveryEBM(network(), SCHEDULE, initializer=ep.MLPInitializer(2, hidden=4, levels=3))
    return {
        "save": (partial(ep.save, path=folder / "again"), {"model": ebm}),
        "load": (partial(ep.load, folder / "model"), {"net": None, "initializer": None}),
        "load_checkpoint": (ep.load_checkpoint, {"path": folder / "state"}),
        "tables.save": (partial(ep.tables.save, path=folder / "again"), {"model": table}),
        "tables.load": (ep.tables.load, {"path": folder / "table"}),
        "read_frame": (ep.data.read_frame, {"path": folder / "t.csv", "decimal": "."}),
        "read_table": (ep.data.read_table, {"path": folder / "t.csv", "decimal": "."}),
        "read_images": (ep.data.read_images, {"path": folder / "images.npy", "levels": 256}),
        "TableTransform.fit": (ep.data.TableTransform.fit, {"table": table.table, "kinds": {"a": "quantile"}}),
        "quality": (partial(ep.tables.quality, samples=table.rows, log_z=LOG_Z), {"model": table}),
        "prediction_quality": (ep.tables.prediction_quality, {"model": given, "seed": 0}),
        "EnergyDensity": (
            ep.estimator.EnergyDensity(steps=1, levels=2, hidden=4, depth=1).fit,
            {"X": frame.to_numpy()},
        ),
        "flat": (chains.flat, {"count": 3}),
        "problems": (chains.problems, {"rare": 0.1, "disagreement": 1.1}),
        "to_arviz": (chains.to_arviz, {"log_likelihood": False, "posterior_predictive": False}),
        "energy_drift": (ep.evaluation.energy_drift, {"chains": torch.randn(8, 40)}),
        "initializer_report": (ep.evaluation.initializer_report, {"model": with_guide, "data": ROWS, "steps": 2}),
        "long_run": (
            ep.long_run,
            {"model": ep.EBM(network()), "data": torch.randn(64, 2), "steps": 400, "kept": 20, "chains": 4, "level": 0},
        ),
        "kl_divergence": (ep.integration.kl_divergence, {"log_p": log_p, "log_q": log_p, "grid": grid}),
        "BAR": (n.BAR, {"particles": 64, "temperatures": 4, "kernel": ep.MALA(0.1), "waypoints": ()}),
        "ReverseAIS": (n.ReverseAIS, {"particles": 64, "temperatures": 4, "kernel": ep.MALA(0.1), "waypoints": ()}),
        "pilot_run": (
            n.pilot_run,
            {"base": base, "target": NORMAL, "x": drawn, "kernel": ep.MALA(0.5), "betas": (0.0, 0.5, 1.0)},
        ),
        "recovery_normalizers": (n.recovery_normalizers, {"target": ebm.recovery(ROWS[:3], 0), **small}),
        "bennett": (n.bennett, {"forward": torch.randn(20), "reverse": torch.randn(20)}),
        "diagonal_mass": (k.diagonal_mass, {"draws": drawn}),
        "identity_mass": (k.identity_mass, {"draws": drawn}),
        "low_rank_mass": (k.low_rank_mass, {"draws": drawn, "rank": 1, "cutoff": 1.5}),
        "draw_levels": (lv.draw_levels, {"model": joint, "x": ROWS}),
        "JointEBM.balance": (joint.balance, {"data": ROWS, "rows": 4}),
        "recovery_potential": (lv.recovery_potential, {"model": ebm, "noisy": ROWS, "level": level}),
        "recovery_proposal": (lv.recovery_proposal, {"model": with_guide, "noisy": ROWS, "level": level}),
        "ancestral_draw": (lv.ancestral_draw, {"schedule": SCHEDULE, "noisy": ROWS, "clean": ROWS, "level": 1}),
        "Level0Likelihood": (
            ep.objectives.Level0Likelihood,
            {"score": ep.objectives.LevelScoreMatching(), "chains": 4, "num_steps": 1, "life": 10.0},
        ),
        "AtLogSNR": (
            ep.potentials.AtLogSNR,
            {"net": network(), "log_snr": torch.tensor(1.0), "event_shape": (2,)},
        ),
        "LogSumExp": (ep.potentials.LogSumExp, {"potentials": (NORMAL, NORMAL), "log_weights": (0.0, 0.0)}),
        "gradient_only": (ep.autodiff.gradient_only, {"potential": NORMAL, "x": ROWS}),
    }

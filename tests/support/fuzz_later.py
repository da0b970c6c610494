"""Public callables of contexts, latent variables, calibration and tables with arguments that work."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, distributions

import energyppl as ep
from tests.support.fuzz import ROWS, SCHEDULE, Calls, recovery


def _conditional() -> ep.models.ConditionalEBM:
    net = ep.MLPEnergy((1,), hidden=4, depth=1, frequencies=2, levels=4, context_shape=2)
    ebm = ep.models.ConditionalEBM(net, SCHEDULE)
    ebm.standardize(ROWS[:, :1])
    ebm.standardize_context(ROWS)
    return ebm


def _rows_model(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def contexts_and_latents() -> Calls:
    """Return the callables of conditional and latent models, of simulations and of calibration."""
    m, o, e, n = ep.models, ep.objectives, ep.evaluation, ep.normalizing
    ebm, plain, prior = (
        _conditional(),
        recovery(),
        distributions.Independent(distributions.Normal(torch.zeros(2), 1.0), 1),
    )
    plain.standardize(ROWS)
    images, pixels = ep.RecoveryEBM(m.UNetEnergy((1, 8, 8), width=4), SCHEDULE), torch.rand(4, 1, 8, 8)
    images.standardize(pixels, isotropic=True)
    p = ebm.given(ROWS[:3])
    small = {"hidden": 4, "depth": 1, "frequencies": 2, "levels": 4, "context_shape": 2}
    adapting: dict[str, Any] = {"steps": 2, "adapt": True, "adaptation_rate": 0.1}
    ranks = torch.arange(40) % 8
    nominal, groups = (0.5, 0.9), torch.arange(40) % 2
    likelihood = ebm.net
    return {
        "ConditionalEBM": (
            m.ConditionalEBM,
            {
                "net": ep.MLPEnergy((1,), **small),
                "schedule": SCHEDULE,
                "event_shape": (1,),
                "context_shape": (2,),
                "encoder": None,
                "kernel": ep.MALA(0.1),
            },
        ),
        "ConditionalEBM.given": (ebm.given, {"context": ROWS[:3], "guidance": 0.0}),
        "ConditionalEBM.standardize_context": (ebm.standardize_context, {"context": ROWS}),
        "quantiles": (p.quantiles, {"probabilities": torch.tensor([0.1, 0.5])}),
        "interval": (p.interval, {"confidence": 0.9}),
        "conditional.log_prob": (p.log_prob, {"value": torch.zeros(3, 1)}),
        "conditional.sample": (p.sample, {"sample_shape": (2,)}),
        "LatentPrior": (
            m.LatentPrior,
            {"net": ep.MLPEnergy((2,), hidden=4, depth=1, levels=1), "event_shape": (2,), "kernel": ep.MALA(0.1)}
            | {"chains": 8, "num_steps": 1, "adaptation_rate": 0.1},
        ),
        "LatentPrior.restart": (
            m.LatentPrior(ep.MLPEnergy((2,), hidden=4, depth=1, levels=1), chains=8).restart,
            {"steps": 1},
        ),
        "simulate": (
            m.simulate,
            {"simulator": lambda theta: theta + 1.0, "prior": prior, "count": 4, "drop_failed": False},
        ),
        "posterior": (m.posterior, {"ebm": ebm, "prior": prior, "observed": torch.zeros(1)}),
        "Resampled": (m.Resampled, {"prior": prior, "likelihood": likelihood, "tried": 8, "at_once": 4}),
        "interpolate": (
            m.interpolate,
            {"ebm": images, "one": pixels[0], "other": pixels[1], "count": 3, "level": 0, "steps": 0},
        ),
        "model_of_columns": (m.model_of_columns, {"columns": 2, "levels": 3, "hidden": 4, "depth": 1}),
        "UNetEnergy": (
            m.UNetEnergy,
            {"event_shape": (1, 8, 8), "width": 4, "blocks": 1, "log_snr_min": -6.0, "classes": 0},
        ),
        "ProposalContrastive": (o.ProposalContrastive, {"ratio": 2, "level0_fraction": 0.5}),
        "PosteriorGuide": (o.PosteriorGuide, {"model": _rows_model, "kernel": ep.MALA(0.1), "start": None, **adapting}),
        "conditional_contrast": (o.conditional_contrast, {"model": plain, "data": ROWS, "level": 0}),
        "marginal_log_likelihood": (
            n.marginal_log_likelihood,
            {"model": _rows_model, "args": (torch.zeros(3),), "kwargs": {}, "guide": None, "log_z": 0.0}
            | {"particles": 8, "temperatures": 2, "confidence": 0.9},
        ),
        "process_log_likelihood": (
            n.process_log_likelihood,
            {"model": plain, "x": ROWS[:3], "particles": 32, "temperatures": 2, "steps": 1},
        ),
        "chi_square_test": (e.chi_square_test, {"ranks": ranks, "draws": 7, "bins": 4}),
        "ecdf_test": (e.ecdf_test, {"ranks": ranks, "draws": 7}),
        "ecdf_bands": (e.ecdf_bands, {"count": 20, "draws": 7, "confidence": 0.9}),
        "coverage": (
            e.coverage,
            {"truth": torch.randn(40), "draws": torch.randn(40, 9), "nominal": nominal, "groups": groups}
            | {"confidence": 0.9},
        ),
        "rank_coverage": (
            e.rank_coverage,
            {"ranks": ranks, "draws": 7, "nominal": nominal, "groups": groups, "confidence": 0.9},
        ),
        "region_masses": (
            e.region_masses,
            {"model": plain, "data": ROWS.repeat(3, 1), "samples": None, "regions": 2},
        ),
        "typicality_scores": (
            e.typicality_scores,
            {"model": plain, "x": ROWS, "training": ROWS, "level": 0, "batch": 10},
        ),
        "ratio_scores": (e.ratio_scores, {"model": plain, "x": ROWS, "base": recovery(), "level": 0, "batch": 10}),
        "joint_scores": (e.joint_scores, {"model": ep.JointEBM(recovery().net, SCHEDULE), "x": ROWS, "batch": 10}),
        "level_acceptance": (e.level_acceptance, {"ebm": plain, "samples": 4, "steps": 1}),
        "save": (lambda model: ep.save(model, Path(tempfile.mkdtemp()) / "kept"), {"model": plain}),
    }


def _frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"x": rng.normal(size=60), "y": rng.normal(size=60), "k": np.arange(60) % 3})


def tables() -> Calls:
    """Return the callables of tables and images, of which the models were hardly trained."""
    t, d, frame = ep.tables, ep.data, _frame()
    gaps = frame[["x", "y"]].mask(np.stack([frame["k"] == 0, frame["k"] == 1], 1))
    quick: dict[str, Any] = {"steps": 1, "levels": 3, "batch_size": 16, "progress": False}
    reading: dict[str, Any] = {"columns": ["x", "y"], "drop": (), "missing": None}
    training = {**quick, "learning_rate": 1e-3, "seed": 0, "transforms": {"x": "none"}}
    table = t.fit(frame[["x", "y"]], **quick)
    given = t.fit_conditional(frame[["x", "y"]], "y", **quick)
    path = str(Path(tempfile.mkdtemp()) / "kept")
    log_z = ep.LogNormalizer(0.0, 0.1, -0.2, 0.2, 10, "exact")
    grids = (np.array([0.0, 1.0]), np.array([]))
    pixels = np.zeros((4, 1, 4, 4), dtype=np.uint8)
    pixels[0] = 255
    return {
        "tables.fit": (t.fit, {"rows": frame, **reading, **training}),
        "tables.fit_conditional": (t.fit_conditional, {"rows": frame, "predict": "y", **reading, **training}),
        "tables.compare": (t.compare, {"first": frame, "second": frame[::-1], **reading, "seed": 0}),
        "tables.save": (lambda model: t.save(model, path), {"model": table}),
        "tables.score": (t.score, {"model": table, "rows": frame, "first": 3, "log_z": log_z, "seed": 0}),
        "tables.surprises": (t.surprises, {"model": table, "row": np.zeros(2), "seed": 0}),
        "tables.impute": (t.impute, {"model": table, "rows": gaps, "draws": 2, "seed": 0, "progress": False}),
        "table.sample": (table.sample, {"count": 3, "given": None, "seed": 0}),
        "table.log_prob": (table.log_prob, {"rows": frame, "log_z": log_z, "seed": 0, "spreads": 1}),
        "predict": (given.predict, {"rows": frame[["x"]], "draws": 20, "confidence": 0.9, "seed": 0}),
        "conditional.table.sample": (given.sample, {"rows": frame[["x"]], "draws": 2, "seed": 0}),
        "conditional.table.log_prob": (given.log_prob, {"rows": frame, "seed": 0, "spreads": 1}),
        "table_from_rows": (d.table_from_rows, {"rows": frame, **reading, "like": None}),
        "table_from_frame": (d.table_from_frame, {"frame": frame, **reading, "like": None}),
        "table_from_array": (d.table_from_array, {"values": frame.to_numpy(float), "columns": ["x", "y", "k"]}),
        "images_from_array": (
            d.images_from_array,
            {
                "array": pixels,
                "labels": [0, 1, 0, 1],
                "value_range": (0.0, 255.0),
                "levels": 256,
                "classes": ("a", "b"),
            },
        ),
        "dequantize": (d.dequantize, {"table": d.table_from_rows(frame), "generator": torch.Generator()}),
        "requantize": (d.requantize, {"values": np.zeros((2, 2)), "grids": grids}),
    }

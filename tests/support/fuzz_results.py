"""Public callables of results, processes, annealing runs, calibration and measurements with arguments that work."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import energyppl as ep
from tests.support.fuzz import NORMAL, ROWS, SCHEDULE, Calls, network


def _posterior(data: Tensor, draws: int) -> Tensor:
    return data[:, None] / 2 + 0.5**0.5 * torch.randn(len(data), draws)


def _model(rows: int) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", rows):
        pyro.sample("y", dist.Normal(mu, 1.0))


CHAINS = (
    *("draws", "energy", "acceptance", "diverging", "moved", "steps", "step_sizes", "kernel", "potential", "variables"),
    *("tree_depth", "interrupted", "seconds", "warmup_seconds", "warmup_gradients", "attributes", "notes"),
)


def results_and_runs() -> Calls:
    """Return the callables of results, of processes, and of what runs at a low level."""
    n, toy, images = ep.normalizing, ep.toys.TwoMoons(), torch.rand(8, 1, 8, 8)
    base, x, kernel = ep.potentials.GaussianBase(torch.zeros(2), 2.0 * torch.ones(2)), torch.randn(32, 2), ep.MALA(0.5)
    schedule = n.pilot_run(base, NORMAL, x, kernel).schedule
    ebm = ep.RecoveryEBM(ep.models.UNetEnergy((1, 8, 8), width=4), SCHEDULE)
    ebm.standardize(images, isotropic=True)
    history = ep.fit(ep.EBM(network()), ROWS, ep.objectives.SlicedScoreMatching(), steps=1, progress=False)
    number = ep.LogNormalizer(0.0, 0.1, -0.2, 0.2, 10, "exact")
    ends: dict[str, Any] = {"estimate": 0.0, "standard_error": 0.1, "lower": -0.2, "upper": 0.2}
    one = torch.ones(())
    chains = ep.sample_chains(ep.MALA(0.5), NORMAL, chains=4, draws=6, warmup=0, progress=False)
    return {
        "Estimate": (ep.Estimate, {"value": 0.0, "standard_error": 0.1, "from_log_z": 0.1, "confidence": 0.9}),
        "LogNormalizer": (ep.LogNormalizer, {**ends, "evaluations": 3, "method": "exact", "confidence": 0.9}),
        "LogNormalizer.from_dict": (ep.LogNormalizer.from_dict, {"found": number.to_dict()}),
        "column": (history.column, {"name": "loss"}),
        "shard": (ep.distributed.shard, {"count": 8}),
        "gather": (ep.distributed.gather, {"value": ROWS, "dim": 0}),
        "mean": (ep.distributed.mean, {"numbers": {"loss": 1.0}}),
        "broadcast": (ep.distributed.broadcast, {"tensors": [ROWS.clone()]}),
        "average_gradients": (ep.distributed.average_gradients, {"parameters": [nn.Parameter(torch.zeros(2))]}),
        "anneal": (
            n.anneal,
            {"base": base, "target": NORMAL, "schedule": schedule, "x": x, "kernel": kernel, "islands": 4}
            | {"reverse": False, "goes_on": False, "before": torch.zeros(32, dtype=torch.float64)},
        ),
        "resampled": (schedule.resampled, {"temperatures": 3}),
        "Chains": (
            ep.Chains,
            {name: getattr(chains, name) for name in CHAINS} | {"warmup": chains, "total_energy": chains.energy},
        ),
        "calibrate": (
            partial(ep.evaluation.calibrate, _model),
            {"prior": None, "kernel": ep.MALA(0.5), "args": (3,), "kwargs": {}, "observed": ["y"], "simulator": None}
            | {"quantities": None, "replicates": 2, "at_once": 2, "chains": 2, "draws": 2, "warmup": 0, "max_thin": 1}
            | {"false_alarm": 0.01, "mass": ep.kernels.diagonal_mass, "progress": False},
        ),
        "calibrate_sampler": (
            ep.evaluation.calibrate_sampler,
            {"prior": torch.randn, "simulate": lambda mu: mu + torch.randn(len(mu)), "posterior": _posterior}
            | {"replicates": 20, "draws": 7, "false_alarm": 0.01},
        ),
        "Measured": (
            ep.potentials.Measured,
            {"potential": NORMAL, "rows": torch.ones(1, 2), "observed": torch.ones(1), "gain": one, "precision": one},
        ),
        "diffused": (toy.diffused, {"alpha": 0.9, "sigma": 0.4}),
        "NoisyToy.log_prob": (toy.diffused(0.9, 0.4).log_prob, {"x": ROWS}),
        "NoisyToy.sample": (toy.diffused(0.9, 0.4).sample, {"sample_shape": (3,)}),
        "match_moments": (ep.levels.match_moments, {"model": ebm, "data": images, "moves": 40, "chains": 2}),
    }

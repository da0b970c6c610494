"""``energyppl demo``: a small model of a 2-D toy whose density is known, trained, measured and drawn."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import energyppl as ep
from energyppl._files import folder_made, write_json
from energyppl.inference.levels.generation import Generation
from energyppl.metrics.two_sample import energy_distance_test

__all__ = ["run_demo"]

_TRAINING_ROWS, _HELD_OUT_ROWS, _SAMPLES, _GRID = 20_000, 5_000, 2_000, 160
_TESTED = 1_000  # samples of each side in the two-sample test


def run_demo(name: str, out: Path, *, seed: int = 0, steps: int = 1500) -> dict[str, Any]:
    """Train a :class:`~energyppl.RecoveryEBM` on a toy; write pictures and ``report.json`` into ``out``.

    Args:
        name: of a toy in ``energyppl.toys.TWO_DIMENSIONAL``.
        out: folder, made if it is not there.
        seed: of everything random.
        steps: updates at most.

    Returns:
        The report: the measurements, in nats where nothing else is said.

    Raises:
        InvalidInput: for a name that no toy has, or steps below one.
    """
    options = ep.TrainingOptions(steps=steps, evaluate_every=min(100, steps))
    if name not in ep.toys.TWO_DIMENSIONAL:
        raise ep.InvalidInput(f"there are no toy data {name!r}; choose from {', '.join(ep.toys.TWO_DIMENSIONAL)}")
    folder_made(out)
    toy = ep.toys.TWO_DIMENSIONAL[name]()
    pyro.set_rng_seed(seed)
    data, held_out = toy.sample((_TRAINING_ROWS,)), toy.sample((_HELD_OUT_ROWS,))

    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(6))
    began = time.perf_counter()
    history = ep.fit(ebm, data, options=options)
    trained = time.perf_counter()
    generation = ebm.generate((_SAMPLES,))
    samples = ebm.loc + ebm.scale * generation.x
    sampled = time.perf_counter()
    report: dict[str, Any] = {
        "data": name,
        "seed": seed,
        "options": asdict(options),
        "versions": {"energyppl": ep.__version__, "torch": torch.__version__},
        "training": {
            "steps": len(history.records),
            "seconds": round(trained - began, 2),
            "stopped": history.stopped,
        },
        "sampling": {
            "samples": _SAMPLES,
            "seconds": round(sampled - trained, 2),
            "energy_evaluations_per_sample": generation.evaluations,
            "acceptance_by_level": [round(float(a), 4) for a in generation.acceptance],
        },
        **_measure(ebm, toy, held_out, samples),
    }
    pictures = _draw(out, name, ebm, history, data, samples, generation)
    report["pictures"] = [path.name for path in pictures]
    write_json(out / "report.json", report)
    return report


def _measure(ebm: ep.RecoveryEBM, toy: ep.toys.Toy, held_out: Tensor, samples: Tensor) -> dict[str, Any]:
    log_z = ebm.log_normalizer()
    with torch.no_grad():
        log_prob = ebm.log_prob(held_out)
    # Paired: E[−log p_true] is the entropy, so the difference needs only the spread of log p_true − log p_model.
    gap = toy.log_prob(held_out) - log_prob
    truth, modes = toy.modes(held_out), toy.modes(samples)
    mass = [torch.bincount(m, minlength=toy.number_of_modes).double() / len(m) for m in (truth, modes)]
    test = energy_distance_test(held_out[:_TESTED], samples[:_TESTED])
    supported = [x.double().mean() for x in (toy.on_support(held_out), toy.on_support(samples))]
    return {
        "held_out": {
            "rows": len(held_out),
            "negative_log_likelihood": -float(log_prob.mean()),
            "negative_log_likelihood_standard_error": _standard_error(log_prob),
            "true_entropy": toy.entropy(),
            "excess": float(gap.mean()),
            "excess_standard_error": _standard_error(gap),
        },
        "log_normalizer": asdict(log_z),
        "support": {"data": float(supported[0]), "samples": float(supported[1])},
        "modes": {
            "data": [round(float(m), 4) for m in mass[0]],
            "samples": [round(float(m), 4) for m in mass[1]],
            "largest_difference": float((mass[0] - mass[1]).abs().max()),
        },
        "energy_distance": {"statistic": test.statistic, "p_value": test.p_value, "samples_each": _TESTED},
    }


def _standard_error(values: Tensor) -> float:
    return float(values.double().std()) / math.sqrt(len(values))


def _draw(
    out: Path,
    name: str,
    ebm: ep.RecoveryEBM,
    history: ep.History,
    data: Tensor,
    samples: Tensor,
    generation: Generation,
) -> list[Path]:
    axis = torch.linspace(-3.2, 3.2, _GRID)
    points = ebm.loc + ebm.scale * torch.cartesian_prod(axis, axis).to(ebm.loc)
    low, high = points.amin(0).tolist(), points.amax(0).tolist()
    extent = (low[0], high[0], low[1], high[1])
    levels = range(ebm.schedule.levels)
    with torch.no_grad():
        learned = [_image(ebm.marginal(level).log_prob(points).exp()) for level in levels]
        noised = _noised(ebm, data, low, high)
        energy = _image(ebm.marginal().energy(points))
    names = [f"level {t}, σ̄ = {float(s):.2g}" for t, s in enumerate(ebm.schedule.sigma_bar[:-1])]
    stops = ["white noise", *reversed([f"after level {t}" for t in levels])]
    path = [ebm.loc + ebm.scale * x for x in generation.path]
    figures = {
        "data.png": ep.plots.scatter_panels({"data": data[:_SAMPLES]}, title=name, extent=extent),
        "samples.png": ep.plots.scatter_panels(
            {"data": data[:_SAMPLES], "samples": samples}, title=f"{name}: data and samples", extent=extent
        ),
        "density.png": ep.plots.density_grid(
            {"model": learned, "noised data": noised},
            names,
            extent=extent,
            title=f"{name}: density at each noise level",
        ),
        "energy.png": ep.plots.energy_landscape(
            energy, extent=extent, data=data[:1500], title=f"{name}: learned energy at level 0"
        ),
        "training.png": ep.plots.training_curves(_curves(history), title=f"{name}: training"),
        "chains.png": ep.plots.noise_to_data(path, stops, title=f"{name}: chains from noise to data"),
    }
    return [ep.plots.save_figure(figure, out / file) for file, figure in figures.items()]


def _image(values: Tensor) -> Tensor:
    """Return values at the points of the grid as a picture, whose rows are the second coordinate."""
    return values.detach().reshape(_GRID, _GRID).T


def _noised(ebm: ep.RecoveryEBM, data: Tensor, low: list[float], high: list[float]) -> list[Tensor]:
    """Return a histogram of the data with each level's noise, from corner to corner."""
    edges = [torch.linspace(a, b, 81, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    clouds = (ebm.diffuse(data.repeat(5, 1), level).double() for level in range(ebm.schedule.levels))
    return [torch.histogramdd(cloud, bins=edges, density=True).hist.T for cloud in clouds]


def _curves(history: ep.History) -> dict[str, tuple[Any, Any]]:
    """Return what is drawn of the training, over its steps."""
    curves = {
        "loss: energy gap, nats": "energy_gap",
        "acceptance": "acceptance",
        "gradient norm": "gradient_norm",
        "held-out score error": "held_out",
    }
    return {title: (history.column("step"), history.column(key)) for title, key in curves.items()}

"""``energyppl diagnose``: long chains on a trained run's energy, their diagnostics, and a verdict."""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

import energyppl as ep
from energyppl._checks import check_count
from energyppl._files import folder_made, whole_file
from energyppl._progress import doing
from energyppl.cli.runs import load_run
from energyppl.errors import EnergyPPLError
from energyppl.inference.evaluation.chains import EnergyDrift, energy_drift, level_acceptance
from energyppl.inference.kernels.contract import Kernel
from energyppl.inference.kernels.hamiltonian import ChEES
from energyppl.inference.sampling.chains import Chains
from energyppl.inference.sampling.sample_chains import sample_chains
from energyppl.metrics.two_sample import energy_distance_test
from energyppl.tables.model import TableModel

__all__ = ["diagnose_run"]

_FEWEST_CHAINS, _FEWEST_DRAWS = 4, 20
_WARMUP = 400
_R_HAT, _ESS = 1.01, 400  # Vehtari et al. 2021
_BFMI = 0.3  # Betancourt 2016
_Z = 4.0  # standard errors: with 32 chains a false alarm in 3,000 runs
_APART = 0.5  # nats; closer energies are a question of how well a model was trained, not of chains that run away
_P = 0.001
_COMPARED = 1000  # held-out rows


def diagnose_run(
    run: Path,
    *,
    chains: int = 64,
    draws: int = 1000,
    seed: int = 0,
    out: Path | None = None,
    kernel: Kernel | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run long chains on the energy of a run's level 0, half from held-out data and half from the model's own samples.

    Writes ``chains.nc`` (for ArviZ; variables named like the columns, in the table's units, discrete ones not rounded),
    ``chains_summary.csv`` and pictures, over those of an earlier diagnosis.

    Args:
        run: made by ``energyppl fit``.
        chains: how many, at least 4.
        draws: of each chain, at least 20, after a warm-up of as many steps, 400 at most.
        seed: of everything random.
        out: folder to write into; ``run`` if None.
        kernel: moves the chains; ``ChEES()`` if None.
        device: where to run.
        progress: show a bar.

    Returns:
        The measurements, energies in nats, and a ``verdict``: a list of sentences, empty if no problem was found.

    Raises:
        CheckpointError: if ``run`` holds no finished model.
        InvalidInput: for too few chains or draws.
        KeyboardInterrupt: if it was stopped before there were 20 draws; later ones are diagnosed as they are.
    """
    check_count("chains", chains, at_least=_FEWEST_CHAINS)
    check_count("draws", draws, at_least=_FEWEST_DRAWS)
    fitted, folder = load_run(run, device=device), run if out is None else out
    folder_made(folder)
    pyro.set_rng_seed(seed)
    half, data = chains // 2, _held_out(fitted)
    some = torch.randperm(len(data)) if half <= len(data) else torch.randint(len(data), (half,))
    found = _run(fitted, data[some[:half]], chains, draws, kernel, progress)
    # Compared with rows that few chains began at: a chain that has not moved must not speak for the model.
    with doing("summarizing and drawing the chains", show=progress):
        report = _measure(found, fitted, data, half, data[some.flip(0)[:_COMPARED]], _export(found, folder))
        report["verdict"] = _verdict(report)
        report["pictures"] = _draw(found, half, report, folder)
    return report


def _run(fitted: TableModel, starts: Tensor, chains: int, draws: int, kernel: Kernel | None, progress: bool) -> Chains:
    """Run chains from the rows ``starts`` and, the others, from the model's own samples, in the table's units."""
    init = torch.cat([starts, fitted.ebm.sample((chains - len(starts),))])
    if not bool(torch.isfinite(init).all()):
        raise EnergyPPLError("the model's samples are not finite: its training went wrong, fit it again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what it would warn of is in the report
        found = sample_chains(
            ChEES() if kernel is None else kernel,
            fitted.ebm.marginal(),
            chains=chains,
            draws=draws,
            warmup=min(_WARMUP, draws),
            init=init,
            keep_warmup=True,
            progress=progress,
        )
    if found.draws.shape[1] < _FEWEST_DRAWS:
        raise KeyboardInterrupt("stopped before there were enough draws; nothing was written")
    return _in_units(found, fitted)


def _measure(
    found: Chains, fitted: TableModel, data: Tensor, half: int, compared: Tensor, summary: Any
) -> dict[str, Any]:
    """Measure chains, the first ``half`` of them from data, and the held-out rows ``data``, for a report."""
    ebm = fitted.ebm
    with torch.no_grad():
        reference = ebm.marginal().energy(data).double()
    last = ebm.to_unit(found.draws[:, -1])
    return {
        "chains": len(found.draws),
        "from_data": half,
        "draws": found.draws.shape[1],
        "kernel": type(found.kernel).__name__,
        "seconds": round(found.seconds + found.warmup_seconds, 1),
        "gradients_per_draw": found.gradients / found.draws.shape[1],
        "acceptance": float(found.acceptance.mean()),
        "diverging": float(found.diverging.double().mean()),
        "stuck": found.stuck.nonzero()[:, 0].tolist(),
        "not_finite": found.not_finite.nonzero()[:, 0].tolist(),
        **_worst(summary),
        "bfmi": _bfmi(found.total_energy),
        "held_out_energy": float(reference.mean()),
        "held_out_energy_error": float(reference.std()) / len(reference) ** 0.5,
        "drift": _drift(found.energy[:half]),
        "halves_p_value": _same_places(last[:half], last[half:]),
        "data_p_value": _same_places(last, ebm.to_unit(compared)),
        "level_acceptance": level_acceptance(ebm).acceptance.tolist(),
        "interrupted": found.interrupted,
    }


def _held_out(fitted: TableModel) -> Tensor:
    """Return the held-out rows as the model has seen its data: discrete columns spread out, with level 0's noise."""
    rows = fitted.held_out[~np.isnan(fitted.held_out).any(1)]
    return fitted.ebm.diffuse(fitted.encode(rows)[0], 0)


def _in_units(chains: Chains, fitted: TableModel) -> Chains:
    """Return the same chains with the table's columns as their variables."""
    names = _names(fitted.columns)

    def variables(points: Tensor) -> Mapping[str, Tensor]:
        # In float64: a column of large numbers that vary little has no room in float32.
        flat = points.double().cpu().reshape(-1, points.shape[-1]).numpy()
        values = torch.as_tensor(fitted.transform.decode(flat, rounded=False)).reshape(*points.shape[:-1], -1)
        return dict(zip(names, values.unbind(-1), strict=True))

    warmup = None if chains.warmup is None else replace(chains.warmup, variables=variables)
    return replace(chains, variables=variables, warmup=warmup)


def _names(columns: Sequence[str]) -> list[str]:
    """Return names that a netCDF file can hold: no slash, none of ArviZ's own dimensions, none twice."""
    names: list[str] = []
    for column in columns:
        name = column.replace("/", "_")
        while name in ("chain", "draw", *names):
            name += "_"
        names.append(name)
    return names


def _export(chains: Chains, folder: Path) -> Any:
    """Write the ArviZ file and the table of its summary, whole or not at all; return the summary."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # ArviZ announces its next version, and chains that never moved divide by zero
        import arviz

        data = chains.to_arviz()
        summary = arviz.summary(data, round_to="none")
        with TemporaryDirectory(dir=folder, prefix=".") as apart:  # netCDF's library opens files by name only
            data.to_netcdf(str(Path(apart, "chains.nc")))
            with Path(apart, "chains.nc").open("rb") as written, whole_file(folder / "chains.nc") as file:
                shutil.copyfileobj(written, file)
    with whole_file(folder / "chains_summary.csv") as file:
        file.write(summary.to_csv(index_label="variable").encode())
    return summary


def _worst(summary: Any) -> dict[str, Any]:
    """Find the largest R-hat and the smallest effective sample sizes, with their variables; NaN counts as the worst."""
    found: dict[str, Any] = {}
    for name, sign, bad in (("r_hat", -1.0, np.inf), ("ess_bulk", 1.0, 0.0), ("ess_tail", 1.0, 0.0)):
        values = np.asarray(summary[name], dtype=np.float64)
        values = np.where(np.isfinite(values), values, bad)
        place = int((sign * values).argmin())
        found[name] = {"value": float(values[place]), "variable": str(summary.index[place])}
    return found


def _bfmi(total_energy: Tensor | None) -> float | None:
    """Return the lowest Bayesian fraction of missing information (Betancourt 2016) of the finite chains that moved."""
    if total_energy is None:
        return None
    energy = total_energy[torch.isfinite(total_energy).all(1)].double()
    energy = energy[energy.amax(1) > energy.amin(1)]
    if len(energy) == 0:
        return None
    centred = energy - energy.mean(1, keepdim=True)
    return float((energy.diff(dim=1).square().mean(1) / centred.square().mean(1)).min())


def _drift(energy: Tensor) -> EnergyDrift | None:
    return energy_drift(energy) if int(torch.isfinite(energy).all(1).sum()) > 1 else None


def _same_places(x: Tensor, y: Tensor) -> float:
    """Test chains' last draws in two samples, one for each chain, so that they are independent; return the p-value."""
    x, y = (torch.where(torch.isfinite(points), points, 0.0) for points in (x, y))
    return energy_distance_test(x, y, permutations=4 * round(1.0 / _P)).p_value


def _verdict(report: Mapping[str, Any]) -> list[str]:
    """List what to know before these chains are used, the gravest first."""
    found, drift = [], report["drift"]
    if report["interrupted"]:
        found.append(f"stopped early: {report['draws']} draws of each chain are all there is")
    if report["not_finite"]:
        found.append("the energy is not finite where some chains stand: fit the model again")
    if report["stuck"]:
        found.append("some chains never or hardly moved: their starts lie where the energy is very steep")
    if drift is not None:
        apart = drift.last - report["held_out_energy"]
        error = float(np.hypot(drift.last_error, report["held_out_energy_error"]))
        if abs(apart) > max(_APART, _Z * error):
            where = "higher" if apart > 0 else "lower"
            found.append(f"chains leave the data: they end {abs(apart):.2f} nats {where} than held-out rows")
        if abs(drift.z) > _Z:
            found.append(f"the energy still {'rises' if drift.slope > 0 else 'falls'}: run longer chains")
    if report["data_p_value"] < _P:
        found.append("chains don't end where held-out rows lie: fit again with more steps, in another folder")
    if report["halves_p_value"] < _P:
        found.append("chains from data and from samples end in different places: run longer chains")
    r_hat = report["r_hat"]
    if not r_hat["value"] < _R_HAT:
        found.append(
            f"chains disagree about {r_hat['variable']} (R-hat {r_hat['value']:.3g}): too few draws, or modes that "
            "they don't cross; samples of 'energyppl sample' come down from noise and don't depend on it"
        )
    elif min(report["ess_bulk"]["value"], report["ess_tail"]["value"]) < _ESS:
        found.append(f"fewer than {_ESS} effective draws: run longer chains")
    if report["diverging"] > 0:
        found.append(f"{report['diverging']:.2%} of the draws diverged: the energy is too steep in places")
    if report["bfmi"] is not None and report["bfmi"] < _BFMI:
        found.append("a chain's energies change too slowly (BFMI): its tails are little explored")
    return found


def _draw(chains: Chains, half: int, report: Mapping[str, Any], folder: Path) -> list[str]:
    sides = {"from data": slice(None, half), "from samples": slice(half, None)}
    every = np.arange(len(chains.draws))
    samples = chains.samples
    energy, warmup = chains.energy, 0
    if chains.warmup is not None:
        energy, warmup = torch.cat([chains.warmup.energy, energy], 1), chains.warmup.energy.shape[1]
    figures = {
        "trace": ep.plots.trace_plot(
            samples, title="Traces", groups={name: every[side] for name, side in sides.items()}
        ),
        "rank": ep.plots.rank_plot(samples, title=f"Ranks; the first {half} chains began at data"),
        "drift": ep.plots.drift_plot(
            {name: energy[side] for name, side in sides.items()},
            title="Energy along the chains",
            warmup=warmup,
            reference=("held-out data", report["held_out_energy"]),
        ),
        "levels": ep.plots.level_plot(report["level_acceptance"], title="Acceptance of each level's chains"),
    }
    if chains.total_energy is not None:
        figures["energy"] = ep.plots.energy_plot(chains.total_energy, title="Energies and their changes")
    return [ep.plots.save_figure(figure, folder / f"chains_{name}.png").name for name, figure in figures.items()]

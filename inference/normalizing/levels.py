"""Annealing through noise levels: log Z of a model, from white noise down to the level asked for.

The energies of the noisier levels were trained to cover what lies between the modes of the sharper ones, so noise takes
the place of temperature.  The bridge from a model's own samples can be nats too low without a sign of it, where mass
sits at places that the samples never come to; forward runs through the levels are therefore made beside it.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from scipy.stats import t as student
from torch import Tensor

from energyppl.inference.adaptation.warmup import adapt
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.normalizing.log_normalizer import BAR, SMC, Annealing, log_normalizer
from energyppl.inference.normalizing.paths import Draws
from energyppl.integration.estimates import LogNormalizer
from energyppl.potentials.algebra import Potential
from energyppl.potentials.bases import GaussianBase

__all__ = ["LevelModel", "anneal_through_levels", "larger_of"]

_FORWARD_RUNS = 3
_APART = 3.0  # standard errors between forward runs and bridge
_SEARCHED = 64  # dimensions up to which modes are searched for where there are no levels
_RELAXED = 200  # moves of MALA that take the model's own samples to its energy


class LevelModel(Protocol):
    """Protocol of a model whose log Z is found through its levels; ``energyppl.models.RecoveryEBM`` is one."""

    event_shape: torch.Size
    loc: Tensor
    scale: Tensor

    def to_unit(self, data: Tensor) -> Tensor:
        """Bring data to the coordinates of the energies."""
        ...

    def sample(self, sample_shape: tuple[int, ...], *, level: int) -> Tensor:
        """Draw from a level's marginal in data coordinates, about."""
        ...


def anneal_through_levels(
    model: LevelModel,
    level: int,
    stops: Sequence[Potential],
    marginal_std: float,
    *,
    method: Annealing | None,
    samples: Draws | None,
    tolerance: float | None,
    max_evaluations: int | None,
    confidence: float,
    progress: bool,
) -> LogNormalizer:
    """Estimate log Z of a level's marginal in data coordinates, nats; see ``RecoveryEBM.log_normalizer``.

    Args:
        model: whose level it is.
        level: which one.
        stops: energies in coordinates of unit variance, of the level asked for and then of noisier ones, if any.
        marginal_std: standard deviation of the level's standardized points.
        method: how to anneal; :class:`BAR` if None.
        samples: draws of the level in data coordinates; the model's own if None.
        tolerance: as in :func:`log_normalizer`.
        max_evaluations: likewise.
        confidence: probability that the interval is meant to cover log Z with.
        progress: show a bar.

    Returns:
        The bridge's estimate, or that of the forward runs beside it where they say more; ``forward`` and ``bridge``
        hold both.  Only the forward estimate of an explicit ``AIS`` or ``SMC``.
    """

    def to_unit(x: Tensor) -> Tensor:
        return model.to_unit(x) / marginal_std

    def own(count: int) -> Tensor:
        x = to_unit(model.sample((count,), level=level))
        x = x[torch.isfinite(x).reshape(count, -1).all(1)]
        return adapt(MALA(0.1), stops[0], x, _RELAXED).state.x

    def given(count: int) -> Tensor:
        assert callable(samples)
        return to_unit(samples(count))

    draws: Draws = own if samples is None else to_unit(samples) if isinstance(samples, Tensor) else given
    method = BAR() if method is None else method
    if not method.waypoints:
        method = replace(method, waypoints=tuple(reversed(stops[1:])))
    base = GaussianBase(torch.zeros_like(model.loc), torch.ones_like(model.loc))
    jacobian = float(model.scale.log().sum()) + model.event_shape.numel() * math.log(marginal_std)
    ahead = _forward_runs(stops[0], base, method, confidence) if type(method) is BAR else None
    if ahead is not None and max_evaluations is not None:
        max_evaluations = max(1, max_evaluations - ahead.evaluations)
    with warnings.catch_warnings():
        if ahead is not None:  # what the bridge notices is said below, together with what it is compared with
            warnings.filterwarnings("ignore", message="log Z: ")
        found = log_normalizer(
            stops[0],
            samples=draws if method.reverse else None,
            base=base,
            method=method,
            tolerance=tolerance,
            max_evaluations=max_evaluations,
            level=confidence,
            progress=progress,
        )
    if ahead is not None:
        found = larger_of(found, ahead)
        if found.warning:
            warnings.warn(f"log Z: {found.warning}", stacklevel=4)
    return found + jacobian


def _forward_runs(target: Potential, base: GaussianBase, method: Annealing, confidence: float) -> LogNormalizer:
    """Run sequential Monte Carlo through the levels several times, each on a path of its own; Z is their mean.

    Without noise levels to go through, in few dimensions, modes are searched for instead.
    """
    search = not method.waypoints and target.event_shape.numel() <= _SEARCHED
    particles = max(64, 8 * (method.particles // 16))
    forward = SMC(particles, method.temperatures, method.kernel, method.waypoints, refit=search)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="log Z: ")
        runs = [
            log_normalizer(target, base=None if search else base, method=forward, level=confidence)
            for _ in range(_FORWARD_RUNS)
        ]
    estimates = torch.tensor([run.estimate for run in runs], dtype=torch.float64)
    mean = float(torch.logsumexp(estimates, 0)) - math.log(len(runs))
    between = float(estimates.std()) / math.sqrt(len(runs))
    within = math.sqrt(sum(run.standard_error**2 for run in runs)) / len(runs)
    error = max(between, within)
    half = float(student.ppf(0.5 + 0.5 * confidence, len(runs) - 1)) * error
    return replace(
        max(runs, key=lambda run: run.estimate),
        estimate=mean,
        standard_error=error,
        lower=mean - half,
        upper=mean + half,
        evaluations=sum(run.evaluations for run in runs),
        method=f"{len(runs)} runs of {SMC.words} through the levels",
        warning=None,
    )


def larger_of(bridge: LogNormalizer, forward: LogNormalizer) -> LogNormalizer:
    """Compare a bridge from samples with forward runs; return the bridge, or where they differ the larger one.

    Forward runs estimate Z without bias, so they hardly ever say too much (Markov); a bridge from samples that leave
    out part of the mass says too little, and nothing in its own runs shows it.

    Args:
        bridge: by Bennett's acceptance ratio of runs from the base and from samples.
        forward: by runs from the base alone.

    Returns:
        The one believed, with ``forward`` and ``bridge`` set, the evaluations of both, and a warning if they differ by
        more than three of their standard errors.
    """
    gap = forward.estimate - bridge.estimate
    differ = abs(gap) > _APART * math.hypot(bridge.standard_error, forward.standard_error)
    said = [bridge.warning] if bridge.warning else []
    believed = bridge
    if differ and gap > 0:
        believed = forward
        said = [
            f"forward runs find {gap:.2f} nats more than the bridge from the model's own samples, which leave out part "
            "of the mass: the forward runs are believed, and log Z may be larger still"
        ]
    elif differ:
        said.append(
            f"forward runs find {-gap:.2f} nats less than the bridge from the samples, which is believed: the runs "
            "miss a mode, or the samples are not draws of this energy"
        )
    return replace(
        believed,
        evaluations=bridge.evaluations + forward.evaluations,
        warning="; ".join(said) or None,
        forward=forward.estimate,
        bridge=bridge.estimate,
        trace=bridge.trace,
    )

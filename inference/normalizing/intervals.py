"""Intervals for log Z from log weights: of a bridge and of runs in one direction, and what speaks against them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl.inference.normalizing.annealing import effective_size, log_mean_exp
from energyppl.inference.normalizing.bennett import bennett
from energyppl.inference.normalizing.methods import ISLANDS, Annealing
from energyppl.integration.pareto import pareto_k

__all__ = ["Interval", "bridge_interval", "island_means", "one_sided_interval"]

_UNSEEN = 0.05  # of the reverse runs that no forward run is like
_APART = 6.0  # standard errors between forward runs and the bridge; those come from 8 islands, so t with 7 degrees
_TAIL = 0.7  # of the Pareto shape: above, averages of weights are not to be trusted (Vehtari et al. 2024)
_EVEN = 0.8  # of the particles that weights are worth where the shape of their tail does not matter
_WORN = 0.02  # of the particles that weights must be worth


class Interval(NamedTuple):
    """An estimate of log Z with its interval, and what speaks against it."""

    estimate: float
    standard_error: float
    lower: float
    upper: float
    trouble: list[str]


def bridge_interval(forward: Tensor, reverse: Tensor, particles: int, confidence: float) -> Interval:
    """Return Bennett's estimate with its asymptotic interval, unless forward runs refute the samples."""
    from scipy.special import ndtri  # here, since importing energyppl should not wait for scipy

    estimate, error = bennett(forward, reverse)
    half = float(ndtri(0.5 + 0.5 * confidence)) * error
    alone, spread, _ = _by_islands(forward, particles)
    floor = alone + math.log(1.0 - confidence)  # P(Ẑ > Z / (1 − confidence)) < 1 − confidence, since E Ẑ = Z (Markov)
    if floor > estimate + half:
        words = (
            "runs from the base find far more mass than the samples know of: log Z is above the interval's lower "
            "end, by how much is unknown, and the samples are not draws of this energy"
        )
        return Interval(alone, math.inf, floor, math.inf, [words])
    said = _disagreement(forward, reverse, estimate, alone, spread)
    return Interval(estimate, error, estimate - half, estimate + half, said)


def one_sided_interval(weights: Tensor, method: Annealing, confidence: float, batches: int = 1) -> Interval:
    """Return the estimate of forward or of reverse runs alone, with Student's interval over their islands.

    If the first of several batches told how many to run, islands of all of them spread too little on average: few
    batches follow a first one that spreads little by chance. Stein's (1945) interval by the spread of the first alone
    is exact for Gaussian islands then, and the wider of the two is returned.

    Heavy-tailed weights mostly miss some of their mean, so the end of the interval on that side goes farther, by what
    a generalized Pareto distribution has beyond the largest weight, one draw in n: w_max / (1 − k).

    Args:
        weights: log weights of the batches, one batch after another, ``(n,)``.
        method: that they are of.
        confidence: that the interval is to cover log Z with.
        batches: how many they are, if the first one told.
    """
    alone, error, groups = _by_islands(weights, method.particles)
    half = _student(error, groups, confidence)
    if batches > 1:
        _, spread, groups = _by_islands(weights[: len(weights) // batches], method.particles)
        half = max(half, _student(spread, groups, confidence) / math.sqrt(batches))
    estimate = alone if method.forward else -alone
    tail, worth, trouble = pareto_k(weights), float(effective_size(weights)), []
    if tail > _TAIL and worth < _EVEN * len(weights):
        trouble.append(f"the weights' tail is too heavy to average (Pareto k = {tail:.2f})")
    if worth < _WORN * len(weights):
        trouble.append(f"the effective sample size of the weights is {worth:.0f} of {len(weights)}")
    if trouble:
        trouble.append("use more temperatures, or a base that is closer to the target and has wider tails")
    beyond = 0.0
    if tail <= _TAIL:  # heavier ones are not to be trusted, and said not to be
        beyond = math.log1p(float((weights.amax() - weights.logsumexp(0)).exp()) / (1.0 - max(tail, 0.0)))
    below, above = (half, half + beyond) if method.forward else (half + beyond, half)
    return Interval(estimate, error, estimate - below, estimate + above, trouble)


def _student(error: float, groups: int, confidence: float) -> float:
    """Return half the width of Student's interval for a standard error that so many groups tell."""
    from scipy.special import stdtrit  # here, since importing energyppl should not wait for scipy

    return float(stdtrit(groups - 1, 0.5 + 0.5 * confidence)) * error


def island_means(log_weights: Tensor, particles: int) -> Tensor:
    """Return log mean weights of groups of independent particles, ``(groups,)``."""
    size = max(1, min(particles, len(log_weights)) // ISLANDS)
    groups = max(2, len(log_weights) // size)
    return torch.stack([log_mean_exp(part) for part in log_weights.tensor_split(groups)])


def _by_islands(log_weights: Tensor, particles: int) -> tuple[float, float, int]:
    """Return the log mean weight, its standard error from groups of particles, and how many these are.

    The error is the larger one of the delta method's, from the spread of Z, and that from the spread of log Z: a few
    groups of heavy-tailed weights make either one too small.
    """
    parts, mean = island_means(log_weights, particles), float(log_mean_exp(log_weights))
    if not bool(torch.isfinite(parts).all()):
        return mean, math.inf, len(parts)
    spread = float(torch.maximum(parts.std(), torch.exp(parts - mean).std()))
    return mean, spread / math.sqrt(len(parts)), len(parts)


def _disagreement(forward: Tensor, reverse: Tensor, estimate: float, alone: float, error: float) -> list[str]:
    """Say whether runs from the base and runs from the samples tell of different targets.

    A forward log weight w is exp(w − log Z) times as rare as the same one of a reverse run (Crooks 1999).  So reverse
    runs whose forward twins are rarer than one in all of them come from places that no run from the base has found.
    """
    unseen = float((-reverse - estimate > math.log(len(forward))).double().mean())
    below, above = (island_means(w, len(w)) for w in (forward, reverse))
    crossing = float(below.mean() + above.mean())
    said = []
    if unseen > _UNSEEN:
        said.append(
            f"{unseen:.0%} of the samples lie where runs from the base never come: those runs miss a mode, and the "
            "estimate rests on the samples being spread over the modes as they should be"
        )
    if crossing > _APART * math.sqrt(float(below.var() + above.var()) / ISLANDS):
        said.append(f"the bounds cross by {crossing:.3f}: the samples are not draws of this energy")
    elif unseen <= _UNSEEN and abs(alone - estimate) > _APART * error:
        said.append(
            f"runs from the base alone say {alone:.3f}: the samples miss a mode, or are not draws of this energy"
        )
    return said

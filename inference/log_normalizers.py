"""log Z of any potential, with an interval that is meant to hold and a sentence where it may not."""

import math
import time
import warnings

import torch
from scipy.stats import norm
from scipy.stats import t as student
from torch import Tensor

from energyppl._checks import check_count, check_data
from energyppl.errors import InvalidInput
from energyppl.inference.annealing import GaussianBase, anneal, bennett, climb, effective_size, log_mean_exp
from energyppl.normalizer import LogNormalizer
from energyppl.potential import Potential, as_potential

__all__ = ["log_normalizer"]

_BATCHES = 8  # of a forward run's particles, for its standard error
_UNSEEN = 0.05  # of the reverse runs that no forward run is like
_APART = (
    6.0  # standard errors between forward runs and the bridge; those errors come from 8 batches, so t with 7 degrees
)


def log_normalizer(
    potential: Potential,
    *,
    samples: Tensor | None = None,
    base: GaussianBase | None = None,
    particles: int = 512,
    rungs: int | None = None,
    level: float = 0.95,
) -> LogNormalizer:
    """Estimate log ∫ exp(−U) by annealing from a Gaussian, in both directions if draws of the target are there.

    With ``samples`` the estimate is Bennett's acceptance ratio of forward and reverse runs, and its interval uses the
    asymptotic variance; a mode that runs from the base don't find shows as the two disagreeing.  Without them it is
    annealed importance sampling alone, with an interval by Student's t over 8 batches of particles: a mode that no
    particle visits can't be seen by anything in it, and tails heavier than the base's make it too narrow.

    Args:
        potential: the energy U.
        samples: independent draws of exp(−U) / Z, ``(n, *event)``: a toy's, a model's own, or data relaxed by chains;
            twice as many as particles, since half of them only fit the base if none is given.
        base: where the path begins; fitted to the samples, or N(0, I) if None.
        particles: in each direction.
        rungs: temperatures; as many as a pilot run finds necessary if None.
        level: that the interval is to cover log Z with.

    Raises:
        InvalidInput: for numbers out of range, shapes that don't fit, or a base that doesn't overlap the target.
        EnergyPPLError: if the path from base to target doesn't arrive.  A target that is not normalisable is noticed
            only if the path never ends or the weights degenerate.
    """
    as_potential("potential", potential)
    check_count("particles", particles, at_least=2 * _BATCHES)
    if not 0.0 < level < 1.0:
        raise InvalidInput(f"level must lie between 0 and 1; got {level}")
    if rungs is not None:
        check_count("rungs", rungs)
    began, shape = time.perf_counter(), potential.event_shape
    if samples is not None:
        check_data("samples", samples, shape, at_least=2 * _BATCHES)
    if base is None and samples is not None:
        # Runs must not begin at the very samples that the base was fitted to: in d dimensions that would bias log Z by
        # about d / (2 n).
        samples = samples[torch.randperm(len(samples), device=samples.device)]
        base, samples = GaussianBase.fitted(samples[: len(samples) // 2], shape), samples[len(samples) // 2 :]
    elif base is None:
        base = GaussianBase(torch.zeros(shape), torch.ones(shape))
    ladder, evaluations = climb(base, potential, base.sample(particles), rungs=rungs)
    ahead = anneal(base, potential, ladder, base.sample(particles))
    evaluations += ahead.evaluations
    forward, size = ahead.log_weights, len(ahead.log_weights)
    alone = log_mean_exp(forward)
    parts = torch.tensor([log_mean_exp(batch) for batch in forward.chunk(_BATCHES)], dtype=forward.dtype)
    error = float(parts.std()) / math.sqrt(_BATCHES)
    effective = effective_size(forward)
    if samples is None:
        half = float(student.ppf(0.5 + 0.5 * level, _BATCHES - 1)) * error
        trouble = None
        if effective < 0.05 * size:
            trouble = f"the weights are worth {effective:.0f} of {size} particles: use more rungs, or a closer base"
        found = LogNormalizer(
            alone,
            error,
            alone - half,
            alone + half,
            evaluations,
            "annealed importance sampling",
            level,
            float(forward.mean()),
            None,
            effective,
            time.perf_counter() - began,
            trouble,
        )
    else:
        index = torch.randperm(len(samples), device=samples.device)[:particles]
        back = anneal(base, potential, ladder, samples[index], reverse=True)
        evaluations += back.evaluations
        reverse = back.log_weights
        estimate, bridged = bennett(forward, reverse)
        half = float(norm.ppf(0.5 + 0.5 * level)) * bridged
        found = LogNormalizer(
            estimate,
            bridged,
            estimate - half,
            estimate + half,
            evaluations,
            "bridge of forward and reverse annealing",
            level,
            float(forward.mean()),
            -float(reverse.mean()),
            effective,
            time.perf_counter() - began,
            _disagreement(forward, reverse, estimate, alone, error),
        )
    if found.warning:
        warnings.warn(f"log Z: {found.warning}", stacklevel=2)
    return found


def _disagreement(forward: Tensor, reverse: Tensor, estimate: float, alone: float, error: float) -> str | None:
    """Whether runs from the base and runs from the samples tell of different targets.

    A forward log weight w is exp(w − log Z) times as rare as the same one of a reverse run (Crooks 1999).  So reverse
    runs whose forward twins are rarer than one in all of them come from places that no run from the base has found.
    """
    unseen = float((-reverse - estimate > math.log(len(forward))).double().mean())
    if unseen > _UNSEEN:
        return (
            f"{unseen:.0%} of the samples lie where runs from the base never come: those runs miss a mode, and the "
            "estimate rests on the samples being spread over the modes as they should be"
        )
    if abs(alone - estimate) > _APART * error:
        return f"runs from the base alone say {alone:.3f}: the samples miss a mode, or are not draws of this energy"
    return None

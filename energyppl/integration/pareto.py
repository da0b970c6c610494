"""Pareto's k, the shape of the tail of importance weights."""

import math

import torch
from torch import Tensor

from energyppl._checks import check_event, checked, shape_text
from energyppl.errors import InvalidInput

__all__ = ["pareto_k"]

_EQUAL = 1e-4  # relative spread of the largest weights below which they are the same but for rounding


@checked
def pareto_k(log_weights: Tensor) -> float:
    """Estimate the shape k of the generalized Pareto tail of weights, ``(n,)`` nats (Vehtari et al. 2024, algorithm 1).

    Weights have moments below 1/k.  ArviZ has the same (``psislw``); this one needs no ArviZ to be imported, and is
    tested against it.  It is NaN for fewer than 25 weights, for which no tail can be told, and −∞ for equal ones.

    Raises:
        InvalidInput: for weights of another shape.

    Example:
        >>> ep.integration.pareto_k(0.1 * torch.randn(1_000)) < 0.7  # a light tail
        True
    """
    check_event("log_weights", log_weights, ())
    if log_weights.dim() != 1:
        raise InvalidInput(f"log_weights must be (n,); got {shape_text(log_weights.shape)}: flatten them")
    finite = log_weights[torch.isfinite(log_weights)].double()
    tail = min(len(finite) // 5, math.ceil(3 * math.sqrt(len(finite))))
    if tail < 5:
        return math.nan
    ordered = finite.sort().values
    cut = float(ordered[-tail - 1])
    top = ordered[-tail:]
    excess = torch.exp(top - top[-1]) - math.exp(cut - float(top[-1]))
    if float(excess[-1]) <= _EQUAL:
        return -math.inf
    # Zhang & Stephens: a weighted average over θ in place of the maximum of the profile likelihood.
    count = 30 + int(math.sqrt(tail))
    places = torch.arange(1, count + 1, dtype=torch.float64, device=finite.device)
    grid = 1.0 - (count / (places - 0.5)).sqrt()
    theta = 1.0 / excess[-1] + grid / (3.0 * excess[int(tail / 4 + 0.5) - 1].clamp(min=1e-300))
    k = torch.log1p(-theta[:, None] * excess).mean(1)
    profile = tail * ((-theta / k).log() - k - 1.0)
    weights = torch.softmax(profile, 0)
    found = float(torch.log1p(-float((theta * weights).sum()) * excess).mean())
    return (found * tail + 5.0) / (tail + 10.0)  # a weak prior at one half, as PSIS has

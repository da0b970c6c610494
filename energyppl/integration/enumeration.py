"""Enumeration: the exact log Z of an energy over a few binary variables."""

import math
import time

import torch
from torch import Tensor

from energyppl.autodiff.devices import beside
from energyppl.autodiff.gradient import energy_only
from energyppl.errors import InvalidInput
from energyppl.integration.estimates import LogNormalizer
from energyppl.potentials.algebra import Potential, as_potential
from energyppl.potentials.points import dtype_of

__all__ = ["binary_states", "enumerated"]

_MAX_SITES = 24
_CHUNK = 2**15


def binary_states(sites: int, first: int, last: int) -> Tensor:
    """List states ``first`` to ``last − 1``, ``(last − first, sites)``: the digits of their numbers in base two."""
    number = torch.arange(first, last).unsqueeze(1)
    return ((number >> torch.arange(sites - 1, -1, -1)) & 1).to(torch.get_default_dtype())


def enumerated(potential: Potential) -> LogNormalizer:
    """Add up log Σ exp(−U(x)) over all vectors of zeros and ones, in nats, exact but for rounding.

    Args:
        potential: an energy over at most 24 binary variables, in any event shape.

    Raises:
        InvalidInput: for more of them, or an energy that is nowhere finite.

    Example:
        >>> coins = ep.Energy(lambda x: 0.0 * x.sum(-1), (3,))  # eight equally likely vectors
        >>> round(ep.integration.enumerated(coins).estimate, 4)  # log 8
        2.0794
    """
    began, shape = time.perf_counter(), as_potential("potential", potential).event_shape
    sites = math.prod(shape)
    if sites > _MAX_SITES:
        raise InvalidInput(
            f"at most {_MAX_SITES} binary variables can be enumerated; got {sites}: estimate log Z with log_normalizer"
        )
    dtype = dtype_of(potential) or torch.get_default_dtype()
    total, count = torch.tensor(-math.inf, dtype=torch.float64), 2**sites
    for first in range(0, count, _CHUNK):
        states = binary_states(sites, first, min(first + _CHUNK, count)).reshape(-1, *shape)
        energy = energy_only(potential, beside(potential, states).to(dtype)).double()
        total = torch.logaddexp(total, torch.logsumexp(-energy, 0))
    estimate = float(total)
    if not math.isfinite(estimate):
        raise InvalidInput(f"the energy must be finite somewhere and bounded from below; log Z is {estimate}")
    seconds = time.perf_counter() - began
    return LogNormalizer(
        estimate=estimate,
        standard_error=0.0,
        lower=estimate,
        upper=estimate,
        evaluations=count,
        method="enumeration of all states",
        seconds=seconds,
    )

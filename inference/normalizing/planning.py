"""Temperatures of runs, and plans from what a first batch says: how many more, and at how many temperatures."""

import math
from collections.abc import Sequence
from itertools import pairwise

from energyppl.errors import InvalidInput
from energyppl.integration.estimates import LogNormalizer

__all__ = ["batches_wanted", "check_temperatures", "finer_by"]

_UNEVEN, _FINEST = 2.0, 4.0  # variance of log weights above which more temperatures pay; as many times more at most
_PRECISE = 0.075  # nats, half the width of an interval that is narrow enough where nothing is asked
_SAFETY = 1.2  # factor of the width that the first batch says
_MOST = 12  # batches
_SHARE = 2.5  # evaluations of runs over those that it took to find their path, at most, if that is two batches


def check_temperatures(name: str, betas: Sequence[float]) -> None:
    """Require temperatures that rise from 0 to 1.

    Raises:
        InvalidInput: for others.
    """
    values = [float(beta) for beta in betas]
    rising = all(a < b for a, b in pairwise(values))
    if len(values) < 2 or values[0] != 0.0 or values[-1] != 1.0 or not rising:
        raise InvalidInput(f"{name} must rise from 0 to 1; got {values[:9]}")


def finer_by(first: LogNormalizer, batch: int, path: int) -> float:
    """Return how many times as many temperatures would bring the variance of log weights to about one (Neal 2001).

    After resampling only the weights of the particles that the runs began with show that variance.  Arguments are
    those of :func:`batches_wanted`.
    """
    assert first.trace is not None
    assert first.effective_samples is not None
    spread = math.log(len(first.trace.forward) / max(1.0, first.effective_samples))
    return max(1.0, min(spread, _FINEST, 0.5 * _SHARE * path / batch)) if spread > _UNEVEN else 1.0


def batches_wanted(first: LogNormalizer, batch: int, path: int) -> int:
    """Return how many batches make the interval narrow, told from the first one (Stein 1945).

    To look after each batch, and to stop at the first narrow interval, would favour errors that are too small.  Where
    a narrow one would cost far more than the search and the pilot runs did, a wider one has to do.

    Args:
        first: what the first batch says.
        batch: evaluations of a batch.
        path: evaluations that it took to find the path.
    """
    most = max(2, min(_MOST, round(_SHARE * path / batch)))
    wanted = (_SAFETY * 0.5 * (first.upper - first.lower) / _PRECISE) ** 2
    return math.ceil(min(max(1.0, wanted), most)) if math.isfinite(wanted) else most

"""What a first batch of runs says of those to follow: how many, and at how many temperatures."""

import math

from energyppl.integration.estimates import LogNormalizer

__all__ = ["batches_wanted", "finer_by"]

_UNEVEN, _FINEST = 1.5, 4.0  # variance of log weights above which more temperatures pay; as many times more at most
_PRECISE = 0.075  # nats, half the width of an interval that is narrow enough where nothing is asked
_SAFETY = 1.2  # factor of the width that the first batch says
_MOST = 6  # batches


def finer_by(first: LogNormalizer) -> float:
    """Return how many times as many temperatures would bring the variance of log weights to about one (Neal 2001).

    After resampling only the weights of the particles that the runs began with show that variance.
    """
    assert first.trace is not None
    assert first.effective_samples is not None
    spread = math.log(len(first.trace.forward) / max(1.0, first.effective_samples))
    return min(spread, _FINEST) if spread > _UNEVEN else 1.0


def batches_wanted(first: LogNormalizer) -> int:
    """Return how many batches make the interval narrow, told from the first one (Stein 1945).

    To look after each batch, and to stop at the first narrow interval, would favour errors that are too small.
    """
    wanted = (_SAFETY * 0.5 * (first.upper - first.lower) / _PRECISE) ** 2
    return math.ceil(min(max(1.0, wanted), _MOST)) if math.isfinite(wanted) else _MOST

"""Tests that ranks are uniform: simultaneous bands of their distribution function, and chi-square.

A rank of the truth among L draws is uniform on 0, …, L if truth and draws are exchangeable.  The count of ranks below
any threshold is then binomial, and the counts at increasing thresholds are a Markov chain, so that the probability that
all of them stay inside their bands is a sum that needs no simulation (Säilynoja, Bürkner & Vehtari 2022, algorithm 2).
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energyppl._checks import check_between, check_count, check_whole, shape_text
from energyppl.errors import InvalidInput

__all__ = ["EcdfBands", "chi_square_test", "ecdf_bands", "ecdf_test"]

_THRESHOLDS = 64  # at which the distribution function is looked at, at most
_EXPECTED = 5.0  # ranks of a bin of a chi-square test, at least
_BISECTIONS = 30

Array = NDArray[np.float64]


class EcdfBands(NamedTuple):
    """Simultaneous bands for the empirical distribution function of uniform ranks.

    Example:
        >>> bands = ep.evaluation.ecdf_bands(100, draws=63)
        >>> bands.confidence, bands.lower.shape == bands.thresholds.shape
        (0.95, True)
    """

    thresholds: Tensor  # (k,), in (0, 1): shares of the ranks that lie below
    lower: Tensor  # (k,)
    upper: Tensor  # (k,)
    confidence: float  # that the whole function lies inside if ranks are uniform, at least


def ecdf_test(ranks: Tensor, draws: int) -> float:
    """Return the p-value of the distribution function's largest deviation from uniform, each seen on its own scale.

    At each of up to 64 thresholds the count of ranks below has a binomial tail probability.  The smallest of them is
    the statistic, and its own distribution under uniform ranks is worked out exactly (Säilynoja et al. 2022), for ranks
    that are independent.  A p-value below a happens with probability a at most.

    Args:
        ranks: whole numbers from 0 to ``draws``, ``(n,)``.
        draws: L, among which the truth was ranked.

    Raises:
        InvalidInput: for ranks outside of 0 to ``draws``, or none.

    Example:
        >>> even = torch.arange(64)
        >>> ep.evaluation.ecdf_test(even, draws=63) > 0.5, ep.evaluation.ecdf_test(even // 2, draws=63) < 1e-6
        (True, True)
    """
    check_ranks(ranks, draws)
    below = _thresholds(draws)
    counts = (ranks.cpu().numpy()[:, None] < below).sum(0)
    shares = below / (draws + 1.0)
    tails = _two_sided(counts, len(ranks), shares)
    smallest = float(tails.min())
    if smallest >= 1.0:
        return 1.0
    return float(np.clip(1.0 - _stay_probability(len(ranks), shares, smallest * (1.0 + 1e-9)), 0.0, 1.0))


def ecdf_bands(count: int, draws: int, confidence: float = 0.95) -> EcdfBands:
    """Work out bands that contain the whole empirical distribution function of uniform ranks with a confidence.

    Args:
        count: how many ranks.
        draws: among which each truth is ranked.
        confidence: that all of the function is inside, at least.

    Raises:
        InvalidInput: for numbers out of range.

    Example:
        >>> bands = ep.evaluation.ecdf_bands(100, draws=63)
        >>> bool((bands.lower < bands.thresholds).all() and (bands.thresholds < bands.upper).all())
        True
    """
    check_count("count", count)
    check_count("draws", draws)
    check_between("confidence", confidence, 0.0, 1.0)
    shares = _thresholds(draws) / (draws + 1.0)
    low, high = (1.0 - confidence) / (2.0 * len(shares)), 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        inside = _stay_probability(count, shares, middle) >= confidence
        low, high = (middle, high) if inside else (low, middle)
    first, last = _limits(count, shares, low)
    lower, upper = torch.as_tensor(first / count), torch.as_tensor(last / count)
    return EcdfBands(torch.as_tensor(shares), lower, upper, confidence)


def chi_square_test(ranks: Tensor, draws: int, bins: int | None = None) -> float:
    """Return the p-value of a chi-square test of uniform ranks in bins of equal size (Talts et al. 2018).

    Args:
        ranks: whole numbers from 0 to ``draws``, ``(n,)``.
        draws: L, among which the truth was ranked.
        bins: a divisor of ``draws + 1``; the largest of at most 20 that leaves five ranks to a bin if None.

    Raises:
        InvalidInput: for ranks outside of 0 to ``draws``, or if no bins divide ``draws + 1``.

    Example:
        >>> ep.evaluation.chi_square_test(torch.arange(64), draws=63) > 0.99
        True
    """
    from scipy.stats import chisquare  # takes half a second to import

    check_ranks(ranks, draws)
    if bins is None:
        most = max(2.0, min(20.0, len(ranks) / _EXPECTED))
        fitting = [b for b in range(2, int(most) + 1) if (draws + 1) % b == 0]
        if not fitting:
            raise InvalidInput(
                f"no number of bins up to {int(most)} divides the {draws + 1} possible ranks: take 63 draws"
            )
        bins = max(fitting)
    check_count("bins", bins, at_least=2)
    if (draws + 1) % bins:
        raise InvalidInput(f"bins must divide the {draws + 1} possible ranks; got {bins}: take 63 draws and 16 bins")
    counts = np.bincount(ranks.cpu().numpy() * bins // (draws + 1), minlength=bins)
    return float(chisquare(counts).pvalue)


def check_ranks(ranks: Tensor, draws: int) -> None:
    """Require whole numbers from 0 to ``draws``, ``(n,)``.

    Raises:
        InvalidInput: for others.
    """
    check_count("draws", draws)
    check_whole("ranks", ranks)
    if ranks.dim() != 1 or not len(ranks):
        raise InvalidInput(f"ranks must have shape (n,), one of each replicate; got {shape_text(ranks.shape)}")
    if int(ranks.min()) < 0 or int(ranks.max()) > draws:
        raise InvalidInput(
            f"ranks must lie between 0 and {draws}, the number of draws; got {int(ranks.min())} to {int(ranks.max())}"
        )


def _thresholds(draws: int) -> NDArray[np.int64]:
    """Choose ranks, of 1 to ``draws``, below which ranks are counted: all of them, or 64 evenly spread."""
    return np.unique(np.linspace(1, draws, min(draws, _THRESHOLDS)).round().astype(np.int64))


def _two_sided(counts: NDArray[np.int64], n: int, shares: Array) -> Array:
    """Return twice the smaller tail probability of each binomial count."""
    from scipy.stats import binom  # takes half a second to import

    tail = np.minimum(binom.cdf(counts, n, shares), binom.sf(counts - 1, n, shares))
    doubled: Array = np.minimum(1.0, 2.0 * tail)
    return doubled


def _limits(n: int, shares: Array, gamma: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the smallest and largest count at each threshold whose two-sided tail is above ``gamma``.

    Where none is, as with few ranks, both are the count of the largest tail.
    """
    grid = np.arange(n + 1)
    tails = _two_sided(grid[None], n, shares[:, None])
    inside = (tails > gamma) | (tails == tails.max(1, keepdims=True))
    return inside.argmax(1), n - inside[:, ::-1].argmax(1)


def _stay_probability(n: int, shares: Array, gamma: float) -> float:
    """Return the probability that uniform ranks' counts have tails above ``gamma`` at all thresholds.

    The count at one threshold given that at the one before is that plus a binomial of the rest.
    """
    from scipy.stats import binom  # takes half a second to import

    grid = np.arange(n + 1)
    states, probability, share = np.zeros(1, dtype=np.int64), np.ones(1), 0.0
    for threshold in shares:
        inside = grid[_two_sided(grid, n, np.float64(threshold)) > gamma]
        if not len(inside):
            return 0.0
        step = (threshold - share) / (1.0 - share)
        gained = inside[None] - states[:, None]
        probability = probability @ binom.pmf(gained, n - states[:, None], step)
        states, share = inside, float(threshold)
    return float(probability.sum())

"""Two-sample tests: the energy distance with a permutation p-value."""

from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_count, check_data, checked, shape_text
from energyppl.errors import InvalidInput

__all__ = ["TwoSampleTest", "energy_distance_test"]

_ENTRIES = 2**24  # largest number of values in one block of permutations


class TwoSampleTest(NamedTuple):
    """The statistic and the p-value of a two-sample test.

    Example:
        >>> x, y = torch.linspace(0, 1, 50)[:, None], torch.linspace(0.5, 1.5, 50)[:, None]
        >>> found = ep.metrics.energy_distance_test(x, y)
        >>> found.statistic > 0.1, found.p_value < 0.05
        (True, True)
    """

    statistic: float  # the squared energy distance, in units of the data; 0 for equal samples
    p_value: float  # share of relabellings at least as far apart, in [1 / (permutations + 1), 1]


@checked
def energy_distance_test(
    x: Tensor, y: Tensor, permutations: int = 500, generator: torch.Generator | None = None
) -> TwoSampleTest:
    """Test whether ``x`` and ``y`` were drawn from one distribution (Székely & Rizzo 2004).

    The statistic is ``2 E|X − Y| − E|X − X'| − E|Y − Y'|``, zero only for equal distributions.  Its p-value comes from
    random relabellings of the pooled rows, as for the kernel tests of Gretton et al. 2012, and is valid for any sample
    size: under equality it is at most a with probability a.  The rows of each sample must be independent.

    >>> x, y = torch.linspace(0, 1, 50)[:, None], torch.linspace(0.5, 1.5, 50)[:, None]
    >>> ep.metrics.energy_distance_test(x, y, generator=torch.Generator().manual_seed(0)).p_value < 0.01
    True
    >>> abs(ep.metrics.energy_distance_test(x, x).statistic) < 1e-12
    True

    Args:
        x: rows ``(n, *event)``.
        y: rows ``(m, *event)``, in the same coordinates; scale them first if their units differ.
        permutations: relabellings; more of them resolve smaller p-values.
        generator: source of the relabellings, on the CPU; torch's global one if None.

    Returns:
        The statistic and the p-value.  Memory and time grow with ``(n + m)²``.

    Raises:
        InvalidInput: for fewer than two rows, non-finite rows, or different event shapes.
    """
    if x.shape[1:] != y.shape[1:]:
        raise InvalidInput(
            f"x and y must hold points of one shape; got {shape_text(x.shape[1:])} and {shape_text(y.shape[1:])}"
        )
    check_data("x", x, x.shape[1:], at_least=2)
    check_data("y", y, y.shape[1:], at_least=2)
    check_count("permutations", permutations)
    pooled = torch.cat([rows.detach().reshape(len(rows), -1).to(x.device) for rows in (x, y)]).double()
    distance = torch.cdist(pooled, pooled, compute_mode="donot_use_mm_for_euclid_dist")
    # With weights 1/n on x and −1/m on y, the statistic is −wᵀ D w.
    weights = torch.cat([pooled.new_full((len(x),), 1.0 / len(x)), pooled.new_full((len(y),), -1.0 / len(y))])
    statistic = float(-weights @ distance @ weights)
    farther, left = 0, permutations
    while left:
        count = min(left, max(1, _ENTRIES // len(weights)))
        order = torch.rand(count, len(weights), generator=generator).argsort(1).to(weights.device)
        relabelled = weights[order]
        values = -((relabelled @ distance) * relabelled).sum(1)
        farther += int((values >= statistic * (1.0 - 1e-9)).sum())
        left -= count
    return TwoSampleTest(statistic, (1 + farther) / (1 + permutations))

"""Coverage of intervals: how often the truth lies inside, beside how often it should."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from energyppl._checks import check_between, check_finite, check_whole, checked, shape_text
from energyppl.errors import InvalidInput
from energyppl.inference.evaluation.uniformity import check_ranks

__all__ = ["Coverage", "coverage", "rank_coverage"]

_NOMINAL = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True, eq=False, repr=False)
class Coverage:
    """Observed coverage of central intervals beside the nominal one, with exact binomial intervals.

    The nominal coverage is that of the ranks which an interval holds, so it is exact for any number of draws: of 99
    draws the ranks 5 to 94 make 90 of 100.

    Example:
        >>> truth = torch.linspace(0.005, 0.995, 100)
        >>> found = ep.evaluation.coverage(truth, torch.linspace(0.01, 0.99, 99).expand(100, 99), nominal=(0.5, 0.9))
        >>> found.observed, found.problems()
        (tensor([0.5000, 0.9000]), [])
    """

    nominal: Tensor  # (k,), in (0, 1)
    observed: Tensor  # (k,) or (k, groups): shares of the truths inside
    lower: Tensor  # likewise, of the Clopper–Pearson interval
    upper: Tensor
    p_values: Tensor  # likewise, two-sided binomial tests of the nominal coverage
    counts: Tensor  # () or (groups,): truths
    confidence: float  # of each interval

    def __repr__(self) -> str:
        lines = [f"Coverage of {int(self.counts.sum())} truths, {self.confidence:.0%} intervals"]
        for k, nominal in enumerate(self.nominal.tolist()):
            cells = zip(
                *(part[k].reshape(-1).tolist() for part in (self.observed, self.lower, self.upper)), strict=True
            )
            shown = ", ".join(f"{observed:.1%} ({low:.1%} to {high:.1%})" for observed, low, high in cells)
            lines.append(f"  {nominal:.1%} intervals hold {shown}")
        return "\n".join(lines)

    def problems(self, false_alarm: float = 0.01) -> list[str]:
        """Say which intervals hold too many or too few truths, in words.

        Args:
            false_alarm: probability of saying anything where all is well, at most: it is shared among all intervals.

        Raises:
            InvalidInput: for a probability outside of (0, 1).
        """
        check_between("false_alarm", false_alarm, 0.0, 1.0)
        said = []
        for place in (self.p_values < false_alarm / self.p_values.numel()).nonzero().tolist():
            k, group = place[0], f" in group {place[1]}" if len(place) > 1 else ""
            observed, nominal = float(self.observed[tuple(place)]), float(self.nominal[k])
            kind = "few: they are too narrow, or off" if observed < nominal else "many: they are too wide"
            said.append(f"{nominal:.1%} intervals hold {observed:.1%} of the truths{group}, too {kind}")
        return said


@checked
def coverage(
    truth: Tensor,
    draws: Tensor,
    *,
    nominal: Sequence[float] = _NOMINAL,
    groups: Tensor | None = None,
    confidence: float = 0.95,
) -> Coverage:
    """Count how many truths lie in the central intervals of their own draws.

    Of a conditional density: ``truth`` are held-out values and ``draws`` those of p(y | x) at each one's context.  Of a
    posterior: parameters that data were simulated from, and draws given these data.

    Args:
        truth: ``(n,)``, independent of each other.
        draws: ``(n, L)``, L of each truth's own distribution, independent or thinned until they nearly are.
        nominal: coverages asked about, each rounded to one that L draws can have.
        groups: whole numbers from 0, ``(n,)``: coverage is told for each, such as for regions of the contexts.
        confidence: of the intervals of observed coverages.

    Raises:
        InvalidInput: for shapes that don't fit, values that are not finite, or numbers outside of (0, 1).

    Example:
        >>> truth = torch.linspace(0.005, 0.995, 100)
        >>> found = ep.evaluation.coverage(truth, torch.linspace(0.01, 0.99, 99).expand(100, 99), nominal=(0.5, 0.9))
        >>> found.nominal, found.observed
        (tensor([0.5000, 0.9000]), tensor([0.5000, 0.9000]))
    """
    check_finite("truth", truth)
    check_finite("draws", draws)
    if truth.dim() != 1 or not len(truth) or draws.dim() != 2 or len(draws) != len(truth) or not draws.shape[1]:
        raise InvalidInput(
            f"truth must be (n,) and draws (n, L), L draws for each truth; got {shape_text(truth.shape)} and "
            f"{shape_text(draws.shape)}: flatten chains and draws into one dimension"
        )
    return rank_coverage(ranked(truth, draws), draws.shape[1], nominal=nominal, groups=groups, confidence=confidence)


@checked
def rank_coverage(
    ranks: Tensor,
    draws: int,
    *,
    nominal: Sequence[float] = _NOMINAL,
    groups: Tensor | None = None,
    confidence: float = 0.95,
) -> Coverage:
    """Do as :func:`coverage` from ranks of the truth among draws, ``(n,)`` from 0 to ``draws``.

    Example:
        >>> found = ep.evaluation.rank_coverage(torch.arange(100), draws=99, nominal=(0.5, 0.9))
        >>> found.nominal, found.observed
        (tensor([0.5000, 0.9000]), tensor([0.5000, 0.9000]))
    """
    check_ranks(ranks, draws)
    check_between("confidence", confidence, 0.0, 1.0)
    outside = []
    for level in nominal:
        check_between("nominal", level, 0.0, 1.0)
        outside.append(min(round(0.5 * (1.0 - level) * (draws + 1)), draws // 2))  # ranks left out on each side
    if not outside:
        raise InvalidInput("nominal must name at least one coverage; got none: pass (0.9,)")
    labels = torch.zeros_like(ranks) if groups is None else groups
    check_whole("groups", labels)
    if labels.shape != ranks.shape or int(labels.min()) < 0:
        raise InvalidInput(
            f"groups must be whole numbers from 0, one for each of the {len(ranks)} truths; got a tensor of shape "
            f"{shape_text(labels.shape)}"
        )
    counts = torch.bincount(labels)
    inside = torch.stack([(ranks >= m) & (ranks <= draws - m) for m in outside])  # (k, n)
    held = torch.stack([torch.bincount(labels[row], minlength=len(counts)) for row in inside])
    attained = torch.tensor([1.0 - 2.0 * m / (draws + 1.0) for m in outside])
    lower, upper = _clopper_pearson(held, counts, confidence)
    tests = torch.tensor(
        [
            [_binomial_test(*cell, p) for cell in zip(row, counts.tolist(), strict=True)]
            for row, p in zip(held.tolist(), attained.tolist(), strict=True)
        ]
    )
    parts = (held / counts, lower, upper, tests)
    if groups is None:
        parts, counts = tuple(part[:, 0] for part in parts), counts[0]  # type: ignore[assignment]
    return Coverage(attained, *parts, counts=counts, confidence=confidence)


def ranked(truth: Tensor, draws: Tensor) -> Tensor:
    """Rank each truth, ``(n, *shape)``, among its draws, ``(n, L, *shape)``; ties are broken at random."""
    value = truth.unsqueeze(1)
    below, ties = (draws < value).sum(1), (draws == value).sum(1)
    return below + (torch.rand(below.shape, device=below.device) * (ties + 1)).long()


def _binomial_test(held: int, count: int, share: float) -> float:
    from scipy.stats import binomtest  # takes half a second to import

    return 1.0 if count == 0 or share == 1.0 else float(binomtest(held, count, share).pvalue)


def _clopper_pearson(held: Tensor, counts: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    from scipy.stats import beta  # takes half a second to import

    k, n, tail = held.cpu().double().numpy(), counts.cpu().double().numpy(), 0.5 * (1.0 - confidence)
    with np.errstate(invalid="ignore"):
        lower = np.where(k == 0, 0.0, beta.ppf(tail, k, n - k + 1))
        upper = np.where(k == n, 1.0, beta.ppf(1.0 - tail, k + 1, n - k))
    return torch.as_tensor(lower).float(), torch.as_tensor(upper).float()

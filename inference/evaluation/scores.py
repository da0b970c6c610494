"""Out-of-distribution detection: how strange rows look to an energy, and how well a score tells outliers from inliers.

Every score is higher for stranger rows, in nats or in the gradient's units, and needs no log Z: a constant changes no
order.  No score is best everywhere.  An energy alone ranks an outlier as ordinary if it lies where the density is high
but hardly any of the mass is (Nalisnick et al. 2019); typicality, the gradient and a ratio are the known remedies.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeGuard

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.distributions import Distribution

from energyppl._checks import check_count, check_data, shape_text
from energyppl.autodiff.gradient import energy_only, gradient_only
from energyppl.autodiff.structure import beside
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput
from energyppl.integration.estimates import Estimate
from energyppl.potentials.algebra import AtLevel, Potential, as_potential
from energyppl.potentials.bases import DistributionBase

__all__ = [
    "Bootstrapped",
    "DetectionReport",
    "ScoredModel",
    "auroc",
    "detection_report",
    "energy_scores",
    "fpr_at_95",
    "gradient_scores",
    "joint_scores",
    "ratio_scores",
    "typicality_scores",
]

_ENTRIES = 2**22  # largest number of counts in one block of resamples


class ScoredModel(Protocol):
    """A model with coordinates of its own; those of ``energyppl.models`` are."""

    event_shape: torch.Size
    loc: Tensor  # whose dtype and device points take

    def standardized(self, data: Tensor) -> Tensor:
        """Data in the coordinates of the energies."""
        ...

    def potential(self, level: int) -> Potential:
        """The energy of a level, in those coordinates."""
        ...


Scored = ScoredModel | Potential | Distribution
"""What gives scores: a model; a potential, which takes rows as they are; or a distribution, as −log p."""


class Bootstrapped(NamedTuple):
    """A number and what resampling says of it."""

    value: float
    lower: float
    upper: float
    standard_error: float


class DetectionReport(NamedTuple):
    """How well scores tell two samples apart."""

    auroc: Bootstrapped
    fpr_at_95: Bootstrapped
    inliers: int
    outliers: int
    level: float  # of the intervals

    def __str__(self) -> str:
        parts = [
            f"{name} {found.value:.4f} ({self.level:.0%}: {found.lower:.4f} to {found.upper:.4f})"
            for name, found in (("AUROC", self.auroc), ("FPR at 95 %", self.fpr_at_95))
        ]
        return f"{', '.join(parts)}; {self.inliers:,} inliers, {self.outliers:,} outliers"


# --- Scores ----------------------------------------------------------------------------------------------------------


def energy_scores(model: Scored, x: Tensor, *, level: int = 0, batch: int = 1000) -> Tensor:
    """The energy of each row, −log p up to a constant, in nats.

    Args:
        model: a model, a potential, or a distribution.
        x: rows in data coordinates, ``(n, *event)``.
        level: of a model of noise levels; the rows are taken as they are and no noise is added.
        batch: rows at a time; memory grows with it.

    Returns:
        Scores ``(n,)``, float64, where ``x`` is.  Non-finite energies are handed on as they are.

    Raises:
        InvalidInput: for rows of another shape or that are not finite, or a level that the model has not.
    """
    return _energies("x", x, model, level, batch)


def joint_scores(model: ScoredModel, x: Tensor, *, batch: int = 1000) -> Tensor:
    """The free energy over all levels, ``−log Σ_t exp(−U(x, t))``, in nats (DA-EBM, Zhang, Tan & Ou 2023).

    It is −log p(x) up to a constant under a joint density of points and levels, as a ``JointEBM`` has: one normaliser
    for all levels.  In a ``RecoveryEBM`` each level has its own log Z, and the sum weighs levels by what these happen
    to be.

    Args:
        model: of two levels or more.
        x: rows in data coordinates, ``(n, *event)``; each is taken as it is at every level.
        batch: rows at a time.

    Returns:
        Scores ``(n,)``, float64, where ``x`` is.

    Raises:
        InvalidInput: for a model of one level, and as :func:`energy_scores`.
    """
    levels = getattr(model, "levels", 1) if _has_coordinates(model) else 1
    if levels < 2:
        raise InvalidInput(
            f"a joint score needs a model of at least two noise levels; got {type(model).__name__} with one: "
            "energy_scores has the energy of one level"
        )
    energies = torch.stack([_energies("x", x, model, level, batch) for level in range(levels)])
    return -torch.logsumexp(-energies, 0)


def gradient_scores(model: Scored, x: Tensor, *, level: int = 0, batch: int = 1000) -> Tensor:
    """The norm of the energy's gradient at each row, ``|∂U/∂x|₂`` (Grathwohl et al. 2020, section 5.3).

    Around a mode or a flat region that holds mass the density hardly changes; beside a narrow peak it does.  The
    gradient is taken in the model's standardised coordinates, so that the data's units don't count.

    Args:
        model: a model, a potential, or a distribution.
        x: rows in data coordinates, ``(n, *event)``.
        level: of a model of noise levels.
        batch: rows at a time.

    Returns:
        Scores ``(n,)``, float64, where ``x`` is, in nats per unit of the coordinates.

    Raises:
        InvalidInput: as :func:`energy_scores`.
    """
    grads = [gradient_only(potential, points) for potential, points in _pieces("x", x, model, level, batch)]
    return torch.cat([grad.double().reshape(len(grad), -1).norm(dim=1).to(x.device) for grad in grads])


def typicality_scores(model: Scored, x: Tensor, training: Tensor, *, level: int = 0, batch: int = 1000) -> Tensor:
    """How far a row's energy is from the training data's mean energy, ``|U(x) − mean U|``, in nats.

    The typicality test of single rows (Nalisnick et al. 2019, batches of M = 1), its entropy estimated by the mean over
    training rows; log Z cancels.  A row may be too likely as well as too unlikely.

    Args:
        model: a model, a potential, or a distribution.
        x: rows in data coordinates, ``(n, *event)``.
        training: rows that the model was trained on, or others of the same source, ``(m, *event)``; some thousands will
            do, since only their mean energy counts.
        level: of a model of noise levels.
        batch: rows at a time.

    Returns:
        Scores ``(n,)``, float64, where ``x`` is.

    Raises:
        InvalidInput: for training rows that are missing or whose energies are not finite, and as :func:`energy_scores`.
    """
    known = _energies("training", training, model, level, batch)
    bad = ~torch.isfinite(known)
    if bool(bad.any()):
        raise InvalidInput(
            f"training rows must have finite energies; got {int(bad.sum())} of {len(known)} that have not, first in "
            f"row {int(bad.nonzero()[0])}: drop those rows, or train the model further"
        )
    return (_energies("x", x, model, level, batch) - known.mean().to(x.device)).abs()


def ratio_scores(model: Scored, x: Tensor, base: Scored, *, level: int = 0, batch: int = 1000) -> Tensor:
    """The log likelihood ratio of a base to the model up to a constant, ``U(x) − U_base(x)``, in nats.

    What both find strange cancels: the base stands for what rows of any kind share, such as backgrounds (Ren et al.
    2019, the LLR) or plain complexity (Serrà et al. 2020, the score S).

    Args:
        model: a model, a potential, or a distribution.
        x: rows in data coordinates, ``(n, *event)``.
        base: a base fitted to data (``energyppl.potentials.bases``), a distribution, another model at its level 0, or
            an :class:`~energyppl.Energy` of any function, such as the bits that a compressor needs times log 2.
        level: of a model of noise levels.
        batch: rows at a time.

    Returns:
        Scores ``(n,)``, float64, where ``x`` is.

    Raises:
        InvalidInput: as :func:`energy_scores`, for the model or the base.
    """
    return _energies("x", x, model, level, batch) - _energies("x", x, base, 0, batch)


def _energies(name: str, x: Tensor, model: Scored, level: int, batch: int) -> Tensor:
    """Energies of rows, ``(n,)``, float64, on the rows' device."""
    pieces = _pieces(name, x, model, level, batch)
    return torch.cat([energy_only(potential, points).double().to(x.device) for potential, points in pieces])


def _pieces(name: str, x: Tensor, model: Scored, level: int, batch: int) -> Iterator[tuple[Potential, Tensor]]:
    """The energy of a level and the points that it takes, for one micro-batch of rows after the other."""
    check_count("batch", batch)
    potential = _potential(model, level)
    check_data(name, x, potential.event_shape)
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        points = x[rows].detach()
        points = model.standardized(points.to(model.loc)) if _has_coordinates(model) else beside(model, points)
        own = potential
        if isinstance(own, AtLevel) and own.label is not None and own.label.dim():  # each row has a class of its own
            own = replace(own, label=own.label[rows])
        yield own, points


def _potential(model: Scored, level: int) -> Potential:
    if _has_coordinates(model):
        return model.potential(level)
    if level != 0:
        raise InvalidInput(
            f"level must be 0 for {type(model).__name__}, which has no noise levels; got {level}: pass a model"
        )
    if isinstance(model, EnergyDistribution):
        model = model.unnormalized()  # its log Z may cost much, and changes no order
    return DistributionBase(model) if isinstance(model, Distribution) else as_potential("model", model)


def _has_coordinates(model: object) -> TypeGuard[ScoredModel]:
    # Not isinstance: from Python 3.12 on a protocol's does not see a module's buffers, such as loc.
    return all(hasattr(model, name) for name in ("potential", "standardized", "loc"))


# --- How well scores tell ------------------------------------------------------------------------------------------


def auroc(inliers: Tensor, outliers: Tensor) -> Estimate:
    """Probability that an outlier's score is above an inlier's, ties counted half, with DeLong's error (1988).

    Args:
        inliers: scores of data like the training data, ``(n,)``, higher for stranger ones: −log p, where log Z cancels.
        outliers: scores of others, ``(m,)``.

    Raises:
        InvalidInput: for fewer than two scores on a side, or scores that are not finite or not ``(n,)``.
    """
    a, b = (side.numpy() for side in _sides(inliers, outliers))
    ranks = rankdata(np.concatenate([a, b]))
    above = (ranks[len(a) :] - rankdata(b)) / len(a)  # share of inliers below each outlier
    below = 1.0 - (ranks[: len(a)] - rankdata(a)) / len(b)  # share of outliers above each inlier
    return Estimate(float(above.mean()), math.sqrt(above.var(ddof=1) / len(b) + below.var(ddof=1) / len(a)))


def fpr_at_95(inliers: Tensor, outliers: Tensor) -> float:
    """Share of inliers that are flagged by the threshold that flags 95 % of the outliers.

    Outliers are the positive class (Hendrycks, Mazeika & Dietterich 2019, section 4.1): the threshold is the highest
    score that at least 95 % of the outliers reach, and every row that reaches it is flagged, ties included, since no
    threshold can split them.  Liang et al. (2018) count inliers as positive, and ask for the share of outliers accepted
    where 95 % of the inliers are: that is ``fpr_at_95(-outliers, -inliers)``.

    Args:
        inliers: scores, ``(n,)``, higher for stranger ones.
        outliers: scores, ``(m,)``; below some hundred of them the threshold hangs on a few.

    Raises:
        InvalidInput: as :func:`auroc`.
    """
    sides = _sides(inliers, outliers)
    counts = [side.bincount(minlength=size)[None].double() for side, size in _places(*sides)]
    return float(_curve_numbers(*counts)[1])


def detection_report(inliers: Tensor, outliers: Tensor, *, repeats: int = 1000, level: float = 0.95) -> DetectionReport:
    """AUROC and false-positive rate at 95 % with bootstrap percentile intervals (Efron 1979), both sides resampled.

    Random numbers come from torch's global generator.  Rows are taken to be independent.  Intervals at 95 % cover 93 %
    to 96 % from 50 scores a side on, but less near perfection (88 % of AUROC .998 with 200 a side): a resample shows
    only what the scores show, and where they are all told apart the interval has no width.

    Args:
        inliers: scores, ``(n,)``, higher for stranger ones.
        outliers: scores, ``(m,)``.
        repeats: resamples; time grows with ``repeats (n + m)``.
        level: of the intervals.

    Raises:
        InvalidInput: for a level outside of (0, 1), too few repeats to have some beyond each end of an interval, and as
            :func:`auroc`.
    """
    if not 0.0 < level < 1.0:
        raise InvalidInput(f"level must lie inside (0, 1); got {level}: 0.95 is usual")
    check_count("repeats", repeats, at_least=math.ceil(2.0 / (1.0 - level) - 1e-9))
    sides = _sides(inliers, outliers)
    places = _places(*sides)
    found, left = [], repeats
    while left:
        count = min(left, max(1, _ENTRIES // places[0][1]))
        found.append(torch.stack(_curve_numbers(*(_resampled(side, size, count) for side, size in places))))
        left -= count
    areas, rates = torch.cat(found, 1)
    return DetectionReport(
        _interval(float(auroc(inliers, outliers)), areas, level),
        _interval(fpr_at_95(inliers, outliers), rates, level),
        len(sides[0]),
        len(sides[1]),
        level,
    )


def _sides(inliers: Tensor, outliers: Tensor) -> tuple[Tensor, Tensor]:
    return _checked("inliers", inliers), _checked("outliers", outliers)


def _checked(name: str, scores: Tensor) -> Tensor:
    """Scores in float64 on the CPU."""
    if not isinstance(scores, Tensor):
        raise InvalidInput(f"{name} must be a torch tensor; got {type(scores).__name__}: wrap it in torch.as_tensor")
    if scores.dim() != 1 or scores.dtype.is_complex:
        raise InvalidInput(
            f"{name} must be real scores of shape (n,); got {scores.dtype} of shape {shape_text(scores.shape)}: pass "
            "one number for each row"
        )
    if len(scores) < 2:
        raise InvalidInput(
            f"{name} must be at least two scores; got {len(scores)}: a detector needs both kinds of rows"
        )
    bad = ~torch.isfinite(scores)
    if bool(bad.any()):
        raise InvalidInput(
            f"{name} must be finite; got NaN or infinity in {int(bad.sum())} of {len(scores)}, first in row "
            f"{int(bad.nonzero()[0])}: drop NaN, and clamp infinity to a number above all others"
        )
    return scores.detach().cpu().double()


def _places(inliers: Tensor, outliers: Tensor) -> list[tuple[Tensor, int]]:
    """For each side the places of its scores among all distinct ones, in order, and how many those are."""
    values, place = torch.cat([inliers, outliers]).unique(return_inverse=True)
    return [(side, len(values)) for side in place.split([len(inliers), len(outliers)])]


def _resampled(side: Tensor, size: int, count: int) -> Tensor:
    """How often each distinct score is drawn in resamples of one side, ``(count, size)``."""
    drawn = side[torch.randint(len(side), (count, len(side)))]
    counts = torch.zeros(count, size, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape))


def _curve_numbers(inliers: Tensor, outliers: Tensor) -> tuple[Tensor, Tensor]:
    """AUROC and false-positive rate, ``(r,)`` each, of counts ``(r, distinct)`` at the distinct scores in order."""
    n, m = (round(float(counts[0].sum())) for counts in (inliers, outliers))
    below = inliers.cumsum(1) - 0.5 * inliers
    area = (outliers * below).sum(1) / (n * m)
    reached = [counts.flip(1).cumsum(1).flip(1) for counts in (inliers, outliers)]  # at each score or above
    enough = -(-19 * m // 20)  # 95 % of m, rounded up, without 0.95's rounding error
    threshold = (reached[1] >= enough).sum(1, keepdim=True) - 1
    return area, reached[0].gather(1, threshold)[:, 0] / n


def _interval(value: float, draws: Tensor, level: float) -> Bootstrapped:
    ends = torch.quantile(draws, torch.tensor([0.5 - 0.5 * level, 0.5 + 0.5 * level], dtype=draws.dtype))
    return Bootstrapped(value, float(ends[0]), float(ends[1]), float(draws.std()))

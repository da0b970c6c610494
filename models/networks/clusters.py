"""Clusters of rows that lie far apart, whose relative masses training sees worst."""

import math

import torch
from torch import Tensor

from energyppl._seeds import seeded
from energyppl.potentials.mixture_fit import fit_mixture, log_joint

__all__ = ["find_clusters"]

_APART = 4.0  # widths between two means: a plane in the middle has 2.3 % of each half beyond it
_NOISE = 0.25  # variance of the noise that clusters must be told apart under
_ROWS_EACH = 12  # rows that a cluster has at least, plus one for each dimension
_AT_ONCE = 8192  # rows


def find_clusters(rows: Tensor, most: int) -> Tensor:
    """Tell which cluster each of some rows belongs to, ``(n,)``, 0 and on; all to the first if there are no two.

    The rows are clustered by a mixture of Gaussians, and its components joined whose means are less than 4 widths
    apart, in their mean covariance with noise of half a standard deviation, or that a chain of such ones joins.  Narrow
    components that lie closer are left to training: with Gaussians of their own a table of nine columns became worse by
    .1 to .3 nats.  Widths don't count besides, since in many columns tails would be apart from what they are tails of.

    Args:
        rows: standardized, ``(n, d)``.
        most: clusters; those of fewest rows join their nearest.
    """
    first = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    size = rows.shape[1]
    if most < 2 or len(rows) < 2 * (_ROWS_EACH + size):
        return first
    with seeded(0):  # a model's own random numbers go on as they were
        means, factors, weights, _ = fit_mixture(rows, defensive=False, most=most)
    joined = _joined(means, factors)
    nearest = [log_joint(part, means, factors, weights).argmax(1) for part in rows.split(_AT_ONCE)]
    place: Tensor = joined[torch.cat(nearest)]
    while True:
        labels, place, counts = place.unique(return_inverse=True, return_counts=True)
        fewest = int(counts.argmin())
        if len(labels) == 1 or (len(labels) <= most and int(counts[fewest]) >= _ROWS_EACH + size):
            return place
        centers = torch.stack([rows[place == k].mean(0) for k in range(len(labels))])
        away = (centers - centers[fewest]).square().sum(1)
        away[fewest] = math.inf
        place = torch.where(place == fewest, away.argmin(), place)


def _joined(means: Tensor, factors: Tensor) -> Tensor:
    """Return a label for each component, ``(k,)``, the same for those that are not far apart."""
    covariances = factors @ factors.mT + _NOISE * torch.eye(means.shape[1]).to(factors)
    between = 0.5 * (covariances[:, None] + covariances)
    shift = (means[:, None] - means).unsqueeze(-1)
    square = (shift * torch.linalg.solve(between, shift)).sum((-2, -1))
    labels = torch.arange(len(means), device=means.device)
    for one, other in (square < _APART**2).nonzero().tolist():
        labels = torch.where(labels == labels[one], labels[other], labels)
    return labels

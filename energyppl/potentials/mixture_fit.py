"""Mixtures fitted by expectation maximization, their components and tails chosen on held-out draws."""

import math

import torch
from torch import Tensor

from energyppl.errors import EnergyPPLError, InvalidInput
from energyppl.potentials.covariance import shrunk_covariance

__all__ = [
    "fit_mixture",
    "log_joint",
    "spread_out",
    "squared_distances",
    "student_constant",
    "student_exponent",
    "whitened",
]

_CANDIDATES = (1, 2, 4, 8, 16, 32, 64)
_ROWS_EACH = 12  # draws that a component needs at least, plus one for each dimension
_ITERATIONS = 60
_MAX_ROWS = 4000
_INFLATION = 1.1  # of standard deviations: what a base misses costs more than what it adds
_DEFENSIVE_WEIGHT, _DEFENSIVE_WIDTH = 0.05, 2.5  # of the component that covers all others
_FREEDOMS = (3.0, 5.0, 8.0, 15.0)  # degrees of freedom that are tried
_TOO_WIDE = (
    "no mixture of Gaussians fits the draws: they are spread too widely for their floating-point precision; rescale "
    "them or take float64"
)
_LIKELIER = 0.02  # nats a held-out draw by which they must be likelier than Gaussians


def fit_mixture(
    x: Tensor,
    groups: Tensor | None = None,
    *,
    defensive: bool = True,
    heavy: bool = False,
    most: int = _CANDIDATES[-1],
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Fit a mixture of Gaussians, or of Student-t densities, to draws.

    A quarter of the draws is held out and chooses how many components there are.  All are made a tenth wider, and one
    with the draws' own covariance, 2.5 times as wide, is added with weight .05: a base with lighter tails than the
    target would leave weights without a bound (a defensive mixture, Hesterberg 1995).

    Args:
        x: draws, ``(n, d)``.
        groups: a number for each draw, ``(n,)``; dependent draws share one and are held out together.
        defensive: widen and add as said; without, the mixture is the likeliest one, to be compared with.
        heavy: take tails of Student's t, of one number of degrees of freedom, where held-out draws are likelier so.
        most: components, at most.

    Returns:
        Means ``(k, d)``, Cholesky factors of the scale matrices ``(k, d, d)``, weights ``(k,)``, and the degrees of
        freedom, infinite for Gaussians.
    """
    dtype, dim = x.dtype, x.shape[1]
    order = torch.randperm(len(x), device=x.device)[:_MAX_ROWS]
    rows = x.double()[order]
    loc, scale = rows.mean(0), rows.std(0)
    scale = scale.clamp(min=1e-9 * float(scale.max()) + 1e-30)
    rows = (rows - loc) / scale
    if not bool(torch.isfinite(scale).all() & torch.isfinite(rows).all()):
        raise EnergyPPLError(_TOO_WIDE)
    groups = torch.arange(len(rows), device=x.device) if groups is None else groups[order]
    common = torch.linalg.cholesky(shrunk_covariance(rows, groups))
    white = torch.linalg.solve_triangular(common, rows.T, upper=False).T  # columns that hardly vary are as others here
    held_out = _held_out(groups)
    rows, train, held = rows[~held_out], white[~held_out], white[held_out]
    best, found, freedom = -math.inf, None, math.inf
    for count in _CANDIDATES:
        if count > 1 and (count > most or len(train) < count * (_ROWS_EACH + dim)):
            break
        mixture = _expectation_maximization(train, _start(rows, count))
        score, tails = _likeliest_freedom(held, mixture, heavy)
        if score > best + 0.01:
            best, found, freedom = score, mixture, tails
        elif count > 4 and score < best - 0.2:
            break
    if found is None:
        raise EnergyPPLError(_TOO_WIDE)
    means, factors, weights = found
    if defensive:
        wide = _one(white)
        means = torch.cat([means, wide[0]])
        factors = torch.cat([_INFLATION * factors, _DEFENSIVE_WIDTH * wide[1]])
        weights = torch.cat([(1.0 - _DEFENSIVE_WEIGHT) * weights, _DEFENSIVE_WEIGHT * wide[2]])
    factors = math.sqrt(1.0 - 2.0 / freedom) * factors  # so that the covariances stay what they are
    means, factors = means @ common.T, common @ factors
    return (loc + scale * means).to(dtype), (scale[:, None] * factors).to(dtype), weights.to(dtype), freedom


def student_constant(dim: int, freedom: float) -> float:
    """Return the log density of a Student-t of unit scale at its centre, in nats; of a Gaussian if infinite."""
    if freedom == math.inf:
        return -0.5 * dim * math.log(2.0 * math.pi)
    half = 0.5 * (freedom + dim)
    return math.lgamma(half) - math.lgamma(0.5 * freedom) - 0.5 * dim * math.log(freedom * math.pi)


def student_exponent(square: Tensor, dim: int, freedom: float) -> Tensor:
    """Return the log density of a Student-t less that at its centre, for squared distances in scales."""
    return -0.5 * square if freedom == math.inf else -0.5 * (freedom + dim) * torch.log1p(square / freedom)


def _likeliest_freedom(held: Tensor, mixture: tuple[Tensor, Tensor, Tensor], heavy: bool) -> tuple[float, float]:
    """Return the mean log density of held-out draws and the degrees of freedom it is reached with."""
    gaussian = log_joint(held, *mixture)
    _, factors, weights = mixture
    dim = held.shape[1]
    at_centre = weights.log() - factors.diagonal(dim1=1, dim2=2).log().sum(1)
    square = 2.0 * (at_centre + student_constant(dim, math.inf) - gaussian)
    scores = {math.inf: float(gaussian.logsumexp(1).mean())}
    for freedom in _FREEDOMS if heavy else ():
        share = 1.0 - 2.0 / freedom  # a Student-t's squared scale over its variance, which is kept
        constant = student_constant(dim, freedom) - 0.5 * dim * math.log(share)
        joint = at_centre + constant + student_exponent(square / share, dim, freedom)
        scores[freedom] = float(joint.logsumexp(1).mean())
    best = max(scores, key=lambda freedom: scores[freedom])
    best = best if scores[best] > scores[math.inf] + _LIKELIER else math.inf
    return scores[best], best


def _held_out(groups: Tensor) -> Tensor:
    """Tell which of shuffled rows are held out, ``(n,)``: a quarter, whole groups each."""
    each, place = groups.unique(return_inverse=True)
    if len(each) < 2:
        raise InvalidInput("draws must be of at least two groups: a mixture is chosen by those it has not seen")
    first = torch.full((len(each),), len(groups), device=groups.device).scatter_reduce(
        0, place, torch.arange(len(groups), device=groups.device), "amin"
    )
    held = torch.zeros(len(each), dtype=torch.bool, device=groups.device)
    held[first.argsort()[: max(1, len(each) // 4)]] = True  # rows come shuffled, so the order of first places is random
    return held[place]


def _one(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a single Gaussian to rows whose own covariance is about I."""
    mean = rows.mean(0, keepdim=True)
    share = torch.full((len(rows), 1), 1.0).to(rows)
    return mean, _factors(rows, share, mean), torch.ones(1).to(rows)


def _factors(rows: Tensor, shares: Tensor, means: Tensor) -> Tensor:
    """Return Cholesky factors ``(k, d, d)`` of the components' covariances, shares ``(n, k)``."""
    dim, total = rows.shape[1], shares.sum(0)  # (k,)
    scatter = []
    for share, mean in zip(shares.T.unsqueeze(-1), means, strict=True):  # one by one, as all at once need much memory
        centred = rows - mean
        scatter.append((share * centred).T @ centred)
    covariances = torch.stack(scatter) / total[:, None, None]
    keep = (total / (total + dim))[:, None, None]  # few rows say little of the correlations
    diagonals = torch.diag_embed(covariances.diagonal(dim1=1, dim2=2))
    floor = 1e-4 * torch.eye(dim).to(rows)
    factors: Tensor = torch.linalg.cholesky(keep * covariances + (1.0 - keep) * diagonals + floor)
    return factors


def log_joint(rows: Tensor, means: Tensor, factors: Tensor, weights: Tensor) -> Tensor:
    """Return the log of weight times density of every row in every component, ``(n, k)``.

    Args:
        rows: ``(n, d)``.
        means: ``(k, d)``.
        factors: Cholesky factors of the covariances, ``(k, d, d)``.
        weights: ``(k,)``.
    """
    log_det = factors.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = weights.log() - log_det - 0.5 * rows.shape[1] * math.log(2.0 * math.pi)
    joint: Tensor = constant - 0.5 * squared_distances(rows, *whitened(means, factors))
    return joint


def whitened(means: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverses of Cholesky factors ``(k, d, d)``, and the means ``(k, d)`` in coordinates made round."""
    eye = torch.eye(means.shape[1], dtype=factors.dtype, device=factors.device).expand_as(factors)
    whitening = torch.linalg.solve_triangular(factors, eye, upper=False)
    return whitening, (whitening @ means.unsqueeze(-1)).squeeze(-1)


def squared_distances(rows: Tensor, whitening: Tensor, centers: Tensor) -> Tensor:
    """Return the squared distance of every row from every component's mean, in its widths, ``(n, k)``.

    Args:
        rows: ``(n, d)``.
        whitening: of :func:`whitened`, ``(k, d, d)``.
        centers: likewise, ``(k, d)``.
    """
    # One product for all components: a small one for each row and component takes many times as long.
    along = torch.addmm(-centers.flatten(), rows, whitening.reshape(-1, rows.shape[1]).T)
    square: Tensor = along.unflatten(1, centers.shape).square().sum(2)
    return square


def _start(rows: Tensor, count: int) -> Tensor:
    """Return each row's component to begin with, ``(n, count)``: the nearest of rows that lie far apart (k-means++)."""
    nearest = torch.cdist(rows, spread_out(rows, count)).argmin(1)
    return torch.nn.functional.one_hot(nearest, count).to(rows)


def _expectation_maximization(rows: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit as many components as there are shares ``(n, k)`` to begin with (Dempster, Laird & Rubin 1977)."""
    if shares.shape[1] == 1:
        return _one(rows)
    last = -math.inf
    for _ in range(_ITERATIONS):
        total = shares.sum(0) + 1e-6
        weights = total / total.sum()
        means = shares.T @ rows / total[:, None]
        factors = _factors(rows, shares + 1e-6 / len(rows), means)
        joint = log_joint(rows, means, factors, weights)
        shares = joint.softmax(1)
        score = float(joint.logsumexp(1).mean())
        if score < last + 1e-4:
            break
        last = score
    return means, factors, weights


def spread_out(rows: Tensor, count: int) -> Tensor:
    """Draw rows far from each other, each by its squared distance (k-means++, Arthur & Vassilvitskii 2007)."""
    chosen = rows[torch.randint(len(rows), (1,))]
    nearest = (rows - chosen).square().sum(1)
    for _ in range(count - 1):
        new = rows[torch.multinomial(nearest + 1e-12, 1)]
        chosen = torch.cat([chosen, new])
        nearest = torch.minimum(nearest, (rows - new).square().sum(1))
    return chosen

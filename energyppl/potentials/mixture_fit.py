"""A Gaussian mixture fitted to draws by expectation maximization, as many components as held-out draws ask for."""

import math

import torch
from torch import Tensor

__all__ = ["fit_mixture"]

_CANDIDATES = (1, 2, 4, 8, 16, 32, 64)
_ROWS_EACH = 12  # draws that a component is owed, and as many again as it has parameters in a row of its covariance
_SWEEPS = 60
_MAX_ROWS = 4000
_WIDER = 1.1  # in standard deviations: what a base misses costs more than what it adds
_BEHIND, _HOW_WIDE = 0.05, 2.5  # weight and width of the component behind all others


def fit_mixture(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means ``(k, d)``, Cholesky factors ``(k, d, d)`` and weights ``(k,)`` of a mixture for draws ``(n, d)``.

    A quarter of the draws is held out and chooses how many components there are.  All are made a tenth wider, and one
    with the draws' own covariance, 2.5 times as wide, stands behind them: a base with lighter tails than the target
    would leave weights without a bound (a defensive mixture, Hesterberg 1995).
    """
    dtype, dim = x.dtype, x.shape[1]
    rows = x.double()[torch.randperm(len(x), device=x.device)[:_MAX_ROWS]]
    loc, scale = rows.mean(0), rows.std(0)
    scale = scale.clamp(min=1e-9 * float(scale.max()) + 1e-30)
    rows = (rows - loc) / scale
    train, held = rows[len(rows) // 4 :], rows[: len(rows) // 4]
    best, found = -math.inf, None
    for count in _CANDIDATES:
        if count > 1 and len(train) < count * (_ROWS_EACH + dim):
            break
        mixture = _expectation_maximization(train, count)
        score = float(torch.logsumexp(_log_joint(held, *mixture), 1).mean())
        if score > best + 0.01:
            best, found = score, mixture
        elif count > 4 and score < best - 0.2:
            break
    assert found is not None  # one component always fits
    means, factors, weights = found
    behind = _one(rows)
    means = torch.cat([means, behind[0]])
    factors = torch.cat([_WIDER * factors, _HOW_WIDE * behind[1]])
    weights = torch.cat([(1.0 - _BEHIND) * weights, _BEHIND * behind[2]])
    return (loc + scale * means).to(dtype), (scale[:, None] * factors).to(dtype), weights.to(dtype)


def _one(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A single Gaussian, its covariance shrunk towards its diagonal as far as few rows demand."""
    mean = rows.mean(0, keepdim=True)
    share = torch.full((len(rows), 1), 1.0).to(rows)
    return mean, _factors(rows, share, mean), torch.ones(1).to(rows)


def _factors(rows: Tensor, shares: Tensor, means: Tensor) -> Tensor:
    """Cholesky factors ``(k, d, d)`` of the components' covariances."""
    dim, total = rows.shape[1], shares.sum(0)  # (k,)
    covariances = []
    for k in range(len(means)):
        centred = rows - means[k]
        covariance = (shares[:, k, None] * centred).T @ centred / total[k]
        keep = float(total[k] / (total[k] + dim))  # few rows say little of the correlations
        diagonal = torch.diag(covariance.diagonal())
        covariances.append(keep * covariance + (1.0 - keep) * diagonal)
    floor = 1e-4 * torch.eye(dim).to(rows)
    factors: Tensor = torch.linalg.cholesky(torch.stack(covariances) + floor)
    return factors


def _log_joint(rows: Tensor, means: Tensor, factors: Tensor, weights: Tensor) -> Tensor:
    """Log of weight times density of every row in every component, ``(n, k)``."""
    z = torch.linalg.solve_triangular(factors, (rows - means[:, None]).mT, upper=False)  # (k, d, n)
    log_det = factors.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = weights.log() - log_det - 0.5 * rows.shape[1] * math.log(2.0 * math.pi)
    joint: Tensor = constant - 0.5 * (z * z).sum(1).T
    return joint


def _expectation_maximization(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    if count == 1:
        return _one(rows)
    means = _spread_out(rows, count)
    nearest = torch.cdist(rows, means).argmin(1)
    shares = torch.nn.functional.one_hot(nearest, count).to(rows)
    last = -math.inf
    for _ in range(_SWEEPS):
        total = shares.sum(0) + 1e-6
        weights = total / total.sum()
        means = shares.T @ rows / total[:, None]
        factors = _factors(rows, shares + 1e-6 / len(rows), means)
        joint = _log_joint(rows, means, factors, weights)
        norm = torch.logsumexp(joint, 1, keepdim=True)
        shares = (joint - norm).exp()
        score = float(norm.mean())
        if score < last + 1e-4:
            break
        last = score
    return means, factors, weights


def _spread_out(rows: Tensor, count: int) -> Tensor:
    """Rows far from each other to begin with, each drawn by its squared distance (k-means++, Arthur 2007)."""
    chosen = rows[torch.randint(len(rows), (1,))]
    nearest = (rows - chosen).square().sum(1)
    for _ in range(count - 1):
        new = rows[torch.multinomial(nearest + 1e-12, 1)]
        chosen = torch.cat([chosen, new])
        nearest = torch.minimum(nearest, (rows - new).square().sum(1))
    return chosen

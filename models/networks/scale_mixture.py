"""The base density of a table's rows: their second moments and heavy tails, noised exactly."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NoisedMixture", "ScaleMixture"]

_COMPONENTS = 6
_FAR = 6.0  # widths: beyond it a Gaussian column has one row in 500 million
_ROUNDS = 30  # of expectation maximization
_LARGEST, _MOST_ROWS = 256, 8192  # numbers of a column that all count, and about how many of the others do


class ScaleMixture(nn.Module):
    """A product of centred Gaussian scale mixtures along orthogonal axes, with known normalizer at every noise level.

    A column with a heavy tail is an axis itself, with a mixture of its own: an energy that is Gaussian far out costs a
    row of 20 standard deviations 200 nats; here it costs about what its tail is worth.  All other columns together are
    one Gaussian with the rows' covariance, along its eigenvectors, for a network that has to learn linear dependence
    from N(0, I) stops short of it.  (Tails along eigenvectors, or for a share of the rows in all columns, lie where no
    rows are: log Z of the wines of UCI went up to 4 nats.)

    Noise at a log-SNR λ turns a component N(0, v) of an axis into N(0, α² v + σ²), with α² = sigmoid λ and σ² =
    sigmoid −λ, so the product stays exact at every level.  Before it is fitted it is N(0, I).

    Attributes:
        heavy: whether some column's tail is.

    Args:
        size: number of coordinates.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("axes", torch.eye(size))
        self.register_buffer("variances", torch.ones(size, _COMPONENTS))
        self.register_buffer("log_weights", torch.full((size, _COMPONENTS), -math.log(_COMPONENTS)))
        self.heavy = False

    axes: Tensor  # (size, size), each a column
    variances: Tensor  # (size, components)
    log_weights: Tensor

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Fit a mixture to each column with a row beyond 6 widths, and one Gaussian to the others together.

        The scales of mixtures run from 1 to the farthest row's, evenly on a log scale; weights are found by expectation
        maximization, with one row more that all components share.

        Args:
            rows: standardized, ``(n, size)``.
        """
        rows = rows.double()
        axes, variances = torch.eye(rows.shape[1]).to(rows), torch.ones_like(self.variances).to(rows)
        log_weights = torch.full_like(self.log_weights, -math.log(_COMPONENTS)).to(rows)
        heavy = rows.abs().amax(0) > _FAR
        if bool(heavy.any()):
            scales, log_weights[heavy] = _mixtures(rows[:, heavy].abs())
            variances[heavy] = scales.square()
        light = (~heavy).nonzero()[:, 0]
        values, axes[light[:, None], light] = torch.linalg.eigh(_shrunk_covariance(rows[:, light]))
        variances[light] = values[:, None]
        for buffer, found in ((self.axes, axes), (self.variances, variances), (self.log_weights, log_weights)):
            buffer.copy_(found)
        self.buffers_changed()

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Return the energies of points ``(*batch, size)`` at log-SNRs ``()`` or ``(*batch,)``, normalized."""
        along = (x @ self.axes).square()
        constant = 0.5 * x.shape[-1] * math.log(2.0 * math.pi)
        if not self.heavy:
            log_snr = log_snr[..., None]
            variance = log_snr.sigmoid() * self.variances[:, 0] + (-log_snr).sigmoid()
            return constant + 0.5 * (along / variance + variance.log()).sum(-1)
        log_snr = log_snr[..., None, None]
        variance = log_snr.sigmoid() * self.variances + (-log_snr).sigmoid()
        log_density = self.log_weights - 0.5 * (along.unsqueeze(-1) / variance + variance.log())
        return constant - log_density.logsumexp(-1).sum(-1)

    def saturated(self, x: Tensor) -> Tensor:
        """Return points whose coordinates bend towards ± 6 widths, so that a far one leaves the others as they are."""
        return x * torch.rsqrt(1.0 + (x / _FAR).square())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.buffers_changed()

    def buffers_changed(self) -> None:
        """Take notice of buffers that were written from outside, as from another process."""
        self.heavy = bool((self.variances[:, -1] > self.variances[:, 0]).any())


@dataclass(frozen=True, eq=False)
class NoisedMixture:
    """A :class:`ScaleMixture` at one noise level: a base that runs for log Z begin at.

    Args:
        mixture: of points ``(size,)``.
        log_snr: ``()``.
    """

    mixture: ScaleMixture
    log_snr: Tensor

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.mixture.axes.shape[:1]

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate energies of points ``(*batch, size)``."""
        energies: Tensor = self.mixture(x, self.log_snr)
        return energies

    def sample(self, count: int) -> Tensor:
        """Draw, ``(count, size)``."""
        axes, log_weights = self.mixture.axes, self.mixture.log_weights
        component = torch.distributions.Categorical(logits=log_weights).sample((count, 1)).transpose(1, -1)
        variances = self.mixture.variances.expand(count, *log_weights.shape).gather(-1, component)[..., 0]
        widths = (self.log_snr.sigmoid() * variances + (-self.log_snr).sigmoid()).sqrt()
        return (widths * torch.randn_like(widths)) @ axes.T


def _shrunk_covariance(rows: Tensor) -> Tensor:
    """Return the second moments of rows ``(n, size)``, drawn towards a multiple of I as far as rows are few.

    Oracle-approximating shrinkage (Chen, Wiesel, Eldar & Hero 2010, eq. 23).
    """
    n, size = rows.shape
    if size == 0:
        return rows.new_zeros(0, 0)
    moments = rows.T @ rows / n
    mean, square = moments.diagonal().mean(), moments.square().sum()
    apart = (n + 1.0 - 2.0 / size) * (square - size * mean.square())
    share = (((1.0 - 2.0 / size) * square + (size * mean).square()) / apart).nan_to_num(1.0, 1.0).clamp(0.0, 1.0)
    return torch.lerp(moments, mean * torch.eye(size).to(rows), share)


def _mixtures(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a scale mixture to each column of absolute values ``(n, size)``: scales, and log weights of each column."""
    count = len(sizes)
    sizes, counted = _thinned(sizes)
    scales = torch.logspace(0.0, math.log10(float(sizes.max())), _COMPONENTS).to(sizes)
    log_weights = torch.full((sizes.shape[1], _COMPONENTS), -math.log(_COMPONENTS)).to(sizes)
    for _ in range(_ROUNDS):
        joint = log_weights - 0.5 * (sizes.unsqueeze(-1) / scales).square() - scales.log()
        log_weights = (((counted * joint.softmax(-1)).sum(0) + 1.0 / _COMPONENTS) / (count + 1.0)).log()
    return scales, log_weights


def _thinned(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return each column's largest numbers and some of the others, ``(m, size)``, and how many rows each stands for."""
    ordered = sizes.sort(0, descending=True).values
    step = max(1, len(sizes) // _MOST_ROWS)
    kept = torch.cat([ordered[:_LARGEST], ordered[_LARGEST::step]])
    counted = torch.ones(len(kept), 1, 1).to(kept)
    counted[_LARGEST:] = float(max(0, len(sizes) - _LARGEST)) / max(1, len(kept) - _LARGEST)
    return kept, counted

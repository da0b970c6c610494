"""What is known of a table's density before a network learns: second moments and heavy tails, noised exactly."""

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ScaleMixture"]

_COMPONENTS = 6
_FAR = 6.0  # widths: beyond it a Gaussian column has one row in 500 million
_ROUNDS = 30  # of expectation maximization
_LARGEST, _MOST_ROWS = 256, 8192  # numbers of a column that all count, and about how many of the others do


class ScaleMixture(nn.Module):
    """A Gaussian with the rows' covariance and a mixture for far rows, with known normalizers at every noise level.

    A network that has to learn linear dependence from N(0, I) stops short of it.  Where some column has a heavy tail,
    the far rows have a share of their own, in which each column is a centred Gaussian scale mixture: an energy that is
    Gaussian far out costs a row of 20 standard deviations 200 nats; here it costs about what its tail is worth.
    (Scale mixtures along the covariance's eigenvectors have tails where no rows are: log Z of the wines went up to 4.)

    Noise at a log-SNR λ turns a component N(0, v) along an axis into N(0, α² v + σ²), with α² = sigmoid λ and σ² =
    sigmoid −λ, so all of it stays exact at every level.  Before it is fitted it is N(0, I).

    Attributes:
        heavy: whether some column's tail is.

    Args:
        size: number of coordinates.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("axes", torch.eye(size))
        self.register_buffer("variances", torch.ones(size))
        self.register_buffer("log_share", torch.tensor(-math.inf))
        self.register_buffer("scales", torch.ones(_COMPONENTS))
        self.register_buffer("log_weights", torch.full((size, _COMPONENTS), -math.log(_COMPONENTS)))
        self.heavy = False

    axes: Tensor  # of the Gaussian, (size, size), each a column
    variances: Tensor  # along them
    log_share: Tensor  # of far rows
    scales: Tensor  # of the mixtures' components
    log_weights: Tensor  # in each column

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Fit a Gaussian and, if rows lie beyond 6 widths in some column, mixtures, whose share those rows are.

        The scales of mixtures run from 1 to the farthest row's, evenly on a log scale; weights are found by expectation
        maximization, with one row more that all components share.

        Args:
            rows: standardized, ``(n, size)``.
        """
        rows = rows.double()
        near = rows.abs().amax(1) <= _FAR
        variances, axes = torch.linalg.eigh(_shrunk_covariance(rows.clamp(-_FAR, _FAR)))
        self.axes.copy_(axes)
        self.variances.copy_(variances)
        self.log_share.copy_((1.0 - near.sum() / (len(rows) + 1.0)).log())
        self.heavy = not bool(near.all())
        if self.heavy:
            scales, log_weights = _mixtures(rows.abs())
            self.scales.copy_(scales)
            self.log_weights.copy_(log_weights)
        else:
            self.scales.fill_(1.0)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Return the energies of points ``(*batch, size)`` at log-SNRs ``()`` or ``(*batch,)``, normalized."""
        log_snr = log_snr[..., None]
        signal, noise = log_snr.sigmoid(), (-log_snr).sigmoid()
        variance = signal * self.variances + noise
        log_density = -0.5 * ((x @ self.axes).square() / variance + variance.log()).sum(-1)
        if self.heavy:
            variance = signal[..., None] * self.scales.square() + noise[..., None]
            columns = self.log_weights - 0.5 * (x.unsqueeze(-1).square() / variance + variance.log())
            far = self.log_share + columns.logsumexp(-1).sum(-1)
            log_density = torch.logaddexp(log_density + torch.log1p(-self.log_share.exp()), far)
        return 0.5 * x.shape[-1] * math.log(2.0 * math.pi) - log_density

    def saturated(self, x: Tensor) -> Tensor:
        """Return points whose coordinates bend towards ± 6 widths, so that a far one leaves the others as they are."""
        return x * torch.rsqrt(1.0 + (x / _FAR).square())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.buffers_changed()

    def buffers_changed(self) -> None:
        """Take notice of buffers that were written from outside, as from another process."""
        self.heavy = bool(self.scales.max() > 1.0)


def _shrunk_covariance(rows: Tensor) -> Tensor:
    """Return the second moments of rows ``(n, size)``, drawn towards a multiple of I as far as rows are few.

    Oracle-approximating shrinkage (Chen, Wiesel, Eldar & Hero 2010, eq. 23).
    """
    n, size = rows.shape
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

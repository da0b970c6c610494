"""Heavy tails of columns: a Gaussian scale mixture along each coordinate, noised exactly."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from energyppl.potentials.bases import DistributionBase

__all__ = ["ScaleMixture"]

_COMPONENTS = 6
_FAR = 6.0  # widths: beyond it a Gaussian column has one row in 500 million
_ROUNDS = 30  # of expectation maximization
_LARGEST, _MOST_ROWS = 256, 8192  # numbers of a column that all count, and about how many of the others do


class ScaleMixture(nn.Module):
    """A product of one mixture of centred Gaussians for each coordinate, with known normalizer at every noise level.

    Noise at a log-SNR λ turns a component N(0, s²) into N(0, α² s² + σ²), with α² = sigmoid λ and σ² = sigmoid −λ, so
    the mixture stays exact at every level. An energy that is Gaussian far out costs a row of 20 standard deviations
    200 nats; here it costs about what its tail is worth.

    Attributes:
        fitted: whether some column's tail is heavy; otherwise the standard Gaussian serves.

    Args:
        size: number of coordinates.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("scales", torch.ones(_COMPONENTS))
        self.register_buffer("log_weights", torch.full((size, _COMPONENTS), -math.log(_COMPONENTS)))
        self.fitted = False

    scales: Tensor
    log_weights: Tensor

    @torch.no_grad()
    def fit(self, rows: Tensor) -> None:
        """Fit scales and weights to standardized rows ``(n, size)``, if a row lies beyond 6 widths in some coordinate.

        The scales run from 1 to the farthest row's, evenly on a log scale; weights are found by expectation
        maximization, with one row more that all components share.
        """
        sizes, counted = _thinned(rows.double().abs())
        farthest = float(sizes.max())
        self.fitted = farthest > _FAR
        scales = torch.logspace(0.0, math.log10(max(farthest, 1.0)) if self.fitted else 0.0, _COMPONENTS).double()
        scales = scales.to(sizes)
        log_weights = torch.full_like(self.log_weights, -math.log(_COMPONENTS), dtype=torch.float64)
        for _ in range(_ROUNDS if self.fitted else 0):
            joint = log_weights - 0.5 * (sizes.unsqueeze(-1) / scales).square() - scales.log()
            counts = (counted * joint.softmax(-1)).sum(0) + 1.0 / _COMPONENTS
            log_weights = (counts / (len(rows) + 1.0)).log()
        self.scales.copy_(scales)
        self.log_weights.copy_(log_weights)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Return the energies of points ``(*batch, size)`` at log-SNRs ``()`` or ``(*batch,)``, normalized."""
        log_snr = log_snr[..., None, None]
        variance = log_snr.sigmoid() * self.scales.square() + (-log_snr).sigmoid()
        log_density = self.log_weights - 0.5 * (x.unsqueeze(-1).square() / variance + variance.log())
        return 0.5 * x.shape[-1] * math.log(2.0 * math.pi) - log_density.logsumexp(-1).sum(-1)

    def base(self, log_snr: float) -> DistributionBase:
        """Return the density of points ``(size,)`` at a log-SNR, which runs for log Z begin at."""
        signal = 1.0 / (1.0 + math.exp(-log_snr))
        widths = (signal * self.scales.square() + 1.0 - signal).sqrt().expand_as(self.log_weights)
        columns = Normal(torch.zeros_like(widths), widths, validate_args=False)
        mixture = MixtureSameFamily(Categorical(logits=self.log_weights), columns, validate_args=False)
        return DistributionBase(Independent(mixture, 1, validate_args=False))

    def saturated(self, x: Tensor) -> Tensor:
        """Return points whose coordinates bend towards ± 6 widths, so that a far one leaves the others as they are."""
        return x * torch.rsqrt(1.0 + (x / _FAR).square())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.buffers_changed()

    def buffers_changed(self) -> None:
        """Take notice of buffers that were written from outside, as from another process."""
        self.fitted = bool(self.scales.max() > 1.0)


def _thinned(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return each column's largest numbers and some of the others, ``(m, size)``, and how many rows each stands for."""
    ordered = sizes.sort(0, descending=True).values
    step = max(1, len(sizes) // _MOST_ROWS)
    kept = torch.cat([ordered[:_LARGEST], ordered[_LARGEST::step]])
    counted = torch.ones(len(kept), 1, 1).to(kept)
    counted[_LARGEST:] = float(max(0, len(sizes) - _LARGEST)) / max(1, len(kept) - _LARGEST)
    return kept, counted

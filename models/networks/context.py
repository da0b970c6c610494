"""Conditioning on contexts: rows of modulations from numbers, vectors or an encoder's features."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from energyppl._checks import check_context, check_count, check_shape, shape_text
from energyppl.errors import InvalidInput
from energyppl.models.networks.conditioning import LogSNRConditioning
from energyppl.models.networks.fourier import axis_frequencies
from energyppl.models.networks.mlp_initializer import soft_log_scale

__all__ = ["ContextConditioning", "ContextGaussian", "NoisedGaussian"]

_LIMITS = (0.5, 4.0)  # of the angular frequencies: what a context says varies over its whole range
_CORRELATED = 16  # dimensions at most whose correlations are learned: their number is d (d − 1) / 2
_INDEPENDENT = 1e-4  # share of each coordinate's variance that is its own, so that single precision can factorize


class ContextGaussian(NamedTuple):
    """A Gaussian of points that contexts give, N(m, S R S), known with the noise of any log-SNR λ too.

    With α² = sigmoid λ and σ² = sigmoid −λ that has mean α m and covariance α² S R S + σ² I.

    Example:
        >>> gaussian = ep.MLPEnergy(3, context_shape=2).proposal(torch.randn(5, 2))
        >>> gaussian.mean.shape, gaussian.noised(torch.tensor(2.0)).log_scale.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    mean: Tensor  # m, (*contexts, d)
    log_sd: Tensor  # log of the diagonal of S, (*contexts, d)
    root: Tensor | None  # lower triangular with rows of unit length, whose square is about R, (*contexts, d, d)

    def noised(self, log_snr: Tensor) -> "NoisedGaussian":
        """Return the Gaussian of points at log-SNRs ``()`` or ``(*batch,)``, to which the contexts broadcast."""
        alpha2, sigma2 = log_snr.sigmoid().unsqueeze(-1), (-log_snr).sigmoid().unsqueeze(-1)
        signal = alpha2 * (2.0 * self.log_sd).exp()
        variance = signal + sigma2
        factor, log_scale = None, 0.5 * variance.log().sum(-1)
        if self.root is not None:  # the correlations are factorized by themselves, whose conditioning is bounded
            shared = (1.0 - _INDEPENDENT) * signal / variance
            root = shared.sqrt().unsqueeze(-1) * self.root
            factor = torch.linalg.cholesky_ex(root @ root.mT + torch.diag_embed(1.0 - shared)).L
            log_scale = log_scale + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return NoisedGaussian(alpha2.sqrt() * self.mean, variance.sqrt(), factor, log_scale)


class NoisedGaussian(NamedTuple):
    """A Gaussian N(m, S F Fᵀ S) for each of a batch.

    Example:
        >>> noised = ep.MLPEnergy(3, context_shape=2).proposal(torch.randn(5, 2)).noised(torch.tensor(2.0))
        >>> x = torch.randn(5, 3)
        >>> bool(torch.allclose(noised.unstandardized(noised.standardized(x)), x, atol=1e-5))
        True
    """

    mean: Tensor  # m, (*batch, d)
    sd: Tensor  # the diagonal of S, (*batch, d)
    factor: Tensor | None  # F, lower triangular, (*batch, d, d); the identity if None
    log_scale: Tensor  # half the log determinant of the covariance, (*batch,)

    def standardized(self, x: Tensor) -> Tensor:
        """Return what the points ``(*draws, *batch, d)`` are in coordinates in which it is N(0, I)."""
        apart = (x - self.mean) / self.sd
        if self.factor is None:
            return apart
        one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(self.factor)
        inverse: Tensor = torch.linalg.solve_triangular(self.factor, one, upper=False)
        return (inverse * apart.unsqueeze(-2)).sum(-1)

    def unstandardized(self, z: Tensor) -> Tensor:
        """Return the points of coordinates ``(*draws, *batch, d)``."""
        return self.mean + self.sd * (z if self.factor is None else (self.factor * z.unsqueeze(-2)).sum(-1))


class ContextConditioning(nn.Module):
    """Conditioning on a context of about unit variance: a Gaussian base, and rows of modulations (FiLM).

    One perceptron gives both, all of them zero at first; the base has correlations up to 16 dimensions.  Its inputs are
    the context's coordinates and both phases of some frequencies along each, as those of a table's columns are; for the
    modulations, the log-SNR too.  "No context" has a row of its own and the base N(0, I).

    Args:
        context_shape: shape of one context; flattened inside.
        size: entries of a row.
        dimensions: d, of a point.
        frequencies: along each coordinate; 0 for none.
        hidden: width of its two layers.
    """

    def __init__(
        self, context_shape: int | Sequence[int], size: int, dimensions: int, *, frequencies: int, hidden: int
    ) -> None:
        super().__init__()
        check_count("context_frequencies", frequencies, at_least=0)
        self.context_shape = check_shape("context_shape", context_shape, at_least=1)
        inputs = math.prod(self.context_shape)
        self.register_buffer("frequencies", axis_frequencies(inputs, frequencies, _LIMITS), persistent=False)
        self.embedding = LogSNRConditioning(hidden)
        self.first, self.second = nn.Linear(inputs * (1 + 2 * frequencies), hidden), nn.Linear(hidden, hidden)
        self.dimensions = dimensions
        correlations = dimensions * (dimensions - 1) // 2 if dimensions <= _CORRELATED else 0
        self.readout, self.gaussian = nn.Linear(hidden, size), nn.Linear(hidden, 2 * dimensions + correlations)
        self.register_buffer("places", torch.tril_indices(dimensions, dimensions, -1) if correlations else None, False)
        for layer in (self.readout, self.gaussian):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.without = nn.Parameter(torch.zeros(size))

    frequencies: Tensor
    places: Tensor | None

    def forward(
        self, context: Tensor | None, batch: torch.Size, log_snr: Tensor | None = None
    ) -> "tuple[Tensor, ContextGaussian]":
        """Return rows and the Gaussian base of contexts ``(*contexts, *context_shape)``.

        Args:
            context: its batch broadcasts to the points'; None for no context.
            batch: shape of the points' batch.
            log_snr: ``()`` or ``(*batch,)``; None in a network of whole levels.

        Returns:
            The rows, ``(*batch, size)`` or fewer dimensions that broadcast, and the base.

        Raises:
            InvalidInput: for contexts of another shape, dtype or batch.
        """
        if context is None:
            return self.without, self.base(None)
        entered = self._entered(_fitting(context, self.context_shape, batch))
        rows = self.readout(self._deeper(entered if log_snr is None else entered + self.embedding(log_snr)))
        return rows, self._gaussian(entered)

    def base(self, context: Tensor | None) -> "ContextGaussian":
        """Return the Gaussian base of contexts ``(*contexts, *context_shape)``; N(0, I) for no context."""
        if context is None:
            nothing = self.without.new_zeros(self.dimensions)
            return ContextGaussian(nothing, nothing, None)
        return self._gaussian(self._entered(context))

    def _entered(self, context: Tensor) -> Tensor:
        flat = context.reshape(*context.shape[: context.dim() - len(self.context_shape)], -1)
        phase = flat @ self.frequencies
        entered: Tensor = self.first(torch.cat([flat, phase.sin(), phase.cos()], -1))
        return entered

    def _gaussian(self, entered: Tensor) -> "ContextGaussian":
        found = self.gaussian(self._deeper(entered))
        mean, raw = found[..., : self.dimensions], found[..., self.dimensions : 2 * self.dimensions]
        if self.places is None:
            return ContextGaussian(mean, soft_log_scale(raw), None)
        below = found.new_zeros(*found.shape[:-1], self.dimensions, self.dimensions)
        below[..., self.places[0], self.places[1]] = found[..., 2 * self.dimensions :]
        one = torch.eye(self.dimensions, dtype=found.dtype, device=found.device)
        return ContextGaussian(mean, soft_log_scale(raw), nn.functional.normalize(below + one, dim=-1))

    def _deeper(self, entered: Tensor) -> Tensor:
        silu = nn.functional.silu
        return silu(self.second(silu(entered)))


def _fitting(context: Tensor | None, context_shape: torch.Size, batch: torch.Size) -> Tensor:
    """Require contexts ``(*contexts, *context_shape)`` whose batch broadcasts to the points'.

    Raises:
        InvalidInput: for anything else.
    """
    context = check_context(context, context_shape)
    own = context.shape[: context.dim() - len(context_shape)]
    try:
        fits = torch.broadcast_shapes(own, batch) == batch
    except RuntimeError:
        fits = False
    if not fits:
        raise InvalidInput(
            f"contexts must be one for all points, or broadcast to their batch {shape_text(batch)}; got a batch of "
            f"{shape_text(own)}: pass one context, or one for each point"
        )
    return context

"""Conditioning on contexts: rows of modulations from numbers, vectors or an encoder's features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from energyppl._checks import check_context, check_count, check_shape, shape_text
from energyppl.errors import InvalidInput
from energyppl.models.networks.conditioning import LogSNRConditioning
from energyppl.models.networks.fourier import axis_frequencies
from energyppl.models.networks.mlp_initializer import soft_log_scale

__all__ = ["ContextConditioning", "standardized"]

_LIMITS = (0.5, 4.0)  # of the angular frequencies: what a context says varies over its whole range


class ContextConditioning(nn.Module):
    """Conditioning on a context of about unit variance: a Gaussian base, and rows of modulations (FiLM).

    One perceptron gives both, all of them zero at first.  Its inputs are the context's coordinates and both phases of
    some frequencies along each, as those of a table's columns are; for the modulations, the log-SNR too.  "No context"
    has a row of its own and the base N(0, I).

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
        self.readout, self.gaussian = nn.Linear(hidden, size), nn.Linear(hidden, 2 * dimensions)
        for layer in (self.readout, self.gaussian):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.without = nn.Parameter(torch.zeros(size))

    frequencies: Tensor

    def forward(
        self, context: Tensor | None, batch: torch.Size, log_snr: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, and mean and log standard deviation of the base, of contexts ``(*contexts, *context_shape)``.

        Args:
            context: its batch broadcasts to the points'; None for no context.
            batch: shape of the points' batch.
            log_snr: ``()`` or ``(*batch,)``; None in a network of whole levels.

        Returns:
            The rows, ``(*batch, size)`` or fewer dimensions that broadcast, and twice ``(*contexts, dimensions)``.

        Raises:
            InvalidInput: for contexts of another shape, dtype or batch.
        """
        if context is None:
            return self.without, *self.base(None)
        entered = self._entered(_fitting(context, self.context_shape, batch))
        rows = self.readout(self._deeper(entered if log_snr is None else entered + self.embedding(log_snr)))
        return rows, *self._gaussian(entered)

    def base(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of the base, ``(*contexts, dimensions)``; zeros for no context."""
        if context is None:
            nothing = self.without.new_zeros(self.gaussian.out_features // 2)
            return nothing, nothing
        return self._gaussian(self._entered(context))

    def _entered(self, context: Tensor) -> Tensor:
        flat = context.reshape(*context.shape[: context.dim() - len(self.context_shape)], -1)
        phase = flat @ self.frequencies
        entered: Tensor = self.first(torch.cat([flat, phase.sin(), phase.cos()], -1))
        return entered

    def _gaussian(self, entered: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.gaussian(self._deeper(entered)).chunk(2, -1)
        return mean, soft_log_scale(raw)

    def _deeper(self, entered: Tensor) -> Tensor:
        silu = nn.functional.silu
        return silu(self.second(silu(entered)))


def standardized(x: Tensor, mean: Tensor, log_sd: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Return points ``(*batch, d)`` standardized by N(m, s²) at log-SNRs, and the sum of its log standard deviations.

    The Gaussian is noised exactly: it has mean α m and variance α² s² + σ², with α² = sigmoid λ and σ² = sigmoid −λ.
    """
    alpha2, sigma2 = log_snr.sigmoid().unsqueeze(-1), (-log_snr).sigmoid().unsqueeze(-1)
    log_variance = (alpha2 * (2.0 * log_sd).exp() + sigma2).log()
    return (x - alpha2.sqrt() * mean) * (-0.5 * log_variance).exp(), 0.5 * log_variance.sum(-1)


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

"""Conditioning on contexts: rows of modulations from numbers, vectors or an encoder's features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_shape, shape_text
from energyppl.errors import InvalidInput
from energyppl.models.networks.fourier import axis_frequencies

__all__ = ["ContextConditioning", "check_context"]

_LIMITS = (0.5, 4.0)  # of the angular frequencies: what a context says varies over its whole range


class ContextConditioning(nn.Module):
    """A perceptron from contexts of about unit variance to rows of modulations, zero at first.

    Its inputs are the context's coordinates and both phases of some frequencies along each, as those of a table's
    columns are.  "No context" has a row of its own.

    Args:
        context_shape: shape of one context; flattened inside.
        size: entries of a row.
        frequencies: along each coordinate; 0 for none.
        hidden: width of its two layers.
    """

    def __init__(self, context_shape: int | Sequence[int], size: int, *, frequencies: int, hidden: int) -> None:
        super().__init__()
        check_count("context_frequencies", frequencies, at_least=0)
        self.context_shape = check_shape("context_shape", context_shape, at_least=1)
        inputs = math.prod(self.context_shape)
        self.register_buffer("frequencies", axis_frequencies(inputs, frequencies, _LIMITS), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(inputs * (1 + 2 * frequencies), hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.readout = nn.Linear(hidden, size)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)
        self.without = nn.Parameter(torch.zeros(size))

    frequencies: Tensor

    def forward(self, context: int | Tensor | None, batch: torch.Size) -> Tensor:
        """Return the rows of contexts ``(*contexts, *context_shape)``, ``(*contexts, size)``; of none, ``(size,)``.

        Args:
            context: its batch broadcasts to the points'; None for no context.
            batch: shape of the points' batch.

        Raises:
            InvalidInput: for contexts of another shape, dtype or batch.
        """
        if context is None:
            return self.without
        context = check_context(context, self.context_shape, batch)
        flat = context.reshape(*context.shape[: context.dim() - len(self.context_shape)], -1)
        phase = flat @ self.frequencies
        rows: Tensor = self.readout(self.layers(torch.cat([flat, phase.sin(), phase.cos()], -1)))
        return rows


def check_context(context: object, context_shape: torch.Size, batch: torch.Size) -> Tensor:
    """Require contexts ``(*contexts, *context_shape)``, floating point, whose batch broadcasts to the points'.

    Raises:
        InvalidInput: for anything else.
    """
    if not isinstance(context, Tensor) or not context.dtype.is_floating_point:
        came = context.dtype if isinstance(context, Tensor) else type(context).__name__
        raise InvalidInput(f"a context must be a floating-point tensor; got {came}: call .float() on it")
    kept = context.dim() - len(context_shape)
    if kept < 0 or context.shape[kept:] != context_shape:
        raise InvalidInput(
            f"contexts must end in context_shape {shape_text(context_shape)}; got {shape_text(context.shape)}: pass "
            "contexts of the shape that the network was built for"
        )
    try:
        fits = torch.broadcast_shapes(context.shape[:kept], batch) == batch
    except RuntimeError:
        fits = False
    if not fits:
        raise InvalidInput(
            f"contexts must be one for all points, or broadcast to their batch {shape_text(batch)}; got a batch of "
            f"{shape_text(context.shape[:kept])}: pass one context, or one for each point"
        )
    return context

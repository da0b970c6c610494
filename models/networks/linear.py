"""Linear layers whose matrix products oneDNN works out, forward and backward, where it is the faster."""

from typing import Any

import torch
from torch import Tensor, nn

from energyppl.autodiff.private import fused_linear, hook_tables, is_dispatched, is_transformed, prefers_onednn

__all__ = ["Linear", "is_plain", "linear"]

_ROWS, _COLUMNS = 512, 32  # of a product from which on oneDNN is the faster, a call of Python for each included


class Linear(nn.Linear):
    """Torch's linear layer, trained by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input @ weight.T + bias``."""
        return linear(input, self.weight, self.bias)


def is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer is one of these and has no hooks, so that its product is all that it does."""
    return type(layer) is Linear and not any(hook_tables(layer))


def linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``rows @ weight.T + bias``, ``(*batch, out)``, by oneDNN for large batches in training.

    Where it is faster than torch's choice, forward and backward through three layers take .6 to .7 of the time from 512
    rows on.  Traces choose for themselves.

    Args:
        rows: ``(*batch, in)``.
        weight: ``(out, in)``.
        bias: ``(out,)``.
    """
    if not (torch.is_grad_enabled() and weight.requires_grad and _is_large(rows, weight)):
        return nn.functional.linear(rows, weight, bias)
    product: Tensor = _Product.apply(rows.reshape(-1, rows.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return product.reshape(*rows.shape[:-1], -1)


def _is_large(rows: Tensor, weight: Tensor) -> bool:
    return bool(
        rows.numel() >= _ROWS * weight.shape[1]
        and min(weight.shape) >= _COLUMNS
        and rows.dtype == weight.dtype == torch.float32
        and rows.device.type == "cpu"
        and prefers_onednn()
        and not torch.is_autocast_enabled("cpu")
        and not is_transformed()
        and not is_dispatched()
    )


class _Product(torch.autograd.Function):
    """``rows @ matrix.T + bias`` by oneDNN; its gradients are such products too, and so differentiable again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, matrix)
        return fused_linear(rows, matrix, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, matrix = ctx.saved_tensors
        by_rows, by_matrix, by_bias = ctx.needs_input_grad
        product: Any = _Product.apply if torch.is_grad_enabled() else fused_linear
        return (
            product(grad, matrix.t(), None) if by_rows else None,
            product(rows.t(), grad.t(), None).t() if by_matrix else None,
            grad.sum(0) if by_bias else None,
        )

"""Matrix products of float32 on processors: by oneDNN, where torch takes MKL, and differentiable as often as needed.

MKL is half as fast as oneDNN on processors that are not by Intel, and products are most of what training a perceptron
costs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from energyppl.autodiff.private import fused_linear, is_transformed, will_run

__all__ = ["Linear", "is_large", "linear"]

_ROWS, _COLUMNS = 256, 32  # of a product from which on oneDNN is the faster


class Linear(nn.Linear):
    """Torch's linear layer, by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*batch, in_features)`` to ``(*batch, out_features)``."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``x @ weight.T + bias`` by the faster library; the same as torch's up to rounding.

    Args:
        x: ``(*batch, n)``.
        weight: ``(m, n)``.
        bias: ``(m,)``.
    """
    usual = torch.is_autocast_enabled(x.device.type) or is_transformed() or torch.compiler.is_compiling()
    if usual or not is_large(x.shape[:-1].numel(), weight.shape, weight, x):
        return nn.functional.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if not torch.is_grad_enabled():
        return fused_linear(rows, weight, bias).reshape(*x.shape[:-1], -1)
    # Views, since the engine answers only for what is no leaf whether its gradient is wanted.
    product: Tensor = _Linear.apply(rows, weight.view_as(weight), bias.view_as(bias))  # type: ignore[no-untyped-call]
    return product.reshape(*x.shape[:-1], -1)


def is_large(rows: int, matrix: torch.Size, *tensors: Any) -> bool:
    """Tell whether a product is one that oneDNN is the faster at.

    Args:
        rows: of the first factor.
        matrix: shape of the second.
        tensors: what tells the factors' dtype and device.
    """
    return bool(
        rows >= _ROWS
        and min(matrix) >= _COLUMNS
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and torch.backends.mkldnn.is_available()
    )


class _Linear(torch.autograd.Function):
    """``x @ weight.T + bias`` of rows ``(k, n)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return fused_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = _wanted(ctx)
        return (
            _product(grad, weight) if wanted[0] else None,
            _product(grad.t(), x) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )


class _Product(torch.autograd.Function):
    """``a @ b`` of matrices."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return fused_linear(a, b.t(), None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        wanted = _wanted(ctx)
        return _product(grad, b.t()) if wanted[0] else None, _product(a.t(), grad) if wanted[1] else None


def _product(a: Tensor, b: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return fused_linear(a, b.t(), None)
    product: Tensor = _Product.apply(a, b)  # type: ignore[no-untyped-call]
    return product


def _wanted(ctx: Any) -> list[bool]:
    """Tell which inputs' gradients the present backward pass is for; weights' are not, where points' are asked for."""
    return [
        needed and will_run(node) for needed, (node, _) in zip(ctx.needs_input_grad, ctx.next_functions, strict=True)
    ]

"""Values without a gradient along weights, which warn where one is asked for."""

import sys
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from energyppl.autodiff.private import is_transformed
from energyppl.errors import warn_user

__all__ = ["watched"]

_BIASED = (
    "the gradient along the weights of an energy lacks that of log Z, which log_prob was given as a number, so weights "
    "that follow it are biased: learn them by ebm.marginal(), with log_normalizer=Contrastive(…) or by energyppl.fit, "
    "or freeze them by requires_grad_(False)"
)


def watched(log_z: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return a log Z that warns when a backward pass comes by on its way to the weights of its energy.

    A gradient along points alone, as chains ask for it, never does; nor is one known under ``torch.func``.  Pyro's
    inference goes back to all weights, but learns those of its parameter store alone.
    """
    if not torch.is_grad_enabled() or is_transformed():
        return log_z
    if not any(weight.requires_grad for weight in weights) or (_asked_by_pyro() and not _learned_by_pyro(weights)):
        return log_z
    found: Tensor = _Watched.apply(log_z, *weights)  # type: ignore[no-untyped-call]
    return found


def _asked_by_pyro() -> bool:
    frame = sys._getframe(1)
    while frame.f_back:
        frame = frame.f_back
        if str(frame.f_globals.get("__name__")).startswith("pyro.infer."):
            return True
    return False


def _learned_by_pyro(weights: Sequence[Tensor]) -> bool:
    learned = {id(value) for _, value in pyro.get_param_store().named_parameters()}
    return any(id(weight) in learned for weight in weights)


class _Watched(torch.autograd.Function):
    """A value that depends on weights for autograd's bookkeeping only."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *weights: Tensor) -> Tensor:
        ctx.count = len(weights)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        warn_user(_BIASED)
        return None, *[None] * ctx.count

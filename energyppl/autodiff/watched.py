"""Values without a gradient along weights, which warn where one is asked for."""

import sys
from collections.abc import Iterable
from typing import Any

import pyro
import torch
from torch import Tensor

from energyppl.autodiff.private import is_transformed
from energyppl.autodiff.structure import modules_of
from energyppl.errors import warn_user

__all__ = ["watched"]


def watched(value: Tensor, potential: object, sentence: str) -> Tensor:
    """Return a value that warns when a backward pass comes by on its way to the weights of a potential's modules.

    A gradient along points alone, as chains ask for it, never does; nor is one known under ``torch.func``.  Pyro's
    inference goes back to all weights, but learns those of its parameter store alone.
    """
    if not torch.is_grad_enabled() or is_transformed():
        return value
    weights = [p for module in modules_of(potential) for p in module.parameters() if p.requires_grad]
    if not weights or (_asked_by_pyro() and not _learned_by_pyro(weights)):
        return value
    found: Tensor = _Watched.apply(value, sentence, *weights)  # type: ignore[no-untyped-call]
    return found


def _asked_by_pyro() -> bool:
    frame = sys._getframe(1)
    while frame.f_back:
        frame = frame.f_back
        if str(frame.f_globals.get("__name__")).startswith("pyro.infer."):
            return True
    return False


def _learned_by_pyro(weights: Iterable[torch.Tensor]) -> bool:
    learned = {id(value) for _, value in pyro.get_param_store().named_parameters()}
    return any(id(weight) in learned for weight in weights)


class _Watched(torch.autograd.Function):
    """A value that depends on weights for autograd's bookkeeping only."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, sentence: str, *weights: Tensor) -> Tensor:
        ctx.sentence, ctx.count = sentence, len(weights)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        warn_user(ctx.sentence)
        return None, None, *[None] * ctx.count

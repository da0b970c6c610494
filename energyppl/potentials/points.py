"""Dtype, device and shapes of the points that a potential takes."""

import torch
from torch import Tensor, nn

from energyppl._checks import broadcast_shapes
from energyppl.autodiff.devices import device_of
from energyppl.autodiff.structure import Untraceable, structure
from energyppl.errors import InvalidInput

__all__ = ["can_expand", "dtype_of", "origin_of", "require_digits"]


def dtype_of(owner: object) -> torch.dtype | None:
    """Return the floating dtype of the networks in a potential, else the one that its own tensors share.

    None if that can't be told, as for a plain function of points in any dtype.
    """
    try:
        parts = structure(owner)
        modules, tensors = parts.modules, parts.tensors
    except Untraceable:
        held = vars(owner).values() if hasattr(owner, "__dict__") else ()
        modules, tensors = [value for value in held if isinstance(value, nn.Module)], []
    for found in ([p for module in modules for p in module.parameters()], tensors):
        kinds = {tensor.dtype for tensor in found if tensor.dtype.is_floating_point}
        if len(kinds) == 1:
            return kinds.pop()
    return None


def origin_of(potential: object, shape: torch.Size) -> Tensor:
    """Return the origin, of the dtype and device that a potential computes in; torch's default if it shows none."""
    return torch.zeros(shape, dtype=dtype_of(potential), device=device_of(potential))


def require_digits(what: str, dtype: torch.dtype | None) -> None:
    """Require numbers of at least float32, if their dtype is known.

    Raises:
        InvalidInput: for half precision.
    """
    if dtype in (torch.float16, torch.bfloat16):
        raise InvalidInput(f"{what} needs float32 or float64; got weights or points in {dtype}: call .float() on them")


def can_expand(shape: torch.Size, other: torch.Size) -> bool:
    """Tell whether a tensor of one shape can be expanded to the other."""
    try:
        return bool(broadcast_shapes(shape, other) == other)
    except RuntimeError:
        return False

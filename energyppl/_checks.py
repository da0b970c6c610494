"""Input checks, made once where a value enters, each in one sentence: expected, came, what to do."""

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from energyppl.errors import InvalidInput

UNREADABLE = (  # what reading a damaged file raises
    *(ValueError, EOFError, OSError, MemoryError, RuntimeError, KeyError, NotImplementedError, struct.error),
    *(lzma.LZMAError, zipfile.BadZipFile, zlib.error),
)


def shape_text(shape: Sequence[int]) -> str:
    """Write a shape as a person does: ``(3, 4)``."""
    return str(tuple(shape))


def check_event(name: str, value: Tensor, event_shape: Sequence[int]) -> Tensor:
    """Require a real floating-point tensor whose shape ends in ``event_shape``."""
    if not isinstance(value, Tensor):
        raise InvalidInput(f"{name} must be a torch tensor; got {type(value).__name__}: wrap it in torch.as_tensor")
    if not value.dtype.is_floating_point:
        raise InvalidInput(f"{name} must be floating point; got {value.dtype}: call .float() first")
    size = len(event_shape)
    if value.dim() < size or tuple(value.shape[value.dim() - size :]) != tuple(event_shape):
        raise InvalidInput(
            f"{name} must end in event_shape {shape_text(event_shape)}; got {shape_text(value.shape)}: "
            "pass points of the shape that the energy takes"
        )
    return value


def check_data(name: str, value: Tensor, event_shape: Sequence[int], *, at_least: int = 1) -> Tensor:
    """Require finite rows ``(n, *event)`` with ``n >= at_least``."""
    check_event(name, value, event_shape)
    if value.dim() != len(event_shape) + 1:
        raise InvalidInput(
            f"{name} must have shape (n, *{shape_text(event_shape)}); got {shape_text(value.shape)}: "
            "put one data point in each row"
        )
    if len(value) < at_least:
        raise InvalidInput(f"{name} must have at least {at_least} row(s); got {len(value)}: pass more data")
    bad = ~torch.isfinite(value).reshape(len(value), -1).all(1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise InvalidInput(
            f"{name} must be finite; got NaN or infinity in {int(bad.sum())} row(s), first in row {first}: "
            "drop or impute those rows"
        )
    return value


def is_number(value: object) -> bool:
    """Tell whether a value is one real number, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_positive(name: str, value: float | Tensor) -> None:
    """Require finite numbers above zero (a float or every entry of a tensor)."""
    if isinstance(value, Tensor):
        ok = not (value.dtype == torch.bool or value.dtype.is_complex)
        ok = ok and bool((torch.isfinite(value) & (value > 0)).all())
    else:
        ok = is_number(value) and math.isfinite(value) and value > 0
    if not ok:
        raise InvalidInput(
            f"{name} must be positive and finite; got {_shown(value)}: pass a number or a tensor of them"
        )


def check_between(name: str, value: float, low: float, high: float, *, closed: bool = False) -> None:
    """Require one number between two others, of which ``closed`` allows the lower."""
    if not is_number(value) or not (low < value < high or (closed and value == low)):
        where = f"lie in [{low:g}, {high:g})" if closed else f"lie between {low:g} and {high:g}"
        raise InvalidInput(f"{name} must {where}; got {_shown(value)}: pass a number such as {(low + high) / 2:g}")


def _shown(value: object) -> str:
    return str(value) if isinstance(value, Tensor) else repr(value)


def check_count(name: str, value: int, *, at_least: int = 1) -> None:
    """Require a whole number of at least ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InvalidInput(f"{name} must be a whole number of at least {at_least}; got {value!r}")


def check_whole(name: str, value: Tensor) -> None:
    """Require a tensor of whole numbers."""
    if value.dtype.is_floating_point or value.dtype == torch.bool:
        raise InvalidInput(f"{name} must be whole numbers; got {value.dtype}: call .long() on it")

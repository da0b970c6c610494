"""Input checks, made once where a value enters; an error is one sentence: what was expected, what came, what to do."""

import math
import numbers
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from energyppl.errors import InvalidInput


def shape_text(shape: Sequence[int]) -> str:
    """Write a shape as a person does: ``(3, 4)``."""
    return str(tuple(shape))


def check_shape(name: str, value: object) -> torch.Size:
    """Require a shape, a sequence of whole numbers that are not negative, and return it."""
    try:
        shape = torch.Size(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(f"{name} must be a tuple such as (2,); got {value!r}") from None
    if isinstance(value, str) or any(size < 0 for size in shape):
        raise InvalidInput(f"{name} must be a tuple such as (2,) without negative sizes; got {value!r}")
    return shape


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


def check_positive(name: str, value: object, *, or_infinite: bool = False) -> None:
    """Require numbers above zero (a number, or every entry of a tensor), finite ones unless ``or_infinite``."""
    if isinstance(value, Tensor):
        real = value.dtype != torch.bool and not value.dtype.is_complex
        ok = real and bool((value > 0).all()) and (or_infinite or bool(torch.isfinite(value).all()))
    else:
        ok = _is_real(value) and value > 0 and (or_infinite or math.isfinite(value))
    if not ok:
        finite = "" if or_infinite else " and finite"
        raise InvalidInput(f"{name} must be positive{finite}; got {_brief(value)}")


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is one real number, and not a bool."""
    return _is_real(value)


def check_between(name: str, value: object, low: float, high: float, *, closed: bool = False) -> None:
    """Require one number between two others, of which ``closed`` allows the lower."""
    if not _is_real(value) or not (low < value < high or (closed and value == low)):
        where = f"lie in [{low:g}, {high:g})" if closed else f"lie between {low:g} and {high:g}"
        raise InvalidInput(f"{name} must {where}; got {_brief(value)}: pass a number such as {(low + high) / 2:g}")


def check_number(name: str, value: object) -> None:
    """Require a finite number."""
    if not _is_real(value) or not math.isfinite(value):
        raise InvalidInput(f"{name} must be a finite number; got {_brief(value)}: pass a float")


def check_count(name: str, value: object, *, at_least: int = 1) -> None:
    """Require a whole number of at least ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InvalidInput(f"{name} must be a whole number of at least {at_least}; got {_brief(value)}")


def check_flag(name: str, value: object) -> None:
    """Require True or False."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} must be True or False; got {_brief(value)}")


def check_whole(name: str, value: Tensor) -> None:
    """Require a tensor of whole numbers."""
    if not isinstance(value, Tensor):
        raise InvalidInput(f"{name} must be a tensor of whole numbers; got {type(value).__name__}: use torch.as_tensor")
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise InvalidInput(f"{name} must be whole numbers; got {value.dtype}: call .long() on it")


def _is_real(value: object) -> TypeGuard[float]:
    """Tell whether a value is a real number, numpy's included, and not a truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _brief(value: object) -> str:
    """Write a value in an error sentence: short ones as they are, others by their type, so that it stays a sentence."""
    if isinstance(value, Tensor) and value.numel() > 8:
        return f"a tensor of shape {shape_text(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"

"""Input checks, made once where a value enters; an error is one sentence: what was expected, what came, what to do."""

import dataclasses
import functools
import inspect
import math
import numbers
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energyppl.errors import InvalidInput

_DEPENDENT = 1e-12  # smallest eigenvalue of the rows' correlations: below, a column is a copy or a sum of others


def shape_text(shape: Sequence[int]) -> str:
    """Write a shape as a person does: ``(3, 4)``."""
    return str(tuple(shape))


def as_path(value: object) -> Path:
    """Require a path, a text or one of pathlib's, and return it as the latter."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise InvalidInput(f"a path must be a text or a pathlib.Path; got {_brief(value)}: pass one")
    if not text or "\0" in text:
        raise InvalidInput(f"a path must name a file or a folder; got {_brief(value)}: pass one")
    return Path(text)


def check_shape(name: str, value: object, *, at_least: int = 0) -> torch.Size:
    """Require a shape, a sequence of whole numbers that are not negative, and return it; a number n means ``(n,)``."""
    sizes = (value,) if _is_whole(value) else value
    try:
        shape = torch.Size(sizes)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise InvalidInput(f"{name} must be a tuple such as (2,); got {_brief(value)}") from None
    if isinstance(value, (str, bytes, dict)) or any(size < at_least for size in shape):
        wrong = "empty" if at_least else "negative"
        raise InvalidInput(f"{name} must be a tuple such as (2,) without {wrong} sizes; got {_brief(value)}")
    return shape


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """Broadcast shapes as ``torch.broadcast_shapes`` does, which imports a computer algebra system to do so.

    Raises:
        RuntimeError: if they don't fit each other.
    """
    try:
        return torch.Size(np.broadcast_shapes(*map(tuple, shapes)))
    except ValueError as error:
        raise RuntimeError(str(error)) from None


def append_dims(value: Tensor, x: Tensor) -> Tensor:
    """Append dimensions of size one, so that a number for each point broadcasts against the points.

    ``(*batch,)`` to ``(*batch, 1, …, 1)``; a single number, ``()``, stays as it is.

    Raises:
        InvalidInput: if there are other points.
    """
    if value.shape != x.shape[: value.dim()] and (
        value.dim() > x.dim() or any(own not in (1, of) for own, of in zip(value.shape, x.shape, strict=False))
    ):
        raise InvalidInput(
            f"values must be one number or one for each point; got {shape_text(value.shape)} for points "
            f"{shape_text(x.shape)}: pass one number, or a tensor of the points' batch shape"
        )
    return value.reshape(value.shape + (1,) * (x.dim() - value.dim())) if value.dim() else value


def check_dense(name: str, value: Tensor) -> None:
    """Require a tensor that holds all of its numbers."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        kind = "a quantized one" if value.is_quantized else "one without numbers" if value.is_meta else value.layout
        raise InvalidInput(f"{name} must be a dense tensor; got {kind}: pass its numbers, as .to_dense() has them")


def numpy_of(name: str, value: Tensor) -> NDArray[Any]:
    """Return a dense tensor's numbers; numpy has no bfloat16."""
    check_dense(name, value)
    value = value.detach().cpu().resolve_conj().resolve_neg()
    return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())


def check_event(name: str, value: Tensor, event_shape: Sequence[int]) -> Tensor:
    """Require a real floating-point tensor whose shape ends in ``event_shape``."""
    if not isinstance(value, Tensor):
        raise InvalidInput(f"{name} must be a torch tensor; got {type(value).__name__}: wrap it in torch.as_tensor")
    check_dense(name, value)
    if not value.dtype.is_floating_point:
        raise InvalidInput(f"{name} must be floating point; got {value.dtype}: call .float() first")
    size = len(event_shape)
    if value.dim() < size or tuple(value.shape[value.dim() - size :]) != tuple(event_shape):
        raise InvalidInput(
            f"{name} must end in event_shape {shape_text(event_shape)}; got {shape_text(value.shape)}: "
            "pass points of the shape that the energy takes"
        )
    return value


def check_context(context: object, context_shape: torch.Size) -> Tensor:
    """Require contexts ``(*batch, *context_shape)``, floating point.

    Raises:
        InvalidInput: for anything else.
    """
    if not isinstance(context, Tensor):
        raise InvalidInput(f"context must be a torch tensor; got {type(context).__name__}: use torch.as_tensor")
    kept = context.dim() - len(context_shape)
    if kept < 0 or context.shape[kept:] != context_shape:
        raise InvalidInput(
            f"context must end in the shape of one context, {shape_text(context_shape)}; got "
            f"{shape_text(context.shape)}: pass what the model was trained with, the same columns in the same order"
        )
    return check_event("context", context, context_shape)


def without_mask(array: Any) -> Any:
    """Return an array whose masked cells are NaN, if it has any: numpy's functions would take what lies beneath."""
    return array.astype(np.float64).filled(np.nan) if np.ma.is_masked(array) else array


def as_points(name: str, value: Any, *, whole: bool = False) -> Any:
    """Return a numpy array or a pandas frame of numbers as a tensor; all else as it is.

    Numbers in float32 stay so and all others become float64.  The tensor shares the array's memory where nothing has to
    be converted and the array may be written to.

    Args:
        name: of the value, for the error.
        value: an array or a frame, or anything else.
        whole: leave whole numbers and booleans as they are, as labels need it.

    Raises:
        InvalidInput: for an array or a frame that does not hold real numbers alone.
    """
    if not isinstance(value, np.ndarray) and not hasattr(value, "to_numpy"):
        return value
    array = without_mask(value if isinstance(value, np.ndarray) else value.to_numpy())
    if array.dtype.kind not in "biuf":
        raise InvalidInput(
            f"{name} must hold numbers alone; got dtype {array.dtype}: ep.tables.fit takes texts and categories"
        )
    kind = array.dtype.newbyteorder("=")
    if kind != np.float32 and not (whole and kind.kind in "biu"):
        kind = np.dtype(np.float64)
    return torch.from_numpy(np.require(array, kind, ["C", "W"]))


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
        ok = is_number(value) and value > 0 and (or_infinite or math.isfinite(value))
    if not ok:
        raise InvalidInput(f"{name} must be positive{'' if or_infinite else ' and finite'}; got {_brief(value)}")


def check_between(name: str, value: object, low: float, high: float, *, closed: bool = False) -> None:
    """Require one number between two others, of which ``closed`` allows the lower."""
    if not is_number(value) or not (low < value < high or (closed and value == low)):
        where = f"lie in [{low:g}, {high:g})" if closed else f"lie between {low:g} and {high:g}"
        raise InvalidInput(f"{name} must {where}; got {_brief(value)}: pass a number such as {(low + high) / 2:g}")


def check_number(name: str, value: object) -> None:
    """Require a finite number."""
    if not is_number(value) or not math.isfinite(value):
        raise InvalidInput(f"{name} must be a finite number; got {_brief(value)}: pass a float")


def check_count(name: str, value: object, *, at_least: int = 1) -> None:
    """Require a whole number of at least ``at_least``."""
    if not _is_whole(value) or value < at_least:
        raise InvalidInput(f"{name} must be a whole number of at least {at_least}; got {_brief(value)}")


def check_flag(name: str, value: object) -> None:
    """Require True or False."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} must be True or False; got {_brief(value)}")


def check_finite(name: str, value: Tensor) -> None:
    """Require a real floating-point tensor without NaN or infinity."""
    check_event(name, value, ())
    if not bool(torch.isfinite(value).all()):
        raise InvalidInput(f"{name} must be finite; got NaN or infinity in {_brief(value)}: drop or impute those")


def check_whole(name: str, value: Tensor) -> None:
    """Require a tensor of whole numbers."""
    if not isinstance(value, Tensor):
        raise InvalidInput(f"{name} must be a tensor of whole numbers; got {type(value).__name__}: use torch.as_tensor")
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise InvalidInput(f"{name} must be whole numbers; got {value.dtype}: call .long() on it")


def check_spanning(name: str, rows: Tensor) -> None:
    """Require rows ``(n, d)``, of columns that vary, that lie in no plane: a density has none there.

    Raises:
        InvalidInput: if a coordinate is a copy or a sum of others, up to shift and scale.
    """
    if len(rows) <= rows.shape[1]:  # too few to tell
        return
    unit = (rows - rows.mean(0)) / rows.std(0)
    values, vectors = torch.linalg.eigh(unit.T @ unit / len(unit))
    if float(values[0]) < _DEPENDENT * float(values[-1]):
        involved = (vectors[:, 0].abs() > 1e-3).nonzero()[:, 0].tolist()
        raise InvalidInput(
            f"{name} must span all coordinates; coordinates {involved[:20]} determine each other (one is a copy or a "
            "sum of others): no density has such rows, so drop one of them"
        )


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a real number, numpy's included, and not a truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number, numpy's included, and not a truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _brief(value: object) -> str:
    """Write a value in an error sentence: short ones as they are, others by their type, so that it stays a sentence."""
    if isinstance(value, Tensor) and value.numel() > 8:
        return f"a tensor of shape {shape_text(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


# --- Arguments of the kinds that a signature declares ---

_Function = TypeVar("_Function", bound=Callable[..., Any])


def checked(function: _Function) -> _Function:
    """Make a public function require arguments of the kinds that its signature declares, in one sentence each."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        hints = _hints(function)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            given = {}  # the call below says what is wrong, and names the function
        for name, value in given.items():
            if name in hints and signature.parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL:
                check_kind(name, value, hints[name])
        return function(*args, **kwargs)

    return cast(_Function, call)


def check_fields(instance: object) -> None:
    """Require fields of a dataclass of the kinds that it declares."""
    hints = _hints(cast(Any, type(instance)))
    for field in dataclasses.fields(instance):  # type: ignore[arg-type]
        if field.init and (value := getattr(instance, field.name)) is not field.default:
            check_kind(field.name, value, hints[field.name])


def check_kind(name: str, value: object, hint: Any) -> None:
    """Require a value of a declared kind; NaN is no number.

    Raises:
        InvalidInput: for another kind.
    """
    if not _is_kind(value, hint):
        raise InvalidInput(f"{name} must be {_kind_text(hint)}; got {_brief(value)}: pass one")


def require_kinds(record: Mapping[str, Any], kinds: Mapping[str, Any], *, every: bool = False) -> None:
    """Require fields of a record from a file to be of their kinds, ``every`` one to be there; else a ValueError."""
    for name, kind in kinds.items():
        if name not in record and every:
            raise ValueError(f"it has no {name!r}")
        if name in record and not _is_kind(record[name], kind):
            raise ValueError(f"{name} must be {_kind_text(kind)}; got {_brief(record[name])}")


@functools.cache
def _hints(owner: Any) -> dict[str, Any]:
    return get_type_hints(owner)


def _is_kind(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(_is_kind(value, part) for part in get_args(hint))
    if hint is None or hint is types.NoneType:
        return value is None
    if hint is float:
        return is_number(value) and not math.isnan(value)
    if hint is int:
        return _is_whole(value)
    if hint is torch.Size:
        return _is_kind(value, int | Sequence[int])
    if isinstance(value, type) and hint is not type:
        return False
    if origin is Callable:
        return callable(value)
    if origin is dict:
        key, item = get_args(hint)
        return isinstance(value, dict) and all(_is_kind(k, key) and _is_kind(v, item) for k, v in value.items())
    if origin is Iterable:  # whose items can be taken once only
        return isinstance(value, Iterable) and not isinstance(value, (str, Mapping, Tensor))
    if origin in (Sequence, list, tuple):
        parts = get_args(hint)
        if not isinstance(value, Tensor) and callable(getattr(value, "tolist", None)):  # numpy's and pandas' own
            value = value.tolist()
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        if origin is tuple and Ellipsis not in parts:
            return len(value) == len(parts) and all(map(_is_kind, value, parts))
        return all(_is_kind(v, parts[0]) for v in value)
    if (origin or hint).__module__.startswith("numpy._typing"):  # parts of ArrayLike, which says little
        return True
    if getattr(hint, "_is_protocol", False):
        return all(hasattr(value, member) for member in _members(hint))
    return isinstance(value, origin or hint)


@functools.cache
def _members(protocol: type) -> tuple[str, ...]:
    """Return what a protocol asks for."""
    own = [c for c in protocol.__mro__ if getattr(c, "_is_protocol", False) and c.__name__ != "Protocol"]
    names = {n for c in own for n in (*vars(c), *vars(c).get("__annotations__", ()))}
    return tuple(n for n in names if n == "__call__" or not n.startswith("_"))


_KIND_NAMES: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    str: "a text",
    Tensor: "a torch tensor",
    torch.Size: "a tuple such as (2,)",
    type(None): "None",
    Callable: "a function",
}

_PROTOCOL_NAMES = {  # by name: this module lies below those that declare them
    "Potential": "a potential",
    "Base": "a potential with a sample method",
    **dict.fromkeys(("EnergyModel", "LevelModel"), "a model such as RecoveryEBM"),
}


def _kind_text(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind_text(part) for part in parts))
    if (origin or hint) in _KIND_NAMES:
        return _KIND_NAMES[origin or hint]
    if origin in (Sequence, list, tuple):
        if origin is tuple and Ellipsis not in parts:
            return f"a tuple of {', '.join(map(_kind_text, parts))}"
        return f"a sequence, each {_kind_text(parts[0])}"
    name = getattr(origin or hint, "__name__", str(hint))
    return _PROTOCOL_NAMES.get(name, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")

"""What a checkpoint of a run is compared by."""

from dataclasses import fields, is_dataclass

from torch import Tensor

from energyppl.errors import CheckpointError


def describe(value: object) -> str:
    """What an objective is, the same in every process (a function's own repr holds its address)."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = ", ".join(f"{f.name}={describe(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__qualname__}({parts})"
    if isinstance(value, Tensor):
        return str(value.tolist())
    if isinstance(value, (int, float, str, type(None))):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def require_same_tensors(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    odd = [n for n in ours if n not in theirs or theirs[n].shape != ours[n].shape] + [
        n for n in theirs if n not in ours
    ]
    if odd:
        raise CheckpointError(
            f"this checkpoint is of another model: {', '.join(odd[:4])} differ in presence or shape; "
            "build the model with the settings it was trained with"
        )

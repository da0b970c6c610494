"""What a run asks of its model and labels, and what a checkpoint of it is compared by."""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from energyppl._checks import shape_text
from energyppl.errors import CheckpointError, InvalidInput


@runtime_checkable
class Standardizing(Protocol):
    """A model that wants to know its data's location and scale before it is trained for the first time."""

    is_standardized: Tensor  # (), bool

    def standardize(self, data: Tensor) -> None:
        """Take the coordinates' location and scale from ``data``."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """An objective that gives the model what it trains, a kernel or an initializer, before training begins."""

    def prepare(self, model: Any) -> None:
        """Write it to the model."""
        ...


@runtime_checkable
class Paced(Protocol):
    """An objective that knows which learning rate suits it."""

    def default_learning_rate(self, model: Any) -> float | None:
        """The largest one; None for what points of these dimensions usually take."""
        ...


class Labelled(Protocol):
    """A model that can be given classes."""

    net: Any  # has .classes, how many there are

    def given(self, label: Tensor) -> Any:
        """The model of each row's class."""
        ...


def initializer_parameters(model: nn.Module) -> list[Tensor]:
    """What a model's initializer learns; nothing if it has none."""
    initializer = getattr(model, "initializer", None)
    return [] if initializer is None else list(initializer.parameters())


def move_to(model: nn.Module, device: str | torch.device) -> None:
    """Move a model to a device.

    Raises:
        InvalidInput: if there is no such device here.
    """
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise InvalidInput(
            f"device {str(device)!r} can't be used ({reason}): leave it out to stay where it is"
        ) from error


def check_labels(model: nn.Module, data: Tensor, labels: Tensor) -> Tensor:
    """One whole number for each row, within the network's classes, on the data's device.

    Raises:
        InvalidInput: for anything else, or a model without classes.
    """
    if not hasattr(model, "given"):
        raise InvalidInput(
            f"labels need a model that can be given a class, as RecoveryEBM; got {type(model).__name__}: leave them out"
        )
    net = getattr(model, "net", None)
    classes = int(getattr(net, "classes", 0))
    if classes == 0:
        raise InvalidInput(
            f"labels are for a model whose network has classes; got {type(net).__name__} without: build it with "
            "classes=…"
        )
    if not isinstance(labels, Tensor):
        raise InvalidInput(f"labels must be a torch tensor; got {type(labels).__name__}: wrap it in torch.as_tensor")
    kind = labels.dtype
    if labels.shape != data.shape[:1] or kind.is_floating_point or kind.is_complex or kind == torch.bool:
        raise InvalidInput(
            f"labels must be one whole number for each of {len(data)} rows; got {labels.dtype} "
            f"{shape_text(labels.shape)}"
        )
    if not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise InvalidInput(
            f"labels must lie between 0 and {classes - 1}; got {int(labels.min())} to {int(labels.max())}"
        )
    return labels.detach().long().to(data.device)


def label_sum(labels: Tensor | None) -> int:
    """A number that tells labels in their order from others; −1 without."""
    return -1 if labels is None else int((labels.cpu() * torch.arange(1, len(labels) + 1)).sum())


_DECLARED = ("sigmas", "base_sigma")  # of a model's state: what it is built with and no training changes


def require_same_tensors(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    odd = [n for n in ours if n not in theirs or theirs[n].shape != ours[n].shape] + [
        n for n in theirs if n not in ours
    ]
    if odd:
        raise CheckpointError(
            f"this checkpoint is of another model: {', '.join(odd[:4])} differ in presence or shape; "
            "build the model with the settings it was trained with"
        )
    for name in _DECLARED:
        was, now = (state[name].double().flatten().tolist() if name in state else [] for state in (theirs, ours))
        for place, (their, our) in enumerate(zip(was, now, strict=True)):
            if their != our:
                raise CheckpointError(
                    f"this checkpoint was made with another model's {name}: {their:.6g}, not {our:.6g}"
                    f"{f' at place {place}' if len(now) > 1 else ''}; continue with the same, or write to another place"
                )


def default_learning_rate(objective: object, model: object, data: Tensor) -> float:
    """The learning rate that suits an objective, if it knows one, or else points of these dimensions."""
    own = objective.default_learning_rate(model) if isinstance(objective, Paced) else None
    return own or (4e-3 if math.prod(data.shape[1:]) <= 2 else 1e-3)

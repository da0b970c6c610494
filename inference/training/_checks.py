"""Checks of a training run: its model, rows and labels, and the checkpoints that it may go on from."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from energyppl._checks import as_points, check_data, check_kind, shape_text
from energyppl.errors import CheckpointError, InvalidInput, first_line
from energyppl.inference.objectives.contract import Objective, Paced

_DECLARED = ("sigmas", "base_sigma")  # of a model's state: what it is built with and no training changes
_MEASURED_ROWS = 4096  # of the held-out data


class Rows(NamedTuple):
    """Rows to train on and to evaluate on, in the model's dtype and on its device."""

    data: Tensor  # (n, *event)
    labels: Tensor | None  # (n,)
    held_out: Tensor  # (m, *event)


def check_trainable(model: nn.Module) -> None:
    """Require a model with weights that can learn, where autograd is on.

    Raises:
        InvalidInput: for any other.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model must be a torch module such as a RecoveryEBM; got {type(model).__name__}")
    if next(model.parameters(), None) is None:
        raise InvalidInput("the model has no parameters: there is nothing to train")
    if not any(p.requires_grad for p in model.parameters()):
        raise InvalidInput("all of the model's parameters are frozen: set requires_grad on those that are to learn")
    if not torch.is_grad_enabled():
        raise InvalidInput("training needs gradients, and autograd is off here: leave torch.no_grad()")


def checked_objective(objective: Any) -> Objective:
    """Require an objective, and not its class.

    Raises:
        InvalidInput: for anything else.
    """
    if isinstance(objective, type) or not all(
        callable(getattr(objective, n, None)) for n in ("init", "loss", "measure")
    ):
        came = f"the class {objective.__name__}" if isinstance(objective, type) else type(objective).__name__
        raise InvalidInput(f"objective must be one such as RecoveryLikelihood(); got {came}: call it, or pass another")
    found: Objective = objective
    return found


def split_rows(model: nn.Module, data: Tensor, labels: Tensor | None, held_out: Tensor | None) -> Rows:
    """Check the rows, and set a tenth of them aside to evaluate on unless others are given.

    Raises:
        InvalidInput: for rows of the wrong shape, dtype or number, and labels that don't fit.
    """
    event_shape = getattr(model, "event_shape", None)
    data = as_points("data", data)
    held_out = as_points("held_out", held_out)
    if not isinstance(data, Tensor):
        raise InvalidInput(f"data must be a tensor, an array or a frame; got {type(data).__name__}: pass one of these")
    least = 3 if held_out is None else 2  # two rows are needed for a standard deviation
    check_data("data", data, data.shape[1:] if event_shape is None else event_shape, at_least=least)
    like = next(model.parameters())
    data = data.detach().to(like)
    if labels is None:
        _require_no_classes(model)
    else:
        labels = check_labels(model, data, labels)
    if held_out is None:
        # Always the same split, so that a continued run has the same rows.
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).to(data.device)
        aside = max(1, len(data) // 10)
        held_out, data = data[order[:aside]], data[order[aside:]]
        labels = labels if labels is None else labels[order[aside:]]
    held_out = check_data("held_out", held_out, data.shape[1:])[:_MEASURED_ROWS].detach().to(like)
    return Rows(data, labels, held_out)


def clipped_apart(model: nn.Module, weights: list[Tensor]) -> list[list[Tensor]]:
    """Split weights into those of the energy and those of an initializer, whose gradients are different things."""
    initializer = getattr(model, "initializer", None)
    started = set() if initializer is None else {id(p) for p in initializer.parameters()}
    parts = [[p for p in weights if (id(p) in started) == own] for own in (False, True)]
    return [part for part in parts if part]


def move_to(model: nn.Module, device: str | torch.device) -> None:
    """Move a model to a device.

    Raises:
        InvalidInput: if there is no such device here.
    """
    check_kind("device", device, str | int | torch.device)
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = first_line(error)
        raise InvalidInput(
            f"device {str(device)!r} can't be used ({reason}): leave it out to stay where it is"
        ) from error


def _require_no_classes(model: Any) -> None:
    """Require a network without classes, for rows that come without labels.

    Raises:
        InvalidInput: for one with classes, whose tables would stay as they began.
    """
    classes = getattr(getattr(model, "net", None), "classes", 0)
    if isinstance(classes, int) and classes:
        raise InvalidInput(
            f"the model's network has {classes} classes, and the rows came without labels: pass labels=…, or build the "
            "network without classes"
        )


def check_labels(model: nn.Module, data: Tensor, labels: Tensor) -> Tensor:
    """Require one whole number for each row, within the network's classes, on the data's device.

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


def data_key(data: Tensor, held_out: Tensor, labels: Tensor | None) -> list[Any]:
    """Return numbers that tell these rows and labels, in their order, from others."""
    order = 0 if labels is None else int((labels.cpu() * torch.arange(1, len(labels) + 1)).sum())
    sums = [float(rows.cpu().double().sum()) for rows in (data, held_out)]  # a GPU adds up in an order of its own
    return [list(data.shape), *sums, -1 if labels is None else order]


def check_same_run(theirs: Any, ours: dict[str, Any]) -> None:
    """Require a checkpoint of the same run: model, data, options and objective.

    Raises:
        CheckpointError: for any other, or none at all; the message says what differs.
    """
    if not isinstance(theirs, dict) or theirs.keys() != ours.keys():
        raise CheckpointError(
            "this checkpoint does not hold a training run of this version of energyppl: pass one that fit wrote, or "
            "begin again"
        )
    for key, what in (
        ("data", "other data"),
        ("options", "other options"),
        ("objective", "another objective"),
        ("schedule", "another model's schedule"),
        ("kernel", "another model's kernel"),
    ):
        if theirs[key] != ours[key]:
            raise CheckpointError(
                f"this checkpoint was made with {what}: {theirs.get(key)}, not {ours[key]}; "
                "continue with the same, or write to another place"
            )
    for part in ("model", "state"):
        _check_same_tensors(theirs[part], ours[part])
    _check_declared(theirs["model"], ours["model"])


def _check_same_tensors(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    missing = [name for name in ours if name not in theirs]
    odd = [name for name in ours if name in theirs and not _alike(theirs[name], ours[name])]
    more = [name for name in theirs if name not in ours]
    if missing or odd or more:
        raise CheckpointError(
            f"this checkpoint is of another model: {', '.join((missing + odd + more)[:4])} differ in presence, shape "
            "or dtype, or are not finite; build the model with the settings it was trained with"
        )


def _alike(their: Any, our: Tensor) -> bool:
    return (
        isinstance(their, Tensor)
        and their.shape == our.shape
        and their.dtype == our.dtype
        and bool(torch.isfinite(their).all())
    )


def _check_declared(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    for name in _DECLARED:
        was, now = (state[name].double().flatten().tolist() if name in state else [] for state in (theirs, ours))
        for place, (their, our) in enumerate(zip(was, now, strict=True)):
            if their != our:
                raise CheckpointError(
                    f"this checkpoint was made with another model's {name}: {their:.6g}, not {our:.6g}"
                    f"{f' at place {place}' if len(now) > 1 else ''}; continue with the same, or write to another place"
                )


def load_adam(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load Adam's moments, in the memory order of the weights: fused Adam updates moments of another order otherwise.

    Raises:
        ValueError: for other settings than the optimizer's, or moments that don't fit its weights or are not finite.
    """
    ours = optimizer.state_dict()
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    groups = [{**group, "lr": None} for group in ours["param_groups"]]
    if [{**group, "lr": None} for group in state["param_groups"]] != groups:
        raise ValueError("the optimizer's settings are others")
    if not set(state["state"]) <= set(range(len(weights))):  # a weight without a gradient has none
        raise ValueError("the optimizer's moments are of other weights")
    for index, moments in state["state"].items():
        weight = weights[index]
        if set(moments) != {"step", "exp_avg", "exp_avg_sq"} or moments["step"].shape != ():
            raise ValueError("the optimizer's moments are of another optimizer")
        if not all(_alike(moments[name], weight) for name in ("exp_avg", "exp_avg_sq")):
            raise ValueError("the optimizer's moments don't fit the weights, or are not finite")
        if bool((moments["exp_avg_sq"] < 0).any()) or not float(moments["step"]) >= 0:
            raise ValueError("the optimizer's moments are impossible")
    optimizer.load_state_dict(state)
    for weight in weights:
        for name in ("exp_avg", "exp_avg_sq"):
            if name in optimizer.state[weight]:
                moment = optimizer.state[weight][name]
                optimizer.state[weight][name] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)


def default_learning_rate(objective: object, model: object, data: Tensor) -> float:
    """Return the learning rate that suits an objective, if it knows one, or else points of these dimensions."""
    own = objective.default_learning_rate(model) if isinstance(objective, Paced) else None
    return own or (4e-3 if math.prod(data.shape[1:]) <= 2 else 1e-3)

"""Checks of a training run: its model, rows and labels, and the checkpoints that it may go on from."""

from typing import Any

import torch
from torch import Tensor, nn

from energyppl._checks import shape_text
from energyppl.errors import CheckpointError, InvalidInput
from energyppl.inference.objectives.contract import Objective

_DECLARED = ("sigmas", "base_sigma")  # of a model's state: what it is built with and no training changes
_MEASURED = ("moves",)


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
    half = {str(p.dtype) for p in model.parameters() if p.requires_grad and p.dtype.itemsize < 4}
    if half:
        raise InvalidInput(
            f"weights must be torch.float32 or torch.float64 to be trained; got {', '.join(sorted(half))}, which "
            "rounds small steps away: call model.float(), and leave half precision to the objective's autocast"
        )
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


def is_conditional(model: Any) -> bool:
    """Tell whether a model is one of points given contexts."""
    return hasattr(model, "standardize_context")


def one_condition(model: Any) -> Any:
    """Return a conditional model given one context, such that it has energies to try; another as it is."""
    return model.view(model.loc.new_zeros(model.feature_shape)) if is_conditional(model) else model


def split_pair(model: nn.Module, name: str, rows: Any) -> tuple[Any, Any]:
    """Return points and their contexts, if they came as a pair, which is for conditional models.

    Raises:
        InvalidInput: for a tuple that is no pair, or for another model.
    """
    if not isinstance(rows, tuple):
        return rows, None
    if not is_conditional(model):
        raise InvalidInput(
            f"{name} must be a tensor of rows; got a tuple: that is for a ConditionalEBM, so train one, or join "
            "the columns"
        )
    if len(rows) != 2:
        raise InvalidInput(f"{name} must be a pair (y, context); got {len(rows)} things")
    return rows


def check_condition(model: nn.Module, name: str, rows: Tensor, condition: Any) -> Tensor | None:
    """Return the labels ``(n,)`` or contexts ``(n, *context)`` of some rows, on the model's device; None for none.

    Raises:
        InvalidInput: for a model with contexts or classes that has none of them here, and for those that don't fit.
    """
    if is_conditional(model):
        return _check_contexts(model, name, rows, condition)
    if condition is None:
        require_no_classes(model)
        return None
    return check_labels(model, rows, condition)


def _check_contexts(model: Any, name: str, rows: Tensor, contexts: Any) -> Tensor:
    if contexts is None:
        raise InvalidInput(f"{name} of a conditional model must be a pair (y, context); got rows alone: pass both")
    if not isinstance(contexts, Tensor):
        contexts = torch.as_tensor(contexts)
    model.contexts.check(contexts)
    if contexts.dim() != len(model.context_shape) + 1 or len(contexts) != len(rows):
        raise InvalidInput(
            f"{name} must have one context for each of {len(rows)} rows; got contexts {shape_text(contexts.shape)}"
        )
    found: Tensor = contexts.detach().to(next(model.parameters()))
    return found


def clipped_apart(model: nn.Module, weights: list[Tensor]) -> list[list[Tensor]]:
    """Split weights into those of the energy and those of an initializer, whose gradients are different things."""
    initializer = getattr(model, "initializer", None)
    started = set() if initializer is None else {id(p) for p in initializer.parameters()}
    parts = [[p for p in weights if (id(p) in started) == own] for own in (False, True)]
    return [part for part in parts if part]


def require_no_classes(model: Any) -> None:
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
        ("updates", "another optimizer or scheduler"),
    ):
        if theirs[key] != ours[key]:
            raise CheckpointError(
                f"this checkpoint was made with {what}: {theirs.get(key)}, not {ours[key]}; "
                "continue with the same, or write to another place"
            )
    for part in ("model", "state"):
        _check_same_tensors(_declared_or_trained(theirs[part]), _declared_or_trained(ours[part]))
    _check_declared(theirs["model"], ours["model"])


def _declared_or_trained(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state without what is measured once training has ended, and goes with the weights of then."""
    return {name: value for name, value in state.items() if name.rpartition(".")[2] not in _MEASURED}


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

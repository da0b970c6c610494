"""The contract of training objectives, and the checks that they share."""

from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from energyppl.errors import InvalidInput
from energyppl.potentials.algebra import Potential

__all__ = ["Loss", "Objective", "ScoredModel", "points_at"]


class Loss(NamedTuple):
    """A loss to step on, and what to write down about it."""

    value: Tensor  # (), differentiable
    record: dict[str, float]


class Objective(Protocol):
    """A way to train: a frozen value; whatever it learns on the way lives in the model's buffers."""

    def loss(self, model: Any, batch: Tensor) -> Loss:
        """The loss of one batch ``(n, *event)``."""
        ...

    def measure(self, model: Any, data: Tensor) -> float:
        """How well the model does on held-out ``data``: lower is better, and the same for the same weights."""
        ...


def check_model(model: object, needs: str, *attributes: str) -> None:
    """Require a model of the kind that an objective trains.

    Args:
        model: what came.
        needs: what needs which kind, the message's first words.
        attributes: by which that kind is known.

    Raises:
        InvalidInput: if one of them is missing.
    """
    missing = [name for name in attributes if not hasattr(model, name)]
    if missing:
        came = f"{type(model).__name__}, without {', '.join(missing)}"
        raise InvalidInput(f"{needs}; got {came}: {training_hint(model)}")


def training_hint(model: object) -> str:
    """What to do with a model that an objective is not for."""
    own = getattr(model, "default_objective", None)
    return "pass such a model" if own is None else f"train it by {describe(own)}"


def check_tunable(kernel: Any, *, adapt: bool = False) -> None:
    """Require None, or a kernel whose step size can be set for each level and, with ``adapt``, steered.

    Raises:
        InvalidInput: for a kernel's class, kernels made of others, and with ``adapt`` for one that never rejects.
    """
    if kernel is None:
        return
    name = f"the class {kernel.__name__}" if isinstance(kernel, type) else type(kernel).__name__
    if isinstance(kernel, type) or not (hasattr(kernel, "resized") and hasattr(kernel, "target_acceptance")):
        raise InvalidInput(f"kernel must have one step size that training can set; got {name}: pass MALA(0.1) or HMC()")
    if adapt and kernel.target_acceptance is None:
        raise InvalidInput(
            f"{name} accepts every move, so its step size can't be adapted: pass adapt=False, or a kernel that accepts "
            "and rejects"
        )


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


class ScoredModel(Protocol):
    """What these objectives need of a model; :class:`~energyppl.EBM` is one, and so are the models of levels."""

    event_shape: torch.Size
    net: nn.Module

    def to_unit(self, data: Tensor) -> Tensor:
        """Data in the coordinates of the energy."""
        ...

    def potential(self, level: int = 0) -> Potential:
        """The energy at a level, in those coordinates."""
        ...


def points_at(model: ScoredModel, data: Tensor, level: int) -> Tensor:
    """Data ``(n, *event)`` in the energy's coordinates, with the noise of their level if the model has a schedule."""
    x, schedule = model.to_unit(data), getattr(model, "schedule", None)
    noisy: Tensor = x if schedule is None else schedule.diffuse(x, level)
    return noisy

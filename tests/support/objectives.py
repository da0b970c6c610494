"""One evaluation of an objective, with a fresh state unless one is given."""

from typing import Any

from torch import Tensor

from energyppl.inference.objectives.contract import Loss


def loss_of(objective: Any, model: Any, batch: Tensor, state: Any = None) -> Loss:
    found: Loss = objective.loss(model, objective.init(model) if state is None else state, batch)
    return found


def measure_of(objective: Any, model: Any, data: Tensor, state: Any = None) -> float:
    found: float = objective.measure(model, objective.init(model) if state is None else state, data)
    return found

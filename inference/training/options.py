"""Options of training, and those that suit an objective."""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from energyppl._checks import check_between, check_count, check_number, check_positive
from energyppl.errors import InvalidInput
from energyppl.inference.objectives.contract import Objective, OptimizerSettings

__all__ = ["TrainingOptions", "chosen_options", "suited_optimizer", "suited_options"]


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the optimizer, and of when training stops.

    Args:
        steps: updates at most.
        batch_size: rows in a batch; all of the data if they are fewer.
        learning_rate: the optimizer's, after a short warm-up and before its cosine decay to zero; if None what suits
            the objective, or else 4e-3 in one and two dimensions and 1e-3 above.
        ema: decay of the averaged weights that the model ends with.
        clip: a gradient longer than this many times its recent length is shortened to that.
        evaluate_every: updates between evaluations on held-out data, which are also when a checkpoint is written.
        patience: evaluations in a row that are clearly worse on held-out data than the best one, after which training
            stops, and the best weights are taken.
        tolerance: how much worse, relative to the best, is clearly worse.
        label_drop: share of rows whose label is hidden at each update, or of updates whose contexts are: the energy
            without a class or a context is learned too.  If None what suits the objective: half of images' labels in
            score matching across levels, else 0.1 of the labels, and no contexts.
        weight_decay: decoupled decay of the model's weights (Loshchilov & Hutter 2019): each update shrinks them by
            this times the learning rate; if None what suits the objective and the number of rows, or else 0.
        max_gap: energy gap, in nats for each dimension, beyond which training counts as diverged.

    Raises:
        InvalidInput: for counts below one, rates that are not positive, or shares outside [0, 1].

    Example:
        >>> ep.TrainingOptions(steps=300, learning_rate=1e-3).batch_size
        512
    """

    steps: int = 1500
    batch_size: int = 512
    learning_rate: float | None = None
    ema: float = 0.999
    clip: float = 10.0
    evaluate_every: int = 100
    patience: int = 10
    tolerance: float = 0.02
    weight_decay: float | None = None
    max_gap: float = 100.0
    label_drop: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "patience"):
            check_count(name, getattr(self, name))
        for name in ("learning_rate", "clip", "max_gap"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for name in ("tolerance", "weight_decay"):
            value = getattr(self, name)
            if value is None and name == "weight_decay":
                continue
            check_number(name, value)
            if value < 0.0:
                raise InvalidInput(f"{name} must not be negative; got {value}: 0 turns it off")
        if self.label_drop is not None:
            check_number("label_drop", self.label_drop)
        if self.label_drop is not None and not 0.0 <= self.label_drop <= 1.0:
            raise InvalidInput(f"label_drop must lie in [0, 1]; got {self.label_drop}")
        check_between("ema", self.ema, 0.0, 1.0, closed=True)

    def rate(self, step: int, largest: float) -> float:
        """Return the learning rate at a step, of which ``largest`` is the largest."""
        warm = min(1.0, (step + 1) / max(1.0, 0.02 * self.steps))
        return largest * warm * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))


def suited_options(objective: Objective, model: nn.Module) -> TrainingOptions:
    """Return the options that suit an objective: the usual ones, but for its ``default_options``."""
    own: Any = getattr(objective, "default_options", None)
    return TrainingOptions(**({} if own is None else own(model)))


def suited_optimizer(objective: Objective, model: nn.Module, sample: Tensor) -> OptimizerSettings:
    """Return how weights are updated if nobody says it: an objective's ``default_optimizer``, with a learning rate."""
    own: Any = getattr(objective, "default_optimizer", None)
    suited: OptimizerSettings = OptimizerSettings() if own is None else own(model, len(sample))
    usual = 4e-3 if math.prod(sample.shape[1:]) <= 2 else 1e-3
    return suited._replace(learning_rate=suited.learning_rate or usual)


def chosen_options(
    objective: Objective, model: nn.Module, options: TrainingOptions | None, steps: int | None
) -> TrainingOptions:
    """Return the options passed, or those that suit the objective."""
    if options is None:
        suited = suited_options(objective, model)
        return suited if steps is None else replace(suited, steps=steps)
    if steps is not None:
        raise InvalidInput(f"pass steps or options; got both: put steps={steps!r} into the TrainingOptions")
    if not isinstance(options, TrainingOptions):
        raise InvalidInput(f"options must be TrainingOptions; got {type(options).__name__}: pass steps=500, say")
    return options

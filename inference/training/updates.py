"""The update of the weights: the optimizer and its learning rate, ours or a user's own."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from energyppl.autodiff.private import AdamW
from energyppl.errors import InvalidInput
from energyppl.inference.objectives.contract import OptimizerSettings
from energyppl.inference.training.options import TrainingOptions
from energyppl.inference.training.soap import SOAP

__all__ = ["MakeOptimizer", "MakeScheduler", "Updates"]

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
"""Makes an optimizer of parameters, such as ``functools.partial(torch.optim.SGD, lr=0.1)``."""

MakeScheduler = Callable[[Optimizer], LRScheduler]
"""Makes a learning-rate scheduler of an optimizer, such as one of ``torch.optim.lr_scheduler`` by ``partial``."""


class Updates:
    """AdamW or SOAP with a warm-up and a cosine decay, or an optimizer and a scheduler of a user's own.

    With an optimizer of its own the learning rate is the optimizer's, and with a scheduler the scheduler's, which is
    stepped once after each update (``ReduceLROnPlateau`` after each evaluation, with the held-out measure).

    Args:
        model: whose parameters are updated.
        state: of the objective, whose parameters are updated without weight decay.
        options: the length of the run, and the learning rate if it is the options'.
        settings: what is taken where the options leave it open, with a learning rate.
        optimizer: makes another one.
        scheduler: makes the scheduler of either.

    Raises:
        InvalidInput: for anything but functions that make such things, an optimizer that needs a closure, and a
            learning rate in the options beside another optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        state: nn.Module,
        options: TrainingOptions,
        settings: OptimizerSettings,
        optimizer: MakeOptimizer | None,
        scheduler: MakeScheduler | None,
    ) -> None:
        rate = options.learning_rate or settings.learning_rate
        assert rate is not None
        self._options, self._largest = options, rate
        weight_decay = settings.weight_decay if options.weight_decay is None else options.weight_decay
        groups: list[dict[str, Any]] = [
            {"params": [p for p in part.parameters() if p.requires_grad], "weight_decay": decay}
            for part, decay in ((model, weight_decay), (state, 0.0))
        ]
        groups = [group for group in groups if group["params"]]
        if optimizer is None:
            made = SOAP(groups, lr=rate) if settings.soap else AdamW(groups, lr=rate, fused=True)
            self._optimizer: Optimizer = made
        else:
            self._optimizer = _own_optimizer(optimizer, [p for group in groups for p in group["params"]], options)
        self._scheduler = None if scheduler is None else _own_scheduler(scheduler, self._optimizer)
        self._scheduled = optimizer is None and scheduler is None

    def begin(self, step: int) -> float:
        """Set the learning rate of update number ``step`` and return it, the first group's if there are several."""
        if self._scheduled:
            for group in self._optimizer.param_groups:
                group["lr"] = self._options.rate(step, self._largest)
        return float(self._optimizer.param_groups[0]["lr"])

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad()

    def step(self) -> None:
        """Update the weights by their gradients."""
        self._optimizer.step()
        if self._scheduler is not None and not isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step()

    def evaluated(self, measure: float) -> None:
        """Tell a scheduler that waits for a plateau what the held-out measure is."""
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(measure)

    def kind(self) -> str:
        """Name the optimizer and the scheduler."""
        parts = [self._optimizer, *([] if self._scheduler is None else [self._scheduler])]
        return " with ".join(type(part).__name__ for part in parts)

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state."""
        return self._optimizer.state_dict()

    def scheduler_state(self) -> dict[str, Any] | None:
        """Return the scheduler's state, None without one."""
        return None if self._scheduler is None else self._scheduler.state_dict()

    def load(self, optimizer: dict[str, Any], scheduler: dict[str, Any] | None) -> None:
        """Go on with states that were taken.

        Raises:
            ValueError: for states that don't fit, or are not finite.
        """
        if isinstance(self._optimizer, (AdamW, SOAP)):
            _load_moments(self._optimizer, optimizer, any_settings=self._scheduler is not None)
        else:
            _require_finite(optimizer["state"])
            self._optimizer.load_state_dict(optimizer)
        if (scheduler is None) != (self._scheduler is None):
            raise ValueError("only one of the two runs has a scheduler")
        if self._scheduler is not None and scheduler is not None:
            self._scheduler.load_state_dict(scheduler)


def _own_optimizer(make: MakeOptimizer, weights: list[nn.Parameter], options: TrainingOptions) -> Optimizer:
    example = "a function that makes one of a list of parameters, such as functools.partial(torch.optim.SGD, lr=0.1)"
    if isinstance(make, Optimizer) or not callable(make):
        raise InvalidInput(f"optimizer must be {example}; got {type(make).__name__}: pass what makes it")
    if options.learning_rate is not None:
        raise InvalidInput(
            f"an optimizer of your own has its own learning rate; got learning_rate={options.learning_rate} in the "
            "options too: leave it out there"
        )
    made = make(weights)
    if not isinstance(made, Optimizer):
        raise InvalidInput(f"optimizer must be {example}; it made {type(made).__name__}: return a torch optimizer")
    if inspect.signature(made.step).parameters["closure"].default is inspect.Parameter.empty:
        raise InvalidInput(
            f"{type(made).__name__} evaluates the loss several times in an update, and a loss here is of one batch and "
            "of chains that move on: pass another optimizer"
        )
    return made


def _own_scheduler(make: MakeScheduler, optimizer: Optimizer) -> LRScheduler:
    example = (
        "a function that makes one of an optimizer, such as "
        "functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=1000)"
    )
    if isinstance(make, LRScheduler) or not callable(make):
        raise InvalidInput(f"scheduler must be {example}; got {type(make).__name__}: pass what makes it")
    made = make(optimizer)
    if not isinstance(made, LRScheduler):
        raise InvalidInput(f"scheduler must be {example}; it made {type(made).__name__}: return a torch scheduler")
    return made


def _load_moments(optimizer: AdamW | SOAP, state: dict[str, Any], *, any_settings: bool) -> None:
    """Load moments, Adam's in the memory order of the weights: fused, it updates moments of another order otherwise.

    Raises:
        ValueError: for other settings than the optimizer's, which only a scheduler may change, or moments that don't
            fit its weights or are not finite.
    """
    ours = optimizer.state_dict()
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    kept = ("params",) if any_settings else tuple(key for key in ours["param_groups"][0] if key != "lr")
    settings = [[[group[key] for key in kept] for group in groups] for groups in _groups(ours, state)]
    if settings[0] != settings[1] or any(a.keys() != b.keys() for a, b in zip(*_groups(ours, state), strict=True)):
        raise ValueError("the optimizer's settings are others")
    if not set(state["state"]) <= set(range(len(weights))):  # a weight without a gradient has none
        raise ValueError("the optimizer's moments are of other weights")
    for index, moments in state["state"].items():
        weight = weights[index]
        shapes = _shapes(optimizer, weight)
        if set(moments) != set(shapes):
            raise ValueError("the optimizer's moments are of another optimizer")
        for name, shape in shapes.items():
            if tuple(moments[name].shape) != shape or (name != "step" and moments[name].dtype != weight.dtype):
                raise ValueError("the optimizer's moments don't fit the weights")
        _require_finite(moments)
        if bool((moments["exp_avg_sq"] < 0).any()) or not float(moments["step"]) >= 0:
            raise ValueError("the optimizer's moments are impossible")
    optimizer.load_state_dict(state)
    if isinstance(optimizer, SOAP):
        return
    for index in state["state"]:  # to ask for the moments of a weight that has none would give it empty ones
        weight = weights[index]
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[weight][name]
            optimizer.state[weight][name] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)


def _shapes(optimizer: AdamW | SOAP, weight: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that an optimizer keeps for a weight, by name."""
    if isinstance(optimizer, SOAP):
        return optimizer.shapes(weight)
    return {"step": (), "exp_avg": tuple(weight.shape), "exp_avg_sq": tuple(weight.shape)}


def _groups(*states: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [state["param_groups"] for state in states]


def _require_finite(tree: Any) -> None:
    """Require that all tensors of a tree are finite.

    Raises:
        ValueError: if one is not.
    """
    if isinstance(tree, Tensor) and not bool(torch.isfinite(tree).all()):
        raise ValueError("the optimizer's state is not finite")
    for value in tree.values() if isinstance(tree, dict) else ():
        _require_finite(value)

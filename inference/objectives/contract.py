"""The contract of training objectives, and the checks that they share.

An objective is a frozen value.  What it learns beside the model's weights, such as step sizes, persistent chains or a
log Z, is a state of its own that ``init`` makes and whoever trains holds (as in optax and blackjax): ``loss`` writes to
that state and to nothing else.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from energyppl._checks import is_number
from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import EnergyModel
from energyppl.inference.levels.step_sizes import LevelKernel, check_level_kernel
from energyppl.schedule import NoiseSchedule

__all__ = [
    "KernelState",
    "Loss",
    "Objective",
    "OptimizerSettings",
    "check_fraction",
    "check_model",
    "check_noisy_end",
    "check_noisy_start",
    "check_tunable",
    "check_weight",
    "describe",
    "diffuse",
    "training_hint",
]

_NOISY = -4.0  # log-SNR of a noisy end, at most


class Loss(NamedTuple):
    """Loss: a differentiable value, with the numbers that training guards and records.

    Example:
        >>> loss = ep.objectives.Loss(torch.tensor(0.7), {"accuracy": 0.5}, energy_gap=0.1)
        >>> loss.columns()
        {'energy_gap': 0.1, 'accuracy': 0.5}
    """

    value: Tensor  # (), differentiable, nats unless the objective says otherwise
    record: Mapping[str, float] = MappingProxyType({})
    energy_gap: float | None = None  # energy of data less that of negatives, nats: training stops where it runs away
    smallest_step: float | None = None  # of all levels' step sizes: training stops where chains no longer move

    def columns(self) -> dict[str, float]:
        """Return all that is to be written down, by name."""
        own = {"energy_gap": self.energy_gap, "smallest_step": self.smallest_step}
        return {name: value for name, value in own.items() if value is not None} | dict(self.record)


class Objective(Protocol):
    """Training objective: a frozen value that makes a state and, from it and a batch, a loss.

    It may have more, of which training makes use: ``keeps_best = True`` leaves the model with the weights of its best
    ``measure`` in place of the averaged ones; ``default_options(model)`` returns arguments of ``TrainingOptions``;
    ``default_optimizer(model, rows)`` returns the :class:`OptimizerSettings` that suit as many training rows;
    ``settle(model, state, data)`` is called once when training ends; ``ties_levels(model)`` tells whether the loss
    leaves no constant free, so that log Z of the energies given a context is known.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> objective: ep.objectives.Objective = ep.objectives.SlicedScoreMatching()
        >>> state = objective.init(ebm)
        >>> objective.loss(ebm, state, torch.randn(32, 2)).value.shape
        torch.Size([])
    """

    def init(self, model: Any) -> nn.Module:
        """Check the model and make the objective's state for it, on the model's device; the model stays as it is.

        A state's parameters are learned with the model's, and its buffers are kept in checkpoints.  A state with a
        ``level_kernel`` hands it to the model when training ends.
        """
        ...

    def loss(self, model: Any, state: Any, batch: Tensor) -> Loss:
        """Return the loss of one batch ``(n, *event)``, and write what is learned beside weights to the state."""
        ...

    def measure(self, model: Any, state: Any, data: Tensor) -> float:
        """Say how well the model does on held-out ``data``: lower is better, and the same for the same weights."""
        ...


class OptimizerSettings(NamedTuple):
    """Settings of the optimizer, where training options and user leave them open.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> ep.PersistentLikelihood().default_optimizer(ebm, rows=1000)
        OptimizerSettings(learning_rate=0.001, weight_decay=0.0, soap=False)
    """

    learning_rate: float | None = None  # the largest one; None for what points of these dimensions usually take
    weight_decay: float = 0.0  # decoupled
    soap: bool = False  # by :class:`~energyppl.inference.training.SOAP` in place of AdamW


class KernelState(nn.Module):
    """The state of an objective whose chains need a kernel: one step size for each level.

    Args:
        level_kernel: moves the chains.

    Example:
        >>> state = ep.RecoveryLikelihood().init(ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3)))
        >>> state.level_kernel.step_sizes.shape
        torch.Size([3])
    """

    def __init__(self, level_kernel: LevelKernel) -> None:
        super().__init__()
        self.level_kernel = level_kernel


def diffuse(model: EnergyModel, data: Tensor, level: int | Tensor) -> Tensor:
    """Return data ``(n, *event)`` in the energy's coordinates, with their level's noise if the model has levels."""
    z = model.to_unit(data)
    schedule = getattr(model, "schedule", None)
    return z if schedule is None else schedule.diffuse(z, level)


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
    """Say what to do with a model that an objective is not for."""
    own = getattr(model, "default_objective", None)
    return "pass such a model" if own is None else f"train it by {describe(own)}"


def check_noisy_start(schedule: NoiseSchedule) -> None:
    """Require a schedule whose level 0 has noise.

    Raises:
        InvalidInput: for another one.
    """
    if float(schedule.sigma_bar[0]) <= 0.0:
        raise InvalidInput(
            "this training needs noise at every level, and this schedule's level 0 has none: pass one such as "
            "NoiseSchedule.cosine"
        )


def check_noisy_end(schedule: NoiseSchedule) -> None:
    """Require a schedule whose noisy end is Gaussian whatever the data are.

    Raises:
        InvalidInput: for another one.
    """
    if not float(schedule.log_snr[-1]) <= _NOISY:
        raise InvalidInput(
            f"training of a continuous network needs a schedule with a noisy end, of a log-SNR of {_NOISY:g} at "
            f"most, where the density is known to be Gaussian; got {float(schedule.log_snr[-1]):.3g}: pass one such as "
            "NoiseSchedule.cosine(20, log_snr_max=4.6, log_snr_min=-6.0)"
        )


def check_fraction(name: str, value: Any, *, closed: bool = False) -> None:
    """Require a share of a batch in [0, 1), or in [0, 1] if ``closed``."""
    if not is_number(value) or not 0.0 <= value <= 1.0 or (value == 1.0 and not closed):
        raise InvalidInput(f"{name} must lie in [0, 1{']' if closed else ')'}; got {value!r}")


def check_tunable(kernel: Any, *, adapt: bool = False) -> None:
    """Require None, or a kernel whose step size can be set for each level and, with ``adapt``, tuned.

    Raises:
        InvalidInput: for a kernel's class, kernels made of others, and with ``adapt`` for one that never rejects.
    """
    if kernel is None:
        return
    check_level_kernel(kernel)
    if adapt and kernel.target_acceptance is None:
        raise InvalidInput(
            f"{type(kernel).__name__} accepts every move, so its step size can't be adapted: pass adapt=False, or a "
            "kernel that accepts and rejects"
        )


def check_weight(name: str, weight: Any) -> None:
    """Require the weight of a term of a loss: a finite number that is not negative.

    Raises:
        InvalidInput: for another.
    """
    if not (is_number(weight) and math.isfinite(weight) and weight >= 0.0):
        raise InvalidInput(f"{name} must be a finite number that is not negative; got {weight!r}: 0 leaves it out")


def describe(value: object) -> str:
    """Print an objective the same way in every process (a function's own repr holds its address)."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = ", ".join(f"{f.name}={describe(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__qualname__}({parts})"
    if isinstance(value, Tensor):
        return str(value.tolist())
    if isinstance(value, (int, float, str, type(None), np.number)):
        return repr(value.item() if isinstance(value, np.number) else value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))

"""What an energy-based model is trained by: values that turn a batch of data into a loss.

Recovery likelihood (Gao et al. 2021, Algorithm 1): noise a data point to level t, once more to level t + 1, and raise
the likelihood of the first given the second.  The gradient is ∇U(x_t) − E[∇U(x)] over the recovery distribution, whose
draws come from a few steps of a kernel.  *Where those chains start decides whether training is stable*: from the noisy
point, chains that stop moving leave an unbounded objective; from the data, which is already an exact draw of the true
recovery distribution, they leave a zero gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from energyppl._checks import check_count
from energyppl.errors import InvalidInput
from energyppl.inference.adaptation import group_means
from energyppl.inference.chains import Trajectory, run_chain
from energyppl.inference.kernels import MALA, Langevin
from energyppl.potential import Potential, Tethered
from energyppl.schedule import NoiseSchedule

__all__ = ["Contrastive", "Loss", "Objective", "RecoveryLikelihood", "RecoveryModel", "from_data", "from_noisy"]

Start = Callable[[Tensor, Tensor], Tensor]
"""Where the negatives' chains begin: a function of (data y, noisy point), each ``(*batch, *event)``."""


def from_data(data: Tensor, noisy: Tensor) -> Tensor:
    """Begin at the data point, an exact draw of the true recovery distribution: the stable choice."""
    return data


def from_noisy(data: Tensor, noisy: Tensor) -> Tensor:
    """Begin at the noisy point, as DRL does: chains then learn to generate, but may run away."""
    return noisy


class RecoveryModel(Protocol):
    """What recovery likelihood needs of a model; ``energyppl.models.RecoveryEBM`` is one."""

    schedule: NoiseSchedule
    step_sizes: Tensor

    def standardized(self, data: Tensor) -> Tensor:
        """Data in the coordinates in which the schedule's noise is counted."""
        ...

    def potential(self, level: Tensor) -> Potential:
        """The energy at each point's level, in those coordinates."""
        ...


class Loss(NamedTuple):
    """A loss to step on, and what to write down about it."""

    value: Tensor  # (), differentiable
    record: dict[str, float]


class Objective(Protocol):
    """A way to train: a frozen value; whatever it learns on the way lives in the model's buffers."""

    def loss(self, model: nn.Module, batch: Tensor) -> Loss:
        """The loss of one batch ``(n, *event)``."""
        ...

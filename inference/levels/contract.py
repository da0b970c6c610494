"""Protocols of a model: one energy, energies at noise levels, energies given a condition.

The models of ``energyppl.models`` are examples.  Nothing below asks for more than these.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.integration.estimates import LogNormalizer
from energyppl.potentials.algebra import Potential
from energyppl.schedule import NoiseSchedule

__all__ = ["Conditional", "EnergyModel", "LevelModel"]


class EnergyModel(Protocol):
    """A network's energy of points that are standardized to the data, ``(x − loc) / scale``.

    Example:
        >>> model: "EnergyModel" = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> model.potential()(model.to_unit(torch.randn(5, 2))).shape
        torch.Size([5])
    """

    event_shape: torch.Size
    net: nn.Module
    loc: Tensor  # (*event), in data units
    scale: Tensor  # (*event)

    def to_unit(self, data: Tensor) -> Tensor:
        """Return data in the energy's coordinates, ``(x − loc) / scale``."""
        ...

    def potential(self, level: int | Tensor = 0) -> Potential:
        """Return the energy at a level, or at each point's own, in those coordinates."""
        ...

    def diffuse(self, x0: Tensor, level: int) -> Tensor:
        """Return data with a level's noise, in data coordinates; as they are if the model has no levels."""
        ...

    def sample(self, sample_shape: int | Sequence[int] = (), *, level: int = 0) -> Tensor:
        """Return samples of a level, ``(*sample_shape, *event)``, in data coordinates."""
        ...

    def log_normalizer(self, level: int = 0) -> LogNormalizer:
        """Estimate log Z of a level's density in data coordinates."""
        ...


class LevelModel(EnergyModel, Protocol):
    """Energies at the levels of a noise schedule, and the kernel that moves chains there.

    Example:
        >>> model: "LevelModel" = ep.JointEBM(ep.MLPEnergy((2,), levels=4), ep.NoiseSchedule.cosine(levels=3))
        >>> model.levels, model.potential(2)(torch.randn(5, 2)).shape
        (4, torch.Size([5]))
    """

    schedule: NoiseSchedule
    levels: int  # how many have an energy
    initial_kernel: TunableKernel  # the kernel that it was declared with, where training begins
    level_kernel: LevelKernel  # the kernel that it samples with, one step size for each level
    initializer: nn.Module | None  # says where recovery chains begin


class Conditional(LevelModel, Protocol):
    """A level model that can be asked for a condition, a class or a context, or that was.

    Example:
        >>> net = ep.MLPEnergy((2,), levels=3, classes=10)
        >>> model: "Conditional" = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(levels=3))
        >>> model.view(torch.tensor(7), guidance=1.0).guidance
        1.0
    """

    conditions: Tensor | None  # the class or context asked for, or each point's own
    condition_dims: int  # dimensions of one condition: none for a class
    guidance: float

    def view(self, condition: Tensor | None, guidance: float = 0.0) -> "Conditional":
        """Return the model of a condition, or of each row's own, which was checked."""
        ...

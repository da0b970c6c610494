"""Chains of recovery distributions: the kernel that moves them where none is chosen, and the draws that they give."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.kernels.crank_nicolson import CrankNicolson, CrankNicolsonLangevin
from energyppl.inference.levels.contract import Conditional
from energyppl.inference.levels.initializers import recovery_start
from energyppl.inference.levels.recovery import recovery_kernel, recovery_potential
from energyppl.inference.objectives.contrastive import FromNegatives
from energyppl.inference.sampling.run_chain import run_chain
from energyppl.models._network_checks import event_shape_of
from energyppl.potentials.algebra import Potential

__all__ = ["RecoveryDraws", "default_kernel"]

_FEW_DIMENSIONS = 4  # up to here proposals from the tilt are accepted so often that a gradient doesn't pay


def default_kernel(net: nn.Module, event_shape: Sequence[int] | None) -> TunableKernel:
    """Return the kernel that moves recovery chains where none is chosen: with the gradient in many dimensions."""
    few = math.prod(event_shape_of(net, event_shape)) <= _FEW_DIMENSIONS
    return CrankNicolson() if few else CrankNicolsonLangevin()


@dataclass(frozen=True, eq=False)
class RecoveryDraws:
    """Chains that draw from a recovery distribution, in the standardized coordinates that step sizes count in."""

    model: Conditional
    noisy: Tensor
    level: Tensor
    alpha: Tensor
    steps: int

    def __call__(self, potential: Potential, shape: torch.Size, like: Tensor) -> Tensor:
        model, levels = self.model, self.level.expand(shape)
        points = model.to_unit(self.noisy).expand(*shape, *model.event_shape)
        tilted = recovery_potential(model, points, levels)
        return self._run(tilted, recovery_start(model, tilted, points, levels), levels).to(like)

    def log_z(self, potential: Potential, value: Tensor) -> Tensor:
        """Return a log Z whose gradient is that of recovery likelihood, from chains that begin at the value."""
        model = self.model
        levels = self.level.expand(value.shape[: value.dim() - len(model.event_shape)])
        tilted = recovery_potential(model, model.to_unit(self.noisy).expand(value.shape), levels)
        moved = self._run(tilted, (model.to_unit(value) / self.alpha).detach(), levels)
        return FromNegatives(moved)(potential, value)

    def _run(self, tilted: Potential, start: Tensor, levels: Tensor) -> Tensor:
        model = self.model
        kernel = recovery_kernel(model.level_kernel, model.schedule, levels)
        x = run_chain(kernel, tilted, start, self.steps).state.x
        return model.loc + model.scale * self.alpha * x

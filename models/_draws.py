"""Draws of a model's recovery distributions, by the chains that the model is trained with, and given contexts."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from energyppl.autodiff.private import is_transformed
from energyppl.errors import QuadratureError, warn_user
from energyppl.inference.levels.contract import Conditional
from energyppl.inference.levels.initializers import recovery_start
from energyppl.inference.levels.recovery import recovery_kernel, recovery_potential
from energyppl.inference.objectives.contrastive import FromNegatives
from energyppl.inference.sampling.run_chain import run_chain
from energyppl.potentials.algebra import Potential

__all__ = ["ContextDraws", "RecoveryDraws"]


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


@dataclass(frozen=True, eq=False)
class ContextDraws:
    """Samples of points given a context each: of one number by quantiles of its density, else from white noise.

    Inside ``torch.func`` transforms, whose values can't be read, and of densities too sharp for the grid chains draw.
    """

    model: Any  # a ConditionalEBM
    context: Tensor
    guidance: float

    def __call__(self, potential: Potential, shape: torch.Size, like: Tensor) -> Tensor:
        model = self.model
        if model.event_shape == (1,) and shape.numel() and not is_transformed():
            # Guidance or a temperature scales the energies of noisy levels too, which chains would come down.
            with suppress(QuadratureError):
                return self._by_quantiles(shape).to(like)
            if self.guidance or float(model.inverse_temperature) != 1.0:
                warn_user(
                    "some of the contexts' densities are too sharp to be integrated: samples come by chains, which "
                    "guidance and a temperature of the model bias"
                )
        own = self.context.expand(*shape, *model.context_shape)
        drawn: Tensor = model.conditioned(own, guidance=self.guidance).sample(shape)
        return drawn.to(like)

    def _by_quantiles(self, shape: torch.Size) -> Tensor:
        """Return samples ``(*shape, 1)``; the contexts' batch broadcasts to the shape, as in plates."""
        given = self.model.given_unchecked(self.context, self.guidance)
        count = given.batch_shape.numel()
        own = torch.arange(count).reshape(given.batch_shape).expand(shape).flatten()  # each context as often
        ranks = torch.rand(shape.numel() // count, count, dtype=torch.float64).clamp(1e-16, 1.0 - 1e-16)
        drawn: Tensor = given._at_ranks(ranks.reshape(-1, *given.batch_shape))
        found = torch.empty_like(drawn).flatten()
        found[own.argsort(stable=True).to(found.device)] = drawn.reshape(-1, count).mT.flatten()
        return found.reshape(*shape, 1)

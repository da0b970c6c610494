"""A differentiable log Z by contrast with negative samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from energyppl.inference.kernels.contract import Kernel
from energyppl.inference.sampling.run_chain import run_chain
from energyppl.potentials.algebra import Potential, RecoveryPotential, sum_event

__all__ = ["Contrastive", "FromNegatives", "from_data", "from_noisy"]


Start = Callable[[Tensor, Tensor], Tensor]
"""Where the negatives' chains begin: a function of (data y, noisy point), each ``(*batch, *event)``."""


def from_data(data: Tensor, noisy: Tensor) -> Tensor:
    """Begin at the data point, an exact draw of the true recovery distribution: the stable choice."""
    return data


def from_noisy(data: Tensor, noisy: Tensor) -> Tensor:
    """Begin at the noisy point, as DRL does: chains then learn to generate, but may run away."""
    return noisy


@dataclass(frozen=True, eq=False)
class FromNegatives:
    """A differentiable log Z for observed values, from draws of the model that are already there.

    Its gradient is −∂U/∂θ at the negatives.  Its *value* is an importance-sampling estimate from the tilt,
    log mean exp(−U(x̃ + σ ε)) + log of the tilt's own normalizer: unbiased for Z, noisy for log Z.

    Args:
        negatives: draws of the distribution, one for each observed value, ``(*batch, *event)``.
        particles: draws from the tilt for the value; a potential without tilt has the value 0.
    """

    negatives: Tensor
    particles: int = 16

    def __call__(self, potential: Potential, value: Tensor) -> Tensor:
        """Log Z, ``(*batch,)``, in nats."""
        energy = potential(self.negatives)
        with torch.no_grad():
            estimate = self._value(potential, value)
        return estimate + energy.detach() - energy

    def _value(self, potential: Potential, value: Tensor) -> Tensor:
        batch = value.shape[: value.dim() - len(potential.event_shape)]
        if not isinstance(potential, RecoveryPotential):
            return value.new_zeros(batch)
        sigma = torch.as_tensor(potential.sigma).to(value).expand(value.shape)
        points = potential.center + sigma * torch.randn(self.particles, *value.shape).to(value)
        log_mean = torch.logsumexp(-potential.potential(points), 0) - math.log(self.particles)
        estimate = log_mean + sum_event(0.5 * torch.log(2.0 * torch.pi * sigma**2), potential.event_shape)
        return torch.where(torch.isfinite(estimate), estimate, 0.0)  # a top level without tilt has no such estimate


@dataclass(frozen=True, eq=False)
class Contrastive:
    """A differentiable log Z that draws its own negatives: see :class:`FromNegatives` for its gradient and value.

    As the ``log_normalizer`` of an observed :class:`~energyppl.distributions.RecoveryDistribution` it gives
    ``log_prob`` the gradient of recovery likelihood, so plain ``pyro.infer.SVI`` trains the energy.

    Args:
        kernel: moves the negatives from the observed value.
        steps: how many moves.
        start: as in :class:`RecoveryLikelihood`.
        particles: as in :class:`FromNegatives`.
    """

    kernel: Kernel
    steps: int = 5
    start: Start = from_data
    particles: int = 16

    def __call__(self, potential: Potential, value: Tensor) -> Tensor:
        """Log Z, ``(*batch,)``, in nats."""
        noisy = potential.center if isinstance(potential, RecoveryPotential) else value
        moved = run_chain(self.kernel, potential, self.start(value.detach(), noisy), self.steps).state.x
        return FromNegatives(moved, self.particles)(potential, value)

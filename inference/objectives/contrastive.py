"""Contrastive log Z: a differentiable estimate whose gradient comes from negative samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from energyppl._checks import check_count, check_event
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import Kernel, check_kernel
from energyppl.inference.sampling.run_chain import run_chain
from energyppl.potentials.algebra import Potential, RecoveryPotential, sum_event
from energyppl.potentials.constrained import Constrained, constrain

__all__ = ["Contrastive", "FromNegatives", "from_data", "from_noisy"]


Start = Callable[[Tensor, Tensor], Tensor]
"""Where the negatives' chains begin: a function of (data y, noisy point), each ``(*batch, *event)``.

Points of a distribution with a support are unconstrained.
"""


def from_data(data: Tensor, noisy: Tensor) -> Tensor:
    """Begin at the data point, an exact draw of the true recovery distribution: the stable choice.

    Example:
        >>> ep.objectives.from_data(torch.zeros(2), noisy=torch.ones(2))
        tensor([0., 0.])
    """
    return data


def from_noisy(data: Tensor, noisy: Tensor) -> Tensor:
    """Begin at the noisy point, as DRL does: chains then learn to generate, but may run away.

    Example:
        >>> ep.objectives.from_noisy(torch.zeros(2), noisy=torch.ones(2))
        tensor([1., 1.])
    """
    return noisy


@dataclass(frozen=True, eq=False)
class FromNegatives:
    """A differentiable log Z for observed values, from draws of the model that are already there.

    Its gradient is −∂U/∂θ at the negatives (Hinton 2002).  Its *value*, in nats, is an importance-sampling estimate
    from the tilt, log mean exp(−U(x̃ + σ ε)) + log of the tilt's own normalizer: unbiased for Z, noisy for log Z.

    Args:
        negatives: draws of the distribution, one for each observed value, ``(*batch, *event)``.
        particles: draws from the tilt for the value; a potential without tilt has the value 0.

    Raises:
        InvalidInput: if ``negatives`` is no tensor of floating point, or ``particles`` no whole number.

    Example:
        >>> net = ep.MLPEnergy((2,), levels=1)
        >>> bell = ep.potentials.AtLevel(net, torch.tensor(0), torch.Size((2,)))
        >>> log_z = ep.objectives.FromNegatives(negatives=torch.randn(8, 2))(bell, torch.randn(8, 2))
        >>> log_z.shape, log_z.requires_grad
        (torch.Size([8]), True)
    """

    negatives: Tensor
    particles: int = 16

    def __post_init__(self) -> None:
        check_event("negatives", self.negatives, ())
        check_count("particles", self.particles)

    def __call__(self, potential: Potential, value: Tensor) -> Tensor:
        """Estimate log Z, ``(*batch,)``, in nats."""
        # The Jacobian of a support has no parameters, so the energy on the support has the whole gradient.
        own = potential.potential if isinstance(potential, Constrained) else potential
        check_event("negatives", self.negatives, own.event_shape)
        energy = own(self.negatives)
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
    ``log_prob`` the gradient of recovery likelihood (Gao et al. 2021), so plain ``pyro.infer.SVI`` trains the energy.
    Where the distribution has a support, chains move on its unconstrained potential and never leave it.

    Args:
        kernel: moves the negatives from the observed value.
        steps: how many moves.
        start: where they begin: :func:`from_data`, :func:`from_noisy`, or a function like them.
        particles: as in :class:`FromNegatives`.

    Raises:
        InvalidInput: for an argument of another kind.

    Example:
        >>> net = ep.MLPEnergy((2,), levels=1)
        >>> bell = ep.potentials.AtLevel(net, torch.tensor(0), torch.Size((2,)))
        >>> log_z = ep.objectives.Contrastive(ep.MALA(0.5), steps=2)(bell, torch.randn(8, 2))
        >>> log_z.shape, log_z.requires_grad
        (torch.Size([8]), True)
    """

    kernel: Kernel
    steps: int = 5
    start: Start = from_data
    particles: int = 16

    def __post_init__(self) -> None:
        check_kernel(self.kernel)
        check_count("steps", self.steps)
        check_count("particles", self.particles)
        if isinstance(self.start, type) or not callable(self.start):
            raise InvalidInput(
                f"start must map (data, noisy) to points; got {self.start!r}: pass from_data or from_noisy"
            )

    def __call__(self, potential: Potential, value: Tensor) -> Tensor:
        """Estimate log Z, ``(*batch,)``, in nats."""
        noisy = potential.center if isinstance(potential, RecoveryPotential) else value
        moved = run_chain(self.kernel, potential, self.start(value.detach(), noisy), self.steps).state.x
        return FromNegatives(constrain(potential, moved), self.particles)(potential, value)

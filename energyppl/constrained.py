"""Energies on constrained supports as energies on all of ℝⁿ: intervals, positive numbers, simplices."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from energyppl.errors import InvalidInput
from energyppl.potential import Potential, sum_event

__all__ = ["Constrained"]


@dataclass(frozen=True, eq=False)
class Constrained:
    """``U(T(z)) − log |det ∂T/∂z|`` for unconstrained z, where T maps ℝⁿ onto a support (change of variables).

    Args:
        potential: the energy U on the support.
        support: a constraint of ``torch.distributions.constraints``; its own parameters, such as an interval's ends,
            broadcast against points.

    Raises:
        InvalidInput: for a support that has no bijection from ℝⁿ, such as integers.
    """

    potential: Potential
    support: constraints.Constraint = field(metadata={"pure": True})
    event_shape: torch.Size = field(init=False)

    def __post_init__(self) -> None:
        try:
            shape = biject_to(self.support).inverse_shape(self.potential.event_shape)
        except NotImplementedError:
            raise InvalidInput(
                f"no bijection from unconstrained numbers to {self.support} is known: use a continuous support of "
                "torch.distributions.constraints"
            ) from None
        object.__setattr__(self, "event_shape", torch.Size(shape))

    def constrain(self, z: Tensor) -> Tensor:
        """Points of the support from unconstrained ones, ``(*batch, *event)``."""
        x: Tensor = biject_to(self.support)(z)
        return x

    def unconstrain(self, x: Tensor) -> Tensor:
        """Unconstrained points from ones inside the support."""
        z: Tensor = biject_to(self.support).inv(x)
        return z

    def __call__(self, x: Tensor) -> Tensor:
        """Energies of the unconstrained points ``x``."""
        transform = biject_to(self.support)
        inside = transform(x)
        jacobian = transform.log_abs_det_jacobian(x, inside)
        shape = self.potential.event_shape
        left = len(self.event_shape) - transform.domain.event_dim
        return self.potential(inside) - sum_event(
            jacobian, jacobian.shape[jacobian.dim() - left :] if left else shape[:0]
        )

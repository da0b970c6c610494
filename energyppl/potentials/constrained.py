"""Energies on constrained supports as energies on all of ℝⁿ: intervals, positive numbers, simplices."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transforms

from energyppl.errors import InvalidInput
from energyppl.potentials.algebra import Potential, as_potential, sum_event

__all__ = ["Constrained", "bijection"]


def bijection(support: constraints.Constraint) -> transforms.Transform:
    """The map from ℝⁿ onto a support.

    Raises:
        InvalidInput: if none is known, as for integers.
    """
    if isinstance(support, constraints.MixtureSameFamilyConstraint):  # which torch has no map for
        support = support.base_constraint
    try:
        transform: transforms.Transform = biject_to(support)
    except NotImplementedError:
        raise InvalidInput(
            f"no bijection from unconstrained numbers to {support} is known: use a continuous support of "
            "torch.distributions.constraints"
        ) from None
    return transform


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
        event_shape = as_potential("the potential of a Constrained", self.potential).event_shape
        shape = bijection(self.support).inverse_shape(event_shape)
        object.__setattr__(self, "event_shape", torch.Size(shape))

    def constrain(self, z: Tensor) -> Tensor:
        """Points of the support from unconstrained ones, ``(*batch, *event)``."""
        x: Tensor = bijection(self.support)(z)
        return x

    def unconstrain(self, x: Tensor) -> Tensor:
        """Unconstrained points from ones inside the support."""
        z: Tensor = bijection(self.support).inv(x)
        return z

    def __call__(self, x: Tensor) -> Tensor:
        """Energies of the unconstrained points ``x``."""
        transform = bijection(self.support)
        inside = transform(x)
        jacobian = transform.log_abs_det_jacobian(x, inside)
        shape = self.potential.event_shape
        left = len(self.event_shape) - transform.domain.event_dim
        return self.potential(inside) - sum_event(
            jacobian, jacobian.shape[jacobian.dim() - left :] if left else shape[:0]
        )

"""Change of variables: energies on a support (intervals, positive numbers, simplexes) as energies on all of ℝⁿ.

This is the only place that says how a support is reached from unconstrained numbers.  Chains, log Z and contrastive
learning all go through :func:`bijection` and :class:`Constrained`, so that they agree about the Jacobian.
"""

import contextlib
import copy
import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution, SineBivariateVonMises, SineSkewed
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    VonMises,
    biject_to,
    constraints,
    transforms,
)

from energyppl._checks import append_dims, is_number
from energyppl.errors import InvalidInput, first_line
from energyppl.potentials.algebra import Potential, as_potential, sum_event
from energyppl.potentials.bijections import Direction, LogStickBreaking

__all__ = [
    "Constrained",
    "bijection",
    "check_ends",
    "constrain",
    "contains",
    "latent_transform",
    "of_event_dim",
    "unconstrain",
]

_SIMPLEX = type(constraints.simplex)


class _MixtureSupport(constraints.Constraint):
    """The support of a mixture before torch 2.8, which calls the components' own, with all of their ends, that."""

    def __init__(self, base_constraint: constraints.Constraint) -> None:
        self.base_constraint = base_constraint
        super().__init__()


_MIXTURES: Any = (_MixtureSupport, getattr(constraints, "MixtureSameFamilyConstraint", _MixtureSupport))


def bijection(support: constraints.Constraint) -> transforms.Transform:
    """Find the map from ℝⁿ onto a support.

    Raises:
        InvalidInput: if none is known, as for integers, spheres and positive definite matrices.
    """
    if isinstance(support, _MIXTURES):  # for which torch has none
        return bijection(_of_one_component(support))
    if isinstance(support, constraints.independent):
        return transforms.IndependentTransform(bijection(support.base_constraint), support.reinterpreted_batch_ndims)
    if isinstance(support, (constraints.interval, constraints.half_open_interval)):
        low, high = support.lower_bound, support.upper_bound
        if is_number(low) and is_number(high) and not low < high:
            raise InvalidInput(f"the ends of an interval must be two numbers, the lower first; got {low} and {high}")
        if is_number(low) and low == -math.inf:
            return bijection(constraints.real if is_number(high) and high == math.inf else constraints.less_than(high))
        if is_number(high) and high == math.inf:
            return bijection(constraints.greater_than_eq(low))
    if isinstance(support, _SIMPLEX):
        return LogStickBreaking()
    try:
        transform: transforms.Transform = biject_to(support)
    except NotImplementedError:
        raise InvalidInput(
            f"no bijection from unconstrained numbers to {support} is known: use a continuous support of "
            "torch.distributions.constraints that has one, such as an interval or a simplex"
        ) from None
    return transform


def check_ends(support: constraints.Constraint) -> None:
    """Require the ends of an interval, or of one for each coordinate, to be numbers, the lower first.

    Raises:
        InvalidInput: otherwise; also for tensors of ends of which some are infinite, as torch's map onto an interval
            takes finite ones only.
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if not isinstance(support, (constraints.interval, constraints.half_open_interval)):
        return
    low, high = support.lower_bound, support.upper_bound
    ends = torch.as_tensor(low, dtype=torch.float64), torch.as_tensor(high, dtype=torch.float64)
    if not bool((ends[0] < ends[1]).all()):
        raise InvalidInput(f"the ends of an interval must be two numbers, the lower first; got {low} and {high}")
    if any(end.dim() and bool(end.isinf().any()) for end in ends):
        raise InvalidInput(
            f"the ends of an interval for each coordinate must be finite; got {low} and {high}: put a constraint for "
            "each coordinate together by constraints.stack"
        )


def latent_transform(distribution: Distribution) -> transforms.Transform:
    """Find the map from ℝⁿ onto the values of a latent variable; an angle is the direction of a point of the plane.

    Torch and Pyro call the support of angles real, but their densities repeat themselves along ℝ, where they are not
    normalizable.  On the plane chains cross ±π as any other angle.

    Raises:
        InvalidInput: if none is known for the distribution's support, or the angle is transformed.
    """
    if _is_circular(distribution):
        return Direction()
    if isinstance(distribution, Independent):
        size = distribution.reinterpreted_batch_ndims
        return transforms.IndependentTransform(latent_transform(distribution.base_dist), size)
    if isinstance(distribution, (ExpandedDistribution, MaskedDistribution)):
        return latent_transform(distribution.base_dist)
    if isinstance(distribution, TransformedDistribution) and not _states_its_image(distribution):
        return transforms.ComposeTransform([latent_transform(distribution.base_dist), *distribution.transforms])
    support: Any = distribution.support
    if isinstance(distribution, MixtureSameFamily) and not isinstance(support, _MIXTURES):
        support = _MixtureSupport(support)
    return bijection(support)


def _states_its_image(distribution: TransformedDistribution) -> bool:
    """Tell whether the support is where the values lie.

    Torch takes the last transform's codomain, as if its domain were filled: all of ℝ for ``2 + Exponential``, whose
    density goes on below 2 and grows there.
    """
    if type(distribution).support is not TransformedDistribution.support:  # a class that says so itself
        return True
    filled: Any = distribution.base_dist.support
    for transform in distribution.transforms:
        if transform.bijective and _of_coordinates(filled) is not _of_coordinates(transform.domain):
            return False
        filled = transform.codomain
    return True


def _of_coordinates(support: constraints.Constraint) -> constraints.Constraint:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _of_one_component(support: Any) -> constraints.Constraint:
    """Return the support that all components of a mixture share.

    Raises:
        InvalidInput: if they differ.
    """
    whole = support.base_constraint
    one = copy.copy(_of_coordinates(whole))
    for name, end in vars(one).items():
        if isinstance(end, Tensor) and end.dim() > whole.event_dim:
            over = end.dim() - 1 - whole.event_dim
            first = end.select(over, 0)
            if not bool((end == first.unsqueeze(over)).all()):
                raise InvalidInput(
                    f"components of a mixture must have one support; got {_of_coordinates(whole)}: gradients can't "
                    "cross from one to another. Give all of them the same ends"
                )
            setattr(one, name, first)
    return of_event_dim(one, whole.event_dim)


def _is_circular(distribution: Distribution) -> bool:
    """Tell whether the values are angles, although torch and Pyro call their support real."""
    if isinstance(distribution, (VonMises, SineBivariateVonMises, SineSkewed)):
        return True
    if isinstance(distribution, MixtureSameFamily):
        return _is_circular(distribution.component_distribution)
    if isinstance(distribution, (Independent, ExpandedDistribution, MaskedDistribution)):
        return _is_circular(distribution.base_dist)
    if isinstance(distribution, TransformedDistribution) and _is_circular(distribution.base_dist):
        raise InvalidInput(
            f"a {type(distribution).__name__} of angles has no period that is known: sample the angle itself, and "
            "transform it in the model"
        )
    return False


def contains(support: constraints.Constraint, x: Tensor) -> Tensor:
    """Tell which points lie in a support, ``(*batch, *event)`` to ``(*batch,)``.

    The sum over a simplex may differ from one by the rounding of the points' dtype, which grows with their number
    (torch allows 1e-6, which float32 draws of a few hundred categories exceed).
    """
    if isinstance(support, _MIXTURES):
        return contains(_of_one_component(support), x)
    if isinstance(support, constraints.independent):
        inside = contains(support.base_constraint, x)
        size = support.reinterpreted_batch_ndims
        return inside.flatten(inside.dim() - size).all(-1) if size else inside
    if isinstance(support, _SIMPLEX):
        tolerance = max(1e-6, torch.finfo(x.dtype).eps * x.shape[-1])
        return (x >= 0).all(-1) & ((x.sum(-1) - 1.0).abs() <= tolerance)
    checked: Tensor = support.check(x)
    return checked


@functools.lru_cache(maxsize=64)  # traces know a support by its identity
def of_event_dim(support: constraints.Constraint, size: int) -> constraints.Constraint:
    """Extend a support of single coordinates to events of ``size`` dimensions.

    Raises:
        InvalidInput: if one event of the support has more dimensions.
    """
    if isinstance(support, constraints.stack) and support.dim == -1:  # torch's own sums no Jacobians
        support = constraints.cat(support.cseq, dim=-1, lengths=[1] * len(support.cseq))
    try:
        own = support.event_dim
    except NotImplementedError:  # constraints.dependent and its kin
        raise InvalidInput(
            f"support must say where points lie; got {support}: pass one such as constraints.positive"
        ) from None
    with contextlib.suppress(InvalidInput):
        own = max(own, bijection(support).codomain.event_dim)  # Pyro's positive_ordered_vector says it has none
    if own > size:
        raise InvalidInput(
            f"support {support} describes points of {own} dimension(s); got an event_shape of {size}: "
            "give the energy the event_shape of the support's points"
        )
    return support if own == size else constraints.independent(support, size - own)


@dataclass(frozen=True, eq=False)
class Constrained:
    """``U(T(z)) − log |det ∂T/∂z|`` as an energy of unconstrained z, where T maps ℝⁿ onto a support.

    It has the log Z of U over the support.  On a simplex, volume is that of all coordinates but the last, as in
    ``Dirichlet``.

    Args:
        potential: the energy U on the support, ``(*batch, *event)`` to ``(*batch,)``, in nats.
        support: a constraint of ``torch.distributions.constraints``; its own parameters, such as an interval's ends,
            broadcast against points.

    Raises:
        InvalidInput: for a support that has no bijection from ℝⁿ, such as integers.

    Example:
        >>> positive = torch.distributions.constraints.positive
        >>> exponential = ep.potentials.Constrained(ep.Energy(lambda x: 2.0 * x.sum(-1), (1,)), positive)
        >>> exponential.constrain(torch.zeros(1))
        tensor([1.])
        >>> exponential(torch.zeros(1))  # U(1) − log |exp'(0)|
        tensor(2.)
    """

    potential: Potential
    support: constraints.Constraint = field(metadata={"pure": True})
    event_shape: torch.Size = field(init=False)

    def __post_init__(self) -> None:
        event_shape = as_potential("the potential of a Constrained", self.potential).event_shape
        if not isinstance(self.support, constraints.Constraint):
            raise InvalidInput(
                f"support must be a constraint of torch.distributions.constraints; got {self.support!r}: pass one such "
                "as constraints.positive"
            )
        transform = bijection(of_event_dim(self.support, len(event_shape)))
        try:
            shape = torch.Size(transform.inverse_shape(event_shape))
        except (RuntimeError, ValueError) as error:
            raise InvalidInput(
                f"support {self.support} must fit event_shape {tuple(event_shape)}; got another shape ({error}): give "
                "the energy the event_shape of the support's points"
            ) from None
        _require_jacobian(self.support, transform, shape)
        size = len(event_shape) - transform.codomain.event_dim + transform.domain.event_dim
        # Ends that differ over the batch have brought the batch's dimensions with them.
        object.__setattr__(self, "event_shape", shape[len(shape) - size :])

    @property
    def _transform(self) -> transforms.Transform:
        return bijection(of_event_dim(self.support, len(self.potential.event_shape)))

    def constrain(self, z: Tensor) -> Tensor:
        """Map unconstrained points into the support, ``(*batch, *event)``."""
        x: Tensor = self._transform(z)
        return x

    def unconstrain(self, x: Tensor) -> Tensor:
        """Map points inside the support to unconstrained ones; those on its edge and outside are not finite."""
        z: Tensor = self._transform.inv(x)
        return z

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of unconstrained points ``x``, in nats."""
        transform = self._transform
        inside = transform(x)
        jacobian = transform.log_abs_det_jacobian(x, inside)
        left = len(self.event_shape) - transform.domain.event_dim
        kept = jacobian.shape[jacobian.dim() - left :] if left else torch.Size()
        try:
            energy = self.potential(inside)
        except (ValueError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            # Far out maps over- and underflow, off the support, where torch's densities raise.
            energy = self._energy_of_legal(inside)
        energy = energy - sum_event(jacobian, kept)
        # An infinite density is that of an edge, met by rounding: a place without mass, where no chain may stay.
        return torch.where(energy == -math.inf, math.inf, energy)

    def _energy_of_legal(self, inside: Tensor) -> Tensor:
        """Evaluate points on the support only; the energy of others is infinite."""
        legal = contains(of_event_dim(self.support, len(self.potential.event_shape)), inside)
        middle = self._transform(inside.new_zeros(self.event_shape))
        energy = self.potential(torch.where(append_dims(legal, inside), inside, middle))
        return torch.where(legal, energy, torch.inf)


def _require_jacobian(support: constraints.Constraint, transform: transforms.Transform, shape: torch.Size) -> None:
    """Require a map that can be followed at the origin, with its Jacobian.

    Raises:
        InvalidInput: for one that can't, such as ``constraints.cat`` of a simplex, which has one number fewer.
    """
    origin = torch.zeros(shape)
    try:
        transform.log_abs_det_jacobian(origin, transform(origin))
    except (AssertionError, NotImplementedError) as error:
        raise InvalidInput(
            f"support {support} must have a map from unconstrained numbers whose Jacobian is known; torch's has none "
            f"({first_line(error)}): give each of its parts an energy of its own, or write the map into the energy"
        ) from None


def constrain(potential: Potential, z: Tensor) -> Tensor:
    """Map a potential's points into its support, if it is a :class:`Constrained`; others have all of ℝⁿ."""
    return potential.constrain(z) if isinstance(potential, Constrained) else z


def unconstrain(potential: Potential, x: Tensor) -> Tensor:
    """Map points of a potential's support to its own points; the inverse of :func:`constrain`."""
    return potential.unconstrain(x) if isinstance(potential, Constrained) else x

"""Energies as Pyro distributions.

``EnergyDistribution`` *holds* a potential (in Pyro, calling a distribution draws from it).  Its ``log_prob`` is
``−U(x) − log Z`` and needs a log Z: a number, or a :class:`LogZ` that works it out while parameters are being
learned.  Without one it refuses, and says what to do.

A distribution with a support has one unconstrained potential, ``unconstrained()``, which chains, log Z and contrastive
learning use alike.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from energyppl._checks import broadcast_shapes, check_event, check_shape, is_number, shape_text
from energyppl.autodiff.devices import device_of
from energyppl.autodiff.structure import dtype_named, modules_of
from energyppl.autodiff.watched import watched
from energyppl.errors import InvalidInput, NotNormalized
from energyppl.integration.estimates import LeftOut, LogNormalizer
from energyppl.potentials.algebra import Potential, RecoveryPotential, as_potential
from energyppl.potentials.constrained import Constrained, check_ends, constrain, contains, of_event_dim, unconstrain
from energyppl.potentials.points import can_expand, dtype_of

__all__ = ["EnergyDistribution", "LogZ", "RecoveryDistribution", "Sampler"]


class Sampler(Protocol):
    """Sampler of a distribution: chains, a progressive sampler, anything that respects the potential.

    Example:
        >>> def exact(potential, shape, like):  # of the standard normal
        ...     return torch.randn(*shape, *potential.event_shape).to(like)
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> ep.EnergyDistribution(normal, sampler=exact).sample((5,)).shape
        torch.Size([5, 2])
    """

    def __call__(self, potential: Potential, shape: torch.Size, like: Tensor, /) -> Tensor:
        """Draw ``(*shape, *event)`` with the dtype and device of ``like``."""
        ...


class LogZ(Protocol):
    """A log Z that depends on where it is asked: its gradient with respect to the parameters is −E_model[∂U/∂θ].

    If the distribution has a support, potential and value are unconstrained, as a :class:`Sampler`'s are.
    """

    def __call__(self, potential: Potential, value: Tensor, /) -> Tensor:
        """Estimate log Z, broadcastable to the batch of ``value``, ``(*batch, *event)``; differentiable."""
        ...


class EnergyDistribution(dist.TorchDistribution):
    """``p(x) = exp(−U(x)) / Z`` over real points, or over a support.

    It can be pickled if its potential, sampler and log Z can: not with lambdas.

    Args:
        potential: the energy U; for a batch of them it broadcasts against ``batch_shape``.
        sampler: draws points of the potential that it is given, which is an unconstrained one (:class:`Constrained`) if
            there is a ``support``; without one ``sample`` refuses.
        log_normalizer: log Z in nats: a number, a ``LogNormalizer``, a tensor that broadcasts to ``batch_shape``, or a
            :class:`LogZ` while parameters are being learned; without one ``log_prob`` refuses.
        batch_shape: shape of the batch of independent distributions.
        like: a tensor whose dtype and device draws take; the potential's own otherwise.
        support: where the density is not zero, such as ``constraints.positive``; outside of it the energy is infinite
            whatever the potential says.  All real points if None.

    Raises:
        InvalidInput: for an argument of another kind, or a support that does not fit the event shape.

    Example:
        >>> import math
        >>> half_normal = ep.EnergyDistribution(
        ...     ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (1,)),
        ...     log_normalizer=0.5 * math.log(math.pi / 2),
        ...     support=torch.distributions.constraints.positive,
        ... )
        >>> half_normal.log_prob(torch.tensor([[1.0], [-1.0]]))
        tensor([-0.7258,    -inf])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        potential: Potential,
        *,
        sampler: Sampler | None = None,
        log_normalizer: "float | Tensor | LogNormalizer | LogZ | None" = None,
        batch_shape: Sequence[int] = (),
        like: Tensor | None = None,
        support: constraints.Constraint | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.potential = as_potential("the energy", potential)
        _check_parts(sampler, like, support)
        self.sampler = sampler
        self.log_normalizer = _checked_log_z(log_normalizer)
        self._like = torch.empty(()) if like is None else like.detach()
        self._dtype = None if like is None else like.dtype
        event_shape = torch.Size(potential.event_shape)
        self._support = None if support is None else of_event_dim(support, len(event_shape))
        batch_shape = check_shape("batch_shape", batch_shape)
        known = self.log_normalizer
        if isinstance(known, Tensor) and not can_expand(known.shape, batch_shape):
            raise InvalidInput(
                f"log_normalizer must broadcast to batch_shape {shape_text(batch_shape)}; got {shape_text(known.shape)}"
            )
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Real points of the event shape, or the support that was given."""
        return of_event_dim(constraints.real, len(self.event_shape)) if self._support is None else self._support

    def __repr__(self) -> str:
        """Show the shapes: torch would list parameters, of which an energy has none."""
        return f"{type(self).__name__}(batch_shape: {tuple(self.batch_shape)}, event_shape: {tuple(self.event_shape)})"

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype and device of the draws; those that were given, or else the potential's own."""
        if self._dtype is not None:
            return self._like
        return self._like.to(dtype=dtype_of(self.potential), device=self.device)

    @property
    def device(self) -> torch.device | None:
        """Where points are to lie; None if nothing tells."""
        return device_of(self.potential) if self._dtype is None else self._like.device

    @property
    def is_unconstrained(self) -> bool:
        """Whether all real points are in the support."""
        return self._support is None

    def unconstrained(self) -> Potential:
        """Return the energy as one of all ℝⁿ: the potential itself, or a :class:`Constrained` if there is a support.

        Both have the same log Z, and draws of one are draws of the other (``potentials.constrained.constrain``).

        Raises:
            InvalidInput: if the support has no bijection from ℝⁿ, such as integers.
        """
        return self.potential if self._support is None else self._constrained

    @cached_property
    def _constrained(self) -> Constrained:
        assert self._support is not None
        return Constrained(self.potential, self._support)

    def unconstrain(self, x: Tensor, name: str = "points") -> Tensor:
        """Map points inside the support, ``(*batch, *event)``, to points of :meth:`unconstrained`.

        Raises:
            InvalidInput: for points of another shape, outside of the support or on its edge.
        """
        check_event(name, x, self.event_shape)
        if self._support is None:
            return x
        z = unconstrain(self.unconstrained(), x)
        kept = len(z.shape) - len(self.unconstrained().event_shape)
        inside = contains(self._support, x) & torch.isfinite(z).flatten(kept).all(-1)
        if not bool(inside.all()):
            raise InvalidInput(
                f"{name} must lie inside the support {self._support}; got {int((~inside).sum())} of {inside.numel()} "
                "outside of it or on its edge: drop those, or give the distribution the support that they have"
            )
        return z

    def energy(self, x: Tensor) -> Tensor:
        """Evaluate U(x) in nats, ``(*batch, *event)`` to ``(*batch,)``; infinite outside of the support.

        Raises:
            InvalidInput: for points of another shape or dtype, or if the potential returns anything but one real number
                for each point.
        """
        points, inside = self._split(x)
        return self._energy(points, inside)

    def log_prob(self, value: Tensor) -> Tensor:
        """Evaluate the log density in nats, ``(*batch,)``; −∞ outside of the support.

        Raises:
            NotNormalized: if no log Z is known.
            InvalidInput: as :meth:`energy`.
        """
        if self.log_normalizer is None:
            raise NotNormalized(
                "log_prob needs the normalizing constant of this energy, and none is known. Three ways out: estimate "
                "it and pass log_normalizer=… (energyppl.log_normalizer(energy) gives it, and a RecoveryEBM does so by "
                "itself); ask for .unnormalized(), which is right inside MCMC; or train with a contrastive "
                "estimate, log_normalizer=Contrastive(…)"
            )
        points, inside = self._split(value)
        energy = self._energy(points, inside)
        if not callable(self.log_normalizer):
            return -energy - self._watched(energy, self.log_normalizer)
        unconstrained = self.unconstrained()
        log_z: Tensor = self.log_normalizer(unconstrained, unconstrain(unconstrained, points))
        return -energy - log_z

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Replace points outside of the support by one inside; also tell which points are inside, None for all.

        The potential of a point outside may be NaN, and so would be the gradient with respect to every weight.
        """
        check_event("value", x, self.event_shape)
        if self._dtype is not None and x.dtype != self._dtype:
            raise InvalidInput(f"value must be {self._dtype} like the energy's own numbers; got {x.dtype}: convert it")
        if self._support is None:
            return x, None
        inside = contains(self._support, x)
        within = inside.reshape(*inside.shape, *[1] * len(self.event_shape))  # may be of a larger batch than x
        return torch.where(within, x, self._some_point(x)), inside

    @cached_property
    def _weights(self) -> list[nn.Parameter]:
        return [weight for module in modules_of(self.potential) for weight in module.parameters()]

    def _watched(self, energy: Tensor, known: float | Tensor) -> float | Tensor:
        """Return a log Z that is a number, which warns when a gradient asks for its slope along the weights."""
        learned = isinstance(known, Tensor) and known.requires_grad
        if learned or not energy.requires_grad:
            return known
        return watched(known if isinstance(known, Tensor) else energy.new_tensor(known), self._weights)

    def _some_point(self, like: Tensor) -> Tensor:
        try:
            unconstrained = self._constrained
        except InvalidInput:  # integers and their kin, of which zero is one
            return torch.zeros_like(like)
        return unconstrained.constrain(torch.zeros(unconstrained.event_shape, dtype=like.dtype, device=like.device))

    def _energy(self, points: Tensor, inside: Tensor | None) -> Tensor:
        with dtype_named("value", points, self.potential):
            energy = self.potential(points)
        batch = points.shape[: points.dim() - len(self.event_shape)]
        expected = broadcast_shapes(batch, self.batch_shape)
        is_real = isinstance(energy, Tensor) and energy.dtype.is_floating_point
        if not is_real or not can_expand(energy.shape, expected):
            came = f"{energy.dtype} {shape_text(energy.shape)}" if isinstance(energy, Tensor) else type(energy).__name__
            raise InvalidInput(
                f"the energy must return one real number for each point, {shape_text(expected)}; got {came}: sum or "
                "squeeze the last dimensions in the network's forward"
            )
        energy = energy.expand(expected)
        return energy if inside is None else torch.where(inside, energy, torch.inf)

    def unnormalized(self) -> "EnergyDistribution":
        """Return the same distribution with log Z = 0, which is right where a constant factor cancels, as in MCMC.

        It is not where the energy's own weights are learned: a backward pass to them warns.
        """
        return self._copy(self.batch_shape, log_normalizer=LeftOut())

    def sample(self, sample_shape: int | Sequence[int] = ()) -> Tensor:
        """Draw points of shape ``(*sample_shape, *batch_shape, *event_shape)``.

        Raises:
            InvalidInput: if the distribution has no sampler.
        """
        if self.sampler is None:
            raise InvalidInput(
                "this distribution has no sampler: pass sampler=ep.sampling.MarkovSampler(kernel, steps), or anything "
                "that maps (potential, shape, like) to draws; ep.sample_chains needs none"
            )
        shape = check_shape("sample_shape", sample_shape) + self.batch_shape
        unconstrained = self.unconstrained()
        with torch.no_grad():
            return constrain(unconstrained, self.sampler(unconstrained, shape, self.like))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "EnergyDistribution":
        """Return the same distribution over a larger batch.

        Raises:
            InvalidInput: if the shapes don't fit.
        """
        shape = check_shape("batch_shape", batch_shape)
        if not can_expand(self.batch_shape, shape):
            raise InvalidInput(f"can't expand batch_shape {shape_text(self.batch_shape)} to {shape_text(shape)}")
        return self._copy(shape, log_normalizer=self.log_normalizer)

    def _copy(self, batch_shape: torch.Size, *, log_normalizer: Any) -> "EnergyDistribution":
        return EnergyDistribution(
            self.potential,
            sampler=self.sampler,
            log_normalizer=log_normalizer,
            batch_shape=batch_shape,
            like=None if self._dtype is None else self._like,
            support=self._support,
            validate_args=self._validate_args,
        )


def _check_parts(sampler: object, like: object, support: object) -> None:
    """Require what is given to be a function, a tensor and a constraint."""
    if sampler is not None and (isinstance(sampler, type) or not callable(sampler)):
        raise InvalidInput(
            f"sampler must map (potential, shape, like) to draws; got {type(sampler).__name__}: pass "
            "sampling.MarkovSampler(kernel, steps)"
        )
    if like is not None and not (isinstance(like, Tensor) and like.dtype.is_floating_point):
        raise InvalidInput(f"like must be a tensor; got {type(like).__name__}: pass one of the draws' dtype")
    if support is not None and not isinstance(support, constraints.Constraint):
        raise InvalidInput(
            f"support must be a constraint of torch.distributions.constraints; got {support!r}: pass one such as "
            "constraints.positive"
        )
    if support is not None:
        check_ends(support)


def _checked_log_z(log_z: Any) -> Any:
    """Require a log Z that is known to be none, a number, numbers, or a function."""
    if isinstance(log_z, LogNormalizer):
        return float(log_z)
    known = log_z is None or is_number(log_z) or isinstance(log_z, Tensor) or callable(log_z)
    if not known or isinstance(log_z, type):
        raise InvalidInput(
            f"log_normalizer must be a number in nats, a tensor, a LogNormalizer or a function; got {log_z!r}: "
            "estimate it by energyppl.log_normalizer, or learn with objectives.Contrastive(kernel)"
        )
    if isinstance(log_z, Tensor) and not log_z.dtype.is_floating_point:
        raise InvalidInput(f"log_normalizer must be floating point; got {log_z.dtype}: call .float() on it")
    if is_number(log_z) and math.isnan(log_z):
        raise InvalidInput("log_normalizer must be a number; got NaN: estimate it by energyppl.log_normalizer")
    if is_number(log_z) and math.isinf(log_z):
        raise InvalidInput(
            f"log_normalizer must be finite; got {log_z}: an energy with an infinite integral has no density"
        )
    return log_z


class RecoveryDistribution(EnergyDistribution):
    """``p(y | x̃) ∝ exp(−U(y) − |y − x̃|² / (2σ²))``: a noisy point before its last noise (Gao et al. 2021, eq. 5).

    Args:
        potential: the energy U of y, ``(*batch, *event)`` to ``(*batch,)``.
        noisy: the observations x̃, ``(*batch, *event)``.
        sigma: standard deviation of the noise, a number or a tensor that broadcasts against ``noisy``; infinity takes
            the tilt off.
        sampler: draws points; without one ``sample`` refuses.
        log_normalizer: as in :class:`EnergyDistribution`, of the tilted energy.

    Raises:
        InvalidInput: if ``noisy`` does not end in the event shape, or ``sigma`` is not positive.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> before = ep.RecoveryDistribution(normal, noisy=torch.full((3, 2), 2.0), sigma=1.0)
        >>> before.batch_shape, before.event_shape
        (torch.Size([3]), torch.Size([2]))
        >>> before.energy(torch.ones(3, 2))  # 1 + 2 / 2
        tensor([2., 2., 2.])
    """

    def __init__(
        self,
        potential: Potential,
        noisy: Tensor,
        sigma: float | Tensor,
        *,
        sampler: Sampler | None = None,
        log_normalizer: "float | Tensor | LogNormalizer | LogZ | None" = None,
        validate_args: bool | None = None,
    ) -> None:
        tilted = RecoveryPotential(potential, noisy, sigma)
        self.noisy = noisy
        self.sigma = sigma
        super().__init__(
            tilted,
            sampler=sampler,
            log_normalizer=log_normalizer,
            batch_shape=noisy.shape[: noisy.dim() - len(tilted.event_shape)],
            like=noisy,
            validate_args=validate_args,
        )

    def _copy(self, batch_shape: torch.Size, *, log_normalizer: Any) -> "RecoveryDistribution":
        tilted = self.potential
        assert isinstance(tilted, RecoveryPotential)
        return RecoveryDistribution(
            tilted.potential,
            self.noisy.expand(*batch_shape, *self.event_shape),
            self.sigma,
            sampler=self.sampler,
            log_normalizer=log_normalizer,
            validate_args=self._validate_args,
        )

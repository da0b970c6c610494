"""Energies as Pyro distributions.

``EnergyDistribution`` *holds* a potential (in Pyro, calling a distribution draws from it).  Its ``log_prob`` is
``−U(x) − log Z`` and needs a log Z: a number, or a :class:`LogZ` that works it out while parameters are being
learned.  Without one it refuses, and says what to do.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from energyppl._checks import check_event, shape_text
from energyppl.autodiff.devices import device_of
from energyppl.errors import InvalidInput, NotNormalized
from energyppl.integration.estimates import LogNormalizer
from energyppl.potentials.algebra import Potential, RecoveryPotential
from energyppl.potentials.constrained import Constrained

__all__ = ["EnergyDistribution", "LogZ", "RecoveryDistribution", "Sampler"]


class Sampler(Protocol):
    """How a distribution draws: chains, a progressive sampler, anything that respects the potential."""

    def __call__(self, potential: Potential, shape: torch.Size, like: Tensor, /) -> Tensor:
        """Draws ``(*shape, *event)`` with the dtype and device of ``like``."""
        ...


class LogZ(Protocol):
    """A log Z that depends on where it is asked: its gradient with respect to the parameters is −E_model[∂U/∂θ]."""

    def __call__(self, potential: Potential, value: Tensor, /) -> Tensor:
        """Log Z, broadcastable to the batch of ``value``, ``(*batch, *event)``; differentiable in the parameters."""
        ...


class EnergyDistribution(dist.TorchDistribution):
    """``p(x) = exp(−U(x)) / Z`` over real points.

    Args:
        potential: the energy U; for a batch of them it broadcasts against ``batch_shape``.
        sampler: draws points of the potential that it is given, which is an unconstrained one (:class:`Constrained`) if
            there is a ``support``; without one ``sample`` refuses.
        log_normalizer: log Z in nats: a number, a ``LogNormalizer``, a tensor that broadcasts to ``batch_shape``, or a
            :class:`LogZ` while parameters are being learned; without one ``log_prob`` refuses.
        batch_shape: shape of the batch of independent distributions.
        like: a tensor whose dtype and device draws take; torch's default dtype and the potential's device otherwise.
        support: where the energy is finite, of which Pyro's and our samplers keep to the inside; all real points if
            None.
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
        if not isinstance(potential, Potential):
            raise InvalidInput(
                f"potential must be a callable with an event_shape; got {type(potential).__name__}: "
                "wrap a plain function in Energy(function, event_shape)"
            )
        self.potential = potential
        self.sampler = sampler
        self.log_normalizer = float(log_normalizer) if isinstance(log_normalizer, LogNormalizer) else log_normalizer
        self._like = torch.empty(()) if like is None else like.detach()
        self._dtype = None if like is None else like.dtype
        self._support = support
        super().__init__(torch.Size(batch_shape), torch.Size(potential.event_shape), validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Real points of the event shape, or the support that was given."""
        given, size = self._support, len(self.event_shape)
        support = constraints.real if given is None else given
        return support if support.event_dim == size else constraints.independent(support, size - support.event_dim)

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype and device of the draws."""
        return self._like.to(self.device)

    @property
    def device(self) -> torch.device | None:
        """Where points are to lie; None if nothing tells."""
        return device_of(self.potential) if self._dtype is None else self._like.device

    @property
    def is_unconstrained(self) -> bool:
        """Whether all real points are in the support."""
        return self._support is None

    def energy(self, x: Tensor) -> Tensor:
        """U(x) in nats: ``(*batch, *event)`` to ``(*batch,)``."""
        check_event("value", x, self.event_shape)
        if self._dtype is not None and x.dtype != self._dtype:
            raise InvalidInput(f"value must be {self._dtype} like the energy's own numbers; got {x.dtype}: convert it")
        energy = self.potential(x)
        expected = torch.broadcast_shapes(x.shape[: x.dim() - len(self.event_shape)], self.batch_shape)
        return energy.expand(expected)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, ``(*batch,)``.

        Raises:
            NotNormalized: if no log Z is known.
        """
        if self.log_normalizer is None:
            raise NotNormalized(
                "log_prob needs the normalizing constant of this energy, and none is known. Three ways out: estimate "
                "it and pass log_normalizer=… (in 1-D and 2-D energyppl.quadrature gives it, and a RecoveryEBM does so "
                "by itself); ask for .unnormalized(), which is right inside MCMC; or train with a contrastive "
                "estimate, log_normalizer=Contrastive(…)"
            )
        energy = self.energy(value)
        if self._support is not None:
            energy = torch.where(self.support.check(value), energy, torch.inf)
        log_z = self.log_normalizer(self.potential, value) if callable(self.log_normalizer) else self.log_normalizer
        return -energy - log_z

    def unnormalized(self) -> "EnergyDistribution":
        """The same distribution with log Z taken to be zero: right where a constant factor cancels, as in MCMC."""
        return self._copy(self.batch_shape, log_normalizer=0.0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of shape ``(*sample_shape, *batch_shape, *event_shape)``.

        Raises:
            InvalidInput: if the distribution has no sampler.
        """
        if self.sampler is None:
            raise InvalidInput(
                "this distribution has no sampler: pass sampler=MarkovSampler(kernel, steps), or anything that maps "
                "(potential, shape, like) to draws"
            )
        shape = self._extended_shape(torch.Size(sample_shape))[: -len(self.event_shape) or None]
        with torch.no_grad():
            if self._support is None:
                return self.sampler(self.potential, shape, self.like)
            inside = Constrained(self.potential, self.support)
            return inside.constrain(self.sampler(inside, shape, self.like))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "EnergyDistribution":
        """The same distribution over a larger batch."""
        shape = torch.Size(batch_shape)
        try:
            fits = torch.broadcast_shapes(shape, self.batch_shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
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


class RecoveryDistribution(EnergyDistribution):
    """``p(y | x̃) ∝ exp(−U(y) − |y − x̃|² / (2σ²))``: what a noisy point was before its last noise (Gao et al. 2021).

    Args:
        potential: the energy U of y, ``(*batch, *event)`` to ``(*batch,)``.
        noisy: the observations x̃, ``(*batch, *event)``.
        sigma: standard deviation of the noise, a number or a tensor that broadcasts against ``noisy``; infinity takes
            the tilt off.
        sampler: draws points; without one ``sample`` refuses.
        log_normalizer: as in :class:`EnergyDistribution`, of the tilted energy.
    """

    def __init__(
        self,
        potential: Potential,
        noisy: Tensor,
        sigma: float | Tensor,
        *,
        sampler: Sampler | None = None,
        log_normalizer: "float | Tensor | LogZ | None" = None,
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

"""Base densities of annealing: energies whose log Z is zero, with exact draws.

A base is a potential with ``sample(count)``.  The closer it is to the target, the fewer temperatures lie between them:
:meth:`MixtureBase.fitted` takes what draws of the target show, modes included.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, distributions
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import IndependentTransform, identity_transform

from energyppl._checks import (
    append_dims,
    check_data,
    check_event,
    check_fields,
    check_finite,
    check_positive,
    check_shape,
    shape_text,
)
from energyppl.errors import InvalidInput
from energyppl.potentials.algebra import Potential, RecoveryPotential, as_potential, sum_event
from energyppl.potentials.constrained import contains, latent_transform
from energyppl.potentials.mixture_fit import (
    fit_mixture,
    squared_distances,
    student_constant,
    student_exponent,
    whitened,
)

__all__ = ["Base", "BernoulliBase", "DistributionBase", "GaussianBase", "MixtureBase", "require_base"]

_LOG_2PI = math.log(2.0 * math.pi)


@runtime_checkable
class Base(Potential, Protocol):
    """Protocol of a potential of log Z = 0 that can be drawn from.

    Example:
        >>> base: ep.potentials.Base = ep.potentials.GaussianBase(torch.zeros(2), torch.ones(2))
        >>> isinstance(base, ep.potentials.Base), base.sample(5).shape
        (True, torch.Size([5, 2]))
    """

    def sample(self, count: int) -> Tensor:
        """Draw independently, ``(count, *batch, *event)``."""
        ...


def require_base(base: Base) -> None:
    """Require a potential that can be drawn from, with a density at all real points.

    Raises:
        InvalidInput: for another one.
    """
    if not hasattr(as_potential("base", base), "sample"):
        raise InvalidInput(
            f"base must be a potential with a sample method; got {type(base).__name__}: pass a GaussianBase"
        )
    if isinstance(base, DistributionBase) and not base.is_everywhere:
        raise InvalidInput(
            f"base must have a density at all real points; that of a {type(base.distribution).__name__} has not: pass "
            "one that has, such as a GaussianBase, in the target's unconstrained coordinates"
        )


@dataclass(frozen=True, eq=False)
class GaussianBase:
    """Gaussian base with independent coordinates.

    >>> base = ep.potentials.GaussianBase(torch.zeros(2), torch.ones(2))
    >>> base.sample(5).shape, round(float(base(torch.zeros(2))), 3)
    (torch.Size([5, 2]), 1.838)

    Args:
        loc: mean, ``(*batch, *event)``.
        scale: standard deviation of each coordinate, of a shape that broadcasts against ``loc``.
        event_shape: shape of one point; that of ``loc`` if None, so that there is no batch.

    Raises:
        InvalidInput: for scales that are not positive, or shapes that don't fit.
    """

    loc: Tensor
    scale: Tensor
    event_shape: torch.Size = None  # type: ignore[assignment]  # set on entry

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("scale of a base", self.scale)
        check_finite("loc", self.loc)
        shape = self.loc.shape if self.event_shape is None else check_shape("event_shape", self.event_shape)
        if self.loc.shape[self.loc.dim() - len(shape) :] != shape:
            raise InvalidInput(f"loc must end in event_shape {shape_text(shape)}; got {shape_text(self.loc.shape)}")
        try:
            scale = self.scale.to(self.loc.device).expand(self.loc.shape)
        except RuntimeError:
            raise InvalidInput(
                f"scale must broadcast against loc {shape_text(self.loc.shape)}; got {shape_text(self.scale.shape)}"
            ) from None
        object.__setattr__(self, "event_shape", shape)
        object.__setattr__(self, "scale", scale)

    @classmethod
    def fitted(cls, x: Tensor, event_shape: torch.Size) -> "GaussianBase":
        """Fit one with the mean of draws ``(n, *event)`` and 1.1 times their standard deviations: wider is safer."""
        check_data("samples", x, event_shape, at_least=2)
        scale = 1.1 * x.std(0)
        return cls(x.mean(0), scale.clamp(min=1e-6 * float(scale.max())))

    @classmethod
    def of_tilt(cls, potential: RecoveryPotential) -> "GaussianBase":
        """Return the Gaussian N(center, sigma²) of a Gaussian tilt, for the whole batch of its centers.

        Raises:
            InvalidInput: if a tilt is infinitely wide, as at a schedule's untilted top level.
        """
        sigma = torch.as_tensor(potential.sigma).to(potential.center).expand(potential.center.shape)
        if not bool(torch.isfinite(sigma).all()):
            raise InvalidInput(
                "the tilt must be finite: an untilted level has a log Z of its own, ebm.log_normalizer(level)"
            )
        return cls(potential.center, sigma, potential.event_shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate energies of points ``(*batch, *event)``, their constant included."""
        z = (x - self.loc) / self.scale
        return sum_event(0.5 * z * z + self.scale.log() + 0.5 * _LOG_2PI, self.event_shape)

    def sample(self, count: int) -> Tensor:
        """Draw, ``(count, *batch, *event)``."""
        return self.loc + self.scale * torch.randn(count, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)


@dataclass(frozen=True, eq=False)
class MixtureBase:
    """Mixture of Gaussians or Student-t densities with full covariances; one component is a full Gaussian.

    >>> base = ep.potentials.MixtureBase.fitted(torch.randn(500, 2), torch.Size((2,)))
    >>> base.sample(5).shape, base.freedom
    (torch.Size([5, 2]), inf)

    Args:
        means: ``(k, *event)``.
        factors: lower triangular L of each scale matrix L Lᵀ over the flattened event, ``(k, d, d)``: the covariance
            of a Gaussian.
        weights: ``(k,)``, positive; normalized on entry.
        freedom: degrees of freedom of all components: infinite for Gaussians.

    Raises:
        InvalidInput: for shapes that don't fit, or numbers that are not positive where they must be.
    """

    means: Tensor
    factors: Tensor
    weights: Tensor
    freedom: float = math.inf
    event_shape: torch.Size = field(init=False)
    _whitening: Tensor = field(init=False, repr=False)  # (k, d, d), the factors' inverses
    _shift: Tensor = field(init=False, repr=False)  # (k, d), the whitened means
    _log_norm: Tensor = field(init=False, repr=False)  # (k,)

    def __post_init__(self) -> None:
        check_fields(self)
        count, *event = self.means.shape if self.means.dim() else (0,)
        size = math.prod(event)
        if self.factors.shape != (count, size, size) or self.weights.shape != (count,):
            raise InvalidInput(
                f"means {shape_text(self.means.shape)} must have factors {(count, size, size)} and weights "
                f"{(count,)}; got {shape_text(self.factors.shape)} and {shape_text(self.weights.shape)}"
            )
        check_positive("weights", self.weights)
        check_positive("freedom", self.freedom, or_infinite=True)
        diagonal = self.factors.diagonal(dim1=1, dim2=2)
        check_positive("the diagonals of factors", diagonal)
        whitening, shift = whitened(self.means.reshape(count, size), self.factors)
        weights = self.weights / self.weights.sum()
        log_norm = weights.log() - diagonal.log().sum(1) + student_constant(size, self.freedom)
        for name, value in {
            "event_shape": torch.Size(event),
            "weights": weights,
            "_whitening": whitening,
            "_shift": shift,
            "_log_norm": log_norm,
        }.items():
            object.__setattr__(self, name, value)

    @classmethod
    def fitted(cls, x: Tensor, event_shape: torch.Size, *, groups: Tensor | None = None) -> "MixtureBase":
        """Fit one with as many components as held-out draws ask for, and a wide one added (:func:`fit_mixture`).

        Its tails are Gaussian unless the draws are likelier with heavier ones.

        Args:
            x: draws of the target, ``(n, *event)``.
            event_shape: shape of one point.
            groups: a number for each draw, ``(n,)``; dependent draws share one and are held out together.
        """
        check_data("samples", x, event_shape, at_least=4)
        means, factors, weights, freedom = fit_mixture(x.reshape(len(x), -1), groups, heavy=True)
        return cls(means.reshape(-1, *event_shape), factors, weights, freedom)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate energies of points ``(*batch, *event)``."""
        return -torch.logsumexp(self._log_joint(x), -1).reshape(x.shape[: x.dim() - len(self.event_shape)])

    def _log_joint(self, x: Tensor) -> Tensor:
        """Return the log of weight times density of each component, ``(n, k)``."""
        size = self._shift.shape[1]
        square = squared_distances(x.reshape(-1, size), self._whitening, self._shift)
        return self._log_norm + student_exponent(square, size, self.freedom)

    def reweighted(self, x: Tensor) -> "MixtureBase":
        """Return a fitted one whose weights are for the most part the components' shares of other draws.

        A quarter of each weight stays, so that none becomes small by chance, and the wide component keeps its own.

        Args:
            x: the draws, ``(n, *event)``.

        Example:
            >>> base = ep.potentials.MixtureBase.fitted(torch.randn(500, 1), torch.Size((1,)))
            >>> float(base.reweighted(torch.randn(500, 1)).weights[-1] / base.weights[-1])
            1.0
        """
        shares = torch.softmax(self._log_joint(x), -1).mean(0)
        narrow = (0.75 * shares + 0.25 * self.weights)[:-1]
        wide = self.weights[-1:]
        return replace(self, weights=torch.cat([narrow * (1.0 - wide) / narrow.sum(), wide]))

    def sample(self, count: int) -> Tensor:
        """Draw, ``(count, *event)``."""
        which = torch.multinomial(self.weights, count, replacement=True)
        noise = torch.randn(count, self._shift.shape[1], 1, dtype=self.means.dtype, device=self.means.device)
        if self.freedom < math.inf:
            chi2 = distributions.Chi2(torch.tensor(self.freedom).to(noise)).sample((count, 1, 1))
            noise = noise * (self.freedom / chi2).sqrt()
        return self.means[which] + (self.factors[which] @ noise).reshape(count, *self.event_shape)


@dataclass(frozen=True, eq=False)
class BernoulliBase:
    """Bernoulli base: independent coordinates that are 0 or 1, for binary targets.

    >>> round(float(ep.potentials.BernoulliBase(torch.full((3,), 0.5))(torch.ones(3))), 3)
    2.079

    Args:
        probs: of a 1, ``(*event)``, inside (0, 1).

    Raises:
        InvalidInput: for probabilities outside (0, 1).
    """

    probs: Tensor

    def __post_init__(self) -> None:
        check_fields(self)
        check_event("probs", self.probs, ())
        if not bool(((self.probs > 0) & (self.probs < 1)).all()):
            raise InvalidInput("probs of a BernoulliBase must lie inside (0, 1): no state may be impossible")

    @classmethod
    def fitted(cls, x: Tensor, event_shape: torch.Size) -> "BernoulliBase":
        """Fit one with the frequencies of draws ``(n, *event)``, one half counted in for each value."""
        check_data("samples", x, event_shape, at_least=2)
        return cls((x.sum(0) + 0.5) / (len(x) + 1.0))

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.probs.shape

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate energies of ``(*batch, *event)`` zeros and ones; linear in between, so that it has a gradient."""
        return -sum_event(x * self.probs.logit() + (1.0 - self.probs).log(), self.event_shape)

    def sample(self, count: int) -> Tensor:
        """Draw, ``(count, *event)``."""
        return torch.bernoulli(self.probs.expand(count, *self.event_shape))


@dataclass(frozen=True, eq=False)
class DistributionBase:
    """Base from any normalized distribution of torch or Pyro that can be drawn from.

    >>> base = ep.potentials.DistributionBase(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    >>> base.sample(5).shape
    torch.Size([5, 2])

    Args:
        distribution: with the target's event shape.

    Raises:
        InvalidInput: for a distribution with a batch shape, or without ``sample`` and ``log_prob``.
    """

    distribution: distributions.Distribution = field(metadata={"pure": True})
    _log_prob: Callable[[Tensor], Tensor] = field(init=False, repr=False, metadata={"pure": True})
    _inside: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given: Any = self.distribution
        if not hasattr(given, "log_prob") or not hasattr(given, "sample"):
            raise InvalidInput(f"distribution must have sample and log_prob; got {type(given).__name__}")
        if given.batch_shape:
            raise InvalidInput(
                f"a base must have no batch; got batch_shape {shape_text(given.batch_shape)}: "
                "turn it into events with .to_event(n) or Independent"
            )
        object.__setattr__(self, "_log_prob", given.log_prob)
        object.__setattr__(self, "_inside", None if self.is_everywhere else _point_inside(given))

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.distribution.event_shape

    @property
    def is_everywhere(self) -> bool:
        """True if the density lives on all real points, as far as its support tells."""
        try:
            transform = latent_transform(self.distribution)
        except (AttributeError, InvalidInput, NotImplementedError):
            return True
        while isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        return bool(transform == identity_transform)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate energies of points ``(*batch, *event)``, +∞ where they are outside of the support."""
        if self._inside is None:
            return -self._log_prob(x)
        inside = contains(cast(Constraint, self.distribution.support), x)
        energy = -self._log_prob(torch.where(append_dims(inside, x), x, self._inside.to(x)))
        return torch.where(inside, energy, torch.inf)

    def sample(self, count: int) -> Tensor:
        """Draw, ``(count, *event)``."""
        draws: Tensor = self.distribution.sample((count,))
        return draws


def _point_inside(distribution: Any) -> Tensor:
    """Return a point of a distribution's support."""
    transform = latent_transform(distribution)
    point: Tensor = transform(torch.zeros(transform.inverse_shape(distribution.event_shape)))
    return point

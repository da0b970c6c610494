"""Base of the toy densities: protocol, shapes, noised densities, numeric entropies."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from energyppl._checks import check_event, check_positive, check_shape
from energyppl._seeds import seeded
from energyppl.errors import InvalidInput

# Largest number of (point, node) pairs held at once, so that a million points don't ask for gigabytes.
_PAIRS = 2**20
_EMPTY = torch.Size()


class NoisyToy(Protocol):
    """The density of alpha * x0 + sigma * noise, where x0 is a toy's draw.

    Example:
        >>> noisy: ep.toys.NoisyToy = ep.toys.TwoMoons().diffused(alpha=0.9, sigma=0.4)
        >>> noisy.sample((5,)).shape, noisy.log_prob(torch.zeros(5, 2)).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energy, ``-log_prob(x)``, in nats."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """Evaluate the normalized log density in nats, ``(*batch, *event)`` to ``(*batch,)``."""
        ...

    def sample(self, sample_shape: Sequence[int] = _EMPTY) -> Tensor:
        """Draw exactly, ``(*sample_shape, *event)``."""
        ...

    def diffused(self, alpha: float, sigma: float) -> "NoisyToy":
        """Return the exact density of ``alpha * x0 + sigma * noise``."""
        ...

    def modes(self, x: Tensor) -> Tensor:
        """Find the index of the mode that each point belongs to, ``(*batch,)``."""
        ...

    def on_support(self, x: Tensor) -> Tensor:
        """Tell whether each point lies where the density is not negligible, ``(*batch,)``."""
        ...

    @property
    def number_of_modes(self) -> int:
        """Number of modes that ``modes`` tells apart."""
        ...


class Toy(NoisyToy, Protocol):
    """A density whose normalizer and entropy are known; called as a function, it is its own energy.

    Example:
        >>> toy: ep.toys.Toy = ep.toys.Rings()
        >>> x = toy.sample((1000,))
        >>> bool(torch.equal(toy(x), -toy.log_prob(x))), toy.modes(x).unique().tolist()
        (True, [0, 1, 2, 3])
    """

    def entropy(self) -> float:
        """Return the differential entropy in nats."""
        ...


class Density:
    """Base of the toys: a subclass gives the density and the draws of rows ``(n, d)``, this class the shapes.

    ``_log_density`` must be normalized, in nats, and differentiable where it is finite.

    Example:
        >>> from energyppl.toys.base import Density
        >>> class Square(Density):  # uniform on the unit square
        ...     def _draw(self, count):
        ...         return torch.rand(count, 2)
        ...     def _log_density(self, x):
        ...         return torch.where(((x >= 0) & (x <= 1)).all(-1), 0.0, -torch.inf)
        >>> Square().sample((3,)).shape, Square().log_prob(torch.tensor([[0.5, 0.5], [2.0, 0.0]]))
        (torch.Size([3, 2]), tensor([0., -inf]))
    """

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return torch.Size((2,))

    @property
    def number_of_modes(self) -> int:
        """Number of modes that ``modes`` tells apart."""
        return 1

    def sample(self, sample_shape: Sequence[int] = _EMPTY) -> Tensor:
        """Draw exactly, ``(*sample_shape, *event)`` in torch's default dtype, from torch's global generator."""
        shape = check_shape("sample_shape", sample_shape)
        rows = self._draw(shape.numel())
        return rows.to(torch.get_default_dtype()).reshape(shape + self.event_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Evaluate the normalized log density in nats, ``(*batch, *event)`` to ``(*batch,)``; −∞ off the support."""
        return self._by_rows("x", x, self._log_density, self._pairs)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energy ``-log_prob(x)`` in nats, ``(*batch, *event)`` to ``(*batch,)``."""
        return -self.log_prob(x)

    def modes(self, x: Tensor) -> Tensor:
        """Find the index of the nearest mode (square, ring, arm), ``(*batch, *event)`` to ``(*batch,)``."""
        return self._by_rows("x", x, self._nearest, self._pairs)

    def on_support(self, x: Tensor) -> Tensor:
        """Tell whether x is where the data are, ``(*batch, *event)`` to ``(*batch,)`` of ``torch.bool``.

        True where the density is above the level below which 1 % of the mass lies (so 1 % of exact draws are False).
        The level comes from 20,000 draws with a fixed seed, which fixes the 1 % to about 0.07 %.
        """
        return self.log_prob(x) >= self._level

    def diffused(self, alpha: float, sigma: float) -> NoisyToy:
        """Return the density of ``alpha * x0 + sigma * noise``, with x0 a draw of this toy and noise standard normal.

        Raises:
            InvalidInput: alpha or sigma is not positive, or this toy has no accurate noised density.
        """
        return Diffused(self, alpha, sigma)

    @cached_property
    def _level(self) -> float:
        values = _own_log_probs(self, 20_000)
        return float(values.kthvalue(200).values)

    @property
    def _pairs(self) -> int:
        return 1  # entries of the largest intermediate, per point

    def _by_rows(self, name: str, x: Tensor, function: Callable[[Tensor], Tensor], pairs: int) -> Tensor:
        check_event(name, x, self.event_shape)
        batch = x.shape[: x.dim() - len(self.event_shape)]
        rows = x.reshape(-1, self.event_shape.numel()).split(max(1, _PAIRS // pairs))
        return torch.cat([function(part) for part in rows]).reshape(batch)

    def _draw(self, count: int) -> Tensor:
        raise NotImplementedError

    def _log_density(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _nearest(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)

    def _log_diffused(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        raise NotImplementedError

    def _pairs_diffused(self, alpha: float, sigma: float) -> int:
        return self._pairs


@dataclass(frozen=True)
class Diffused(Density):
    """The exact density of ``alpha * x0 + sigma * noise`` for a toy that knows it.

    Attributes:
        toy: where x0 comes from.
        alpha: the signal's factor, positive.
        sigma: the noise's standard deviation, positive.

    Raises:
        InvalidInput: alpha or sigma is not positive and finite, or the toy has no noised density.

    Example:
        >>> noisy = ep.toys.Checkerboard().diffused(alpha=0.8, sigma=0.6)
        >>> noisy.log_prob(torch.zeros(2)).isfinite()
        tensor(True)
    """

    toy: Density
    alpha: float
    sigma: float

    def __post_init__(self) -> None:
        if not isinstance(self.toy, Density):
            raise InvalidInput(f"toy must be one of energyppl.toys; got {type(self.toy).__name__}")
        check_positive("alpha", self.alpha)
        check_positive("sigma", self.sigma)
        if type(self.toy)._log_diffused is Density._log_diffused:
            raise InvalidInput(
                f"the toy must have a closed or one-dimensional noised density; got {type(self.toy).__name__}, "
                "which has none: use a Gaussian mixture or one of the two-dimensional toys"
            )

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.toy.event_shape

    @property
    def number_of_modes(self) -> int:
        """Number of modes that ``modes`` tells apart."""
        return self.toy.number_of_modes

    @property
    def _pairs(self) -> int:
        return self.toy._pairs_diffused(self.alpha, self.sigma)

    def diffused(self, alpha: float, sigma: float) -> NoisyToy:
        """Add noise to noise, which is one step of more noise."""
        check_positive("alpha", alpha)
        check_positive("sigma", sigma)
        return Diffused(self.toy, alpha * self.alpha, math.hypot(alpha * self.sigma, sigma))

    def _draw(self, count: int) -> Tensor:
        clean = self.toy._draw(count)
        return self.alpha * clean + self.sigma * torch.randn_like(clean)

    def _log_density(self, x: Tensor) -> Tensor:
        return self.toy._log_diffused(x, self.alpha, self.sigma)

    def _nearest(self, x: Tensor) -> Tensor:
        return self.toy._nearest(x / self.alpha)


def entropy_in_box(
    log_density: Callable[[Tensor], Tensor], low: Sequence[float], high: Sequence[float], step: float
) -> float:
    """Integrate the entropy, in nats, of a smooth density that vanishes at the faces of a box.

    The trapezoid rule's error, in float64, falls faster than any power of the step on such densities: half a bandwidth
    is plenty.
    """
    axes = [
        torch.linspace(a, b, max(2, math.ceil((b - a) / step)) + 1, dtype=torch.float64)
        for a, b in zip(low, high, strict=True)
    ]
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    rest = torch.cartesian_prod(*axes[1:]).reshape(-1, len(axes) - 1) if len(axes) > 1 else torch.zeros(1, 0)
    total = 0.0
    with torch.no_grad():
        for first in axes[0]:  # one line of the grid at a time bounds the memory
            line = torch.cat([first.expand(len(rest), 1), rest.double()], 1)
            values = log_density(line)
            total -= float((values.exp() * values).nan_to_num(0.0).sum())
    return total * cell


def monte_carlo_entropy(toy: Density) -> float:
    """Estimate the entropy in nats by the mean over 200,000 exact draws with a fixed seed."""
    return -float(_own_log_probs(toy, 200_000).mean())


def _own_log_probs(toy: Density, count: int) -> Tensor:
    with seeded(0), torch.no_grad():  # the caller's draws must not move
        return toy.log_prob(toy._draw(count))


def gaussian_nodes(center: Tensor, width: float, count: int, *, lower: float | None = None) -> tuple[Tensor, Tensor]:
    """Find nodes and log weights of E[f(u)], u ~ N(center, width²), restricted (not renormalized) to u > lower.

    Gauss-Legendre over +-9 widths: unlike Gauss-Hermite it keeps its accuracy when the interval is cut.

    Args:
        center: ``(...)``.
        width: standard deviation.
        count: number of nodes.
        lower: left end of u's range; none if None.

    Returns:
        nodes ``(..., count)`` and log weights ``(..., count)``.
    """
    abscissae, weights = _legendre(count)
    position, log_weight = abscissae.to(center), weights.log().to(center)
    left, right = center - 9 * width, center + 9 * width
    if lower is not None:
        left, right = left.clamp_min(lower), right.clamp_min(lower + 1e-3 * width)
    half = 0.5 * (right - left).unsqueeze(-1)
    nodes = 0.5 * (left + right).unsqueeze(-1) + half * position
    z = (nodes - center.unsqueeze(-1)) / width
    return nodes, log_weight + half.log() - 0.5 * z.square() - math.log(width * math.sqrt(2 * math.pi))


def _legendre(count: int) -> tuple[Tensor, Tensor]:
    x, w = leggauss(count)
    return torch.as_tensor(x), torch.as_tensor(w)

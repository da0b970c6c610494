"""Toy densities that are a mixture of round Gaussians, among them curves drawn with many overlapping ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energyppl._checks import check_positive
from energyppl.errors import InvalidInput
from energyppl.toys.mixtures import IsotropicMixture, as_numbers

_EMPTY = torch.Size()
# Neighbouring centres this many bandwidths apart leave a ripple of 2 exp(-2 pi^2 / 0.75^2), about 1e-15.
_SPACING = 0.75


class MixtureToy:
    """Base of the toys that are one fixed ``IsotropicMixture``, which answers for them."""

    @cached_property
    def mixture(self) -> IsotropicMixture:
        """The mixture that this toy is."""
        raise NotImplementedError

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.mixture.event_shape

    @property
    def number_of_modes(self) -> int:
        """Number of modes that ``modes`` tells apart."""
        return self.mixture.number_of_modes

    def sample(self, sample_shape: Sequence[int] = _EMPTY) -> Tensor:
        """Draw exactly, ``(*sample_shape, *event)``, from torch's global generator."""
        return self.mixture.sample(sample_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Evaluate the normalized log density in nats, ``(*batch, *event)`` to ``(*batch,)``."""
        return self.mixture.log_prob(x)

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energy ``-log_prob(x)`` in nats."""
        return -self.mixture.log_prob(x)

    def entropy(self) -> float:
        """Integrate the entropy in nats by quadrature (error below 1e-6)."""
        return self.mixture.entropy()

    def diffused(self, alpha: float, sigma: float) -> IsotropicMixture:
        """Return the density of ``alpha * x0 + sigma * noise``, which is a mixture again."""
        return self.mixture.diffused(alpha, sigma)

    def modes(self, x: Tensor) -> Tensor:
        """Find the index of the arm (or Gaussian) that is nearest, ``(*batch, *event)`` to ``(*batch,)``."""
        return self.mixture.modes(x)

    def on_support(self, x: Tensor) -> Tensor:
        """Tell whether the density at x is above the value below which 1 % of the mass lies."""
        return self.mixture.on_support(x)


@dataclass(frozen=True)
class OneDimensionalMixture(MixtureToy):
    """A mixture on the line, ¾ N(−2, 0.1²) + ¼ N(2, 0.1²): far modes whose gap U(−2) − U(2) is −ln 3 nats.

    Attributes:
        centers: the two means.
        scale: the common standard deviation, positive.
        weights: the two masses, positive; normalized on entry.

    Example:
        >>> toy = ep.toys.OneDimensionalMixture()
        >>> toy(torch.tensor([[-2.0], [2.0]])).diff()  # ln 3
        tensor([1.0986])
    """

    centers: tuple[float, ...] = (-2.0, 2.0)
    scale: float = 0.1
    weights: tuple[float, ...] = (0.75, 0.25)

    def __post_init__(self) -> None:
        self.mixture  # noqa: B018  validates the fields now rather than at first use

    @cached_property
    def mixture(self) -> IsotropicMixture:
        """The mixture that this toy is."""
        centers, weights = as_numbers("centers", self.centers), as_numbers("weights", self.weights)
        return IsotropicMixture(centers.unsqueeze(-1), self.scale, weights)


@dataclass(frozen=True)
class EightGaussians(MixtureToy):
    """Eight equal round Gaussians on a circle.

    Attributes:
        radius: the circle's radius, positive.
        scale: each Gaussian's standard deviation, positive.

    Example:
        >>> toy = ep.toys.EightGaussians()
        >>> toy.sample((1000,)).shape, toy.number_of_modes
        (torch.Size([1000, 2]), 8)
    """

    radius: float = 4.0
    scale: float = 0.5

    def __post_init__(self) -> None:
        check_positive("radius", self.radius)
        check_positive("scale", self.scale)

    @cached_property
    def mixture(self) -> IsotropicMixture:
        """The mixture that this toy is."""
        angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
        return IsotropicMixture(self.radius * torch.stack([angle.cos(), angle.sin()], 1), self.scale)


@dataclass(frozen=True)
class TwoMoons(MixtureToy):
    """Two interleaved half circles of radius 1, smoothed by a round Gaussian.

    Attributes:
        scale: the Gaussian's standard deviation, at least 0.001.

    Raises:
        InvalidInput: for a scale below 0.001.

    Example:
        >>> toy = ep.toys.TwoMoons()
        >>> toy.diffused(alpha=0.9, sigma=0.4).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    scale: float = 0.1

    def __post_init__(self) -> None:
        _check_bandwidth(self.scale)

    @cached_property
    def mixture(self) -> IsotropicMixture:
        """The mixture that this toy is."""
        t = np.linspace(0, math.pi, math.ceil(math.pi / (_SPACING * self.scale)) + 1)
        upper = np.stack([np.cos(t), np.sin(t)], 1)
        return _curves([upper, np.array([1.0, 0.5]) - upper], self.scale)


@dataclass(frozen=True)
class Spirals(MixtureToy):
    """Two arms of an Archimedean spiral, equally dense along their length, smoothed by a round Gaussian.

    Attributes:
        turns: how far each arm winds, positive.
        radius: the distance of each arm's end from the origin, positive.
        scale: the Gaussian's standard deviation, at least 0.001.

    Example:
        >>> toy = ep.toys.Spirals(turns=1.0)
        >>> toy.sample((1000,)).shape, toy.number_of_modes
        (torch.Size([1000, 2]), 2)
    """

    turns: float = 1.5
    radius: float = 3.14
    scale: float = 0.1

    def __post_init__(self) -> None:
        check_positive("turns", self.turns)
        check_positive("radius", self.radius)
        _check_bandwidth(self.scale)

    @cached_property
    def mixture(self) -> IsotropicMixture:
        """The mixture that this toy is."""
        end = 2 * math.pi * self.turns
        angle = np.linspace(0, end, 20_001)
        speed = self.radius / end * np.sqrt(1 + angle**2)
        length = np.concatenate([[0], np.cumsum(0.5 * (speed[1:] + speed[:-1]))]) * angle[1]
        count = math.ceil(length[-1] / (_SPACING * self.scale)) + 1
        t = np.interp(np.linspace(0, length[-1], count), length, angle)
        arm = (self.radius * t / end)[:, None] * np.stack([-np.cos(t), np.sin(t)], 1)
        return _curves([arm, -arm], self.scale)


@dataclass(frozen=True)
class SwissRoll(MixtureToy):
    """A two-dimensional Swiss roll, uniform in its angle (so thinner outside), smoothed by a round Gaussian.

    Attributes:
        scale: the Gaussian's standard deviation, at least 0.001.

    Example:
        >>> round(ep.toys.SwissRoll().entropy(), 3)
        2.674
    """

    scale: float = 0.2

    def __post_init__(self) -> None:
        _check_bandwidth(self.scale)

    @cached_property
    def mixture(self) -> IsotropicMixture:
        """The mixture that this toy is."""
        # The roll is widest spaced at its outer end, where one radian is sqrt(1 + t^2) / 5 long.
        low, high = 1.5 * math.pi, 4.5 * math.pi
        count = math.ceil((high - low) * math.sqrt(1 + high**2) / 5 / (_SPACING * self.scale)) + 1
        t = np.linspace(low, high, count)
        return _curves([t[:, None] / 5 * np.stack([np.cos(t), np.sin(t)], 1)], self.scale)


def _curves(arms: Sequence[NDArray[np.float64]], scale: float) -> IsotropicMixture:
    labels = torch.cat([torch.full((len(arm),), i) for i, arm in enumerate(arms)])
    return IsotropicMixture(torch.as_tensor(np.concatenate(arms)), scale, labels=labels)


def _check_bandwidth(scale: float) -> None:
    check_positive("scale", scale)
    if scale < 1e-3:
        raise InvalidInput(f"scale must be at least 0.001; got {scale}: a thinner curve needs too many Gaussians")

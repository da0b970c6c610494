"""Toy densities in a product or chain form: the banana, Neal's funnel and the double well."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from energyppl._checks import check_count, check_number, check_positive
from energyppl.errors import InvalidInput
from energyppl.toys.base import Density, gaussian_nodes

_LOG_2PI = math.log(2 * math.pi)


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + _LOG_2PI)


@dataclass(frozen=True)
class Banana(Density):
    """A bent Gaussian: ``x1 ~ N(0, scale^2)``, ``x2 | x1 ~ N(curvature * (x1^2 - scale^2), 1)``.

    Attributes:
        curvature: how strongly it bends; 0 is a Gaussian.
        scale: the first coordinate's standard deviation, positive.

    Raises:
        InvalidInput: for a curvature that is no number, or a scale that is not positive.

    Example:
        >>> toy = ep.toys.Banana(curvature=0.5, scale=2.0)
        >>> toy.log_prob(torch.zeros(3, 2))
        tensor([-4.5310, -4.5310, -4.5310])
    """

    curvature: float = 0.5
    scale: float = 2.0

    def __post_init__(self) -> None:
        check_number("curvature", self.curvature)
        check_positive("scale", self.scale)

    def entropy(self) -> float:
        """Return ln(2 π e scale), in nats, since the bend preserves area."""
        return 1 + _LOG_2PI + math.log(self.scale)

    def _pairs_diffused(self, alpha: float, sigma: float) -> int:
        return 256

    def _ridge(self, first: Tensor) -> Tensor:
        return self.curvature * (first.square() - self.scale**2)

    def _draw(self, count: int) -> Tensor:
        first, second = torch.randn(2, count, dtype=torch.float64)
        first = self.scale * first
        return torch.stack([first, second + self._ridge(first)], 1)

    def _log_density(self, x: Tensor) -> Tensor:
        z = torch.stack([x[:, 0] / self.scale, x[:, 1] - self._ridge(x[:, 0])], 1)
        return _log_normal(z).sum(1) - math.log(self.scale)

    def _log_diffused(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        log_first, first, log_weights = _clean_given_noisy(x[:, 0], self.scale, alpha, sigma)
        width = math.hypot(alpha, sigma)
        second = _log_normal((x[:, 1:] - alpha * self._ridge(first)) / width) - math.log(width)
        return log_first + (log_weights + second).logsumexp(1)


@dataclass(frozen=True)
class Funnel(Density):
    """Neal's funnel: ``v = x[0] ~ N(0, scale^2)`` and every other coordinate ``~ N(0, exp(v))``.

    Attributes:
        dim: number of coordinates, at least 2.
        scale: standard deviation of v, positive.

    Raises:
        InvalidInput: for fewer than two coordinates, or a scale that is not positive.

    Example:
        >>> toy = ep.toys.Funnel(dim=3)
        >>> toy(torch.zeros(3))  # its energy
        tensor(3.8554)
    """

    dim: int = 2
    scale: float = 3.0

    def __post_init__(self) -> None:
        check_count("dim", self.dim, at_least=2)
        check_positive("scale", self.scale)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return torch.Size((self.dim,))

    def entropy(self) -> float:
        """Return ``dim / 2 * ln(2 π e) + ln(scale)``, in nats, since v has mean zero."""
        return 0.5 * self.dim * (1 + _LOG_2PI) + math.log(self.scale)

    def _pairs_diffused(self, alpha: float, sigma: float) -> int:
        return 256

    def _draw(self, count: int) -> Tensor:
        z = torch.randn(count, self.dim, dtype=torch.float64)
        v = self.scale * z[:, :1]
        return torch.cat([v, (0.5 * v).exp() * z[:, 1:]], 1)

    def _log_density(self, x: Tensor) -> Tensor:
        v = x[:, :1]
        rest = _log_normal((-0.5 * v).exp() * x[:, 1:]).sum(1) - 0.5 * (self.dim - 1) * v.squeeze(1)
        return _log_normal(v / self.scale).squeeze(1) - math.log(self.scale) + rest

    def _log_diffused(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        log_v, v, log_weights = _clean_given_noisy(x[:, 0], self.scale, alpha, sigma)
        variance = alpha**2 * v.exp() + sigma**2
        square = x[:, 1:].square().sum(1, keepdim=True)
        rest = -0.5 * (square / variance + (self.dim - 1) * (variance.log() + _LOG_2PI))
        return log_v + (log_weights + rest).logsumexp(1)


@dataclass(frozen=True)
class DoubleWell(Density):
    """Double wells of energy ``quartic x^4 - quadratic x^2 - tilt x`` in ``wells`` coordinates, Gaussians in the rest.

    There are ``2**wells`` modes; a mode's index has bit i set where coordinate i is right of its barrier.

    Attributes:
        dim: number of coordinates.
        wells: how many of them (the first) are double wells, from 1 to dim.
        quartic: positive.
        quadratic: positive; the barrier at no tilt is ``quadratic**2 / (4 quartic)`` nats high.
        tilt: favours the right wells when positive; small enough to leave two wells.

    Raises:
        InvalidInput: a field is out of range, or the tilt leaves only one well.

    Example:
        >>> toy = ep.toys.DoubleWell(dim=2, wells=1)
        >>> toy.modes(torch.tensor([[-1.7, 0.0], [1.7, 0.0]]))
        tensor([0, 1])
    """

    dim: int = 2
    wells: int = 1
    quartic: float = 1.0
    quadratic: float = 6.0
    tilt: float = 0.0

    def __post_init__(self) -> None:
        check_count("dim", self.dim)
        check_count("wells", self.wells)
        if self.wells > self.dim:
            raise InvalidInput(f"wells must be at most dim={self.dim}; got {self.wells}: raise dim or use fewer wells")
        check_positive("quartic", self.quartic)
        check_positive("quadratic", self.quadratic)
        check_number("tilt", self.tilt)
        limit = (2 * self.quadratic / 3) ** 1.5 / math.sqrt(self.quartic)
        if abs(self.tilt) >= limit:
            raise InvalidInput(
                f"tilt must be below {limit:.6g} in size; got {self.tilt}: a stronger one leaves one well"
            )

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return torch.Size((self.dim,))

    @property
    def number_of_modes(self) -> int:
        """Number of modes that ``modes`` tells apart."""
        return int(2**self.wells)

    def entropy(self) -> float:
        """Integrate the entropy in nats by one-dimensional quadrature (error below 1e-6)."""
        nodes, log_density = self._table
        well = -float((log_density.exp() * log_density).sum() * (nodes[1] - nodes[0]))
        return self.wells * well + 0.5 * (self.dim - self.wells) * (1 + _LOG_2PI)

    @property
    def _pairs(self) -> int:
        return self.dim

    def _well(self, x: Tensor) -> Tensor:
        square = x.square()
        return self.quartic * square.square() - self.quadratic * square - self.tilt * x

    @cached_property
    def _stationary(self) -> tuple[float, float, float]:
        left, barrier, right = sorted(np.roots([4 * self.quartic, 0, -2 * self.quadratic, -self.tilt]).real.tolist())
        return left, barrier, right

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """Nodes and normalized log density of one well, float64; the ends are 60 nats above the floor."""
        left, _, right = self._stationary
        reach = max(-left, right) + (60 / self.quartic) ** 0.25 + abs(self.tilt / self.quadratic)
        nodes = torch.linspace(-reach, reach, 100_001, dtype=torch.float64)
        energy = self._well(nodes)
        return nodes, -energy - torch.logsumexp(-energy, 0) - (nodes[1] - nodes[0]).log()

    @cached_property
    def _log_z(self) -> float:
        nodes, log_density = self._table
        return -float(self._well(nodes[0]) + log_density[0])

    @cached_property
    def _cumulative(self) -> Tensor:
        nodes, log_density = self._table
        density = log_density.exp()
        steps = 0.5 * (density[1:] + density[:-1]) * (nodes[1] - nodes[0])
        total = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
        return total / total[-1]

    def _draw(self, count: int) -> Tensor:
        nodes, _ = self._table
        uniform = torch.rand(count, self.wells, dtype=torch.float64)
        cell = torch.searchsorted(self._cumulative, uniform, right=True).clamp(1, len(nodes) - 1)
        below, above = self._cumulative[cell - 1], self._cumulative[cell]
        wells = nodes[cell - 1] + (uniform - below) / (above - below) * (nodes[1] - nodes[0])
        return torch.cat([wells, torch.randn(count, self.dim - self.wells, dtype=torch.float64)], 1)

    def _log_density(self, x: Tensor) -> Tensor:
        wells, rest = x[:, : self.wells], x[:, self.wells :]
        return -(self._well(wells) + self._log_z).sum(1) + _log_normal(rest).sum(1)

    def _nearest(self, x: Tensor) -> Tensor:
        bits = (x[:, : self.wells] > self._stationary[1]).long()
        return (bits << torch.arange(self.wells, device=x.device)).sum(1)

    def _nodes_diffused(self, alpha: float, sigma: float) -> tuple[float, int]:
        """Choose spacing and count of clean nodes: fine against both the noise and the narrowest well."""
        narrowest = 1 / math.sqrt(12 * self.quartic * max(abs(r) for r in self._stationary) ** 2 + 2 * self.quadratic)
        step = min(sigma / alpha, narrowest) / 3
        return step, 2 * math.ceil(9 * sigma / alpha / step) + 1

    def _pairs_diffused(self, alpha: float, sigma: float) -> int:
        step, count = self._nodes_diffused(alpha, sigma)
        return self.wells * min(count, math.ceil(2 * float(self._table[0][-1]) / step))

    def _log_diffused(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        # Clean values around each noisy one while the noise is narrow, one fixed table of them once it is wide.
        wells, rest = x[:, : self.wells].unsqueeze(-1) / alpha, x[:, self.wells :]
        step, count = self._nodes_diffused(alpha, sigma)
        reach = float(self._table[0][-1])
        if count * step < 2 * reach:
            clean = wells + step * (torch.arange(count).to(x) - count // 2)
        else:
            clean = torch.arange(-reach, reach, step, dtype=torch.float64).to(x)
        noise = _log_normal((wells - clean) * (alpha / sigma)) - math.log(sigma / step)
        well = (noise - self._well(clean) - self._log_z).logsumexp(-1)
        width = math.hypot(alpha, sigma)
        return well.sum(1) + (_log_normal(rest / width) - math.log(width)).sum(1)


def _clean_given_noisy(noisy: Tensor, scale: float, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Integrate over u ~ N(0, scale^2), noisy = alpha u + sigma noise: log p(noisy); nodes, weights of u | noisy."""
    spread = math.hypot(alpha * scale, sigma)
    center = noisy * (alpha * scale**2 / spread**2)
    # Wide noise leaves u wide, with the density's own features to resolve inside.
    nodes, log_weights = gaussian_nodes(center, scale * sigma / spread, 96 if sigma < 0.3 * alpha * scale else 256)
    return _log_normal(noisy / spread) - math.log(spread), nodes, log_weights

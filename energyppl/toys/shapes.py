"""Checkerboard, rings and pinwheel: toy densities with edges and thin shapes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from energyppl._checks import check_count, check_number, check_positive
from energyppl.errors import InvalidInput
from energyppl.toys.base import Density, entropy_in_box, gaussian_nodes

__all__ = ["Checkerboard", "Pinwheel", "Rings"]

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Checkerboard(Density):
    """A uniform density on the eight filled squares of a 4 × 4 board on ``[-half_width, half_width]^2``.

    The lower left square is filled. The area is ``2 * half_width**2``: 32 by default, so the entropy is ln 32.

    Attributes:
        half_width: half the board's side, positive; each square's side is ``half_width / 2``.

    Example:
        >>> toy = ep.toys.Checkerboard()
        >>> toy.sample((1000,)).shape
        torch.Size([1000, 2])
        >>> import math
        >>> math.exp(toy.entropy())  # the filled area
        32.0
    """

    half_width: float = 4.0

    def __post_init__(self) -> None:
        check_positive("half_width", self.half_width)

    @property
    def number_of_modes(self) -> int:
        """Number of filled squares, 8."""
        return 8

    def entropy(self) -> float:
        """Return the logarithm of the filled area, in nats."""
        return math.log(2 * self.half_width**2)

    def on_support(self, x: Tensor) -> Tensor:
        """Tell whether x lies in a filled square (edges included), ``(*batch, 2)`` to ``(*batch,)``."""
        return self.log_prob(x) > -math.inf

    @property
    def _pairs(self) -> int:
        return 16

    @cached_property
    def _corners(self) -> Tensor:
        filled = [(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
        return torch.tensor(filled, dtype=torch.float64) * (self.half_width / 2) - self.half_width

    def _draw(self, count: int) -> Tensor:
        corner = self._corners[torch.randint(8, (count,))]
        return corner + (self.half_width / 2) * torch.rand(count, 2, dtype=torch.float64)

    def _distance(self, x: Tensor) -> Tensor:
        """Work out the squared distance from every point to every filled square, ``(n, 2) -> (n, 8)``."""
        # Rounded from float64 as the draws are, so that a float32 draw at an edge is not left outside.
        low, high = self._corners.to(x), (self._corners + self.half_width / 2).to(x)
        point = x.unsqueeze(1)
        return ((low - point).clamp_min(0) + (point - high).clamp_min(0)).square().sum(-1)

    def _nearest(self, x: Tensor) -> Tensor:
        return self._distance(x).argmin(1)

    def _log_density(self, x: Tensor) -> Tensor:
        # The zero keeps x in autograd's graph: a sampler may ask for the (zero) gradient.
        inside = self._distance(x.detach()).amin(1) == 0
        return torch.where(inside, 0 * x.sum(1) - self.entropy(), -math.inf)

    def _log_diffused(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        edges = torch.linspace(-self.half_width, self.half_width, 5, dtype=torch.float64).to(x) * alpha
        z = (edges - x.unsqueeze(-1)) / sigma
        log_cell = _log_ndtr_difference(z[..., :-1], z[..., 1:])  # (n, 2, 4)
        board = log_cell[:, 0, :, None] + log_cell[:, 1, None, :]
        filled = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
        return board[:, filled.to(x.device)].logsumexp(1) - self.entropy() - 2 * math.log(alpha)


@dataclass(frozen=True)
class Rings(Density):
    """A density of equal masses on concentric rings whose radius is Gaussian (kept above zero).

    ``p(x) = mean_k N(r; R_k, sd) / (2 pi r)`` with ``r = |x|``. The entropy is 3.535 nats at
    ``sd=0.15`` and 0.832 at ``sd=0.01``. Within ``1e-4 * sd`` of the origin the density is held constant instead of
    rising as 1/r.

    Attributes:
        radii: the rings' radii, positive.
        sd: standard deviation of the radius, positive.

    Raises:
        InvalidInput: for no radii, or radii or a standard deviation that are not positive.

    Example:
        >>> toy = ep.toys.Rings(radii=(1.0, 2.0))
        >>> round(ep.toys.Rings().entropy(), 3)
        3.535
        >>> toy.modes(torch.tensor([[0.0, 1.1], [1.9, 0.0]]))
        tensor([0, 1])
    """

    radii: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    sd: float = 0.15

    def __post_init__(self) -> None:
        if not isinstance(self.radii, Sequence) or isinstance(self.radii, str):
            raise InvalidInput(f"radii must be a tuple of positive numbers; got {self.radii!r}: pass (1.0, 2.0)")
        object.__setattr__(self, "radii", tuple(self.radii))
        if not self.radii:
            raise InvalidInput("radii must hold at least one radius; got (): pass a tuple of positive numbers")
        for radius in self.radii:
            check_positive("radii", radius)
        check_positive("sd", self.sd)

    @property
    def number_of_modes(self) -> int:
        """Number of rings."""
        return len(self.radii)

    def entropy(self) -> float:
        """Integrate the entropy in nats over the radius (error below 1e-6)."""
        return self._entropy

    @cached_property
    def _entropy(self) -> float:
        step = min(self.sd, min(self.radii)) / 50
        radius = torch.arange(step / 2, max(self.radii) + 10 * self.sd, step, dtype=torch.float64)
        log_radial = self._log_radial(radius)
        return float(-step * (log_radial.exp() * (log_radial - radius.log() - _LOG_2PI)).nan_to_num(0.0).sum())

    @property
    def _pairs(self) -> int:
        return len(self.radii)

    def _pairs_diffused(self, alpha: float, sigma: float) -> int:
        return 64 * len(self.radii)

    @property
    def _log_kept(self) -> Tensor:
        """Log of the mass each radial Gaussian has above zero."""
        kept: Tensor = torch.special.log_ndtr(torch.tensor(self.radii, dtype=torch.float64) / self.sd)
        return kept

    def _log_radial(self, radius: Tensor) -> Tensor:
        centers = torch.tensor(self.radii, dtype=torch.float64)
        log_weight = (-self._log_kept - math.log(len(self.radii) * self.sd) - 0.5 * _LOG_2PI).to(radius)
        return (log_weight - 0.5 * ((radius.unsqueeze(-1) - centers.to(radius)) / self.sd).square()).logsumexp(-1)

    def _draw(self, count: int) -> Tensor:
        ring = torch.randint(len(self.radii), (count,))
        below = 1 - self._log_kept.exp()[ring]
        uniform = below + (1 - below) * torch.rand(count, dtype=torch.float64).clamp_min(1e-16)
        z: Tensor = torch.special.ndtri(uniform)
        radius = torch.tensor(self.radii, dtype=torch.float64)[ring] + self.sd * z
        angle = 2 * math.pi * torch.rand(count, dtype=torch.float64)
        return radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)

    def _log_density(self, x: Tensor) -> Tensor:
        radius: Tensor = torch.linalg.vector_norm(x, dim=1)
        return self._log_radial(radius) - radius.clamp_min(1e-4 * self.sd).log() - _LOG_2PI

    def _nearest(self, x: Tensor) -> Tensor:
        radius: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return (radius - torch.tensor(self.radii).to(x)).abs().argmin(1)

    def _log_diffused(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        # Given the clean radius u, |x| is Rician. Its exponent and u's Gaussian multiply to
        # N(|x|; alpha R, spread) N(u; center, width), which leaves the mean of exp(-z) I0(z), a slow function.
        radii = torch.tensor(self.radii, dtype=torch.float64).to(x)
        radius: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        spread = math.hypot(sigma, alpha * self.sd)
        width = sigma * self.sd / spread
        center = (radii * sigma**2 + alpha * radius * self.sd**2) / spread**2
        nodes, log_weights = gaussian_nodes(center, width, 64, lower=0.0)
        rician: Tensor = torch.special.i0e(alpha / sigma**2 * radius.unsqueeze(-1) * nodes).log()
        log_ring = (
            -0.5 * ((radius - alpha * radii) / spread).square() - math.log(spread * sigma * len(radii)) - _LOG_2PI
        )
        return (log_ring - self._log_kept.to(x) + (log_weights + rician).logsumexp(-1)).logsumexp(-1)


@dataclass(frozen=True)
class Pinwheel(Density):
    """A pinwheel: Gaussian blobs on a circle, turned by an angle that grows as ``rate * exp(r)``.

    A turn that depends on the radius alone preserves area, so the density is exactly that of the blobs before the turn.
    (The customary code lets the angle depend on the blob's own first coordinate instead, which has no exact density.)
    Ten radial standard deviations out, the angle stops growing.

    Attributes:
        arms: number of arms.
        radial_sd: spread along an arm, before scaling.
        tangential_sd: spread across an arm, before scaling.
        rate: how fast the arms turn.
        scale: the unit circle's radius on the plane.

    Example:
        >>> toy = ep.toys.Pinwheel(arms=3)
        >>> toy.number_of_modes, round(ep.toys.Pinwheel().entropy(), 3)
        (3, 2.321)
    """

    arms: int = 5
    radial_sd: float = 0.3
    tangential_sd: float = 0.1
    rate: float = 0.25
    scale: float = 2.0

    def __post_init__(self) -> None:
        check_count("arms", self.arms)
        check_positive("radial_sd", self.radial_sd)
        check_positive("tangential_sd", self.tangential_sd)
        check_number("rate", self.rate)
        check_positive("scale", self.scale)

    @property
    def number_of_modes(self) -> int:
        """Number of arms."""
        return self.arms

    def entropy(self) -> float:
        """Integrate the entropy in nats over the Gaussians before the turn (error below 1e-6)."""
        return self._entropy

    @cached_property
    def _entropy(self) -> float:
        reach = 1 + 9 * max(self.radial_sd, self.tangential_sd)
        step = min(self.radial_sd, self.tangential_sd) / 2.5
        blobs = entropy_in_box(lambda y: self._blobs(y).logsumexp(1), (-reach,) * 2, (reach,) * 2, step)
        return blobs + 2 * math.log(self.scale)

    @property
    def _pairs(self) -> int:
        return 2 * self.arms

    @cached_property
    def _directions(self) -> Tensor:
        angle = 2 * math.pi * torch.arange(self.arms, dtype=torch.float64) / self.arms
        return torch.stack([angle.cos(), angle.sin()])

    def _turn(self, y: Tensor, sense: float) -> Tensor:
        """Rotate the rows of y ``(n, 2)`` by ``sense * rate * exp(r)``."""
        radius: Tensor = torch.linalg.vector_norm(y, dim=1)
        angle = sense * self.rate * radius.clamp_max(1 + 10 * self.radial_sd).exp()
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos * y[:, 0] - sin * y[:, 1], sin * y[:, 0] + cos * y[:, 1]], 1)

    def _blobs(self, y: Tensor) -> Tensor:
        """Return the log of each arm's share of the density before the turn, ``(n, 2) -> (n, arms)``."""
        cos, sin = self._directions.to(y)
        along: Tensor = (y[:, :1] * cos + y[:, 1:] * sin - 1) / self.radial_sd
        across: Tensor = (y[:, 1:] * cos - y[:, :1] * sin) / self.tangential_sd
        log_norm = math.log(self.arms * self.radial_sd * self.tangential_sd) + _LOG_2PI
        return -0.5 * (along.square() + across.square()) - log_norm

    def _draw(self, count: int) -> Tensor:
        along = 1 + self.radial_sd * torch.randn(count, dtype=torch.float64)
        across = self.tangential_sd * torch.randn(count, dtype=torch.float64)
        cos, sin = self._directions[:, torch.randint(self.arms, (count,))]
        return self.scale * self._turn(torch.stack([along * cos - across * sin, along * sin + across * cos], 1), -1.0)

    def _log_density(self, x: Tensor) -> Tensor:
        return self._blobs(self._turn(x / self.scale, 1.0)).logsumexp(1) - 2 * math.log(self.scale)

    def _nearest(self, x: Tensor) -> Tensor:
        return self._blobs(self._turn(x / self.scale, 1.0)).argmax(1)

    def _steps(self, alpha: float, sigma: float) -> tuple[float, float, float]:
        """Choose grid steps that resolve the noised density: over the noise, and along and across an arm."""
        far = 1 + 2.5 * self.radial_sd
        shear = math.hypot(1, self.rate * far * math.exp(far))  # how much the turn stretches and thins an arm out there
        noise = sigma / (alpha * self.scale)
        over_noise = min(0.8, 0.9 * min(self.tangential_sd, self.radial_sd) / (shear * noise))
        return over_noise, 0.9 * min(self.radial_sd, noise / shear), 0.9 * min(self.tangential_sd, noise)

    def _counts(self, alpha: float, sigma: float) -> tuple[int, int]:
        """Work per point of integrating over the noise, and of integrating over the arms."""
        over_noise, along, across = self._steps(alpha, sigma)
        arms = self.arms * (12 * self.radial_sd / along) * (12 * self.tangential_sd / across)
        return math.ceil(2 * self.arms * math.pi * (6 / over_noise) ** 2), math.ceil(arms)

    def _pairs_diffused(self, alpha: float, sigma: float) -> int:
        return min(self._counts(alpha, sigma))

    def _log_diffused(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        # Both are trapezoid rules, whose error here falls faster than any power of the step; take the cheaper one.
        over_noise, along, across = self._steps(alpha, sigma)
        by_noise, by_arms = self._counts(alpha, sigma)
        if by_noise < by_arms:
            line = _symmetric(6.0, over_noise)
            noise = torch.cartesian_prod(line, line)
            noise = noise[noise.square().sum(1) < 36].to(x)
            clean = (x.unsqueeze(1) - sigma * noise) / alpha
            values = self._log_density(clean.reshape(-1, 2)).reshape(clean.shape[:2]) - 0.5 * noise.square().sum(1)
            return values.logsumexp(1) - _LOG_2PI + 2 * math.log(over_noise / alpha)
        grid = torch.cartesian_prod(_symmetric(6 * self.radial_sd, along), _symmetric(6 * self.tangential_sd, across))
        cos, sin = self._directions.unsqueeze(-1)
        u, v = 1 + grid[:, 0], grid[:, 1]
        blobs = torch.stack([u * cos - v * sin, u * sin + v * cos], -1).reshape(-1, 2)
        sds = torch.tensor([self.radial_sd, self.tangential_sd], dtype=torch.float64)
        weights = -0.5 * (grid / sds).square().sum(1).repeat(self.arms) - math.log(self.radial_sd * self.tangential_sd)
        centers = (alpha * self.scale * self._turn(blobs, -1.0)).to(x)
        squares = ((x[:, :1] - centers[:, 0]) / sigma).square() + ((x[:, 1:] - centers[:, 1]) / sigma).square()
        log_cell = math.log(along * across / (self.arms * sigma**2)) - 2 * _LOG_2PI
        return (weights.to(x) - 0.5 * squares).logsumexp(1) + log_cell


def _symmetric(reach: float, step: float) -> Tensor:
    """Return multiples of step in [-reach, reach], float64."""
    count = math.ceil(reach / step)
    return step * torch.arange(-count, count + 1, dtype=torch.float64)


def _log_ndtr_difference(a: Tensor, b: Tensor) -> Tensor:
    """Work out log(Phi(b) - Phi(a)) for a < b, without cancellation in either tail."""
    flip = a > 0
    low, high = torch.where(flip, -b, a), torch.where(flip, -a, b)
    log_high: Tensor = torch.special.log_ndtr(high)
    return log_high + (-torch.expm1(torch.special.log_ndtr(low) - log_high)).log()

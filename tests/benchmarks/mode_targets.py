"""Multimodal, skewed, heavy-tailed and far-away targets of known log Z, for estimates that are given no samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import energyppl as ep
from tests.benchmarks.normalizer_targets import Known, many_wells, student

Density = Callable[[Tensor], Tensor]  # log density of points (n, d), (n,)


@dataclass(frozen=True)
class Part:
    """A component of a mixture: a location, a scale of each coordinate, and a shape."""

    mean: Tensor  # (d,)
    scale: Tensor  # (d,)
    shape: str = "gaussian"  # or "student" (5 degrees of freedom), "laplace", "gumbel"

    def log_density(self, x: Tensor) -> Tensor:
        """Log density of points ``(n, d)``, ``(n,)``."""
        z = (x - self.mean.to(x)) / self.scale.to(x)
        volume = self.scale.double().log().sum().to(x)
        dim = len(self.mean)
        if self.shape == "gaussian":
            return -0.5 * z.square().sum(-1) - 0.5 * dim * math.log(2.0 * math.pi) - volume
        if self.shape == "laplace":
            return -z.abs().sum(-1) - dim * math.log(2.0) - volume
        if self.shape == "gumbel":
            return -(z + torch.exp(-z)).sum(-1) - volume
        nu = 5.0
        constant = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2) - 0.5 * dim * math.log(nu * math.pi)
        return constant - 0.5 * (nu + dim) * torch.log1p(z.square().sum(-1) / nu) - volume

    def draw(self, n: int) -> Tensor:
        """Independent draws, ``(n, d)``."""
        dim = len(self.mean)
        if self.shape == "laplace":
            z = torch.distributions.Laplace(0.0, 1.0).sample((n, dim))
        elif self.shape == "gumbel":
            z = torch.distributions.Gumbel(0.0, 1.0).sample((n, dim))
        else:
            z = torch.randn(n, dim)
            if self.shape == "student":
                z = z / (torch.distributions.Chi2(5.0).sample((n, 1)) / 5.0).sqrt()
        return self.mean + self.scale * z


def mixture(parts: list[Part], weights: list[float], turn: bool = False) -> Known:
    """A normalized mixture, three nats above its log density; ``turn`` rotates the space at random."""
    dim, share = len(parts[0].mean), torch.tensor(weights) / sum(weights)
    generator = torch.Generator().manual_seed(dim)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0] if turn else torch.eye(dim)

    def energy(x: Tensor) -> Tensor:
        y = x @ basis.to(x)
        return 3.0 - torch.logsumexp(torch.stack([p.log_density(y) for p in parts], -1) + share.log().to(x), -1)

    def draw(n: int) -> Tensor:
        counts = torch.bincount(torch.multinomial(share, n, replacement=True), minlength=len(parts))
        rows = torch.cat([part.draw(int(count)) for part, count in zip(parts, counts, strict=True)])
        return rows[torch.randperm(n)] @ basis.T

    return Known(ep.Energy(energy, torch.Size((dim,))), draw, -3.0)


def _at(dim: int, distance: float, axis: int | None = None) -> Tensor:
    """A point at a distance from the origin: along a coordinate, or along the diagonal."""
    if axis is None:
        return torch.full((dim,), distance / math.sqrt(dim))
    return distance * torch.eye(dim)[axis]


def two_students(dim: int, distance: float, weights: list[float]) -> Known:
    """Two Student-t modes, one at the origin."""
    scale = torch.ones(dim)
    parts = [Part(torch.zeros(dim), scale, "student"), Part(_at(dim, distance), scale, "student")]
    return mixture(parts, weights)


def scattered(count: int, dim: int, spread: float, shape: str = "gaussian") -> Known:
    """Components at random places of a spread, their scales from .5 to 1.5 and their weights from 1 to 4."""
    generator = torch.Generator().manual_seed(count + dim)
    means = spread * torch.randn(count, dim, generator=generator)
    scales = 0.5 + torch.rand(count, dim, generator=generator)
    weights = (1.0 + 3.0 * torch.rand(count, generator=generator)).tolist()
    return mixture([Part(m, s, shape) for m, s in zip(means, scales, strict=True)], weights)


def far_gaussian(dim: int, distance: float) -> Known:
    """A Gaussian far from the origin, turned, with scales from .1 to 10."""
    return mixture([Part(_at(dim, distance), torch.logspace(-1.0, 1.0, dim))], [1.0], turn=True)


def narrow_and_wide(dim: int) -> Known:
    """A narrow Gaussian of .6 and a wide one, eight apart."""
    parts = [Part(torch.zeros(dim), 0.3 * torch.ones(dim)), Part(_at(dim, 8.0), 2.0 * torch.ones(dim))]
    return mixture(parts, [0.6, 0.4])


def skewed_pair(dim: int) -> Known:
    """Two products of Gumbel densities, of .8 and .2, along one coordinate."""
    parts = [Part(torch.zeros(dim), torch.ones(dim), "gumbel"), Part(_at(dim, 14.0, 0), torch.ones(dim), "gumbel")]
    return mixture(parts, [0.2, 0.8])


def _pair(distance: float, dim: int = 2, weights: tuple[float, float] = (0.4, 0.6)) -> Known:
    parts = [Part(torch.zeros(dim), torch.ones(dim)), Part(_at(dim, distance), torch.ones(dim))]
    return mixture(parts, list(weights))


def _three_in_thirty() -> Known:
    scale = torch.linspace(0.5, 2.0, 30)
    parts = [Part(_at(30, 12.0, axis), scale) for axis in range(3)]
    return mixture(parts, [0.6, 0.3, 0.1], turn=True)


MODE_TARGETS: dict[str, Callable[[], Known]] = {
    "two Gaussians 20 apart, 2-D": lambda: _pair(20.0),
    "two Gaussians 60 apart, 2-D": lambda: _pair(60.0),
    "two Gaussians, .97 off centre, 6-D": lambda: _pair(15.0, 6, (0.03, 0.97)),
    "two Student-t, 8-D": lambda: two_students(8, 7.0, [0.7, 0.3]),
    "two Student-t, 20-D": lambda: two_students(20, 12.0, [0.5, 0.5]),
    "twelve Gaussians, 10-D": lambda: scattered(12, 10, 4.0),
    "forty Gaussians, 2-D": lambda: scattered(40, 2, 20.0),
    "five Laplace, 15-D": lambda: scattered(5, 15, 6.0, "laplace"),
    "narrow and wide, 5-D": lambda: narrow_and_wide(5),
    "two skewed, 5-D": lambda: skewed_pair(5),
    "two skewed, 12-D": lambda: skewed_pair(12),
    "three Gaussians, 30-D": _three_in_thirty,
    "far Gaussian, 6-D": lambda: far_gaussian(6, 1000.0),
    "far Student-t, 10-D": lambda: mixture([Part(_at(10, 50.0), torch.ones(10), "student")], [1.0]),
    "Student-t, 10-D": student,
    "ManyWell, 16-D": lambda: many_wells(8),
    "eight skewed, 4-D": lambda: scattered(8, 4, 8.0, "gumbel"),
}
"""By name; each is made anew, so that nothing is remembered from one repeat to the next."""

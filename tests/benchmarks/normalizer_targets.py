"""Targets whose log Z is known and that can be drawn from exactly, for the benchmarks of normalizing constants."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import energyppl as ep


@dataclass(frozen=True, eq=False)
class Known:
    """A target: its energy, independent draws of it, its log Z, and a base that peers without samples begin from."""

    potential: Any
    draw: Callable[[int], Tensor]
    log_z: float
    spread: float = 3.0  # standard deviation of a centred Gaussian that covers it, as a user would guess
    dim: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", math.prod(self.potential.event_shape))


def toy(found: Any, spread: float = 3.0) -> Known:
    """One of the library's toys, which are normalized."""
    return Known(found, lambda n: found.sample((n,)), 0.0, spread)


def lopsided(x: Tensor) -> Tensor:
    """A product of Gumbel densities, five nats above their normalized energy."""
    return (x + torch.exp(-x)).sum(-1) + 5.0


def _gumbel(n: int) -> Tensor:
    return -torch.log(-torch.log(torch.rand(n, 5).clamp(1e-30, 1.0 - 1e-7)))


def student_mixture() -> Known:
    """Two Student-t densities of 5 degrees of freedom in four dimensions, 1 to 3, eight apart."""
    dim, nu = 4, 5.0
    means, weights = torch.stack([-2.0 * torch.ones(dim), 2.0 * torch.ones(dim)]), torch.tensor([0.25, 0.75])
    constant = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2) - 0.5 * dim * math.log(nu * math.pi)

    def energy(x: Tensor) -> Tensor:
        square = (x.unsqueeze(-2) - means).square().sum(-1)
        return -torch.logsumexp(weights.log() + constant - 0.5 * (nu + dim) * torch.log1p(square / nu), -1)

    def draw(n: int) -> Tensor:
        which = torch.multinomial(weights, n, replacement=True)
        return means[which] + torch.randn(n, dim) / (torch.distributions.Chi2(nu).sample((n, 1)) / nu).sqrt()

    return Known(ep.Energy(energy, torch.Size((dim,))), draw, 0.0)


def many_wells(pairs: int = 16) -> Known:
    """ManyWell (Noé et al. 2019): ``pairs`` of a tilted double well and a Gaussian, 2^pairs modes."""
    nodes = torch.linspace(-6.0, 6.0, 200_001, dtype=torch.float64)

    def well(x: Tensor) -> Tensor:
        return x.square().square() - 6.0 * x.square() - 0.5 * x

    log_density = -well(nodes)
    log_z = float(torch.logsumexp(log_density, 0) + math.log(float(nodes[1] - nodes[0]))) + 0.5 * math.log(2 * math.pi)
    table = torch.softmax(log_density, 0).cumsum(0)

    def energy(x: Tensor) -> Tensor:
        return well(x[..., ::2]).sum(-1) + 0.5 * x[..., 1::2].square().sum(-1)

    def draw(n: int) -> Tensor:
        places = torch.searchsorted(table, torch.rand(n, pairs, dtype=torch.float64)).clamp(max=len(nodes) - 1)
        return torch.stack([nodes[places].float(), torch.randn(n, pairs)], -1).reshape(n, 2 * pairs)

    return Known(ep.Energy(energy, torch.Size((2 * pairs,))), draw, pairs * log_z)


def forty_gaussians() -> Known:
    """GMM-40 (Midgley et al. 2023): forty round Gaussians in the plane, on a square 80 wide."""
    generator = torch.Generator().manual_seed(0)
    means = 80.0 * (torch.rand(40, 2, generator=generator) - 0.5)
    return toy(ep.toys.IsotropicMixture(means, math.log1p(math.e)), 25.0)


def gaussian(dim: int, condition: float) -> Known:
    """A Gaussian turned at random, its variances spread over ``condition``, five nats below its normalized energy."""
    generator = torch.Generator().manual_seed(dim)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    scale = torch.logspace(-0.5 * math.log10(condition), 0.0, dim) * 2.0
    factor, mean = basis * scale, torch.full((dim,), 1.0)
    whiten = basis.T / scale[:, None]
    potential = ep.Energy(lambda x: 0.5 * (((x - mean) @ whiten.T) ** 2).sum(-1) - 5.0, torch.Size((dim,)))
    log_z = 5.0 + float(scale.log().sum()) + 0.5 * dim * math.log(2.0 * math.pi)
    return Known(potential, lambda n: mean + torch.randn(n, dim) @ factor.T, log_z)


def far_modes(dim: int = 50) -> Known:
    """Two modes of fifty dimensions, 14 standard deviations apart, weights 1 to 1."""
    means = torch.stack([torch.zeros(dim), torch.full((dim,), 2.0)])
    return toy(ep.toys.IsotropicMixture(means, 1.0))


def student(dim: int = 10, nu: float = 5.0) -> Known:
    """A Student-t density."""
    constant = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2) - 0.5 * dim * math.log(nu * math.pi)

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (nu + dim) * torch.log1p(x.square().sum(-1) / nu) - constant

    def draw(n: int) -> Tensor:
        return torch.randn(n, dim) / (torch.distributions.Chi2(nu).sample((n, 1)) / nu).sqrt()

    return Known(ep.Energy(energy, torch.Size((dim,))), draw, 0.0)


def funnel_prior_and_data(dim: int = 10) -> Known:
    """Neal's funnel in ten dimensions, its neck and mouth as they are."""
    return toy(ep.toys.Funnel(dim, 3.0))


TARGETS: dict[str, Callable[[], Known]] = {
    "lopsided, 1-D": lambda: toy(
        ep.toys.GaussianMixture(
            torch.tensor([[-1.0], [3.0]]), torch.tensor([[[0.04]], [[1.0]]]), torch.tensor([3.0, 1.0])
        )
    ),
    "banana, 2-D": lambda: toy(ep.toys.Banana(curvature=0.5, scale=1.5)),
    "eight Gaussians, 2-D": lambda: toy(ep.toys.EightGaussians()),
    "rings, 2-D": lambda: toy(ep.toys.Rings()),
    "pinwheel, 2-D": lambda: toy(ep.toys.Pinwheel()),
    "GMM-40, 2-D": forty_gaussians,
    "Student-t mixture, 4-D": student_mixture,
    "Gumbel, 5-D": lambda: Known(ep.Energy(lopsided, torch.Size((5,))), _gumbel, -5.0),
    "Student-t, 10-D": student,
    "funnel, 10-D": funnel_prior_and_data,
    "ill-conditioned Gaussian, 20-D": lambda: gaussian(20, 1e4),
    "ManyWell, 32-D": many_wells,
    "two modes, 50-D": far_modes,
    "Gaussian, 100-D": lambda: gaussian(100, 100.0),
}
"""By name; each is made anew, so that nothing is remembered from one repeat to the next."""

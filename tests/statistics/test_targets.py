"""Whole sampling runs on targets whose answers are known: warm-up from a bad start, then moments, tails and R̂.

Chains are independent, so the standard error of a number is the spread of the chains' own averages over √chains, and
the deviation in those units follows Student's t with chains − 1 degrees of freedom: no effective sample size is needed.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import arviz as az
import pytest
import torch
from scipy.stats import t as student
from torch import Tensor

import energyppl as ep

CHAINS = 64
FALSE_ALARM = 1e-3  # of the whole table, shared among its numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    potential: Any
    dim: int
    functions: Callable[[Tensor], Tensor]  # (*batch, dim) to (*batch, k)
    expected: Tensor  # (k,)
    draws: int = 1000


def energy(function: Callable[[Tensor], Tensor], dim: int) -> ep.Energy:
    return ep.Energy(function, torch.Size((dim,)))


def moments(x: Tensor) -> Tensor:
    """Coordinates, their squares, and the products of neighbours."""
    return torch.cat([x, x * x, x * x.roll(1, -1)], -1)


def gaussian(covariance: Tensor, mean: Tensor, draws: int = 1000) -> Known:
    precision = torch.linalg.inv(covariance.double()).float()
    sd = covariance.diagonal().sqrt()

    def functions(x: Tensor) -> Tensor:
        z = (x - mean) / sd
        return torch.cat([moments(z), (z > 1.5).to(x)], -1)

    correlation = covariance / sd[:, None] / sd
    neighbours = correlation[torch.arange(len(sd)), torch.arange(len(sd)).roll(1)]
    tail = torch.full_like(sd, 0.5 * math.erfc(1.5 / math.sqrt(2.0)))
    expected = torch.cat([torch.zeros_like(sd), torch.ones_like(sd), neighbours, tail])
    potential = energy(lambda x: 0.5 * (((x - mean) @ precision) * (x - mean)).sum(-1), len(sd))
    return Known(potential, len(sd), functions, expected, draws)


def rotated(dim: int, condition: float) -> Tensor:
    generator = torch.Generator().manual_seed(dim)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    return basis @ torch.diag(torch.logspace(-math.log10(condition), 0.0, dim)) @ basis.T


BANANA = ep.toys.Banana(curvature=0.5, scale=1.0)
WELL = ep.toys.DoubleWell(dim=1, quadratic=2.0, tilt=0.5)
HUMPS = ep.toys.GaussianMixture(
    torch.tensor([[-1.0], [1.5]]), torch.tensor([[[0.25]], [[1.0]]]), torch.tensor([3.0, 1.0])
)
GRID = torch.linspace(-30.0, 30.0, 200_001, dtype=torch.float64)


def by_quadrature(log_density: Tensor, functions: Callable[[Tensor], Tensor]) -> Tensor:
    weight = torch.softmax(log_density, 0)
    return (weight[:, None] * functions(GRID[:, None])).sum(0).float()


def one_dimensional(function: Callable[[Tensor], Tensor], tail: float, draws: int = 1000) -> Known:
    def functions(x: Tensor) -> Tensor:
        return torch.cat([x, x * x, (x > tail).to(x)], -1)

    return Known(energy(function, 1), 1, functions, by_quadrature(-function(GRID[:, None]), functions), draws)


def funnel(x: Tensor) -> Tensor:
    """Neal's funnel seen from its non-centred coordinates: v = 3 a, and P(e^{v/2} b > 1) as its tail."""
    wide = (1.5 * x[..., :1]).exp() * x[..., 1:]
    return torch.cat([moments(x), (wide > 1.0).to(x)], -1)


FUNNEL_TAIL = float((torch.softmax(-0.5 * GRID**2, 0) * 0.5 * torch.erfc((-1.5 * GRID).exp() / math.sqrt(2.0))).sum())


TARGETS: dict[str, Known] = {
    "correlated Gaussian": gaussian(torch.tensor([[1.0, 0.95], [0.95, 1.0]]), torch.zeros(2)),
    "ill-conditioned Gaussian, 10-D": gaussian(torch.diag(torch.logspace(-2, 1, 10)), torch.full((10,), 2.0)),
    "rotated Gaussian, 100-D": gaussian(rotated(100, 100.0), torch.zeros(100)),
    "banana": Known(BANANA, 2, moments, torch.tensor([0.0, 0.0, 1.0, 1.5, 0.0, 0.0]), 2000),
    "funnel, non-centred": Known(
        energy(lambda x: 0.5 * (x * x).sum(-1), 5),
        5,
        funnel,
        torch.cat([torch.zeros(5), torch.ones(5), torch.zeros(5), torch.full((4,), FUNNEL_TAIL)]),
    ),
    "lopsided mixture": one_dimensional(HUMPS, 2.0, 2000),
    "Student-t of 5": one_dimensional(lambda x: (3.0 * torch.log1p(x * x / 5.0)).sum(-1), 2.0),
    "double well": one_dimensional(WELL, 1.2, 3000),
    "Gumbel": one_dimensional(lambda x: (x + (-x).exp()).sum(-1), 2.5),
}
KERNELS: dict[str, Callable[[], Any]] = {
    "ChEES": ep.ChEES,
    "NUTS": ep.NUTS,
    "HMC": lambda: ep.HMC(steps=4, jitter=0.5),
    "MALT": lambda: ep.kernels.MALT(steps=4),
}
SLOW = {("NUTS", "rotated Gaussian, 100-D"), ("NUTS", "banana"), ("NUTS", "double well"), ("NUTS", "lopsided mixture")}
CASES = [
    pytest.param(kernel, target, marks=[pytest.mark.slow] if (kernel, target) in SLOW else [])
    for kernel in KERNELS
    for target in TARGETS
]


@pytest.mark.parametrize(("kernel", "target"), CASES)
def test_a_run_finds_its_target(kernel: str, target: str) -> None:
    """Every number within its share of a false alarm in 1,000 runs of the table; rank-normalized R̂ below 1.01."""
    known = TARGETS[target]
    start = 2.0 * torch.randn(CHAINS, known.dim)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*of the draws diverged", UserWarning)  # in a banana's arms, honestly
        chains = ep.sample_chains(
            KERNELS[kernel](), known.potential, chains=CHAINS, draws=known.draws, warmup=400, init=start, progress=False
        )
    assert worst_p(known, chains.draws) > FALSE_ALARM / numbers()
    assert max(float(az.rhat(chains.draws[..., i].numpy())) for i in range(min(known.dim, 10))) < 1.01


def numbers() -> int:
    return len(KERNELS) * sum(len(known.expected) for known in TARGETS.values())


def worst_p(known: Known, draws: Tensor) -> float:
    """Smallest two-sided p-value of the chains' averages."""
    averages = known.functions(draws).double().mean(1)
    z = (averages.mean(0) - known.expected) / (averages.std(0) / math.sqrt(CHAINS))
    return float(2.0 * student.sf(z.abs().numpy(), CHAINS - 1).min())


@pytest.mark.parametrize("target", ["lopsided mixture", "Gumbel", "Student-t of 5"])
def test_the_check_sees_an_uncorrected_sampler(target: str) -> None:
    """Negative control: unadjusted Langevin with long steps fails the same check."""
    known = TARGETS[target]
    kernel = ep.Langevin(0.8 if target == "lopsided mixture" else 1.0)
    start = 2.0 * torch.randn(CHAINS, known.dim)
    chains = ep.sample_chains(kernel, known.potential, chains=CHAINS, draws=3000, warmup=0, init=start, progress=False)
    assert worst_p(known, chains.draws[:, 500:]) < FALSE_ALARM / numbers()

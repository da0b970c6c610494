"""Closed-form targets and the table of kernels that tests share."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import energyppl as ep
from energyppl.autodiff.gradient import energy_and_grad
from energyppl.inference.kernels.contract import Info, State

__all__ = []


CHAINS = 4000


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    potential: Any
    draw: Callable[[int], Tensor]  # exact, (n, d)
    mean: tuple[float, ...]
    variance: tuple[float, ...]
    step: float  # for MALA
    fine: float = 0.08  # for Langevin: small enough for its bias to hide


def energy(function: Callable[[Tensor], Tensor], dim: int = 1) -> ep.Energy:
    return ep.Energy(function, torch.Size((dim,)))


PRECISION = torch.tensor([[1.0, 0.9], [0.9, 1.0]]).inverse()


FACTOR = torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))


WIDTHS = torch.tensor([0.2, 1.0, 3.0])


BANANA = ep.toys.Banana(curvature=0.5, scale=1.0)


WELL = ep.toys.DoubleWell(dim=1, quadratic=2.0, tilt=0.5)


HUMPS = ep.toys.GaussianMixture(
    torch.tensor([[-1.0], [1.5]]), torch.tensor([[[0.25]], [[1.0]]]), torch.tensor([3.0, 1.0])
)


GRID = torch.linspace(-6.0, 6.0, 20_001, dtype=torch.float64)


def well_moments() -> tuple[float, float]:
    weight = torch.softmax(-(GRID**4 - 2.0 * GRID**2 - 0.5 * GRID), 0)
    mean = float((weight * GRID).sum())
    return mean, float((weight * GRID**2).sum()) - mean**2


def gumbel(n: int) -> Tensor:
    return -torch.empty(n, 1).exponential_().log()


TARGETS: dict[str, Target] = {
    "correlated Gaussian": Target(
        energy(lambda x: 0.5 * ((x @ PRECISION) * x).sum(-1), 2),
        lambda n: torch.randn(n, 2) @ FACTOR.T,
        (0.0, 0.0),
        (1.0, 1.0),
        0.4,
        0.04,
    ),
    "Gaussian of three widths": Target(
        energy(lambda x: 0.5 * (((x - 1.0) / WIDTHS) ** 2).sum(-1), 3),
        lambda n: 1.0 + WIDTHS * torch.randn(n, 3),
        (1.0, 1.0, 1.0),
        (0.04, 1.0, 9.0),
        0.25,
        0.03,
    ),
    "banana": Target(BANANA, lambda n: BANANA.sample((n,)), (0.0, 0.0), (1.0, 1.5), 0.6),
    "double well": Target(WELL, lambda n: WELL.sample((n,)), (well_moments()[0],), (well_moments()[1],), 0.4, 0.04),
    "lopsided mixture": Target(
        HUMPS, lambda n: HUMPS.sample((n,)), (-0.375,), (0.75 * 1.25 + 0.25 * 3.25 - 0.375**2,), 0.7
    ),
    "Gumbel": Target(energy(lambda x: (x + (-x).exp()).sum(-1)), gumbel, (0.5772157,), (math.pi**2 / 6,), 0.6, 0.06),
}


@dataclasses.dataclass(frozen=True, eq=False)
class HalfSquaredMALA:
    """The ratio in the code of Zhang, Tan & Ou 2023: ``−z + ½ s² (g + g')`` where ``½ s (g + g')`` is right."""

    step_size: float

    def init(self, potential: Any, x: Tensor) -> State:
        return State(x, *energy_and_grad(potential, x))

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        s, noise = self.step_size, torch.randn_like(state.x)
        x = state.x - 0.5 * s * s * state.grad + s * noise
        energy, grad = energy_and_grad(potential, x)
        back = -noise + 0.5 * s * s * (state.grad + grad)
        log_ratio = state.energy - energy + 0.5 * ((noise * noise).sum(-1) - (back * back).sum(-1))
        accept_prob = log_ratio.clamp(max=0.0).exp()
        accepted = torch.rand_like(accept_prob) < accept_prob
        wide = accepted[..., None]
        new = (torch.where(wide, x, state.x), torch.where(accepted, energy, state.energy))
        return State(*new, torch.where(wide, grad, state.grad)), Info(accept_prob, accepted, accepted & False)


def stretched(target: Target) -> ep.kernels.LowRankMass:
    direction = torch.ones(len(target.mean), 1) / math.sqrt(len(target.mean))
    return ep.kernels.LowRankMass(torch.tensor(target.variance), direction, torch.tensor([0.5]))


def blocks(dim: int) -> list[Tensor]:
    """The first coordinate, and the others."""
    first = torch.arange(dim) == 0
    return [first, ~first] if dim > 1 else [first]


# A new kernel is one line: (the kernel for a target, whether it wants a tilt, steps).
KERNELS: dict[str, tuple[Callable[[Target], Any], bool, int]] = {
    "MALA": (lambda t: ep.MALA(t.step), False, 60),
    "MALA, a step for each chain": (lambda t: ep.MALA(torch.linspace(0.3, 1.5, CHAINS) * t.step), False, 60),
    "MALA on a tilt": (lambda t: ep.MALA(t.step), True, 60),
    "Langevin": (lambda t: ep.Langevin(t.fine), False, 60),
    "Crank-Nicolson": (lambda t: ep.kernels.CrankNicolson(1.0), True, 30),
    "Crank-Nicolson, short": (lambda t: ep.kernels.CrankNicolson(0.4, reference_scale=2.0), True, 30),
    "Crank-Nicolson, a reference for each": (
        lambda t: ep.kernels.CrankNicolson(0.7, reference_scale=torch.linspace(1.0, 3.0, CHAINS)),
        True,
        30,
    ),
    "Crank-Nicolson Langevin": (lambda t: ep.kernels.CrankNicolsonLangevin(0.5), True, 60),
    "Crank-Nicolson Langevin, a step for each": (
        lambda t: ep.kernels.CrankNicolsonLangevin(torch.linspace(0.2, 0.9, CHAINS), reference_scale=2.0),
        True,
        60,
    ),
    "Crank-Nicolson Langevin, drift in bfloat16": (
        lambda t: ep.kernels.CrankNicolsonLangevin(0.5, force_dtype=torch.bfloat16),
        True,
        60,
    ),
    "Crank-Nicolson, a step for each": (lambda t: ep.kernels.CrankNicolson(torch.linspace(0.2, 1.0, CHAINS)), True, 30),
    "HMC": (lambda t: ep.HMC(0.5 * t.step, steps=6, jitter=0.5), False, 15),
    "HMC, fixed length, a mass": (lambda t: ep.HMC(0.4, 5, 0.0, torch.tensor(t.variance)), False, 15),
    "HMC, a step for each chain": (lambda t: ep.HMC(torch.linspace(0.2, 1.2, CHAINS) * t.step), False, 15),
    "HMC, a mass of low rank": (lambda t: ep.HMC(0.3 * t.step, inverse_mass=stretched(t)), False, 15),
    "HMC, forces in bfloat16": (lambda t: ep.HMC(0.5 * t.step, 4, force_dtype=torch.bfloat16), False, 15),
    "MALA, drift in bfloat16": (lambda t: ep.MALA(t.step, torch.bfloat16), False, 60),
    "ChEES": (lambda t: ep.ChEES(0.5 * t.step, length=4 * t.step), False, 15),
    "MALT": (lambda t: ep.kernels.MALT(0.5 * t.step, steps=6, friction=1.0), False, 15),
    "MALT, much friction, a mass": (lambda t: ep.kernels.MALT(0.5, 4, 3.0, torch.tensor(t.variance)), False, 15),
    "NUTS": (lambda t: ep.NUTS(0.5 * t.step), False, 10),
    "NUTS, long steps, a mass": (lambda t: ep.NUTS(0.8, 6, torch.tensor(t.variance)), False, 10),
    "NUTS, cut short": (lambda t: ep.NUTS(0.2 * t.step, max_depth=2), False, 20),
    "cycle": (lambda t: ep.kernels.Cycle(ep.MALA(t.step), ep.HMC(0.5 * t.step, 3)), False, 15),
    "mixture": (lambda t: ep.kernels.Mixture(ep.MALA(t.step), ep.HMC(0.5 * t.step, 3), weights=(2, 1)), False, 30),
    "blocks": (
        lambda t: ep.kernels.Cycle(*(ep.kernels.Block(ep.MALA(t.step), b) for b in blocks(len(t.mean)))),
        False,
        30,
    ),
    "tempered": (lambda t: ep.kernels.Tempered(ep.MALA(t.step * torch.tensor([[1.0], [1.4]])), (1.0, 0.5)), False, 100),
}


def standard_normal(dim: int) -> ep.Energy:
    return energy(lambda x: 0.5 * (x * x).sum(-1), dim)


OUTSIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "infinite energy": lambda x: torch.where((x.abs() < 1).all(-1), 0.0 * x.sum(-1), math.inf),
    "NaN energy": lambda x: torch.where((x.abs() < 1).all(-1), 0.0 * x.sum(-1), math.nan),
    "minus infinity": lambda x: torch.where((x.abs() < 1).all(-1), 0.0 * x.sum(-1), -math.inf),
    "NaN gradient alone": lambda x: (1.0 - x * x).sqrt().nan_to_num(0.0).sum(-1) * 0.0 + 0.0 * x.sum(-1),
    "logarithm": lambda x: 0.0 * (1.0 - x * x).log().sum(-1),
}


def tilted(target: Target) -> ep.potentials.RecoveryPotential:
    """The same density with a part of its energy written as a tilt, for Crank–Nicolson."""
    dim = len(target.mean)
    center, sigma = torch.full((dim,), 0.3), 1.5
    rest = energy(lambda x: -0.5 * (((x - center) / sigma) ** 2).sum(-1), dim)
    return ep.potentials.RecoveryPotential(ep.potentials.Sum(target.potential, rest), center, sigma)

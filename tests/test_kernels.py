"""One table of kernels × closed-form targets, judged in Monte Carlo standard errors, with controls that must fail.

Chains are many and independent, so standard errors are exact and need no effective sample size.  They begin at exact
draws: an exact kernel leaves those exact after any number of steps, so there is no burn-in to argue about, and a check
that they have moved keeps a kernel that stands still from passing.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.autodiff.gradient import energy_and_grad
from energyppl.inference.kernels.contract import Info, State, select
from energyppl.inference.kernels.hamiltonian import trajectory

CHAINS = 4000
LIMIT = 5.0  # standard errors: 6e-7 two-sided for one number


# --- Targets with closed-form moments and exact draws ---


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


def tilted(target: Target) -> ep.potentials.RecoveryPotential:
    """The same density with a part of its energy written as a tilt, for Crank–Nicolson."""
    dim = len(target.mean)
    center, sigma = torch.full((dim,), 0.3), 1.5
    rest = energy(lambda x: -0.5 * (((x - center) / sigma) ** 2).sum(-1), dim)
    return ep.potentials.RecoveryPotential(ep.potentials.Sum(target.potential, rest), center, sigma)


# --- Kernels, and two with the released codes' mistakes ---


@dataclasses.dataclass(frozen=True, eq=False)
class HalfSquaredMALA:
    """The released MGMS sampler's ratio, ``−z + ½ s² (g + g')`` where ``½ s (g + g')`` is right (SEEDS.md, 3)."""

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
        wide = accepted[:, None]
        new = (torch.where(wide, x, state.x), torch.where(accepted, energy, state.energy))
        return State(*new, torch.where(wide, grad, state.grad)), Info(accept_prob, accepted, accepted & False)


@dataclasses.dataclass(frozen=True, eq=False)
class NoCorrection(HalfSquaredMALA):
    """Accepts by the energies alone, as if the Langevin proposal were symmetric."""

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        s, noise = self.step_size, torch.randn_like(state.x)
        x = state.x - 0.5 * s * s * state.grad + s * noise
        energy, grad = energy_and_grad(potential, x)
        accept_prob = (state.energy - energy).clamp(max=0.0).exp()
        accepted = torch.rand_like(accept_prob) < accept_prob
        wide = accepted[:, None]
        new = (torch.where(wide, x, state.x), torch.where(accepted, energy, state.energy))
        return State(*new, torch.where(wide, grad, state.grad)), Info(accept_prob, accepted, accepted & False)


def stretched(target: Target) -> ep.kernels.LowRankMass:
    direction = torch.ones(len(target.mean), 1) / math.sqrt(len(target.mean))
    return ep.kernels.LowRankMass(torch.tensor(target.variance), direction, torch.tensor([0.5]))


def blocks(dim: int) -> list[Tensor]:
    """The first coordinate, and the others."""
    first = torch.arange(dim) == 0
    return [first, ~first] if dim > 1 else [first]


@dataclasses.dataclass(frozen=True, eq=False)
class UnadjustedHMC(ep.HMC):
    """Keeps the end of every trajectory."""

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        _, info, end, _ = trajectory(self, potential, state, self.steps)
        return end, info


@dataclasses.dataclass(frozen=True, eq=False)
class NoKineticMALT(ep.kernels.MALT):
    """Judges a trajectory by potential energy alone, as if renewals of the momenta had kept the total."""

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        new, info = super().step(potential, state)
        accepted = torch.rand_like(new.energy) < (state.energy - new.energy).exp()
        return select(accepted, new, state), info


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
# Negative controls, each with the targets on which its mistake shows.
WRONG: dict[str, tuple[tuple[Callable[[Target], Any], bool, int], tuple[str, ...]]] = {
    "HMC without its accept step": (
        (lambda t: UnadjustedHMC(1.5 * t.step, 5), False, 20),
        ("Gaussian of three widths", "Gumbel"),
    ),
    "MALT judged by potential energy": (
        (lambda t: NoKineticMALT(0.5 * t.step, 5), False, 20),
        ("correlated Gaussian", "Gaussian of three widths", "double well"),
    ),
    "half s squared": (
        (lambda t: HalfSquaredMALA(0.5 * t.step), False, 200),
        ("correlated Gaussian", "Gaussian of three widths", "Gumbel"),
    ),
    "no correction": (
        (lambda t: NoCorrection(t.step), False, 60),
        ("correlated Gaussian", "Gaussian of three widths", "Gumbel"),
    ),
    "Langevin, too long a step": (
        (lambda t: ep.Langevin(1.5 * t.step), False, 60),
        ("Gaussian of three widths", "Gumbel", "double well"),
    ),
}


def worst_z(target: Target, row: tuple[Callable[[Target], Any], bool, int]) -> float:
    """Largest deviation of a mean or a second central moment from its closed form, in standard errors."""
    make, wants_tether, steps = row
    start = target.draw(CHAINS)
    end = ep.sampling.run_chain(
        make(target), tilted(target) if wants_tether else target.potential, start, steps
    ).state.x
    assert end.shape == start.shape
    moved = (end != start).all(1).double().mean()
    assert moved > 0.3, "chains that stand still prove nothing"
    return z_of(end.double(), torch.tensor(target.mean), torch.tensor(target.variance))


def z_of(x: Tensor, mean: Tensor, variance: Tensor) -> float:
    values = torch.cat([x - mean, (x - mean) ** 2 - variance], 1)
    return float((values.mean(0) / (values.std(0) / math.sqrt(len(x)))).abs().max())


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("kernel", list(KERNELS))
def test_a_kernel_keeps_its_target(kernel: str, target: str) -> None:
    """Means and variances within 5 standard errors.

    540 numbers in all, so a false alarm in 1 of 3,200 runs of the table (in theory: the second moments of the longer
    tails are a little less normal than that).
    """
    assert worst_z(TARGETS[target], KERNELS[kernel]) < LIMIT


@pytest.mark.parametrize("kernel", list(WRONG))
def test_a_wrong_kernel_fails_the_same_check(kernel: str) -> None:
    """Negative controls: the check has the power to see what the released codes got wrong."""
    row, targets = WRONG[kernel]
    for target in targets:
        assert worst_z(TARGETS[target], row) > LIMIT, target


@pytest.mark.parametrize("kernel", ["MALA", "Crank-Nicolson, short"])
def test_chains_find_their_target_from_elsewhere(kernel: str) -> None:
    """From one point two widths away; 4 numbers at 5 standard errors."""
    target = TARGETS["banana"]
    make, wants_tether, _ = KERNELS[kernel]
    start = torch.tensor([2.0, 2.0]).expand(CHAINS, 2)
    end = ep.sampling.run_chain(make(target), tilted(target) if wants_tether else target.potential, start, 400).state.x
    assert z_of(end.double(), torch.tensor(target.mean), torch.tensor(target.variance)) < LIMIT


# --- The recovery posterior (SEEDS.md section 6.2) ---

RECOVERY: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "Langevin": lambda width, beta: ep.Langevin(0.15 * width),
    "MALA": lambda width, beta: ep.MALA(0.9 * width),
    "Crank-Nicolson": lambda width, beta: ep.kernels.CrankNicolson(beta),
    "Crank-Nicolson Langevin": lambda width, beta: ep.kernels.CrankNicolsonLangevin(beta),
}


@pytest.mark.parametrize("kernel", list(RECOVERY))
def test_the_recovery_posterior_of_a_gaussian(kernel: str) -> None:
    """N(x̃ v/(v+s²), v s²/(v+s²)) at every level of the cosine schedule, from the noisy point, within 4 standard errors.

    12 numbers: 8e-4 false alarms for each kernel in theory.  Langevin's own bias at steps of .15 widths is .0056 of the
    variance, a quarter of its standard error.
    """
    sigma = ep.NoiseSchedule.cosine(levels=6).sigma.float()
    v, chains = 0.7, 3000
    potential = energy(lambda x: 0.5 * (x * x).sum(-1) / v)
    s = sigma.repeat_interleave(chains)[:, None]
    noisy = (v + s * s).sqrt() * torch.randn(6 * chains, 1)
    width = (v * s**2 / (v + s**2)).sqrt()
    tilt = ep.potentials.RecoveryPotential(potential, noisy, s)
    end = ep.sampling.run_chain(RECOVERY[kernel](width[:, 0], torch.ones(len(s))), tilt, noisy, 500).state.x.double()
    residual = ((end - noisy * v / (v + s**2)) / width).reshape(6, chains)
    for z in residual:
        assert z_of(z[:, None], torch.zeros(1), torch.ones(1)) < 4.0


# --- High dimension (SEEDS.md section 6.3) ---


def standard_normal(dim: int) -> ep.Energy:
    return energy(lambda x: 0.5 * (x * x).sum(-1), dim)


def test_mala_in_784_dimensions() -> None:
    """Adapted to .6 to .8, the variance of N(0, I) is 1.00 ± .02 at a step of about .46.

    200 × 784 numbers give the variance to .0036, so .02 is 5.6 standard errors.
    """
    potential = standard_normal(784)
    kernel = ep.adapt(ep.MALA(0.1), potential, torch.randn(100, 784), steps=120, target_acceptance=0.7).kernel
    assert kernel.step_size == pytest.approx(0.46, abs=0.08)
    chain = ep.sampling.run_chain(kernel, potential, 1.3 * torch.randn(200, 784), 120)
    assert 0.6 < float(chain.accept_prob.mean()) < 0.8
    assert float(chain.state.x.var()) == pytest.approx(1.0, abs=0.02)


def test_the_released_ratio_halves_the_variance_in_784_dimensions() -> None:
    """Negative control: SEEDS.md's .519 at a step of .048, from both sides; 20 × 784 numbers give it to .006."""
    chain = ep.sampling.run_chain(HalfSquaredMALA(0.048), standard_normal(784), 0.8 * torch.randn(20, 784), 2500)
    assert float(chain.state.x.var()) == pytest.approx(0.52, abs=0.03)


# --- Order of the bias ---


@pytest.mark.parametrize("step", [0.4, 0.8, 1.2])
def test_the_unadjusted_bias_is_what_theory_says_and_mala_has_none(step: float) -> None:
    """ULA on N(0, 1) has variance 1/(1 − s²/4): a bias of second order in s.

    Both kernels' variances to 5 standard errors of 40,000 chains (.035); 6 checks: false alarms 4e-6.  ULA must also be
    told from exact.
    """
    potential, n = standard_normal(1), 40_000
    theory = 1.0 / (1.0 - step**2 / 4.0)
    start = torch.randn(n, 1)
    unadjusted = ep.sampling.run_chain(ep.Langevin(step), potential, start, 50).state.x.var()
    adjusted = ep.sampling.run_chain(ep.MALA(step), potential, start, 50).state.x.var()
    error = math.sqrt(2.0 / n)
    assert float(unadjusted) == pytest.approx(theory, abs=LIMIT * error * theory)
    assert float(adjusted) == pytest.approx(1.0, abs=LIMIT * error)
    assert float(unadjusted) > 1.0 + (LIMIT if step > 0.5 else 3.0) * error

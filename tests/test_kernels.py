"""One table of kernels × closed-form targets, judged in Monte Carlo standard errors, with controls that must fail.

Chains are many and independent, so standard errors are exact and need no effective sample size.  They begin at exact
draws: an exact kernel leaves those exact after any number of steps, so there is no burn-in to argue about, and a check
that they have moved keeps a kernel that stands still from passing.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.errors import InvalidInput
from energyppl.gradient import energy_and_grad
from energyppl.inference import Info, State
from energyppl.inference.hamiltonian import transition
from energyppl.inference.transition import select

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


def tethered(target: Target) -> ep.Tethered:
    """The same density with a part of its energy written as a tether, for Crank–Nicolson."""
    dim = len(target.mean)
    center, sigma = torch.full((dim,), 0.3), 1.5
    rest = energy(lambda x: -0.5 * (((x - center) / sigma) ** 2).sum(-1), dim)
    return ep.Tethered(ep.Sum(target.potential, rest), center, sigma)


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


def stretched(target: Target) -> ep.LowRankMass:
    direction = torch.ones(len(target.mean), 1) / math.sqrt(len(target.mean))
    return ep.LowRankMass(torch.tensor(target.variance), direction, torch.tensor([0.5]))


def blocks(dim: int) -> list[Tensor]:
    """The first coordinate, and the others."""
    first = torch.arange(dim) == 0
    return [first, ~first] if dim > 1 else [first]


@dataclasses.dataclass(frozen=True, eq=False)
class UnadjustedHMC(ep.HMC):
    """Keeps the end of every trajectory."""

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        _, info, end, _ = transition(self, potential, state, self.steps)
        return end, info


@dataclasses.dataclass(frozen=True, eq=False)
class NoKineticMALT(ep.MALT):
    """Judges a trajectory by potential energy alone, as if renewals of the momenta had kept the total."""

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        new, info = super().step(potential, state)
        accepted = torch.rand_like(new.energy) < (state.energy - new.energy).exp()
        return select(accepted, new, state), info


# A new kernel is one line: (the kernel for a target, whether it wants a tether, steps).
KERNELS: dict[str, tuple[Callable[[Target], Any], bool, int]] = {
    "MALA": (lambda t: ep.MALA(t.step), False, 60),
    "MALA, a step for each chain": (lambda t: ep.MALA(torch.linspace(0.3, 1.5, CHAINS) * t.step), False, 60),
    "MALA on a tether": (lambda t: ep.MALA(t.step), True, 60),
    "Langevin": (lambda t: ep.Langevin(t.fine), False, 60),
    "Crank-Nicolson": (lambda t: ep.CrankNicolson(1.0), True, 30),
    "Crank-Nicolson, short": (lambda t: ep.CrankNicolson(0.4, reference_scale=2.0), True, 30),
    "Crank-Nicolson, a reference for each": (
        lambda t: ep.CrankNicolson(0.7, reference_scale=torch.linspace(1.0, 3.0, CHAINS)),
        True,
        30,
    ),
    "Crank-Nicolson Langevin": (lambda t: ep.CrankNicolsonLangevin(0.5), True, 60),
    "Crank-Nicolson Langevin, a step for each": (
        lambda t: ep.CrankNicolsonLangevin(torch.linspace(0.2, 0.9, CHAINS), reference_scale=2.0),
        True,
        60,
    ),
    "Crank-Nicolson, a step for each": (lambda t: ep.CrankNicolson(torch.linspace(0.2, 1.0, CHAINS)), True, 30),
    "HMC": (lambda t: ep.HMC(0.5 * t.step, steps=6, jitter=0.5), False, 15),
    "HMC, fixed length, a mass": (lambda t: ep.HMC(0.4, 5, 0.0, torch.tensor(t.variance)), False, 15),
    "HMC, a step for each chain": (lambda t: ep.HMC(torch.linspace(0.2, 1.2, CHAINS) * t.step), False, 15),
    "HMC, a mass of low rank": (lambda t: ep.HMC(0.3 * t.step, inverse_mass=stretched(t)), False, 15),
    "HMC, forces in bfloat16": (lambda t: ep.HMC(0.5 * t.step, 4, force_dtype=torch.bfloat16), False, 15),
    "MALA, drift in bfloat16": (lambda t: ep.MALA(t.step, torch.bfloat16), False, 60),
    "ChEES": (lambda t: ep.ChEES(0.5 * t.step, length=4 * t.step), False, 15),
    "MALT": (lambda t: ep.MALT(0.5 * t.step, steps=6, friction=1.0), False, 15),
    "MALT, much friction, a mass": (lambda t: ep.MALT(0.5, 4, 3.0, torch.tensor(t.variance)), False, 15),
    "NUTS": (lambda t: ep.NUTS(0.5 * t.step), False, 10),
    "NUTS, long steps, a mass": (lambda t: ep.NUTS(0.8, 6, torch.tensor(t.variance)), False, 10),
    "NUTS, cut short": (lambda t: ep.NUTS(0.2 * t.step, max_depth=2), False, 20),
    "cycle": (lambda t: ep.Cycle(ep.MALA(t.step), ep.HMC(0.5 * t.step, 3)), False, 15),
    "mixture": (lambda t: ep.Mixture(ep.MALA(t.step), ep.HMC(0.5 * t.step, 3), weights=(2, 1)), False, 30),
    "blocks": (lambda t: ep.Cycle(*(ep.Block(ep.MALA(t.step), b) for b in blocks(len(t.mean)))), False, 30),
    "tempered": (lambda t: ep.Tempered(ep.MALA(t.step * torch.tensor([[1.0], [1.4]])), (1.0, 0.5)), False, 100),
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
    end = ep.run_chain(make(target), tethered(target) if wants_tether else target.potential, start, steps).state.x
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

    376 numbers in all, so a false alarm in 1 of 4,000 runs of the table (in theory: the second moments of the longer
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
    end = ep.run_chain(make(target), tethered(target) if wants_tether else target.potential, start, 400).state.x
    assert z_of(end.double(), torch.tensor(target.mean), torch.tensor(target.variance)) < LIMIT


# --- The recovery posterior (SEEDS.md section 6.2) ---

RECOVERY: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "Langevin": lambda width, beta: ep.Langevin(0.15 * width),
    "MALA": lambda width, beta: ep.MALA(0.9 * width),
    "Crank-Nicolson": lambda width, beta: ep.CrankNicolson(beta),
    "Crank-Nicolson Langevin": lambda width, beta: ep.CrankNicolsonLangevin(beta),
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
    tether = ep.Tethered(potential, noisy, s)
    end = ep.run_chain(RECOVERY[kernel](width[:, 0], torch.ones(len(s))), tether, noisy, 500).state.x.double()
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
    kernel = ep.adapt(ep.MALA(0.1), potential, torch.randn(100, 784), steps=120, target=0.7).kernel
    assert kernel.step_size == pytest.approx(0.46, abs=0.08)
    chain = ep.run_chain(kernel, potential, 1.3 * torch.randn(200, 784), 120)
    assert 0.6 < float(chain.accept_prob.mean()) < 0.8
    assert float(chain.state.x.var()) == pytest.approx(1.0, abs=0.02)


def test_the_released_ratio_halves_the_variance_in_784_dimensions() -> None:
    """Negative control: SEEDS.md's .519 at a step of .048, from both sides; 20 × 784 numbers give it to .006."""
    chain = ep.run_chain(HalfSquaredMALA(0.048), standard_normal(784), 0.8 * torch.randn(20, 784), 2500)
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
    unadjusted = ep.run_chain(ep.Langevin(step), potential, start, 50).state.x.var()
    adjusted = ep.run_chain(ep.MALA(step), potential, start, 50).state.x.var()
    error = math.sqrt(2.0 / n)
    assert float(unadjusted) == pytest.approx(theory, abs=LIMIT * error * theory)
    assert float(adjusted) == pytest.approx(1.0, abs=LIMIT * error)
    assert float(unadjusted) > 1.0 + (LIMIT if step > 0.5 else 3.0) * error


# --- Walls, divergences ---

OUTSIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "infinite energy": lambda x: torch.where((x.abs() < 1).all(-1), 0.0 * x.sum(-1), math.inf),
    "NaN energy": lambda x: torch.where((x.abs() < 1).all(-1), 0.0 * x.sum(-1), math.nan),
    "minus infinity": lambda x: torch.where((x.abs() < 1).all(-1), 0.0 * x.sum(-1), -math.inf),
    "NaN gradient alone": lambda x: (1.0 - x * x).sqrt().nan_to_num(0.0).sum(-1) * 0.0 + 0.0 * x.sum(-1),
    "logarithm": lambda x: 0.0 * (1.0 - x * x).log().sum(-1),
}


@pytest.mark.parametrize("kernel", ["MALA", "Langevin", "Crank-Nicolson"])
@pytest.mark.parametrize("name", list(OUTSIDE))
def test_a_proposal_that_is_not_finite_is_rejected_and_flagged(name: str, kernel: str) -> None:
    wall = energy(OUTSIDE[name], 2)
    if kernel == "Crank-Nicolson":
        if name == "NaN gradient alone":
            pytest.skip("it looks at no gradient")
        wall = ep.Tethered(wall, torch.zeros(2), 2.0)  # type: ignore[assignment]
    mover: Any = {"MALA": ep.MALA(0.7), "Langevin": ep.Langevin(0.7), "Crank-Nicolson": ep.CrankNicolson()}[kernel]
    state = mover.init(wall, 1.8 * torch.rand(500, 2) - 0.9)
    flagged = torch.zeros(500, dtype=torch.bool)
    for _ in range(25):
        before = state
        state, info = mover.step(wall, state)
        assert bool((state.x.abs() < 1).all())
        assert bool(torch.isfinite(state.energy).all())
        assert bool(torch.isfinite(state.grad).all())
        assert not bool((info.diverging & info.accepted).any())
        assert bool((info.accept_prob[info.diverging] == 0).all())
        stayed = info.diverging
        assert torch.equal(state.x[stayed], before.x[stayed])
        assert bool(torch.isfinite(info.accept_prob).all())
        flagged |= info.diverging
    assert float(flagged.float().mean()) > 0.5  # a step of .7 in a box of 2 hits the wall again and again
    if kernel == "MALA":  # and between the walls it is uniform: variance 1/3 to 5 standard errors
        assert float(state.x.var()) == pytest.approx(1 / 3, abs=5 * math.sqrt(4 / 45 / 1000))


def test_run_chain_reports_divergences_and_acceptance() -> None:
    wall = energy(OUTSIDE["infinite energy"], 2)
    start = torch.tensor([[0.0, 0.0], [5.0, 0.0]])
    chain = ep.run_chain(ep.MALA(0.01), wall, start, 5)
    assert chain.diverging.tolist() == [False, True]  # the second one has begun where no energy is
    assert chain.accept_prob.tolist() == pytest.approx([1.0, 0.0])
    assert torch.equal(chain.state.x[1], start[1])


def test_an_explosion_ends_in_rejections_and_not_in_numbers() -> None:
    """ULA with far too long a step on a quartic leaves for infinity; it must stop at the last finite point."""
    quartic = energy(lambda x: (x**4).sum(-1))
    chain = ep.run_chain(ep.Langevin(3.0), quartic, torch.randn(50, 1), 100)
    assert bool(torch.isfinite(chain.state.x).all())
    assert bool(chain.diverging.any())
    calm = ep.run_chain(ep.MALA(3.0), quartic, torch.randn(50, 1), 100)
    assert float(calm.state.x.abs().max()) < 5.0


# --- Values ---

FROZEN = [ep.MALA(0.1), ep.Langevin(0.1), ep.CrankNicolson(0.1), ep.CrankNicolsonLangevin(0.1)]


@pytest.mark.parametrize("kernel", FROZEN, ids=lambda k: type(k).__name__)
def test_kernels_are_frozen_and_print_themselves(kernel: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        kernel.step_size = 0.2
    assert "step_size=0.1" in repr(kernel)
    assert dataclasses.replace(kernel, step_size=0.3).step_size == 0.3
    resized = kernel.resized(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 3.0]))
    assert type(resized) is type(kernel)
    assert resized.step_size.tolist() == [0.5, 1.0]
    assert kernel.step_size == 0.1


@pytest.mark.parametrize("kernel", FROZEN, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, torch.tensor([0.1, 0.0])], ids=str)
def test_step_sizes_must_be_positive(kernel: Any, bad: Any) -> None:
    with pytest.raises(InvalidInput, match="step_size must be positive and finite"):
        dataclasses.replace(kernel, step_size=bad)


def test_a_chain_has_its_own_step_size() -> None:
    """Chains of one batch with different steps move as chains of batches with those steps: the same numbers."""
    potential, start = standard_normal(2), torch.randn(3, 2)
    tether = ep.Tethered(potential, torch.zeros(3, 2), 1.0)
    for cls, on in ((ep.MALA, potential), (ep.Langevin, potential), (ep.CrankNicolson, tether)):
        sizes = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        torch.manual_seed(0)
        together = ep.run_chain(cls(sizes), on, start, 5).state.x  # type: ignore[arg-type]
        assert together.dtype == torch.float32
        for i, size in enumerate(sizes.tolist()):
            torch.manual_seed(0)
            alone = ep.run_chain(cls(size), on, start, 5).state.x  # type: ignore[arg-type]
            torch.testing.assert_close(together[i], alone[i])


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_a_run_is_repeatable_bit_for_bit(kernel: str) -> None:
    make, wants_tether, _ = KERNELS[kernel]
    target = TARGETS["banana"]
    on = tethered(target) if wants_tether else target.potential
    start, runs = target.draw(CHAINS), []
    for _ in range(2):
        pyro.set_rng_seed(11)
        runs.append(ep.run_chain(make(target), on, start, 5))
    assert torch.equal(runs[0].state.x, runs[1].state.x)
    assert torch.equal(runs[0].accept_prob, runs[1].accept_prob)
    assert not torch.equal(runs[0].state.x, ep.run_chain(make(target), on, start, 5).state.x)


@pytest.mark.parametrize("batch", [(), (3,), (3, 4)])
@pytest.mark.parametrize("event", [(), (2,), (1, 2, 2)])
def test_batches_and_events_of_any_shape(event: tuple[int, ...], batch: tuple[int, ...]) -> None:
    def function(x: Tensor) -> Tensor:
        return 0.5 * (x * x).flatten(x.dim() - len(event)).sum(-1) if event else 0.5 * x * x

    potential = ep.Energy(function, torch.Size(event))
    tether = ep.Tethered(potential, torch.zeros((*batch, *event)), 1.0)
    for kernel in FROZEN:
        start = torch.randn((*batch, *event))
        chain = ep.run_chain(kernel, tether, start, 3)
        assert chain.state.x.shape == start.shape
        assert chain.state.energy.shape == chain.accept_prob.shape == chain.diverging.shape == torch.Size(batch)
        torch.testing.assert_close(chain.state.energy, tether(chain.state.x))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "points": (lambda: ep.MALA(0.1).init(standard_normal(2), torch.zeros(3, 4)), r"x must end in event_shape \(2,\)"),
    "whole numbers": (lambda: ep.MALA(0.1).init(standard_normal(2), torch.zeros(3, 2).long()), "floating point"),
    "no steps": (lambda: ep.run_chain(ep.MALA(0.1), standard_normal(2), torch.zeros(3, 2), 0), "at least 1; got 0"),
    "beta": (lambda: ep.CrankNicolson(1.5), r"must lie in \(0, 1\]; got 1.5"),
    "reference": (lambda: ep.CrankNicolson(reference_scale=0.0), "reference_scale must be positive"),
    "no tether": (
        lambda: ep.CrankNicolson().init(standard_normal(2), torch.zeros(3, 2)),
        "moves on a Tethered potential; got Energy: use MALA",
    ),
    "tether inside": (
        lambda: ep.CrankNicolson().init(ep.Scaled(tethered(TARGETS["banana"]), 2.0), torch.zeros(3, 2)),
        "got Scaled",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(InvalidInput, match=message):
        make()


# --- Adaptation ---

ADAPT: dict[str, tuple[Any, float, float]] = {  # kernel, target, tolerance
    "MALA": (ep.MALA(0.1), 0.6, 0.06),
    "MALA from far above": (ep.MALA(1e4), 0.6, 0.06),
    "MALA from far below": (ep.MALA(1e-6), 0.6, 0.06),
    "MALA to .8": (ep.MALA(0.1), 0.8, 0.06),
    "Langevin": (ep.Langevin(0.1), 0.95, 0.03),
}


EVERY = ("MALA", "Langevin")


@pytest.mark.parametrize(
    ("name", "target"),
    [(n, t) for n in EVERY for t in TARGETS] + [(n, t) for n in ADAPT if n not in EVERY for t in ("banana", "Gumbel")],
)
def test_adaptation_reaches_the_acceptance_it_aims_at(name: str, target: str) -> None:
    """The acceptance, over 400 chains and 50 further steps, is what was asked for.

    The tolerance is dual averaging's, not Monte Carlo's, whose standard error is below .005.
    """
    kernel, aim, tolerance = ADAPT[name]
    row = TARGETS[target]
    start = row.draw(400)
    tuned = ep.adapt(kernel, row.potential, start, steps=200, target=aim).kernel
    assert type(tuned) is type(kernel)
    assert isinstance(tuned.step_size, float)
    accept = ep.run_chain(ep.MALA(tuned.step_size), row.potential, start, 50).accept_prob
    assert float(accept.mean()) == pytest.approx(aim, abs=tolerance)


def test_adaptation_of_crank_nicolson() -> None:
    """To its own target in 20 dimensions, where β must shrink; and to its largest β where every proposal is taken."""
    x = torch.randn(400, 20)
    hard = ep.Tethered(energy(lambda x: 4.0 * (x * x).sum(-1), 20), torch.zeros(400, 20), 1.0)
    tuned = ep.adapt(ep.CrankNicolson(0.9), hard, 0.3 * x).kernel
    assert isinstance(tuned.step_size, float)
    assert 0.0 < tuned.step_size < 0.9
    end = ep.run_chain(tuned, hard, 0.3 * x, 100)
    assert float(end.accept_prob.mean()) == pytest.approx(0.35, abs=0.08)
    easy = ep.Tethered(energy(lambda x: 0.5 * (x * x).sum(-1), 20), x, 1.0)
    assert ep.adapt(ep.CrankNicolson(0.1), easy, x).kernel.step_size == pytest.approx(1.0, abs=0.05)


def test_groups_have_their_own_step_sizes() -> None:
    """Groups whose targets differ by a factor of 100 in width each reach the aim; a missing number is harmless."""
    groups = torch.tensor([0, 1, 3]).repeat_interleave(300)
    widths = torch.tensor([0.05, 5.0, 0.0, 1.0])[groups][:, None]
    potential = ep.Tethered(energy(lambda x: 0.0 * x.sum(-1), 5), torch.zeros(900, 5), widths)
    start = widths * torch.randn(900, 5)
    tuned = ep.adapt(ep.MALA(0.3), potential, start, steps=200, groups=groups).kernel
    assert isinstance(tuned.step_size, Tensor)
    assert tuned.step_size.shape == (900,)
    for g in (0, 1, 3):
        assert len(tuned.step_size[groups == g].unique()) == 1
    relative = tuned.step_size / widths[:, 0]
    assert float(relative.max() / relative.min()) < 1.3
    accept = ep.run_chain(tuned, potential, start, 50).accept_prob
    for g in (0, 1, 3):
        assert float(accept[groups == g].mean()) == pytest.approx(0.6, abs=0.06)


class Counted(torch.nn.Module):
    event_shape = torch.Size((1,))

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # in place: left to eager, so that every evaluation is seen
        return self.function(x)


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "flat: always accepts": lambda x: 0.0 * x.sum(-1),
    "never accepts": lambda x: torch.where(x[:, 0] == 0.0, 0.0 * x.sum(-1), math.inf),
    "steps everywhere": lambda x: 50.0 * torch.floor(1e3 * x).remainder(2.0).sum(-1) + 0.0 * x.sum(-1),
    "improper": lambda x: -x.sum(-1),
}


@pytest.mark.parametrize("name", list(ODD))
def test_adaptation_ends_after_its_steps_whatever_the_target(name: str) -> None:
    """steps + 1 evaluations and a positive finite step size, even where no step size reaches the aim."""
    potential = Counted(ODD[name])
    tuned = ep.adapt(ep.MALA(0.5), potential, torch.zeros(20, 1), steps=100).kernel
    assert int(potential.calls) == 101
    assert isinstance(tuned.step_size, float)
    assert 0.0 < tuned.step_size < math.inf


START = torch.zeros(4, 2)
ADAPT_BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "target 0": (lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, target=0.0), "between 0 and 1; got 0.0"),
    "target 1": (lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, target=1.0), "between 0 and 1"),
    "target nan": (lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, target=math.nan), "between 0 and 1"),
    "no steps": (lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, 0), "steps must be a whole number"),
    "half a step": (lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, 1.5), "steps must be"),  # type: ignore[arg-type]
    "groups' shape": (
        lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, groups=torch.zeros(3).long()),
        r"groups must have the chains' shape \(4,\); got \(3,\)",
    ),
    "groups of floats": (
        lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, groups=torch.zeros(4)),
        "groups must be whole numbers from 0",
    ),
    "negative groups": (
        lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, groups=-torch.ones(4).long()),
        "groups must be whole numbers from 0",
    ),
    "outside the support": (
        lambda: ep.adapt(ep.MALA(0.1), energy(OUTSIDE["infinite energy"], 2), START + 5.0),
        "no chain starts at a finite energy",
    ),
    "another kernel": (
        lambda: ep.adapt(HalfSquaredMALA(0.1), standard_normal(2), START),
        "adapt tunes the kernels of energyppl; got HalfSquaredMALA",
    ),
}


@pytest.mark.parametrize("name", list(ADAPT_BAD))
def test_bad_input_to_adapt_is_named(name: str) -> None:
    make, message = ADAPT_BAD[name]
    with pytest.raises(InvalidInput, match=message):
        make()

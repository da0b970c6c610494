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
from tests.support.kernels import CHAINS, KERNELS, TARGETS, HalfSquaredMALA, Target, energy, standard_normal, tilted

LIMIT = 5.0  # standard errors: 6e-7 two-sided for one number


# --- Targets with closed-form moments and exact draws ---


# --- Kernels, and two with the released codes' mistakes ---


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
    make, wants_tilt, steps = row
    start = target.draw(CHAINS)
    end = ep.sampling.run_chain(make(target), tilted(target) if wants_tilt else target.potential, start, steps).state.x
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
    make, wants_tilt, _ = KERNELS[kernel]
    start = torch.tensor([2.0, 2.0]).expand(CHAINS, 2)
    end = ep.sampling.run_chain(make(target), tilted(target) if wants_tilt else target.potential, start, 400).state.x
    assert z_of(end.double(), torch.tensor(target.mean), torch.tensor(target.variance)) < LIMIT


# --- The recovery posterior (Gao et al. 2021) ---

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


# --- High dimension ---


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
    """Negative control: the code of Zhang, Tan & Ou 2023 gives .519 at .048; 20 × 784 numbers give it to .006."""
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

"""log Z by annealing: unbiased weights, bounds on the right side, intervals that cover, modes whose loss is said."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl import log_normalizer
from energyppl.errors import InvalidInput
from energyppl.inference.normalizing.annealing import AnnealingSchedule, anneal, pilot_run
from energyppl.inference.normalizing.methods import BAR
from energyppl.inference.normalizing.recovery import recovery_normalizers
from energyppl.potentials.bases import GaussianBase
from tests.support.normalizing import METHODS

LIMIT = 4.5  # standard errors: 7e-6 two-sided for one number


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    potential: Any
    draw: Callable[[int], Tensor]
    log_z: float


def toy(found: Any) -> Known:
    return Known(found, lambda n: found.sample((n,)), 0.0)


def gaussian(dim: int, condition: float) -> Known:
    scale = torch.logspace(0.0, 0.5 * math.log10(condition), dim)
    potential = ep.Energy(lambda x: 0.5 * (((x - 1.0) / scale) ** 2).sum(-1) - 3.0, torch.Size((dim,)))
    log_z = 3.0 + float(scale.log().sum()) + 0.5 * dim * math.log(2.0 * math.pi)
    return Known(potential, lambda n: 1.0 + scale * torch.randn(n, dim), log_z)


TARGETS: dict[str, Known] = {
    "banana": toy(ep.toys.Banana(curvature=0.5, scale=1.0)),
    "eight Gaussians": toy(ep.toys.EightGaussians()),
    "two moons": toy(ep.toys.TwoMoons()),
    "Gaussian, 20-D": gaussian(20, 100.0),
}
BASE, KERNEL = GaussianBase(torch.zeros(2), 2.0 * torch.ones(2)), ep.MALA(1.0)


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_bridges_interval_covers(target: str) -> None:
    """Of 40 intervals at 95 % at least 31 hold log Z: fewer happen once in 4,000 times, for the four targets 1e-3."""
    known, held, lower, upper = TARGETS[target], 0, 0.0, 0.0
    for _ in range(40):
        found = log_normalizer(known.potential, samples=known.draw(512), method=BAR(256))
        held += found.lower <= known.log_z <= found.upper
        assert found.warning is None
        assert found.lower_bound is not None
        assert found.upper_bound is not None
        lower, upper = lower + found.lower_bound, upper + found.upper_bound
    assert held >= 31
    assert lower < upper


def pairs(target: str, temperatures: int, annealed: Any = anneal) -> tuple[Tensor, Tensor]:
    """Forward and reverse log weights of 8,000 runs each, on a schedule from a pilot of its own."""
    known = TARGETS[target]
    schedule = pilot_run(BASE, known.potential, BASE.sample(500), KERNEL).schedule.resampled(temperatures)
    forward = annealed(BASE, known.potential, schedule, BASE.sample(8000), KERNEL).log_weights
    return forward, annealed(BASE, known.potential, schedule, known.draw(8000), KERNEL, reverse=True).log_weights


def z_of_crooks(forward: Tensor, reverse: Tensor) -> float:
    """Crooks's theorem for log Z = 0: E min(1, w) is the same of forward and reverse runs (and bounded, unlike w)."""
    a, b = forward.exp().clamp(max=1.0), reverse.exp().clamp(max=1.0)
    return float((a.mean() - b.mean()) / math.sqrt(float(a.var() / len(a) + b.var() / len(b))))


@pytest.mark.parametrize("temperatures", [3, 12, 40])
@pytest.mark.parametrize("target", ["banana", "two moons"])
def test_weights_are_exact_and_bounds_are_on_their_sides(target: str, temperatures: int) -> None:
    """Forward and reverse weights obey Crooks's theorem, E w is below log Z and −E w above; 18 numbers."""
    forward, reverse = pairs(target, temperatures)
    assert abs(z_of_crooks(forward, reverse)) < LIMIT
    for log_weights in (forward, reverse):
        assert float(log_weights.mean()) < LIMIT * float(log_weights.std()) / math.sqrt(8000)


def test_forward_weights_average_to_z() -> None:
    for temperatures in (12, 40):
        weights = pairs("banana", temperatures)[0].exp()
        assert abs(float(weights.mean()) - 1.0) < LIMIT * float(weights.std()) / math.sqrt(8000)


@dataclasses.dataclass(frozen=True, eq=False)
class Stale(ep.MALA):
    """Judges a proposal against the energy that the point had at the last temperature, as TFP's sampler does."""

    last: Any = None

    def step(self, potential: Any, state: Any) -> Any:
        old = dataclasses.replace(ep.autodiff.unbound(potential), beta=self.last)
        return super().step(potential, state._replace(energy=old(state.x)))


def test_an_energy_of_the_last_temperature_biases_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the same check on runs whose accept test uses stale energies."""
    import energyppl.inference.normalizing.particles as module

    known, size = TARGETS["banana"], 30_000
    schedule = pilot_run(BASE, known.potential, BASE.sample(500), KERNEL).schedule.resampled(6)
    before = iter(schedule.betas.tolist())

    def stale(kernel: Any, size: float) -> Stale:
        return Stale(size, None, torch.tensor(next(before)))

    for biased in (False, True):
        if biased:
            monkeypatch.setattr(module, "resized", stale)
        weights = anneal(BASE, known.potential, schedule, BASE.sample(size), KERNEL).log_weights.exp()
        z = abs(float(weights.mean()) - 1.0) / (float(weights.std()) / math.sqrt(size))
        assert (z > LIMIT) == biased


def test_a_mode_that_runs_from_the_base_miss_is_said() -> None:
    """Two modes of 20 dimensions: from the base one is found, log ½ is missing, and the samples tell."""
    means = torch.stack([torch.zeros(20), torch.full((20,), 6.0)])
    mixture = ep.toys.GaussianMixture(means, torch.eye(20).expand(2, 20, 20) * 0.25, torch.ones(2))
    narrow = GaussianBase(torch.zeros(20), 0.7 * torch.ones(20))
    with pytest.warns(UserWarning, match="runs from the base never come"):
        found = log_normalizer(mixture, samples=mixture.sample((400,)), base=narrow, method=BAR(400))
    assert found.warning is not None
    alone = log_normalizer(mixture, base=narrow, method=ep.normalizing.SMC(400))
    assert alone.estimate == pytest.approx(math.log(0.5), abs=0.2)  # and nothing in the run itself shows it


def test_samples_that_miss_most_of_the_mass_are_refuted() -> None:
    """Draws of a mode that holds 1/400 of the mass: the bridge is narrow and wrong, and runs from the base show it."""
    modes = torch.tensor([[0.0, 0.0], [12.0, 0.0]])
    mixture = ep.toys.IsotropicMixture(modes, 1.0, torch.tensor([399.0, 1.0]))
    wide = GaussianBase(torch.tensor([6.0, 0.0]), torch.tensor([6.0, 2.0]))
    with pytest.warns(UserWarning, match="find far more mass than the samples know of"):
        found = log_normalizer(mixture, base=wide, samples=modes[1] + torch.randn(512, 2))
    assert found.lower < 0.0 < found.upper == math.inf
    assert found.standard_error == math.inf
    # A number in words would be wrong once the result is moved to other coordinates, as a model's is.
    assert (found + 100.0).warning == found.warning
    assert not any(letter.isdigit() for letter in found.warning or "")


def test_one_dimension_scalars_and_float64() -> None:
    scalar = ep.Energy(lambda x: 0.5 * x * x, torch.Size(()))
    base = GaussianBase(torch.tensor(0.5, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))
    found = log_normalizer(scalar, base=base, samples=torch.randn(320, dtype=torch.float64), method=BAR(320))
    assert found.estimate == pytest.approx(0.5 * math.log(2.0 * math.pi), abs=LIMIT * found.standard_error)
    assert found.standard_error < 0.05
    assert found.seconds is not None
    assert float(found) == found.estimate


def test_a_models_own_normalizer() -> None:
    """Annealing agrees with quadrature on a RecoveryEBM, in its own coordinates, through its levels and straight."""
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
    ebm.standardize(torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 0.5]) * torch.randn(100, 2))
    exact = ebm.log_normalizer()
    for found in (
        ebm.log_normalizer(method=BAR(256)),
        ebm.log_normalizer(method=ep.normalizing.SMC(256)),
        log_normalizer(ebm.marginal(), samples=ebm.sample((512,)), method=BAR(256)),
    ):
        assert abs(found.estimate - exact.estimate) < LIMIT * found.standard_error + 0.02  # samples are nearly exact
        assert found.standard_error < 0.1


class Bowl(torch.nn.Module):
    """The energy of Gaussian data at every level: its log Z is known in any dimension."""

    event_shape = torch.Size((3,))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return 0.5 * (x * x).sum(-1) + 0.0 * level


def bowl() -> ep.RecoveryEBM:
    ebm = ep.RecoveryEBM(Bowl(), ep.NoiseSchedule.cosine(levels=4))
    ebm.standardize(1.0 + 2.0 * torch.randn(1000, 3))
    return ebm


def test_log_prob_above_two_dimensions() -> None:
    ebm = bowl()
    x = ebm.loc + ebm.scale * torch.randn(300, 3)
    truth = torch.distributions.Normal(ebm.loc, ebm.scale).log_prob(x).sum(-1)
    log_z = ebm.log_normalizer()
    assert torch.allclose(ebm.log_prob(x), truth, atol=1e-3)
    assert ebm.log_normalizer() is log_z  # kept until the weights change
    found = ep.evaluation.mean_log_likelihood(ebm.marginal(), x, log_z)
    assert found.value == pytest.approx(float(truth.mean()), abs=1e-3)
    assert found.standard_error == pytest.approx(float(truth.std()) / math.sqrt(300), rel=1e-3)


def test_the_sampling_process_of_gaussian_data_has_their_likelihood() -> None:
    """The bound is tight where every conditional is exact; its two sides are within Monte Carlo error of it."""
    ebm = bowl()
    x = ebm.loc + ebm.scale * torch.randn(400, 3)
    truth = torch.distributions.Normal(ebm.loc, ebm.scale).log_prob(x).sum(-1)
    found = ep.normalizing.process_log_likelihood(ebm, x)
    assert found.lower.value < found.upper.value
    for side in (found.lower, found.upper):
        assert abs(side.value - float(truth.mean())) < 0.1  # rows are the same; noise of annealing and noising remains


def test_tilt_normalizers_are_exact_for_gaussians() -> None:
    """∫ exp(−½ y² v⁻¹ − ½ (y − x̃)² σ⁻²) in closed form, a batch of 50, z below 5.2 (2e-7 for one, 1e-5 for all)."""
    noisy, v, sigma = 2.0 * torch.randn(50, 2), 0.7, 0.5
    potential = ep.Energy(lambda y: 0.5 * (y * y).sum(-1) / v, torch.Size((2,)))
    found = recovery_normalizers(ep.RecoveryDistribution(potential, noisy, sigma), particles=512)
    total = v + sigma**2
    exact = -0.5 * noisy.square().sum(-1) / total + math.log(2.0 * math.pi * v * sigma**2 / total)
    assert bool(((found.estimate - exact).abs() < 5.2 * found.standard_error).all())
    one = log_normalizer(ep.RecoveryDistribution(potential, noisy[0], sigma))
    assert abs(one.estimate - float(exact[0])) < 8.0 * one.standard_error + 1e-5
    with pytest.raises(InvalidInput, match="the tilt must be finite"):
        recovery_normalizers(ep.RecoveryDistribution(potential, noisy, math.inf))


def test_a_tolerance_is_reached_or_it_is_said_why_not() -> None:
    toy = ep.toys.Banana(curvature=0.5, scale=1.0)
    reached = log_normalizer(toy, samples=lambda n: toy.sample((n,)), tolerance=0.02)
    assert 0.5 * (reached.upper - reached.lower) <= 0.02
    assert "within the tolerance" in str(reached.stopped)
    used_up = log_normalizer(toy, samples=toy.sample((700,)), tolerance=1e-4, method=BAR(128))
    assert "samples are used up" in str(used_up.stopped)
    capped = log_normalizer(
        toy, base=BASE, tolerance=1e-4, max_evaluations=60_000, method=ep.normalizing.SMC(128, refit=False)
    )
    assert capped.evaluations <= 60_000
    assert "beyond 60,000" in str(capped.stopped)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_agrees_and_converts(method: Any) -> None:
    toy = ep.toys.EightGaussians()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # reverse runs alone are heavy-tailed, and say so
        found = log_normalizer(toy, samples=toy.sample((1000,)), method=method)
    assert abs(found.estimate) < 6.0 * found.standard_error + 0.05  # t of 7 degrees
    assert found.pareto_k is not None
    assert found.trace is not None
    assert len(found.trace.betas) == len(found.trace.conditional_size) + 1
    tree = found.to_arviz()
    name = "log_weights" if method.forward else "reverse_log_weights"
    assert tree.posterior[name].shape == (1, 256)


def test_fixed_temperatures_are_kept() -> None:
    betas = [0.0, 0.01, 0.1, 0.4, 1.0]
    method = ep.normalizing.AIS(temperatures=betas, refit=False)
    found = log_normalizer(ep.toys.EightGaussians(), base=BASE, method=method)
    assert found.trace is not None
    assert found.trace.betas.tolist() == pytest.approx(betas)


@pytest.mark.filterwarnings("ignore:log Z")  # of too few temperatures
def test_the_trace_of_runs_from_the_target_is_in_the_order_of_the_temperatures() -> None:
    """The change from .05 to 1 is the long one of both directions."""
    narrow = ep.Energy(lambda x: 50.0 * x.square().sum(-1), (2,))
    base, betas = ep.potentials.GaussianBase(torch.zeros(2), torch.ones(2)), [0.0, 0.001, 0.01, 0.05, 1.0]
    backward = ep.normalizing.ReverseAIS(256, temperatures=betas)
    for method in (backward, ep.normalizing.AIS(256, temperatures=betas)):
        samples = 0.1 * torch.randn(1000, 2) if method is backward else None
        found = ep.log_normalizer(narrow, base=base, samples=samples, method=method)
        assert found.trace is not None
        assert int(found.trace.conditional_size.argmin()) == 3


def test_schedules_are_resampled_to_other_numbers_of_temperatures() -> None:
    schedule = AnnealingSchedule(
        torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=torch.float64), torch.tensor([2.0, 1.5, 1.0, 0.5])
    )
    for temperatures in (1, 2, 7, 50):
        found = schedule.resampled(temperatures)
        assert len(found.betas) == len(found.step_sizes) == temperatures + 1
        assert float(found.betas[0]) == 0.0
        assert float(found.betas[-1]) == 1.0
        assert bool((found.betas.diff() > 0).all())


def potential(function: Callable[[Tensor], Tensor]) -> ep.Energy:
    return ep.Energy(function, torch.Size((2,)))


WALL = ep.Energy(lambda x: torch.where((x > 100.0).all(-1), 0.0 * x.sum(-1), math.inf), torch.Size((2,)))
BANANA = TARGETS["banana"].potential
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "disjoint supports": (lambda: log_normalizer(WALL), InvalidInput, "finite at no draw of the base"),
    "improper": (
        lambda: log_normalizer(ep.Energy(lambda x: -(x**4).sum(-1), torch.Size((2,)))),
        ep.errors.NotNormalizable,
        "not normalizable",
    ),
    "a function": (lambda: log_normalizer(lambda x: x.sum(-1)), InvalidInput, "target must be a potential"),  # type: ignore[arg-type]
    "flat": (
        lambda: log_normalizer(potential(lambda x: 0.0 * x.sum(-1))),
        ep.errors.NotNormalizable,
        "in all directions",
    ),
    "flat in one coordinate": (
        lambda: log_normalizer(potential(lambda x: x[..., 0] ** 2)),
        ep.errors.NotNormalizable,
        "along coordinate 1",
    ),
    "improper, with samples": (
        lambda: log_normalizer(potential(lambda x: x.abs().sum(-1).log1p()), samples=torch.randn(600, 2)),
        ep.errors.NotNormalizable,
        "not normalizable",
    ),
    "few particles": (lambda: ep.normalizing.SMC(5), InvalidInput, "particles must be"),
    "no temperatures": (lambda: ep.normalizing.SMC(temperatures=0), InvalidInput, "temperatures must be"),
    "an empty list of temperatures": (lambda: ep.normalizing.SMC(temperatures=[]), InvalidInput, "rise from 0 to 1"),
    "temperatures from above zero": (
        lambda: ep.normalizing.AIS(temperatures=[0.1, 1.0]),
        InvalidInput,
        "rise from 0 to 1",
    ),
    "temperatures that repeat": (
        lambda: ep.normalizing.AIS(temperatures=[0.0, 0.5, 0.5, 1.0]),
        InvalidInput,
        "rise from 0 to 1",
    ),
    "temperatures of a pilot run": (
        lambda: pilot_run(BASE, BANANA, BASE.sample(64), KERNEL, betas=(0.3, 0.9, 0.5, 2.0)),
        InvalidInput,
        "betas must rise from 0 to 1",
    ),
    "no moves": (
        lambda: ep.normalizing.process_log_likelihood(
            ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(2)), torch.randn(4, 2), steps=0
        ),
        InvalidInput,
        "steps must be a whole number of at least 1; got 0",
    ),
    "an unadjusted kernel": (lambda: BAR(kernel=ep.Langevin(0.1)), InvalidInput, "weights would be biased"),
    "a cycle backwards": (
        lambda: BAR(kernel=ep.kernels.Cycle(ep.MALA(0.1), ep.HMC())),
        InvalidInput,
        "can't be run backwards",
    ),
    "no samples for a bridge": (lambda: log_normalizer(BANANA, method=BAR()), InvalidInput, "begins at draws"),
    "tolerance": (lambda: log_normalizer(BANANA, tolerance=0.0), InvalidInput, "tolerance must be positive"),
    "whole numbers": (
        lambda: log_normalizer(BANANA, samples=torch.zeros(50, 2, dtype=torch.long)),
        InvalidInput,
        "floating point",
    ),
    "base of another shape": (
        lambda: log_normalizer(BANANA, base=GaussianBase(torch.zeros(3), torch.ones(3))),
        InvalidInput,
        "base must have event_shape",
    ),
    "binary kernel, real target": (
        lambda: log_normalizer(BANANA, base=BASE, method=ep.normalizing.SMC(kernel=ep.kernels.BinaryGibbs())),
        InvalidInput,
        "binary targets need both",
    ),
    "a batch": (
        lambda: log_normalizer(ep.RecoveryDistribution(BANANA, torch.zeros(4, 2), 1.0)),
        InvalidInput,
        "recovery_normalizers",
    ),
    "confidence": (lambda: log_normalizer(BANANA, confidence=95.0), InvalidInput, "confidence must lie between"),
    "samples' shape": (lambda: log_normalizer(BANANA, samples=torch.randn(50, 3)), InvalidInput, "samples must end in"),
    "few samples": (lambda: log_normalizer(BANANA, samples=torch.randn(5, 2)), InvalidInput, "at least 16 row"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name: str) -> None:
    make, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        make()

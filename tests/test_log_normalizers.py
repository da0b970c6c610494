"""log Z by annealing: unbiased weights, bounds on the right side, intervals that cover, modes whose loss is said."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.errors import EnergyPPLError, InvalidInput
from energyppl.inference import GaussianBase, Ladder, anneal, bennett, climb, log_normalizer

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
BASE = GaussianBase(torch.zeros(2), 2.0 * torch.ones(2))


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_bridges_interval_covers(target: str) -> None:
    """Of 40 intervals at 95 % at least 31 hold log Z: fewer happen once in 4,000 times, for the four targets 1e-3."""
    known, held = TARGETS[target], 0
    for _ in range(40):
        found = log_normalizer(known.potential, samples=known.draw(512), particles=256)
        held += found.lower <= known.log_z <= found.upper
        assert found.warning is None
        assert found.lower_bound is not None
        assert found.upper_bound is not None
        assert found.lower_bound < found.estimate < found.upper_bound
    assert held >= 31


def pairs(target: str, rungs: int, annealed: Any = anneal) -> tuple[Tensor, Tensor]:
    """Forward and reverse log weights of 8,000 runs each, on a ladder from a pilot of its own."""
    known = TARGETS[target]
    ladder = climb(BASE, known.potential, BASE.sample(500), rungs=rungs)[0]
    forward = annealed(BASE, known.potential, ladder, BASE.sample(8000)).log_weights
    return forward, annealed(BASE, known.potential, ladder, known.draw(8000), reverse=True).log_weights


def z_of_crooks(forward: Tensor, reverse: Tensor) -> float:
    """Crooks's theorem for log Z = 0: E min(1, w) is the same of forward and reverse runs (and bounded, unlike w)."""
    a, b = forward.exp().clamp(max=1.0), reverse.exp().clamp(max=1.0)
    return float((a.mean() - b.mean()) / math.sqrt(float(a.var() / len(a) + b.var() / len(b))))


@pytest.mark.parametrize("rungs", [3, 12, 40])
@pytest.mark.parametrize("target", ["banana", "two moons"])
def test_weights_are_exact_and_bounds_are_on_their_sides(target: str, rungs: int) -> None:
    """Forward and reverse weights obey Crooks's theorem, E w is below log Z and −E w above; 18 numbers."""
    forward, reverse = pairs(target, rungs)
    assert abs(z_of_crooks(forward, reverse)) < LIMIT
    for log_weights in (forward, reverse):
        assert float(log_weights.mean()) < LIMIT * float(log_weights.std()) / math.sqrt(8000)


def test_forward_weights_average_to_z() -> None:
    for rungs in (12, 40):
        weights = pairs("banana", rungs)[0].exp()
        assert abs(float(weights.mean()) - 1.0) < LIMIT * float(weights.std()) / math.sqrt(8000)


@dataclasses.dataclass(frozen=True, eq=False)
class Stale(ep.MALA):
    """Judges a proposal against the energy that the point had at the last temperature, as TFP's sampler does."""

    last: Any = None

    def step(self, potential: Any, state: Any) -> Any:
        old = dataclasses.replace(potential, beta=self.last)
        return super().step(potential, state._replace(energy=old(state.x)))


def test_an_energy_of_the_last_temperature_biases_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the same check on runs whose accept test uses stale energies."""
    import energyppl.inference.annealing as module

    def annealed(base: Any, target: Any, ladder: Ladder, x: Tensor, *, reverse: bool = False) -> Any:
        betas = ladder.betas.flip(0) if reverse else ladder.betas
        before = iter(betas.tolist())
        monkeypatch.setattr(module, "MALA", lambda size: Stale(size, None, torch.tensor(next(before))))
        return anneal(base, target, ladder, x, reverse=reverse)

    known, size = TARGETS["banana"], 30_000
    ladder = climb(BASE, known.potential, BASE.sample(500), rungs=6)[0]
    for biased in (False, True):
        run = annealed if biased else anneal
        weights = run(BASE, known.potential, ladder, BASE.sample(size)).log_weights.exp()
        z = abs(float(weights.mean()) - 1.0) / (float(weights.std()) / math.sqrt(size))
        assert (z > LIMIT) == biased


def test_a_mode_that_runs_from_the_base_miss_is_said() -> None:
    """Two modes of 20 dimensions: from the base one is found, log ½ is missing, and the samples tell."""
    means = torch.stack([torch.zeros(20), torch.full((20,), 6.0)])
    mixture = ep.toys.GaussianMixture(means, torch.eye(20).expand(2, 20, 20) * 0.25, torch.ones(2))
    narrow = GaussianBase(torch.zeros(20), 0.7 * torch.ones(20))
    with pytest.warns(UserWarning, match="runs from the base never come"):
        found = log_normalizer(mixture, samples=mixture.sample((400,)), base=narrow, particles=400)
    assert found.warning is not None
    alone = log_normalizer(mixture, base=narrow, particles=400)
    assert alone.estimate == pytest.approx(math.log(0.5), abs=0.2)  # and nothing in the run itself shows it


def test_bennett_on_gaussian_work() -> None:
    """Work N(σ²/2 ± …, σ²) between equal ends has ratio 0; and the error is what 200 repeats spread by."""
    found = [bennett(torch.randn(300).double() - 0.5, torch.randn(200).double() - 0.5) for _ in range(200)]
    estimates = torch.tensor([f[0] for f in found])
    assert abs(float(estimates.mean())) < LIMIT * float(estimates.std()) / math.sqrt(200)
    assert float(estimates.std()) == pytest.approx(sum(f[1] for f in found) / 200, rel=0.25)  # 5 errors of a deviation


def test_one_dimension_scalars_and_float64() -> None:
    scalar = ep.Energy(lambda x: 0.5 * x * x, torch.Size(()))
    base = GaussianBase(torch.tensor(0.5, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))
    found = log_normalizer(scalar, base=base, samples=torch.randn(300, dtype=torch.float64), particles=300)
    assert found.estimate == pytest.approx(0.5 * math.log(2.0 * math.pi), abs=LIMIT * found.standard_error)
    assert found.standard_error < 0.05
    assert found.seconds is not None
    assert float(found) == found.estimate


def test_a_models_own_normaliser() -> None:
    """Annealing agrees with quadrature on a RecoveryEBM, in its own coordinates."""
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
    ebm.standardize(torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 0.5]) * torch.randn(100, 2))
    exact = ebm.log_normalizer()
    found = ep.log_normalizer(ebm.marginal().potential, samples=ebm.sample((512,)), particles=256)
    assert abs(found.estimate - exact.estimate) < LIMIT * found.standard_error + 0.02  # its samples are nearly exact
    assert found.standard_error < 0.1
    flat = ep.RecoveryEBM(ep.MLPEnergy((3,)), ep.NoiseSchedule.cosine(levels=3))
    with pytest.raises(ep.NotNormalized, match=r"energyppl\.log_normalizer\(ebm\.marginal\("):
        flat.log_normalizer()


def test_ladders_are_spread_over_other_numbers_of_rungs() -> None:
    ladder = Ladder(torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=torch.float64), torch.tensor([2.0, 1.5, 1.0, 0.5]))
    for rungs in (1, 2, 7, 50):
        found = ladder.resampled(rungs)
        assert len(found.betas) == len(found.step_sizes) == rungs + 1
        assert float(found.betas[0]) == 0.0
        assert float(found.betas[-1]) == 1.0
        assert bool((found.betas.diff() > 0).all())


WALL = ep.Energy(lambda x: torch.where((x > 100.0).all(-1), 0.0 * x.sum(-1), math.inf), torch.Size((2,)))
BANANA = TARGETS["banana"].potential
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "disjoint supports": (lambda: log_normalizer(WALL), InvalidInput, "finite at no draw of the base"),
    "improper": (
        lambda: log_normalizer(ep.Energy(lambda x: -(x**4).sum(-1), torch.Size((2,)))),
        EnergyPPLError,
        "may not be normalisable",
    ),
    "a function": (lambda: log_normalizer(lambda x: x.sum(-1)), InvalidInput, "potential must be a potential"),  # type: ignore[arg-type]
    "few particles": (lambda: log_normalizer(BANANA, particles=5), InvalidInput, "particles must be"),
    "no rungs": (lambda: log_normalizer(BANANA, rungs=0), InvalidInput, "rungs must be"),
    "level": (lambda: log_normalizer(BANANA, level=95.0), InvalidInput, "level must lie between"),
    "samples' shape": (lambda: log_normalizer(BANANA, samples=torch.randn(50, 3)), InvalidInput, "samples must end in"),
    "few samples": (lambda: log_normalizer(BANANA, samples=torch.randn(5, 2)), InvalidInput, "at least 16 row"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name: str) -> None:
    make, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        make()

"""``sample_chains`` on every kind of target, its options, and Ctrl-C.

Moments are judged in standard errors that come from the spread between chains: chains are independent, so no effective
sample size is needed.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import energyppl as ep
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import Info, State
from tests.support.chains import INF, KERNELS, NORMAL, SOME_DIVERGE, constrained, energy, sample

LIMIT = 5.0  # standard errors, of 64 chains: 5e-6 two-sided for one number (Student's t, 63 degrees of freedom)


class Network(nn.Module):
    """N(loc, 1) in two dimensions, loc a parameter."""

    event_shape = torch.Size((2,))

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([1.0, -1.0], dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x - self.loc) ** 2).sum(-1)


def worst_z(x: Tensor, mean: Any, variance: Any) -> float:
    """Largest deviation of a mean or second central moment of ``(chains, draws, *shape)``, in standard errors."""
    x, mean, variance = x.double(), torch.as_tensor(mean).double(), torch.as_tensor(variance).double()
    averages = torch.stack([(x - mean).mean(1), ((x - mean) ** 2).mean(1) - variance])
    return float((averages.mean(1) / (averages.std(1) / math.sqrt(len(x)))).abs().max())


# --- Targets ---


ALPHA = torch.tensor([1.0, 2.0, 3.0])
DIRICHLET = (ALPHA / 6.0, ALPHA * (6.0 - ALPHA) / (36.0 * 7.0))
# target, mean, variance: each a density of torch.distributions written as an energy
TARGETS: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    "potential": (lambda: NORMAL, (0.0, 0.0), (1.0, 1.0)),
    "scalar": (lambda: energy(lambda x: 0.5 * x * x), 0.0, 1.0),
    "matrix": (lambda: energy(lambda x: 0.5 * (x * x).sum((-1, -2)), 2, 3), torch.zeros(2, 3), torch.ones(2, 3)),
    "network": (Network, (1.0, -1.0), (1.0, 1.0)),
    "network in float64": (lambda: Network(torch.float64), (1.0, -1.0), (1.0, 1.0)),
    "distribution": (
        lambda: ep.EnergyDistribution(NORMAL, sampler=ep.sampling.MarkovSampler(ep.MALA(1.0), 5)),
        (0.0, 0.0),
        (1.0, 1.0),
    ),
    "distribution in float64": (
        lambda: ep.EnergyDistribution(NORMAL, like=torch.zeros(1).double()),
        (0.0, 0.0),
        (1.0, 1.0),
    ),
    "Gamma(3, 2)": (
        lambda: constrained(lambda x: (2.0 * x - 2.0 * x.log()).sum(-1), constraints.positive, 1),
        1.5,
        0.75,
    ),
    "scalar half normal": (
        lambda: constrained(lambda x: 0.5 * x * x, constraints.positive),
        math.sqrt(2 / math.pi),
        1 - 2 / math.pi,
    ),
    "Beta(2, 3)": (
        lambda: constrained(lambda x: -(x.log() + 2.0 * (-x).log1p()).sum(-1), constraints.unit_interval, 2),
        (0.4, 0.4),
        (0.04, 0.04),
    ),
    "uniform": (lambda: constrained(lambda x: 0.0 * x.sum(-1), constraints.interval(-1.0, 3.0), 1), 1.0, 4.0 / 3.0),
    "boxes of their own": (
        lambda: constrained(
            lambda x: 0.0 * x.sum(-1), constraints.interval(torch.zeros(2), torch.tensor([1.0, 6.0])), 2
        ),
        (0.5, 3.0),
        (1.0 / 12.0, 3.0),
    ),
    "Dirichlet(1, 2, 3)": (
        lambda: constrained(lambda x: -((ALPHA - 1.0) * x.log()).sum(-1), constraints.simplex, 3),
        *DIRICHLET,
    ),
    "two Dirichlets": (
        lambda: constrained(lambda x: -((ALPHA - 1.0) * x.log()).sum((-1, -2)), constraints.simplex, 2, 3),
        *(value.expand(2, 3) for value in DIRICHLET),
    ),
    "Constrained itself": (
        lambda: ep.potentials.Constrained(energy(lambda x: x.sum(-1), 2), constraints.greater_than(1.0)),
        (2.0, 2.0),
        (1.0, 1.0),
    ),
    "constrained, with a sampler": (
        lambda: ep.EnergyDistribution(
            energy(lambda x: x.sum(-1), 2),
            support=constraints.positive,
            sampler=lambda _, shape, like: torch.rand(*shape, 2),
        ),
        (1.0, 1.0),
        (1.0, 1.0),
    ),
}


@SOME_DIVERGE
@pytest.mark.parametrize("name", list(TARGETS))
def test_moments_on_every_kind_of_target(name: str) -> None:
    """Means and variances within 5 standard errors; 56 numbers, so a false alarm in 1 of 3,500 runs of the table."""
    make, mean, variance = TARGETS[name]
    target = make()
    chains = sample(ep.ChEES(), target)
    x = chains.samples["x"]
    potential = target.potential if isinstance(target, (ep.EnergyDistribution, ep.potentials.Constrained)) else target
    assert x.shape == (64, 200, *potential.event_shape)
    assert x.dtype == (torch.float64 if "float64" in name else torch.float32)
    assert chains.energy.dtype == x.dtype
    assert not bool(chains.stuck.any() or chains.not_finite.any())
    assert float(chains.diverging.double().mean()) < 1e-3
    assert worst_z(x, mean, variance) < LIMIT
    support = (
        target.support if isinstance(target, (ep.EnergyDistribution, ep.potentials.Constrained)) else constraints.real
    )
    assert bool(support.check(x).all())
    torch.testing.assert_close(chains.energy, chains.potential(chains.draws), rtol=1e-4, atol=1e-4)


@SOME_DIVERGE
def test_the_moments_check_can_fail() -> None:
    """Negative control: Langevin with a long step, and a Gamma's energy without its Jacobian."""
    assert worst_z(sample(ep.Langevin(1.5), NORMAL, warmup=0).samples["x"], 0.0, 1.0) > LIMIT
    gamma = energy(lambda z: (2.0 * z.exp() - 2.0 * z).sum(-1), 1)
    assert worst_z(sample(ep.ChEES(), gamma).samples["x"].exp(), 1.5, 0.75) > LIMIT


def test_a_batch_of_recovery_distributions() -> None:
    """Five noisy points at once; each mean and variance against quadrature, 20 numbers: 1 false alarm in 10,000."""
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=16, depth=2, frequencies=4, levels=3), ep.NoiseSchedule.cosine(3))
    noisy = torch.randn(5, 2)
    chains = sample(ep.ChEES(), ebm.recovery(noisy, level=1, steps=5))
    assert chains.draws.shape == (64, 200, 5, 2)
    assert chains.energy.shape == chains.acceptance.shape == chains.diverging.shape == (64, 200, 5)
    assert chains.stuck.shape == chains.not_finite.shape == (64, 5)
    grid = ep.Grid((-8.0, -8.0), (8.0, 8.0), (256, 256))
    exact = [ep.quadrature(ebm.recovery(point, level=1).potential, grid) for point in noisy]
    mean, variance = torch.stack([e.mean for e in exact]), torch.stack([e.covariance.diagonal() for e in exact])
    assert worst_z(chains.samples["x"], mean, variance) < LIMIT
    idata = chains.to_arviz()
    assert idata.posterior["x"].shape == (64, 200, 5, 2)
    assert idata.sample_stats["lp"].shape == (64, 200, 5)


# --- Options ---


def test_thinning_keeps_every_third_step() -> None:
    every, third = [], []
    for kept, draws, thin in ((every, 30, 1), (third, 10, 3)):
        pyro.set_rng_seed(5)
        kept.append(sample(ep.HMC(0.7, 3), NORMAL, draws=draws, thin=thin, warmup=0))
    assert torch.equal(every[0].draws[:, 2::3], third[0].draws)
    assert torch.equal(every[0].steps.reshape(64, 10, 3).sum(2), third[0].steps)
    torch.testing.assert_close(every[0].acceptance.reshape(64, 10, 3).mean(2), third[0].acceptance)
    assert torch.equal(every[0].moved.reshape(64, 10, 3).any(2), third[0].moved)
    assert every[0].gradients == third[0].gradients == float(every[0].steps[0].sum())


def test_the_warm_up_is_kept_on_request() -> None:
    chains = sample(ep.NUTS(), NORMAL, warmup=30, draws=10, keep_warmup=True)
    assert chains.warmup is not None
    assert chains.warmup.draws.shape == (64, 30, 2)
    assert chains.warmup_gradients >= 30
    assert sample(ep.NUTS(), NORMAL, warmup=30, draws=10).warmup is None
    assert sample(ep.NUTS(0.5), NORMAL, warmup=0, draws=10, keep_warmup=True).warmup is None


def test_draws_as_one_for_predictive_and_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # elsewhere progress is lines, the first after two seconds
    chains = sample(ep.HMC(0.5), NORMAL, chains=4, draws=25, warmup=10, progress=True)
    bar = capsys.readouterr().err
    assert "sampling" in bar
    assert "35/35" in bar
    assert torch.equal(chains.flat()["x"], chains.draws.reshape(100, 2))
    assert torch.equal(chains.flat(3)["x"], chains.draws.reshape(100, 2)[[0, 49, 99]])
    assert chains.flat(1000)["x"].shape == (100, 2)


def test_draws_go_to_a_file(tmp_path: Path) -> None:
    """The same draws as in memory, mapped: ``(draws, chains, *event)`` for numpy."""
    runs = []
    for file in (None, tmp_path / "draws.npy"):
        pyro.set_rng_seed(3)
        runs.append(sample(ep.ChEES(), NORMAL, draws=20, file=file))
    assert torch.equal(runs[0].draws, runs[1].draws)
    assert np.array_equal(np.load(tmp_path / "draws.npy").swapaxes(0, 1), runs[1].draws.numpy())


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "missing" / "draws.npy"):
        with pytest.raises(
            InvalidInput, match=r"file must be the path of a \.npy file to write .* name a file in a folder"
        ):
            sample(ep.HMC(), NORMAL, chains=4, draws=10, file=file)


def test_draws_that_need_too_much_memory_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"the draws need 74\.5 GiB of memory, more than 4: pass file='draws\.npy'"):
        sample(ep.HMC(), NORMAL, chains=10_000, draws=1_000_000)


STARTS: dict[str, Callable[[], Any]] = {
    "points": lambda: torch.full((64, 2), 3.0),
    "a function": lambda: lambda shape: torch.full((*shape, 2), 3.0),
}


@pytest.mark.parametrize("name", list(STARTS))
def test_chains_begin_where_they_are_told_to(name: str) -> None:
    chains = sample(ep.MALA(1e-4), NORMAL, warmup=0, draws=1, init=STARTS[name]())
    torch.testing.assert_close(chains.draws[:, 0], torch.full((64, 2), 3.0), rtol=0, atol=1e-3)


@SOME_DIVERGE  # at the edge
@pytest.mark.filterwarnings("ignore:the chains disagree")  # their steps are small at an edge; here starts are judged
def test_starts_are_drawn_until_their_energy_is_finite() -> None:
    half = energy(lambda x: torch.where(x[..., 0] > 1.0, (x * x).sum(-1), INF), 2)
    chains = sample(ep.HMC(), half)
    assert not bool(chains.not_finite.any())
    assert bool((chains.draws[..., 0] > 1.0).all())


@pytest.mark.parametrize("name", list(KERNELS))
def test_every_kernel_is_repeatable_bit_for_bit(name: str) -> None:
    """Warm-up and draws, with the same seed; and the right moments (4 numbers each, 36 in all: 1 in 5,000)."""
    runs = []
    for seed in (7, 7, 8):
        pyro.set_rng_seed(seed)
        runs.append(sample(KERNELS[name], NORMAL, draws=300, warmup=60))
    assert torch.equal(runs[0].draws, runs[1].draws)
    assert torch.equal(runs[0].energy, runs[1].energy)
    assert not torch.equal(runs[0].draws, runs[2].draws)
    assert worst_z(runs[0].samples["x"], (0.0, 0.0), (1.0, 1.0)) < LIMIT


# --- Ctrl-C ---


@dataclasses.dataclass(frozen=True)
class Interrupted:
    """A kernel during whose step number ``after`` somebody presses Ctrl-C."""

    inner: Any
    after: int
    calls: list[int] = dataclasses.field(default_factory=list)

    def init(self, potential: Any, x: Tensor) -> State:
        return self.inner.init(potential, x)  # type: ignore[no-any-return]

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        self.calls.append(1)
        if len(self.calls) == self.after:
            raise KeyboardInterrupt
        return self.inner.step(potential, state)  # type: ignore[no-any-return]


class InterruptedEnergy(Network):
    """An energy during whose evaluation number ``after`` somebody presses Ctrl-C."""

    calls: Tensor

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # in place: left to eager, so that every evaluation is seen
        if int(self.calls) == self.after:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("thin", [1, 3])
def test_ctrl_c_keeps_what_was_drawn(thin: int, tmp_path: Path) -> None:
    for file in (None, tmp_path / "draws.npy"):
        kernel = Interrupted(ep.HMC(0.5), 8 * thin)
        with pytest.warns(UserWarning, match="interrupted: 7 draws of each chain were kept"):
            chains = sample(kernel, NORMAL, chains=4, draws=50, warmup=0, thin=thin, file=file)
        assert chains.interrupted
        assert chains.draws.shape == (4, 7, 2)
        assert bool((chains.draws != 0).all())
        assert chains.energy.shape == (4, 7)
        assert chains.to_arviz().posterior["x"].shape == (4, 7, 2)


def test_ctrl_c_while_the_energy_is_evaluated() -> None:
    """Each MALA step takes one evaluation, finding a start a few."""
    with pytest.warns(UserWarning, match=r"interrupted: \d+ draws of each chain were kept"):
        chains = sample(ep.MALA(0.5), InterruptedEnergy(80), draws=50, warmup=50)
    assert chains.interrupted
    assert 20 <= chains.draws.shape[1] <= 29
    assert bool(torch.isfinite(chains.energy).all())


def test_ctrl_c_during_the_warm_up() -> None:
    with pytest.warns(UserWarning, match="interrupted: 0 draws of each chain were kept"):
        chains = sample(ep.MALA(0.5), InterruptedEnergy(31), draws=50, warmup=50, keep_warmup=True)
    assert chains.interrupted
    assert chains.draws.shape == (64, 0, 2)
    assert chains.warmup is not None
    assert 20 <= chains.warmup.draws.shape[1] <= 30
    assert chains.warmup_seconds > 0.0
    assert chains.seconds == 0.0

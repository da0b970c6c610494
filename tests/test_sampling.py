"""``sample_chains`` on every kind of target, its edges and failures, and what ArviZ makes of the chains.

Moments are judged in standard errors that come from the spread between chains: chains are independent, so no effective
sample size is needed.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import energyppl as ep
from energyppl.errors import InvalidInput
from energyppl.inference import Info, State

LIMIT = 5.0  # standard errors, of 64 chains: 5e-6 two-sided for one number (Student's t, 63 degrees of freedom)
INF = math.inf
SOME_DIVERGE = pytest.mark.filterwarnings("ignore:.* of the draws diverged:UserWarning")


def energy(function: Callable[[Tensor], Tensor], *event: int) -> ep.Energy:
    return ep.Energy(function, torch.Size(event))


NORMAL = energy(lambda x: 0.5 * (x * x).sum(-1), 2)


class Network(nn.Module):
    """N(loc, 1) in two dimensions, loc a parameter."""

    event_shape = torch.Size((2,))

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([1.0, -1.0], dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x - self.loc) ** 2).sum(-1)


def sample(kernel: Any, on: Any, *args: Any, chains: int = 64, **options: Any) -> ep.Chains:
    options = {"draws": 200, "warmup": 200, "progress": False, **options}
    return ep.sample_chains(kernel, on, *args, chains=chains, **options)


def worst_z(x: Tensor, mean: Any, variance: Any) -> float:
    """Largest deviation of a mean or second central moment of ``(chains, draws, *shape)``, in standard errors."""
    x, mean, variance = x.double(), torch.as_tensor(mean).double(), torch.as_tensor(variance).double()
    averages = torch.stack([(x - mean).mean(1), ((x - mean) ** 2).mean(1) - variance])
    return float((averages.mean(1) / (averages.std(1) / math.sqrt(len(x)))).abs().max())


# --- Targets ---


def constrained(function: Callable[[Tensor], Tensor], support: Any, *event: int) -> ep.EnergyDistribution:
    return ep.EnergyDistribution(energy(function, *event), support=support)


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
        lambda: ep.EnergyDistribution(NORMAL, sampler=ep.MarkovSampler(ep.MALA(1.0), 5)),
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
        lambda: ep.Constrained(energy(lambda x: x.sum(-1), 2), constraints.greater_than(1.0)),
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
    potential = target.potential if isinstance(target, (ep.EnergyDistribution, ep.Constrained)) else target
    assert x.shape == (64, 200, *potential.event_shape)
    assert x.dtype == (torch.float64 if "float64" in name else torch.float32)
    assert chains.energy.dtype == x.dtype
    assert not bool(chains.stuck.any() or chains.not_finite.any())
    assert float(chains.diverging.double().mean()) < 1e-3
    assert worst_z(x, mean, variance) < LIMIT
    support = target.support if isinstance(target, (ep.EnergyDistribution, ep.Constrained)) else constraints.real
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


def test_draws_as_one_for_predictive_and_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
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


KERNELS: dict[str, Any] = {
    "HMC": ep.HMC(),
    "ChEES": ep.ChEES(),
    "MALT": ep.MALT(),
    "NUTS": ep.NUTS(),
    "MALA": ep.MALA(0.5),
    "cycle": ep.Cycle(ep.MALA(0.5), ep.HMC()),
    "mixture": ep.Mixture(ep.MALA(0.5), ep.HMC()),
    "block": ep.Cycle(ep.Block(ep.MALA(0.5), torch.tensor([True, False])), ep.HMC()),
    "tempered": ep.Tempered(ep.MALA(0.5)),
}


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


# --- Chains that fail ---


def needle(x: Tensor) -> Tensor:
    """A standard normal with a hole of width 1e-5 and depth 1e4 at the origin, which no tuned step gets out of."""
    r = (x * x).sum(-1)
    return 0.5 * r - 1e4 * (-0.5 * r / 1e-10).exp()


def island(x: Tensor) -> Tensor:
    return torch.where((x * x).sum(-1) < 100.0, 0.5 * (x * x).sum(-1), INF)


def no_slope(x: Tensor) -> Tensor:
    """A standard normal whose gradient is NaN beyond 1, where its energy is finite: the root's slope at 0, times 0."""
    return 0.5 * (x * x).sum(-1) + 0.0 * torch.where(x > 1.0, 0.0 * x, 1.0 + 0.0 * x).sqrt().sum(-1)


def begin(at: float) -> Tensor:
    """All 16 chains at random near the origin, but chain 3."""
    x = 0.5 * torch.rand(16, 2) + 0.1
    x[3] = at
    return x


FAILS: dict[str, tuple[Callable[[Tensor], Tensor], float, str, bool]] = {
    # energy, where chain 3 begins, the warning, whether the chain's energy is not finite
    "in a needle-thin hole": (needle, 0.0, "chain 3 of 16 never or hardly moved", False),
    "far outside the support": (island, 1e6, "chain 3 of 16 stand where the energy is not finite", True),
    "where the gradient is NaN": (no_slope, 2.0, "chain 3 of 16 never or hardly moved", False),
}


@pytest.mark.parametrize("name", list(FAILS))
@pytest.mark.parametrize("kernel", ["HMC", "ChEES", "NUTS", "MALT", "MALA"])
def test_chains_that_fail_are_named(name: str, kernel: str) -> None:
    function, at, message, infinite = FAILS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chains = sample(KERNELS[kernel], energy(function, 2), chains=16, warmup=100, init=begin(at))
    assert any(message in str(w.message) for w in caught), [str(w.message) for w in caught]
    assert any(message in problem for problem in chains.problems())
    expected = torch.arange(16) == 3
    assert torch.equal(chains.stuck, expected)
    assert torch.equal(chains.not_finite, expected & infinite)
    if name != "in a needle-thin hole":
        assert bool(chains.diverging[3].all())
    assert bool(torch.isfinite(chains.draws).all())


def test_many_bad_chains_are_abbreviated() -> None:
    start = torch.zeros(16, 2)
    start[4:] = 1e6
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample(ep.HMC(), energy(island, 2), chains=16, init=start)
    assert "chains 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 2 more of 16 never" in str(caught[0].message)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no chains": (lambda: sample(ep.HMC(), NORMAL, chains=0), "chains must be a whole number of at least 1; got 0"),
    "no draws": (lambda: sample(ep.HMC(), NORMAL, draws=0), "draws must be a whole number of at least 1; got 0"),
    "no thinning": (lambda: sample(ep.HMC(), NORMAL, thin=0), "thin must be a whole number of at least 1; got 0"),
    "warm-up": (lambda: sample(ep.HMC(), NORMAL, warmup=-1), "warmup must be a whole number of at least 0; got -1"),
    "target": (lambda: ep.sample_chains(ep.HMC(), NORMAL, target=1.5), "target must lie between 0 and 1; got 1.5"),
    "zero step": (lambda: sample(ep.HMC(0.0), NORMAL), "step_size must be positive"),
    "negative step": (lambda: sample(ep.NUTS(-0.1), NORMAL), "step_size must be positive"),
    "NaN step": (lambda: sample(ep.ChEES(math.nan), NORMAL), "step_size must be positive"),
    "steps of other chains": (lambda: sample(ep.HMC(torch.ones(3)), NORMAL, warmup=0), "one for each chain"),
    "mass of another shape": (
        lambda: sample(ep.HMC(inverse_mass=torch.ones(3)), NORMAL),
        r"inverse_mass must have the event's shape \(2,\); got \(3,\)",
    ),
    "mass of rank and another shape": (
        lambda: sample(ep.NUTS(inverse_mass=ep.LowRankMass(torch.ones(3), torch.eye(3)[:, :1], torch.ones(1))), NORMAL),
        r"inverse_mass must have the event's shape \(2,\); got \(3,\)",
    ),
    "negative mass": (lambda: sample(ep.HMC(inverse_mass=torch.tensor([1.0, -1.0])), NORMAL), "must be positive"),
    "ChEES alone": (lambda: sample(ep.ChEES(), NORMAL, chains=1), "got one chain: run 16 or more, or use NUTS"),
    "no kernel": (lambda: sample("NUTS", NORMAL), r"kernel must have init and step, as HMC\(\) or NUTS\(\); got"),
    "a kernel's class": (lambda: sample(ep.NUTS, NORMAL, warmup=0), r"kernel must have init and step.*NUTS\(\)"),
    "no target": (lambda: sample(ep.HMC(), 3.0), "expected a potential with an event_shape.*got float"),
    "an EBM": (
        lambda: sample(ep.HMC(), ep.RecoveryEBM(ep.MLPEnergy((2,), levels=2), ep.NoiseSchedule.cosine(2))),
        r"a RecoveryEBM has many distributions: pass ebm.marginal\(\)",
    ),
    "event of init": (
        lambda: sample(ep.HMC(), NORMAL, init=torch.zeros(64, 3)),
        r"init must end in event_shape \(2,\)",
    ),
    "chains of init": (
        lambda: sample(ep.HMC(), NORMAL, init=torch.zeros(3, 2)),
        r"init must have shape \(64, 2\), a point for each chain; got \(3, 2\)",
    ),
    "init's function": (lambda: sample(ep.HMC(), NORMAL, init=lambda s: torch.zeros(3, 2)), r"\(64, 2\).*got \(3, 2\)"),
    "init of whole numbers": (lambda: sample(ep.HMC(), NORMAL, init=torch.zeros(64, 2).long()), "floating point"),
    "init by name": (lambda: sample(ep.HMC(), NORMAL, init={"x": torch.zeros(64, 2)}), "only for a Pyro model"),
    "energies of points": (lambda: sample(ep.HMC(), energy(lambda x: x, 2)), "must return one number for each point"),
    "infinite everywhere": (
        lambda: sample(ep.HMC(), energy(lambda x: x.sum(-1) * 0.0 + INF, 2)),
        "no chain starts at a finite energy",
    ),
    "infinite everywhere, no warm-up": (
        lambda: sample(ep.HMC(), energy(lambda x: x.sum(-1) * 0.0 + INF, 2), warmup=0),
        "no chain starts at a finite energy",
    ),
    "outside at all starts": (
        lambda: sample(ep.NUTS(), energy(island, 2), init=torch.full((64, 2), 1e6)),
        "no chain starts at a finite energy",
    ),
    "a support of whole numbers": (
        lambda: sample(ep.HMC(), constrained(lambda x: x.sum(-1), constraints.nonnegative_integer, 1)),
        "no bijection",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(InvalidInput, match=message):
        make()


# --- ArviZ ---


def regression(x: Tensor, y: Tensor, slope: bool = True) -> None:
    """A model with a vector site, a positive one, a deterministic one and a plate of data."""
    weight = pyro.sample("weight", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    mean = pyro.deterministic("mean", weight[0] + (weight[1] * x if slope else 0.0 * x))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def data() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1.0, 1.0, 40)
    return x, 0.5 + 1.5 * x + 0.4 * torch.randn(40)


STATS = {"lp", "energy", "diverging", "acceptance_rate", "step_size", "tree_depth", "n_steps"}
LACKS: dict[str, set[str]] = {
    "HMC": {"tree_depth"},
    "ChEES": {"tree_depth"},
    "MALT": {"tree_depth"},
    "NUTS": set(),
    "MALA": {"tree_depth", "energy"},
    "cycle": {"tree_depth", "energy", "step_size"},
}


@SOME_DIVERGE  # early in the warm-up
@pytest.mark.parametrize("kernel", list(LACKS))
def test_arviz_has_every_group(kernel: str) -> None:
    """Names and shapes (chain, draw) of the posterior, the statistics, the warm-up and the data; and what they hold."""
    x, y = data()
    chains = sample(KERNELS[kernel], regression, x, y, chains=4, draws=40, warmup=60, keep_warmup=True)
    idata = chains.to_arviz()
    assert set(idata.groups()) == {
        "posterior", "sample_stats", "warmup_posterior", "warmup_sample_stats", "observed_data"
    }  # fmt: skip
    for posterior, stats, draws in (
        (idata.posterior, idata.sample_stats, 40),
        (idata.warmup_posterior, idata.warmup_sample_stats, 60),
    ):
        assert {name: v.shape for name, v in posterior.data_vars.items()} == {
            "weight": (4, draws, 2), "sigma": (4, draws), "mean": (4, draws, 40)
        }  # fmt: skip
        assert posterior["sigma"].dims == ("chain", "draw")
        assert set(stats.data_vars) == STATS - LACKS[kernel] or (kernel == "cycle" and draws == 60)  # HMC's own
        assert all(stats[name].dims == ("chain", "draw") for name in stats.data_vars)
        assert bool((posterior["sigma"] > 0).all())
    stats, attrs = idata.sample_stats, idata.posterior.attrs
    assert np.array_equal(stats["lp"].values, -chains.energy.numpy())
    if "energy" in stats:
        assert bool((stats["energy"] >= -stats["lp"] - 1e-3).all()), "kinetic energies are not negative"
        assert float((stats["energy"] + stats["lp"]).mean()) < 10.0, "of 3 coordinates"
    if "step_size" in stats:
        step = torch.as_tensor(chains.kernel.step_size)  # type: ignore[attr-defined]
        assert np.allclose(stats["step_size"].values, step.numpy())
    assert stats["diverging"].dtype == bool
    assert stats["n_steps"].dtype.kind == "i"
    assert np.array_equal(idata.observed_data["y"].values, y.numpy())
    assert attrs["inference_library"] == "energyppl"
    assert attrs["inference_library_version"] == ep.__version__
    assert attrs["tuning_steps"] == 60
    assert attrs["kernel"].startswith(type(KERNELS[kernel]).__name__)


@SOME_DIVERGE
@pytest.mark.parametrize("kernel", ["cycle", "mixture"])
def test_statistics_that_only_some_steps_have_are_missing_or_nan(kernel: str) -> None:
    """Not what happened to be in memory: filled with 7s here."""
    kernels = {"cycle": ep.Cycle(ep.MALA(0.5), ep.NUTS()), "mixture": ep.Mixture(ep.MALA(0.5), ep.NUTS())}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda t, **o: torch.full_like(t, 7.0, **o))
        patch.setattr(torch, "empty", lambda *s, **o: torch.full(s[0] if isinstance(s[0], tuple) else s, 7.0, **o))
        chains = sample(kernels[kernel], NORMAL, chains=4, draws=40, warmup=40, keep_warmup=True)
    assert chains.warmup is not None
    for part in (chains, chains.warmup):
        if part.total_energy is not None:
            kinetic = part.total_energy - part.energy
            assert bool((torch.isnan(kinetic) | (kinetic >= -1e-3)).all())
            assert not bool((part.total_energy == 7.0).any())
        assert part.tree_depth is None or not bool((part.tree_depth == 7).any())


def test_arviz_reads_round_trips_and_plots(tmp_path: Path) -> None:
    x, y = data()
    chains = sample(ep.NUTS(), regression, x, y, chains=4, draws=150, warmup=100, keep_warmup=True)
    idata = chains.to_arviz()
    summary = az.summary(idata, var_names=["weight", "sigma"])
    assert list(summary.index) == ["weight[0]", "weight[1]", "sigma"]
    assert bool((summary["r_hat"] < 1.05).all())
    assert bool((az.ess(idata, var_names=["weight"])["weight"] > 100).all())
    assert float(az.rhat(idata, var_names=["sigma"])["sigma"]) < 1.05
    assert bool((az.bfmi(idata) > 0.3).all())
    az.plot_trace(idata, var_names=["weight", "sigma"])
    az.plot_energy(idata)
    az.plot_rank(idata, var_names=["weight"])
    plt.close("all")
    idata.to_netcdf(str(tmp_path / "chains.nc"))
    again = az.from_netcdf(str(tmp_path / "chains.nc"))
    try:
        assert set(again.groups()) == set(idata.groups())
        for group in idata.groups():
            assert again[group].equals(idata[group]), group
        assert again.posterior.attrs["kernel"] == repr(chains.kernel)
    finally:
        again.close()


@SOME_DIVERGE
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values")  # ArviZ 0.23 under pandas 3.1
def test_arviz_compares_models_by_leave_one_out() -> None:
    """Data with a slope prefer the model that has one; the log likelihood is the density of each row."""
    x, y = data()
    found = {}
    for name, slope in (("line", True), ("flat", False)):
        chains = sample(ep.ChEES(), regression, x, y, slope, chains=16, draws=100)
        found[name] = chains.to_arviz(log_likelihood=True)
        assert found[name].log_likelihood["y"].shape == (16, 100, 40)
    post = found["flat"].posterior
    mean, sigma = torch.tensor(post["mean"].values), torch.tensor(post["sigma"].values)[..., None]
    expected = torch.distributions.Normal(mean, sigma).log_prob(y).numpy()
    assert np.allclose(found["flat"].log_likelihood["y"].values, expected, rtol=1e-4, atol=1e-4)
    loo = az.loo(found["line"])
    assert loo.elpd_loo < 0.0
    assert not loo.warning
    table = az.compare(found)
    assert list(table.index) == ["line", "flat"]
    assert table["elpd_diff"].iloc[1] > 5.0


def test_the_same_groups_under_arviz_1() -> None:
    arviz_base = pytest.importorskip("arviz_base", reason="ArviZ 1.x's data structures are not installed")
    x, y = data()
    chains = sample(ep.NUTS(), regression, x, y, chains=4, draws=40, warmup=60, keep_warmup=True)
    new, old = (chains.to_arviz(log_likelihood=True, **o) for o in ({"arviz": arviz_base}, {}))
    assert type(new).__name__ == "DataTree"
    assert set(new.children) == set(old.groups())
    for group in old.groups():
        assert set(new[group].data_vars) == set(old[group].data_vars)
        for name in old[group].data_vars:
            assert new[group][name].dims[:2] == old[group][name].dims[:2]
            assert np.array_equal(new[group][name].values, old[group][name].values)
    assert new.attrs["inference_library"] == "energyppl"


def test_a_potential_has_no_data_for_arviz() -> None:
    idata = sample(ep.HMC(0.5), NORMAL, chains=4, draws=20, warmup=0).to_arviz(log_likelihood=True)
    assert set(idata.groups()) == {"posterior", "sample_stats"}
    assert set(idata.posterior.data_vars) == {"x"}

"""``adapt`` and ``sample_chains`` run every kernel of the library, and a user's own; protocols say what is tuned."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import Info, State
from tests.support.chains import NORMAL, energy

pytestmark = [pytest.mark.filterwarnings("ignore::energyppl.errors.ChainWarning")]  # some steps are few or bad

SPINS = energy(lambda x: -0.5 * x.sum(-1) - 0.3 * (x * x.roll(1, -1)).sum(-1), 4)
TILTED = ep.potentials.RecoveryPotential(NORMAL, torch.zeros(2), 1.0)
NOTHING = "has no step size to tune: it ran as it is"


def bits(shape: torch.Size) -> Tensor:
    return torch.bernoulli(torch.full((*shape, 4), 0.5))


class RandomWalk:
    """A user's kernel with no more than it needs: a random walk with steps of ½."""

    def init(self, potential: Any, x: Tensor) -> State:
        return State(x, potential(x), torch.zeros_like(x))

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        x = state.x + self.size() * torch.randn_like(state.x)
        new = potential(x)
        accept = (state.energy - new).clamp(max=0.0).exp()
        taken = torch.rand_like(accept) < accept
        moved = State(torch.where(taken[..., None], x, state.x), torch.where(taken, new, state.energy), state.grad)
        return moved, Info(accept, taken, torch.isnan(new))

    def size(self) -> Any:
        return 0.5


@dataclasses.dataclass(frozen=True)
class TunableWalk(RandomWalk):
    """The same with a step size, which is all that it takes to be tuned."""

    step_size: float | Tensor
    target_acceptance = 0.4

    def with_step_size(self, step_size: float | Tensor) -> "TunableWalk":
        return TunableWalk(step_size)

    def size(self) -> Any:
        return torch.as_tensor(self.step_size)[..., None]


@dataclasses.dataclass(frozen=True)
class UnadjustedWalk(TunableWalk):
    """A kernel that never rejects, and has no adjusted form to judge its steps by."""

    target_acceptance = None  # type: ignore[assignment]


INDEPENDENT = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(16, 2), 1.5), 1)
# kernel, target, where chains begin, the notes' words, whether the step size changes
ALL: dict[str, tuple[Any, Any, Any, tuple[str, ...], bool]] = {
    "Langevin": (ep.Langevin(0.1), NORMAL, None, (), True),
    "MALA": (ep.MALA(0.1), NORMAL, None, (), True),
    "HMC": (ep.HMC(), NORMAL, None, (), True),
    "ChEES": (ep.ChEES(), NORMAL, None, (), True),
    "NUTS": (ep.NUTS(), NORMAL, None, (), True),
    "MALT": (ep.kernels.MALT(), NORMAL, None, (), True),
    "Crank-Nicolson": (ep.kernels.CrankNicolson(), TILTED, None, (), False),  # it stays at its limit, 1
    "Crank-Nicolson Langevin": (ep.kernels.CrankNicolsonLangevin(), TILTED, None, (), True),
    "independent": (ep.kernels.IndependentMetropolis(INDEPENDENT), NORMAL, None, (NOTHING,), False),
    "Gibbs": (ep.kernels.BinaryGibbs(), SPINS, bits, (f"a BinaryGibbs {NOTHING}",), False),
    "discrete Langevin": (ep.kernels.DiscreteLangevin(), SPINS, bits, (), True),
    "cycle": (ep.kernels.Cycle(ep.MALA(0.1), ep.HMC()), NORMAL, None, (), False),
    "cycle with a part that has no step": (
        ep.kernels.Cycle(ep.MALA(0.1), ep.kernels.IndependentMetropolis(INDEPENDENT), RandomWalk()),
        NORMAL,
        None,
        (f"IndependentMetropolis {NOTHING}", f"RandomWalk {NOTHING}"),
        False,
    ),
    "mixture": (
        ep.kernels.Mixture(ep.kernels.BinaryGibbs(), ep.kernels.DiscreteLangevin()),
        SPINS,
        bits,
        ("Gibbs",),
        False,
    ),
    "block": (
        ep.kernels.Cycle(ep.kernels.Block(ep.HMC(), torch.tensor([True, False])), ep.HMC()),
        NORMAL,
        None,
        (),
        False,
    ),
    "block of a user's": (
        ep.kernels.Cycle(ep.kernels.Block(RandomWalk(), torch.tensor([True, False])), ep.HMC()),
        NORMAL,
        None,
        (f"a RandomWalk {NOTHING}",),
        False,
    ),
    "tempered": (ep.kernels.Tempered(ep.MALA(0.1)), NORMAL, None, (), False),
    "tempered Gibbs": (
        ep.kernels.Tempered(ep.kernels.BinaryGibbs()),
        SPINS,
        bits,
        ("a Tempered around a BinaryGibbs, which has no one step size, was not tuned",),
        False,
    ),
    "tempered cycle": (ep.kernels.Tempered(ep.kernels.Cycle(ep.MALA(0.1))), NORMAL, None, ("around a Cycle",), False),
    "tempered discrete Langevin": (ep.kernels.Tempered(ep.kernels.DiscreteLangevin()), SPINS, bits, (), False),
    "a user's": (RandomWalk(), NORMAL, None, (f"a RandomWalk {NOTHING}",), False),
    "a user's, tunable": (TunableWalk(0.01), NORMAL, None, (), True),
    "a user's that never rejects": (UnadjustedWalk(0.01), NORMAL, None, (NOTHING,), False),
}


@pytest.mark.parametrize("name", list(ALL))
def test_every_kernel_samples_at_its_defaults(name: str) -> None:
    kernel, target, init, notes, tuned = ALL[name]
    chains = ep.sample_chains(kernel, target, chains=16, draws=5, warmup=20, init=init, progress=False)
    assert chains.draws.shape == (16, 5, *target.event_shape)
    assert bool(torch.isfinite(chains.energy).all())
    assert type(chains.kernel) is type(kernel)
    assert len(chains.notes) == len(notes)
    for note, words in zip(chains.notes, notes, strict=True):
        assert words in note
        assert note in repr(chains)
    if tuned:
        assert float(torch.as_tensor(chains.kernel.step_size)) != float(torch.as_tensor(kernel.step_size))  # type: ignore[attr-defined]
    assert ep.sample_chains(chains.kernel, target, chains=16, draws=2, warmup=0, init=init, progress=False).notes == ()


@pytest.mark.parametrize("name", list(ALL))
def test_every_kernel_can_be_adapted(name: str) -> None:
    kernel, target, init, notes, _ = ALL[name]
    x = torch.randn(16, 2) if init is None else init(torch.Size((16,)))
    found = ep.adapt(kernel, target, x, 12)
    assert type(found.kernel) is type(kernel)
    assert len(found.notes) == len(notes)
    assert found.acceptance.shape == found.step_sizes.shape == (12,)
    assert found.state.x.shape == x.shape


def test_a_users_kernel_is_tuned_to_its_acceptance() -> None:
    """To .4 within .06, dual averaging's own tolerance (as in test_adaptation), from far too short a step."""
    start = torch.randn(400, 2)
    tuned = ep.adapt(TunableWalk(0.01), NORMAL, start, 200).kernel
    run = ep.sampling.run_chain(tuned, NORMAL, start, 50)
    assert float(run.accept_prob.mean()) == pytest.approx(0.4, abs=0.06)
    grouped = ep.adapt(TunableWalk(0.01), NORMAL, start, 100, groups=torch.arange(400) % 2).kernel
    assert torch.as_tensor(grouped.step_size).shape == (400,)


def test_a_step_size_limit_is_kept() -> None:
    """Where every step is accepted, the step size grows to the limit and no further."""
    flat = energy(lambda x: 0.0 * x.sum(-1), 2)

    class Limited(TunableWalk):
        step_size_limit = 3.0

        def with_step_size(self, step_size: float | Tensor) -> "Limited":
            return Limited(step_size)

    limited = ep.adapt(Limited(0.5), flat, torch.randn(16, 2), 100)
    assert float(limited.step_sizes.max()) == pytest.approx(3.0, rel=1e-5)
    assert float(ep.adapt(TunableWalk(0.5), flat, torch.randn(16, 2), 100).step_sizes.max()) > 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class Wrapped:
    """A user's kernel of leapfrog steps, by delegation: every protocol, and none of the library's classes."""

    inner: ep.ChEES
    target_acceptance = 0.8

    @property
    def step_size(self) -> float | Tensor:
        return self.inner.step_size

    @property
    def inverse_mass(self) -> Any:
        return self.inner.inverse_mass

    @property
    def length(self) -> float:
        return self.inner.length

    @property
    def max_steps(self) -> int:
        return self.inner.max_steps

    def with_step_size(self, step_size: float | Tensor) -> "Wrapped":
        return Wrapped(self.inner.with_step_size(step_size))

    def with_inverse_mass(self, inverse_mass: Any) -> "Wrapped":
        return Wrapped(self.inner.with_inverse_mass(inverse_mass))

    def with_length(self, length: float) -> "Wrapped":
        return Wrapped(self.inner.with_length(length))

    def init(self, potential: Any, x: Tensor) -> State:
        return self.inner.init(potential, x)

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        return self.inner.step(potential, state)

    def propose(self, potential: Any, state: State, share: float) -> Any:
        return self.inner.propose(potential, state, share)


def test_protocols_and_not_classes_say_what_is_tuned() -> None:
    """A user's kernel with every protocol is tuned bit for bit as the library's own is."""
    runs: list[Any] = []
    for kernel in (ep.ChEES(), Wrapped(ep.ChEES())):
        torch.manual_seed(0)
        runs.append(ep.adapt(kernel, NORMAL, torch.randn(32, 2), 60))  # type: ignore[type-var]
    own, users = runs[0].kernel, runs[1].kernel.inner
    assert torch.equal(runs[0].state.x, runs[1].state.x)
    assert own.length == users.length != 1.0
    assert own.step_size == users.step_size
    assert isinstance(users.inverse_mass, Tensor | ep.kernels.LowRankMass)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no kernel": (lambda: ep.adapt("HMC", NORMAL, torch.randn(4, 2)), "kernel must have init and step"),  # type: ignore[type-var]
    "a mass": (
        lambda: ep.adapt(ep.HMC(), NORMAL, torch.randn(4, 2), mass="diagonal"),  # type: ignore[arg-type]
        "mass must be low_rank_mass, diagonal_mass, identity_mass or a function; got 'diagonal'",
    ),
    "acceptance": (
        lambda: ep.adapt(ep.HMC(), NORMAL, torch.randn(4, 2), target_acceptance="high"),  # type: ignore[arg-type]
        "target_acceptance must lie between 0 and 1; got 'high'",
    ),
    "groups": (
        lambda: ep.adapt(ep.HMC(), NORMAL, torch.randn(4, 2), groups=[0, 0, 1, 1]),  # type: ignore[arg-type]
        "groups must be whole numbers from 0",
    ),
    "a length from one chain": (
        lambda: ep.adapt(Wrapped(ep.ChEES()), NORMAL, torch.randn(1, 2)),  # type: ignore[type-var]
        "Wrapped learns its length by comparing chains; got one chain",
    ),
    "a start that is not binary": (
        lambda: ep.sample_chains(ep.kernels.BinaryGibbs(), SPINS, chains=4, progress=False),
        r"binary kernels move points of zeros and ones; got other numbers: begin at .*init=",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(InvalidInput, match=message):
        make()

"""Chains that are stuck, lost or begun in the wrong place are named, and bad input is refused in words."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import energyppl as ep
from energyppl.errors import EnergyPPLError, InvalidInput
from tests.support.chains import INF, KERNELS, NORMAL, constrained, energy, sample


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
    # Steps are short where half of the plane has no gradient; trees of 1,024 of them would show nothing more.
    moves = ep.NUTS(max_depth=5) if kernel == "NUTS" else KERNELS[kernel]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chains = sample(moves, energy(function, 2), chains=16, warmup=100, init=begin(at))
    assert any(message in str(w.message) for w in caught), [str(w.message) for w in caught]
    assert any(message in problem for problem in chains.problems())
    expected = torch.arange(16) == 3
    assert torch.equal(chains.stuck, expected)
    assert torch.equal(chains.not_finite, expected & infinite)
    if name != "in a needle-thin hole":
        assert bool(chains.diverging[3].all())
    assert bool(torch.isfinite(chains.draws).all())


def test_a_coordinate_below_float_resolution_is_named() -> None:
    """Its spread is .1 at 1e8, where float32 steps by 8; the chains move, in the other coordinate."""

    def far(x: Tensor) -> Tensor:
        return 0.5 * (x[..., 0] ** 2 + (10.0 * (x[..., 1] - 1e8)) ** 2)

    begin = torch.tensor([0.0, 1e8]).repeat(4, 1)
    with pytest.warns(ep.errors.ChainWarning, match=r"coordinate\(s\) \[1\] never changed in any chain"):
        chains = sample(ep.HMC(), energy(far, 2), chains=4, draws=100, init=begin)
    assert not bool(chains.stuck.any())
    again = sample(ep.HMC(), energy(far, 2), chains=4, draws=100, init=begin.double())
    assert not any("never changed" in problem for problem in again.problems())


def test_many_bad_chains_are_abbreviated() -> None:
    start = torch.zeros(16, 2)
    start[4:] = 1e6
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample(ep.HMC(), energy(island, 2), chains=16, init=start)
    assert "chains 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 2 more of 16 never" in str(caught[0].message)


def latent() -> None:
    pyro.sample("x", pyro.distributions.LogNormal(0.0, 1.0))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a module without event_shape": (lambda: sample(ep.HMC(), torch.nn.Identity()), "give a module an event_shape"),
    "a network with levels": (lambda: sample(ep.HMC(), ep.MLPEnergy((2,))), "pass a marginal"),
    "points that influence each other": (
        lambda: sample(ep.HMC(), energy(lambda x: 0.5 * ((x - x.mean(0)) ** 2).sum(-1), 2)),
        "depends on the points beside it",
    ),
    "chains for coordinates": (
        lambda: sample(ep.HMC(), energy(lambda x: 0.5 * (x[0] ** 2 + x[1] ** 2), 2), chains=2),
        "can't be evaluated at points",
    ),
    "a class in Pyro's kernel": (lambda: ep.PyroKernel(ep.NUTS, latent), "kernel must have init and step"),  # type: ignore[arg-type]
    "a plain function": (lambda: sample(ep.HMC(), lambda x: (x * x).sum(-1)), r"wrap it in Energy\(function"),
    "a distribution": (lambda: sample(ep.HMC(), torch.distributions.Normal(0.0, 1.0)), "a Normal is no potential"),
    "arguments for a potential": (
        lambda: ep.sample_chains(ep.HMC(), NORMAL, (3,), {"seed": 1}),
        "only a Pyro model takes arguments",
    ),
    "points for a model": (
        lambda: sample(ep.HMC(), latent, init=torch.ones(64, 1)),
        "init must be a dictionary of the model's latent sites",
    ),
    "no chains": (lambda: sample(ep.HMC(), NORMAL, chains=0), "chains must be a whole number of at least 1; got 0"),
    "no draws": (lambda: sample(ep.HMC(), NORMAL, draws=0), "draws must be a whole number of at least 1; got 0"),
    "no thinning": (lambda: sample(ep.HMC(), NORMAL, thin=0), "thin must be a whole number of at least 1; got 0"),
    "warm-up": (lambda: sample(ep.HMC(), NORMAL, warmup=-1), "warmup must be a whole number of at least 0; got -1"),
    "target": (
        lambda: ep.sample_chains(ep.HMC(), NORMAL, target_acceptance=1.5),
        "target_acceptance must lie between 0 and 1; got 1.5",
    ),
    "zero step": (lambda: sample(ep.HMC(0.0), NORMAL), "step_size must be positive"),
    "negative step": (lambda: sample(ep.NUTS(-0.1), NORMAL), "step_size must be positive"),
    "NaN step": (lambda: sample(ep.ChEES(math.nan), NORMAL), "step_size must be positive"),
    "steps of other chains": (lambda: sample(ep.HMC(torch.ones(3)), NORMAL, warmup=0), "one for each point"),
    "mass of another shape": (
        lambda: sample(ep.HMC(inverse_mass=torch.ones(3)), NORMAL),
        r"inverse_mass must have the event's shape \(2,\); got \(3,\)",
    ),
    "mass of rank and another shape": (
        lambda: sample(
            ep.NUTS(inverse_mass=ep.kernels.LowRankMass(torch.ones(3), torch.eye(3)[:, :1], torch.ones(1))), NORMAL
        ),
        r"inverse_mass must have the event's shape \(2,\); got \(3,\)",
    ),
    "negative mass": (lambda: sample(ep.HMC(inverse_mass=torch.tensor([1.0, -1.0])), NORMAL), "must be positive"),
    "ChEES alone": (lambda: sample(ep.ChEES(), NORMAL, chains=1), "got one chain: run 16 or more, or use NUTS"),
    "no kernel": (lambda: sample("NUTS", NORMAL), r"kernel must have init and step, as HMC\(\) or NUTS\(\); got"),
    "a kernel's class": (lambda: sample(ep.NUTS, NORMAL, warmup=0), r"kernel must have init and step.*NUTS\(\)"),
    "no target": (lambda: sample(ep.HMC(), 3.0), "expected a potential with an event_shape.*got float"),
    "an EBM": (
        lambda: sample(ep.HMC(), ep.RecoveryEBM(ep.MLPEnergy((2,), levels=2), ep.NoiseSchedule.cosine(2))),
        r"got the model RecoveryEBM: pass ebm.marginal\(\) for the data's, or ebm.recovery",
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


def test_an_energy_that_falls_without_end_is_said() -> None:
    with pytest.raises(EnergyPPLError, match="fall without end"):
        sample(ep.NUTS(), energy(lambda x: x.sum(-1), 2), chains=16)


def test_chains_print_a_summary() -> None:
    text = repr(sample(ep.ChEES(), NORMAL, draws=60))
    assert "64 chains of 60 draws of points (2,), by ChEES" in text
    assert "no problem noticed" in text
    assert len(text) < 400


def test_chains_that_stand_still_at_the_resolution_of_float_are_stuck() -> None:
    """At 1e8 neighbouring float32 numbers are 8 apart: every step of .1 is accepted, and none is a move."""
    far = energy(lambda x: 0.5 * ((x - 1e8) / 10.0).square().sum(-1), 2)
    start = torch.full((16, 2), 1e8)
    with pytest.warns(UserWarning, match="never or hardly moved"):
        chains = sample(ep.MALA(0.1), far, chains=16, draws=50, warmup=0, init=start)
    assert float(chains.acceptance.mean()) == 1.0
    assert bool(chains.stuck.all())
    assert not bool(chains.moved.any())
    free = sample(ep.MALA(0.1), NORMAL, chains=16, draws=40, warmup=0)
    assert bool(free.moved.double().mean() > 0.9)


def test_flat_finds_its_places_among_more_draws_than_float32_counts() -> None:
    """2 · 10⁷ draws, as 1,000 chains of 20,000 give; each is its own number, so that every place shows."""
    few = sample(ep.MALA(0.5), NORMAL, chains=2, draws=2, warmup=0)
    places = torch.arange(20_000_000, dtype=torch.float64).reshape(1000, 20_000, 1)
    found = dataclasses.replace(few, draws=places).flat(1001)["x"][:, 0]
    exact = [i * (20_000_000 - 1) // 1000 for i in range(1001)]
    assert float((found - torch.tensor(exact, dtype=torch.float64)).abs().max()) <= 1.0
    assert float(found[-1]) == 20_000_000 - 1

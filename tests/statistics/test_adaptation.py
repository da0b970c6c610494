"""Adaptation reaches the acceptance it aims at, ends, and names bad input."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.errors import InvalidInput
from energyppl.inference.adaptation.trajectory_length import LengthAdapter
from tests.support.kernels import OUTSIDE, TARGETS, energy, standard_normal

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
    tuned = ep.adapt(kernel, row.potential, start, steps=200, target_acceptance=aim).kernel
    assert type(tuned) is type(kernel)
    assert isinstance(tuned.step_size, float)
    accept = ep.sampling.run_chain(ep.MALA(tuned.step_size), row.potential, start, 50).accept_prob
    assert float(accept.mean()) == pytest.approx(aim, abs=tolerance)


def test_adaptation_of_crank_nicolson() -> None:
    """To its own target in 20 dimensions, where β must shrink; and to its largest β where every proposal is taken."""
    x = torch.randn(400, 20)
    hard = ep.potentials.RecoveryPotential(energy(lambda x: 4.0 * (x * x).sum(-1), 20), torch.zeros(400, 20), 1.0)
    tuned = ep.adapt(ep.kernels.CrankNicolson(0.9), hard, 0.3 * x).kernel
    assert isinstance(tuned.step_size, float)
    assert 0.0 < tuned.step_size < 0.9
    end = ep.sampling.run_chain(tuned, hard, 0.3 * x, 100)
    assert float(end.accept_prob.mean()) == pytest.approx(0.35, abs=0.08)
    easy = ep.potentials.RecoveryPotential(energy(lambda x: 0.5 * (x * x).sum(-1), 20), x, 1.0)
    assert ep.adapt(ep.kernels.CrankNicolson(0.1), easy, x).kernel.step_size == pytest.approx(1.0, abs=0.05)


def test_groups_have_their_own_step_sizes() -> None:
    """Groups whose targets differ by a factor of 100 in width each reach the aim; a missing number is harmless."""
    groups = torch.tensor([0, 1, 3]).repeat_interleave(300)
    widths = torch.tensor([0.05, 5.0, 0.0, 1.0])[groups][:, None]
    potential = ep.potentials.RecoveryPotential(energy(lambda x: 0.0 * x.sum(-1), 5), torch.zeros(900, 5), widths)
    start = widths * torch.randn(900, 5)
    tuned = ep.adapt(ep.MALA(0.3), potential, start, steps=200, groups=groups).kernel
    assert isinstance(tuned.step_size, Tensor)
    assert tuned.step_size.shape == (900,)
    for g in (0, 1, 3):
        assert len(tuned.step_size[groups == g].unique()) == 1
    relative = tuned.step_size / widths[:, 0]
    assert float(relative.max() / relative.min()) < 1.3
    accept = ep.sampling.run_chain(tuned, potential, start, 50).accept_prob
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
    "target 0": (
        lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, target_acceptance=0.0),
        "between 0 and 1; got 0.0",
    ),
    "target 1": (lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, target_acceptance=1.0), "between 0 and 1"),
    "target nan": (
        lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, target_acceptance=math.nan),
        "between 0 and 1",
    ),
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
}


@pytest.mark.parametrize("name", list(ADAPT_BAD))
def test_bad_input_to_adapt_is_named(name: str) -> None:
    make, message = ADAPT_BAD[name]
    with pytest.raises(InvalidInput, match=message):
        make()


# --- Hamiltonian kernels: mass, length, rescue ---


def rotated(dim: int = 20) -> tuple[ep.Energy, Tensor]:
    """A Gaussian with one wide and one narrow direction askew to the axes, and its covariance."""
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)))[0]
    spread = torch.ones(dim)
    spread[0], spread[1] = 100.0, 0.01
    precision = basis @ torch.diag(1.0 / spread) @ basis.T
    return energy(lambda x: 0.5 * ((x @ precision) * x).sum(-1), dim), basis @ torch.diag(spread) @ basis.T


@pytest.mark.parametrize("kernel", [ep.HMC(), ep.ChEES(), ep.NUTS(), ep.kernels.MALT()], ids=lambda k: type(k).__name__)
def test_masses_are_learned(kernel: Any) -> None:
    """Variances from .01 to 9 within a third, 20 % above what 200 steps of 64 chains leave to chance."""
    widths = torch.tensor([0.1, 0.5, 1.0, 3.0])
    potential = energy(lambda x: 0.5 * ((x / widths) ** 2).sum(-1), 4)
    tuned = ep.adapt(kernel, potential, torch.randn(64, 4), 200).kernel
    mass = tuned.inverse_mass
    variance = mass.variance if isinstance(mass, ep.kernels.LowRankMass) else mass
    assert torch.allclose(variance.log(), (widths**2).log(), atol=0.3)


def test_a_mass_of_low_rank_is_learned() -> None:
    """Wide and narrow directions are found, so that steps are many times as long as with a diagonal."""
    potential, covariance = rotated()
    start = torch.linalg.cholesky(covariance) @ torch.randn(64, 20, 1)
    steps = {
        mass: float(ep.adapt(ep.ChEES(), potential, start[..., 0], 200, mass=mass).kernel.step_size)
        for mass in (ep.kernels.low_rank_mass, ep.kernels.diagonal_mass, ep.kernels.identity_mass)
    }
    assert steps[ep.kernels.low_rank_mass] > 3.0 * steps[ep.kernels.diagonal_mass]
    kernel = ep.adapt(ep.ChEES(), potential, start[..., 0], 200).kernel
    assert isinstance(kernel.inverse_mass, ep.kernels.LowRankMass)
    learned = kernel.inverse_mass.stretched(torch.eye(20)) * kernel.inverse_mass.variance.sqrt()
    ratio = torch.linalg.eigvals(torch.linalg.solve(covariance, learned.T @ learned)).real
    assert float(ratio.max() / ratio.min()) < 20.0  # of 10,000 before


def test_trajectories_are_as_long_as_slow_coordinates_need() -> None:
    """Without a mass, the length grows with the widest coordinate; more effective samples a gradient than MALA-like."""
    lengths = []
    for wide in (1.0, 5.0):
        widths = torch.tensor([1.0, wide])
        potential = energy(lambda x: 0.5 * ((x / widths) ** 2).sum(-1), 2)  # noqa: B023
        runs = [
            ep.adapt(ep.ChEES(), potential, torch.randn(64, 2) * widths, 300, mass=ep.kernels.identity_mass)
            for _ in range(3)
        ]
        lengths.append(sorted(run.kernel.length for run in runs)[1])  # the middle one: one run may still be on its way
    assert 0.8 < lengths[0] < 4.0
    assert lengths[1] > 2.5 * lengths[0]


@pytest.mark.parametrize("steps_for_a_moment", [0.7, 7.0, 70.0])
def test_a_step_size_that_is_large_for_a_moment_does_not_raise_the_length(steps_for_a_moment: float) -> None:
    """Nor lower it below one step: a trajectory of less than a step is the same one."""
    potential, x = standard_normal(2), torch.randn(64, 2)
    kernel, adapter = ep.ChEES(step_size=0.5, length=1.4), LengthAdapter(1.4)
    proposal = kernel.propose(potential, kernel.init(potential, x), 1.0)
    adapter.update(x, proposal, kernel.with_step_size(steps_for_a_moment), 1.0)
    assert 0.7 <= adapter.length(100.0) <= 1.4 * math.exp(0.36)  # one move of the ascent at most


@pytest.mark.parametrize("kernel", [ep.MALA(0.5), ep.HMC(), ep.ChEES(), ep.NUTS()], ids=lambda k: type(k).__name__)
def test_chains_begun_on_a_cliff_are_rescued(kernel: Any) -> None:
    """A Gumbel's wall e^{−x}: at x = −12, where a tenth begin, no step that suits the others is ever accepted."""
    start = torch.cat([torch.full((40, 1), -12.0), TARGETS["Gumbel"].draw(360)])
    adaptation = ep.adapt(kernel, TARGETS["Gumbel"].potential, start, 200)
    assert bool((adaptation.state.x[:40] > -4.0).all())
    plain = ep.sampling.run_chain(adaptation.kernel, TARGETS["Gumbel"].potential, start, 200)
    assert float((plain.state.x[:40] < -10.0).double().mean()) > 0.5  # which the tuned kernel alone leaves behind


def test_what_an_adaptation_did() -> None:
    found = ep.adapt(ep.HMC(steps=3, jitter=0.0), standard_normal(3), torch.randn(10, 3), 50)
    assert found.step_sizes.shape == found.acceptance.shape == found.diverging.shape == (50,)
    assert found.gradients == 150.0
    assert found.state.x.shape == (10, 3)


COMPOSITE: dict[str, Any] = {
    "cycle": ep.kernels.Cycle(ep.MALA(1e-3), ep.HMC(1e-3)),
    "mixture": ep.kernels.Mixture(ep.MALA(1e-3), ep.NUTS(1e-3), weights=(1, 3)),
    "blocks": ep.kernels.Cycle(*(ep.kernels.Block(ep.MALA(1e-3), free) for free in (torch.eye(2) > 0).unbind())),
    "tempered": ep.kernels.Tempered(ep.HMC(1e-3), (1.0, 0.3)),
}


@pytest.mark.parametrize("name", list(COMPOSITE))
def test_kernels_of_kernels_are_tuned_part_by_part(name: str) -> None:
    kernel = COMPOSITE[name]
    found = ep.adapt(kernel, TARGETS["correlated Gaussian"].potential, torch.randn(50, 2), 200)
    assert type(found.kernel) is type(kernel)
    _, info = found.kernel.step(TARGETS["correlated Gaussian"].potential, found.state)
    run = ep.sampling.run_chain(found.kernel, TARGETS["correlated Gaussian"].potential, found.state.x, 50)
    assert 0.5 < float(run.accept_prob.mean()) < 0.95
    assert info.accept_prob.shape == (50,)
    if name == "tempered":
        assert found.kernel.kernel.step_size.shape == (2, 1)
        assert found.kernel.kernel.step_size[1] > 1.2 * found.kernel.kernel.step_size[0]  # hotter, so longer


def test_tempering_crosses_between_modes_that_hmc_does_not() -> None:
    """Two modes 12 standard deviations apart, all chains begun in one: half of the tempered ones end in the other.

    The share in the second mode of 200 chains is .5 ± .035, so .3 to .7 is 5.7 standard errors.
    """
    potential = ep.toys.GaussianMixture(torch.tensor([[-3.0], [3.0]]), torch.full((2, 1, 1), 0.25), torch.ones(2))
    start = -3.0 + 0.5 * torch.randn(200, 1)
    kernel = ep.kernels.Tempered(ep.HMC(0.3, 5), (1.0, 0.4, 0.15, 0.05))
    tempered = ep.sampling.run_chain(kernel, potential, start, 300).state.x
    plain = ep.sampling.run_chain(ep.HMC(0.3, 5), potential, start, 300).state.x
    assert 0.3 < float((tempered > 0).double().mean()) < 0.7
    assert float((plain > 0).double().mean()) < 0.05


def test_a_tempered_warm_up_counts_the_gradients_of_all_replicas() -> None:
    kernel = ep.kernels.Tempered(ep.HMC(0.3, 5), (1.0, 0.4, 0.15, 0.05))
    tuned = ep.adapt(kernel, standard_normal(2), torch.randn(16, 2), 20)
    assert tuned.gradients >= 20 * 4 * 5


HAMILTONIAN_BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "mass of another shape": (
        lambda: ep.sampling.run_chain(ep.HMC(inverse_mass=torch.ones(3)), standard_normal(2), START, 1),
        r"inverse_mass must have the event's shape \(2,\); got \(3,\)",
    ),
    "negative mass": (lambda: ep.NUTS(inverse_mass=-torch.ones(2)), "inverse_mass must be positive"),
    "mass of another kind": (lambda: ep.HMC(inverse_mass=2.0), "inverse_mass must be None, a tensor"),  # type: ignore[arg-type]
    "directions askew": (
        lambda: ep.kernels.LowRankMass(torch.ones(2), torch.ones(2, 1), torch.ones(1)),
        "directions must be orthonormal",
    ),
    "step sizes of other chains": (
        lambda: ep.sampling.run_chain(ep.HMC(torch.ones(3)), standard_normal(2), START, 1),
        "must be one number or one for each point",
    ),
    "no steps": (lambda: ep.HMC(steps=0), "steps must be a whole number"),
    "jitter of one": (lambda: ep.HMC(jitter=1.0), "jitter must lie in"),
    "length 0": (lambda: ep.ChEES(length=0.0), "length must be positive"),
    "friction below 0": (lambda: ep.kernels.MALT(friction=-1.0), "friction must be zero or above"),
    "no doubling": (lambda: ep.NUTS(max_depth=0), "max_depth must be"),
    "forces in float64": (lambda: ep.HMC(force_dtype=torch.float64), "force_dtype must be None, torch.bfloat16"),
    "one chain": (lambda: ep.adapt(ep.ChEES(), standard_normal(2), START[:1]), "got one chain"),
    "no kernels": (lambda: ep.kernels.Cycle(), "Cycle needs at least one kernel"),
    "weights": (lambda: ep.kernels.Mixture(ep.MALA(0.1), weights=(1.0, 2.0)), "weights must be as many as kernels"),
    "tempered in a cycle": (
        lambda: ep.kernels.Cycle(ep.kernels.Tempered(ep.MALA(0.1)), ep.MALA(0.1)),
        "a Tempered can't be a part of Cycle",
    ),
    "tempered in a block": (
        lambda: ep.kernels.Block(ep.kernels.Tempered(ep.MALA(0.1)), torch.ones(2) > 0),
        "a Tempered can't be a part of Block",
    ),
    "a cycle's target": (
        lambda: ep.adapt(ep.kernels.Cycle(ep.MALA(0.1)), standard_normal(2), START, target_acceptance=17.0),
        "target_acceptance must lie between 0 and 1",
    ),
    "a cycle's groups": (
        lambda: ep.adapt(ep.kernels.Cycle(ep.MALA(0.1)), standard_normal(2), START, groups=torch.zeros(4).long()),
        "groups can't be given for a Cycle",
    ),
    "MALA's step sizes of other chains": (
        lambda: ep.sampling.run_chain(ep.MALA(torch.ones(3)), standard_normal(2), START, 1),
        "must be one number or one for each point",
    ),
    "betas rise": (lambda: ep.kernels.Tempered(ep.MALA(0.1), (1.0, 1.5)), "betas must begin at 1 and fall"),
    "betas to 0": (lambda: ep.kernels.Tempered(ep.MALA(0.1), (1.0, 0.0)), "betas that reach 0 need a base"),
}


@pytest.mark.parametrize("name", list(HAMILTONIAN_BAD))
def test_bad_hamiltonian_kernels_are_named(name: str) -> None:
    make, message = HAMILTONIAN_BAD[name]
    with pytest.raises(InvalidInput, match=message):
        make()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 12, 20])
@pytest.mark.parametrize("kernel", [ep.HMC(), ep.ChEES(), ep.NUTS(), ep.kernels.MALT()], ids=lambda k: type(k).__name__)
def test_any_number_of_steps_will_do(kernel: Any, steps: int) -> None:
    found = ep.adapt(kernel, standard_normal(2), torch.randn(8, 2), steps)
    assert len(found.acceptance) == steps


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_cycle_takes_as_many_steps_as_it_is_given(steps: int) -> None:
    found = ep.adapt(ep.kernels.Cycle(ep.MALA(0.1), ep.HMC(), ep.NUTS()), standard_normal(2), torch.randn(8, 2), steps)
    assert len(found.acceptance) == steps


@pytest.mark.parametrize("kernel", [ep.HMC(), ep.NUTS(), ep.ChEES()], ids=lambda k: type(k).__name__)
def test_chains_begun_outside_do_not_shrink_the_step(kernel: Any) -> None:
    """Half of the chains begin where the energy is infinite: the others' first step size is what counts."""
    half = energy(lambda x: torch.where(x > -1.0, 0.5 * x * x, math.inf).sum(-1))
    start = torch.cat([torch.rand(32, 1), torch.full((32, 1), -3.0)])
    assert float(ep.adapt(kernel, half, start, 60).kernel.step_size) > 1e-3


@pytest.mark.parametrize("kind", [ep.MALA, ep.HMC, ep.kernels.MALT, ep.NUTS])
def test_a_chain_begun_at_infinite_energy_may_leave(kind: Any) -> None:
    wall = energy(lambda x: torch.where((x.abs() < 2).all(-1), 0.0 * x.sum(-1), math.inf), 2)
    end = ep.sampling.run_chain(kind(0.5), wall, torch.full((50, 2), 2.1), 200)
    assert float(torch.isfinite(end.state.energy).double().mean()) > 0.9


def test_low_rank_masses_follow_the_points() -> None:
    mass = ep.kernels.LowRankMass(torch.ones(2), torch.tensor([[1.0], [0.0]]), torch.tensor([2.0]))
    potential = energy(lambda x: 0.5 * (x * x).sum(-1), 2)
    assert ep.sampling.run_chain(ep.HMC(inverse_mass=mass), potential, START.double(), 2).state.x.dtype == torch.float64


def bell(size: int) -> ep.Energy:
    return ep.Energy(lambda x: 0.5 * x.square().sum(-1), (size,))


@pytest.mark.parametrize("steps", [1, 3, 5, 6, 7, 9, 11, 14])
@pytest.mark.parametrize("kernel", [ep.HMC(), ep.NUTS(), ep.ChEES()])
def test_a_short_warm_up_leaves_chains_that_move(kernel: Any, steps: int) -> None:
    """Of N(0, I): a step size of a few average steps, the first of which jump far, is one that nothing accepts."""
    chains = ep.sample_chains(kernel, bell(2), chains=32, draws=30, warmup=steps, progress=False)
    assert float(chains.acceptance.mean()) > 0.3

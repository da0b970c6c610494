"""What every kernel does with walls, shapes, seeds and bad input."""

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
from tests.support.kernels import CHAINS, KERNELS, OUTSIDE, TARGETS, energy, standard_normal, tilted

# --- Walls, divergences ---


@pytest.mark.parametrize("kernel", ["MALA", "Langevin", "Crank-Nicolson"])
@pytest.mark.parametrize("name", list(OUTSIDE))
def test_a_proposal_that_is_not_finite_is_rejected_and_flagged(name: str, kernel: str) -> None:
    wall = energy(OUTSIDE[name], 2)
    if kernel == "Crank-Nicolson":
        if name == "NaN gradient alone":
            pytest.skip("it looks at no gradient")
        wall = ep.potentials.RecoveryPotential(wall, torch.zeros(2), 2.0)  # type: ignore[assignment]
    mover: Any = {"MALA": ep.MALA(0.7), "Langevin": ep.Langevin(0.7), "Crank-Nicolson": ep.kernels.CrankNicolson()}[
        kernel
    ]
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
    chain = ep.sampling.run_chain(ep.MALA(0.01), wall, start, 5)
    assert chain.diverging.tolist() == [False, True]  # the second one has begun where no energy is
    assert chain.accept_prob.tolist() == pytest.approx([1.0, 0.0])
    assert torch.equal(chain.state.x[1], start[1])


def test_an_explosion_ends_in_rejections_and_not_in_numbers() -> None:
    """ULA with far too long a step on a quartic leaves for infinity; it must stop at the last finite point."""
    quartic = energy(lambda x: (x**4).sum(-1))
    chain = ep.sampling.run_chain(ep.Langevin(3.0), quartic, torch.randn(50, 1), 100)
    assert bool(torch.isfinite(chain.state.x).all())
    assert bool(chain.diverging.any())
    calm = ep.sampling.run_chain(ep.MALA(3.0), quartic, torch.randn(50, 1), 100)
    assert float(calm.state.x.abs().max()) < 5.0


# --- Values ---

FROZEN = [ep.MALA(0.1), ep.Langevin(0.1), ep.kernels.CrankNicolson(0.1), ep.kernels.CrankNicolsonLangevin(0.1)]


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
    tilt = ep.potentials.RecoveryPotential(potential, torch.zeros(3, 2), 1.0)
    for cls, on in ((ep.MALA, potential), (ep.Langevin, potential), (ep.kernels.CrankNicolson, tilt)):
        sizes = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        torch.manual_seed(0)
        together = ep.sampling.run_chain(cls(sizes), on, start, 5).state.x  # type: ignore[arg-type]
        assert together.dtype == torch.float32
        for i, size in enumerate(sizes.tolist()):
            torch.manual_seed(0)
            alone = ep.sampling.run_chain(cls(size), on, start, 5).state.x  # type: ignore[arg-type]
            torch.testing.assert_close(together[i], alone[i])


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_a_run_is_repeatable_bit_for_bit(kernel: str) -> None:
    make, wants_tilt, _ = KERNELS[kernel]
    target = TARGETS["banana"]
    on = tilted(target) if wants_tilt else target.potential
    start, runs = target.draw(CHAINS), []
    for _ in range(2):
        pyro.set_rng_seed(11)
        runs.append(ep.sampling.run_chain(make(target), on, start, 5))
    assert torch.equal(runs[0].state.x, runs[1].state.x)
    assert torch.equal(runs[0].accept_prob, runs[1].accept_prob)
    assert not torch.equal(runs[0].state.x, ep.sampling.run_chain(make(target), on, start, 5).state.x)


@pytest.mark.parametrize("batch", [(), (3,), (3, 4)])
@pytest.mark.parametrize("event", [(), (2,), (1, 2, 2)])
def test_batches_and_events_of_any_shape(event: tuple[int, ...], batch: tuple[int, ...]) -> None:
    def function(x: Tensor) -> Tensor:
        return 0.5 * (x * x).flatten(x.dim() - len(event)).sum(-1) if event else 0.5 * x * x

    potential = ep.Energy(function, torch.Size(event))
    tilt = ep.potentials.RecoveryPotential(potential, torch.zeros((*batch, *event)), 1.0)
    for kernel in FROZEN:
        start = torch.randn((*batch, *event))
        chain = ep.sampling.run_chain(kernel, tilt, start, 3)
        assert chain.state.x.shape == start.shape
        assert chain.state.energy.shape == chain.accept_prob.shape == chain.diverging.shape == torch.Size(batch)
        torch.testing.assert_close(chain.state.energy, tilt(chain.state.x))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "points": (lambda: ep.MALA(0.1).init(standard_normal(2), torch.zeros(3, 4)), r"x must end in event_shape \(2,\)"),
    "whole numbers": (lambda: ep.MALA(0.1).init(standard_normal(2), torch.zeros(3, 2).long()), "floating point"),
    "no steps": (
        lambda: ep.sampling.run_chain(ep.MALA(0.1), standard_normal(2), torch.zeros(3, 2), 0),
        "at least 1; got 0",
    ),
    "beta": (lambda: ep.kernels.CrankNicolson(1.5), r"must lie in \(0, 1\]; got 1.5"),
    "reference": (lambda: ep.kernels.CrankNicolson(reference_scale=0.0), "reference_scale must be positive"),
    "no tilt": (
        lambda: ep.kernels.CrankNicolson().init(standard_normal(2), torch.zeros(3, 2)),
        "moves on a RecoveryPotential; got Energy: use MALA",
    ),
    "tilt inside": (
        lambda: ep.kernels.CrankNicolson().init(
            ep.potentials.Scaled(tilted(TARGETS["banana"]), 2.0), torch.zeros(3, 2)
        ),
        "got Scaled",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(InvalidInput, match=message):
        make()


def test_a_langevin_kernel_is_adjusted_with_the_same_proposals() -> None:
    adjusted = ep.Langevin(0.1, force_dtype=torch.bfloat16).adjusted()
    assert (adjusted.step_size, adjusted.force_dtype) == (0.1, torch.bfloat16)

"""Particles on an annealing path: the energies of both ends that they keep, and what these cost."""

import math
from typing import Any

import pytest
import torch

import energyppl as ep
from energyppl.inference.normalizing.particles import Particles
from tests.support.gradients import counted
from tests.support.networks import net

WIDE = ep.potentials.GaussianBase(torch.zeros(2), torch.full((2,), 2.0))
BETAS = (0.005, 0.3, 0.9, 1.0)
KERNELS = {
    "MALA": ep.MALA(0.5),
    "MALA, bfloat16": ep.MALA(0.5, force_dtype=torch.bfloat16),
    "HMC": ep.HMC(0.3, steps=3),
    "NUTS": ep.NUTS(0.3),
}


def moved(kernel: Any, target: Any) -> Particles:
    torch.manual_seed(0)
    particles = Particles(WIDE, target, kernel, WIDE.sample(50))
    for beta in BETAS:
        assert 0.0 < float(particles.move(beta, 0.3)) <= 1.0
    return particles


@pytest.mark.parametrize("name", KERNELS)
def test_kept_energies_are_those_of_where_the_particles_are(name: str) -> None:
    target = ep.potentials.Scaled(net(), 0.5)
    particles = moved(KERNELS[name], target)
    expected = [*ep.energy_and_grad(WIDE, particles.x), *ep.energy_and_grad(target, particles.x)]
    off = 1e-3 if "bfloat16" in name else 1e-4  # of gradients in that arithmetic; else rounding, divided by β
    for kept, fresh in zip(particles.parts, expected, strict=True):
        torch.testing.assert_close(kept, fresh, rtol=off, atol=off)
    with pytest.raises(AssertionError, match="not close"):  # negative control
        torch.testing.assert_close(particles.parts.target, expected[2].flip(0), rtol=off, atol=off)


def test_a_move_of_mala_evaluates_each_end_once(monkeypatch: pytest.MonkeyPatch) -> None:
    particles = Particles(WIDE, net(), ep.MALA(0.5), WIDE.sample(50))
    calls: dict[str, list[int]] = {"base": [], "target": []}
    for name, counts in calls.items():
        end = getattr(particles, name)
        monkeypatch.setattr(end, "evaluate", counted(end.evaluate, counts))
    for beta in BETAS:
        particles.move(beta, 0.3)
    assert {name: len(counts) for name, counts in calls.items()} == dict.fromkeys(calls, len(BETAS))
    assert particles.evaluations == 50 * (1 + len(BETAS))


def test_the_end_of_a_path_needs_no_base() -> None:
    """At β = 1 an energy of the base that is infinite has no weight."""
    plane = torch.Size((2,))
    inside = ep.Energy(lambda x: torch.where((x.abs() < 1.0).all(-1), 0.0 * x.sum(-1), math.inf), plane)
    target = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), plane)
    particles = Particles(inside, target, ep.MALA(0.5), torch.rand(200, 2))
    for _ in range(10):
        particles.move(1.0, 0.7)
    assert bool((particles.x.abs() > 1.0).any())
    torch.testing.assert_close(particles.parts.target, target(particles.x))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_run_goes_on_with_the_energies_of_another_ones_end(reverse: bool) -> None:
    target, kernel = ep.potentials.Scaled(net(), 0.5), ep.MALA(0.3)
    schedule = ep.normalizing.pilot_run(WIDE, target, WIDE.sample(64), kernel, betas=(0.0, 0.5, 1.0)).schedule
    x = WIDE.sample(64)
    start = ep.energy_and_grad(target if reverse else WIDE, x)

    def run(begin: Any) -> ep.normalizing.Weights:
        torch.manual_seed(1)
        return ep.normalizing.anneal(WIDE, target, schedule, x, kernel, reverse=reverse, begin=begin, goes_on=True)

    anew, given = run(None), run(start)
    assert torch.equal(anew.log_weights, given.log_weights)
    for kept, fresh in zip(given.end, ep.energy_and_grad(WIDE if reverse else target, given.x), strict=True):
        torch.testing.assert_close(kept, fresh, rtol=1e-4, atol=1e-4)
    assert not torch.equal(anew.log_weights, run((start[0] + 1.0, start[1])).log_weights)  # negative control

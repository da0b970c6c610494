"""Adaptation reaches the acceptance it aims at, ends, and names bad input."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.errors import InvalidInput
from tests.test_kernel_contract import OUTSIDE
from tests.test_kernels import TARGETS, HalfSquaredMALA, energy, standard_normal

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
    tuned = ep.adapt(kernel, row.potential, start, steps=200, target=aim).kernel
    assert type(tuned) is type(kernel)
    assert isinstance(tuned.step_size, float)
    accept = ep.run_chain(ep.MALA(tuned.step_size), row.potential, start, 50).accept_prob
    assert float(accept.mean()) == pytest.approx(aim, abs=tolerance)


def test_adaptation_of_crank_nicolson() -> None:
    """To its own target in 20 dimensions, where β must shrink; and to its largest β where every proposal is taken."""
    x = torch.randn(400, 20)
    hard = ep.Tethered(energy(lambda x: 4.0 * (x * x).sum(-1), 20), torch.zeros(400, 20), 1.0)
    tuned = ep.adapt(ep.CrankNicolson(0.9), hard, 0.3 * x).kernel
    assert isinstance(tuned.step_size, float)
    assert 0.0 < tuned.step_size < 0.9
    end = ep.run_chain(tuned, hard, 0.3 * x, 100)
    assert float(end.accept_prob.mean()) == pytest.approx(0.35, abs=0.08)
    easy = ep.Tethered(energy(lambda x: 0.5 * (x * x).sum(-1), 20), x, 1.0)
    assert ep.adapt(ep.CrankNicolson(0.1), easy, x).kernel.step_size == pytest.approx(1.0, abs=0.05)


def test_groups_have_their_own_step_sizes() -> None:
    """Groups whose targets differ by a factor of 100 in width each reach the aim; a missing number is harmless."""
    groups = torch.tensor([0, 1, 3]).repeat_interleave(300)
    widths = torch.tensor([0.05, 5.0, 0.0, 1.0])[groups][:, None]
    potential = ep.Tethered(energy(lambda x: 0.0 * x.sum(-1), 5), torch.zeros(900, 5), widths)
    start = widths * torch.randn(900, 5)
    tuned = ep.adapt(ep.MALA(0.3), potential, start, steps=200, groups=groups).kernel
    assert isinstance(tuned.step_size, Tensor)
    assert tuned.step_size.shape == (900,)
    for g in (0, 1, 3):
        assert len(tuned.step_size[groups == g].unique()) == 1
    relative = tuned.step_size / widths[:, 0]
    assert float(relative.max() / relative.min()) < 1.3
    accept = ep.run_chain(tuned, potential, start, 50).accept_prob
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
    "target 0": (lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, target=0.0), "between 0 and 1; got 0.0"),
    "target 1": (lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, target=1.0), "between 0 and 1"),
    "target nan": (lambda: ep.adapt(ep.MALA(0.1), standard_normal(2), START, target=math.nan), "between 0 and 1"),
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
    "another kernel": (
        lambda: ep.adapt(HalfSquaredMALA(0.1), standard_normal(2), START),
        "adapt tunes the kernels of energyppl; got HalfSquaredMALA",
    ),
}


@pytest.mark.parametrize("name", list(ADAPT_BAD))
def test_bad_input_to_adapt_is_named(name: str) -> None:
    make, message = ADAPT_BAD[name]
    with pytest.raises(InvalidInput, match=message):
        make()

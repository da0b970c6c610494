"""Bound potentials: right for as long as nothing changes, and every change is seen by the next binding."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import energyppl as ep
from energyppl.autodiff import bind, bound, tracing, unbound
from energyppl.autodiff.gradient import eager_energy_and_grad, energy_and_grad
from energyppl.autodiff.structure import ModuleFingerprint
from tests.support.changes import CHANGES, WRAPPED, WRAPS, Switched, new_weights
from tests.support.gradients import counted, require_equal, require_traced
from tests.support.networks import FREE, NOISY, QUADRATIC, Net, mlp, net

CASES = [(c, "module") for c in CHANGES] + [(c, w) for w in list(WRAPS)[1:] for c in WRAPPED]


def changeable() -> Net:
    return Net(nn.Sequential(*mlp(nn.SiLU), Switched()))


@pytest.mark.parametrize(("change", "wrap"), CASES)
def test_a_change_is_seen_without_binding_and_by_the_next_binding(change: str, wrap: str) -> None:
    module = changeable()
    potential, x = WRAPS[wrap](module), torch.randn(5, 2)
    before = energy_and_grad(potential, x)
    require_equal(bind(potential), x)
    require_traced(potential, x)
    CHANGES[change](module)
    require_equal(potential, x)
    require_equal(bind(potential), x)
    require_traced(potential, x)
    after = energy_and_grad(potential, x)
    assert not torch.allclose(after[0], before[0], atol=1e-4), "the change must matter for this test to say anything"


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_between_two_runs_is_seen(change: str) -> None:
    module, x = changeable(), torch.randn(5, 2)
    for _ in range(2):
        state = ep.sampling.run_chain(ep.MALA(0.1), module, x, 2).state
        expected, expected_grad = eager_energy_and_grad(module, state.x)
        torch.testing.assert_close(state.energy, expected, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(state.grad, expected_grad, rtol=1e-4, atol=2e-5)
        CHANGES[change](module)


@pytest.mark.parametrize("change", ["number", "another Parameter"])
def test_traces_that_take_no_fingerprint_fail_the_checks_above(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a trace of a module that was other then is served, and that is seen."""
    monkeypatch.setattr(ModuleFingerprint, "changed", lambda self: False)
    module, x = net(), torch.randn(5, 2)
    require_equal(module, x)
    CHANGES[change](module)
    with pytest.raises(AssertionError, match="not close"):
        require_equal(module, x)


def test_a_potential_bound_before_a_change_fails_the_checks_above() -> None:
    """Negative control: what it holds is of the weights at its first evaluation, as documented."""
    module, x = net(), torch.randn(5, 2)
    held = bind(module)
    require_equal(held, x)
    new_weights(module)
    with pytest.raises(AssertionError, match="not close"):
        require_equal(held, x)


def test_a_bound_potential_runs_its_prologue_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folds: list[int] = []
    module, x = net(), torch.randn(5, 2)
    energy_and_grad(module, x)  # traced and compared
    monkeypatch.setattr(bound._Traced, "_fold", counted(bound._Traced._fold, folds))
    held = bind(module)
    for _ in range(5):
        energy_and_grad(held, x)
    assert len(folds) == 1
    for _ in range(5):
        energy_and_grad(module, x)
    assert len(folds) == 6
    ep.sampling.run_chain(ep.MALA(0.1), module, x, 7)
    assert len(folds) == 7


def test_binding_keeps_what_a_potential_is() -> None:
    potential = ep.potentials.RecoveryPotential(net(), torch.ones(5, 2), 0.5)
    held, x = bind(potential), torch.randn(5, 2)
    assert bind(held) is held
    assert unbound(held) is potential
    assert unbound(potential) is potential
    assert isinstance(held, ep.potentials.Potential)
    assert held.event_shape == potential.event_shape
    torch.testing.assert_close(held(x), potential(x))
    gradient = torch.autograd.grad(held(x).sum(), list(potential.potential.parameters())[:1])  # type: ignore[attr-defined]
    assert bool(gradient[0].any()), "called, a bound potential is differentiable in its parameters"


AROUND: dict[str, Callable[[Any], Any]] = {
    "Sum": lambda p: ep.potentials.Sum(p, QUADRATIC),
    "Scaled": lambda p: ep.potentials.Scaled(p, torch.linspace(0.1, 1.0, 6)),
    "Bridge": lambda p: ep.potentials.Bridge(QUADRATIC, p, 0.3),
    "Bridge from it": lambda p: ep.potentials.Bridge(p, QUADRATIC, 0.3),
    "Conditioned": lambda p: ep.potentials.Conditioned(p, NOISY, FREE),
    "RecoveryPotential": lambda p: ep.potentials.RecoveryPotential(p, NOISY, 0.5),
    "Affine": lambda p: ep.potentials.Affine(p, torch.ones(2), torch.tensor([[1.0, 0.0], [0.5, 2.0]])),
}


@pytest.mark.parametrize("name", AROUND)
def test_potentials_around_a_bound_one_are_traced_as_around_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    module = net()
    around = AROUND[name](bind(module))
    x = torch.randn(6, *around.event_shape)
    plain = energy_and_grad(AROUND[name](module), x)
    monkeypatch.setattr(tracing, "record", counted(tracing.record, made))
    for one, other in zip(energy_and_grad(bind(around), x), plain, strict=True):
        assert torch.equal(one, other)
    assert not made, "the structure is the same, and so is the trace"
    require_equal(around, x)
    require_traced(around, x)
    new_weights(module)
    require_equal(around, x)  # it is not bound itself


KERNELS: dict[str, Any] = {
    "Langevin": ep.Langevin(0.3),
    "MALA, bfloat16": ep.MALA(0.3, torch.bfloat16),
    "HMC": ep.HMC(0.3, 4),
    "NUTS": ep.NUTS(0.3, max_depth=3),
    "Crank–Nicolson": ep.kernels.CrankNicolson(0.5),
    "Crank–Nicolson Langevin": ep.kernels.CrankNicolsonLangevin(0.5),
    "Cycle": ep.kernels.Cycle(ep.MALA(0.3), ep.HMC(0.3, 2)),
    "Block": ep.kernels.Block(ep.MALA(0.3), FREE),
    "Tempered": ep.kernels.Tempered(ep.MALA(0.3), (1.0, 0.5)),
    "Tempered, with a base": ep.kernels.Tempered(ep.HMC(0.3, 2), (1.0, 0.0), QUADRATIC),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_does_the_same_on_a_bound_potential(name: str) -> None:
    potential = ep.potentials.RecoveryPotential(net(), NOISY, 0.5)
    ends = []
    for on in (potential, bind(potential)):
        torch.manual_seed(0)
        state = KERNELS[name].init(on, NOISY)
        for _ in range(3):
            state, _ = KERNELS[name].step(on, state)
        ends.append(state)
    for one, other in zip(ends[0][:3], ends[1][:3], strict=True):
        assert torch.equal(one, other)
    if name != "MALA, bfloat16":
        torch.testing.assert_close(ends[1].energy, potential(ends[1].x), rtol=1e-4, atol=2e-5)


def test_ids_of_dead_objects_do_not_hide_a_change() -> None:
    """A value is replaced many times; one of the new objects may live where the traced one lived."""
    module, x = net(), torch.randn(5, 2)
    for size in range(6):
        module.many = [float(size), {"deep": 1.0}]
        module.body[4] = nn.Linear(16, 1)
        require_equal(module, x)


def test_weights_changed_between_different_callers_of_one_network() -> None:
    module, x = net(), torch.randn(5, 2)
    first, second = ep.potentials.RecoveryPotential(module, x, 1.0), ep.potentials.RecoveryPotential(module, 2 * x, 1.0)
    for potential in (first, second):
        require_equal(potential, x)
    new_weights(module)
    for potential in (second, first):
        require_equal(potential, x)


def test_tensors_of_a_value_written_in_place_are_seen() -> None:
    center, sigma, x = torch.zeros(5, 2), torch.ones(5, 1), torch.randn(5, 2)
    potential = ep.potentials.RecoveryPotential(net(), center, sigma)
    require_equal(potential, x)
    center += 1.0
    sigma *= 3.0
    require_equal(potential, x)
    require_traced(potential, x)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["copied", "pickled"])
def test_a_bound_potential_is_copied_and_pickled_as_what_it_was_made_from(again: Callable[[Any], Any]) -> None:
    base = ep.potentials.GaussianBase(torch.zeros(2), torch.ones(2))
    x, potential = torch.randn(5, 2), bind(base)
    expected = energy_and_grad(potential, x)
    other = again(potential)
    assert isinstance(other, bound.BoundPotential)
    assert type(unbound(other)) is type(base)
    torch.testing.assert_close(energy_and_grad(other, x), expected)

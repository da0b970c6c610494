"""Traces: when one is made, what is left to eager autograd, and what stays in memory."""

import gc
import weakref
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.autodiff import bound, tracing
from energyppl.autodiff.gradient import eager_energy_and_grad, energy_and_grad, energy_only
from energyppl.autodiff.program import Program
from energyppl.models import MLPEnergy
from tests.support.gradients import counted, require_eager, require_equal, require_traced
from tests.support.networks import FALLBACKS, QUADRATIC, TABLE, Branching, Counting, Reading, Thawed, net


def test_a_new_tilt_level_or_batch_takes_the_old_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(tracing, "record", counted(tracing.record, made))
    network = MLPEnergy((2,), hidden=8)
    for t in range(6):
        at = ep.potentials.AtLevel(network, torch.full((5,), t), torch.Size((2,)))
        require_equal(ep.potentials.RecoveryPotential(at, torch.randn(5, 2), torch.rand(5, 1) + 0.1), torch.randn(5, 2))
    assert len(made) == 2  # one with the gradient, one of the energy alone
    require_equal(ep.potentials.RecoveryPotential(at, torch.randn(5, 2), 0.5), torch.randn(5, 2))
    assert len(made) == 4  # another structure, so that the counter is known to count


@pytest.mark.parametrize("level", [2, torch.tensor([0, 3, 1, 2, 2])], ids=["one level", "a level each"])
@pytest.mark.parametrize(
    "network",
    [
        ep.MLPEnergy((5,), hidden=8),
        ep.ConvEnergy((1, 8, 8), width=8, continuous=True),
        ep.models.networks.UNetEnergy((1, 8, 8)),
    ],
    ids=lambda network: type(network).__name__,
)
def test_continuous_networks_are_traced(network: nn.Module, level: int | Tensor) -> None:
    """A table of log-SNRs indexed by a tensor of one level reads its value, and a trace would freeze it."""
    ebm = ep.RecoveryEBM(network, ep.NoiseSchedule.cosine(levels=4, log_snr_min=-6.0))
    x = torch.randn(5, *ebm.event_shape)
    require_traced(ebm.potential(level), x)
    require_equal(ebm.potential(level), x)


@pytest.mark.parametrize("name", list(FALLBACKS))
def test_what_no_trace_can_serve_is_left_to_eager(name: str) -> None:
    """The same numbers, the same random numbers used up, and the same state of the module after every call."""
    ours, theirs = FALLBACKS[name](), FALLBACKS[name]()
    if isinstance(ours, nn.Module):
        theirs.load_state_dict(ours.state_dict())
    for i in range(5):
        x = torch.randn(5, 2) - 0.5 + 0.25 * i
        torch.manual_seed(i)
        energy, grad = energy_and_grad(ours, x)
        state = torch.get_rng_state()
        torch.manual_seed(i)
        expected, expected_grad = eager_energy_and_grad(theirs, x)
        torch.testing.assert_close(energy, expected)
        torch.testing.assert_close(grad, expected_grad)
        assert torch.equal(state, torch.get_rng_state())
        if isinstance(ours, nn.Module):
            torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        require_eager(ours, x)


def test_a_changed_field_value_or_closure_is_seen_by_eager() -> None:
    thawed, x, strength = Thawed(1.0), torch.randn(5, 2), 1.0
    reading = Reading()

    def function(x: Tensor) -> Tensor:
        return strength * (x * x).sum(-1)

    for potential in (thawed, function, reading):
        thawed.strength, strength = 1.0, 1.0
        reading.power.fill_(1.0)
        before = energy_and_grad(potential, x)[0]
        thawed.strength, strength = 4.0, 4.0
        reading.power.fill_(4.0)
        require_equal(potential, x)
        assert not torch.allclose(before, energy_and_grad(potential, x)[0])


def test_train_and_eval_switch_between_eager_and_a_trace() -> None:
    module, x = FALLBACKS["dropout in training"](), torch.randn(5, 2)
    for _ in range(2 * tracing._ATTEMPTS):
        module.train()
        first, second = energy_and_grad(module, x)[0], energy_and_grad(module, x)[0]
        assert not torch.equal(first, second)
        require_eager(module, x)
        module.eval()
        require_equal(module, x)
        require_traced(module, x)


def test_a_hopeless_module_is_not_traced_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(tracing, "record", counted(tracing.record, made))
    for module in (Counting(), Branching(), FALLBACKS["dropout in training"]()):
        made.clear()
        for _ in range(20):
            energy_and_grad(ep.potentials.Scaled(module, 2.0), torch.randn(5, 2))
        assert len(made) <= tracing._ATTEMPTS


def test_autocast_is_eager_and_leaves_nothing_behind() -> None:
    module, x = net(), torch.randn(5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = energy_and_grad(module, x)[1]
    fine = energy_and_grad(module, x)[1]
    assert not torch.equal(coarse, fine)
    require_equal(module, x)
    require_traced(module, x)


def test_tracing_uses_no_random_numbers() -> None:
    before = torch.get_rng_state()
    for name, (make, shapes) in list(TABLE.items())[:4]:
        with torch.random.fork_rng():
            potential, x = make(), torch.randn(shapes[0])
        energy_and_grad(potential, x)
        assert torch.equal(before, torch.get_rng_state()), name


def test_a_dead_network_leaves_and_its_id_brings_nothing_back() -> None:
    bound._traces.clear()
    for _ in range(6):  # CPython hands out the same address again and again
        module = net()
        require_equal(module, torch.ones(3, 2))
        del module
        gc.collect()
    assert len(bound._traces) <= 2  # those of the last one, until a new trace is made
    energy_and_grad(QUADRATIC, torch.ones(3, 2))
    assert len(bound._traces) == 1


def test_the_trace_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "_TRACES_KEPT", 4)
    bound._traces.clear()
    x = torch.randn(3, 2)
    for factor in range(7):
        energy_only(ep.potentials.Scaled(QUADRATIC, float(factor)), x)
    assert len(bound._traces) == 4
    require_equal(ep.potentials.Scaled(QUADRATIC, 0.0), x)  # dropped long ago, and made again


def test_a_chain_is_repeatable_bit_for_bit() -> None:
    module = net()
    runs = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        runs.append(ep.sampling.run_chain(ep.MALA(0.5), module, torch.zeros(64, 2), 20).state)
        bound._traces.clear()
    for one, other in zip(runs[0][:3], runs[1][:3], strict=True):
        assert torch.equal(one, other)


def test_a_program_passes_lists_and_names_and_frees_buffers_at_their_last_use() -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def add(x: Tensor, number: float) -> Tensor:
        y = x + number
        made.append(weakref.ref(y))
        return y

    def count() -> None:
        alive.append(sum(ref() is not None for ref in made))

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    one = graph.call_function(add, (x, 1.0))
    two = graph.call_function(add, (one,), {"number": 2.0})
    before = graph.call_function(count)
    both = graph.call_function(torch.stack, ([one, two],), {"dim": 1})
    after = graph.call_function(count)
    program, points = Program([one, two, before, both, after], [x], [both, x]), torch.arange(3.0)
    for _ in range(2):
        made.clear()
        stacked, again = program(points)
        assert torch.equal(stacked, torch.stack([points + 1.0, points + 3.0], 1))
        assert again is points
    assert alive == [2, 0, 2, 0]


def test_a_number_made_a_tensor_and_written_to_is_itself_again_at_the_next_call() -> None:
    class Written(nn.Module):
        event_shape = torch.Size((2,))

        def forward(self, x: Tensor) -> Tensor:
            factor = torch.tensor(2.0)
            factor += 1.0
            return factor * (x * x).sum(-1)

    module, x = Written(), torch.randn(5, 2)
    for _ in range(3):
        require_equal(module, x)
    require_traced(module, x)


def test_what_autograd_works_out_anew_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a sine takes the cosine that the energy has, and x − 0 and x / 1 are x."""
    found: list[Any] = []
    monkeypatch.setattr(tracing, "Program", lambda nodes, *rest: found.append(nodes) or Program(nodes, *rest))
    waves = ep.Energy(_waves, (2,))
    require_equal(waves, torch.randn(5, 2))
    _, body = found[:2]  # of the energy with its gradient
    names = [str(node.target).split(".")[1] for node in body]
    assert names.count("sin") == names.count("cos") == 1
    assert "div" not in names
    require_equal(ep.Energy(_exponential, ()), torch.randn(5))  # whose gradient is the energy itself
    energy, grad = energy_and_grad(ep.Energy(_exponential, ()), torch.randn(5))
    energy.zero_()
    assert bool((grad > 0.0).all())


def _waves(x: Tensor) -> Tensor:
    return ((x.sin() + x.cos()) / 1.0).sum(-1)


def _exponential(x: Tensor) -> Tensor:
    return x.exp()


def test_ones_times_one_and_zeros_plus_nothing_are_traced() -> None:
    """The constant in place of ``ones_like`` has a kind, which an operation with a neutral number asks for."""
    ones = ep.Energy(lambda x: ((torch.ones_like(x) * 1.0 + x) ** 2).sum(-1), (3,))
    zeros = ep.Energy(lambda x: ((torch.zeros_like(x) + 0.0) * x + x * x).sum(-1), (3,))
    for energy in (ones, zeros):
        require_equal(energy, torch.randn(4, 3))

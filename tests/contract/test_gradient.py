"""The hot door hands out eager autograd's numbers, whatever happens to the network between two calls."""

import copy
import dataclasses
import gc
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.autodiff import gradient
from energyppl.autodiff import tracing as _tracing
from energyppl.autodiff.gradient import eager_energy, eager_energy_and_grad, energy_and_grad, energy_only
from energyppl.errors import InvalidInput
from energyppl.models import MLPEnergy


class Net(nn.Module):
    """``scale * body(x)`` as an energy: something of every kind that can change."""

    def __init__(self, body: nn.Module, event: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        self.body = body
        self.event_shape = torch.Size(event)
        self.temperature = 1.0
        self._hidden = 1.0
        self.many = [1.0, {"deep": 1.0}]
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        scale = self._hidden * self.many[0] * self.many[1]["deep"] / self.temperature
        return (self.body(x).squeeze(-1) + self.offset) * scale + 0.1 * (x * x).flatten(-len(self.event_shape)).sum(-1)


def mlp(activation: Callable[[], nn.Module], size: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(size, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 1))


def net(activation: Callable[[], nn.Module] = nn.SiLU) -> Net:
    return Net(mlp(activation))


def conv_net() -> Net:
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3)]
    return Net(nn.Sequential(*layers, nn.ELU(), nn.Flatten(), nn.Linear(32, 1)), (1, 8, 8))


class Attention(nn.Module):
    """Softmax attention of the coordinates to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = nn.Linear(1, 4), nn.Linear(1, 4), nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x.unsqueeze(-1)) for layer in (self.queries, self.keys, self.values))
        return torch.softmax(q @ k.transpose(-1, -2) / 2.0, -1).matmul(v).sum((-1, -2)).unsqueeze(-1)


class Quadratic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("precision", torch.tensor([[2.0, 0.5], [0.5, 1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * ((x @ self.precision) * x).sum(-1, keepdim=True)


def spectral() -> Net:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 16))
    return Net(nn.Sequential(layer, nn.SiLU(), nn.Linear(16, 1))).eval()


def batch_normed() -> Net:
    body = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 1))
    return Net(body).eval()


def at_level(per_point: bool) -> Callable[[], Any]:
    def make() -> Any:
        level = torch.arange(6) if per_point else torch.tensor(2)
        return ep.potentials.AtLevel(MLPEnergy((2,), hidden=16), level, torch.Size((2,)), loc=torch.ones(2), scale=2.0)

    return make


def walled() -> ep.Energy:
    return ep.Energy(lambda x: torch.where(x[..., 0] > 0.0, (x * x).sum(-1), (x - 1.0).abs().sum(-1)), torch.Size((2,)))


NOISY = torch.linspace(-1.0, 1.0, 12).reshape(6, 2)
QUADRATIC = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), torch.Size((2,)))
FREE = torch.tensor([True, False])

# name: (potential, shapes of points).  A first dimension of 6 is what the tables above are made for.
EVERY: tuple[tuple[int, ...], ...] = ((1, 2), (64, 2), (7, 3, 2), (2,), (0, 2))
FLAT: tuple[tuple[int, ...], ...] = ((64, 2), (7, 3, 2))
ROWS: tuple[tuple[int, ...], ...] = ((64, 2), (1, 2))
SIX: tuple[tuple[int, ...], ...] = ((6, 2),)
TABLE: dict[str, tuple[Callable[[], Any], tuple[tuple[int, ...], ...]]] = {
    "silu": (lambda: net(nn.SiLU), EVERY),
    "tanh": (lambda: net(nn.Tanh), FLAT),
    "softplus": (lambda: net(nn.Softplus), FLAT),
    "gelu": (lambda: net(nn.GELU), FLAT),
    "elu": (lambda: net(nn.ELU), FLAT),
    "relu": (lambda: net(nn.ReLU), FLAT),
    "leaky relu": (lambda: net(lambda: nn.LeakyReLU(0.2)), FLAT),
    "layer norm": (lambda: Net(nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 1))), FLAT),
    "conv net": (conv_net, ((5, 1, 8, 8), (1, 1, 8, 8))),
    "attention": (lambda: Net(Attention()), FLAT),
    "quadratic buffer": (lambda: Net(Quadratic()), EVERY),
    "spectral norm": (spectral, FLAT),
    "batch norm, eval": (batch_normed, ROWS),
    "dropout, eval": (lambda: Net(nn.Sequential(nn.Linear(2, 8), nn.Dropout(), nn.Linear(8, 1))).eval(), FLAT),
    "where": (walled, FLAT),
    "linear": (lambda: ep.Energy(lambda x: 3.0 * x.sum(-1), torch.Size((2,))), FLAT),
    "constant": (lambda: ep.Energy(lambda x: torch.zeros(x.shape[:-1]), torch.Size((2,))), ROWS),
    "a view of x": (lambda: ep.Energy(lambda x: x.squeeze(-1), torch.Size((1,))), ((6, 1),)),
    "scalar event": (lambda: ep.Energy(lambda x: x**4, torch.Size(())), ((6,), ())),
    "module in Energy": (lambda: ep.Energy(net(), torch.Size((2,))), FLAT),
    "closure over a module": (lambda: ep.Energy((lambda n: lambda x: n(x))(net()), torch.Size((2,))), FLAT),
    "AtLevel": (at_level(False), FLAT),
    "AtLevel per point": (at_level(True), SIX),
    "RecoveryPotential": (lambda: ep.potentials.RecoveryPotential(net(), NOISY, 0.5), SIX),
    "RecoveryPotential, a sigma each": (
        lambda: ep.potentials.RecoveryPotential(at_level(True)(), NOISY, torch.linspace(0.1, 9.0, 6)[:, None]),
        SIX,
    ),
    "RecoveryPotential, infinite sigma": (lambda: ep.potentials.RecoveryPotential(net(), NOISY, math.inf), SIX),
    "Sum": (lambda: ep.potentials.Sum(net(), ep.potentials.Scaled(net(nn.Tanh), -0.5), QUADRATIC), FLAT),
    "Scaled per point": (lambda: ep.potentials.Scaled(net(), torch.linspace(0.1, 1.0, 6)), SIX),
    "Bridge": (lambda: ep.potentials.Bridge(QUADRATIC, net(), 0.3), FLAT),
    "Bridge per point": (lambda: ep.potentials.Bridge(QUADRATIC, net(), torch.linspace(0.0, 1.0, 6)), SIX),
    "Conditioned": (lambda: ep.potentials.Conditioned(net(), torch.ones(2), FREE), ((1, 1), (64, 1))),
    "Conditioned, observed rows": (lambda: ep.potentials.Conditioned(net(), NOISY, FREE), ((6, 1),)),
    "tree": (
        lambda: ep.potentials.Sum(
            ep.potentials.RecoveryPotential(ep.potentials.Bridge(QUADRATIC, net(), 0.5), NOISY, 0.3),
            ep.potentials.Scaled(net(), 2.0),
        ),
        SIX,
    ),
    "banana": (lambda: ep.toys.Banana(), FLAT),
    "mixture": (lambda: ep.Energy(ep.toys.GaussianMixture(torch.eye(2), torch.eye(2).repeat(2, 1, 1)), (2,)), FLAT),
}


def cast(potential: Any, dtype: torch.dtype) -> Any:
    """The same potential with everything in it in another dtype."""
    if isinstance(potential, nn.Module):
        return potential.to(dtype)
    if isinstance(potential, Tensor):
        return potential.to(dtype) if potential.is_floating_point() else potential
    if isinstance(potential, tuple) and not isinstance(potential, torch.Size):
        return tuple(cast(item, dtype) for item in potential)
    if dataclasses.is_dataclass(potential):
        twin = copy.copy(potential)
        for field in dataclasses.fields(potential):
            object.__setattr__(twin, field.name, cast(getattr(potential, field.name), dtype))
        return twin
    return potential


def require_equal(potential: Any, x: Tensor) -> None:
    """The door's numbers are eager's, to rounding."""
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if x.dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
    energy, grad = energy_and_grad(potential, x)
    expected, expected_grad = eager_energy_and_grad(potential, x)
    torch.testing.assert_close(energy, expected, **tolerance, equal_nan=True)
    torch.testing.assert_close(grad, expected_grad, **tolerance, equal_nan=True)
    torch.testing.assert_close(energy_only(potential, x), expected, **tolerance, equal_nan=True)
    assert grad.shape == x.shape
    assert not energy.requires_grad
    assert not grad.requires_grad


def how(potential: Any, what: Any = eager_energy_and_grad) -> Any:
    return gradient._bound[potential][what]


def require_traced(potential: Any) -> None:
    for what in (eager_energy_and_grad, eager_energy):
        assert isinstance(how(potential, what), gradient._Bound), how(potential, what).reason


DOUBLE = (
    "silu",
    "layer norm",
    "conv net",
    "attention",
    "quadratic buffer",
    "spectral norm",
    "AtLevel per point",
    "tree",
)


@pytest.mark.parametrize(("name", "dtype"), [(n, torch.float32) for n in TABLE] + [(n, torch.float64) for n in DOUBLE])
def test_the_door_gives_eager_numbers_by_a_trace(name: str, dtype: torch.dtype) -> None:
    make, shapes = TABLE[name]
    potential = cast(make(), dtype)
    for shape in shapes if dtype == torch.float32 else shapes[:1]:
        for _ in range(2):
            require_equal(potential, torch.randn(shape, dtype=dtype))
        require_traced(potential)


# --- What may change between two calls ---


def new_weights(module: Net) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.5)


def by_optimizer(make: Callable[[Any], torch.optim.Optimizer]) -> Callable[[Net], None]:
    def change(module: Net) -> None:
        optimizer = make(module.parameters())
        module(torch.ones(3, 2)).sum().backward()
        optimizer.step()

    return change


def by_name(name: str, value: Any) -> Callable[[Net], None]:
    return lambda module: setattr(module, name, value)


CHANGES: dict[str, Callable[[Net], Any]] = {
    "Adam": by_optimizer(lambda p: torch.optim.Adam(p, lr=0.1, foreach=False)),
    "Adam, foreach": by_optimizer(lambda p: torch.optim.Adam(p, lr=0.1, foreach=True)),
    "Adam, fused": by_optimizer(lambda p: torch.optim.Adam(p, lr=0.1, fused=True)),
    "SGD": by_optimizer(lambda p: torch.optim.SGD(p, lr=0.1)),
    "SGD, fused": by_optimizer(lambda p: torch.optim.SGD(p, lr=0.1, fused=True)),
    "pyro's optimizer": lambda m: pyro.optim.Adam({"lr": 0.1})([p.requires_grad_() for p in graded(m)]),
    "load_state_dict": lambda m: m.load_state_dict(net().state_dict()),
    "load_state_dict, assign": lambda m: m.load_state_dict(net().state_dict(), assign=True),
    "no_grad": new_weights,
    "vector_to_parameters": lambda m: nn.utils.vector_to_parameters(
        1.5 * nn.utils.parameters_to_vector(m.parameters()).detach(), m.parameters()
    ),
    "foreach_copy": lambda m: torch.no_grad()(torch._foreach_mul_)(list(m.parameters()), 2.0),
    "another Parameter": lambda m: setattr(m.body[0], "weight", nn.Parameter(torch.ones(16, 2))),
    "buffer in place": lambda m: m.offset.add_(1.0),
    "another buffer": by_name("offset", torch.ones(())),
    "number": by_name("temperature", 2.0),
    "private number": by_name("_hidden", 2.0),
    "number in a list": lambda m: m.many.__setitem__(0, 2.0),
    "number deep inside": lambda m: m.many[1].update(deep=2.0),
    "another layer": lambda m: m.body.__setitem__(0, nn.Linear(2, 16)),
    "one more layer": lambda m: m.body.append(nn.Linear(1, 1)),
    "forward hook": lambda m: m.body[0].register_forward_hook(lambda *a: 2.0 * a[-1]),
    "spectral norm added": lambda m: nn.utils.parametrizations.spectral_norm(m.body[0]).eval(),
    "eval": lambda m: m.eval(),
    "double and back": lambda m: (m.double(), m.float(), new_weights(m)),
}


def graded(module: Net) -> list[nn.Parameter]:
    module(torch.ones(3, 2)).sum().backward()
    return list(module.parameters())


WRAPS: dict[str, Callable[[Net], Any]] = {
    "module": lambda m: m,
    "tilted": lambda m: ep.potentials.RecoveryPotential(m, torch.ones(5, 2), 0.5),
    "in Energy": lambda m: ep.Energy(m, torch.Size((2,))),
    "in a closure": lambda m: ep.Energy(lambda x: m(x), torch.Size((2,))),
    "bound method": lambda m: ep.Energy(m.forward, torch.Size((2,))),
}


class Switched(nn.Module):
    """Another function in train mode, without random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 if self.training else x


WRAPPED = ("Adam, fused", "load_state_dict", "another Parameter", "number", "eval")


@pytest.mark.parametrize(
    ("change", "wrap"), [(c, "module") for c in CHANGES] + [(c, w) for w in list(WRAPS)[1:] for c in WRAPPED]
)
def test_a_change_is_seen_at_the_next_call(change: str, wrap: str) -> None:
    module = Net(nn.Sequential(*mlp(nn.SiLU), Switched()))
    potential, x = WRAPS[wrap](module), torch.randn(5, 2)
    before = energy_and_grad(potential, x)
    assert isinstance(how(potential), gradient._Bound)
    CHANGES[change](module)
    require_equal(potential, x)
    after = energy_and_grad(potential, x)
    assert not torch.allclose(after[0], before[0], atol=1e-4), "the change must matter for this test to say anything"
    assert isinstance(how(potential), gradient._Bound), how(potential).reason


@pytest.mark.parametrize("change", ["no_grad", "number", "another Parameter"])
def test_a_door_that_looks_at_nothing_fails_the_check_above(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without its watch and its versions the door serves yesterday's weights, and that is seen."""
    monkeypatch.setattr(gradient.ModuleFingerprint, "changed", lambda self: False)
    monkeypatch.setattr(gradient, "_versions", lambda tensors: [])
    module, x = net(), torch.randn(5, 2)
    require_equal(module, x)
    CHANGES[change](module)
    with pytest.raises(AssertionError, match="not close"):
        require_equal(module, x)


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
    require_traced(potential)


def test_a_new_tether_level_or_batch_takes_the_old_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(_tracing, "make_fx", counted(_tracing.make_fx, made))
    network = MLPEnergy((2,), hidden=8)
    for t in range(6):
        at = ep.potentials.AtLevel(network, torch.full((5,), t), torch.Size((2,)))
        require_equal(ep.potentials.RecoveryPotential(at, torch.randn(5, 2), torch.rand(5, 1) + 0.1), torch.randn(5, 2))
    assert len(made) == 2  # one with the gradient, one of the energy alone
    require_equal(ep.potentials.RecoveryPotential(at, torch.randn(5, 2), 0.5), torch.randn(5, 2))
    assert len(made) == 4  # another structure, so that the counter is known to count


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    return wrapper


# --- What tracing must leave to eager autograd ---


class Branching(nn.Module):
    event_shape = torch.Size((2,))

    def forward(self, x: Tensor) -> Tensor:
        return (x * x).sum(-1) if x.sum() > 0 else x.abs().sum(-1)


class Reading(nn.Module):
    """Reads a buffer's value into Python, where no trace can follow."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("power", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x.abs() ** self.power.item()).sum(-1)


class Selecting(nn.Module):
    event_shape = torch.Size((2,))

    def forward(self, x: Tensor) -> Tensor:
        return (x * x).sum(-1) + torch.zeros_like(x[x > 0]).cos().sum()


class Counting(nn.Module):
    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.calls * (x * x).sum(-1)


class CountingBuffer(nn.Module):
    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.calls * (x * x).sum(-1)


@dataclasses.dataclass(eq=False)
class Thawed:
    strength: float
    event_shape: tuple[int, ...] = (2,)

    def __call__(self, x: Tensor) -> Tensor:
        return self.strength * (x * x).sum(-1)


FALLBACKS: dict[str, Callable[[], Any]] = {
    "dropout in training": lambda: Net(nn.Sequential(nn.Linear(2, 8), nn.Dropout(), nn.Linear(8, 1))),
    "batch norm in training": lambda: batch_normed().train(),
    "spectral norm in training": lambda: spectral().train(),
    "control flow on the points": Branching,
    "a value read": Reading,
    "a shape that depends on values": Selecting,
    "attribute changed by forward": Counting,
    "buffer changed by forward": CountingBuffer,
    "fields that may change": lambda: Thawed(2.0),
    "plain function": lambda: lambda x: (x * x).sum(-1),
}


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
        assert isinstance(how(ours), gradient._Eager)
        assert how(ours).reason


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
    for _ in range(2 * _tracing._ATTEMPTS):
        module.train()
        first, second = energy_and_grad(module, x)[0], energy_and_grad(module, x)[0]
        assert not torch.equal(first, second)
        assert isinstance(how(module), gradient._Eager)
        module.eval()
        require_equal(module, x)
        require_traced(module)


def test_a_hopeless_module_is_not_traced_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(_tracing, "make_fx", counted(_tracing.make_fx, made))
    for module in (Counting(), Branching(), FALLBACKS["dropout in training"]()):
        made.clear()
        for _ in range(20):
            energy_and_grad(ep.potentials.Scaled(module, 2.0), torch.randn(5, 2))
        assert len(made) <= _tracing._ATTEMPTS


def test_autocast_is_eager_and_leaves_nothing_behind() -> None:
    module, x = net(), torch.randn(5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = energy_and_grad(module, x)[1]
    fine = energy_and_grad(module, x)[1]
    assert not torch.equal(coarse, fine)
    require_equal(module, x)
    require_traced(module)


# --- Values ---


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_handed_on(bad: float) -> None:
    potential = ep.Energy(lambda x: torch.where(x[..., 0] > 0, (x * x).sum(-1), bad), torch.Size((2,)))
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [math.nan, 0.0], [1e30, 0.0]])
    require_equal(potential, x)
    energy, _ = energy_and_grad(potential, x)
    assert not torch.isfinite(energy[1])
    assert torch.isfinite(energy[0])
    assert energy[3] == math.inf


WRONG: dict[str, Callable[[Tensor], Any]] = {
    "a column": lambda x: x.sum(-1, keepdim=True),
    "one number for all": lambda x: x.sum(),
    "one for each coordinate": lambda x: x,
    "a tuple": lambda x: (x.sum(-1),),
    "a float": lambda x: 1.0,
}


@pytest.mark.parametrize("door", [energy_and_grad, energy_only])
@pytest.mark.parametrize("name", list(WRONG))
def test_a_potential_of_the_wrong_shape_is_named(name: str, door: Callable[..., Any]) -> None:
    with pytest.raises(InvalidInput, match=r"one number for each point, shape \(3,\); got"):
        door(ep.Energy(WRONG[name], torch.Size((2,))), torch.randn(3, 2))


def test_parameters_take_no_gradient_and_results_can_be_used_in_autograd() -> None:
    module = net()
    x = torch.randn(5, 2, requires_grad=True)
    energy, grad = energy_and_grad(module, x)
    assert isinstance(how(module), gradient._Bound)
    assert not energy.requires_grad
    assert not grad.requires_grad
    assert x.grad is None
    assert all(p.grad is None for p in module.parameters())
    weight = torch.ones(5, 2, requires_grad=True)
    ((weight * grad).sum() + (weight[:, 0] * energy).sum()).backward()
    assert weight.grad is not None
    module(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters() if p.numel() > 1)


RESULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "view of x": lambda x: x.squeeze(-1),
    "linear": lambda x: 3.0 * x.sum(-1),
    "constant": lambda x: torch.ones(len(x)),
    "quadratic": lambda x: (x * x).sum(-1),
}


@pytest.mark.parametrize("name", list(RESULTS))
def test_writing_to_a_result_changes_nothing_else(name: str) -> None:
    potential, x = ep.Energy(RESULTS[name], torch.Size((1,))), torch.randn(5, 1)
    before = x.clone()
    first = [part.clone() for part in energy_and_grad(potential, x)]
    for part in (*energy_and_grad(potential, x), energy_only(potential, x)):
        part.add_(100.0)
    assert torch.equal(x, before)
    for part, again in zip(first, energy_and_grad(potential, x), strict=True):
        assert torch.equal(part, again)


@pytest.mark.parametrize("first", [True, False], ids=["inference first", "inference second"])
def test_inference_mode_has_the_true_gradient_and_leaves_nothing_behind(first: bool) -> None:
    """Autograd is silent in inference mode: a gradient of zero must not come of it, nor be kept."""
    for make in (net, Branching):
        module, x = make(), torch.randn(5, 2)
        expected = eager_energy_and_grad(module, x)[1]
        if not first:
            energy_and_grad(module, x)
        with torch.inference_mode():
            inside, center = torch.randn(5, 2), torch.zeros(5, 2)
            torch.testing.assert_close(energy_and_grad(module, x)[1], expected)
            tilted = ep.potentials.RecoveryPotential(module, center, 1.0)
            grad = energy_and_grad(tilted, inside)[1]
        torch.testing.assert_close(energy_and_grad(module, x)[1], expected)
        torch.testing.assert_close(grad, eager_energy_and_grad(module, inside.clone())[1] + inside)
        torch.testing.assert_close(energy_and_grad(tilted, inside)[1], grad)


def test_points_in_any_memory_layout() -> None:
    class Flat(nn.Module):
        event_shape = torch.Size((2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).square().view(len(x), -1).cumsum(-1).sum(-1)

    module = Flat()
    layouts = [torch.randn(5, 2, 3), torch.randn(5, 3, 2).transpose(1, 2), torch.randn(1, 2, 3).expand(5, 2, 3)]
    for order in (layouts, layouts[::-1]):
        gradient._bound.clear()
        gradient._traces.clear()
        for x in order:
            torch.testing.assert_close(energy_and_grad(module, x)[1], eager_energy_and_grad(module, x.contiguous())[1])


# --- Housekeeping ---


def test_tracing_uses_no_random_numbers() -> None:
    before = torch.get_rng_state()
    for name, (make, shapes) in list(TABLE.items())[:4]:
        with torch.random.fork_rng():
            potential, x = make(), torch.randn(shapes[0])
        energy_and_grad(potential, x)
        assert torch.equal(before, torch.get_rng_state()), name


def test_a_dead_network_leaves_and_its_id_brings_nothing_back() -> None:
    gradient._traces.clear()
    for _ in range(6):  # CPython hands out the same address again and again
        module = net()
        require_equal(module, torch.ones(3, 2))
        del module
        gc.collect()
    assert len(gradient._bound) == 0 or all(p is not None for p in gradient._bound)
    assert len(gradient._traces) <= 2  # those of the last one, until a new trace is made
    energy_and_grad(QUADRATIC, torch.ones(3, 2))
    assert len(gradient._traces) == 1


def test_the_trace_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "_TRACES_KEPT", 4)
    gradient._traces.clear()
    x = torch.randn(3, 2)
    for factor in range(7):
        energy_only(ep.potentials.Scaled(QUADRATIC, float(factor)), x)
    assert len(gradient._traces) == 4
    require_equal(ep.potentials.Scaled(QUADRATIC, 0.0), x)  # dropped long ago, and made again


def test_a_chain_through_the_door_is_repeatable_bit_for_bit() -> None:
    module = net()
    runs = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        runs.append(ep.sampling.run_chain(ep.MALA(0.5), module, torch.zeros(64, 2), 20).state)
        gradient._bound.clear()
        gradient._traces.clear()
    for one, other in zip(runs[0][:3], runs[1][:3], strict=True):
        assert torch.equal(one, other)


def test_large_products_agree_with_eager() -> None:
    """From 256 rows on they go another way (oneDNN), with and without a bias, forwards and backwards."""
    for bias in (True, False):
        net = nn.Sequential(nn.Linear(40, 64, bias=bias), nn.SiLU(), nn.Linear(64, 48, bias=bias), nn.Tanh())
        potential = Reduced(net.requires_grad_(False))
        for rows in (255, 256, 1000):
            x = torch.randn(rows, 40)
            for ours, theirs in zip(energy_and_grad(potential, x), eager_energy_and_grad(potential, x), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
            with torch.no_grad():
                net[0].weight.mul_(1.1)  # the product must see it
            torch.testing.assert_close(energy_and_grad(potential, x)[0], eager_energy_and_grad(potential, x)[0])


class Reduced(nn.Module):
    """A network's squared output as an energy."""

    event_shape = torch.Size((40,))

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).square().sum(-1)

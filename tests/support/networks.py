"""Networks and potentials of every kind that a trace must follow or refuse."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import energyppl as ep
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

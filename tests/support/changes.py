"""Ways in which a network may change between two runs."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

import energyppl as ep
from tests.support.networks import Net, net


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
    "data, in place": lambda m: [p.data.mul_(1.5) for p in m.parameters()],
    "data, another tensor": lambda m: setattr(m.body[0].weight, "data", torch.ones(16, 2)),
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

"""The pretended device itself: it refuses what a GPU refuses, and nothing else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.devices import DEVICE, there
from tests.support.pretend_device import MixedDevices, pretend_device

MIXES: dict[str, Callable[[Tensor], object]] = {
    "a CPU arange": lambda x: x + torch.arange(3.0),
    "a CPU row": lambda x: torch.cat([x, torch.zeros(1)]),
    "CPU weights": lambda x: nn.functional.linear(x, torch.ones(2, 3)),
    "an index into a CPU tensor": lambda x: torch.zeros(3)[x.long()],
    "a value into a CPU tensor": lambda x: torch.tensor(0.0).add_(x[0]),
    "a scalar on a CPU vector": lambda x: torch.ones(3) * x[0],
    "a mix under vmap": lambda x: torch.vmap(lambda row: row + torch.ones(2))(x),
    "numpy": lambda x: np.asarray(x),
    "the CPU's generator": lambda x: torch.randn(2, generator=torch.Generator(), device=x.device),
}

LEGAL: dict[str, Callable[[Tensor], Tensor]] = {
    "a CPU scalar": lambda x: torch.tensor(2.0) * x,
    "a CPU scalar where another is not chosen": lambda x: torch.where(x > 0.0, x, torch.tensor(1.0)),
    "a CPU scalar written": lambda x: x.index_put_((torch.tensor([0]),), torch.tensor(1.0)),
    "a CPU index": lambda x: x[torch.tensor([2, 0])],
    "a CPU mask": lambda x: x[torch.tensor([True, False, True])],
    "a CPU tensor copied": lambda x: x.copy_(torch.arange(3.0)),
    "a CPU tensor moved": lambda x: x + torch.arange(3.0).to(x),
    "a factory like it": lambda x: x.new_tensor([1.0]) + torch.randn_like(x) + torch.zeros(3, device=x.device),
    "a quantile": lambda x: x.quantile(0.5),
    "moved and back": lambda x: torch.as_tensor(x.cpu().numpy(), device=x.device),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_mix_is_refused(mix: Callable[[Tensor], object]) -> None:
    with pretend_device(), pytest.raises(MixedDevices):
        mix(torch.zeros(3, device=DEVICE))
    mix(torch.zeros(3))  # nothing else is wrong with it


@pytest.mark.parametrize("use", LEGAL.values(), ids=LEGAL)
def test_what_torch_allows_passes(use: Callable[[Tensor], Tensor]) -> None:
    with pretend_device():
        there(use(torch.zeros(3, device=DEVICE)))


def test_a_gradient_that_mixes_is_refused() -> None:
    class Mixing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * torch.ones(3)

    with pretend_device():
        x = torch.zeros(3, device=DEVICE).requires_grad_()
        value = Mixing.apply(x).sum()
        with pytest.raises(MixedDevices):
            value.backward()


def test_python_in_a_backward_pass_may_ask_for_the_device() -> None:
    class Asking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * torch.ones(3, device=grad.device)

    with pretend_device():
        x = torch.zeros(3, device=DEVICE).requires_grad_()
        Asking.apply(x).sum().backward()
        assert x.grad is not None
        there(x.grad)

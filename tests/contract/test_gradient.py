"""Energies and gradients by traced programs equal eager autograd's: every kind of network, shape, layout and value."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.autodiff import bound, program
from energyppl.autodiff.gradient import eager_energy_and_grad, energy_and_grad, energy_only
from energyppl.errors import InvalidInput
from tests.support.gradients import cast, require_equal, require_traced
from tests.support.networks import TABLE, Branching, net

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
def test_a_trace_gives_the_numbers_of_eager_autograd(name: str, dtype: torch.dtype) -> None:
    make, shapes = TABLE[name]
    potential = cast(make(), dtype)
    for shape in shapes if dtype == torch.float32 else shapes[:1]:
        for _ in range(2):
            require_equal(potential, torch.randn(shape, dtype=dtype))
        require_traced(potential, torch.randn(shape, dtype=dtype))


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


@pytest.mark.parametrize("evaluate", [energy_and_grad, energy_only])
@pytest.mark.parametrize("name", list(WRONG))
def test_a_potential_of_the_wrong_shape_is_named(name: str, evaluate: Callable[..., Any]) -> None:
    with pytest.raises(InvalidInput, match=r"one number for each point, shape \(3,\); got"):
        evaluate(ep.Energy(WRONG[name], torch.Size((2,))), torch.randn(3, 2))


def test_parameters_take_no_gradient_and_results_can_be_used_in_autograd() -> None:
    module = net()
    x = torch.randn(5, 2, requires_grad=True)
    energy, grad = energy_and_grad(module, x)
    require_traced(module, x)
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
        bound._traces.clear()
        for x in order:
            torch.testing.assert_close(energy_and_grad(module, x)[1], eager_energy_and_grad(module, x.contiguous())[1])


@pytest.mark.parametrize("onednn", [False, True])
def test_large_products_agree_with_eager(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 256 rows on they may go another way (oneDNN), with and without a bias, forwards and backwards."""
    monkeypatch.setattr(program, "prefers_onednn", lambda: onednn)
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


def test_energies_alone_name_the_dtype_too() -> None:
    with pytest.raises(InvalidInput, match=r"x must be torch\.float32 like the network's weights; got torch\.float64"):
        energy_only(ep.EBM(ep.MLPEnergy((2,), levels=1)).potential(0), torch.randn(3, 2).double())

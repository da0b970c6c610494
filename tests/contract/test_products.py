"""Matrix products by oneDNN: torch's numbers to rounding, differentiable as often as one likes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from energyppl.autodiff import private, products
from energyppl.autodiff.products import Linear, linear


def derivatives(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Value, gradient, the gradient of a loss on it with respect to everything, and once more."""
    value = nn.functional.silu(function(x, weight, bias)).sin().sum()
    (score,) = torch.autograd.grad(value, x, create_graph=True)
    second = torch.autograd.grad((score**2).mean() + value / 1e3, (x, weight, bias), create_graph=True)
    third = torch.autograd.grad(sum((part**2).sum() for part in second), (x, weight, bias))
    return [value, score, *second, *third]


def parts(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(*shape, 40, requires_grad=True)
    return x, torch.randn(64, 40, requires_grad=True), torch.randn(64, requires_grad=True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The sizes of the products that oneDNN made."""
    made: list[torch.Size] = []

    def counting(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made.append(rows.shape)
        return private.fused_linear(rows, weight, bias)

    monkeypatch.setattr(products, "fused_linear", counting)
    return made


@pytest.mark.parametrize("shape", [(300,), (2, 300)])
def test_values_and_three_derivatives_are_torchs(shape: tuple[int, ...], calls: list[torch.Size]) -> None:
    of = parts(*shape)
    for ours, theirs in zip(derivatives(linear, *of), derivatives(nn.functional.linear, *of), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.detach().abs().max()))
    assert len(calls) > 10


def test_what_is_not_asked_for_is_not_worked_out(calls: list[torch.Size]) -> None:
    x, weight, bias = parts(300)
    y = linear(x * 1.0, weight, bias).sum()
    torch.autograd.grad(y, x, retain_graph=True)
    assert len(calls) == 2  # the value, and the gradient of the points
    torch.autograd.grad(y, [weight, bias], retain_graph=True)
    assert len(calls) == 3
    y.backward()
    assert len(calls) == 5


def test_a_weight_with_gaps_and_no_gradient(calls: list[torch.Size]) -> None:
    weight = torch.randn(64, 90)[:, 7:47]
    x, bias = torch.randn(300, 40), torch.randn(64)
    with torch.no_grad():
        ours = linear(x, weight, bias)
    torch.testing.assert_close(ours, nn.functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    assert len(calls) == 1


def test_few_rows_other_numbers_autocast_and_vmap_are_left_to_torch(calls: list[torch.Size]) -> None:
    x, weight, bias = parts(300)
    layer = Linear(40, 64)
    assert layer(torch.randn(10, 40)).shape == (10, 64)
    assert linear(*(part.double() for part in (x, weight, bias))).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    assert torch.vmap(lambda row: linear(row.expand(300, 40), weight, bias))(x[:2]).shape == (2, 300, 64)
    assert calls == []

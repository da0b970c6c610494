"""Linear layers by oneDNN: the numbers of torch's own, once and twice differentiated, and where they are taken."""

import pytest
import torch
from torch import Tensor, nn

from energyppl.models.networks import linear as module
from energyppl.models.networks.linear import Linear, linear

ROWS = 600


@pytest.fixture(autouse=True)
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take oneDNN on any processor."""
    monkeypatch.setattr(module, "prefers_onednn", lambda: True)


def gradients(layer: nn.Linear, points: Tensor) -> list[Tensor]:
    """The layer's output, its gradients, and the weights' gradients of the squared gradient of the points."""
    x = points.clone().requires_grad_()
    out = layer(x)
    first = torch.autograd.grad(out.sin().sum(), [x, layer.weight, layer.bias], create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), [x, layer.weight, layer.bias])
    return [out.detach(), *(g.detach() for g in first), *second]


@pytest.mark.parametrize("batch", [(ROWS,), (2, ROWS // 2), (ROWS, 1)])
def test_values_and_both_gradients_are_those_of_torch(batch: tuple[int, ...]) -> None:
    ours = Linear(40, 33)
    theirs = nn.Linear(40, 33)
    theirs.load_state_dict(ours.state_dict())
    points = torch.randn(*batch, 40)
    for our, their in zip(gradients(ours, points), gradients(theirs, points), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4 * float(their.abs().max()))


def by_onednn(rows: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Tell whether the product is ours."""
    product = linear(rows, weight, bias)
    return product.grad_fn is not None and "Addmm" not in type(product.grad_fn).__name__


def test_where_torch_is_the_faster_no_product_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = torch.randn(64, 64, requires_grad=True), torch.zeros(64)
    assert by_onednn(torch.randn(ROWS, 64), weight, bias)
    monkeypatch.setattr(module, "prefers_onednn", lambda: False)
    assert not by_onednn(torch.randn(ROWS, 64), weight, bias)


def test_only_large_products_in_training_are_taken() -> None:
    weight, bias = torch.randn(64, 64, requires_grad=True), torch.zeros(64)
    many = torch.randn(ROWS, 64)
    assert by_onednn(many, weight, bias)
    assert not by_onednn(many[:100], weight, bias)
    assert not by_onednn(many.double(), weight.double(), bias.double())
    assert not by_onednn(many, weight.detach(), bias)
    with torch.no_grad():
        assert not by_onednn(many, weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(many, weight, bias).dtype == torch.bfloat16
    each = torch.func.vmap(lambda rows: linear(rows, weight, bias))(many.expand(2, *many.shape))
    torch.testing.assert_close(each[1], nn.functional.linear(many, weight, bias))

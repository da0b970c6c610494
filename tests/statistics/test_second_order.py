"""Networks that can't be differentiated twice, or have kinks: what score matching refuses, and what it accepts."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import energyppl as ep
from energyppl.inference.objectives.second_order import differentiable_score
from tests.support.objectives import loss_of

OBJECTIVES = [
    ep.objectives.ExactScoreMatching(),
    ep.objectives.SlicedScoreMatching(),
    ep.objectives.SlicedScoreMatching(projections=3),
    ep.objectives.DenoisingScoreMatching(0.5),
]


# --- Networks that can't be differentiated twice ---


class _Once(torch.autograd.Function):
    """Tanh, marked as differentiable once."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return x.tanh()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: object, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * (1.0 - x.tanh() ** 2)


class _Numpy(_Once):
    """Tanh, whose backward is numpy's."""

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.from_numpy(grad.detach().numpy() * (1.0 - x.detach().tanh().numpy() ** 2))


class Layer(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Net(nn.Module):
    """A perceptron with a layer in its middle and one at its end, and ½ |x|² if there is to be a ``bowl``."""

    event_shape = torch.Size((2,))

    def __init__(self, middle: nn.Module, last: nn.Module | None = None, *, bowl: bool = True) -> None:
        super().__init__()
        self.bowl = 0.5 if bowl else 0.0
        self.body = nn.Sequential(nn.Linear(2, 8), nn.Sequential(nn.SiLU(), middle), nn.Linear(8, 1))
        self.last = nn.Identity() if last is None else last

    def forward(self, x: Tensor) -> Tensor:
        value = self.last(self.body(x).squeeze(-1))
        return value + self.bowl * x.square().sum(-1) if self.bowl else value


def attention(x: Tensor) -> Tensor:
    tokens = x.reshape(-1, 1, 2, 4)
    return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).reshape(x.shape)


def to_anchors(x: Tensor) -> Tensor:
    return torch.cdist(x, torch.arange(64.0).reshape(8, 8) / 64.0)


@torch.no_grad()
def unrecorded(x: Tensor) -> Tensor:
    return x.tanh()


class Bowl(nn.Module):
    """An energy whose only weight is its constant."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(-1) + self.constant


FAULTY = [
    (lambda: Net(Layer(_Once.apply)), r"layer 'body\.1\.1' \(Layer\).*once_differentiable"),
    (lambda: Net(nn.SiLU(), Layer(_Once.apply)), r"layer 'last' \(Layer\).*once_differentiable"),
    (lambda: Net(Layer(_Numpy.apply)), r"layer 'body\.1\.1' \(Layer\).*leaves autograd"),
    (lambda: Net(Layer(attention)), r"layer 'body\.1\.1' \(Layer\).*not implemented"),
    (lambda: Net(Layer(to_anchors)), r"layer 'body\.1\.1' \(Layer\).*not implemented"),
    (lambda: Net(Layer(Tensor.detach)), r"depend on the weights.*layer 'body\.1\.1' \(Layer\) lets no gradient"),
    (lambda: Net(Layer(Tensor.detach), bowl=False), r"depend on the weights.*layer 'body\.1\.1' \(Layer\) lets no"),
    (lambda: Net(Layer(unrecorded), bowl=False), r"depend on the weights.*layer 'body\.1\.1' \(Layer\) lets no"),
    (Bowl, r"depend on the weights; that of Bowl does not"),
]


@pytest.mark.parametrize(("make", "message"), FAULTY)
@pytest.mark.parametrize("objective", OBJECTIVES[1:], ids=repr)
def test_the_layer_at_fault_is_named(objective: object, make: Callable[[], nn.Module], message: str) -> None:
    ebm, x = ep.EBM(make()), torch.randn(6, 2)
    for _ in range(2):  # it is not taken for sound afterwards
        with pytest.raises(ep.InvalidInput, match=message):
            loss_of(objective, ebm, x)  # type: ignore[attr-defined]


def test_sound_networks_pass() -> None:
    """Negative control: layers that look alike and have second derivatives, and what has no weights to train."""
    x = torch.randn(6, 2)
    frozen = Net(nn.Tanh()).requires_grad_(False)
    nets = [Net(Layer(torch.tanh)), Net(nn.ReLU(inplace=True)), Net(nn.LayerNorm(8)), Net(nn.Dropout(0.5)), frozen]
    for net in nets:
        plain = x.clone().requires_grad_()
        torch.manual_seed(5)
        (expected,) = torch.autograd.grad(net(plain).sum(), plain)
        for _ in range(2):  # tried, and no more
            torch.manual_seed(5)
            torch.testing.assert_close(differentiable_score(net, x), expected)


def test_torch_alone_says_nothing() -> None:
    """Why a network is tried: the last layer's gradient would be lost without a word."""
    net, x = Net(nn.SiLU(), Layer(_Once.apply)), torch.randn(6, 2, requires_grad=True)
    nn.init.ones_(net.body[2].bias)  # tanh is curved there
    (score,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    silent = torch.autograd.grad(score.square().sum(), net.body[0].weight, allow_unused=True)[0]
    net.last = Layer(torch.tanh)
    (score,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    true = torch.autograd.grad(score.square().sum(), net.body[0].weight)[0]
    assert silent is None or float((silent - true).norm() / true.norm()) > 1e-3


# --- Networks whose curvature is not their own ---


class Confined(nn.Module):
    """``½ k |x|²`` and a perceptron, k a weight or 1."""

    event_shape = torch.Size((2,))

    def __init__(self, activation: type[nn.Module], *, zero: bool = False, learn_k: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), activation(), nn.Linear(16, 16), activation())
        self.head = nn.Linear(16, 1)
        self.k = nn.Parameter(torch.ones(())) if learn_k else 1.0
        if zero:
            nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).squeeze(-1) + 0.5 * self.k * x.square().sum(-1)


class Mean(nn.Module):
    """½ |x − m|², whose curvature no weight changes, and which has no kinks either."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x - self.m).square().sum(-1)


@pytest.mark.parametrize("objective", OBJECTIVES[:2], ids=repr)
@pytest.mark.parametrize("learn_k", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_kinks_are_refused_whatever_else_is_curved(objective: object, zero: bool, learn_k: bool) -> None:
    """Smooth networks pass, those whose head is zero at first too."""
    for kinked in (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh):
        ebm = ep.EBM(Confined(kinked, zero=zero, learn_k=learn_k))
        with pytest.raises(ep.InvalidInput, match=rf"kinks, from layer 'body\.\d' \({kinked.__name__}\).*SiLU.*Denois"):
            objective.init(ebm)  # type: ignore[attr-defined]
        assert math.isfinite(loss_of(ep.objectives.DenoisingScoreMatching(0.5), ebm, torch.randn(8, 2)).value.item())
    for smooth in (nn.SiLU, nn.Softplus, nn.Tanh, nn.ELU):
        ebm = ep.EBM(Confined(smooth, zero=zero, learn_k=learn_k))
        assert math.isfinite(loss_of(objective, ebm, torch.randn(8, 2)).value.item())  # type: ignore[attr-defined]


@pytest.mark.parametrize("objective", OBJECTIVES[:2], ids=repr)
def test_a_smooth_head_of_zeros_needs_no_other_curvature(objective: object) -> None:
    net = Net(nn.SiLU(), bowl=False)
    nn.init.zeros_(net.body[2].weight)
    assert loss_of(objective, ep.EBM(net), torch.randn(8, 2)).value.item() == 0.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("objective", OBJECTIVES[:2], ids=repr)
def test_a_piecewise_linear_energy_is_refused(objective: object) -> None:
    """Its Laplacian is zero wherever there is one."""
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
    with pytest.raises(ep.InvalidInput, match=r"kinks, from layer '1' \(ReLU\)"):
        objective.init(ep.EBM(net, event_shape=(2,)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("objective", OBJECTIVES[:2], ids=repr)
def test_a_mean_is_learned(objective: object) -> None:
    """Its score matching is the sample mean's: the loss is right though no weight changes the curvature."""
    ebm, x = ep.EBM(Mean()), 3.0 + torch.randn(50, 2)
    loss_of(objective, ebm, x).value.backward()  # type: ignore[attr-defined]
    torch.testing.assert_close(ebm.net.m.grad, -x.mean(0))


def test_the_look_leaves_no_trace() -> None:
    """Random numbers and running means after the first loss are those after a loss of a network that was tried."""
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(), nn.Linear(8, 1), nn.Flatten(0))
    ebm, x = ep.EBM(net, event_shape=(2,)), torch.randn(32, 2)
    start, found = [b.clone() for b in net.buffers()], []
    for _ in range(2):
        torch.manual_seed(7)
        loss = loss_of(ep.objectives.SlicedScoreMatching(), ebm, x).value.detach()
        found.append([loss, torch.rand(()), *(b.clone() for b in net.buffers())])
        for buffer, before in zip(net.buffers(), start, strict=True):
            buffer.copy_(before)
    assert all(map(torch.equal, *found))


def test_a_layer_replaced_after_a_check_is_tried_again() -> None:
    """A check remembers no network: a smooth one that gets a ReLU is refused by the next state."""
    ebm = ep.EBM(Confined(nn.SiLU))
    ep.objectives.SlicedScoreMatching().init(ebm)
    ebm.net.body[1] = nn.ReLU()
    with pytest.raises(ep.InvalidInput, match=r"layer 'body\.1' \(ReLU\)"):
        ep.objectives.SlicedScoreMatching().init(ebm)


class Single(nn.Module):
    """A network that computes in float32 whatever it is given, and that can't be copied once it was called."""

    event_shape = torch.Size((2,))

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), activation, nn.Linear(16, 1))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x.float()).squeeze(-1)  # not a leaf: deepcopy refuses it
        return self.last


def test_a_network_of_float32_that_can_not_be_copied_is_tried_in_place() -> None:
    """It is accepted if smooth, refused by the layer's name if not, and left as it was bit for bit."""
    for layer, message in ((nn.SiLU(), None), (nn.ReLU(), r"ReLU\)"), (Layer(_Numpy.apply), "leaves autograd")):
        ebm = ep.EBM(Single(layer))
        ebm.net(torch.zeros(3, 2))
        before = [p.detach().clone() for p in ebm.parameters()]
        if message is None:
            ep.objectives.SlicedScoreMatching().init(ebm)
        else:
            with pytest.raises(ep.InvalidInput, match=message):
                ep.objectives.SlicedScoreMatching().init(ebm)
        assert all(map(torch.equal, before, ebm.parameters()))
        assert ebm.net.training

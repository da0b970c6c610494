"""Score matching: its minimizer, the Laplacian, directions, and networks that can't be differentiated twice."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import energyppl as ep
from energyppl.inference.objectives.second_order import differentiable_score
from tests.support.gaussian import COVARIANCE, Gaussian, draws, small_ebm
from tests.support.objectives import loss_of, measure_of

OBJECTIVES = [
    ep.objectives.ExactScoreMatching(),
    ep.objectives.SlicedScoreMatching(),
    ep.objectives.SlicedScoreMatching(projections=3),
    ep.objectives.DenoisingScoreMatching(0.5),
]


def gradients(objective: object, precision: Tensor, repeats: int = 100, size: int = 200) -> Tensor:
    """∂ loss / ∂P over fresh batches, ``(repeats, 3)``, its distinct entries."""
    ebm = ep.EBM(Gaussian(precision))
    losses = (loss_of(objective, ebm, draws(size)).value for _ in range(repeats))  # type: ignore[attr-defined]
    rows = torch.stack([torch.autograd.grad(loss, ebm.net.weights)[0] for loss in losses])
    return torch.stack([rows[:, 0, 0], rows[:, 0, 1] + rows[:, 1, 0], rows[:, 1, 1]], 1)


def z_scores(rows: Tensor) -> Tensor:
    return rows.mean(0) / (rows.std(0) / math.sqrt(len(rows)))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_the_true_precision_is_the_minimizer(objective: object) -> None:
    """Twelve gradients at 4.5 standard errors: a false alarm in about 1 run of 8,000.  Elsewhere they are not zero."""
    sigma = getattr(objective, "sigma", 0.0)
    true = torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(2))
    assert float(z_scores(gradients(objective, true)).abs().max()) < 4.5
    assert float(z_scores(gradients(objective, 0.7 * true)).abs().max()) > 9.0


def test_denoising_learns_the_noised_density() -> None:
    """Negative control: at the precision of the clean data, denoising's gradient is not zero."""
    rows = gradients(ep.objectives.DenoisingScoreMatching(0.5), torch.linalg.inv(COVARIANCE))
    assert float(z_scores(rows).abs().max()) > 9.0


def test_exact_score_matching_has_the_analytic_laplacian() -> None:
    """Value and weights' gradient of the loss against whole Hessians by ``torch.autograd.functional``, in float64."""
    ebm = small_ebm(3).double()
    x, potential = torch.randn(5, 3, dtype=torch.float64), ebm.potential()
    found = loss_of(ep.objectives.ExactScoreMatching(), ebm, x)

    def one(point: Tensor) -> Tensor:
        return potential(point[None])[0]

    total, trace = torch.zeros(()), 0.0
    for point in x:
        hessian = torch.autograd.functional.hessian(one, point, create_graph=True)
        grad = torch.autograd.functional.jacobian(one, point, create_graph=True)
        total = total + (0.5 * grad.square().sum() - hessian.trace()) / len(x)
        trace += float(hessian.trace().detach()) / len(x)
    assert math.isclose(found.record["laplacian"], trace, rel_tol=1e-9)
    torch.testing.assert_close(found.value, total)
    weights = [ebm.net.film, ebm.net.readout.weight, *(layer.weight for layer in ebm.net.layers)]
    ours, theirs = (torch.autograd.grad(value, weights) for value in (found.value, total))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_the_laplacian_of_a_closed_form() -> None:
    """U = Σ x⁴ has ∇U = 4x³ and the Laplacian 12 |x|²."""

    class Quartic(nn.Module):
        event_shape = torch.Size((2,))

        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x.pow(4).sum(-1)

    ebm, x = ep.EBM(Quartic()), torch.randn(50, 2)
    expected = (8.0 * x.pow(6).sum(1) - 12.0 * x.square().sum(1)).mean()
    for objective in (
        ep.objectives.ExactScoreMatching(),
        ep.objectives.SlicedScoreMatching(),
    ):  # a diagonal Hessian needs one direction
        torch.testing.assert_close(loss_of(objective, ebm, x).value, expected, msg=repr(objective))
        assert math.isclose(measure_of(objective, ebm, x), float(expected), rel_tol=1e-5)


def test_sliced_agrees_with_exact_in_expectation() -> None:
    """The value and three weights' gradients at 4.5 standard errors: a false alarm in 35,000 runs."""
    ebm, x = small_ebm(3).double(), torch.randn(20, 3, dtype=torch.float64)
    with torch.no_grad():
        ebm.net.layers[0].weight.mul_(3.0)  # a Hessian that is far from diagonal

    def row(objective: object) -> Tensor:
        loss = loss_of(objective, ebm, x).value  # type: ignore[attr-defined]
        grad = torch.autograd.grad(loss, ebm.net.readout.weight)[0][0]
        return torch.cat([loss.detach()[None], grad[:3]])

    rows = torch.stack([row(ep.objectives.SlicedScoreMatching()) for _ in range(400)]) - row(
        ep.objectives.ExactScoreMatching()
    )
    assert float(z_scores(rows).abs().max()) < 4.5
    more = torch.stack([row(ep.objectives.SlicedScoreMatching(projections=8)) for _ in range(100)])
    assert float(more[:, 0].var() / rows[:, 0].var()) < 0.25, "eight directions: about an eighth of the variance"


def test_a_level_of_a_model_of_levels() -> None:
    """Level 2's loss is that of the data with its noise: at the truth for N(0, I) its gradient is zero, as above."""
    net = ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2, levels=3)
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(3))
    ebm.is_standardized.fill_(True)
    nn.init.zeros_(net.readout.weight)  # what is left is ½ |x|²
    for make in (
        ep.objectives.ExactScoreMatching,
        ep.objectives.SlicedScoreMatching,
        lambda level: ep.objectives.DenoisingScoreMatching(1e-3, level),
    ):
        objective = make(level=2)
        rows = torch.stack(
            [
                torch.autograd.grad(loss_of(objective, ebm, torch.randn(300, 2)).value, net.readout.weight)[0][0, :3]
                for _ in range(50)
            ]
        )
        assert float(z_scores(rows).abs().max()) < 4.8  # nine numbers, t with 49 degrees: one alarm in 7,000 runs


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
            torch.testing.assert_close(differentiable_score(net, x, net), expected)


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


@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("objective", OBJECTIVES[:2], ids=repr)
@pytest.mark.parametrize("learn_k", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_kinks_are_refused_whatever_else_is_curved(objective: object, rows: int, zero: bool, learn_k: bool) -> None:
    """Smooth networks pass, those whose head is zero at first too; a kinked one is refused again the next time."""
    for kinked in (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh):
        ebm = ep.EBM(Confined(kinked, zero=zero, learn_k=learn_k))
        for _ in range(2):
            with pytest.raises(ep.InvalidInput, match=r"must be curved.*ReLU \(weight '.*SiLU.*DenoisingScoreMatching"):
                loss_of(objective, ebm, torch.randn(rows, 2))  # type: ignore[attr-defined]
        assert math.isfinite(loss_of(ep.objectives.DenoisingScoreMatching(0.5), ebm, torch.randn(rows, 2)).value.item())
    for smooth in (nn.SiLU, nn.Softplus, nn.Tanh, nn.ELU):
        ebm = ep.EBM(Confined(smooth, zero=zero, learn_k=learn_k))
        assert math.isfinite(loss_of(objective, ebm, torch.randn(rows, 2)).value.item())  # type: ignore[attr-defined]


@pytest.mark.parametrize("objective", OBJECTIVES[:2], ids=repr)
def test_a_smooth_head_of_zeros_needs_no_other_curvature(objective: object) -> None:
    net = Net(nn.SiLU(), bowl=False)
    nn.init.zeros_(net.body[2].weight)
    assert loss_of(objective, ep.EBM(net), torch.randn(8, 2)).value.item() == 0.0  # type: ignore[attr-defined]


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ep.objectives.SlicedScoreMatching(projections=0), "projections must be a whole number"),
        (lambda: ep.objectives.DenoisingScoreMatching(0.0), "sigma must be positive"),
        (lambda: ep.objectives.DenoisingScoreMatching(math.nan), "sigma must be positive"),
        (lambda: loss_of(ep.objectives.ExactScoreMatching(), linear(), torch.randn(4, 2)), "must be curved.*ReLU"),
        (lambda: loss_of(ep.objectives.SlicedScoreMatching(), linear(), torch.randn(4, 2)), "must be curved.*ReLU"),
        (lambda: loss_of(ep.objectives.ExactScoreMatching(level=1), small_ebm(), torch.randn(4, 2)), "level 0 only"),
    ],
)
def test_bad_input_is_said(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        make()


def linear() -> ep.EBM:
    """Piecewise linear: its Laplacian is zero wherever there is one."""
    return ep.EBM(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)), event_shape=(2,))

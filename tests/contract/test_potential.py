"""The algebra of potentials: right gradients, exact ends, and input errors that say what to do."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from energyppl import Energy, toys
from energyppl.autodiff.gradient import energy_and_grad
from energyppl.errors import InvalidInput
from energyppl.models import MLPEnergy
from energyppl.potentials.algebra import Bridge, Conditioned, Potential, RecoveryPotential, Scaled, Sum
from energyppl.potentials.network import AtLevel

PAIR = torch.Size((2,))
NOISY = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).reshape(4, 2)
QUARTIC = Energy(lambda x: (x**4).sum(-1) + x[..., 0].sin(), PAIR)
GAUSS = Energy(lambda x: 0.5 * (x * x).sum(-1), PAIR)
WALL = Energy(lambda x: torch.where(x[..., 0] > 0, (x * x).sum(-1), math.inf), PAIR)
IMAGE = Energy(lambda x: (x**2).sum((-1, -2)) * 0.5 + x[..., 0, 0] * x[..., 1, 2], torch.Size((2, 3)))
MASK = torch.tensor([[True, False, True], [False, False, True]])


def network() -> AtLevel:
    return AtLevel(MLPEnergy((2,), hidden=8, levels=4).double(), torch.arange(4), PAIR, loc=0.5, scale=NOISY.exp())


# name: (potential, the shape of points, what it is by hand)
ALGEBRA: dict[str, tuple[Callable[[], Any], tuple[int, ...], Callable[[Tensor], Tensor] | None]] = {
    "energy": (lambda: QUARTIC, (4, 2), lambda x: (x**4).sum(-1) + x[..., 0].sin()),
    "sum": (lambda: Sum(QUARTIC, GAUSS, GAUSS), (4, 2), lambda x: QUARTIC(x) + (x * x).sum(-1)),
    "sum of one": (lambda: Sum(QUARTIC), (4, 2), QUARTIC),
    "scaled": (lambda: Scaled(QUARTIC, -0.5), (4, 2), lambda x: -0.5 * QUARTIC(x)),
    "scaled for each": (
        lambda: Scaled(QUARTIC, torch.arange(4.0, dtype=torch.float64)),
        (4, 2),
        lambda x: torch.arange(4.0, dtype=torch.float64) * QUARTIC(x),
    ),
    "tilted": (
        lambda: RecoveryPotential(QUARTIC, NOISY, 0.5),
        (4, 2),
        lambda x: QUARTIC(x) + 2.0 * ((x - NOISY) ** 2).sum(-1),
    ),
    "sigma for each point": (
        lambda: RecoveryPotential(QUARTIC, NOISY, torch.tensor([[0.5], [1.0], [2.0], [math.inf]], dtype=torch.float64)),
        (4, 2),
        lambda x: QUARTIC(x) + torch.tensor([2.0, 0.5, 0.125, 0.0]) * ((x - NOISY) ** 2).sum(-1),
    ),
    "sigma for each coordinate": (
        lambda: RecoveryPotential(QUARTIC, NOISY, torch.tensor([0.5, math.inf], dtype=torch.float64)),
        (4, 2),
        lambda x: QUARTIC(x) + 2.0 * (x - NOISY)[..., 0] ** 2,
    ),
    "no tilt": (lambda: RecoveryPotential(QUARTIC, NOISY, math.inf), (4, 2), QUARTIC),
    "one center, many points": (
        lambda: RecoveryPotential(QUARTIC, NOISY[0], 1.0),
        (3, 4, 2),
        lambda x: QUARTIC(x) + 0.5 * ((x - NOISY[0]) ** 2).sum(-1),
    ),
    "scalar event": (
        lambda: RecoveryPotential(Energy(lambda x: x**4, ()), NOISY[:, 0], 0.5),
        (4,),
        lambda x: x**4 + 2.0 * (x - NOISY[:, 0]) ** 2,
    ),
    "bridge": (lambda: Bridge(GAUSS, QUARTIC, 0.3), (4, 2), lambda x: 0.7 * GAUSS(x) + 0.3 * QUARTIC(x)),
    "bridge for each": (
        lambda: Bridge(GAUSS, QUARTIC, torch.linspace(0.0, 1.0, 4, dtype=torch.float64)),
        (4, 2),
        lambda x: torch.stack([(1 - i / 3) * GAUSS(x)[i] + i / 3 * QUARTIC(x)[i] for i in range(4)]),
    ),
    "conditioned": (lambda: Conditioned(IMAGE, torch.ones(2, 3, dtype=torch.float64), MASK), (4, 3), None),
    "conditioned rows": (lambda: Conditioned(QUARTIC, NOISY, torch.tensor([False, True])), (4, 1), None),
    "at level": (network, (4, 2), None),
    "tree": (
        lambda: RecoveryPotential(Sum(Bridge(GAUSS, QUARTIC, 0.5), Scaled(network(), 0.1)), NOISY, 0.7),
        (4, 2),
        None,
    ),
}


@pytest.mark.parametrize("name", list(ALGEBRA))
def test_values_and_gradients(name: str) -> None:
    """Against the formula by hand, against finite differences (gradcheck), and through the hot door."""
    make, shape, by_hand = ALGEBRA[name]
    potential = make()
    assert isinstance(potential, Potential)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    energy = potential(x)
    assert energy.shape == x.shape[: x.dim() - len(potential.event_shape)]
    if by_hand is not None:
        torch.testing.assert_close(energy, by_hand(x).to(energy))
    assert torch.autograd.gradcheck(potential, (x,))
    (expected,) = torch.autograd.grad(energy.sum(), x)
    torch.testing.assert_close(energy_and_grad(potential, x)[1], expected)


def test_the_check_above_can_fail() -> None:
    """Negative control: a gradient with a factor of 2, as in fab-torch (STYLE.md section 5)."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return (x * x).sum(-1)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0].unsqueeze(-1) * ctx.saved_tensors[0]

    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(Wrong.apply, (x,))


def test_energies_are_differentiable_in_what_they_are_made_of() -> None:
    net, center = MLPEnergy((2,), hidden=8, levels=4), torch.zeros(4, 2, requires_grad=True)
    RecoveryPotential(AtLevel(net, torch.arange(4), PAIR), center, 1.0)(torch.ones(4, 2)).sum().backward()
    assert center.grad is not None
    torch.testing.assert_close(center.grad, -torch.ones(4, 2))
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("kind", [float, torch.tensor, lambda b: torch.full((3,), b)], ids=["float", "0-d", "each"])
def test_the_ends_of_a_bridge_are_exact_where_the_other_energy_is_infinite(kind: Callable[[float], Any]) -> None:
    x = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-2.0, 0.0]])
    for base, target in ((GAUSS, WALL), (WALL, GAUSS)):
        for beta, end in ((0.0, base), (1.0, target)):
            bridge = Bridge(base, target, kind(beta))
            assert torch.equal(bridge(x), end(x))
            for ours, theirs in zip(energy_and_grad(bridge, x), energy_and_grad(end, x), strict=True):
                assert torch.equal(ours, theirs)
        between = Bridge(base, target, kind(0.5))(x)
        assert between[[0, 2]].tolist() == [math.inf, math.inf]
        assert between[1] == pytest.approx(1.5)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_many_points_are_evaluated_in_parts(each: bool, labelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = MLPEnergy((2,), hidden=8, depth=1, levels=3, classes=4 if labelled else 0)
    x, level = torch.randn(2, 5, 2), torch.randint(3, (2, 5)) if each else torch.tensor(1)
    label = torch.randint(4, (2, 5)) if labelled and each else torch.tensor(2) if labelled else None
    potential = AtLevel(net, level, PAIR, condition=label)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()  # levels and classes begin alike
        whole = potential(x)
        sizes: list[int] = []
        net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        monkeypatch.setattr("energyppl.potentials.network._AT_ONCE", 4)
        parts = potential(x)
    assert sizes == [4, 4, 2]
    assert torch.allclose(parts, whole, atol=1e-6)


def test_conditioned_completes_points() -> None:
    observed = torch.arange(6.0).reshape(2, 3)
    potential = Conditioned(IMAGE, observed, MASK)
    assert potential.event_shape == (3,)
    whole = potential.complete(torch.tensor([10.0, 20.0, 30.0]))
    assert whole.tolist() == [[10.0, 1.0, 20.0], [3.0, 4.0, 30.0]]
    assert observed.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]  # not written to
    rows = Conditioned(IMAGE, torch.stack([observed, -observed]), MASK)
    assert rows.complete(torch.zeros(5, 2, 3))[4, 1].tolist() == [[0.0, -1.0, 0.0], [-3.0, -4.0, 0.0]]
    assert rows.complete(torch.zeros(3)).shape == (2, 2, 3)  # one free part, two observed ones
    assert rows(torch.zeros(5, 2, 3)).shape == (5, 2)
    every = Conditioned(IMAGE, torch.full((2, 3), math.nan), torch.ones(2, 3, dtype=torch.bool))
    assert every(torch.ones(6)) == IMAGE(torch.ones(2, 3))  # what is free is never read from the observed


def test_conditioning_a_gaussian_gives_its_conditional() -> None:
    """The energy difference along the free coordinate is that of the exact conditional normal."""
    mixture = toys.GaussianMixture(torch.zeros(1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
    potential = Conditioned(mixture, torch.tensor([1.5, math.nan]), torch.tensor([False, True]))
    x = torch.linspace(-2.0, 3.0, 7)[:, None]
    exact = -torch.distributions.Normal(0.8 * 1.5, 0.6).log_prob(x[:, 0])
    difference = potential(x) - exact
    torch.testing.assert_close(difference, difference[:1].expand(7), atol=1e-5, rtol=0)


SIX = torch.zeros(6, 2)
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "function in a Sum": (lambda: Sum(GAUSS, lambda x: x), "term 1 of a Sum must be a potential.*wrap a plain func"),
    "empty Sum": (lambda: Sum(), "at least one potential"),
    "Sum of shapes": (lambda: Sum(GAUSS, IMAGE), r"share one event_shape; got \(2,\) and \(2, 3\)"),
    "module without a shape": (lambda: Scaled(torch.nn.Linear(2, 1), 1.0), "potential of a Scaled must be.*got Linear"),
    "factor nan": (lambda: Scaled(GAUSS, math.nan), "factor must be finite; got nan"),
    "factor inf": (lambda: Scaled(GAUSS, torch.tensor([1.0, math.inf])), "factor must be finite"),
    "center's shape": (
        lambda: RecoveryPotential(GAUSS, torch.zeros(3, 4), 1.0),
        r"noisy must end in .*\(2,\); got \(3, 4\)",
    ),
    "center too small": (
        lambda: RecoveryPotential(IMAGE, torch.zeros(3), 1.0),
        r"noisy must end in event_shape \(2, 3\)",
    ),
    "integer center": (lambda: RecoveryPotential(GAUSS, torch.zeros(3, 2).long(), 1.0), "noisy must be floating point"),
    "center a list": (lambda: RecoveryPotential(GAUSS, [0.0, 0.0], 1.0), "noisy must be a torch tensor; got list"),  # type: ignore[arg-type]
    "sigma zero": (lambda: RecoveryPotential(GAUSS, SIX, 0.0), "sigma must be positive; got 0.0"),
    "sigma negative": (lambda: RecoveryPotential(GAUSS, SIX, torch.tensor(-1.0)), "sigma must be positive"),
    "sigma nan": (lambda: RecoveryPotential(GAUSS, SIX, math.nan), "sigma must be positive"),
    "sigma for each, flat": (lambda: RecoveryPotential(GAUSS, SIX, torch.ones(6)), r"\(\*batch, 1\) for vectors"),
    "sigma too big": (
        lambda: RecoveryPotential(GAUSS, SIX, torch.ones(3, 6, 2)),
        r"sigma must broadcast.*got \(3, 6, 2\)",
    ),
    "bridge of shapes": (lambda: Bridge(GAUSS, IMAGE, 0.5), r"share one event_shape; got \(2,\) and \(2, 3\)"),
    "bridge of a function": (lambda: Bridge(GAUSS, abs, 0.5), "target must be a potential"),  # type: ignore[arg-type]
    "beta below": (lambda: Bridge(GAUSS, GAUSS, -0.1), r"beta must lie in \[0, 1\]; got -0.1"),
    "beta above": (lambda: Bridge(GAUSS, GAUSS, torch.tensor([0.0, 1.1])), r"beta must lie in \[0, 1\]"),
    "beta nan": (lambda: Bridge(GAUSS, GAUSS, math.nan), r"beta must lie in \[0, 1\]"),
    "mask's shape": (lambda: Conditioned(GAUSS, torch.zeros(2), MASK), r"boolean mask of shape \(2,\)"),
    "mask of floats": (lambda: Conditioned(GAUSS, torch.zeros(2), torch.ones(2)), "boolean mask.*got torch.float32"),
    "nothing free": (lambda: Conditioned(GAUSS, torch.zeros(2), torch.zeros(2).bool()), "nothing to sample"),
    "observed's shape": (
        lambda: Conditioned(GAUSS, torch.zeros(3), torch.ones(2).bool()),
        r"observed must end in event_shape \(2,\); got \(3,\)",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(InvalidInput, match=message):
        make()


@pytest.mark.parametrize("name", list(ALGEBRA))
def test_potentials_are_frozen(name: str) -> None:
    potential = ALGEBRA[name][0]()
    with pytest.raises(AttributeError):
        potential.event_shape = torch.Size((9,))

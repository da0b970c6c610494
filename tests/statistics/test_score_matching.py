"""Score matching: its minimizer, the Laplacian and directions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
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
    state = objective.init(ebm)  # type: ignore[attr-defined]
    losses = (loss_of(objective, ebm, draws(size), state).value for _ in range(repeats))
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
        loss = loss_of(objective, ebm, x, nn.Module()).value  # their states are empty
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
        state = objective.init(ebm)
        rows = torch.stack(
            [
                torch.autograd.grad(loss_of(objective, ebm, torch.randn(300, 2), state).value, net.readout.weight)[0][
                    0, :3
                ]
                for _ in range(50)
            ]
        )
        assert float(z_scores(rows).abs().max()) < 4.8  # nine numbers, t with 49 degrees: one alarm in 7,000 runs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ep.objectives.SlicedScoreMatching(projections=0), "projections must be a whole number"),
        (lambda: ep.objectives.DenoisingScoreMatching(0.0), "sigma must be positive"),
        (lambda: ep.objectives.DenoisingScoreMatching(math.nan), "sigma must be a number; got nan"),
        (lambda: ep.objectives.ExactScoreMatching(level=1).init(small_ebm()), "level 0 only"),
    ],
)
def test_bad_input_is_said(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        make()

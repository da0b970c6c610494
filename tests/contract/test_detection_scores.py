"""Scores for out-of-distribution detection, against hand-made energies, and their refusals."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.errors import InvalidInput

PLANE = torch.Size((2,))


class Bowl(nn.Module):
    """The energy ``(1 + level) |x|² / 2``, with a level or without one."""

    def __init__(self, event_shape: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        square = x.square().reshape(*x.shape[: x.dim() - len(self.event_shape)], -1).sum(-1)
        return 0.5 * self.weight * square * (1.0 if level is None else 1.0 + level)


def moved_bowl(event_shape: tuple[int, ...] = (2,)) -> ep.EBM:
    """The density of N(3, 2²) in each coordinate."""
    ebm = ep.EBM(Bowl(event_shape))
    ebm.loc.fill_(3.0)
    ebm.scale.fill_(2.0)
    return ebm


X = torch.tensor([[3.0, 3.0], [5.0, 3.0], [-1.0, 9.0]])  # standardized: (0, 0), (1, 0), (−2, 3)

ENERGIES = torch.tensor([0.0, 0.5, 6.5], dtype=torch.float64)


# --- Scores ----------------------------------------------------------------------------------------------------------


def test_energies_of_models_potentials_and_distributions() -> None:
    ebm = moved_bowl()
    unit = ep.Energy(lambda x: 0.5 * x.square().sum(-1), PLANE)
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    scores = ep.evaluation.energy_scores(ebm, X)
    assert scores.dtype == torch.float64
    assert not scores.requires_grad
    torch.testing.assert_close(scores, ENERGIES)
    torch.testing.assert_close(ep.evaluation.energy_scores(ebm, X.double(), batch=2), ENERGIES)
    torch.testing.assert_close(ep.evaluation.energy_scores(ebm.marginal(), X), ENERGIES)
    z = (X - 3.0) / 2.0
    torch.testing.assert_close(ep.evaluation.energy_scores(unit, z), ENERGIES)
    torch.testing.assert_close(ep.evaluation.energy_scores(Bowl(), z), ENERGIES)
    torch.testing.assert_close(ep.evaluation.energy_scores(normal, z), ENERGIES + math.log(2.0 * math.pi))
    assert ebm.net.weight.grad is None


def test_energy_of_a_support_is_infinite_outside() -> None:
    positive = torch.distributions.constraints.positive
    half = ep.EnergyDistribution(ep.Energy(lambda x: x.sum(-1), PLANE), support=positive)
    found = ep.evaluation.energy_scores(half, torch.tensor([[1.0, 2.0], [-1.0, 2.0]]))
    assert found.tolist() == [3.0, math.inf]


def test_levels_and_their_joint_energy() -> None:
    """Standardized squares s = 0, 1, 13 have U(x, t) = (1 + t) s / 2 at level t."""
    squares = torch.tensor([0.0, 1.0, 13.0], dtype=torch.float64)
    recovery = ep.RecoveryEBM(Bowl(), ep.NoiseSchedule.cosine(levels=3))
    joint = ep.JointEBM(Bowl(), ep.NoiseSchedule.cosine(levels=2))
    for model in (recovery, joint):
        model.loc.fill_(3.0)
        model.scale.fill_(2.0)
        torch.testing.assert_close(ep.evaluation.energy_scores(model, X, level=2), 1.5 * squares)
        exact = -(-squares[:, None] * torch.tensor([0.5, 1.0, 1.5])).exp().sum(1).log()
        torch.testing.assert_close(ep.evaluation.joint_scores(model, X, batch=2), exact)


@pytest.mark.parametrize("event_shape", [(), (2,), (1, 2, 2)])
def test_gradient_norms(event_shape: tuple[int, ...]) -> None:
    """|∂U/∂z| = |z| for the unit bowl, in standardized coordinates whatever the data's units."""
    z = torch.randn(7, *event_shape)
    exact = z.double().reshape(7, -1).norm(dim=1)
    torch.testing.assert_close(
        ep.evaluation.gradient_scores(moved_bowl(event_shape), 3.0 + 2.0 * z, batch=4), exact, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ep.evaluation.gradient_scores(Bowl(event_shape), z), exact)


def test_typicality_is_the_distance_from_the_mean_energy() -> None:
    training = torch.tensor([[3.0, 3.0], [3.0, 7.0]])  # energies 0 and 2
    torch.testing.assert_close(ep.evaluation.typicality_scores(moved_bowl(), X, training), (ENERGIES - 1.0).abs())
    batched = ep.evaluation.typicality_scores(moved_bowl(), X, training, batch=1)
    torch.testing.assert_close(batched, (ENERGIES - 1.0).abs())


def test_ratio_to_bases_models_and_compressors() -> None:
    ebm, wide = moved_bowl(), ep.potentials.GaussianBase(torch.full((2,), 3.0), torch.full((2,), 4.0))
    constant = math.log(2.0 * math.pi * 16.0)
    torch.testing.assert_close(
        ep.evaluation.ratio_scores(ebm, X, wide), 0.75 * ENERGIES - constant, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ep.evaluation.ratio_scores(ebm, X, ebm, batch=2), 0.0 * ENERGIES)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(2)),
        torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2, 2), torch.ones(2, 2)), 1),
    )
    exact = ENERGIES + mixture.log_prob(X).double()
    torch.testing.assert_close(ep.evaluation.ratio_scores(ebm, X, mixture), exact, rtol=1e-5, atol=1e-5)

    def nats(x: Tensor) -> Tensor:
        sizes = [8 * len(zlib.compress(row.numpy().tobytes())) for row in x]
        return math.log(2.0) * torch.tensor(sizes, dtype=x.dtype)

    found = ep.evaluation.ratio_scores(ebm, X, ep.Energy(nats, PLANE))
    torch.testing.assert_close(found, ENERGIES - nats(X).double(), rtol=1e-6, atol=1e-6)


def test_rows_of_classes_of_their_own_are_cut_with_their_labels() -> None:
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), levels=3, classes=2), ep.NoiseSchedule.cosine(levels=3))
    for parameter in ebm.parameters():
        nn.init.normal_(parameter, std=0.3)
    labels = torch.tensor([0, 1, 0, 1, 1])
    x = torch.randn(5, 2)
    found = ep.evaluation.energy_scores(ebm.given(labels), x, batch=2)
    each = [
        float(ep.evaluation.energy_scores(ebm.given(int(label)), row[None]))
        for label, row in zip(labels, x, strict=True)
    ]
    assert found.tolist() == pytest.approx(each, rel=1e-5)
    assert float(ep.evaluation.energy_scores(ebm.given(1), x[:1])) != pytest.approx(each[0], rel=1e-3)


def test_conditions_of_rows_are_cut_with_them_in_models_of_all_kinds() -> None:
    classes = ep.RecoveryEBM(ep.MLPEnergy((2,), levels=3, classes=3, hidden=8), ep.NoiseSchedule.cosine(levels=3))
    contexts = ep.models.ConditionalEBM(
        ep.MLPEnergy(2, context_shape=2, hidden=8), ep.NoiseSchedule.cosine(3, log_snr_min=-6.0)
    )
    contexts.inverse_temperature.fill_(2.0)  # type: ignore[operator]
    label, context, x = torch.arange(12) % 3, torch.rand(12, 2), torch.randn(12, 2)
    own = classes.given(label)
    for model in (
        own,
        classes.given(torch.tensor([1])),
        contexts.conditioned(context),
        contexts.conditioned(context[:1]),
        ep.product(own, classes.given(0)),
        ep.mixture(classes.given(1), own),
        ep.measured(own, ep.LinearMeasurement(torch.ones(1, 2), torch.tensor([0.5]), 0.1)),
    ):
        whole = ep.evaluation.energy_scores(model, x)
        torch.testing.assert_close(ep.evaluation.energy_scores(model, x, batch=5), whole)
        assert whole.std() > 0.0


def test_points_outside_of_a_distribution_have_infinite_energies() -> None:
    gamma, x = (
        torch.distributions.Independent(torch.distributions.Gamma(torch.tensor([2.0]), 1.0), 1),
        torch.tensor([[1.0], [-1.0]]),
    )
    assert ep.evaluation.energy_scores(gamma, x).tolist() == [1.0, math.inf]
    bell = ep.Energy(lambda x: 0.5 * x.square().sum(-1), (1,))
    assert ep.evaluation.ratio_scores(bell, x, gamma)[1] == -math.inf


def test_scores_may_be_arrays() -> None:
    low, high = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0])
    assert ep.evaluation.auroc(low.numpy(), high.double().numpy()) == ep.evaluation.auroc(low, high)
    assert ep.evaluation.fpr_at_95(low.numpy(), high) == ep.evaluation.fpr_at_95(low, high)


def test_an_energy_alone_takes_the_mode_for_ordinary() -> None:
    """In 50 dimensions N(0, I) has its mass at |x|² ≈ 50 ± 10: rows near the mode are outliers of the lowest energy.

    Of 400 squared norms of each kind, χ²_50 and χ²_50 / 25, none cross but once in 10^15.
    """
    ebm = ep.EBM(Bowl((50,)))
    training, inliers, near_mode = torch.randn(1000, 50), torch.randn(400, 50), 0.2 * torch.randn(400, 50)

    def area(score: Callable[[Tensor], Tensor]) -> float:
        return ep.evaluation.auroc(score(inliers), score(near_mode)).value

    assert area(lambda x: ep.evaluation.energy_scores(ebm, x)) == 0.0
    assert (
        area(lambda x: ep.evaluation.gradient_scores(ebm, x)) == 0.0
    )  # a mode is flat, which the gradient takes for ordinary too
    assert area(lambda x: ep.evaluation.typicality_scores(ebm, x, training)) > 0.99
    spread = ep.potentials.GaussianBase(torch.zeros(50), torch.full((50,), 0.2))
    assert area(lambda x: ep.evaluation.ratio_scores(ebm, x, spread)) == 1.0


# --- Refusing --------------------------------------------------------------------------------------------------------

S = torch.randn(30)

HOLED = torch.where(torch.arange(30) == 4, torch.nan, S)

UNIT = ep.Energy(lambda x: 0.5 * x.square().sum(-1), PLANE)

NORMALS = torch.distributions.Normal(torch.zeros(2), 1.0)

BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no outliers": (lambda: ep.evaluation.auroc(S, S[:0]), "outliers must be at least two scores; got 0"),
    "one inlier": (lambda: ep.evaluation.fpr_at_95(S[:1], S), "inliers must be at least two scores; got 1"),
    "one class in a report": (lambda: ep.evaluation.detection_report(S, S[:0]), "outliers must be at least two"),
    "missing scores": (
        lambda: ep.evaluation.auroc(HOLED, S),
        "inliers must be finite; got NaN or infinity in 1 of 30.* row 4",
    ),
    "infinite scores": (
        lambda: ep.evaluation.detection_report(S, S / 0.0),
        "outliers must be finite; got .* in 30 of 30",
    ),
    "a column of scores": (
        lambda: ep.evaluation.auroc(S[:, None], S),
        r"shape \(n,\); got torch.float32 of shape \(30, 1\)",
    ),
    "complex scores": (lambda: ep.evaluation.auroc(S.to(torch.complex64), S), "real scores"),
    "a list of scores": (lambda: ep.evaluation.auroc([0.1, 0.2], S), "inliers must be a torch tensor; got list"),  # type: ignore[arg-type]
    "a confidence of 1": (
        lambda: ep.evaluation.detection_report(S, S, confidence=1.0),
        r"confidence must lie between 0 and 1; got 1.0",
    ),
    "few repeats": (
        lambda: ep.evaluation.detection_report(S, S, repeats=39),
        "repeats must be a whole number of at least 40",
    ),
    "rows of another shape": (
        lambda: ep.evaluation.energy_scores(moved_bowl(), S.reshape(10, 3)),
        r"x must end in .*\(2,\)",
    ),
    "one row": (lambda: ep.evaluation.gradient_scores(moved_bowl(), X[0]), "x must have shape"),
    "missing values": (
        lambda: ep.evaluation.joint_scores(ep.JointEBM(Bowl(), ep.NoiseSchedule.cosine(levels=2)), X / 0.0),
        "finite",
    ),
    "no batch": (lambda: ep.evaluation.energy_scores(moved_bowl(), X, batch=0), "batch must be"),
    "a level that is not there": (lambda: ep.evaluation.energy_scores(moved_bowl(), X, level=1), "level 0 only"),
    "a level of a potential": (
        lambda: ep.evaluation.energy_scores(UNIT, X, level=1),
        "must be 0 for Energy, which has no noise",
    ),
    "a joint score of one level": (
        lambda: ep.evaluation.joint_scores(moved_bowl(), X),
        "at least two noise levels; got EBM",
    ),
    "a joint score of a potential": (
        lambda: ep.evaluation.joint_scores(UNIT, X),
        "at least two noise levels; got Energy",
    ),  # type: ignore[arg-type]
    "no training rows": (
        lambda: ep.evaluation.typicality_scores(UNIT, X, X[:0]),
        r"training must have at least 1 row\(s\); got 0",
    ),
    "None for training rows": (
        lambda: ep.evaluation.typicality_scores(UNIT, X, None),  # type: ignore[arg-type]
        "training must be a torch tensor; got NoneType",
    ),
    "training rows out of reach": (
        lambda: ep.evaluation.typicality_scores(ep.Energy(lambda x: x.log().sum(-1), PLANE), X, X),
        "training rows must have finite energies; got 1 of 3 that have not, first in row 2",
    ),
    "a batch of bases": (lambda: ep.evaluation.ratio_scores(UNIT, X, NORMALS), "a base must have no batch"),
    "a base that is none": (lambda: ep.evaluation.ratio_scores(UNIT, X, 3.0), "must be a potential"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(InvalidInput, match=message):
        make()

"""Out-of-distribution detection: scores against hand-made energies, AUROC and FPR against closed forms, pictures."""

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import energyppl as ep
from energyppl.errors import InvalidInput
from energyppl.plots.base import save_figure
from energyppl.plots.detection import score_histograms

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


# --- How well scores tell --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "sd"), [(0.0, 1.0), (1.0, 1.0), (2.0, 0.5)])
def test_two_gaussians(shift: float, sd: float) -> None:
    """N(0, 1) against N(Δ, s²): AUROC Φ(Δ / √(1 + s²)), FPR Φ(1.645 s − Δ); 4.5 standard errors, 6 checks.

    A false alarm in 24,000 runs.  The rate's error is that of its share and of the threshold, a quantile.
    """
    n, m = 20_000, 30_000
    inliers, outliers = torch.randn(n), shift + sd * torch.randn(m)
    area = ep.evaluation.auroc(inliers, outliers)
    assert abs(area.value - norm.cdf(shift / math.hypot(1.0, sd))) < 4.5 * area.standard_error
    threshold = shift + sd * norm.ppf(0.05)
    rate = norm.sf(threshold)
    slope = norm.pdf(threshold) / norm.pdf(threshold, shift, sd)
    error = math.sqrt(rate * (1.0 - rate) / n + slope**2 * 0.05 * 0.95 / m)
    assert abs(ep.evaluation.fpr_at_95(inliers, outliers) - rate) < 4.5 * error


def test_delongs_error_is_that_of_repeats() -> None:
    """P(N(1, 1) > N(0, 1)) = Φ(1/√2): the mean of 300 within 4.5 of its errors, a false alarm in 150,000 runs.

    The errors are those of the repeats to a quarter, 6 standard errors of a standard deviation.
    """
    repeats = [ep.evaluation.auroc(torch.randn(60), 1.0 + torch.randn(40)) for _ in range(300)]
    values = torch.tensor([r.value for r in repeats])
    assert abs(float(values.mean()) - norm.cdf(math.sqrt(0.5))) < 4.5 * float(values.std()) / math.sqrt(300)
    assert float(values.std()) == pytest.approx(sum(r.standard_error for r in repeats) / 300, rel=0.25)


def by_hand(inliers: Tensor, outliers: Tensor) -> tuple[float, float]:
    """Every pair, and every score as a threshold."""
    difference = outliers[:, None] - inliers[None]
    area = float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())
    enough = [t for t in outliers.tolist() if 20 * int((outliers >= t).sum()) >= 19 * len(outliers)]
    return area, float((inliers >= max(enough)).double().mean())


@pytest.mark.parametrize("seed", range(8))
def test_ties_are_counted_as_by_hand(seed: int) -> None:
    """Small whole numbers, which tie within and across; at 20, 40 and 100 outliers 95 % of them is a whole number."""
    torch.manual_seed(seed)
    m = [2, 7, 19, 20, 21, 40, 99, 100][seed]
    inliers, outliers = torch.randint(0, 8, (30,)), torch.randint(2, 10, (m,))
    area, rate = by_hand(inliers, outliers)
    assert ep.evaluation.auroc(inliers, outliers).value == pytest.approx(area, abs=1e-12)
    assert ep.evaluation.fpr_at_95(inliers, outliers) == pytest.approx(rate, abs=1e-12)
    report = ep.evaluation.detection_report(inliers, outliers, repeats=50)
    assert (report.auroc.value, report.fpr_at_95.value) == pytest.approx((area, rate), abs=1e-12)


def test_a_constant_score_tells_nothing() -> None:
    same = torch.zeros(5), torch.zeros(7)
    report = ep.evaluation.detection_report(*same)
    assert report.auroc[:3] == (0.5, 0.5, 0.5)
    assert report.fpr_at_95[:3] == (1.0, 1.0, 1.0)
    assert (ep.evaluation.auroc(*same).value, ep.evaluation.fpr_at_95(*same)) == (0.5, 1.0)


def test_the_other_sign_and_the_other_positive_class() -> None:
    """A score of the wrong sign has 1 − AUROC; Liang et al.'s rate is that of the outliers let in."""
    inliers, outliers = torch.randn(300), 1.0 + torch.randn(200)
    right, wrong = ep.evaluation.auroc(inliers, outliers), ep.evaluation.auroc(-inliers, -outliers)
    assert right.value > 0.6
    assert wrong.value == pytest.approx(1.0 - right.value, abs=1e-12)
    assert wrong.standard_error == pytest.approx(right.standard_error)
    assert ep.evaluation.fpr_at_95(-inliers, -outliers) > 0.9 > ep.evaluation.fpr_at_95(inliers, outliers)
    threshold = inliers.sort().values[284]  # 285 of 300 are no stranger
    assert ep.evaluation.fpr_at_95(-outliers, -inliers) == pytest.approx(float((outliers <= threshold).double().mean()))


def test_intervals_cover() -> None:
    """Of 400 intervals at 95 %, 351 to 396 hold the truth, for AUROC and for FPR.

    Over 1,000 repeats 94.2 % and 95.0 % did.  If they cover 93 % to 96 %, a binomial's tails, four of them, make a
    false alarm in 2,500 runs at the most.
    """
    truth = norm.cdf(math.sqrt(0.5)), norm.sf(1.0 + norm.ppf(0.05))
    hits = np.zeros(2)
    for _ in range(400):
        report = ep.evaluation.detection_report(torch.randn(200), 1.0 + torch.randn(150), repeats=200)
        hits += [f.lower <= t <= f.upper for f, t in zip((report.auroc, report.fpr_at_95), truth, strict=True)]
    assert (hits >= 351).all()
    assert (hits <= 396).all()


def test_rows_that_are_copies_make_intervals_that_do_not_cover() -> None:
    """The negative control: 40 inliers counted 25 times cover the truth in under 80 of 100 cases; 48 % of 1,000 did."""
    truth = norm.cdf(math.sqrt(0.5))
    reports = [
        ep.evaluation.detection_report(torch.randn(40).repeat(25), 1.0 + torch.randn(500), repeats=100)
        for _ in range(100)
    ]
    assert sum(r.auroc.lower <= truth <= r.auroc.upper for r in reports) < 80


def test_resampling_agrees_with_delong_and_repeats_itself() -> None:
    """Two ways to one standard error, within 15 %: with 1,000 resamples 2.2 % is one standard error of it."""
    inliers, outliers = torch.randn(500), 1.0 + torch.randn(400)
    torch.manual_seed(5)
    report = ep.evaluation.detection_report(inliers, outliers)
    exact = ep.evaluation.auroc(inliers, outliers)
    assert report.auroc.standard_error == pytest.approx(exact.standard_error, rel=0.15)
    assert report.auroc.lower == pytest.approx(exact.lower, abs=0.5 * exact.standard_error)
    assert report.auroc.upper == pytest.approx(exact.upper, abs=0.5 * exact.standard_error)
    narrow = ep.evaluation.detection_report(inliers, outliers, level=0.5)
    assert report.auroc.lower < narrow.auroc.lower < narrow.auroc.upper < report.auroc.upper
    torch.manual_seed(5)
    assert ep.evaluation.detection_report(inliers, outliers) == report
    assert str(report).startswith(f"AUROC {exact.value:.4f} (95%: {report.auroc.lower:.4f} to ")
    assert str(report).endswith("500 inliers, 400 outliers")


def test_many_scores_take_seconds_and_little_memory() -> None:
    """Blocks of resamples add up to as many as were asked for, whatever their number."""
    report = ep.evaluation.detection_report(torch.randn(40_000), 3.0 + torch.randn(30_000), repeats=130)
    assert report.auroc.lower < norm.cdf(3.0 / math.sqrt(2.0)) + 0.002
    assert 0.0 < report.auroc.standard_error < 0.001


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
    "a level of 1": (
        lambda: ep.evaluation.detection_report(S, S, level=1.0),
        r"level must lie inside \(0, 1\); got 1.0",
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


# --- Pictures --------------------------------------------------------------------------------------------------------


def test_histograms_become_a_png(tmp_path: Path) -> None:
    sets = {"digits": torch.randn(2000), "clothes": 3.0 + torch.randn(1000).numpy(), "noise": 1e5 * torch.rand(500)}
    figure = score_histograms(sets, title="energies", inlier="digits")
    picture = matplotlib.image.imread(save_figure(figure, tmp_path / "figure.png"))
    assert picture.std() > 0.01
    assert [patch.get_fill() for patch in figure.axes[0].patches] == [True, False, False]


@pytest.mark.parametrize("inlier", ["digits", None])
def test_far_outliers_leave_room_for_the_inliers_and_are_named(inlier: str | None) -> None:
    """Areas are shares of whole sets, so that what is beyond the axis is missing from them, and said."""
    far = torch.cat([1e6 * torch.ones(30), torch.zeros(10)])
    broken = torch.tensor([0.5, -0.5, math.nan, math.inf])
    axes = score_histograms({"digits": torch.randn(5000), "far": far, "broken": broken}, inlier=inlier).axes[0]
    low, high = axes.get_xlim()
    assert -30.0 < low < -2.0
    assert 2.0 < high < 30.0
    areas = [float((p.get_data()[0] * np.diff(p.get_data()[1])).sum()) for p in axes.patches]  # type: ignore[attr-defined]
    assert areas == pytest.approx([1.0, 0.25, 1.0], abs=0.02)
    words = [text.get_text() for text in axes.get_legend().get_texts()]  # type: ignore[union-attr]
    assert words[1] == "far (40 scores), 75.0% beyond the right end"
    assert words[2] == "broken (4 scores), 2 not finite"


def test_equal_scores_are_drawn() -> None:
    for value in (0.0, 1e9):
        low, high = score_histograms({"a": torch.full((5,), value)}).axes[0].get_xlim()
        assert low < value < high


@pytest.mark.parametrize(
    ("scores", "inlier", "message"),
    [
        ({}, None, "at least one set; got none"),
        ({"a": S, "b": S}, "c", "inlier must name one of the sets a, b; got 'c'"),
        ({"a": S[:, None]}, None, r"scores of a must have shape \(n,\); got \(30, 1\)"),
        ({"a": S[:0]}, None, "scores of a must have a finite one; got none among 0"),
        ({"a": S, "b": S * torch.nan}, "a", "scores of b must have a finite one; got none among 30"),
    ],
)
def test_bad_picture_is_refused(scores: dict[str, Tensor], inlier: str | None, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        score_histograms(scores, inlier=inlier)

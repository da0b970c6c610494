"""How well scores detect outliers: AUROC and FPR against closed forms, and whether intervals cover."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import energyppl as ep

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
    narrow = ep.evaluation.detection_report(inliers, outliers, confidence=0.5)
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

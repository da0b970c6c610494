"""Sample metrics against closed forms, brute force and their own standard errors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from energyppl.errors import InvalidInput
from energyppl.metrics.images import frechet_distance, kernel_distance, label_balance, memorized, nearest_neighbours


def exact_gaussian(n: int, mean: Tensor, covariance: Tensor) -> Tensor:
    """Rows whose own mean and covariance are these to the last digit."""
    x = torch.randn(n, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


# --- Fréchet distance ---


def test_frechet_distance_of_commuting_gaussians() -> None:
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    mean = torch.tensor([1.0, -2.0, 0.0]).double()
    found = frechet_distance(exact_gaussian(50, mean, a.diag()), exact_gaussian(40, mean * 0, b.diag()))
    assert found == pytest.approx(5.0 + float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-10)


def test_frechet_distance_of_gaussians_that_do_not_commute() -> None:
    """For 2×2 matrices tr(M^½)² = tr M + 2 (det M)^½."""
    a = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, -0.5], [-0.5, 3.0]], dtype=torch.float64)
    root = math.sqrt(float((a @ b).trace()) + 2 * math.sqrt(float(torch.linalg.det(a) * torch.linalg.det(b))))
    zero = torch.zeros(2, dtype=torch.float64)
    found = frechet_distance(exact_gaussian(30, zero, a), exact_gaussian(70, zero, b))
    assert found == pytest.approx(float((a + b).diagonal().sum()) - 2 * root, rel=1e-10)
    naive = float((a + b).diagonal().sum() - 2 * (a.diagonal() * b.diagonal()).sqrt().sum())
    assert abs(naive - found) > 0.1  # the covariances' off-diagonal parts are seen


def test_frechet_distance_with_fewer_rows_than_columns() -> None:
    """Rank-deficient covariances: equal samples are at 0, and shifted ones at the shift, to rounding."""
    x = torch.randn(10, 200, dtype=torch.float64)
    assert 0 <= frechet_distance(x, x[torch.randperm(10)]) < 1e-10
    assert frechet_distance(x, x + 0.1) == pytest.approx(2.0, rel=1e-10)
    assert frechet_distance(x[:2].float(), x[:2].float()) < 1e-10
    assert frechet_distance(x * 0, x * 0) == 0.0


def test_frechet_distance_is_biased_upwards() -> None:
    few, many = (
        np.mean([frechet_distance(torch.randn(n, 5), torch.randn(n, 5)) for _ in range(20)]) for n in (20, 200)
    )
    assert few > 3 * many > 0


# --- Kernel distance ---


def brute_force(a: Tensor, b: Tensor, degree: int) -> float:
    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x.double() @ y.double()) / len(x) + 1) ** degree

    own = [np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    return float(own[0] + own[1] - 2 * np.mean([kernel(x, y) for x in a for y in b]))


@pytest.mark.parametrize("degree", [1, 3])
def test_kernel_distance_is_its_formula(degree: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(9, 4), torch.randn(13, 4) + 0.5
    whole = kernel_distance(a, b, degree=degree)
    assert whole.value == pytest.approx(brute_force(a, b, degree), rel=1e-9)
    monkeypatch.setattr("energyppl.metrics.images._ROWS", 4)
    assert kernel_distance(a, b, degree=degree) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize(("n", "m", "shift"), [(40, 40, 0.0), (60, 30, 0.0), (40, 40, 0.3), (60, 30, 0.3)])
def test_kernel_distance_is_unbiased_and_knows_its_error(n: int, m: int, shift: float) -> None:
    """Over 400 repeats, by the mean and by the spread.

    With x of mean 0 and y of mean s in each of d dimensions, both of unit variance, and degree 2, the squared distance
    is exactly ``2 s² + s⁴``, since the kernel compares first and second moments.  The mean is allowed 4 of its standard
    errors, which it leaves by chance once in 16,000 runs.  The spread over the root mean square of the reported errors
    is allowed 0.8 to 1.2, about 4 of its own standard errors.  The jackknife's error alone is 1.4 times too large for
    equal distributions, a ratio of 0.71, and the first-order error alone far too small.
    """
    d, repeats = 64, 400
    found = [kernel_distance(torch.randn(n, d), torch.randn(m, d) + shift, degree=2) for _ in range(repeats)]
    values = np.array([f.value for f in found])
    truth = 2 * shift**2 + shift**4
    assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / math.sqrt(repeats)
    ratio = values.std(ddof=1) / math.sqrt(np.mean([f.standard_error**2 for f in found]))
    assert 0.8 < ratio < 1.2


def test_kernel_distance_sees_a_difference() -> None:
    found = kernel_distance(torch.randn(300, 8), torch.randn(200, 8) * 2.0)
    assert found.value > 5 * found.standard_error


# --- Labels ---


def test_label_balance_of_known_counts() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    found = label_balance(labels, 4)
    assert found.shares.tolist() == [0.5, 0.3, 0.2, 0.0]
    assert found.standard_errors[:2].tolist() == pytest.approx([0.05, math.sqrt(0.21 / 100)])
    assert found.z_scores[0] == pytest.approx(0.25 / math.sqrt(0.25 * 0.75 / 100))
    assert found.p_value < 1e-8
    fair = label_balance(labels.to(torch.uint8), 3, expected=torch.tensor([0.5, 0.3, 0.2]))
    assert fair.z_scores.abs().max() < 1e-6
    assert fair.p_value == pytest.approx(1.0)


def test_label_balance_p_value_is_calibrated() -> None:
    """Below 0.05 in 5 % of 400 repeats, within 4 standard errors: a false alarm once in 16,000 runs."""
    below = np.mean([label_balance(torch.randint(5, (200,)), 5).p_value < 0.05 for _ in range(400)])
    assert abs(below - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 400)


# --- Neighbours ---


@pytest.mark.parametrize("batch", [7, 1024])
def test_neighbours_are_brute_forces(batch: int) -> None:
    samples, training = torch.rand(20, 1, 5, 4), torch.rand(50, 1, 5, 4)
    found = nearest_neighbours(samples, training, k=9, batch=batch)
    distance = (samples.double().flatten(1)[:, None] - training.double().flatten(1)).norm(dim=2).sort(1)
    assert found.indices.equal(distance.indices[:, :9])
    torch.testing.assert_close(found.distance, distance.values[:, :9], rtol=1e-12, atol=0.0)


def test_distance_of_a_copy_is_zero_far_from_the_origin() -> None:
    """One product in float32 would give about 0.1, and in float64 1e-5."""
    training = torch.randn(200, 30) + 1000.0
    found = nearest_neighbours(training[50:60], training)
    assert found.indices[:, 0].tolist() == list(range(50, 60))
    assert found.distance.abs().max() == 0.0


def test_neighbours_far_from_the_origin_are_brute_forces() -> None:
    """At 1e8 squares have 16 digits before the point, and with them 47 of 50 neighbours were wrong."""
    samples, training = (1e8 + torch.randn(n, 3, 4, dtype=torch.float64) for n in (50, 200))
    found = nearest_neighbours(samples, training, k=3, batch=70)
    distance = (samples.flatten(1)[:, None] - training.flatten(1)).norm(dim=2).sort(1)
    assert found.indices.equal(distance.indices[:, :3])
    torch.testing.assert_close(found.distance, distance.values[:, :3], rtol=1e-12, atol=0.0)


def test_copies_are_found() -> None:
    """Of 1,000 samples a share of 0.01 is expected, with a standard error of 0.0045: 5 of them are allowed."""
    training, held_out, fresh = torch.randn(2000, 6), torch.randn(1000, 6), torch.randn(1000, 6)
    honest = memorized(fresh, training, held_out)
    assert abs(honest.share - 0.01) < 5 * math.sqrt(0.0099 * 2 / 1000)
    assert honest.sample_median == pytest.approx(honest.held_out_median, rel=0.1)
    half = memorized(torch.cat([fresh[:500], training[:500] + 1e-3]), training, held_out)
    assert half.share == pytest.approx(0.505, abs=0.02)
    assert memorized(training, training, held_out).sample_median == 0.0


def test_share_is_right_on_average_with_few_held_out_points() -> None:
    """Its mean over 300 repeats within 4 standard errors of 0.01, a false alarm once in 16,000 runs."""
    training = torch.randn(100, 3)
    shares = np.array([memorized(torch.randn(100, 3), training, torch.randn(100, 3)).share for _ in range(300)])
    assert abs(shares.mean() - 0.01) < 4 * shares.std(ddof=1) / math.sqrt(300)


def test_copies_are_found_where_the_held_out_data_repeat_the_training_data() -> None:
    training, held_out = torch.randn(300, 6), torch.randn(200, 6)
    held_out[:20] = training[:20]
    assert memorized(training, training, held_out).share == 1.0


# --- Refusing ---

X = torch.randn(150, 3)
BAD = torch.where(torch.arange(150)[:, None] == 4, torch.nan, X)


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (frechet_distance, (X, X[:1]), r"b must have at least 2 row\(s\); got 1"),
        (frechet_distance, (X, X[:, :2]), r"features \(n, d\) and \(m, d\); got \(150, 3\) and \(150, 2\)"),
        (frechet_distance, (X[..., None], X[..., None]), r"got \(150, 3, 1\)"),
        (frechet_distance, (BAD, X), "a must be finite.*first in row 4"),
        (frechet_distance, (X.long(), X), "a must be floating point"),
        (kernel_distance, (X, X[:3]), r"b must have at least 4 row\(s\); got 3"),
        (kernel_distance, (X, BAD), "b must be finite"),
        (lambda a, b: kernel_distance(a, b, degree=0), (X, X), "degree must be"),
        (label_balance, ([0, 1], 2), "must be a tensor of integers; got list"),
        (label_balance, (X, 3), r"integers of shape \(n,\); got torch.float32 of shape \(150, 3\)"),
        (label_balance, (torch.tensor([], dtype=torch.int64), 3), r"of shape \(0,\)"),
        (label_balance, (torch.tensor([0, 3]), 3), "from 0 to 2; got 0 to 3"),
        (label_balance, (torch.tensor([-1, 2]), 3), "got -1 to 2"),
        (label_balance, (torch.tensor([0]), 1), "classes must be a whole number of at least 2"),
        (label_balance, (torch.tensor([0]), 2, torch.tensor([1.0, 0.0])), "2 positive shares that sum to 1"),
        (label_balance, (torch.tensor([0]), 2, torch.tensor([3.0, 1.0])), "divide by their sum"),
        (label_balance, (torch.tensor([0]), 2, torch.tensor([1.0])), "2 positive shares"),
        (nearest_neighbours, (X, X[:, :2]), r"samples and training must hold points of one shape"),
        (nearest_neighbours, (X, X[:2], 3), r"training must have at least 3 row\(s\); got 2"),
        (nearest_neighbours, (X, X, 0), "k must be"),
        (nearest_neighbours, (X, X, 1, 0), "batch must be"),
        (nearest_neighbours, (X, BAD), "training must be finite"),
        (memorized, (X, X, X[:99]), r"held_out must have at least 100 row\(s\); got 99"),
        (memorized, (X, X, X[:, :2]), "held_out and training must hold points of one shape"),
        (memorized, (X[:, :2], X, X), "samples and training must hold points of one shape"),
    ],
)
def test_bad_input_is_refused(call: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call(*arguments)

"""The permutation test keeps its false-alarm rate, finds differences, and its statistic is the energy distance."""

import math

import pytest
import torch

from energyppl.errors import InvalidInput
from energyppl.metrics.two_sample import energy_distance_test


def p_values(shift: float, scale: float, repeats: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(repeats):
        x = torch.randn(40, 2, generator=generator)
        y = shift + scale * torch.randn(60, 2, generator=generator)
        found.append(energy_distance_test(x, y, 99, generator).p_value)
    return torch.tensor(found)


def test_statistic_is_the_energy_distance() -> None:
    x, y = torch.randn(7, 3), torch.randn(5, 3)
    mean = [torch.cdist(a.double(), b.double()).mean() for a, b in ((x, y), (x, x), (y, y))]
    assert energy_distance_test(x, y, 1).statistic == pytest.approx(float(2 * mean[0] - mean[1] - mean[2]))


def test_false_alarm_rate() -> None:
    """Rejections at 10 % are binomial: 5 standard errors, a false alarm of this test in two million."""
    repeats = 400
    rate = float((p_values(0.0, 1.0, repeats) <= 0.1).double().mean())
    assert abs(rate - 0.1) < 5 * math.sqrt(0.09 / repeats)


@pytest.mark.parametrize(("shift", "scale"), [(1.0, 1.0), (0.0, 2.5)])
def test_power(shift: float, scale: float) -> None:
    assert float((p_values(shift, scale, 40) <= 0.05).double().mean()) > 0.8


def test_equal_samples_are_no_evidence() -> None:
    x = torch.randn(20, 2)
    found = energy_distance_test(x, x.clone(), 200)
    assert found.statistic == pytest.approx(0.0, abs=1e-12)
    assert found.p_value > 0.5


def test_generator_repeats_and_events_of_any_shape() -> None:
    x, y = torch.randn(12, 2, 3), torch.randn(15, 2, 3)
    first, second = (energy_distance_test(x, y, 50, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(5, 2), torch.zeros(5, 3), "one shape"),
        (torch.zeros(1, 2), torch.zeros(5, 2), "at least 2"),
        (torch.full((5, 2), math.nan), torch.zeros(5, 2), "x must be finite"),
        (torch.zeros(5, 2, dtype=torch.long), torch.zeros(5, 2), "floating point"),
    ],
)
def test_bad_input(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        energy_distance_test(x, y)


def test_points_may_be_single_numbers() -> None:
    x, y = torch.randn(20), torch.randn(15)
    found = energy_distance_test(x, y).statistic
    assert found == energy_distance_test(x[:, None], y[:, None]).statistic

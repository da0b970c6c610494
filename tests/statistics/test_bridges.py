"""Bennett's acceptance ratio and runs in both directions: unbiased, and honest where the two ends do not overlap."""

import math

import pytest
import torch

import energyppl as ep
from energyppl import log_normalizer
from energyppl.inference.normalizing import bennett
from energyppl.inference.normalizing.methods import BAR
from energyppl.inference.normalizing.paths import annealed, find_path
from energyppl.potentials.bases import GaussianBase

LIMIT = 4.5  # standard errors: 7e-6 two-sided for one number


def test_bennett_on_gaussian_work() -> None:
    """Work N(σ²/2 ± …, σ²) between equal ends has ratio 0; and the error is what 200 repeats spread by."""
    found = [bennett(torch.randn(300).double() - 0.5, torch.randn(200).double() - 0.5) for _ in range(200)]
    estimates = torch.tensor([f[0] for f in found])
    assert abs(float(estimates.mean())) < LIMIT * float(estimates.std()) / math.sqrt(200)
    assert float(estimates.std()) == pytest.approx(sum(f[1] for f in found) / 200, rel=0.25)  # 5 errors of a deviation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [60.0, 400.0])
def test_bennett_of_ends_that_do_not_overlap_knows_nothing(far: float, dtype: torch.dtype) -> None:
    estimate, error = bennett(*(torch.randn(2, 100, dtype=dtype) - far))
    assert abs(estimate) < far
    assert error == math.inf
    with pytest.raises(ep.errors.EnergyPPLError, match="all forward or all reverse log weights are infinite"):
        bennett(torch.full((100,), -math.inf), torch.zeros(100))


def test_an_interval_of_ends_that_do_not_overlap_holds_all_numbers() -> None:
    size = 500
    base, bell = (
        GaussianBase(torch.zeros(size), torch.full((size,), 2.0)),
        ep.Energy(lambda x: 0.5 * x.square().sum(-1), (size,)),
    )
    with pytest.warns(UserWarning, match="."):
        found = log_normalizer(
            bell, samples=torch.randn(1200, size), base=base, method=BAR(particles=64, temperatures=1)
        )
    assert found.standard_error == math.inf


@pytest.mark.parametrize("alike", [True, False])
def test_runs_in_both_directions_move_alike_where_stretches_meet(alike: bool) -> None:
    """A path by way of a waypoint, 0 by 4.5 of its errors; with another step size after the joint, the control, it is
    a nat off.
    """

    def gaussian(mean: float, width: float) -> ep.Energy:
        constant = math.log(width) + 0.5 * math.log(2.0 * math.pi)
        return ep.Energy(lambda x: (0.5 * ((x - mean) / width) ** 2 + constant).sum(-1), (1,))

    base, stops = GaussianBase(torch.zeros(1), torch.ones(1)), (gaussian(1.5, 1.0), gaussian(3.0, 0.3))
    path = find_path(stops, base, None, ep.MALA(1.0), temperatures=4, refit=False, sparing=None)
    first, second = (schedule.step_sizes for schedule in path.schedules)
    assert float(first[-1]) == float(second[0])
    if not alike:
        second[0] = 1e-3
    forward = annealed(path, base.sample(20_000), ep.MALA(1.0))[-1].log_weights
    target = 3.0 + 0.3 * torch.randn(20_000, 1)
    reverse = annealed(path, target, ep.MALA(1.0), reverse=True)[-1].log_weights
    estimate, error = bennett(forward, reverse)
    assert (abs(estimate) < LIMIT * error) == alike

"""The verdict on a trained run, beside what is known."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn

import energyppl as ep
from energyppl.cli.quality import quality
from energyppl.cli.runs import FittedTable

RNG = np.random.default_rng


class Bell(nn.Module):
    """The energy of N(0, I), without its log Z."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return 0.5 * x.square().sum(-1)


def judged(held_out: NDArray[np.float64], samples: NDArray[np.float64], width: float = 1.0) -> dict[str, Any]:
    """Judge the exact energy of N(0, I) on such rows and samples."""
    ebm = ep.RecoveryEBM(Bell(), ep.NoiseSchedule.cosine(2), event_shape=(2,))
    ebm.is_standardized.fill_(True)
    empty = (np.empty(0), np.empty(0))
    train = width * RNG(1).normal(size=(4000, 2))
    table = FittedTable(ebm, ("a", "b"), np.zeros(2), np.ones(2), empty, train, held_out, {})
    return quality(table, samples, ebm.log_normalizer())


def test_the_truth_is_called_good() -> None:
    """Log Z is log 2π by quadrature; the mean log density within 4.5 standard errors: false alarm 1 in 100,000.

    The p-value is below .05 in one of 20 seeds, so that of a fixed seed is only read.
    """
    held_out, samples = RNG(2).normal(size=(500, 2)), RNG(3).normal(size=(1000, 2))
    found = judged(held_out, samples)
    density, gaussian, log_z = (found[name] for name in ("log_density", "gaussian", "log_z"))
    assert abs(density["value"] + math.log(2.0 * math.pi) + 1.0) < 4.5 * density["standard_error"]
    assert abs(gaussian["value"]) < 0.01
    assert log_z["value"] == pytest.approx(math.log(2.0 * math.pi), abs=1e-3)
    assert f"p = {found['energy_distance']['p_value']:.3f}" in found["verdict"][1]
    assert "log Z is +1.84 where training alone implies 0" in found["verdict"][2]


def test_what_is_bad_is_said() -> None:
    """Samples off by a standard deviation, and rows half as wide as the model's energy says."""
    held_out, shifted = RNG(2).normal(size=(500, 2)), RNG(3).normal(size=(1000, 2)) + 1.0
    assert "samples differ from held-out rows" in judged(held_out, shifted)["verdict"][1]
    said = judged(0.5 * held_out, shifted, width=0.5)["verdict"]
    assert "a Gaussian of the same mean and covariance describes held-out rows better" in said[0]

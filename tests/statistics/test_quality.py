"""The verdict on a trained run, beside what is known."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn

import energyppl as ep
from energyppl.cli.quality import _gaussian, quality
from energyppl.cli.runs import FittedTable

RNG = np.random.default_rng


class Bell(nn.Module):
    """The energy of N(0, I), without its log Z."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return 0.5 * x.square().sum(-1)


SCALE, LOC = np.array([100.0, 0.01]), np.array([5.0, -3.0])


def judged(
    held_out: NDArray[np.float64], samples: NDArray[np.float64], width: float = 1.0, gap: float = 0.0
) -> dict[str, Any]:
    """Judge the exact energy of N(0, I) on such rows and samples, in other units; the second column maybe discrete."""
    ebm = ep.RecoveryEBM(Bell(), ep.NoiseSchedule.cosine(2), event_shape=(2,))
    ebm.is_standardized.fill_(True)
    train = width * RNG(1).normal(size=(4000, 2))
    in_units = [LOC + SCALE * rows for rows in (train, held_out, samples)]
    grids = (np.empty(0), LOC[1] + SCALE[1] * gap * np.arange(-9, 10) if gap else np.empty(0))
    if gap:
        for rows in in_units:
            rows[:, 1] = grids[1][np.abs(rows[:, 1:] - grids[1]).argmin(1)]
    table = FittedTable(ebm, ("a", "b"), LOC, SCALE, grids, in_units[0], in_units[1], {})
    return quality(table, in_units[2], ebm.log_normalizer() + float(np.log(SCALE).sum()))


@pytest.mark.parametrize("gap", [0.0, 0.5])
def test_the_truth_is_as_good_as_its_gaussian(gap: float) -> None:
    """The mean log density within 4.5 standard errors of minus the entropy: false alarm 1 in 100,000.

    Rounding to a grid and spreading again changes the entropy by gap²/24, a hundredth.  The p-value is below .05 in one
    of 20 seeds, so that of a fixed seed is only read.
    """
    found = judged(RNG(2).normal(size=(500, 2)), RNG(3).normal(size=(1000, 2)), gap=gap)
    density, gaussian, log_z = (found[name] for name in ("log_density", "gaussian", "log_z"))
    entropy = math.log(2.0 * math.pi) + 1.0 + float(np.log(SCALE).sum())
    assert abs(density["value"] + entropy) < 4.5 * density["standard_error"] + (0.02 if gap else 0.0)
    assert abs(gaussian["value"]) < (0.03 if gap else 0.01)
    assert "about as likely" in found["verdict"][0] or gap
    assert log_z["value"] == pytest.approx(math.log(2.0 * math.pi), abs=1e-3)
    assert f"p = {found['energy_distance']['p_value']:.3f}" in found["verdict"][1]
    assert "log Z is +1.84 where training alone implies 0" in found["verdict"][2], "Bell leaves its log Z out"


def test_a_rare_value_is_no_spike_of_the_gaussian() -> None:
    """A column of which one row in a hundred is 1, the others 0: its Gaussian's density is averaged over cells too."""
    column = (RNG(1).random(size=(4000, 1)) < 0.01).astype(float)
    spread = np.cov(column.T).reshape(1, 1) + 1.0 / 12.0
    cells = (column[:500] + RNG(5).random(size=(500, 1)) - 0.5 for _ in range(16))
    found = np.mean([np.exp(_gaussian(column.mean(0), spread)(rows)) for rows in cells], 0)
    assert float(np.log(found).mean()) < 0.4, "at the grid's points alone it is .86"


def test_what_is_bad_is_said() -> None:
    """Samples off by a standard deviation, and rows half as wide as the model's energy says."""
    held_out, shifted = RNG(2).normal(size=(500, 2)), RNG(3).normal(size=(1000, 2)) + 1.0
    assert "samples differ from held-out rows" in judged(held_out, shifted)["verdict"][1]
    said = judged(0.5 * held_out, shifted, width=0.5)["verdict"]
    assert "describes held-out rows better" in said[0]

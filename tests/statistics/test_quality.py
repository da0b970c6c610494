"""The verdict on a trained table, beside what is known."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn

import energyppl as ep
from energyppl.data.columns import Numbers
from energyppl.data.monotone import Base
from energyppl.data.tables import Table, table_from_array
from energyppl.tables.quality import column_tests, pair_tests, quality

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
    in_units = [LOC + SCALE * rows for rows in (width * RNG(1).normal(size=(4000, 2)), held_out, samples)]
    lattice = LOC[1] + SCALE[1] * gap * np.arange(-12, 13)
    if gap:
        for rows in in_units:
            rows[:, 1] = lattice[np.abs(rows[:, 1:] - lattice).argmin(1)]
    first = Numbers("none", Base("none"), None, None, 0.0, -np.inf, np.inf)
    second = Numbers("none", Base("none"), None, None, gap * SCALE[1], lattice[0], lattice[-1])
    transform = ep.data.TableTransform(("a", "b"), (first, second), LOC, SCALE)
    table = Table(in_units[0], ("a", "b"), (np.empty(0), lattice if gap else np.empty(0)), "made")
    model = ep.tables.TableModel(ebm, transform, table, in_units[1])
    return quality(model, in_units[2], ebm.log_normalizer())


@pytest.mark.parametrize("gap", [0.0, 0.5])
def test_the_truth_is_as_good_as_its_baselines(gap: float) -> None:
    """The mean log density within 4.5 standard errors of minus the entropy: false alarm 1 in 100,000.

    A column on a grid has a mass, whose entropy is that of the density less log gap, up to gap²/24, a hundredth.  The
    p-value is below .05 in one of 20 seeds, so that of a fixed seed is only read.
    """
    found = judged(RNG(2).normal(size=(500, 2)), RNG(3).normal(size=(1000, 2)), gap=gap)
    density, log_z = found["log_density"], found["log_z"]
    entropy = math.log(2.0 * math.pi) + 1.0 + math.log(SCALE[0]) + (math.log(1.0 / gap) if gap else math.log(SCALE[1]))
    assert abs(density["value"] + entropy) < 4.5 * density["standard_error"] + (0.02 if gap else 0.0)
    for name in ("mixture", "independent"):
        assert abs(found[name]["value"]) < (0.04 if gap else 0.02), name
    assert log_z["value"] == pytest.approx(math.log(2.0 * math.pi), abs=1e-3)
    said = " ".join(found["verdict"])
    assert f"p = {found['energy_distance']['p_value']:.3f}" in said
    assert "log Z is +1.84 where training alone implies 0" in said, "Bell leaves its log Z out"


def test_what_is_bad_is_said() -> None:
    """Samples off by a standard deviation, and rows half as wide as the model's energy says."""
    held_out, shifted = RNG(2).normal(size=(500, 2)), RNG(3).normal(size=(1000, 2)) + 1.0
    said = " ".join(judged(held_out, shifted)["verdict"])
    assert "not good: samples differ from held-out rows" in said
    assert "not good: the worst column is 'a'" in said or "not good: the worst column is 'b'" in said
    said = " ".join(judged(0.5 * held_out, shifted, width=0.5)["verdict"])
    assert "not good: a mixture of Gaussians describes held-out rows better" in said
    assert "or another transform of" in said


def test_the_worst_column_and_pair_are_found_and_others_are_not() -> None:
    """Of four columns one is shifted and one pair is correlated; without that nothing is named: 1 alarm in 100."""
    x, y = RNG(5).normal(size=(800, 4)), RNG(6).normal(size=(800, 4))
    table = table_from_array(x, ["a", "b", "c", "d"])
    transform = ep.data.TableTransform.fit(table)
    assert column_tests(table, x, y)[0]["p_value"] > 0.01
    assert pair_tests(transform, x, y)[0]["p_value"] > 0.01
    y[:, 1] += 0.5
    y[:, 3] = 0.6 * y[:, 2] + 0.8 * y[:, 3]
    column, pair = column_tests(table, x, y)[0], pair_tests(transform, x, y)[0]
    assert (column["column"], pair["columns"]) == ("b", ["c", "d"])
    assert max(column["p_value"], pair["p_value"]) < 1e-4


def test_what_differs_is_said_in_words() -> None:
    """Booleans by their shares, counts whose quantiles agree by their means, large numbers without an exponent."""
    rng = RNG(8)
    frame = pd.DataFrame({"yes": rng.random(900) < 0.3, "few": rng.poisson(0.2, 900), "pay": rng.normal(9e4, 9.0, 900)})
    table = ep.data.table_from_frame(frame)
    other = table.values + np.array([0.0, 0.0, 100.0])
    other[:300, 0] = 1.0
    other[rng.random(900) < 0.02, 1] = 0.0
    said = {test["column"]: test["said"] for test in column_tests(table, table.values, other, ("one", "the other"))}
    assert re.fullmatch(r"the share of (True|False) is \d+.\d% in one, \d+.\d% in the other", said["yes"])
    assert re.fullmatch(r"the mean is 0\.\d+ in one, 0\.\d+ in the other", said["few"])
    assert re.fullmatch(r"the (median|5 % quantile|95 % quantile) is \d{5} in one, \d{5} in the other", said["pay"])


def test_few_held_out_rows_tell_little() -> None:
    """Two rows have a correlation of one, and no test sees a difference: neither is a finding."""
    x = RNG(7).normal(size=(400, 2))
    transform = ep.data.TableTransform.fit(table_from_array(x))
    assert pair_tests(transform, x[:2], x)[0]["p_value"] == 1.0
    said = " ".join(judged(RNG(2).normal(size=(20, 2)), RNG(3).normal(size=(1000, 2)))["verdict"])
    assert "20 held-out rows are too few to tell whether samples are like them" in said


def test_a_pair_that_differs_has_a_remedy() -> None:
    """Independent columns where samples are correlated a little: the test of two samples alone may well pass."""
    samples = RNG(3).normal(size=(1000, 2))
    samples[:, 1] = 0.3 * samples[:, 0] + 0.954 * samples[:, 1]
    verdict = judged(RNG(2).normal(size=(500, 2)), samples)["verdict"]
    said = " ".join(verdict)
    assert "not good: the worst pair is 'a' and 'b'" in said
    assert "held-out rows are about as likely as under a mixture of Gaussians (" in said
    assert any(sentence.startswith("try ") for sentence in verdict)


def test_correlations_near_one_are_told_apart() -> None:
    """Columns that nearly determine each other: both correlations are 1.00, and they differ."""

    def rows(seed: int, noise: float, count: int) -> NDArray[np.float64]:
        x, rest = RNG(seed).normal(size=(2, count))
        return np.stack([x, x + noise * rest], 1)

    said = " ".join(judged(rows(2, 0.04, 500), rows(3, 0.09, 1000))["verdict"])
    one, other = re.findall(r"columns ([+\d.]+) in held-out rows, ([+\d.]+) in samples", said)[0]
    assert one != other
    assert 1.0 > float(one) > float(other) > 0.99

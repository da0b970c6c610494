"""Standardization that a few rows can't ruin."""

from pathlib import Path

import numpy as np
import pytest
import torch

import energyppl as ep
from energyppl.cli.runs import Settings, fit_table, load_run


def model() -> ep.RecoveryEBM:
    return ep.RecoveryEBM(ep.MLPEnergy(2, hidden=4, depth=1, levels=3), ep.NoiseSchedule.cosine(levels=3))


def test_one_cell_does_not_make_the_others_one_point() -> None:
    """Of 4,000 rows of N(5, 2²) one is 1e8; median and central width give 5 and 2 within 5 errors."""
    rows = 5.0 + 2.0 * torch.randn(4000, 2)
    rows[7, 1] = 1e8
    ebm = model()
    with pytest.warns(UserWarning, match=r"coordinate\(s\) 1, .* Look for wrong cells there"):
        ebm.standardize(rows)
    error = 2.0 / 4000**0.5  # of a median 1.25 of this, of the central 95 % / 3.92 about 1
    assert abs(float(ebm.loc[1]) - 5.0) < 5 * 1.25 * error
    assert abs(float(ebm.scale[1]) - 2.0) < 5 * 1.2 * error
    unit = ebm.to_unit(rows)
    assert len(unit[:, 1].unique()) > 3900
    torch.testing.assert_close(ebm.scale[0], rows[:, 0].std())


def test_cauchy_and_log_normal_columns_are_named_and_others_are_left_alone() -> None:
    heavy = torch.stack([torch.distributions.Cauchy(0.0, 1.0).sample((5000,)), (3.0 * torch.randn(5000)).exp()], 1)
    heavy[0, 0] = 1e5  # whatever was drawn
    with pytest.warns(UserWarning, match=r"coordinate\(s\) 0, 1,"):
        model().standardize(heavy)
    # A warning is an error in these tests: Student-t of five degrees, exponential and uniform columns give none.
    for mild in (
        torch.distributions.StudentT(5.0).sample((5000, 2)),
        torch.distributions.Exponential(1.0).sample((5000, 2)),
        torch.rand(5000, 2),
    ):
        ebm = model()
        ebm.standardize(mild)
        torch.testing.assert_close(ebm.scale, mild.std(0))


def test_a_far_mode_of_a_tenth_is_named_but_keeps_its_weight() -> None:
    rows = (torch.rand(5000, 2) < 0.1) * 100.0 + torch.randn(5000, 2)
    ebm = model()
    with pytest.warns(UserWarning, match=r"coordinate\(s\) 0, 1 is more than 10 times what the central half"):
        ebm.standardize(rows)
    torch.testing.assert_close(ebm.scale, rows.std(0))


def test_a_table_s_column_is_taken_by_its_normal_scores(tmp_path: Path) -> None:
    """Two wrong cells of 300 no longer rule a column: its bulk keeps its width, and nothing is warned of."""
    values = np.random.default_rng(0).normal(size=(300, 2))
    values[3, 1] = values[200, 1] = 200.0
    file = tmp_path / "incomes.csv"
    file.write_text("age,income\n" + "\n".join(f"{a!r},{b!r}" for a, b in values.tolist()))
    fit_table(file, tmp_path / "run", Settings(steps=3), progress=False)
    transform = load_run(tmp_path / "run").transform
    assert transform.words() == {"age": "as it is", "income": "by its normal scores"}
    inside = np.array([[0.0, -1.0], [0.0, 1.0]])
    z, _ = transform.encode(inside, torch.Generator().manual_seed(0))
    assert 1.6 < z[1, 1] - z[0, 1] < 2.4  # a fifth of error at 300 rows
    assert np.abs(transform.encode(values, torch.Generator())[0]).max() < 5.0

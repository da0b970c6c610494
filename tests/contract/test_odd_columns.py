"""Columns and cells that tables of few rows, and files of new rows, bring along."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import energyppl as ep
from energyppl.tables.training import prepare


def words(frame: pd.DataFrame, name: str) -> str:
    return ep.data.TableTransform.fit(ep.data.table_from_frame(frame)).words()[name]


def with_zeros(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=rows)
    spend = np.where(rng.random(rows) < 0.8, 0.0, np.exp(a + rng.normal(size=rows)))
    return pd.DataFrame({"a": a, "spend": spend})


# --- Given columns ---


def test_given_values_of_another_dtype_stay_what_they_are() -> None:
    """They were rounded to the training rows' dtype: 30.5 to 30, and 260 in eight bits to 4."""
    rng = np.random.default_rng(0)
    a, k = rng.integers(0, 60, 400), rng.integers(0, 5, 400)
    frame = pd.DataFrame({"a": a.astype("uint8"), "k": k, "told": rng.random(400) < 0.5})
    frame["y"] = 2 * a + rng.integers(0, 5, 400)
    model = ep.tables.fit_conditional(frame, "y", steps=20, progress=False)
    asked = pd.DataFrame(
        {"a": [30.0, 30.5, 260.0, -5.0, 1e19, 30.0, 30.0], "k": [1.0, 1, 1, 1, 1, 2.6, 1], "told": [0.0] * 6 + [0.7]}
    )
    table = ep.data.table_from_rows(asked, like=model.given_table)
    assert table.frame().astype(float).equals(asked)
    with pytest.warns(UserWarning, match="5 of 7 rows lie nowhere near"):
        found = model.predict(table)
    with pytest.warns(UserWarning, match="5 of 7 rows lie nowhere near"):
        pd.testing.assert_frame_equal(found, model.predict(asked))
    assert found.far.tolist() == [False, False, True, True, True, True, True]
    assert found.y_mean[1] != found.y_mean[0]


def test_values_of_the_first_dtype_come_back_in_it() -> None:
    frame = pd.DataFrame({"a": np.arange(20, dtype="uint8")[::-1], "b": np.linspace(0.0, 1.0, 20, dtype="float32")})
    table = ep.data.table_from_frame(frame)
    pd.testing.assert_frame_equal(table.frame(), frame)
    assert table.frame(table.values + np.array([1e-9, 0.0])).dtypes.tolist() == [np.uint8, np.float32]
    assert table.frame(table.values * np.array([1.0, 1e300])).dtypes.tolist() == [np.uint8, np.float64]


def test_ordered_categories_stay_ordered(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kind = pd.Categorical(rng.choice(["low", "mid", "high"], 60), ["low", "mid", "high"], ordered=True)
    model = ep.tables.fit(pd.DataFrame({"a": rng.normal(size=60), "kind": kind}), steps=3, progress=False)
    ep.tables.save(model, tmp_path / "model.ckpt")
    drawn = ep.tables.load(tmp_path / "model.ckpt").sample(5, seed=0).kind
    assert drawn.dtype == kind.dtype
    assert (drawn <= "high").all()


# --- How columns are taken ---


def test_a_heap_beside_values_that_occur_once_is_not_few_values() -> None:
    """New rows have other values, and had no density."""
    assert "values" not in words(with_zeros(50, 0), "spend")
    few = pd.DataFrame({"a": np.arange(50.0), "few": np.resize([0.0, 0.0, 1.3, 2.9], 50)})
    assert words(few, "few") == "3 values, by their shares of the normal scores"


def test_a_heap_has_its_mass_where_few_rows_lie_beside_it() -> None:
    frame = with_zeros(200, 0)
    assert words(frame, "spend").endswith("with 0 in 78% of the rows")
    model = ep.tables.fit(frame, steps=20, progress=False)
    share = float((model.sample(1000, seed=0).spend == 0.0).mean())
    assert share == pytest.approx((frame.spend == 0.0).mean(), abs=0.06)  # four standard errors are .05
    assert np.isfinite(model.log_prob(with_zeros(100, 1))).all()


@pytest.mark.parametrize("rows", [60, 200, 1000])
def test_codes_in_steps_of_a_hundred_are_found_among_few_rows(rows: int) -> None:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"a": rng.normal(size=rows), "code": rng.integers(0, 300, rows) * 100})
    assert prepare(ep.data.table_from_frame(frame), None).transform.words()["code"].endswith("in steps of 100")
    frame.loc[3, "code"] += 1
    assert prepare(ep.data.table_from_frame(frame), None).transform.words()["code"].endswith("in steps of 1")


@pytest.mark.parametrize("rows", [100, 120, 200])
def test_a_bell_curve_has_no_ends(rows: int) -> None:
    """Its two outermost rows were a hundredth of a hundred rows, and that was a crowd at both ends."""
    for seed in range(20):  # of each of which both ends are crowded by chance once in 2,000 times
        frame = pd.DataFrame(np.random.default_rng(seed).normal(size=(rows, 2)), columns=["a", "b"])
        assert words(frame, "a") == "as it is", f"seed {seed}"


# --- Absurd cells ---


def test_absurd_cells_have_no_density_and_are_far() -> None:
    """Beyond the range of float32 coordinates were NaN, and one row's stopped all."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 3)), columns=["a", "b", "c"])
    model = ep.tables.fit(frame, steps=5, progress=False)
    odd = frame[:6].copy()
    odd.loc[2:5, "a"] = [1e20, 1e40, -1e300, 1e300]
    scores = model.log_prob(odd)
    assert np.isneginf(scores).tolist() == [False, False, True, True, True, True]
    assert ep.tables.score(model, odd, first=1).because[0].startswith("a = ")
    told = ep.tables.fit_conditional(frame, "b", steps=5, progress=False)
    with pytest.warns(UserWarning, match="4 of 6 rows lie nowhere near"):
        assert told.predict(odd).far.tolist() == [False, False, True, True, True, True]

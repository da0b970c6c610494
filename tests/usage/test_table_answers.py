"""Answers of table commands and functions to values that can't be, wrong counts and other kinds of files."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import energyppl as ep
from energyppl.cli.main import main

RNG = np.random.default_rng(5)
FRAME = pd.DataFrame(
    {
        "income": np.exp(RNG.normal(10.0, 0.5, 120)),
        "age": RNG.integers(18, 90, 120),
        "sex": np.array(["female", "male"])[RNG.integers(2, size=120)],
    }
)


MIXED = FRAME.assign(income=FRAME.income.round(2), owner=FRAME.age > 60)


@pytest.fixture(scope="module")
def model() -> ep.tables.TableModel:
    return ep.tables.fit(FRAME, steps=5, levels=3, progress=False)


@pytest.fixture(scope="module")
def mixed() -> ep.tables.TableModel:
    return ep.tables.fit(MIXED, steps=5, levels=3, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("answers")
    FRAME.to_csv(place / "table.csv", index=False)
    assert run("fit", place / "table.csv", "--out", place / "run", "--steps", 5, "--levels", 3) == 0
    return place


def run(*arguments: Any) -> int:
    return main([*map(str, arguments), "--quiet"])


def test_a_value_that_cannot_be_is_the_reason_and_the_others_are_not(model: ep.tables.TableModel) -> None:
    row = FRAME[:1].assign(income=-5.0)
    found = ep.tables.score(model, row)
    assert found.log_density[0] == -np.inf
    because = found.because[0]
    assert because.startswith("income = -5 (outside of what the column can be: "), because
    assert "sex" not in because
    usual = ep.tables.surprises(model, ep.data.table_from_frame(FRAME, like=model.table).values[0])
    assert all(np.isfinite(own.probability) and own.probability > 0.0 for own in usual)


def test_the_mean_is_of_the_rows_that_can_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FRAME[:20].assign(income=[-5.0, *FRAME.income[1:20]]).to_csv(folder / "odd.csv", index=False)
    assert run("score", folder / "run", folder / "odd.csv", "--out", folder / "scores.csv") == 0
    said = capsys.readouterr().out
    assert "19 rows; 1 more have density 0" in said
    assert "nan" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("impute", "{run}", "{table}", "--out", "{out}", "--draws", -2),
            "--draws must be a whole number of at least 1",
        ),
        (("impute", "{run}", "{table}", "--out", "{out}", "--multiple", -2), "--multiple must be a whole number of at"),
        (("compare", "{table}", "{table}", "--first-rows", -2), "--first-rows must be a whole number of at least 0"),
        (("compare", "{table}", "{folder}"), "compare is for tables"),
        (("sample", "{folder}/nothing", "--label", "2", "--out", "{out}"), "nothing"),
    ],
)
def test_wrong_counts_and_files_are_named(
    folder: Path, arguments: tuple[Any, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"run": folder / "run", "table": folder / "table.csv", "out": folder / "out.csv", "folder": folder}
    before = sorted(path.name for path in folder.iterdir())
    assert run(*(str(a).format(**places) for a in arguments)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "is of a table" not in said
    assert sorted(path.name for path in folder.iterdir()) == before


def test_answers_print_in_a_line_or_two(model: ep.tables.TableModel) -> None:
    gaps = FRAME[:30].assign(income=[np.nan, *FRAME.income[1:30]])
    found = ep.tables.impute(model, gaps, draws=2)
    assert repr(found) == "Imputation(2 draws of 1 cells missing from 1 of 30 rows)"
    compared = ep.tables.compare(FRAME[:60], FRAME[60:])
    assert str(compared).startswith("energy distance")
    assert len(str(compared)) < 2000


def test_a_run_is_not_given_another_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One whose coordinates are the same: in other units, or with other names."""
    others = {"units": FRAME.assign(income=1.2 * FRAME.income), "names": FRAME.replace({"sex": {"female": "f"}})}
    record = (folder / "run" / "run.json").read_text()
    for name, frame in others.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
        assert run("fit", folder / f"{name}.csv", "--out", folder / "run") == 2
        said = capsys.readouterr().err
        assert "is a run of another table" in said
        assert "table.csv" in said
    assert (folder / "run" / "run.json").read_text() == record
    assert run("fit", folder / "table.csv", "--out", folder / "run") == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"age": "abc"}, "the given row .* 'age' holds 'abc', and must hold numbers"),
        ({"age": 40.5}, "age must be one of its column's values, which come in steps of 1; got 40.5: give 40, or"),
        ({"owner": "maybe"}, "owner must be true or false; got 'maybe'"),
        ({"income": -3.0}, "income=-3.0 lies outside"),
        ({"age": None}, "age must be a value; got None"),
    ],
)
def test_given_values_that_a_column_does_not_take(
    given: dict[str, Any], message: str, mixed: ep.tables.TableModel
) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        mixed.sample(2, given)


def test_samples_have_the_decimals_of_the_table(mixed: ep.tables.TableModel) -> None:
    """And those of a full column keep all their digits: negative control."""
    for frame in (mixed.sample(50, seed=0), mixed.sample(5, {"age": 30}, seed=0)):
        assert (frame.income.round(2) == frame.income).all()
        assert (frame.income.round(1) != frame.income).any()
    gaps = MIXED[:12].assign(income=[np.nan, *MIXED.income[1:12]])
    best = ep.tables.impute(mixed, gaps, draws=3).best()
    assert best.income[0] == round(best.income[0], 2)
    assert repr(mixed) == ("TableModel(4 columns: income, age, sex, owner; 108 training rows kept, 12 held out)")


def test_a_row_that_can_be_stays_one_when_it_is_rounded() -> None:
    """Small numbers of two decimals, by their logarithms: a sample of .003 is no 0.00, which has no density."""
    values = np.exp(RNG.normal(-3.5, 1.5, (400, 1))).round(2)
    values[values <= 0.0] = 0.01
    transform = ep.data.TableTransform.fit(ep.data.table_from_array(values * np.linspace(1.0, 3.0, 400)[:, None]))
    z = RNG.normal(size=(2000, 1)) * 2.0
    _, weight = transform.encode(transform.decode(z), torch.Generator().manual_seed(0))
    assert np.isfinite(weight).all()
    column = ep.data.columns.Numbers("log", ep.data.monotone.Base("log"), None, None, 0.0, 0.0, np.inf, 2)
    assert column.decode(np.log([[0.001], [0.004], [0.026]])).tolist() == [0.01, 0.01, 0.03]


def test_an_impossible_row_is_named_and_the_others_are_imputed(
    mixed: ep.tables.TableModel, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gaps = MIXED[:20].astype({"age": float})
    gaps.loc[::4, "age"] = np.nan
    gaps.loc[8, "income"] = -5.0
    with pytest.warns(UserWarning, match=r"1 row\(s\) .* can't be: 8 \(income = -5\); their cells stay missing"):
        found = ep.tables.impute(mixed, gaps, draws=2)
    assert np.flatnonzero(found.best().age.isna()).tolist() == [8]
    assert len(found.places) == len(found.cells()) == 4
    with pytest.raises(ep.InvalidInput, match=r"0 \(income = -5\); no other row has missing cells"):
        ep.tables.impute(mixed, gaps[8:9])
    FRAME[:20].assign(income=[-5.0, *FRAME.income[1:20]], sex=[None, *FRAME.sex[1:19], None]).to_csv(
        folder / "impossible.csv", index=False
    )
    with pytest.warns(UserWarning, match=r"0 \(income = -5\)"):
        status = run("impute", folder / "run", folder / "impossible.csv", "--out", folder / "full.csv", "--draws", 2)
    assert status == 0
    assert "sex 1" in capsys.readouterr().out
    assert pd.read_csv(folder / "full.csv").sex.isna().sum() == 1


def test_rows_come_in_any_form(tmp_path: Path) -> None:
    """A file, lists, a dictionary, an array of objects and a tensor; what is none of these is refused by name."""
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    rows = FRAME.to_numpy().tolist()
    model = ep.tables.fit(tmp_path / "t.csv", steps=2, levels=2, progress=False)
    assert model.columns == ("income", "age", "sex")
    expected = model.rows_of(FRAME).values
    for same in (str(tmp_path / "t.csv"), FRAME.to_dict("list"), rows, FRAME.to_numpy(), FRAME.to_dict("records")):
        np.testing.assert_array_equal(model.rows_of(same).values, expected)
    assert ep.data.table_from_rows(rows).columns == ("c0", "c1", "c2")
    assert ep.data.table_from_rows(torch.randn(20, 2)).values.shape == (20, 2)
    for odd in (None, 3, iter(rows)):
        with pytest.raises(ep.InvalidInput, match="rows must be a frame, an array, a list of rows or the path"):
            ep.tables.fit(odd)  # type: ignore[arg-type]
    with pytest.raises(ep.InvalidInput, match=r"there is no file nothing\.csv"):
        ep.tables.fit("nothing.csv")


def test_advice_names_what_the_caller_has(
    model: ep.tables.TableModel, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gaps = FRAME[:30].assign(income=[np.nan, *FRAME.income[1:30]])
    with pytest.raises(
        ep.InvalidInput, match="missing='drop', --missing drop, leaves those rows out; fit can train a density"
    ):
        ep.tables.compare(gaps, FRAME)
    with pytest.warns(UserWarning, match="1 of 30 rows"):
        assert len(ep.tables.compare(gaps, FRAME, missing="drop", drop=["sex"]).columns) == 2
    with pytest.raises(ep.InvalidInput, match="missing must be 'drop' or None"):
        ep.tables.compare(gaps, FRAME, missing="impute")
    gaps.to_csv(folder / "gaps.csv", index=False)
    with pytest.warns(UserWarning, match="1 of 30 rows of .* have missing cells, and no score: they are left out"):
        assert run("score", folder / "run", folder / "gaps.csv", "--out", folder / "some.csv") == 0
    assert sorted(pd.read_csv(folder / "some.csv").row) == list(range(1, 30))
    gaps[:1].to_csv(folder / "gap.csv", index=False)
    assert run("score", folder / "run", folder / "gap.csv", "--out", folder / "never.csv") == 2
    assert "got none: impute them first" in capsys.readouterr().err
    with pytest.raises(ep.InvalidInput, match=r"constant: 'c1' \(drop it\)$"):
        ep.data.table_from_array(np.stack([RNG.normal(size=20), np.ones(20)], 1))


def test_a_table_of_a_thousand_rows_is_split_in_three() -> None:
    """Of 999 rows the held-out ones choose the weights, and every figure says so."""
    values = RNG.normal(size=(1000, 2))
    small, large = (ep.tables.training.prepare(ep.data.table_from_array(values[:count])) for count in (999, 1000))
    assert small.validation is None
    assert large.validation is not None
    assert [len(part) for part in (large.rows, large.validation, large.held_out)] == [800, 100, 100]
    assert len({*large.rows.tolist(), *large.validation.tolist(), *large.held_out.tolist()}) == 1000
    model = ep.tables.fit(values, steps=3, levels=2, progress=False)
    assert model.validation is not None
    np.testing.assert_array_equal(model.validation, values[large.validation])
    found = ep.tables.quality(model)
    assert not found["held_out_chose_weights"]
    assert "chose the weights" not in " ".join(found["verdict"])


def test_a_saved_table_keeps_its_kernel_and_log_z(tmp_path: Path) -> None:
    model = ep.tables.fit(RNG.normal(size=(60, 3)), steps=2, levels=2, progress=False)
    model.ebm.kernel = ep.kernels.MALA(0.3)
    known = ep.LogNormalizer(
        estimate=0.5, standard_error=0.1, lower=0.3, upper=0.7, evaluations=10, confidence=0.95, method="bridge"
    )
    model.ebm._kept.keep(model.ebm, (0, 0.95), known)
    ep.tables.save(model, tmp_path / "model.ckpt")
    same = ep.tables.load(tmp_path / "model.ckpt")
    assert isinstance(same.ebm.kernel, ep.kernels.MALA)
    assert float(same.ebm.kernel.step_size) == pytest.approx(0.3)
    assert same.log_normalizer().estimate == 0.5


def test_rows_that_repeat_are_not_odd() -> None:
    """Draws of sixty rows in both tables; of rows named by chance a tenth at most, and none is meant to be."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(60, 3))
    x, y = (kinds[rng.integers(60, size=1000)] for _ in range(2))
    for pair in ((x, y), (y, x)):
        assert len(ep.tables.compare(*pair).rows) < 5
    assert (ep.tables.compare(x, np.concatenate([y, np.full((30, 3), 4.0)])).rows.table == "second").sum() >= 30


def test_given_values_far_outside_of_the_training_rows_are_warned_of(model: ep.tables.TableModel) -> None:
    with pytest.warns(UserWarning, match=r"income=.* lies outside of the training rows, where it is"):
        model.sample(2, given={"income": 10.0 * float(FRAME.income.max())})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.sample(2, given={"income": float(FRAME.income.max())})


def test_advice_about_missing_cells_holds_of_each_command() -> None:
    with pytest.raises(ep.InvalidInput, match="fit can train a density of whole rows on them too"):
        ep.tables.compare(FRAME.assign(income=FRAME.income.where(FRAME.age > 30)), FRAME)


def test_equal_rows_have_equal_densities_wherever_they_are(model: ep.tables.TableModel) -> None:
    found = model.log_prob(pd.concat([FRAME[40:60], FRAME[40:45]]))
    rounding = 1e-5  # of energies of ten nats or so in float32, by batches of another size
    np.testing.assert_allclose(found[20:], found[:5], rtol=0.0, atol=rounding)
    np.testing.assert_allclose(model.log_prob(FRAME)[40:60], found[:20], rtol=0.0, atol=rounding)
    assert np.abs(model.log_prob(FRAME[40:60], seed=1) - found[:20]).max() > 0.01, "which places within cells change"


def test_completed_frames_have_the_index_of_their_frame(model: ep.tables.TableModel) -> None:
    rows = FRAME[30:34][::-1].assign(income=[np.nan, 1e4, 2e4, np.nan])
    found = ep.tables.impute(model, rows, draws=3)
    assert found.best().index.tolist() == rows.index.tolist() == found.completed()[0].index.tolist()
    assert rows.fillna(found.best()).notna().all(axis=None)


def test_given_may_name_columns_by_whole_numbers() -> None:
    own = ep.tables.fit(pd.DataFrame(RNG.normal(size=(100, 2))), steps=2, levels=3, progress=False)
    assert own.sample(2, given={0: 0.5})["0"].tolist() == [0.5, 0.5]


def test_columns_that_vary_in_digits_that_numbers_lack_are_told_apart_from_constant_ones() -> None:
    large = pd.DataFrame({"a": RNG.integers(2**60, 2**60 + 10**4, 200), "b": RNG.normal(size=200)})
    with pytest.raises(ep.InvalidInput, match=r"constant: 'a' .*subtract an offset first"):
        ep.tables.fit(large, steps=1, progress=False)
    with pytest.raises(ep.InvalidInput, match=r"dates or spans of time .*Timedelta"):
        ep.tables.fit(large.assign(a=pd.to_timedelta(range(200), unit="h")), steps=1, progress=False)

"""Tables with categories and gaps through commands and functions: fit, extend, sample, score, impute, compare."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import energyppl as ep
from energyppl._progress import doing, progress_bar
from energyppl.cli.main import main
from energyppl.cli.runs import fit_table, settings_for
from energyppl.errors import CheckpointError

RNG = np.random.default_rng(4)
N = 120


def people(count: int = N) -> pd.DataFrame:
    age = RNG.integers(18, 80, count)
    kind = np.array(["cook", "nurse", "smith"])[RNG.integers(3, size=count)]
    income = np.exp(9.0 + 0.02 * age + 0.5 * (kind == "nurse") + 0.3 * RNG.normal(size=count))
    return pd.DataFrame({"age": age, "kind": kind, "income": income, "owner": RNG.random(count) < 0.3})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with gaps, its run (trained with them), and another table; tests must not change them."""
    place = tmp_path_factory.mktemp("people")
    frame = people()
    frame.to_csv(place / "whole.csv", index=False)
    gaps = frame.copy()
    gaps.loc[::9, "income"] = np.nan
    gaps.loc[::11, "kind"] = None
    gaps.to_csv(place / "gaps.csv", index=False)
    options = ("--steps", 6, "--levels", 3, "--missing", "impute", "--transform", "age=logit")  # which has two ends
    assert run("fit", place / "gaps.csv", "--out", place / "run", *options) == 0
    return place


def run(*arguments: Any) -> int:
    return main([str(a) for a in (*arguments, *(() if "--quiet" in arguments else ("--quiet",)))])


def test_a_run_with_gaps_keeps_its_completed_rows(folder: Path) -> None:
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["missing"] == 14 + 11
    assert record["settings"]["missing"] == "impute"
    assert "3 categories" in record["transforms"]["kind"]
    assert not (folder / "run" / "training.first.ckpt").exists()
    assert ep.load_checkpoint(folder / "run" / "training.completed.ckpt")["z"].shape == (N, 6)
    again = fit_table(folder / "gaps.csv", folder / "run", settings_for(folder / "run", {}), progress=False).record
    assert again["steps_before"] == again["steps"] == 6


def test_runs_of_other_seeds_are_averaged(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gaps are filled anew by each run, so that the average is one of several imputations too."""
    one, other, pool = (tmp_path / name for name in ("one", "other", "pool"))
    for seed, out in ((1, one), (2, other)):
        arguments = ("--steps", 4, "--levels", 3, "--missing", "impute", "--seed", seed)
        assert run("fit", folder / "gaps.csv", "--out", out, *arguments) == 0
    capsys.readouterr()
    assert run("average", one, other, "--out", pool) == 0
    said = capsys.readouterr().out
    assert "8 steps in" in said
    assert "the average of 2 models" in said
    assert "verdict:" in said
    assert run("show", pool, "-n", 50) == 0
    assert run("sample", pool, "--given", "kind=nurse", "-n", 5, "--out", tmp_path / "drawn.csv") == 0
    assert set(pd.read_csv(tmp_path / "drawn.csv")["kind"]) == {"nurse"}
    assert run("score", pool, folder / "whole.csv", "--out", tmp_path / "scores.csv") == 0
    for name, out in (("one", one), ("other", other)):  # as Python saves them
        (tmp_path / f"saved_{name}").mkdir()
        ep.tables.save(replace(ep.tables.load(out), record={}), tmp_path / f"saved_{name}" / "model.ckpt")
    assert run("average", tmp_path / "saved_one", tmp_path / "saved_other", "--out", tmp_path / "saved") == 0

    new = tmp_path / "new"
    assert run("fit", folder / "whole.csv", "--drop", "kind", "--out", tmp_path / "narrow", "--steps", 2) == 0
    for runs, out, says in (
        ((one, one), new, "each once"),
        ((one,), new, "two runs or more"),
        ((one, tmp_path / "saved_one"), new, "models 0 and 1 are the same"),
        ((one, other), one, "holds a run already"),
        ((one, tmp_path / "none"), new, "no finished model"),
        ((one, tmp_path / "narrow"), new, "model 1 has other columns"),
    ):
        capsys.readouterr()
        assert run("average", *runs, "--out", out) == 2
        assert says in capsys.readouterr().err
    assert not new.exists()
    capsys.readouterr()
    assert run("fit", folder / "whole.csv", "--out", pool, "--steps", 2) == 2
    assert "holds an average of runs" in capsys.readouterr().err


def test_filled_rows_are_of_their_own_run(tmp_path: Path) -> None:
    """Two runs of equal size in one folder, and one whose rows were edited."""
    one, other = (pd.DataFrame(RNG.normal(size=(40, 2)) + far, columns=["a", "b"]) for far in (0.0, 50.0))
    for frame in (one, other):
        frame.loc[::5, "a"] = np.nan
    options: dict[str, Any] = {"missing": "impute", "steps": 2, "levels": 2, "progress": False}
    for name, frame in (("a", one), ("b", other)):
        model = ep.tables.fit(frame, checkpoint=tmp_path / f"{name}.ckpt", **options)
        kept = ep.load_checkpoint(tmp_path / f"{name}.completed.ckpt")["z"]
        whole = np.arange(40) % 5 > 0
        np.testing.assert_allclose(model.decode(kept[whole]), frame[whole], rtol=1e-4, atol=1e-4)
    edited = one.assign(b=one.b * np.where(np.arange(40) == 3, -1.0, 1.0))
    with pytest.raises(CheckpointError, match=r"a\.completed\.ckpt, which holds the filled rows .* other rows"):
        ep.tables.fit(edited, checkpoint=tmp_path / "a.ckpt", **options)
    (tmp_path / "a.ckpt").unlink()
    ep.tables.fit(edited, checkpoint=tmp_path / "a.ckpt", **options)  # nothing is left to go on with: filled anew


def test_gaps_are_refused_without_a_word(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", folder / "gaps.csv", "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "'kind' (11, the first in row 0, line 2), 'income' (14" in said
    assert "--missing drop" in said


def test_more_steps_extend_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people().to_csv(tmp_path / "t.csv", index=False)
    arguments = ("fit", tmp_path / "t.csv", "--out", tmp_path / "run", "--levels", 2, "--drop", "kind,owner")
    assert run(*arguments, "--steps", 12) == 0
    first = ep.load_checkpoint(tmp_path / "run" / "training.ckpt")["records"]
    assert run(*arguments, "--steps", 20) == 0
    assert "steps 12 to 20" in capsys.readouterr().out
    tree = ep.load_checkpoint(tmp_path / "run" / "training.ckpt")
    assert [r[:2] for r in tree["records"][:12]] == [r[:2] for r in first]
    assert len(tree["records"]) == 20
    assert tree["options"]["steps"] == 20
    assert json.loads((tmp_path / "run" / "run.json").read_text())["columns"] == ["age", "income"]


def test_more_steps_on_another_table_leave_a_run_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("t", "wrong"):
        people().to_csv(tmp_path / f"{name}.csv", index=False)
    rest = ("--out", tmp_path / "run", "--levels", 2, "--drop", "kind,owner")
    files = [tmp_path / "run" / name for name in ("training.ckpt", "run.json", "model.ckpt")]
    assert run("fit", tmp_path / "t.csv", *rest, "--steps", 4) == 0
    kept = [file.read_bytes() for file in files]
    assert run("fit", tmp_path / "wrong.csv", *rest, "--steps", 8) == 2
    assert "is a run of another table" in capsys.readouterr().err
    assert [file.read_bytes() for file in files] == kept

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("energyppl.cli.runs.train", stopped)
        run("fit", tmp_path / "t.csv", *rest, "--steps", 8)
    assert (
        json.loads(files[1].read_text())["settings"]["steps"] == ep.load_checkpoint(files[0])["options"]["steps"] == 8
    )
    assert run("fit", tmp_path / "t.csv", *rest) == 0
    assert json.loads(files[1].read_text())["steps"] == 8


def test_samples_have_the_table_s_names_dtypes_and_ranges(folder: Path, tmp_path: Path) -> None:
    assert run("sample", folder / "run", "-n", 50, "--out", tmp_path / "x.csv") == 0
    rows = pd.read_csv(tmp_path / "x.csv")
    assert (rows.dtypes == pd.read_csv(folder / "whole.csv").dtypes).all()
    assert (rows.income > 0.0).all()
    assert set(rows.kind) <= {"cook", "nurse", "smith"}
    assert (
        run("sample", folder / "run", "-n", 20, "--given", "age=40,kind=nurse,owner=true", "--out", tmp_path / "g.csv")
        == 0
    )
    given = pd.read_csv(tmp_path / "g.csv")
    assert given[["age", "kind", "owner"]].drop_duplicates().values.tolist() == [[40, "nurse", True]]
    assert given.income.nunique() == 20
    model = ep.tables.load(folder / "run")
    pd.testing.assert_frame_equal(model.sample(5, seed=1), model.sample(5, seed=1))
    state = torch.random.get_rng_state()
    model.sample(2, {"age": 30}, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("given", "message"),
    [("wage=3", "got 'wage': they are age, kind"), ("kind=king", "'kind' holds 'king'"), ("age=200", "lies outside")],
)
def test_given_values_that_cannot_be(
    given: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample", folder / "run", "--given", given, "--out", folder / "never.csv") == 2
    assert message in capsys.readouterr().err
    assert not (folder / "never.csv").exists()


def test_score_names_the_column(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = pd.read_csv(folder / "whole.csv").head(30)
    odd.loc[7, "income"] = 1e9
    odd[["owner", "income", "kind", "age"]].to_csv(tmp_path / "odd.csv", index=False)  # another order
    assert run("score", folder / "run", tmp_path / "odd.csv", "--out", tmp_path / "s.csv", "--first", 2) == 0
    assert "income = 1e+09 (given the others" in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "s.csv")
    assert found.row[0] == 7
    assert found.log_density.is_monotonic_increasing
    assert found.because.isna().sum() == 28
    (tmp_path / "one.csv").write_text("age,kind,income,owner\n30,cook,20000,False\n")
    assert run("score", folder / "run", tmp_path / "one.csv", "--out", tmp_path / "one_s.csv") == 0
    (tmp_path / "king.csv").write_text("age,kind,income,owner\n30,king,20000,False\n")
    assert run("score", folder / "run", tmp_path / "king.csv") == 2
    assert "'kind' holds 'king', which is none of its categories cook, nurse, smith" in capsys.readouterr().err


def test_a_run_remembers_the_decimal_comma_of_its_table(tmp_path: Path) -> None:
    people()[["age", "income"]].to_csv(tmp_path / "comma.csv", sep=";", decimal=",", index=False)
    fitted = ("fit", tmp_path / "comma.csv", "--decimal", ",", "--out", tmp_path / "run", "--steps", 6, "--levels", 3)
    assert run(*fitted) == 0
    assert run("score", tmp_path / "run", tmp_path / "comma.csv", "--out", tmp_path / "scores.csv") == 0
    written = (tmp_path / "scores.csv").read_text()  # as the table is, so that the same program opens both
    assert written.startswith("row;log_density;")
    assert "." not in written.splitlines()[-1]
    assert run("score", tmp_path / "run", tmp_path / "comma.csv", "--out", tmp_path / "s.csv", "--decimal", ".") != 0


def test_impute_fills_gaps_and_leaves_the_rest(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cells = tmp_path / "full.csv", tmp_path / "cells.csv"
    arguments = ("--out", out, "--draws", 6, "--multiple", 2, "--cells", cells)
    assert run("impute", folder / "run", folder / "gaps.csv", *arguments) == 0
    assert "kind 11, income 14" in capsys.readouterr().out
    gaps, whole = pd.read_csv(folder / "gaps.csv"), pd.read_csv(out)
    assert not whole.isna().any(axis=None)
    for name in gaps:
        there = gaps[name].notna()
        assert (whole[name][there] == gaps[name][there]).all()
    one, two = (pd.read_csv(tmp_path / f"full-{i}.csv") for i in (1, 2))
    assert (one.income != two.income).sum() == 14
    found = pd.read_csv(cells)
    numbers = found[found.column == "income"]
    assert (numbers.low < numbers["mean"]).all()
    assert (numbers["mean"] < numbers.high).all()
    assert found[found.column == "kind"].probability.between(0.3, 1.0).all()
    assert run("impute", folder / "run", folder / "whole.csv", "--out", out) == 2
    assert "must have missing cells to impute" in capsys.readouterr().err


def test_compare_finds_the_column_and_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = people(300), people(300)
    one.to_csv(tmp_path / "a.csv", index=False)
    other.to_csv(tmp_path / "same.csv", index=False)
    other.loc[:79, "income"] *= 100.0
    other.to_csv(tmp_path / "b.csv", index=False)
    assert run("compare", tmp_path / "a.csv", tmp_path / "same.csv") == 0
    assert "may well come from one distribution" in capsys.readouterr().out
    assert run("compare", tmp_path / "a.csv", tmp_path / "b.csv", "--out", tmp_path / "rows.csv") == 0
    said = capsys.readouterr().out
    assert "the two tables differ" in said
    assert "columns that differ: 'income'" in said
    rows = pd.read_csv(tmp_path / "rows.csv")
    odd = rows[rows.table == "second"]
    assert len(odd) >= 5
    assert (odd.row < 80).mean() > 0.8
    one.drop(columns="age").to_csv(tmp_path / "less.csv", index=False)
    assert run("compare", tmp_path / "a.csv", tmp_path / "less.csv") == 2
    assert "must have the same columns" in capsys.readouterr().err


def test_functions_take_what_people_have() -> None:
    """Frames, arrays and tables; a mixed frame's own model scores, samples and refuses as the commands do."""
    frame = people()
    model = ep.tables.fit(frame, steps=3, levels=3, columns=["income", "owner"], progress=False)
    assert model.columns == ("income", "owner")
    log_z = model.log_normalizer()
    from_frame = model.log_prob(frame[:5], log_z)
    np.testing.assert_array_equal(model.log_prob(frame[["owner", "income"]][:5], log_z), from_frame)
    np.testing.assert_array_equal(
        model.log_prob(frame[["income", "owner"]][:5].to_numpy(np.float64), log_z), from_frame
    )
    with pytest.raises(ep.InvalidInput, match=r"must have the 2 columns of the model, income, owner; got 5: c0"):
        model.log_prob(np.zeros((3, 5)))
    with pytest.raises(ep.InvalidInput, match="missing or infinite cells in 1 of 5 rows: 'income'"):
        model.log_prob(frame[:5].assign(income=[1.0, 2.0, np.nan, 3.0, 4.0]))
    assert model.log_prob(frame[:1].assign(income=-1.0), log_z)[0] == -np.inf


def test_rows_that_cannot_be_are_named_by_their_place_in_the_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("energyppl.tables.model._CHAINS", 8)
    model, frame = ep.tables.load(folder / "run"), pd.read_csv(folder / "whole.csv").head(40)
    frame.loc[3::2, "income"] = np.nan
    frame.loc[33, "age"] = 500
    with pytest.warns(UserWarning, match=r"1 row\(s\) .*: 33 \(age = 500\)"):
        assert ep.tables.impute(model, frame, draws=2).best().income.isna().sum() == 1


@pytest.mark.parametrize("code", [-1.0, 3.0, 0.7])
def test_codes_of_categories_are_checked(code: float, folder: Path) -> None:
    model = ep.tables.load(folder / "run")
    rows = model.rows[~np.isnan(model.rows).any(1)][:4].copy()
    rows[2, 1] = code
    with pytest.raises(ep.InvalidInput, match=f"'kind' must hold places .*, 0 to 2; got {code:g} in row 2"):
        model.log_prob(rows)


def test_a_verdict_says_that_held_out_rows_chose_the_weights() -> None:
    """Two columns that are nearly one are learned better than independent ones."""
    x = np.random.default_rng(0).normal(size=300)
    model = ep.tables.fit(np.stack([x, x + 0.1 * RNG.normal(size=300)], 1), steps=60, levels=2, progress=False)
    said = " ".join(ep.tables.quality(model)["verdict"])
    assert "good: held-out rows are likelier than under independent columns" in said
    assert "nats a row; they also chose the weights" in said


def test_a_caller_s_random_numbers_go_on() -> None:
    state = torch.random.get_rng_state()
    model = ep.tables.fit(RNG.normal(size=(60, 2)), steps=2, levels=2, progress=False)
    assert torch.equal(state, torch.random.get_rng_state())
    found = ep.tables.quality(model, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(1)
    assert ep.tables.quality(model, seed=3) == found


# --- Progress ---


def test_a_log_gets_lines_and_no_carriage_returns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # of a notebook that another test has run
    monkeypatch.setattr("energyppl._progress._FIRST", 0.0)
    monkeypatch.setattr("energyppl._progress._BEAT", 0.0)
    with progress_bar(total=3, desc="training") as bar:
        for _ in range(3):
            bar.update()
            bar.set_postfix_str("loss +1.0")
    with doing("counting"):
        pass
    said = capsys.readouterr().err
    assert "\r" not in said
    assert "training: 1 of 3, 0 s, about 0 s left" in said
    assert "training: 3 of 3, 0 s; loss +1.0" in said
    assert "counting …\n" in said
    with progress_bar(total=3, disable=True) as bar, doing("nothing", show=False):
        bar.update()
    assert capsys.readouterr().err == ""

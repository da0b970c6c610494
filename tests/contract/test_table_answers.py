"""What table commands and functions answer to values that can't be, wrong counts and other kinds of files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

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


@pytest.fixture(scope="module")
def model() -> ep.tables.TableModel:
    return ep.tables.fit(FRAME, steps=5, levels=3, progress=False)


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

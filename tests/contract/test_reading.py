"""Tables as people have them: text of any dialect, frames, categories, gaps, indices; each refusal says what to do."""

import gzip
import importlib.util
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import energyppl as ep
from energyppl.data import read_frame, read_table, table_from_frame
from energyppl.errors import InvalidInput

N = 24
X = np.random.default_rng(0).normal(size=N).round(3)
TOWNS = [("Bonn", "Ulm", "Köln, West")[i % 3] for i in range(N)]


def lines(mark: str = ",", comma: bool = False, quote: str = '"') -> list[str]:
    numbers = [str(x).replace(".", ",") if comma else str(x) for x in X]
    return [
        f"{number}{mark}{i % 4}{mark}{quote}{town}{quote}"
        for i, (number, town) in enumerate(zip(numbers, TOWNS, strict=True))
    ]


def text(*head: str, rows: list[str] | None = None, end: str = "\n") -> str:
    return end.join([*head, *(lines() if rows is None else rows)]) + end


DIALECTS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "comma": (text("income,rooms,town").encode(), {}),
    "semicolon": (text("income;rooms;town", rows=lines(";")).encode(), {}),
    "tab": (text("income\trooms\ttown", rows=lines("\t", quote="")).encode(), {}),
    "bar": (text("income|rooms|town", rows=lines("|", quote="")).encode(), {}),
    "spaces": (text("income  rooms   town", rows=lines("  ")).encode(), {}),
    "decimal commas": (text("income;rooms;town", rows=lines(";", comma=True)).encode(), {"decimal": ","}),
    "comments": (text("# of 1990", "#", "income,rooms,town", *lines()[:3], "# half", rows=lines()[3:]).encode(), {}),
    "names in a comment": (text("# 1990", "# income, rooms, town").encode(), {}),
    "Windows": (text("income,rooms,town", end="\r\n").encode("cp1252"), {}),
    "UTF-16": (text("income,rooms,town").encode("utf-16"), {}),
    "a mark of UTF-8": (text("income,rooms,town").encode("utf-8-sig"), {}),
    "empty lines": (text("", "income,rooms,town", "", *lines()[:3], "", rows=lines()[3:]).encode(), {}),
}


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("packed", [False, True])
def test_dialects(name: str, packed: bool, tmp_path: Path) -> None:
    content, options = DIALECTS[name]
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    table = read_table(path, **options)
    assert table.columns == ("income", "rooms", "town")
    np.testing.assert_array_equal(table.values[:, 0], X)
    assert table.labels == ((), (), ("Bonn", "Köln, West", "Ulm"))
    assert table.frame()["town"].tolist() == TOWNS
    assert table.frame()["rooms"].dtype == np.int64


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        (",income,rooms,town", [f"{i},{line}" for i, line in enumerate(lines())]),  # df.to_csv()
        ("id,income,rooms,town", [f"{i + 1},{line}" for i, line in enumerate(lines())]),
        ("income,rooms,town", [f"row{i},{line}" for i, line in enumerate(lines())]),  # R's write.table
        (",income,rooms,town", [f"{TOWNS[i]}{i},{line}".replace("Köln, West", "K") for i, line in enumerate(lines())]),
    ],
)
def test_an_index_is_left_out_with_a_word(head: str, rows: list[str], tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text(head, rows=rows), encoding="utf-8")
    with pytest.warns(
        UserWarning, match=r"the first column of .*t.csv, '(c0|id)', is left out: it (counts|has no name).*--columns"
    ):
        table = read_table(path)
    assert table.columns == ("income", "rooms", "town")


@pytest.mark.parametrize(
    ("frame", "options", "names"),
    [
        (np.random.default_rng(0).normal(100.0, 1.0, (N, 3)), {}, ("0", "1", "2")),
        (np.random.default_rng(0).integers(0, 9, (N, 4)), {}, ("0", "1", "2", "3")),
        ({0: X, 1: TOWNS}, {}, ("0", "1")),
        (np.random.default_rng(0).normal(100.0, 1.0, (N, 2)), {"index": True}, ("0", "1")),
        (np.random.default_rng(0).integers(-9, 0, (N, 3)), {}, None),  # may be a row of data
        (
            [[1, 2, 3, 4], *np.random.default_rng(0).permuted(np.tile([1, 2, 3, 4], (N, 1)), axis=1)],
            {"header": False},
            None,
        ),
        ([[0.0, 1.0], *[[x, x * x + 1.0] for x in X[1:]]], {"header": False, "float_format": "%g"}, None),
    ],
    ids=[
        "numbers",
        "whole numbers",
        "a number and words",
        "an index",
        "three whole numbers",
        "rankings",
        "two numbers",
    ],
)
@pytest.mark.filterwarnings("ignore:the first column of")
def test_numbers_of_columns_are_names(frame: Any, options: Any, names: tuple[str, ...] | None, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    pd.DataFrame(frame).to_csv(path, **{"index": False} | options)
    table = read_table(path)
    if names is None:
        assert table.columns[0] == "c0"
    else:
        assert (table.columns, len(table.values)) == (names, N)


def test_an_index_that_is_asked_for_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text("id,income,rooms,town", rows=[f"{i},{line}" for i, line in enumerate(lines())]))
    assert read_table(path, columns=["income", "id"]).columns == ("income", "id")
    assert read_table(path, drop=["id", "town"]).columns == ("income", "rooms")
    with pytest.raises(InvalidInput, match="no column 'wage'; the columns: id, income, rooms, town"):
        read_table(path, columns=["wage"])


def test_what_cannot_be_learned_is_named_all_at_once() -> None:
    frame = pd.DataFrame(
        {
            "born": pd.date_range("1990-01-01", periods=N),
            "seen": ["2020-01-31 12:00"] * N,
            "name": [f"person {i}" for i in range(N)],
            "same": 3.0,
            "gaps": np.where(np.arange(N) % 5 == 1, np.nan, X),
            "mixed": ["1.5"] * 20 + ["n.d."] * 4,
            "fine": X,
        }
    )
    with pytest.raises(InvalidInput) as caught:
        table_from_frame(frame)
    message = str(caught.value)
    for said in (
        "'born', 'seen' hold dates or spans of time (turn them into numbers, such as days: (t - t.min())",
        "'name' holds 24 different texts in 24 rows (drop it",
        "constant: 'same' (drop it)",
        "missing or infinite cells in 5 of 24 rows: 'gaps' (5, the first in row 1)",
        "'mixed' holds 'n.d.' in row 20 among numbers",
        "drop=['born', 'seen', 'name', 'mixed', 'same'] (--drop born,seen,name,mixed,same) leaves these columns out",
    ):
        assert said in message
    assert "fine" not in message
    left = {"drop": ["born", "seen", "name", "same", "mixed"]}
    with pytest.warns(UserWarning, match="5 of 24 rows of the frame have missing cells and are left out"):
        assert table_from_frame(frame, missing="drop", **left).values.shape == (19, 2)
    assert table_from_frame(frame, missing="impute", **left).missing.sum() == 5


AMOUNTS = np.array([-1234567.5, 12.25, 1234.0, -999.5] * 6) + np.arange(N)


@pytest.mark.parametrize(("mark", "decimal"), [(",", "."), (".", ","), ("'", "."), ("\u00a0", ","), (" ", ".")])
def test_marks_between_thousands_are_read(mark: str, decimal: str, tmp_path: Path) -> None:
    """As banks export amounts, in whatever country."""
    texts = [f"{x:,.2f}".replace(",", "m").replace(".", decimal).replace("m", mark) for x in AMOUNTS]
    path = tmp_path / "t.csv"
    path.write_text("amount;rooms\n" + "".join(f'"{text}";{i % 4}\n' for i, text in enumerate(texts)))
    table = read_table(path, decimal=decimal)
    np.testing.assert_array_equal(table.values[:, 0], AMOUNTS)
    if decimal == ",":
        with pytest.raises(InvalidInput, match="--decimal ,"):
            read_table(path)


def test_what_is_no_number_stays_a_text(tmp_path: Path) -> None:
    """1,234 may be a decimal comma and 1.2.2024 is a date: neither is taken for thousands."""
    for cells, decimal, said in ((["1,234", "7,512"], ".", "--decimal ,"), (["1.12.2024", "12.01.2024"], ",", "dates")):
        rows = [f"{cell};{i}" for i, cell in enumerate(cells * 12)]
        (tmp_path / "t.csv").write_text("\n".join(["amount;x", *rows]))
        with pytest.raises(InvalidInput, match=said):
            read_table(tmp_path / "t.csv", columns=["amount"], decimal=decimal)


def test_units_in_cells_are_named() -> None:
    doses = pd.DataFrame({"dose": [f"{5 + i / 10} mg/l" for i in range(N)], "rooms": ["3 rooms", "4 rooms"] * 12})
    with pytest.raises(InvalidInput, match=r"'dose' holds numbers with 'mg/l', such as '5\.0 mg/l' in row 0"):
        table_from_frame(doses)
    assert table_from_frame(doses[["rooms"]]).labels == (("3 rooms", "4 rooms"),)  # few are categories


def test_whole_numbers_with_gaps_stay_whole(tmp_path: Path) -> None:
    """A column of ages with an empty cell, or as pandas writes it, 32.0; heights keep their decimals."""
    rows = [f"{30 + i % 7},{30 + i % 7}.0,{1.5 + i / 7}" for i in range(N)]
    (tmp_path / "t.csv").write_text("\n".join(["age,years,height", *rows, ",,"]))
    table = read_table(tmp_path / "t.csv", missing="impute")
    assert table.dtypes == ("Int64", "Int64", "float64")
    again = table.frame()
    assert again.age.isna().sum() == 1
    assert again.to_csv(index=False).splitlines()[1].startswith("30,30,1.5")


def test_dtypes_come_back() -> None:
    frame = pd.DataFrame(
        {
            "whole": np.arange(N, dtype=np.int32) % 5,
            "yes": np.arange(N) % 3 == 0,
            "kind": pd.Categorical(
                [("low", "high", "mid")[i % 3] for i in range(N)], categories=["low", "mid", "high"]
            ),
            "text": TOWNS,
            "short": X.astype(np.float32),
            "nullable": pd.array([i % 4 for i in range(N)], dtype="Int64"),
        }
    )
    table = table_from_frame(frame)
    back = table.frame()
    pd.testing.assert_frame_equal(back, frame)
    assert table.labels[2] == ("low", "mid", "high")  # the order of the categories is kept
    again = table_from_frame(frame.iloc[[3]], like=table)  # one row of the same kind
    assert again.values.tolist() == [table.values[3].tolist()]
    with pytest.raises(InvalidInput, match="'text' holds 'Rom', which is none of its categories Bonn, "):
        table_from_frame(frame.assign(text="Rom"), like=table)
    with pytest.raises(InvalidInput, match="must have the 6 columns of the model, whole, yes"):
        table_from_frame(frame[["whole"]], like=table)


def test_numbers_of_another_table_are_numbers_by_value() -> None:
    table = table_from_frame(pd.DataFrame({"x": np.arange(N) % 7, "y": X}))
    for x in (pd.Categorical([3, 5, 7] * 2), ["3", "5", "7"] * 2, pd.Categorical(["3", "5", "7"] * 2)):
        found = table_from_frame(pd.DataFrame({"x": x, "y": X[:6]}), like=table)
        assert found.values[:, 0].tolist() == [3.0, 5.0, 7.0] * 2
    for x in (["low", "high"] * 3, pd.Categorical(["low", "high"] * 3), ["3", "high", "low"] * 2):
        with pytest.raises(InvalidInput, match=r"'x' holds '(low|high)', and must hold numbers"):
            table_from_frame(pd.DataFrame({"x": x, "y": X[:6]}), like=table)


def test_years_that_were_chosen_are_no_index() -> None:
    """Neither in rows to be scored, nor in a table that is taken again or compared."""
    years = pd.DataFrame({"year": np.arange(2000, 2000 + N), "x": X, "y": np.roll(X, 5)})
    table = table_from_frame(years, columns=["year", "x", "y"])
    few = table_from_frame(years[:3], like=table)
    assert few.values[:, 0].tolist() == [2000.0, 2001.0, 2002.0]
    with pytest.raises(InvalidInput, match="leave columns and drop out"):
        table_from_frame(years, columns=["x"], like=table)
    model = ep.tables.fit(table, drop=["y"], steps=2, levels=2, progress=False)
    assert model.columns == ("year", "x")
    half = N // 2
    parts = (table_from_frame(part, columns=["year", "x"]) for part in (years[:half], years[half:]))
    assert set(ep.tables.compare(*parts).columns.column) == {"year", "x"}


@pytest.mark.parametrize(("ending", "package"), [("parquet", "pyarrow"), ("xlsx", "openpyxl")])
def test_an_engine_that_is_missing_is_named(ending: str, package: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{ending}"
    path.write_bytes(b"PAR1")
    wanted = (
        "can't be read" if importlib.util.find_spec(package) else f"needs the package {package}.*pip install {package}"
    )
    with pytest.raises(InvalidInput, match=wanted):
        read_frame(path)


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow, which reads Parquet, is not installed")
    frame = pd.DataFrame({"income": X, "town": TOWNS})
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table.frame().equals(frame)
    frame.set_index("income").to_parquet(tmp_path / "index.parquet")  # a column that became the index is one
    assert read_table(tmp_path / "index.parquet").columns == ("income", "town")
    assert read_table(tmp_path / "t.parquet", columns=["income"]).columns == ("income",)
    with pytest.raises(InvalidInput, match="there is no column 'wage'; the columns: income, town"):
        read_table(tmp_path / "t.parquet", columns=["wage"])
    money = frame.assign(income=[Decimal(str(x)) for x in X])  # as databases write amounts
    money.to_parquet(tmp_path / "money.parquet")
    assert read_table(tmp_path / "money.parquet").values[:, 0].tolist() == X.tolist()
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:200])
    with pytest.raises(InvalidInput, match="can't be read as a table"):
        read_table(tmp_path / "cut.parquet")


def test_excel(tmp_path: Path) -> None:
    """As text is read: names found out, empty rows left out, marks of missing cells, decimal commas, sheets by name."""
    pytest.importorskip("openpyxl", reason="openpyxl, which reads workbooks, is not installed")
    frame = pd.DataFrame({"income": X, "rooms": np.arange(N) % 4, "town": TOWNS})
    path = tmp_path / "t.xlsx"
    frame.to_excel(path, index=False, startrow=2)
    assert read_table(path).frame().equals(frame)
    frame.to_excel(path, index=False, header=False)
    assert read_table(path).columns == ("c0", "c1", "c2")
    frame.astype({"income": str}).replace(r"\.", ",", regex=True).to_excel(path, index=False)
    assert read_table(path, decimal=",").values[:, 0].tolist() == X.tolist()
    with pytest.raises(InvalidInput, match="--decimal ,"):
        read_table(path)
    frame.assign(income=[f"{x:,.2f}" for x in AMOUNTS]).to_excel(path, index=False)
    assert read_table(path).values[:, 0].tolist() == AMOUNTS.tolist()
    gaps = frame.astype(object)
    gaps.loc[3] = "?"
    gaps.to_excel(path)
    with pytest.warns(UserWarning, match="the first column of .*, 'c0', is left out"):
        assert np.isnan(read_table(path, missing="impute").values[3]).all()
    with pd.ExcelWriter(path) as book:
        for name in ("one", "two"):
            frame.to_excel(book, sheet_name=name, index=False)
    assert read_table(path, array="two").frame().equals(frame)
    for array, message in ((None, r"--array NAME\); its sheets: one, two"), ("three", "no sheet 'three'")):
        with pytest.raises(InvalidInput, match=message):
            read_table(path, array=array)


def test_what_is_no_text_or_no_option_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text("a,b,c"))
    with pytest.raises(InvalidInput, match="decimal must be"):
        read_table(path, decimal=";")
    with pytest.raises(InvalidInput, match="missing must be 'drop'"):
        read_table(path, missing="mean")
    with pytest.raises(InvalidInput, match="must be a pandas DataFrame; got list"):
        table_from_frame([1, 2])  # type: ignore[arg-type]
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(bytes(2**28 + 2**20), 9))
    with pytest.raises(InvalidInput, match="would unpack to"):
        read_table(tmp_path / "t.csv.gz")


def test_frames_and_arrays_go_into_fit_and_densities_as_they_are() -> None:
    frame = pd.DataFrame(np.random.default_rng(1).normal(size=(60, 2)), columns=["a", "b"])
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=8, depth=1, levels=2), ep.NoiseSchedule.cosine(levels=2))
    ep.fit(ebm, frame, steps=2, progress=False)
    points = torch.tensor(frame.to_numpy().copy())
    for scores in (ebm.log_prob, lambda x: ep.evaluation.energy_scores(ebm, x)):
        torch.testing.assert_close(scores(frame), scores(points))
        torch.testing.assert_close(scores(frame.to_numpy()), scores(points))
    with pytest.raises(InvalidInput, match=r"must hold numbers .*; got .*ep\.tables\.fit"):
        ep.fit(ebm, frame.assign(a="x"), steps=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("quote", ['"', ""])
@pytest.mark.parametrize("mark", [";", "|", "\t"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_marks_in_texts_separate_no_fields(tmp_path: Path, quote: str, mark: str, every: int) -> None:
    notes = [f"dark{mark}red" if i % every == 0 else "blue" for i in range(N)]
    rows = "".join(f"{x},{quote}{note}{quote}\n" for x, note in zip(X, notes, strict=True))
    (tmp_path / "t.csv").write_text("value,note\n" + rows)
    frame = read_frame(tmp_path / "t.csv")
    assert list(frame.columns) == ["value", "note"]
    assert frame["note"].tolist() == notes


def test_lines_may_end_in_carriage_returns_alone(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\r".join([b"x,y", *(f"{i},{i * i}".encode() for i in range(N))]))
    frame = read_frame(tmp_path / "t.csv")
    assert frame["y"].tolist() == [i * i for i in range(N)]


@pytest.mark.parametrize("gaps", [False, True])
def test_frames_come_back_with_their_dtypes(gaps: bool) -> None:
    frame = pd.DataFrame(
        {
            "yes": pd.array([i % 3 == 0 for i in range(N)], dtype="boolean"),
            "small": pd.array(X, dtype="Float32"),
            "number": pd.array(X, dtype="Float64"),
            "count": pd.array([i % 5 for i in range(N)], dtype="Int16"),
            "town": pd.array(TOWNS, dtype="string"),
            "kind": pd.Categorical(TOWNS),
            "plain": X,
        }
    )
    if gaps:
        frame = frame.mask(np.arange(N)[:, None] == np.arange(7))
    pd.testing.assert_frame_equal(table_from_frame(frame, missing="impute").frame(), frame)

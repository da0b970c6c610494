"""Fields of a table's file that were changed by hand: each is checked against the others before it is used."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import energyppl as ep
from energyppl.errors import CheckpointError

ROWS = 200
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "plain": RNG.normal(size=ROWS),
        "positive": np.exp(RNG.normal(size=ROWS)),
        "count": RNG.integers(0, 4, ROWS),
        "three": RNG.choice(["x", "y", "z"], ROWS),
        "two": RNG.choice(["u", "v"], ROWS),
        "zeros": np.where(RNG.random(ROWS) < 0.3, 0.0, RNG.gamma(1.0, 1.0, ROWS)),
    }
)
Tree = dict[str, Any]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    path = tmp_path_factory.mktemp("table") / "model.ckpt"
    ep.tables.save(ep.tables.fit(FRAME, steps=1, levels=2, progress=False), path)
    found: Tree = ep.load_checkpoint(path)
    return found


def changed(tree: Any, *path: Any, to: Any) -> Any:
    """The tree with another value, or what a function makes of it, at a path."""
    if not path:
        return to(tree) if callable(to) else to
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    every = {key: changed(value, *path[1:], to=to) if key == path[0] else value for key, value in items}
    return every if isinstance(tree, dict) else list(every.values())


def of_rows(value: float, place: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    def forge(rows: torch.Tensor) -> torch.Tensor:
        rows = rows.clone()
        rows[place] = value
        return rows

    return forge


def column(tree: Tree, name: str) -> int:
    return list(tree["columns"]).index(name)


OF_COLUMNS: dict[str, tuple[str, tuple[Any, ...], Any]] = {  # column, where in its tree, what is put there
    "a map of no kind": ("plain", ("base", "kind"), "exp"),
    "a map of NaN": ("positive", ("base", "low"), math.nan),
    "a map in words": ("positive", ("base", "low"), "0"),
    "a sign": ("positive", ("base", "sign"), 2.0),
    "no map": ("plain", ("base",), None),
    "steps of NaN": ("plain", ("gap",), math.nan),
    "steps backwards": ("plain", ("gap",), -1.0),
    "ends swapped": ("positive", ("high",), -1.0),
    "decimals in words": ("positive", ("decimals",), "2"),
    "decimals of a fraction": ("positive", ("decimals",), 1.5),
    "another column": ("plain", ("class",), "Categories"),
    "values in another order": ("count", ("values",), lambda v: v[::-1]),
    "fewer edges": ("count", ("edges",), lambda v: v[:-1]),
    "edges that end early": ("count", ("edges", 4), 0.999),
    "edges of NaN": ("count", ("edges", 1), math.nan),
    "fewer categories": ("three", ("count",), 2),
    "more categories": ("three", ("count",), 4),
    "one value of two": ("two", ("values",), [0.0]),
    "others of two": ("two", ("values",), [0.0, 2.0]),
    "repeated values of NaN": ("zeros", ("atoms", "values", 0), math.nan),
    "shares above one": ("zeros", ("atoms", "masses", 0), 1.5),
    "shares below none": ("zeros", ("atoms", "below", 0), -0.5),
    "a flat spline": ("zeros", ("spline", "slope", 0), 0.0),
    "a spline that falls": ("zeros", ("spline", "x"), lambda v: v[::-1]),
    "a short spline": ("zeros", ("spline", "y"), lambda v: v[:-1]),
}
OF_TABLE: dict[str, tuple[tuple[Any, ...], Any]] = {
    "infinite rows": (("rows",), of_rows(math.inf, (0, 0))),
    "no category": (("rows",), of_rows(7.0, (0, 3))),
    "a category between": (("held_out",), of_rows(0.5, (0, 3))),
    "one long row": (("rows",), lambda rows: rows.flatten()),
    "complex rows": (("rows",), lambda rows: rows.to(torch.complex128)),
    "names twice": (("columns",), ["a"] * 6),
    "names that are numbers": (("columns", 0), 3),
    "names of others": (("columns", 0), "another"),
    "a grid that falls": (("grids", 2), lambda grid: grid.flip(0)),
    "a grid of NaN": (("grids", 2), lambda grid: grid * math.nan),
    "a grid in rows": (("grids", 2), lambda grid: grid[None]),
    "one category": (("labels", 3), ["x"]),
    "categories twice": (("labels", 3), ["x", "x", "z"]),
    "categories that are lists": (("labels", 3, 0), ["x"]),
    "categories of a number": (("labels", 0), ["x", "y"]),
    "a dtype that is no text": (("dtypes", 0), 3),
    "curves of different lengths": (("curves", "held_out"), torch.zeros(7)),
    "coordinates without width": (("transform", "scale", 0), 0.0),
    "coordinates of NaN": (("transform", "loc", 0), math.nan),
    "fewer coordinates": (("transform", "loc"), lambda v: v[:-1]),
}


def refused(tree: Tree, path: Path) -> None:
    ep.save_checkpoint(path, tree)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} is not a model that energyppl fit") as caught:
        ep.tables.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OF_COLUMNS)
def test_a_column_s_map_is_checked(name: str, tree: Tree, tmp_path: Path) -> None:
    of, where, value = OF_COLUMNS[name]
    refused(changed(tree, "transform", "columns", column(tree, of), *where, to=value), tmp_path / "forged.ckpt")


@pytest.mark.parametrize("name", OF_TABLE)
def test_a_table_s_parts_are_checked(name: str, tree: Tree, tmp_path: Path) -> None:
    where, value = OF_TABLE[name]
    refused(changed(tree, *where, to=value), tmp_path / "forged.ckpt")


def test_what_is_as_it_was_is_read(tree: Tree, tmp_path: Path) -> None:
    """Negative control: the changes are what is refused, not the way in which they are made."""
    same = changed(changed(tree, "rows", to=of_rows(math.nan, (0, 0))), "transform", "columns", 0, "gap", to=0.0)
    ep.save_checkpoint(tmp_path / "same.ckpt", same)
    assert ep.tables.load(tmp_path / "same.ckpt").columns == tuple(FRAME.columns)

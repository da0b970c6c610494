"""Tables that are made, of every kind that people bring, with what should become of each."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.random import Generator

__all__ = ["MADE", "MARGINALS", "Made", "sklearn_tables"]


class Made(NamedTuple):
    """A kind of table: how its rows are drawn, how many, and what ``fit`` should do with it."""

    draw: Callable[[Generator, int], pd.DataFrame]
    rows: int
    refused: str = ""  # what a refusal says; empty if it should train
    missing: str | None = None


def _lognormal(rng: Generator, n: int) -> pd.DataFrame:
    x, noise = rng.normal(size=(2, n))
    return pd.DataFrame(
        {
            "income": np.exp(10.0 + 0.8 * x),
            "wealth": np.exp(11.0 + 1.2 * (0.7 * x + 0.7 * noise)),
            "age": 45.0 + 10.0 * x + 8.0 * rng.normal(size=n),
        }
    )


def _cauchy(rng: Generator, n: int) -> pd.DataFrame:
    x, y = rng.standard_cauchy((2, n))
    return pd.DataFrame({"a": x, "b": 0.5 * x + y, "c": np.arctan(x) + rng.normal(size=n)})


def _counts(rng: Generator, n: int) -> pd.DataFrame:
    rate = np.exp(1.0 + 0.7 * rng.normal(size=n))
    return pd.DataFrame(
        {"visits": rng.poisson(rate), "calls": rng.poisson(0.3 * rate), "large": rng.poisson(100.0 * rate)}
    )


def _bounded(rng: Generator, n: int) -> pd.DataFrame:
    share = rng.beta(0.7, 0.7, n)
    return pd.DataFrame(
        {"share": share, "other": rng.beta(1.0 + 4.0 * share, 2.0), "angle": rng.uniform(0.0, 360.0, n)}
    )


def _mixed(rng: Generator, n: int) -> pd.DataFrame:
    age, kind = rng.integers(18, 90, n), rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])
    income = np.exp(9.5 + 0.02 * age + 0.4 * kind + 0.4 * rng.normal(size=n)).round(2)
    return pd.DataFrame(
        {
            "age": age,
            "kind": np.array(["clerk", "nurse", "smith", "king"])[kind],
            "income": income,
            "owner": rng.random(n) < 0.2 + 0.006 * (age - 18),
            "rooms": rng.poisson(1.0 + income / 60_000.0),
        }
    )


MARGINALS = {"log-normal": _lognormal, "Cauchy": _cauchy, "counts": _counts, "bounded": _bounded, "mixed": _mixed}


def _gaps(rng: Generator, n: int) -> pd.DataFrame:
    frame = _mixed(rng, n)
    for name in ("income", "kind"):
        frame[name] = frame[name].mask(rng.random(n) < 0.15)
    return frame


def _ring(rng: Generator, n: int) -> pd.DataFrame:
    angle, radius = rng.uniform(0.0, 2.0 * np.pi, n), 1.0 + 0.05 * rng.normal(size=n)
    return pd.DataFrame({"x": radius * np.cos(angle), "y": radius * np.sin(angle), "z": rng.normal(size=n)})


def _far_mode(rng: Generator, n: int) -> pd.DataFrame:
    rows = rng.normal(size=(n, 2))
    rows[rng.random(n) < 0.03] += 12.0
    return pd.DataFrame(rows, columns=["a", "b"])


def _wild_cell(rng: Generator, n: int) -> pd.DataFrame:
    frame = pd.DataFrame(rng.normal(size=(n, 3)), columns=["a", "b", "c"])
    frame.loc[7, "b"] = 1e8
    return frame


def _zeros(rng: Generator, n: int) -> pd.DataFrame:
    x = rng.normal(size=n)
    rain = np.where(x < 0.3, 0.0, np.exp(x + 0.5 * rng.normal(size=n)))
    return pd.DataFrame({"rain": rain, "clouds": x + 0.5 * rng.normal(size=n)})


def _simplex(rng: Generator, n: int) -> pd.DataFrame:
    return pd.DataFrame(rng.dirichlet([2.0, 3.0, 4.0], n), columns=["sand", "silt", "clay"])


def _sum(rng: Generator, n: int) -> pd.DataFrame:
    a, b = rng.normal(size=(2, n))
    return pd.DataFrame({"a": a, "b": b, "total": a + b})


def _codes(rng: Generator, n: int) -> pd.DataFrame:
    yes = rng.random((n, 4)) < 0.4
    return pd.DataFrame({"a": yes[:, 0], "b": yes[:, 0] ^ (rng.random(n) < 0.1), "c": yes[:, 2], "d": yes[:, 3]})


def _categories(rng: Generator, n: int) -> pd.DataFrame:
    code = rng.choice(12, n, p=np.arange(12, 0, -1) / 78.0)
    return pd.DataFrame({"town": np.array([f"town {i}" for i in range(12)])[code], "size": code + rng.normal(size=n)})


def _units(rng: Generator, n: int) -> pd.DataFrame:
    x, y, z = rng.normal(size=(3, n))
    return pd.DataFrame({"tiny": 1e-7 * x, "far": 1e6 + x + y, "huge": 1e9 * z})


def _dates(rng: Generator, n: int) -> pd.DataFrame:
    return pd.DataFrame({"day": pd.date_range("2020-01-01", periods=n), "x": rng.normal(size=n)})


def _names(rng: Generator, n: int) -> pd.DataFrame:
    return pd.DataFrame({"name": [f"person {i}" for i in range(n)], "x": rng.normal(size=n)})


def _copy(rng: Generator, n: int) -> pd.DataFrame:
    x = rng.normal(size=n)
    return pd.DataFrame({"celsius": x, "y": rng.normal(size=n), "fahrenheit": 32.0 + 1.8 * x})


def _plain(columns: int) -> Callable[[Generator, int], pd.DataFrame]:
    def draw(rng: Generator, n: int) -> pd.DataFrame:
        mixing = np.random.default_rng(0).normal(size=(columns, columns))
        return pd.DataFrame(rng.normal(size=(n, columns)) @ mixing, columns=[f"x{i}" for i in range(columns)])

    return draw


MADE: dict[str, Made] = {
    "three rows": Made(_plain(2), 3, "at least 10 rows"),
    "twelve rows": Made(_plain(2), 12),
    "one column": Made(lambda rng, n: pd.DataFrame({"x": rng.normal(size=n) + 6.0 * (rng.random(n) < 0.3)}), 1000),
    "thirty columns": Made(_plain(30), 3000),
    "200,000 rows": Made(_ring, 200_000),
    **{name: Made(draw, 4000) for name, draw in MARGINALS.items()},
    "gaps, imputed": Made(_gaps, 1500, missing="impute"),
    "gaps": Made(_gaps, 1500, "missing or infinite cells"),
    "a far mode of 3 %": Made(_far_mode, 4000),
    "a cell of 1e8": Made(_wild_cell, 2000),
    "many zeros": Made(_zeros, 3000),
    "shares that sum to 1": Made(_simplex, 1500, "determine each other"),
    "a column of sums": Made(_sum, 1500, "determine each other"),
    "yes and no": Made(_codes, 2000),
    "twelve categories": Made(_categories, 3000),
    "units from 1e-7 to 1e9": Made(_units, 2000),
    "a copy in other units": Made(_copy, 500, "in other units"),
    "a constant": Made(lambda rng, n: pd.DataFrame({"x": rng.normal(size=n), "k": 7.0}), 500, "constant"),
    "dates": Made(_dates, 300, "dates"),
    "names": Made(_names, 300, "different texts"),
}


def sklearn_tables() -> dict[str, pd.DataFrame]:
    """Return scikit-learn's own small tables, with what they are to tell as a column."""
    from sklearn import datasets

    found = {}
    for name in ("iris", "wine", "breast_cancer", "diabetes", "linnerud"):
        bunch = getattr(datasets, f"load_{name}")(as_frame=True)
        frame = bunch.frame
        if name in ("iris", "wine"):
            frame = frame.assign(target=np.asarray(bunch.target_names)[frame.target])
        if name == "breast_cancer":
            frame = frame.drop(columns="target")  # thirty columns
        found[name] = frame
    return found

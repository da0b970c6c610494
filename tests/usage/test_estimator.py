"""The estimator in scikit-learn's shape: its own checks of estimators, pipelines, searches, seeds, refusals."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

import energyppl as ep

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import estimator_checks_generator  # noqa: E402

Array = NDArray[np.float64]


def quick(**settings: Any) -> ep.estimator.EnergyDensity:
    usual = {"steps": 2, "hidden": 4, "depth": 1, "levels": 2, "random_state": 0}
    return ep.estimator.EnergyDensity(
        **{**usual, "objective": ep.objectives.LevelScoreMatching(), **settings}  # which trains any number of columns
    )


def rows(count: int = 120) -> Array:
    return np.random.default_rng(0).normal(size=(count, 2)) @ np.array([[1.0, 0.5], [0.0, 2.0]])


NOT_OURS = {
    "check_dtype_object": "cells that are no numbers are refused by a ValueError, as all bad input here",
    "check_array_api_input": "only with SCIPY_ARRAY_API",
}
LONG = {  # log Z in four and more columns, for each of them
    "check_fit_score_takes_y",
    "check_pipeline_consistency",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
}


def of_sklearn() -> list[tuple[Any, Callable[[Any], None]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its own base class is not ours: it is not there to import
        return list(estimator_checks_generator(quick()))


def checks() -> list[Any]:
    found = []
    for number, (_, check) in enumerate(of_sklearn()):
        name = getattr(check, "func", check).__name__
        marks = [pytest.mark.slow] if name in LONG else []
        if name not in NOT_OURS:
            found.append(pytest.param(number, marks=marks, id=f"{number}-{name}"))
    return found


@pytest.mark.parametrize("number", checks())
@pytest.mark.filterwarnings("ignore")  # two steps make no density that log Z could be trusted of
def test_it_passes_the_checks_of_scikit_learn(number: int) -> None:
    estimator, check = of_sklearn()[number]
    check(estimator)


def test_it_works_in_a_pipeline_and_a_search() -> None:
    x = rows()
    pipeline = make_pipeline(StandardScaler(), quick(steps=30))
    search = GridSearchCV(pipeline, {"energydensity__hidden": [2, 8]}, cv=2).fit(x)
    assert search.best_params_["energydensity__hidden"] in (2, 8)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_
    assert best.score_samples(x).shape == (120,)
    assert best.score(x) == pytest.approx(best.score_samples(x).mean())
    assert len(cross_val_score(quick(), x, cv=2)) == 2


def test_a_density_is_normalized_and_samples_are_of_its_shape() -> None:
    density = quick().fit(rows())
    axis = np.linspace(-12.0, 12.0, 121)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    mass = np.exp(density.score_samples(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert mass == pytest.approx(1.0, abs=0.02)
    assert density.sample(7).shape == (7, 2)
    assert density.history_.stopped == "all 2 steps made"


def test_a_seed_makes_all_of_it_the_same_and_leaves_other_numbers_alone() -> None:
    x = rows()
    torch.manual_seed(1)
    first = quick().fit(x)
    drawn = torch.rand(())
    torch.manual_seed(2)
    second = clone(first).fit(x)
    assert np.array_equal(first.score_samples(x), second.score_samples(x))
    assert np.array_equal(first.sample(3, random_state=4), second.sample(3, random_state=4))
    assert np.array_equal(first.sample(3), second.sample(3))
    assert not np.array_equal(first.sample(3), first.sample(3, random_state=4))
    unseeded = quick(random_state=None).fit(x)
    assert not np.array_equal(unseeded.sample(3), unseeded.sample(3))
    torch.manual_seed(1)
    assert torch.rand(()) == drawn
    generator = np.random.RandomState(0)
    assert not np.array_equal(first.sample(3, random_state=generator), first.sample(3, random_state=generator))


def test_a_model_of_ones_own_is_trained() -> None:
    def build(columns: int) -> ep.EBM:
        return ep.EBM(ep.MLPEnergy((columns,), hidden=4, depth=1))

    density = quick(model=build, objective=ep.objectives.DenoisingScoreMatching(0.3)).fit(rows())
    assert isinstance(density.model_, ep.EBM)
    assert repr(quick(hidden=128)).startswith("EnergyDensity(steps=2, levels=2, depth=1, objective=LevelScore")


@pytest.mark.parametrize(("rows_", "objective", "log_snr"), [
    ("smooth", None, 4.6), ("spikes", None, 6.6), ("spikes", "its own", 4.6), ("few", None, 4.6),
])  # fmt: skip
def test_the_noise_of_level_zero_is_chosen_on_rows_aside(rows_: str, objective: str | None, log_snr: float) -> None:
    """As for tables: two spikes .01 wide are two clusters of the base, likelier with less noise; Gaussians are not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(19 if rows_ == "few" else 600, 3))
    if rows_ == "spikes":
        x[:, 0] = rng.integers(0, 2, 600) + 0.01 * x[:, 0]
    own = None if objective is None else ep.objectives.LevelScoreMatching()
    density = quick(levels=None, objective=own).fit(x)
    assert float(density.model_.schedule.log_snr[0]) == pytest.approx(log_snr)
    assert np.isfinite(density.sample(2)).all()


def test_names_of_columns_are_remembered() -> None:
    frame = pd.DataFrame(rows(), columns=["a", "b"])
    density = quick().fit(frame)
    assert list(density.feature_names_in_) == ["a", "b"]
    assert density.score_samples(frame[:2]).shape == (2,)
    with pytest.raises(ep.InvalidInput, match="feature names should match"):
        density.score_samples(frame[["b", "a"]])


X = np.array(rows(20))
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "words": (lambda: quick().fit(np.array([["a", "b"]] * 5)), "X must hold numbers"),
    "a hole": (lambda: quick().fit(np.where(X[3, 1] == X, np.nan, X)), "NaN or infinity, first in row 3"),
    "a constant column": (lambda: quick().fit(np.stack([X[:, 0], np.ones(20)], 1)), r"coordinate\(s\) \[1\]"),
    "two rows": (lambda: quick().fit(X[:2]), "n_samples=2"),
    "a seed": (lambda: quick(random_state="a").fit(X), "random_state must be None, a whole number"),
    "levels": (lambda: quick(levels=0).fit(X), "levels must be a whole number"),
    "steps": (lambda: quick(steps=0).fit(X), "steps must be a whole number"),
    "an argument": (lambda: quick().set_params(width=3), "Invalid parameter 'width' for EnergyDensity: choose from"),
    "another width": (lambda: quick().fit(X).score(X[:, :1]), "X has 1 features, but EnergyDensity is expecting 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_in_one_sentence(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(ep.InvalidInput, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_scikit_learn_is_not_imported_to_import_and_fit() -> None:
    program = """
import sys
import numpy as np
sys.modules["sklearn"] = None  # as where it is not installed
import energyppl as ep
density = ep.estimator.EnergyDensity(steps=2, hidden=4, depth=1, random_state=0)
try:
    density.sample()
except ep.InvalidInput as error:
    print(error)
print(density.fit(np.random.default_rng(0).normal(size=(50, 2))).sample(3).shape)"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-2:] == [
        "This EnergyDensity instance is not fitted yet: call fit before",
        "(3, 2)",
    ], done.stderr

"""Predictions of a made table with a known truth: intervals hold as many rows as they say."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import energyppl as ep

FALSE_ALARM = 1e-4
SLACK = 0.04  # by which intervals of a model of 1,600 rows may miss their coverage
ROWS = 600  # of new ones


def made(count: int, seed: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """A table whose price grows noisier with its size, with the mean and the deviation of each row's logarithm."""
    rng = np.random.default_rng(seed)
    size, kind = rng.uniform(0.0, 4.0, count), rng.choice(["barn", "flat", "villa"], count)
    mean, sd = 3.0 + np.sin(size) + 0.8 * (kind == "villa"), 0.1 + 0.15 * size
    price = np.exp(mean + sd * rng.normal(size=count))
    return pd.DataFrame({"size": size, "kind": kind, "price": price}), mean, sd


def beyond_chance(inside: np.ndarray) -> bool:
    """Tell whether the coverage is farther from 90 % than the slack and chance allow, at the false-alarm rate."""
    low = stats.binom.ppf(0.5 * FALSE_ALARM, len(inside), 0.9 - SLACK)
    high = stats.binom.isf(0.5 * FALSE_ALARM, len(inside), 0.9 + SLACK)
    return not low <= inside.sum() <= high


def test_intervals_hold_as_many_rows_as_they_say_where_the_noise_is_small_and_where_it_is_large() -> None:
    """The negative control is the model told rows in another order: its intervals don't fit each half of the sizes."""
    frame, *_ = made(2000, 1)
    model = ep.tables.fit_conditional(frame, "price", steps=700, progress=False)
    new, mean, sd = made(ROWS, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of far rows, a few of which lie at the ends of the sizes
        found = model.predict(new)
    assert found.far.mean() < 0.02
    inside = ((found.price_lower <= new.price) & (new.price <= found.price_upper)).to_numpy()
    quiet = (new["size"] < 2.0).to_numpy()
    for part in (quiet, ~quiet):
        assert not beyond_chance(inside[part])
    widths = np.log(found.price_upper / found.price_lower) / (2.0 * stats.norm.ppf(0.95) * sd)
    assert np.median(widths) == pytest.approx(1.0, abs=0.2)
    assert float(np.sqrt(np.mean((np.log(found.price_median) - mean) ** 2))) < 0.15
    truth = stats.norm.logpdf(np.log(new.price), mean, sd) - np.log(new.price)
    loss = truth - model.log_prob(new)
    assert loss.mean() < 0.15 + 4.0 * loss.std() / ROWS**0.5
    shuffled = found.sample(frac=1.0, random_state=0, ignore_index=True)
    wrong = ((shuffled.price_lower <= new.price) & (new.price <= shuffled.price_upper)).to_numpy()
    assert beyond_chance(wrong[quiet]) or beyond_chance(wrong[~quiet])

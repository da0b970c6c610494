"""Histograms of detection scores."""

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import Tensor

from energyppl.errors import InvalidInput
from energyppl.plots.base import save_figure
from energyppl.plots.detection import score_histograms


def test_histograms_become_a_png(tmp_path: Path) -> None:
    sets = {"digits": torch.randn(2000), "clothes": 3.0 + torch.randn(1000).numpy(), "noise": 1e5 * torch.rand(500)}
    figure = score_histograms(sets, title="energies", inlier="digits")
    picture = matplotlib.image.imread(save_figure(figure, tmp_path / "figure.png"))
    assert picture.std() > 0.01
    assert [patch.get_fill() for patch in figure.axes[0].patches] == [True, False, False]


@pytest.mark.parametrize("inlier", ["digits", None])
def test_far_outliers_leave_room_for_the_inliers_and_are_named(inlier: str | None) -> None:
    """Areas are shares of whole sets, so that what is beyond the axis is missing from them, and said."""
    far = torch.cat([1e6 * torch.ones(30), torch.zeros(10)])
    broken = torch.tensor([0.5, -0.5, math.nan, math.inf])
    axes = score_histograms({"digits": torch.randn(5000), "far": far, "broken": broken}, inlier=inlier).axes[0]
    low, high = axes.get_xlim()
    assert -30.0 < low < -2.0
    assert 2.0 < high < 30.0
    areas = [float((p.get_data()[0] * np.diff(p.get_data()[1])).sum()) for p in axes.patches]  # type: ignore[attr-defined]
    assert areas == pytest.approx([1.0, 0.25, 1.0], abs=0.02)
    words = [text.get_text() for text in axes.get_legend().get_texts()]  # type: ignore[union-attr]
    assert words[1] == "far (40 scores), 75.0% beyond the right end"
    assert words[2] == "broken (4 scores), 2 not finite"


def test_equal_scores_are_drawn() -> None:
    for value in (0.0, 1e9):
        low, high = score_histograms({"a": torch.full((5,), value)}).axes[0].get_xlim()
        assert low < value < high


S = torch.randn(30)


@pytest.mark.parametrize(
    ("scores", "inlier", "message"),
    [
        ({}, None, "at least one set; got none"),
        ({"a": S, "b": S}, "c", "inlier must name one of the sets a, b; got 'c'"),
        ({"a": S[:, None]}, None, r"scores of a must have shape \(n,\); got \(30, 1\)"),
        ({"a": S[:0]}, None, "scores of a must have a finite one; got none among 0"),
        ({"a": S, "b": S * torch.nan}, "a", "scores of b must have a finite one; got none among 30"),
    ],
)
def test_bad_picture_is_refused(scores: dict[str, Tensor], inlier: str | None, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        score_histograms(scores, inlier=inlier)

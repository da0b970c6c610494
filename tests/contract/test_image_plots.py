"""Pictures of images: every tile in its place, nothing that is no number passes for a picture, wrong shapes refused."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from energyppl.errors import InvalidInput
from energyppl.plots.base import SAMPLES, save_figure
from energyppl.plots.images import image_grid, image_strips, neighbour_grid

GREY, RGB = torch.rand(7, 1, 6, 5), torch.rand(7, 3, 6, 5) * 3 - 1
FIGURES: dict[str, Callable[[], Figure]] = {
    "grey": lambda: image_grid(GREY, columns=3, title="t"),
    "colour": lambda: image_grid(RGB, captions=list("abcdefg")),
    "no channels": lambda: image_grid(GREY[:, 0].numpy()),
    "strips": lambda: image_strips({"a": list(GREY[:3]), "b": list(GREY[3:6])}, titles=list("xyz"), title="t"),
    "nameless strips": lambda: image_strips(RGB[:6].reshape(2, 3, 3, 6, 5), titles=list("xyz")),
    "neighbours": lambda: neighbour_grid(GREY[:2], GREY[2:6].reshape(2, 2, 1, 6, 5), title="t"),
    "grey neighbours": lambda: neighbour_grid(GREY[:2, 0], GREY[2:4]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_becomes_a_png(name: str, tmp_path: Path) -> None:
    picture = matplotlib.image.imread(save_figure(FIGURES[name](), tmp_path / "figure.png"))
    assert picture.shape[0] > 300
    assert picture.std() > 0.01


def test_every_image_lies_in_its_place() -> None:
    figure = neighbour_grid(GREY[:2], GREY[2:6].reshape(2, 2, 1, 6, 5))
    canvas = figure.axes[0].images[0].get_array()
    assert canvas is not None
    assert canvas.shape == (13, 17, 3)
    for image, (row, column) in zip(GREY[[0, 2, 3, 1, 4, 5]], np.ndindex(2, 3), strict=True):
        tile = canvas[7 * row : 7 * row + 6, 6 * column : 6 * column + 5, 1]
        np.testing.assert_allclose(tile, image[0])


def test_what_is_no_number_is_red_and_the_rest_clipped() -> None:
    images = torch.tensor([[[[float("nan"), -5.0, float("inf")]]]])
    canvas = image_grid(images).axes[0].images[0].get_array()
    np.testing.assert_allclose(canvas, [[to_rgb(SAMPLES), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: image_grid(GREY[0, 0]), r"\(n, channels, height, width\) with 1 or 3 channels.*got \(6, 5\)"),
        (lambda: image_grid(torch.rand(2, 2, 6, 5)), r"got \(2, 2, 6, 5\)"),
        (lambda: image_grid(GREY[:0]), "not empty"),
        (lambda: image_grid(GREY, columns=0), "columns must be"),
        (lambda: image_grid(GREY, captions=["a"]), "captions must be 7, one for each image; got 1"),
        (lambda: image_strips({}, titles=["a"]), "at least one row"),
        (lambda: image_strips(GREY, titles=["a"]), r"\(rows, steps, channels, height, width\); got \(7, 1, 6, 5\)"),
        (lambda: image_strips({"a": list(GREY[:2])}, titles=["x"]), "row a must have 1 images.*got 2"),
        (lambda: image_strips({"a": []}, titles=[]), "row a must have"),
        (lambda: image_strips({"a": [GREY[0]], "b": [GREY[0, 0]]}, titles=["x"]), r"\(1, 6, 5\) first and \(6, 5\).*b"),
        (lambda: neighbour_grid(GREY, GREY), r"must be \(n, k, \*image\)"),
        (lambda: neighbour_grid(GREY, torch.rand(6, 2, 1, 6, 5)), r"got \(6, 2, 1, 6, 5\) for \(7, 1, 6, 5\)"),
    ],
)
def test_bad_picture_is_refused(draw: Callable[[], Figure], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        draw()

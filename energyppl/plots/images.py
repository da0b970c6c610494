"""Plots of images: grids, strips of chains, nearest neighbours.

Each takes arrays or tensors and returns a matplotlib Figure.  Values are clipped to [0, 1], and pixels that are NaN are
red.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from energyppl._checks import check_count, shape_text
from energyppl.errors import InvalidInput
from energyppl.plots.base import INK, SAMPLES, Values, as_numpy, blank_figure, drawn, short_name

__all__ = ["image_grid", "image_strips", "neighbour_grid"]

_WIDEST = 12.0  # inches of tiles
_TILE = 0.9  # largest side of a tile, inches
_ALONE = 1.3  # the same of a single row, which would leave the figure empty
_CAPTION = 0.15  # room for a caption, inches


@drawn
def image_grid(images: Values, *, columns: int = 10, title: str = "", captions: Sequence[str] | None = None) -> Figure:
    """Plot images row by row.

    Args:
        images: ``(n, channels, height, width)`` with 1 or 3 channels, or ``(n, height, width)``; 1 is white.
        columns: images in a row.
        title: of the figure.
        captions: n short words above the images.

    Raises:
        InvalidInput: if ``images`` have another shape, or there are not n captions.

    Example:
        >>> figure = ep.plots.image_grid(torch.rand(20, 1, 8, 8), columns=10, title="Twenty images")
        >>> len(figure.axes)
        1
    """
    tiles = _tiles("images", images)
    check_count("columns", columns)
    if captions is not None and len(captions) != len(tiles):
        raise InvalidInput(f"captions must be {len(tiles)}, one for each image; got {len(captions)}")
    figure, axes, _ = _mosaic(tiles, min(columns, len(tiles)), title, captions=captions or ())
    axes.set_axis_off()
    return figure


@drawn
def image_strips(strips: Mapping[str, Sequence[Values]] | Values, *, titles: Sequence[str], title: str = "") -> Figure:
    """Plot chains of images on their way, one row for each chain and one column for each noise level or time.

    Args:
        strips: for each chain's name its images, ``(channels, height, width)`` or ``(height, width)``; or nameless
            ones, ``(rows, steps, channels, height, width)``.
        titles: of the columns.
        title: of the figure.

    Raises:
        InvalidInput: if the images differ in shape, or rows are not as long as ``titles``.

    Example:
        >>> figure = ep.plots.image_strips({"chain 1": torch.rand(3, 1, 8, 8)}, titles=["noise", "level 1", "level 0"])
        >>> len(figure.axes)
        1
    """
    if isinstance(strips, Mapping):
        rows = {name: [as_numpy(image) for image in row] for name, row in strips.items()}
    else:
        values = as_numpy(strips)
        if values.ndim != 5:
            raise InvalidInput(
                f"strips must be (rows, steps, channels, height, width); got {shape_text(values.shape)}: "
                "give grey images one channel"
            )
        rows = {str(i): list(row) for i, row in enumerate(values)}
    if not rows:
        raise InvalidInput("strips must have at least one row; got none: pass one for each chain")
    shape = next((image.shape for row in rows.values() for image in row), ())
    for name, row in rows.items():
        if len(row) != len(titles) or not row:
            raise InvalidInput(f"row {name} must have {len(titles)} images, one for each title; got {len(row)}")
        for image in row:
            if image.shape != shape:
                raise InvalidInput(
                    f"all images must have one shape; got {shape_text(shape)} first and {shape_text(image.shape)} in "
                    f"row {name}: make them equal"
                )
    tiles = _tiles("the images of strips", np.stack([image for row in rows.values() for image in row]))
    return _labelled(tiles, titles, list(rows) if isinstance(strips, Mapping) else (), title)


@drawn
def neighbour_grid(samples: Values, neighbours: Values, *, title: str = "") -> Figure:
    """Plot each sample beside the training images that lie nearest to it, one row for each sample.

    Args:
        samples: ``(n, channels, height, width)`` or ``(n, height, width)``.
        neighbours: ``(n, k, channels, height, width)`` or ``(n, k, height, width)``, the nearest first:
            ``training[nearest_neighbours(samples, training, k).indices]``.
        title: of the figure.

    Raises:
        InvalidInput: if the two don't fit.

    Example:
        >>> figure = ep.plots.neighbour_grid(torch.rand(5, 1, 8, 8), torch.rand(5, 3, 1, 8, 8), title="Neighbours")
        >>> len(figure.axes)
        1
    """
    own, others = as_numpy(samples), as_numpy(neighbours)
    if others.ndim != own.ndim + 1 or others.shape[:1] + others.shape[2:] != own.shape or not others.size:
        raise InvalidInput(
            f"neighbours must be (n, k, *image) for samples (n, *image); got {shape_text(others.shape)} for "
            f"{shape_text(own.shape)}: pass training[nearest_neighbours(samples, training, k).indices]"
        )
    count = others.shape[1]
    tiles = _tiles("samples", np.concatenate([own[:, None], others], 1).reshape(-1, *own.shape[1:]))
    titles = ["sample", "nearest", *(str(i) for i in range(2, count + 1))]
    return _labelled(tiles, titles, (), title)


def _tiles(name: str, images: Values) -> NDArray[Any]:
    """Return red, green and blue in [0, 1], ``(n, height, width, 3)``."""
    values = as_numpy(images)
    grey = values[:, None] if values.ndim == 3 else values
    if grey.ndim != 4 or grey.shape[1] not in (1, 3) or not grey.size:
        raise InvalidInput(
            f"{name} must be (n, channels, height, width) with 1 or 3 channels, or (n, height, width), and not empty; "
            f"got {shape_text(values.shape)}: reshape them"
        )
    colours = np.broadcast_to(np.moveaxis(grey, 1, 3), (len(grey), *grey.shape[2:], 3))
    missing = np.isnan(colours).any(3, keepdims=True)
    tiles: NDArray[Any] = np.where(missing, to_rgb(SAMPLES), np.clip(colours, 0.0, 1.0))
    return tiles


def _labelled(tiles: NDArray[Any], columns: Sequence[str], rows: Sequence[str], title: str) -> Figure:
    figure, axes, step = _mosaic(tiles, len(columns), title, margin=0.7 if rows else 0.1, top=0.3)
    height, width = tiles.shape[1:3]
    axes.set_xticks([i * step[1] + (width - 1) / 2 for i in range(len(columns))], [short_name(c) for c in columns])
    axes.set_yticks([i * step[0] + (height - 1) / 2 for i in range(len(rows))], [short_name(r) for r in rows])
    axes.tick_params(labelsize=8, length=0, labelcolor=INK, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def _mosaic(
    tiles: NDArray[Any],
    columns: int,
    title: str,
    *,
    captions: Sequence[str] = (),
    margin: float = 0.1,
    top: float = 0.0,
) -> tuple[Figure, Axes, tuple[int, int]]:
    """Draw one picture of all tiles on white, and the pixels from one to the next, down and across.

    Args:
        tiles: ``(n, height, width, 3)``.
        columns: tiles in a row.
        title: of the figure.
        captions: of the tiles, or none.
        margin: room beside all of them, inches.
        top: room above all of them, inches.
    """
    count, height, width, _ = tiles.shape
    rows = -(-count // columns)
    inches = min(_TILE if rows > 1 else _ALONE, _WIDEST / columns) / max(height, width)  # a pixel's side
    gap, above = max(1, round(0.04 / inches)), math.ceil(_CAPTION / inches) if captions else 0
    step = (height + above + gap, width + gap)
    canvas = np.ones((rows * step[0] - gap, columns * step[1] - gap, 3))
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        start = row * step[0] + above
        canvas[start : start + height, column * step[1] : column * step[1] + width] = tile
    size = (max(3.0, canvas.shape[1] * inches + margin), max(2.1, canvas.shape[0] * inches + top + 0.5))
    figure = blank_figure(*size, title)
    axes = figure.subplots()
    axes.imshow(canvas, interpolation="nearest")
    for i, caption in enumerate(captions):
        row, column = divmod(i, columns)
        place = (column * step[1] + (width - 1) / 2, row * step[0] + (above - 1) / 2)
        axes.text(*place, short_name(caption), fontsize=6, color=INK, ha="center", va="center")
    return figure, axes, step

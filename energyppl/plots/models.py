"""Plots of models: samples, densities, energies and training curves.

Each takes arrays or tensors and returns a matplotlib Figure of its own, without pyplot's global state, so that it works
in threads, in notebooks and without a display.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator
from numpy.typing import NDArray

from energyppl.errors import InvalidInput
from energyppl.plots.base import (
    _STYLE,
    DATA,
    INK,
    INKS,
    SAMPLES,
    Extent,
    Values,
    as_numpy,
    blank_figure,
    drawn,
    panel_row,
    short_name,
)

__all__ = [
    "density_grid",
    "energy_landscape",
    "line_plot",
    "noise_to_data",
    "pair_plot",
    "scatter_panels",
    "training_curves",
]


_MAX_COLUMNS = 8
_TICK_LETTERS = 8  # of a category's name beside an axis


@drawn
def scatter_panels(
    panels: Mapping[str, Values],
    *,
    title: str,
    extent: Extent | None = None,
    labels: tuple[str, str] = ("$x_1$", "$x_2$"),
) -> Figure:
    """Plot clouds of points ``(n, 2)`` side by side on the same axes, each under its name.

    >>> figure = ep.plots.scatter_panels({"data": torch.randn(50, 2), "samples": torch.randn(50, 2)}, title="a toy")
    >>> [axes.get_title() for axes in figure.axes]
    ['data (50 points)', 'samples (50 points)']

    Args:
        panels: points by name; the first ones have the colour of data, the others that of samples.
        title: of the figure.
        extent: left, right, bottom and top of every panel; wide enough for nearly all points if None.
        labels: of the two axes.
    """
    clouds = {name: as_numpy(points) for name, points in panels.items()}
    box = _extent(np.concatenate(list(clouds.values()))) if extent is None else extent
    figure = blank_figure(4.0 * len(clouds), 4.3, title)
    for axes, (name, points), colour in zip(
        panel_row(figure, len(clouds)), clouds.items(), [DATA, *[SAMPLES] * len(clouds)], strict=False
    ):
        _cloud(axes, points, box, colour, labels)
        axes.set_title(f"{name} ({len(points):,} points)", **_STYLE)
    return figure


@drawn
def density_grid(
    rows: Mapping[str, Sequence[Values]],
    titles: Sequence[str],
    *,
    extent: Extent,
    title: str,
    labels: tuple[str, str] = ("$x_1$", "$x_2$"),
) -> Figure:
    """Plot heat maps of densities, one row for each name and one column for each noise level.

    Args:
        rows: for each name, densities ``(height, width)`` with the first row at the bottom; all in one unit.  The name
            is shown if there are several.
        titles: of the columns.
        extent: left, right, bottom and top of every map.
        title: of the figure.
        labels: of the two axes.

    Example:
        >>> maps = {"truth": [torch.rand(9, 9)], "model": [torch.rand(9, 9)]}
        >>> figure = ep.plots.density_grid(maps, ["level 0"], extent=(-1, 1, -1, 1), title="Densities")
        >>> len(figure.axes)
        2
    """
    figure = blank_figure(2.2 * len(titles) + 0.6, 2.35 * len(rows) + 0.6, title)
    grid = figure.subplots(len(rows), len(titles), squeeze=False, sharex=True, sharey=True)
    maps = {name: [as_numpy(m) for m in row] for name, row in rows.items()}
    for j, column_title in enumerate(titles):
        # One scale for each level: across levels the densities differ by orders of magnitude.
        top = float(max(np.quantile(row[j], 0.998) for row in maps.values()))
        for i, (name, row) in enumerate(maps.items()):
            axes: Axes = grid[i, j]
            axes.imshow(row[j], origin="lower", extent=extent, cmap="viridis", vmin=0.0, vmax=top, aspect="auto")
            axes.tick_params(labelsize=7)
            for axis in (axes.xaxis, axes.yaxis):  # none at the ends, where it would touch the neighbour's
                axis.set_major_locator(MaxNLocator(5, prune="both"))
            if i == 0:
                axes.set_title(column_title, **_STYLE)
            if j == 0:
                axes.set_ylabel(f"{name}\n{labels[1]}" if len(maps) > 1 else labels[1], **_STYLE)
            if i == len(maps) - 1:
                axes.set_xlabel(labels[0], **_STYLE)
    return figure


@drawn
def energy_landscape(energy: Values, *, extent: Extent, data: Values, title: str, height: float = 10.0) -> Figure:
    """Plot contours of an energy in nats above its lowest value, with data points on top.

    Args:
        energy: ``(height, width)``, the first row at the bottom.
        extent: left, right, bottom and top of the map.
        data: points ``(n, 2)``.
        title: of the figure.
        height: nats above the lowest value at which the colours end.

    Example:
        >>> bowl = torch.linspace(-3, 3, 50).square()
        >>> figure = ep.plots.energy_landscape(
        ...     bowl + bowl[:, None], extent=(-3, 3, -3, 3), data=torch.randn(50, 2), title="A bowl"
        ... )
        >>> figure.get_suptitle()
        'A bowl'
    """
    surface, points = as_numpy(energy), as_numpy(data)
    if points.ndim != 2 or points.shape[1] != 2:
        raise InvalidInput(f"data must be points (n, 2); got {points.shape}")
    surface = surface - surface.min()
    figure = blank_figure(6.2, 5.2, title)
    axes = figure.subplots()
    x = np.linspace(extent[0], extent[1], surface.shape[1])
    y = np.linspace(extent[2], extent[3], surface.shape[0])
    levels = np.linspace(0.0, height, 21)
    filled = axes.contourf(x, y, surface, levels=levels, cmap="magma_r", extend="max")
    axes.contour(x, y, surface, levels=levels[::2], colors="white", linewidths=0.4, alpha=0.6)
    bar = figure.colorbar(filled, ax=axes, label="energy above the lowest, nats", ticks=np.linspace(0.0, height, 6))
    bar.ax.tick_params(labelsize=8)
    points = as_numpy(data)
    axes.scatter(points[:, 0], points[:, 1], s=2.5, c=DATA, linewidths=0, alpha=0.8, label="data")
    axes.legend(loc="upper right", fontsize=8, markerscale=3)
    _name_axes(axes, extent)
    return figure


@drawn
def training_curves(curves: Mapping[str, tuple[Values, Values]], *, title: str) -> Figure:
    """Plot values ``(n,)`` against steps ``(n,)``, a panel for each name, without NaN and with a running mean.

    Example:
        >>> figure = ep.plots.training_curves({"loss": (torch.arange(200), torch.randn(200))}, title="Training")
        >>> figure.axes[0].get_title()
        'loss'
    """
    figure = blank_figure(3.6 * len(curves), 3.2, title)
    for axes, (name, (steps, values)) in zip(panel_row(figure, len(curves)), curves.items(), strict=True):
        x, y = as_numpy(steps), as_numpy(values)
        kept = np.isfinite(y)
        x, y = x[kept], y[kept]
        axes.set_title(name, **_STYLE)
        axes.set_xlabel("step", **_STYLE)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        if len(y) > 100:
            window = max(5, len(y) // 40)
            mean = np.convolve(y, np.ones(window) / window, mode="valid")
            axes.plot(x, y, color=DATA, linewidth=0.6, alpha=0.35)
            axes.plot(x[window - 1 :], mean, color=DATA, linewidth=1.6, label=f"mean of {window} steps")
            axes.legend(fontsize=7)
            low, high = np.quantile(y, [0.002, 0.998])
            axes.set_ylim(low - 0.15 * (high - low) - 1e-9, high + 0.15 * (high - low) + 1e-9)
        else:
            axes.plot(x, y, color=DATA, linewidth=1.4, marker="o", markersize=3)
    return figure


@drawn
def line_plot(curves: Mapping[str, tuple[Values, Values]], *, title: str, labels: tuple[str, str]) -> Figure:
    """Plot curves on the same axes, each in a colour of its own and named in the legend if there are several.

    Args:
        curves: abscissas and ordinates, ``(n,)`` each, by name.
        title: of the figure.
        labels: of the two axes.

    Example:
        >>> x = torch.linspace(-3, 3, 100)
        >>> bells = {f"width {w}": (x, (-0.5 * (x / w) ** 2).exp()) for w in (1, 2)}
        >>> figure = ep.plots.line_plot(bells, title="Two bells", labels=("x", "density"))
        >>> len(figure.axes[0].lines)
        2
    """
    figure = blank_figure(6.2, 3.6, title)
    axes = figure.subplots()
    for (name, (x, y)), ink in zip(curves.items(), cycle(INKS), strict=False):
        axes.plot(as_numpy(x), as_numpy(y), color=ink, linewidth=1.4, label=name)
    if len(curves) > 1:
        axes.legend(fontsize=8)
    axes.set_xlabel(labels[0], **_STYLE)
    axes.set_ylabel(labels[1], **_STYLE)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)
    return figure


@drawn
def noise_to_data(path: Sequence[Values], titles: Sequence[str], *, title: str, trajectories: int = 8) -> Figure:
    """Plot chains on their way from noise to data: the cloud after each level, and the tracks of a few chains.

    Args:
        path: points ``(n, 2)`` at each stop, the same chain in the same row; noise first.
        titles: of the stops.
        title: of the figure.
        trajectories: how many chains to follow.

    Example:
        >>> path = [torch.randn(50, 2), 0.5 * torch.randn(50, 2)]
        >>> figure = ep.plots.noise_to_data(path, ["white noise", "level 0"], title="On the way")
        >>> figure.axes[1].get_title()
        'level 0'
    """
    stops = np.stack([as_numpy(points) for points in path])
    box = _extent(stops.reshape(-1, 2))
    if len(titles) != len(stops):
        raise InvalidInput(f"titles must be one for each of {len(stops)} stops; got {len(titles)}")
    columns = (len(stops) + 2) // 2
    figure = blank_figure(2.6 * columns, 5.6, title)
    grid = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, points, name in zip(grid, stops, titles, strict=False):
        _cloud(axes, points[:2000], box, SAMPLES)
        axes.set_title(name, **_STYLE)
    last = grid[len(stops)]
    for i in range(min(trajectories, stops.shape[1])):
        last.plot(stops[:, i, 0], stops[:, i, 1], color=INKS[i % len(INKS)], linewidth=0.9, alpha=0.8)
    last.scatter(*stops[0, :trajectories].T, s=14, c=DATA, zorder=3, label="noise")
    last.scatter(*stops[-1, :trajectories].T, s=14, c=SAMPLES, zorder=3, label="end")
    last.legend(fontsize=7, loc="upper right")
    last.set_title(f"{min(trajectories, stops.shape[1])} chains", **_STYLE)
    _name_axes(last, box)
    for axes in grid[len(stops) + 1 :]:
        axes.set_visible(False)
    for axes in grid:
        axes.label_outer()
    return figure


@drawn
def pair_plot(
    data: Values,
    samples: Values,
    columns: Sequence[str],
    *,
    title: str,
    categories: Sequence[Sequence[object]] | None = None,
) -> Figure:
    """Plot every pair of columns, data below the diagonal and samples above it, with histograms of both on it.

    Args:
        data: ``(n, d)``; the first 8 columns and 1,500 rows are shown.
        samples: ``(m, d)``.
        columns: d names.
        title: of the figure.
        categories: for each column the names of its values 0, 1, …; none of a column of numbers.

    Example:
        >>> figure = ep.plots.pair_plot(torch.randn(50, 3), torch.randn(50, 3), ["a", "b", "c"], title="A table")
        >>> len(figure.axes)
        9
    """
    x, y = as_numpy(data)[:, :_MAX_COLUMNS], as_numpy(samples)[:, :_MAX_COLUMNS]
    if x.ndim != 2 or y.shape[1:] != x.shape[1:]:
        raise InvalidInput(f"data and samples must be rows of the same columns; got {x.shape} and {y.shape}")
    size = x.shape[1]
    shown = f"first {size} of {len(columns)} columns; " if len(columns) > size else ""
    figure = blank_figure(
        max(5.0, 1.7 * size + 0.6), max(4.0, 1.6 * size + 1.0), f"{title}\n{shown}data in blue, samples in orange"
    )
    grid = figure.subplots(size, size, squeeze=False)
    limits = [_limits(x[:, j], y[:, j]) for j in range(size)]
    for i in range(size):
        for j in range(size):
            axes: Axes = grid[i, j]
            axes.set_xlim(*limits[j])
            axes.tick_params(labelsize=7)
            for axis, k, ticks in ((axes.xaxis, j, 3), (axes.yaxis, i, 4)):
                _name_ticks(axis, () if categories is None else categories[k], ticks)
            if i == j:
                bins = list(np.linspace(*limits[i], 41))
                axes.hist(x[:, i], bins=bins, density=True, color=DATA, alpha=0.45)
                axes.hist(y[:, i], bins=bins, density=True, color=SAMPLES, histtype="step", linewidth=1.3)
                axes.set_yticks([])
            else:
                points, colour = (x, DATA) if i > j else (y, SAMPLES)
                axes.scatter(points[:1500, j], points[:1500, i], s=4, c=colour, alpha=0.5, linewidths=0)
                axes.set_ylim(*limits[i])
            if i == size - 1:
                axes.set_xlabel(short_name(columns[j]), fontsize=8, color=INK)
            else:
                axes.tick_params(labelbottom=False)
            if j == 0:
                axes.set_ylabel(short_name(columns[i]) if size > 1 else "density", fontsize=8, color=INK)
            else:
                axes.tick_params(labelleft=False)
    return figure


def _name_ticks(axis: Axis, names: Sequence[object], count: int) -> None:
    """Mark so many places of an axis about, or the categories that its values stand for, by name."""
    if not names:
        axis.set_major_locator(MaxNLocator(count))
        return
    shown = range(0, len(names), -(-len(names) // (2 * count)))
    axis.set_major_locator(FixedLocator(list(shown)))
    axis.set_major_formatter(FixedFormatter([short_name(str(names[k]), _TICK_LETTERS) for k in shown]))


def _cloud(
    axes: Axes, points: NDArray[Any], extent: Extent, colour: str, labels: tuple[str, str] = ("$x_1$", "$x_2$")
) -> None:
    size = float(np.clip(3000.0 / max(1, len(points)), 3.0, 15.0))  # a few points would not be seen otherwise
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colour, alpha=0.45, linewidths=0)
    _name_axes(axes, extent, labels)


def _name_axes(axes: Axes, extent: Extent, labels: tuple[str, str] = ("$x_1$", "$x_2$")) -> None:
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.set_xlabel(labels[0], **_STYLE)
    axes.set_ylabel(labels[1], **_STYLE)
    axes.tick_params(labelsize=8)


def _extent(points: NDArray[Any]) -> Extent:
    (left, right), (bottom, top) = _limits(points[:, 0]), _limits(points[:, 1])
    return left, right, bottom, top


def _limits(*values: NDArray[Any]) -> tuple[float, float]:
    """Make room for all but the outermost 0.2 % of each, and a margin."""
    low = min(float(np.quantile(v, 0.001)) for v in values)
    high = max(float(np.quantile(v, 0.999)) for v in values)
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin

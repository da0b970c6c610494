"""Plots of calibration: ranks of the truth among posterior draws, and coverage of intervals.

Each takes arrays or tensors and returns a matplotlib Figure.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from energyppl.plots.base import DATA, INK, INKS, Values, as_numpy, blank_figure, drawn, short_name

__all__ = ["coverage_plot", "rank_ecdf", "rank_histogram"]

_MAX_QUANTITIES = 12
_COLUMNS = 4


@drawn
def rank_histogram(ranks: Mapping[str, Values], draws: int, *, title: str, bins: int = 16) -> Figure:
    """Plot a histogram of each quantity's ranks (Talts et al. 2018), with the band that holds 99 % of a bin's counts.

    A valley says that posteriors are too narrow, a hill that they are too wide, a slope that they lie too low or high.

    Args:
        ranks: of the truth among the draws, ``(replicates,)`` from 0 to ``draws``, by quantity; the first 12 are shown.
        draws: L, among which the truth was ranked.
        title: of the figure.
        bins: as many, or fewer if there are fewer ranks.

    Example:
        >>> figure = ep.plots.rank_histogram({"mu": torch.randint(0, 64, (200,))}, 63, title="ranks")
    """
    from scipy.stats import binom  # takes half a second to import

    shown, figure, panels = _panels(ranks, title)
    edges = np.linspace(0, draws + 1, min(bins, draws + 1) + 1).round()
    for axes, (name, values) in zip(panels, shown.items(), strict=False):
        own = as_numpy(values)
        counts, _ = np.histogram(own, edges)
        shares = np.diff(edges) / (draws + 1.0)
        low, high = (binom.ppf(tail, len(own), shares) for tail in (0.005, 0.995))
        axes.stairs(high, edges, baseline=low, fill=True, color=INK, alpha=0.15)
        axes.stairs(counts, edges, color=DATA, fill=True, alpha=0.75)
        axes.stairs(len(own) * shares, edges, color=INK, linewidth=0.8, linestyle="--", baseline=None)
        axes.set_title(short_name(name, 40), fontsize=9)
        axes.set_xlabel("rank of the truth", fontsize=8)
        axes.tick_params(labelsize=7)
    return figure


@drawn
def rank_ecdf(
    ranks: Mapping[str, Values],
    draws: int,
    *,
    title: str,
    bands: tuple[Values, Values, Values] | None = None,
) -> Figure:
    """Plot each quantity's share of ranks below a threshold, less the threshold, inside simultaneous bands.

    The line of uniform ranks stays inside the bands all along, with the bands' confidence (Säilynoja et al. 2022).

    Args:
        ranks: of the truth among the draws, ``(replicates,)`` from 0 to ``draws``, by quantity; the first 12 are shown.
        draws: L, among which the truth was ranked.
        title: of the figure.
        bands: thresholds, lower and upper ends, ``(k,)`` each, as the first three fields of ``evaluation.ecdf_bands``.

    Example:
        >>> bands = ep.evaluation.ecdf_bands(200, draws=63)[:3]
        >>> figure = ep.plots.rank_ecdf({"mu": torch.randint(0, 64, (200,))}, 63, title="ranks", bands=bands)
    """
    shown, figure, panels = _panels(ranks, title)
    below = np.arange(draws + 2)
    for axes, (name, values) in zip(panels, shown.items(), strict=False):
        own = as_numpy(values)
        share = below / (draws + 1.0)
        axes.axhline(0.0, color=INK, linewidth=0.8, linestyle="--")
        if bands is not None:
            at, low, high = map(as_numpy, bands)
            axes.fill_between(at, low - at, high - at, color=INK, alpha=0.15, linewidth=0, step="mid")
        axes.plot(share, (own[:, None] < below).mean(0) - share, color=DATA, linewidth=1.4)
        axes.set_title(short_name(name, 40), fontsize=9)
        axes.set_xlabel("share of the ranks", fontsize=8)
        axes.tick_params(labelsize=7)
    panels[0].set_ylabel("ranks below, less the share", fontsize=8)
    return figure


@drawn
def coverage_plot(coverages: Mapping[str, tuple[Values, Values, Values, Values]], *, title: str) -> Figure:
    """Plot how often the truth lies in intervals beside how often it should, with binomial intervals.

    Args:
        coverages: nominal and observed coverages, lower and upper ends, ``(k,)`` each by name: the first four fields
            of an ``evaluation.Coverage``; the first 4 are shown.
        title: of the figure.

    Example:
        >>> found = ep.evaluation.coverage(torch.randn(200), torch.randn(200, 99))
        >>> shown = {"mu": (found.nominal, found.observed, found.lower, found.upper)}
        >>> figure = ep.plots.coverage_plot(shown, title="coverage")
    """
    figure = blank_figure(4.4, 4.2, title)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
    for place, ((name, parts), ink) in enumerate(zip(coverages.items(), INKS[:4], strict=False)):
        nominal, observed, lower, upper = map(as_numpy, parts)
        bars = np.stack([observed - lower, upper - observed]).clip(min=0.0)
        axes.errorbar(
            nominal + 0.006 * place, observed, bars, color=ink, fmt="o", markersize=4, linewidth=1.2, label=name
        )
    axes.set_xlabel("nominal coverage", fontsize=9)
    axes.set_ylabel("observed coverage", fontsize=9)
    axes.legend(fontsize=8)
    axes.tick_params(labelsize=8)
    return figure


def _panels(ranks: Mapping[str, Values], title: str) -> tuple[dict[str, Values], Figure, list[Axes]]:
    shown = dict(list(ranks.items())[:_MAX_QUANTITIES])
    rows = -(-len(shown) // _COLUMNS)
    columns = -(-len(shown) // rows)  # rows of equal length where there is a way
    figure = blank_figure(2.7 * columns + 0.4, 2.4 * rows + 0.5, title)
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return shown, figure, panels

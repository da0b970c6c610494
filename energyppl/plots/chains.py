"""Plots of Markov chains: traces, ranks, energies and acceptances, readable with many chains.

Each takes arrays or tensors and returns a matplotlib Figure.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from energyppl.plots.base import DATA, INK, INKS, SAMPLES, Values, as_numpy, blank_figure, drawn, panel_row, short_name

__all__ = ["drift_plot", "energy_plot", "level_plot", "rank_plot", "trace_plot"]

_MAX_VARIABLES = 8
_MAX_LINES = 6  # chains of a group whose traces are drawn

Groups = Mapping[str, Values]
"""Indices of chains, by the name of what they have in common."""


@drawn
def trace_plot(variables: Mapping[str, Values], *, title: str, groups: Groups | None = None) -> Figure:
    """Plot a histogram of all draws and the traces of a few chains, one row for each of the first 8 variables.

    Args:
        variables: draws ``(chains, draws)`` by name.
        title: of the figure.
        groups: drawn in different colours; the chains of all groups in one if None.

    Example:
        >>> figure = ep.plots.trace_plot({"x": torch.randn(4, 100)}, title="Four chains")
        >>> len(figure.axes)
        2
    """
    shown = dict(list(variables.items())[:_MAX_VARIABLES])
    figure = blank_figure(9.0, 1.5 * len(shown) + 1.0, title)
    grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(1, 3))
    for (left, right), (name, values) in zip(grid, shown.items(), strict=True):
        draws = as_numpy(values)
        low, high = _finite_range(draws)
        bins = list(np.linspace(low, high, 51))
        for (group, index), ink in zip(_groups(groups, len(draws)).items(), INKS, strict=False):
            own = draws[index]
            finite = own[np.isfinite(own)]
            left.hist(finite, bins=bins, density=finite.size > 0, histtype="step", color=ink, label=group)
            for line in own[:_MAX_LINES]:
                right.plot(line, color=ink, linewidth=0.5, alpha=0.7)
        left.set_yticks([])
        left.set_xlabel(short_name(name), fontsize=8)
        right.set_ylim(low, high)
        right.set_ylabel(short_name(name), fontsize=8)
        for axes in (left, right):
            axes.tick_params(labelsize=7)
    grid[-1, 1].set_xlabel("draw", fontsize=8)
    if groups is not None:
        grid[0, 0].legend(fontsize=7)
    return figure


@drawn
def rank_plot(variables: Mapping[str, Values], *, title: str, bins: int = 20) -> Figure:
    """Plot each chain's share of the ranks among all draws (Vehtari et al. 2021), one row of a map for each chain.

    Chains of one distribution make an even map; a dark or bright row is a chain that stays where others don't.

    Args:
        variables: draws ``(chains, draws)`` by name; the first 8 are shown.
        title: of the figure.
        bins: of ranks.

    Example:
        >>> figure = ep.plots.rank_plot({"x": torch.randn(4, 100)}, title="Four chains")
        >>> figure.axes[0].get_ylabel()
        'chain'
    """
    shown = dict(list(variables.items())[:_MAX_VARIABLES])
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = blank_figure(2.9 * columns + 1.2, 2.9 * rows + 0.6, title)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, values) in zip(grid, shown.items(), strict=False):
        draws = as_numpy(values)
        chains, count = draws.shape
        ranks = np.empty(draws.size, dtype=np.int64)
        # Ties, such as a rejected proposal's, are broken by the draw's number and not by the chain's.
        order = np.lexsort((np.tile(np.arange(count), chains), draws.ravel()))
        ranks[order] = np.arange(draws.size)
        place = (ranks * bins // draws.size).reshape(chains, count)
        share = np.stack([np.bincount(row, minlength=bins) for row in place]) * (bins / count)
        image = axes.imshow(share, aspect="auto", cmap="RdBu_r", vmin=0.0, vmax=2.0, extent=(0, 1, chains - 0.5, -0.5))
        axes.set_title(short_name(name), fontsize=9)
        axes.set_xlabel("rank among all draws", fontsize=8)
        axes.set_ylabel("chain", fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    bar = figure.colorbar(image, ax=list(grid), label="draws, in multiples of an even share", extend="max")
    bar.ax.tick_params(labelsize=7)
    return figure


@drawn
def energy_plot(total_energy: Values, *, title: str) -> Figure:
    """Plot the energies of all draws, their changes from draw to draw (Betancourt 2016), and each chain's BFMI.

    Changes much narrower than the energies say that a chain takes long from low energies to high ones.

    Args:
        total_energy: ``(chains, draws)`` in nats, kinetic included.
        title: of the figure.

    Example:
        >>> figure = ep.plots.energy_plot(torch.randn(4, 100), title="Energies of four chains")
        >>> figure.axes[1].get_xlabel()
        'BFMI of a chain'
    """
    energy = as_numpy(total_energy)
    energy = energy[np.isfinite(energy).all(1)]
    figure = blank_figure(8.4, 3.3, title)
    left, right = panel_row(figure, 2)
    if len(energy):
        centred, changes = energy - energy.mean(1, keepdims=True), np.diff(energy, axis=1)
        low, high = _finite_range(np.concatenate([centred, changes], 1))
        bins = list(np.linspace(low, high, 61))
        left.hist(centred.ravel(), bins=bins, density=True, color=DATA, alpha=0.45, label="energies, centred")
        left.hist(
            changes.ravel(), bins=bins, density=True, color=SAMPLES, histtype="step", linewidth=1.3, label="changes"
        )
        left.legend(fontsize=8)
        with np.errstate(divide="ignore", invalid="ignore"):
            bfmi = np.square(changes).mean(1) / np.square(centred).mean(1)
        right.hist(bfmi[np.isfinite(bfmi)], bins=20, color=DATA)
    left.set_xlabel("total energy, nats", fontsize=9)
    left.set_yticks([])
    right.axvline(0.3, color=SAMPLES, linewidth=1.0, linestyle="--", label="0.3: low")
    right.set_xlim(left=0.0)
    right.legend(fontsize=8)
    right.set_xlabel("BFMI of a chain", fontsize=9)
    right.set_ylabel("chains", fontsize=9)
    for axes in (left, right):
        axes.tick_params(labelsize=8)
    return figure


@drawn
def drift_plot(
    energies: Mapping[str, Values], *, title: str, warmup: int = 0, reference: tuple[str, float] | None = None
) -> Figure:
    """Plot the mean energy of groups of chains along their run, with a band of two standard errors.

    Args:
        energies: ``(chains, draws)`` in nats by group.
        title: of the figure.
        warmup: how many of the draws are the warm-up's; a line is drawn after them.
        reference: a name and an energy to compare with, such as the held-out data's.

    Example:
        >>> figure = ep.plots.drift_plot({"from data": torch.randn(4, 100)}, title="Four chains", warmup=20)
        >>> figure.axes[0].get_xlabel()
        'draw'
    """
    figure = blank_figure(7.2, 3.6, title)
    axes = figure.subplots()
    for (name, values), ink in zip(energies.items(), INKS, strict=False):
        energy = as_numpy(values)
        energy = energy[np.isfinite(energy).all(1)]
        if len(energy) == 0:
            continue
        window = max(1, energy.shape[1] // 100)
        ends = energy.shape[1] // window * window
        means = energy[:, :ends].reshape(len(energy), -1, window).mean(2)
        place = (np.arange(means.shape[1]) + 0.5) * window
        middle = means.mean(0)
        axes.plot(place, middle, color=ink, linewidth=1.3, label=name)
        if len(energy) > 1:
            error = means.std(0, ddof=1) / np.sqrt(len(energy))
            axes.fill_between(place, middle - 2 * error, middle + 2 * error, color=ink, alpha=0.2, linewidth=0)
    if warmup:
        axes.axvline(warmup, color=INK, linewidth=0.8, linestyle=":", label="end of the warm-up")
    if reference is not None:
        axes.axhline(reference[1], color=INK, linewidth=1.0, linestyle="--", label=reference[0])
    axes.legend(fontsize=8)
    axes.set_xlabel("draw", fontsize=9)
    axes.set_ylabel("mean energy, nats", fontsize=9)
    axes.tick_params(labelsize=8)
    return figure


@drawn
def level_plot(acceptance: Values, *, title: str) -> Figure:
    """Plot the mean acceptance of each noise level's chains, ``(levels,)``, the data's level first.

    Example:
        >>> figure = ep.plots.level_plot([0.7, 0.8, 0.9], title="Three levels")
        >>> len(figure.axes[0].patches)
        3
    """
    shares = as_numpy(acceptance)
    figure = blank_figure(max(4.0, 0.5 * len(shares) + 2.0), 3.2, title)
    axes = figure.subplots()
    axes.bar(np.arange(len(shares)), shares, color=DATA)
    axes.set_xticks(np.arange(len(shares)))
    axes.set_ylim(0.0, 1.0)
    axes.set_xlabel("level (0 is the data)", fontsize=9)
    axes.set_ylabel("acceptance", fontsize=9)
    axes.tick_params(labelsize=8)
    return figure


def _groups(groups: Groups | None, chains: int) -> dict[str, Values]:
    if groups is None:
        return {"all chains": np.arange(chains)}
    return {name: np.asarray(index) for name, index in groups.items()}


def _finite_range(values: Values) -> tuple[float, float]:
    """Return the range of the finite values but for the outermost thousandth, with a margin."""
    finite = as_numpy(values)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return -1.0, 1.0
    low, high = (float(q) for q in np.quantile(finite, [0.0005, 0.9995]))
    margin = 0.05 * (high - low) or 0.5 * max(1.0, abs(low)) * 1e-3
    return low - margin, high + margin

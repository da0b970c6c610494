"""Plots of estimates of log Z: log weights, temperatures, bounds."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from energyppl.errors import InvalidInput
from energyppl.integration.estimates import AnnealingTrace, LogNormalizer
from energyppl.plots.base import DATA, INK, SAMPLES, blank_figure, drawn, panel_row

__all__ = ["gap_plot", "log_weight_histogram", "temperature_plot"]

_SHOWN = 10.0  # nats on each side of log Z


@drawn
def log_weight_histogram(found: LogNormalizer, *, title: str, log_z: float | None = None) -> Figure:
    """Plot histograms of the log weights of forward and reverse runs; they cross at log Z (Crooks 1999).

    Ten nats on either side of the estimate are shown; the legend says how many runs lie beyond.

    Args:
        found: by annealing.
        title: of the figure.
        log_z: the truth, if it is known.

    Raises:
        InvalidInput: if the estimate did not come from annealing.

    Example:
        >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> found = ep.log_normalizer(bell, samples=torch.randn(500, 2), method=ep.normalizing.BAR(64, temperatures=8))
        >>> figure = ep.plots.log_weight_histogram(found, title="Log weights")
        >>> figure.axes[0].get_xlabel()
        'nats'
    """
    trace = _trace(found)
    figure = blank_figure(6.2, 3.6, title)
    axes = figure.subplots()
    sides = {"forward: log w": trace.forward.numpy(), "reverse: −log w": -trace.reverse.numpy()}
    sides = {name: values[np.isfinite(values)] for name, values in sides.items()}
    every = np.concatenate(list(sides.values()))
    # Runs that end off a support weigh nothing, and would leave no room for the others.
    low, high = np.clip(np.quantile(every, [0.005, 0.995]), found.estimate - _SHOWN, found.estimate + _SHOWN)
    margin = 0.1 * (high - low) + 1e-3
    bins = list(np.linspace(low - margin, high + margin, 61))
    for (name, values), ink in zip(sides.items(), (DATA, SAMPLES), strict=True):
        if len(values):
            beyond = np.mean((values < bins[0]) | (values > bins[-1]))
            label = f"{name} ({len(values):,} runs" + (f", {beyond:.0%} beyond the ends)" if beyond >= 0.005 else ")")
            each = np.full(len(values), 1.0 / len(values))  # shares of all runs, those beyond the ends too
            axes.hist(values, bins=bins, weights=each, color=ink, alpha=0.5, label=label)
    axes.axvline(found.estimate, color=INK, linewidth=1.2, label=f"estimate {found.estimate:.3f}")
    if log_z is not None:
        axes.axvline(log_z, color=INK, linewidth=1.2, linestyle="--", label=f"truth {log_z:.3f}")
    axes.legend(fontsize=8)
    axes.set_xlabel("nats", fontsize=9)
    axes.set_yticks([])
    axes.tick_params(labelsize=8)
    return figure


@drawn
def temperature_plot(found: LogNormalizer, *, title: str) -> Figure:
    """Plot temperatures, the conditional effective sample size of each change, and the acceptance, along the path.

    Raises:
        InvalidInput: if the estimate did not come from annealing.

    Example:
        >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> found = ep.log_normalizer(bell, samples=torch.randn(500, 2), method=ep.normalizing.BAR(64, temperatures=8))
        >>> len(ep.plots.temperature_plot(found, title="Temperatures").axes)
        2
    """
    trace = _trace(found)
    figure = blank_figure(8.6, 3.2, title)
    left, right = panel_row(figure, 2)
    left.plot(trace.betas.numpy(), color=DATA, marker=".", linewidth=1.0)
    left.set_ylabel("β", fontsize=9)
    for name, values, ink in (
        ("conditional ESS", trace.conditional_size, DATA),
        ("ESS", trace.effective_size, INK),
        ("acceptance", trace.acceptance, SAMPLES),
    ):
        right.plot(np.arange(1, len(values) + 1), values.numpy(), color=ink, marker=".", linewidth=1.0, label=name)
    right.set_ylim(0.0, 1.02)
    right.set_ylabel("share", fontsize=9)
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("number of the temperature", fontsize=9)
        axes.tick_params(labelsize=8)
    return figure


@drawn
def gap_plot(estimates: Mapping[str, Sequence[LogNormalizer]], *, title: str, log_z: float | None = None) -> Figure:
    """Plot lower and upper bounds and the interval against the budget, a panel for each name.

    Args:
        estimates: by name, in order of their evaluations.
        title: of the figure.
        log_z: the truth, if it is known.

    Example:
        >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> x, methods = torch.randn(500, 2), [ep.normalizing.BAR(64, temperatures=count) for count in (4, 8)]
        >>> found = [ep.log_normalizer(bell, samples=x, method=method) for method in methods]
        >>> ep.plots.gap_plot({"a bell": found}, title="Bounds").axes[0].get_title()
        'a bell'
    """
    figure = blank_figure(4.2 * len(estimates), 3.4, title)
    for axes, (name, found) in zip(panel_row(figure, len(estimates)), estimates.items(), strict=True):
        cost = [each.evaluations for each in found]
        axes.fill_between(
            cost, [f.lower for f in found], [f.upper for f in found], color=DATA, alpha=0.3, label="interval"
        )
        axes.plot(cost, [f.estimate for f in found], color=DATA, marker=".", label="estimate")
        for label, ends, style in (
            ("lower bound", [f.lower_bound for f in found], "^"),
            ("upper bound", [f.upper_bound for f in found], "v"),
        ):
            if all(end is not None for end in ends):
                axes.plot(cost, np.array(ends, dtype=float), color=SAMPLES, marker=style, linewidth=0.8, label=label)
        if log_z is not None:
            axes.axhline(log_z, color=INK, linewidth=1.0, linestyle="--", label="truth")
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        if max(cost) < 10 * min(cost):  # there may be no power of ten between
            outer = sorted({cost[0], cost[-1]})
            axes.set_xticks(outer, labels=[f"{each:,}" for each in outer])
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xlabel("evaluations", fontsize=9)
        axes.set_ylabel("log Z, nats", fontsize=9)
        axes.legend(fontsize=7)
        axes.tick_params(labelsize=8)
    return figure


def _trace(found: LogNormalizer) -> AnnealingTrace:
    if found.trace is None:
        raise InvalidInput(f"an estimate by {found.method} has no runs to draw: ask for one by annealing")
    return found.trace

"""Plots of out-of-distribution scores."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from energyppl._checks import shape_text
from energyppl.errors import InvalidInput
from energyppl.plots.base import DATA, INK, INKS, Values, as_numpy, blank_figure, drawn, short_name

__all__ = ["score_histograms"]

_ROOM = 2.0  # widths of the reference's central part that are shown on each side of it
_BINS = (12, 80)  # at least, at most


@drawn
def score_histograms(scores: Mapping[str, Values], *, title: str = "", inlier: str | None = None) -> Figure:
    """Plot histograms of several sets' scores on one axis; areas are shares of each set.

    Outliers' scores may span orders of magnitude.  The axis shows the central 98 % of every set, but no more than two
    widths to either side of the inliers' own central part, so that these stay readable; the legend says what share of a
    set lies beyond either end, and how many scores are not finite.

    Args:
        scores: ``(n,)`` by name, higher for stranger rows.
        title: of the figure.
        inlier: name of the set that is drawn filled and that the axis follows; without one it follows the set of the
            narrowest spread.

    Raises:
        InvalidInput: for no set, a set without a finite score or of another shape, or an unknown ``inlier``.

    Example:
        >>> scores = {"digits": torch.randn(100), "noise": 3.0 + torch.randn(100)}
        >>> figure = ep.plots.score_histograms(scores, title="Energies", inlier="digits")
        >>> figure.axes[0].get_xlabel()
        'score, higher for stranger rows'
    """
    sets = {name: _checked(name, values) for name, values in scores.items()}
    if not sets:
        raise InvalidInput("scores must have at least one set; got none: pass {'name': scores}")
    if inlier is not None and inlier not in sets:
        raise InvalidInput(f"inlier must name one of the sets {', '.join(sets)}; got {inlier!r}")
    finite = {name: values[np.isfinite(values)] for name, values in sets.items()}
    low, high = _range(finite, inlier)
    fewest = min(len(values) for values in finite.values())
    bins = np.linspace(low, high, int(np.clip(2.0 * np.sqrt(fewest), *_BINS)) + 1)
    figure = blank_figure(6.8, 3.8, title)
    axes = figure.subplots()
    inks = cycle(INKS[1:])
    for name, values in finite.items():
        ink = DATA if name == inlier else next(inks)
        shares = np.histogram(values, bins)[0] / len(values)
        axes.stairs(
            shares / (bins[1] - bins[0]),
            bins,
            fill=name == inlier,
            color=ink,
            alpha=0.5 if name == inlier else 1.0,
            linewidth=1.3,
            label=_label(name, sets[name], low, high),
        )
    axes.set_xlim(low, high)
    axes.set_ylim(0.0, (1.05 + 0.06 * len(sets)) * axes.dataLim.ymax)  # room for the legend
    axes.legend(fontsize=8)
    axes.set_xlabel("score, higher for stranger rows", fontsize=9, color=INK)
    axes.set_yticks([])
    axes.tick_params(labelsize=8)
    return figure


def _checked(name: str, scores: Values) -> NDArray[np.float64]:
    values = as_numpy(scores)
    if values.ndim != 1:
        raise InvalidInput(f"scores of {name} must have shape (n,); got {shape_text(values.shape)}: one for each row")
    if not np.isfinite(values).any():
        raise InvalidInput(f"scores of {name} must have a finite one; got none among {len(values)}: leave the set out")
    return values


def _range(sets: Mapping[str, NDArray[np.float64]], inlier: str | None) -> tuple[float, float]:
    """Return the ends of the axis."""
    central = {name: np.quantile(values, [0.01, 0.99]) for name, values in sets.items()}
    low, high = (float(end) for end in (min(c[0] for c in central.values()), max(c[1] for c in central.values())))
    # A set of equal scores has no width to go by.
    spread = [c for name, c in central.items() if c[1] > c[0] and inlier in (None, name)]
    if spread:
        left, right = (float(end) for end in min(spread, key=lambda c: float(c[1] - c[0])))
        low, high = max(low, left - _ROOM * (right - left)), min(high, right + _ROOM * (right - left))
    margin = 0.05 * (high - low) or 0.5 + 1e-6 * abs(low)
    return low - margin, high + margin


def _label(name: str, values: NDArray[np.float64], low: float, high: float) -> str:
    finite = values[np.isfinite(values)]
    words = [f"{short_name(name, 32)} ({len(values):,} scores)"]
    for side, share in (("left", np.mean(finite < low)), ("right", np.mean(finite > high))):
        if share > 0:
            words.append(
                f"{share:.1%} beyond the {side} end" if share >= 0.001 else f"under 0.1% beyond the {side} end"
            )
    if len(finite) < len(values):
        words.append(f"{len(values) - len(finite):,} not finite")
    return ", ".join(words)

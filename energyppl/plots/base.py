"""Figures, panels and colours shared by all plots."""

import functools
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from energyppl._checks import as_path, checked, numpy_of
from energyppl._files import whole_file
from energyppl.errors import EnergyPPLError, InvalidInput, first_line

__all__ = ["save_figure", "show"]

_FOLDER = "ENERGYPPL_PICTURES"  # environment variable: where scripts put what they show


Values = Tensor | NDArray[Any] | Sequence[Any]
Extent = tuple[float, float, float, float]  # left, right, bottom, top

# The palette of Okabe and Ito (2008), which colour-blind readers tell apart: blue for data, vermilion for samples.
DATA, SAMPLES, INK = "#0072b2", "#d55e00", "#333333"
INKS = (DATA, SAMPLES, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d46")
_STYLE: dict[str, Any] = {"fontsize": 10, "color": INK}


_Plot = TypeVar("_Plot", bound=Callable[..., Figure])


def drawn(plot: _Plot) -> _Plot:
    """Make a plot require arguments of the kinds that it declares, and numbers that can be drawn, in one sentence."""
    ready = checked(plot)

    @functools.wraps(plot)
    def call(*args: Any, **kwargs: Any) -> Figure:
        if any(isinstance(value, int) and value < 0 for value in (*args, *kwargs.values())):
            raise InvalidInput(f"{plot.__name__} needs counts that are not negative; got one below 0")
        try:
            figure = ready(*args, **kwargs)
        except EnergyPPLError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"{plot.__name__} can't draw these ({first_line(error)}): pass what its documentation says, of the "
                "shapes that it names"
            ) from error
        if any(isinstance(value, Mapping | list) and not value for value in (*args, *kwargs.values())):
            raise InvalidInput(f"{plot.__name__} needs something to draw; got an empty dictionary or list")
        return figure

    return cast(_Plot, call)


@checked
def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a PNG at 150 dots per inch, whole or not at all, and return its path; its folder is made if need be.

    Example:
        >>> import pathlib, tempfile
        >>> figure = ep.plots.scatter_panels({"data": torch.randn(50, 2)}, title="Points")
        >>> ep.plots.save_figure(figure, pathlib.Path(tempfile.mkdtemp()) / "points.png").name
        'points.png'
    """
    path = as_path(path)
    with whole_file(path) as file:
        figure.savefig(file, dpi=150, format="png", facecolor="white")
    return path


def show(figure: Figure, name: str) -> None:
    """Show a figure: in a notebook beneath its cell, in a script as a PNG in a folder, whose path is printed.

    The folder is ``pictures`` where the script runs, or what the environment variable ``ENERGYPPL_PICTURES`` says.

    Args:
        figure: of energyppl, or any of matplotlib.
        name: of the file, without its ending.

    Example:
        >>> figure = ep.plots.scatter_panels({"data": torch.randn(100, 2)}, title="Points")
        >>> ep.plots.show(figure, "points")  # doctest: +SKIP
        pictures/points.png
    """
    if _in_notebook():
        display = import_module("IPython.display")  # which runs the notebook, so it need not be installed by us
        display.display(display.Image(data=_png(figure)))
    else:
        print(save_figure(figure, Path(os.environ.get(_FOLDER, "pictures")) / f"{name}.png"))
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close(figure)  # ArviZ draws with pyplot, which would show it once more at the end of the cell


class _InlineFigure(Figure):
    """A figure that a notebook shows although pyplot knows nothing of it."""

    def _repr_png_(self) -> bytes:
        return _png(self)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png", facecolor="white")
    return file.getvalue()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


def blank_figure(width: float, height: float, title: str) -> Figure:
    """Make a titled figure, sizes in inches, that pyplot knows nothing of."""
    figure = _InlineFigure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def panel_row(figure: Figure, count: int) -> list[Axes]:
    """Add panels side by side."""
    return list(figure.subplots(1, count, squeeze=False)[0])


def short_name(name: str, letters: int = 16) -> str:
    """Shorten a name to so many letters."""
    return name if len(name) <= letters else name[: letters - 1] + "…"


def as_numpy(values: Values) -> NDArray[Any]:
    """Turn numbers on any device into a float64 array."""
    if isinstance(values, Tensor):
        values = numpy_of("what is drawn", values)
    if np.iscomplexobj(values):
        raise InvalidInput("what is drawn must be real numbers; got complex ones: take their real part or modulus")
    return np.asarray(values, dtype=np.float64)

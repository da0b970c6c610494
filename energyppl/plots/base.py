"""Figures, panels and colours shared by all plots."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from energyppl._files import whole_file

__all__ = ["save_figure"]


Values = Tensor | NDArray[Any]
Extent = tuple[float, float, float, float]  # left, right, bottom, top

DATA, SAMPLES, INK = "#2f6690", "#d1495b", "#3d3d3d"
_STYLE: dict[str, Any] = {"fontsize": 10, "color": INK}


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a PNG at 150 dots per inch, whole or not at all, and return its path; its folder is made if need be."""
    path = Path(path)
    with whole_file(path) as file:
        figure.savefig(file, dpi=150, format="png", facecolor="white")
    return path


def blank_figure(width: float, height: float, title: str) -> Figure:
    """Make a titled figure, sizes in inches, that pyplot knows nothing of."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def panel_row(figure: Figure, count: int) -> list[Axes]:
    """Add panels side by side."""
    return list(figure.subplots(1, count, squeeze=False)[0])


def short_name(name: str) -> str:
    """Shorten a name to 16 letters."""
    return name if len(name) <= 16 else name[:15] + "…"


def as_numpy(values: Values) -> NDArray[Any]:
    """Turn numbers on any device into a float64 array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().to(torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)

"""Figures, panels and colours that all pictures share."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["save_figure"]


Values = Tensor | NDArray[Any]


Extent = tuple[float, float, float, float]  # left, right, bottom, top


DATA, SAMPLES, INK = "#2f6690", "#d1495b", "#3d3d3d"


_STYLE: dict[str, Any] = {"fontsize": 10, "color": INK}


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a PNG at 150 dots per inch and return its path; its folder is made if it is not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png", facecolor="white")
    return path


def blank_figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def panel_row(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(1, count, squeeze=False)[0])


def short_name(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def as_numpy(values: Values) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().to(torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)

"""Every picture is a PNG of its own figure; pyplot's global state is left alone."""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from energyppl import plots

POINTS = torch.randn(200, 2)
BOX = (-3.0, 3.0, -2.0, 2.0)
STEPS = np.arange(300.0)
HELD_OUT = np.where(STEPS % 100 == 99, STEPS, np.nan)

FIGURES: dict[str, Callable[[], Figure]] = {
    "scatter": lambda: plots.scatter_panels({"data": POINTS, "samples": POINTS.numpy()}, title="t"),
    "density": lambda: plots.density_grid({"model": [torch.rand(8, 9)] * 3}, ["a", "b", "c"], extent=BOX, title="t"),
    "energy": lambda: plots.energy_landscape(torch.rand(20, 30) * 20, extent=BOX, data=POINTS, title="t"),
    "training": lambda: plots.training_curves({"loss": (STEPS, STEPS), "held": (STEPS, HELD_OUT)}, title="t"),
    "no step yet": lambda: plots.training_curves({"held": (STEPS[:3], HELD_OUT[:3])}, title="t"),
    "chains": lambda: plots.noise_to_data([POINTS] * 4, list("abcd"), title="t"),
    "pairs": lambda: plots.pair_plot(POINTS, POINTS, ["a", "a name of many letters"], title="t"),
    "one column": lambda: plots.pair_plot(POINTS[:, :1], POINTS[:, :1], ["a"], title="t"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_becomes_a_png(name: str, tmp_path: Path) -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    before = pyplot.get_fignums() if pyplot else []
    path = plots.save_figure(FIGURES[name](), tmp_path / "folder" / "figure.png")
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 300
    assert picture.std() > 0.01
    assert (pyplot.get_fignums() if pyplot else []) == before


def test_wide_tables_show_their_first_columns() -> None:
    figure = plots.pair_plot(torch.randn(50, 11), torch.randn(50, 11), list("abcdefghijk"), title="t")
    assert len(figure.axes) == 64
    assert "first 8 of 11 columns" in figure.get_suptitle()


def test_first_row_of_an_energy_is_at_the_bottom() -> None:
    energy = torch.full((20, 20), 9.0)
    energy[:10] = 0.0
    axes = plots.energy_landscape(energy, extent=(-1.0, 1.0, -1.0, 1.0), data=POINTS, title="t").axes[0]
    assert axes.get_ylim() == (-1.0, 1.0)
    image = plots.density_grid({"m": [energy]}, ["a"], extent=(-1.0, 1.0, -1.0, 1.0), title="t").axes[0].images[0]
    assert image.origin == "lower"

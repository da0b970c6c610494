"""Draw the README's picture: ``python tutorials/site/readme_picture.py`` writes ``tutorials/images/readme.png``.

It trains the models of tutorials 1 and 10 with their settings, which takes about three minutes of one core.  The digits
are rows of ``tutorials/images/digits.png``, which the benchmark ``images`` draws.
"""

import numpy as np
import pyro
import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import imread
from percent import TUTORIALS
from sklearn.datasets import load_diabetes

import energyppl as ep
from energyppl.plots.base import DATA, INK, SAMPLES, save_figure

STEPS = (1500, 2000)  # updates of training, as in the tutorials
BOX = (-4.6, 4.6)
COLUMNS = ("bmi", "bp", "s5", "progression")
LABELS = ("body mass", "blood pressure", "triglycerides", "progression")


def checkerboard(figure: SubFigure) -> None:
    """Draw samples on their way from white noise to the data, the learned density, and data beside them."""
    pyro.set_rng_seed(0)
    data = ep.toys.Checkerboard().sample((50_000,))
    ebm = ep.RecoveryEBM(ep.MLPEnergy(event_shape=(2,)), ep.NoiseSchedule.cosine(levels=6))
    print(ep.fit(ebm, data, options=ep.TrainingOptions(steps=STEPS[0])))
    path = [ebm.from_unit(points) for points in ebm.generate((3_000,)).path]
    axis = torch.linspace(*BOX, 240)
    with torch.no_grad():
        density = ebm.log_prob(torch.cartesian_prod(axis, axis)).exp().reshape(240, 240).T
    clouds = {"white noise": path[0], "on the way": path[-3], "nearly there": path[-2], "samples": path[-1]}
    figure.suptitle("A learned density: sampled and normalized", fontsize=12, color=INK)
    panels = figure.subplots(1, 6)
    for axes, (name, points) in zip(panels, clouds.items(), strict=False):
        axes.scatter(*points.T, s=2, c=SAMPLES, alpha=0.5, linewidths=0)
        axes.set_title(name, fontsize=10, color=INK)
    panels[4].imshow(density, origin="lower", extent=(*BOX, *BOX), cmap="viridis")
    panels[4].set_title("density", fontsize=10, color=INK)
    panels[5].scatter(*data[:3_000].T, s=2, c=DATA, alpha=0.5, linewidths=0)
    panels[5].set_title("data", fontsize=10, color=INK)
    for axes in panels:
        axes.set(xlim=BOX, ylim=BOX, xticks=[], yticks=[], aspect="equal")


def table(figure: SubFigure) -> None:
    """Draw pairs of a table's columns, rows below the diagonal and samples above it."""
    study = load_diabetes(scaled=False)
    columns = (*study.feature_names, "progression")
    rows = ep.data.table_from_array(np.column_stack([study.data, study.target]), columns)
    spread = ep.data.dequantize(rows, torch.Generator().manual_seed(0)).values
    train = torch.as_tensor(spread, dtype=torch.float32)
    pyro.set_rng_seed(0)
    schedule = ep.NoiseSchedule.cosine(20, log_snr_max=4.6, log_snr_min=-6.0)
    ebm = ep.RecoveryEBM(ep.MLPEnergy(train.shape[1:]), schedule)
    print(ep.fit(ebm, train, steps=STEPS[1]))
    chosen = [columns.index(name) for name in COLUMNS]
    x, y = train[:, chosen], ebm.sample((len(train),))[:, chosen]
    low, high = x.quantile(0.002, 0), x.quantile(0.998, 0)
    figure.suptitle("A table: rows below the diagonal, samples above", fontsize=12, color=INK)
    panels = figure.subplots(4, 4)
    for i, row in enumerate(panels):
        for j, axes in enumerate(row):
            edges = (float(low[j]), float(high[j]))
            if i == j:
                bins = np.linspace(*edges, 24)
                axes.hist(x[:, i], bins=bins, density=True, color=DATA, alpha=0.5)
                axes.hist(y[:, i], bins=bins, density=True, color=SAMPLES, histtype="step", linewidth=1.3)
            else:
                points, ink = (x, DATA) if i > j else (y, SAMPLES)
                axes.scatter(points[:, j], points[:, i], s=3, c=ink, alpha=0.5, linewidths=0)
                axes.set_ylim(float(low[i]), float(high[i]))
            axes.set(xlim=edges, xticks=[], yticks=[])
            if i == 3:
                axes.set_xlabel(LABELS[j], fontsize=9, color=INK)
            if j == 0:
                axes.set_ylabel(LABELS[i], fontsize=8, color=INK)


def digits(figure: SubFigure, rows: int = 7) -> None:
    """Show the first rows of the sheet of digits, a class in each column."""
    sheet = imread(TUTORIALS / "images" / "digits.png")[..., :3].mean(-1)
    dark = np.flatnonzero((sheet < 0.2).mean(1) > 0.3)  # pixel rows of tiles: the title and the gaps are white
    ends = np.flatnonzero(np.diff(dark) > 1)  # the last one of each row of tiles
    figure.suptitle("Digits, asked for by class", fontsize=12, color=INK)
    axes = figure.subplots()
    axes.imshow(sheet[dark[0] : dark[ends[rows - 1]] + 1], cmap="gray", vmin=0.0, vmax=1.0)
    axes.set_axis_off()


def main() -> None:
    """Draw the three parts and write the file."""
    torch.set_num_threads(1)
    figure = Figure(figsize=(12.0, 6.7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.0, 1.75), hspace=0.03)
    left, right = below.subfigures(1, 2, width_ratios=(1.25, 1.0), wspace=0.03)
    checkerboard(above)
    table(left)
    digits(right)
    print(save_figure(figure, TUTORIALS / "images" / "readme.png"))


if __name__ == "__main__":
    main()

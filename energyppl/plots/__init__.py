"""Plots of models, chains, calibration, images and log normalizers, by matplotlib."""

from energyppl.plots.base import save_figure, show
from energyppl.plots.calibration import coverage_plot, rank_ecdf, rank_histogram
from energyppl.plots.chains import drift_plot, energy_plot, level_plot, rank_plot, trace_plot
from energyppl.plots.detection import score_histograms
from energyppl.plots.images import image_grid, image_strips, neighbour_grid
from energyppl.plots.models import (
    density_grid,
    energy_landscape,
    line_plot,
    noise_to_data,
    pair_plot,
    scatter_panels,
    training_curves,
)
from energyppl.plots.normalizers import gap_plot, log_weight_histogram, temperature_plot

__all__ = [
    "coverage_plot",
    "density_grid",
    "drift_plot",
    "energy_landscape",
    "energy_plot",
    "gap_plot",
    "image_grid",
    "image_strips",
    "level_plot",
    "line_plot",
    "log_weight_histogram",
    "neighbour_grid",
    "noise_to_data",
    "pair_plot",
    "rank_ecdf",
    "rank_histogram",
    "rank_plot",
    "save_figure",
    "scatter_panels",
    "score_histograms",
    "show",
    "temperature_plot",
    "trace_plot",
    "training_curves",
]

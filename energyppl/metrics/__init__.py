"""Metrics of samples against data."""

from energyppl.metrics.images import frechet_distance, kernel_distance, label_balance, memorized, nearest_neighbours
from energyppl.metrics.two_sample import energy_distance_test

__all__ = [
    "energy_distance_test",
    "frechet_distance",
    "kernel_distance",
    "label_balance",
    "memorized",
    "nearest_neighbours",
]

"""Densities of tables: train on a frame, then score, sample, impute and compare in the table's own units."""

from energyppl.tables.model import TableModel
from energyppl.tables.training import fit

__all__ = ["TableModel", "fit"]

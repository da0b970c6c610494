"""Densities of tables: train on a frame, then score, sample, impute and compare in the table's own units."""

from energyppl.tables.comparison import Comparison, compare
from energyppl.tables.imputation import Imputation, impute
from energyppl.tables.model import TableModel
from energyppl.tables.outliers import Surprise, score, surprises
from energyppl.tables.quality import quality
from energyppl.tables.storage import load, save
from energyppl.tables.training import fit

__all__ = [
    "Comparison",
    "Imputation",
    "Surprise",
    "TableModel",
    "compare",
    "fit",
    "impute",
    "load",
    "quality",
    "save",
    "score",
    "surprises",
]

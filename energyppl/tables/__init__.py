"""Densities of tables: train on a frame, then score, sample, impute, predict and compare in the table's own units."""

from energyppl.tables.averaging import average
from energyppl.tables.comparison import Comparison, compare
from energyppl.tables.conditional_model import ConditionalTableModel
from energyppl.tables.conditional_quality import prediction_quality
from energyppl.tables.conditional_training import fit_conditional
from energyppl.tables.imputation import Imputation, impute
from energyppl.tables.model import TableModel
from energyppl.tables.outliers import Surprise, score, surprises
from energyppl.tables.quality import quality
from energyppl.tables.storage import load, save
from energyppl.tables.training import fit

__all__ = [
    "Comparison",
    "ConditionalTableModel",
    "Imputation",
    "Surprise",
    "TableModel",
    "average",
    "compare",
    "fit",
    "fit_conditional",
    "impute",
    "load",
    "prediction_quality",
    "quality",
    "save",
    "score",
    "surprises",
]

"""Training runs: batches, optimizer, guards, checkpoints."""

from energyppl.inference.training.fit import Training, fit
from energyppl.inference.training.history import History, Record
from energyppl.inference.training.options import TrainingOptions

__all__ = ["History", "Record", "Training", "TrainingOptions", "fit"]

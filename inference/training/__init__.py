"""Training runs: batches, optimizer, guards, checkpoints."""

from energyppl.inference.training.fit import Training, TrainingOptions, fit
from energyppl.inference.training.history import History, Record

__all__ = ["History", "Record", "Training", "TrainingOptions", "fit"]

"""Training runs: batches, optimizer, guards, checkpoints."""

from energyppl.inference.training.fit import fit
from energyppl.inference.training.history import History, Record
from energyppl.inference.training.options import TrainingOptions
from energyppl.inference.training.run import Training
from energyppl.inference.training.soap import SOAP

__all__ = ["SOAP", "History", "Record", "Training", "TrainingOptions", "fit"]

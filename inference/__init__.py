"""What trains and queries: kernels, adaptation, chains, objectives, training."""

if __name__ != "energyppl.inference":
    raise ImportError("import energyppl.inference: this folder is its source, not a package of its own")

from energyppl.inference.adaptation import adapt
from energyppl.inference.chains import MarkovSampler, Trajectory, run_chain
from energyppl.inference.generation import Generation, generate
from energyppl.inference.history import History, Record
from energyppl.inference.kernels import (
    MALA,
    CrankNicolson,
    CrankNicolsonLangevin,
    Info,
    Kernel,
    Langevin,
    State,
    TunableKernel,
)
from energyppl.inference.objectives import Contrastive, Loss, Objective, RecoveryLikelihood, from_data, from_noisy
from energyppl.inference.training import Training, TrainingOptions, fit

__all__ = [
    "MALA",
    "Contrastive",
    "CrankNicolson",
    "CrankNicolsonLangevin",
    "Generation",
    "History",
    "Info",
    "Kernel",
    "Langevin",
    "Loss",
    "MarkovSampler",
    "Objective",
    "Record",
    "RecoveryLikelihood",
    "State",
    "Training",
    "TrainingOptions",
    "Trajectory",
    "TunableKernel",
    "adapt",
    "fit",
    "from_data",
    "from_noisy",
    "generate",
    "run_chain",
]

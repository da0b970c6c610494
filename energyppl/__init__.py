"""energyppl: energy-based models as distributions that can be declared, trained, queried and diagnosed inside Pyro."""

from energyppl import toys
from energyppl.distributions import EnergyDistribution, RecoveryDistribution
from energyppl.errors import (
    CheckpointError,
    EnergyPPLError,
    InvalidInput,
    NotNormalized,
    QuadratureError,
    TrainingDiverged,
)
from energyppl.gradient import energy_and_grad, energy_only
from energyppl.inference import (
    MALA,
    Contrastive,
    CrankNicolson,
    CrankNicolsonLangevin,
    History,
    Langevin,
    Loss,
    MarkovSampler,
    RecoveryLikelihood,
    Training,
    TrainingOptions,
    adapt,
    fit,
    from_data,
    from_noisy,
    run_chain,
)
from energyppl.models import MLPEnergy, RecoveryEBM
from energyppl.normalizer import LogNormalizer
from energyppl.persistence import load_checkpoint, save_checkpoint
from energyppl.potential import AtLevel, Bridge, Conditioned, Energy, Potential, Scaled, Sum, Tethered
from energyppl.quadrature import Grid, kl_divergence, quadrature
from energyppl.schedule import NoiseSchedule

__version__ = "0.1.0"

__all__ = [
    "MALA",
    "AtLevel",
    "Bridge",
    "CheckpointError",
    "Conditioned",
    "Contrastive",
    "CrankNicolson",
    "CrankNicolsonLangevin",
    "Energy",
    "EnergyDistribution",
    "EnergyPPLError",
    "Grid",
    "History",
    "InvalidInput",
    "Langevin",
    "LogNormalizer",
    "Loss",
    "MLPEnergy",
    "MarkovSampler",
    "NoiseSchedule",
    "NotNormalized",
    "Potential",
    "QuadratureError",
    "RecoveryDistribution",
    "RecoveryEBM",
    "RecoveryLikelihood",
    "Scaled",
    "Sum",
    "Tethered",
    "Training",
    "TrainingDiverged",
    "TrainingOptions",
    "__version__",
    "adapt",
    "energy_and_grad",
    "energy_only",
    "fit",
    "from_data",
    "from_noisy",
    "kl_divergence",
    "load_checkpoint",
    "quadrature",
    "run_chain",
    "save_checkpoint",
    "toys",
]

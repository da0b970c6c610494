"""What trains and queries: kernels, adaptation, chains, objectives, training."""

if __name__ != "energyppl.inference":
    raise ImportError("import energyppl.inference: this folder is its source, not a package of its own")

from energyppl.inference.adaptation import Adaptation, adapt
from energyppl.inference.annealing import Climb, Ladder, Weights, anneal, climb
from energyppl.inference.bennett import bennett
from energyppl.inference.chains import MarkovSampler, Trajectory, run_chain
from energyppl.inference.composite import Block, Cycle, Mixture, Tempered
from energyppl.inference.cooperative import (
    CooperativeGuide,
    CooperativeRecovery,
    InitializerReport,
    initializer_report,
)
from energyppl.inference.crank_nicolson import CrankNicolson, CrankNicolsonLangevin
from energyppl.inference.diagnostics import (
    EnergyDrift,
    LevelAcceptance,
    ModeOccupancy,
    energy_drift,
    level_acceptance,
    mode_occupancy,
)
from energyppl.inference.discrete import BinaryGibbs, DiscreteLangevin
from energyppl.inference.generation import Generation, generate
from energyppl.inference.hamiltonian import HMC, MALT, ChEES
from energyppl.inference.history import History, Record
from energyppl.inference.initializers import IndependentMetropolis, recovery_proposal
from energyppl.inference.langevin import MALA, Langevin
from energyppl.inference.likelihood import auroc, bits_per_dimension, entropy, kl_by_samples, mean_log_likelihood
from energyppl.inference.log_normalizers import AIS, BAR, SMC, Annealing, ReverseAIS, log_normalizer
from energyppl.inference.mass import LowRankMass, diagonal_mass, identity_mass, low_rank_mass
from energyppl.inference.nuts import NUTS
from energyppl.inference.objectives import Contrastive, Loss, Objective, RecoveryLikelihood, from_data, from_noisy
from energyppl.inference.process_likelihood import process_log_likelihood, tether_normalizers
from energyppl.inference.pyro_kernels import PyroKernel
from energyppl.inference.pyro_models import ModelPotential
from energyppl.inference.results import Chains
from energyppl.inference.sampling import sample_chains
from energyppl.inference.training import Training, TrainingOptions, fit
from energyppl.inference.transition import Info, Kernel, State, TunableKernel

__all__ = [
    "AIS",
    "BAR",
    "HMC",
    "MALA",
    "MALT",
    "NUTS",
    "SMC",
    "Adaptation",
    "Annealing",
    "BinaryGibbs",
    "Block",
    "ChEES",
    "Chains",
    "Climb",
    "Contrastive",
    "CooperativeGuide",
    "CooperativeRecovery",
    "CrankNicolson",
    "CrankNicolsonLangevin",
    "Cycle",
    "DiscreteLangevin",
    "EnergyDrift",
    "Generation",
    "History",
    "IndependentMetropolis",
    "Info",
    "InitializerReport",
    "Kernel",
    "Ladder",
    "Langevin",
    "LevelAcceptance",
    "Loss",
    "LowRankMass",
    "MarkovSampler",
    "Mixture",
    "ModeOccupancy",
    "ModelPotential",
    "Objective",
    "PyroKernel",
    "Record",
    "RecoveryLikelihood",
    "ReverseAIS",
    "State",
    "Tempered",
    "Training",
    "TrainingOptions",
    "Trajectory",
    "TunableKernel",
    "Weights",
    "adapt",
    "anneal",
    "auroc",
    "bennett",
    "bits_per_dimension",
    "climb",
    "diagonal_mass",
    "energy_drift",
    "entropy",
    "fit",
    "from_data",
    "from_noisy",
    "generate",
    "identity_mass",
    "initializer_report",
    "kl_by_samples",
    "level_acceptance",
    "log_normalizer",
    "low_rank_mass",
    "mean_log_likelihood",
    "mode_occupancy",
    "process_log_likelihood",
    "recovery_proposal",
    "run_chain",
    "sample_chains",
    "tether_normalizers",
]

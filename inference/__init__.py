"""What trains and queries: kernels, adaptation, chains, objectives, training."""

if __name__ != "energyppl.inference":
    raise ImportError("import energyppl.inference: this folder is its source, not a package of its own")

from energyppl.inference.adaptation.warmup import Adaptation, adapt
from energyppl.inference.evaluation.chains import (
    EnergyDrift,
    LevelAcceptance,
    ModeOccupancy,
    energy_drift,
    level_acceptance,
    mode_occupancy,
)
from energyppl.inference.evaluation.initializer import InitializerReport, initializer_report
from energyppl.inference.evaluation.likelihood import bits_per_dimension, entropy, kl_by_samples, mean_log_likelihood
from energyppl.inference.evaluation.long_run import LongRun, long_run
from energyppl.inference.evaluation.roc import DetectionReport, auroc, detection_report, fpr_at_95
from energyppl.inference.evaluation.scores import (
    energy_scores,
    gradient_scores,
    joint_scores,
    ratio_scores,
    typicality_scores,
)
from energyppl.inference.kernels.binary import BinaryGibbs, DiscreteLangevin
from energyppl.inference.kernels.composite import Block, Cycle, Mixture, Tempered
from energyppl.inference.kernels.contract import Info, Kernel, State, TunableKernel
from energyppl.inference.kernels.crank_nicolson import CrankNicolson, CrankNicolsonLangevin
from energyppl.inference.kernels.hamiltonian import HMC, MALT, ChEES
from energyppl.inference.kernels.independent import IndependentMetropolis
from energyppl.inference.kernels.langevin import MALA, Langevin
from energyppl.inference.kernels.mass import LowRankMass, diagonal_mass, identity_mass, low_rank_mass
from energyppl.inference.kernels.nuts import NUTS
from energyppl.inference.levels.annealed_langevin import (
    AnnealedPoints,
    TemperatureLadder,
    anneal_temperature,
    denoising_jump,
)
from energyppl.inference.levels.generation import Generation, generate
from energyppl.inference.levels.initializers import recovery_proposal
from energyppl.inference.levels.joint import JointTrajectory, draw_levels, level_energies, move_jointly
from energyppl.inference.normalizing.annealing import Climb, Ladder, Weights, anneal, climb
from energyppl.inference.normalizing.bennett import bennett
from energyppl.inference.normalizing.log_normalizer import AIS, BAR, SMC, Annealing, ReverseAIS, log_normalizer
from energyppl.inference.normalizing.recovery import process_log_likelihood, tether_normalizers
from energyppl.inference.objectives.contract import Loss, Objective
from energyppl.inference.objectives.contrastive import Contrastive, from_data, from_noisy
from energyppl.inference.objectives.contrastive_divergence import ContrastiveDivergence
from energyppl.inference.objectives.cooperative import CooperativeRecovery
from energyppl.inference.objectives.cooperative_guide import CooperativeGuide
from energyppl.inference.objectives.exact_likelihood import ExactLikelihood
from energyppl.inference.objectives.level_score_matching import LevelScoreMatching
from energyppl.inference.objectives.multiscale_score_matching import MultiscaleScoreMatching
from energyppl.inference.objectives.noise_contrastive import NoiseContrastive
from energyppl.inference.objectives.persistent import PersistentLikelihood
from energyppl.inference.objectives.persistent_chains import ChainBuffer
from energyppl.inference.objectives.recovery import RecoveryLikelihood
from energyppl.inference.objectives.score_matching import (
    DenoisingScoreMatching,
    ExactScoreMatching,
    SlicedScoreMatching,
)
from energyppl.inference.sampling.chains import Chains
from energyppl.inference.sampling.pyro_kernel import PyroKernel
from energyppl.inference.sampling.pyro_model import ModelPotential
from energyppl.inference.sampling.run_chain import MarkovSampler, Trajectory, run_chain
from energyppl.inference.sampling.sample_chains import sample_chains
from energyppl.inference.training.fit import Training, TrainingOptions, fit
from energyppl.inference.training.history import History, Record

__all__ = [
    "AIS",
    "BAR",
    "HMC",
    "MALA",
    "MALT",
    "NUTS",
    "SMC",
    "Adaptation",
    "AnnealedPoints",
    "Annealing",
    "BinaryGibbs",
    "Block",
    "ChEES",
    "ChainBuffer",
    "Chains",
    "Climb",
    "Contrastive",
    "ContrastiveDivergence",
    "CooperativeGuide",
    "CooperativeRecovery",
    "CrankNicolson",
    "CrankNicolsonLangevin",
    "Cycle",
    "DenoisingScoreMatching",
    "DetectionReport",
    "DiscreteLangevin",
    "EnergyDrift",
    "ExactLikelihood",
    "ExactScoreMatching",
    "Generation",
    "History",
    "IndependentMetropolis",
    "Info",
    "InitializerReport",
    "JointTrajectory",
    "Kernel",
    "Ladder",
    "Langevin",
    "LevelAcceptance",
    "LevelScoreMatching",
    "LongRun",
    "Loss",
    "LowRankMass",
    "MarkovSampler",
    "Mixture",
    "ModeOccupancy",
    "ModelPotential",
    "MultiscaleScoreMatching",
    "NoiseContrastive",
    "Objective",
    "PersistentLikelihood",
    "PyroKernel",
    "Record",
    "RecoveryLikelihood",
    "ReverseAIS",
    "SlicedScoreMatching",
    "State",
    "TemperatureLadder",
    "Tempered",
    "Training",
    "TrainingOptions",
    "Trajectory",
    "TunableKernel",
    "Weights",
    "adapt",
    "anneal",
    "anneal_temperature",
    "auroc",
    "bennett",
    "bits_per_dimension",
    "climb",
    "denoising_jump",
    "detection_report",
    "diagonal_mass",
    "draw_levels",
    "energy_drift",
    "energy_scores",
    "entropy",
    "fit",
    "fpr_at_95",
    "from_data",
    "from_noisy",
    "generate",
    "gradient_scores",
    "identity_mass",
    "initializer_report",
    "joint_scores",
    "kl_by_samples",
    "level_acceptance",
    "level_energies",
    "log_normalizer",
    "long_run",
    "low_rank_mass",
    "mean_log_likelihood",
    "mode_occupancy",
    "move_jointly",
    "process_log_likelihood",
    "ratio_scores",
    "recovery_proposal",
    "run_chain",
    "sample_chains",
    "tether_normalizers",
    "typicality_scores",
]

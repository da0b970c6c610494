"""Training objectives: a batch in, a loss out."""

from energyppl.inference.objectives.contract import Loss, Objective, OptimizerSettings
from energyppl.inference.objectives.contrastive import Contrastive, FromNegatives, from_data, from_noisy
from energyppl.inference.objectives.contrastive_divergence import ContrastiveDivergence
from energyppl.inference.objectives.cooperative import CooperativeRecovery
from energyppl.inference.objectives.cooperative_guide import CooperativeGuide
from energyppl.inference.objectives.exact_likelihood import ExactLikelihood
from energyppl.inference.objectives.held_out import conditional_contrast
from energyppl.inference.objectives.level0_likelihood import Level0Likelihood
from energyppl.inference.objectives.level_score_matching import LevelScoreMatching
from energyppl.inference.objectives.multiscale_score_matching import MultiscaleScoreMatching
from energyppl.inference.objectives.noise_contrastive import NoiseContrastive
from energyppl.inference.objectives.persistent import PersistentLikelihood
from energyppl.inference.objectives.persistent_chains import ChainBuffer
from energyppl.inference.objectives.posterior_guide import PosteriorGuide
from energyppl.inference.objectives.proposal_contrastive import ProposalContrastive
from energyppl.inference.objectives.recovery import RecoveryLikelihood
from energyppl.inference.objectives.score_matching import (
    DenoisingScoreMatching,
    ExactScoreMatching,
    SlicedScoreMatching,
)

__all__ = [
    "ChainBuffer",
    "Contrastive",
    "ContrastiveDivergence",
    "CooperativeGuide",
    "CooperativeRecovery",
    "DenoisingScoreMatching",
    "ExactLikelihood",
    "ExactScoreMatching",
    "FromNegatives",
    "Level0Likelihood",
    "LevelScoreMatching",
    "Loss",
    "MultiscaleScoreMatching",
    "NoiseContrastive",
    "Objective",
    "OptimizerSettings",
    "PersistentLikelihood",
    "PosteriorGuide",
    "ProposalContrastive",
    "RecoveryLikelihood",
    "SlicedScoreMatching",
    "conditional_contrast",
    "from_data",
    "from_noisy",
]

"""Chains at and between noise levels."""

from energyppl.inference.levels.ancestral import ancestral_draw
from energyppl.inference.levels.annealed_langevin import (
    AnnealedPoints,
    TemperatureSchedule,
    anneal_temperature,
    denoising_jump,
)
from energyppl.inference.levels.generation import Generation, generate
from energyppl.inference.levels.initializers import recovery_proposal
from energyppl.inference.levels.joint import JointTrajectory, draw_levels, level_energies, move_jointly, step_levels
from energyppl.inference.levels.moment_matching import MomentMatching, match_moments
from energyppl.inference.levels.recovery import recovery_potential

__all__ = [
    "AnnealedPoints",
    "Generation",
    "JointTrajectory",
    "MomentMatching",
    "TemperatureSchedule",
    "ancestral_draw",
    "anneal_temperature",
    "denoising_jump",
    "draw_levels",
    "generate",
    "level_energies",
    "match_moments",
    "move_jointly",
    "recovery_potential",
    "recovery_proposal",
    "step_levels",
]

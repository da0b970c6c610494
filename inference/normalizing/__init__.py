"""Estimators of log Z."""

from energyppl.inference.normalizing.annealing import AnnealingSchedule, PilotRun, Weights, anneal, pilot_run
from energyppl.inference.normalizing.bennett import bennett
from energyppl.inference.normalizing.log_normalizer import log_normalizer
from energyppl.inference.normalizing.marginal import MarginalLikelihood, marginal_log_likelihood
from energyppl.inference.normalizing.methods import AIS, BAR, SMC, Annealing, ReverseAIS
from energyppl.inference.normalizing.recovery import process_log_likelihood, recovery_normalizers

__all__ = [
    "AIS",
    "BAR",
    "SMC",
    "Annealing",
    "AnnealingSchedule",
    "MarginalLikelihood",
    "PilotRun",
    "ReverseAIS",
    "Weights",
    "anneal",
    "bennett",
    "log_normalizer",
    "marginal_log_likelihood",
    "pilot_run",
    "process_log_likelihood",
    "recovery_normalizers",
]

"""Estimators of log Z."""

from energyppl.inference.normalizing.annealing import Climb, Ladder, Weights, anneal, climb
from energyppl.inference.normalizing.bennett import bennett
from energyppl.inference.normalizing.log_normalizer import AIS, BAR, SMC, Annealing, ReverseAIS, log_normalizer
from energyppl.inference.normalizing.recovery import process_log_likelihood, tether_normalizers

__all__ = [
    "AIS",
    "BAR",
    "SMC",
    "Annealing",
    "Climb",
    "Ladder",
    "ReverseAIS",
    "Weights",
    "anneal",
    "bennett",
    "climb",
    "log_normalizer",
    "process_log_likelihood",
    "tether_normalizers",
]

"""Evaluation of models and samplers: likelihoods, detection, long chains, calibration."""

from energyppl.inference.evaluation.calibration import Calibration, calibrate, calibrate_sampler
from energyppl.inference.evaluation.chains import (
    EnergyDrift,
    LevelAcceptance,
    ModeOccupancy,
    energy_drift,
    level_acceptance,
    mode_occupancy,
)
from energyppl.inference.evaluation.coverage import Coverage, coverage, rank_coverage
from energyppl.inference.evaluation.initializer import InitializerReport, initializer_report
from energyppl.inference.evaluation.likelihood import bits_per_dimension, entropy, kl_by_samples, mean_log_likelihood
from energyppl.inference.evaluation.long_run import LongRun, long_run
from energyppl.inference.evaluation.regions import RegionMasses, region_masses
from energyppl.inference.evaluation.roc import DetectionReport, auroc, detection_report, fpr_at_95
from energyppl.inference.evaluation.scores import (
    energy_scores,
    gradient_scores,
    joint_scores,
    ratio_scores,
    typicality_scores,
)
from energyppl.inference.evaluation.uniformity import EcdfBands, chi_square_test, ecdf_bands, ecdf_test

__all__ = [
    "Calibration",
    "Coverage",
    "DetectionReport",
    "EcdfBands",
    "EnergyDrift",
    "InitializerReport",
    "LevelAcceptance",
    "LongRun",
    "ModeOccupancy",
    "RegionMasses",
    "auroc",
    "bits_per_dimension",
    "calibrate",
    "calibrate_sampler",
    "chi_square_test",
    "coverage",
    "detection_report",
    "ecdf_bands",
    "ecdf_test",
    "energy_drift",
    "energy_scores",
    "entropy",
    "fpr_at_95",
    "gradient_scores",
    "initializer_report",
    "joint_scores",
    "kl_by_samples",
    "level_acceptance",
    "long_run",
    "mean_log_likelihood",
    "mode_occupancy",
    "rank_coverage",
    "ratio_scores",
    "region_masses",
    "typicality_scores",
]

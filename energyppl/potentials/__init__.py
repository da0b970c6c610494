"""Potentials: their algebra, networks at a noise level, constrained supports, normalized bases."""

from energyppl.potentials.algebra import Affine, Bridge, Conditioned, Energy, Potential, RecoveryPotential, Scaled, Sum
from energyppl.potentials.bases import Base, BernoulliBase, DistributionBase, GaussianBase, MixtureBase
from energyppl.potentials.composed import LogSumExp, Measured, Standardized
from energyppl.potentials.constrained import Constrained
from energyppl.potentials.network import AtLevel, AtLogSNR, EnergyNetwork

__all__ = [
    "Affine",
    "AtLevel",
    "AtLogSNR",
    "Base",
    "BernoulliBase",
    "Bridge",
    "Conditioned",
    "Constrained",
    "DistributionBase",
    "Energy",
    "EnergyNetwork",
    "GaussianBase",
    "LogSumExp",
    "Measured",
    "MixtureBase",
    "Potential",
    "RecoveryPotential",
    "Scaled",
    "Standardized",
    "Sum",
]

"""Markov kernels: one transition for a batch of chains."""

from energyppl.inference.kernels.binary import BinaryGibbs, DiscreteLangevin
from energyppl.inference.kernels.composite import Block, Cycle, Mixture, Tempered
from energyppl.inference.kernels.contract import (
    Info,
    Kernel,
    State,
    StepSizeTunable,
    TunableKernel,
    Unadjusted,
    dot,
    evaluate,
    metropolis,
    select,
)
from energyppl.inference.kernels.crank_nicolson import CrankNicolson, CrankNicolsonLangevin
from energyppl.inference.kernels.hamiltonian import HMC, MALT, ChEES, LengthTunable, LongProposal
from energyppl.inference.kernels.independent import IndependentMetropolis
from energyppl.inference.kernels.langevin import MALA, Langevin
from energyppl.inference.kernels.mass import LowRankMass, MassTunable, diagonal_mass, identity_mass, low_rank_mass
from energyppl.inference.kernels.nuts import NUTS

__all__ = [
    "HMC",
    "MALA",
    "MALT",
    "NUTS",
    "BinaryGibbs",
    "Block",
    "ChEES",
    "CrankNicolson",
    "CrankNicolsonLangevin",
    "Cycle",
    "DiscreteLangevin",
    "IndependentMetropolis",
    "Info",
    "Kernel",
    "Langevin",
    "LengthTunable",
    "LongProposal",
    "LowRankMass",
    "MassTunable",
    "Mixture",
    "State",
    "StepSizeTunable",
    "Tempered",
    "TunableKernel",
    "Unadjusted",
    "diagonal_mass",
    "dot",
    "evaluate",
    "identity_mass",
    "low_rank_mass",
    "metropolis",
    "select",
]

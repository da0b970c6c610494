"""Markov kernels: one transition for a batch of chains."""

from energyppl.inference.kernels.binary import BinaryGibbs, DiscreteLangevin
from energyppl.inference.kernels.composite import Block, Cycle, Mixture, Tempered
from energyppl.inference.kernels.contract import Info, Kernel, State, TunableKernel, dot, evaluate, metropolis, select
from energyppl.inference.kernels.crank_nicolson import CrankNicolson, CrankNicolsonLangevin
from energyppl.inference.kernels.hamiltonian import HMC, MALT, ChEES
from energyppl.inference.kernels.independent import IndependentMetropolis
from energyppl.inference.kernels.langevin import MALA, Langevin
from energyppl.inference.kernels.mass import LowRankMass, diagonal_mass, identity_mass, low_rank_mass
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
    "LowRankMass",
    "Mixture",
    "State",
    "Tempered",
    "TunableKernel",
    "diagonal_mass",
    "dot",
    "evaluate",
    "identity_mass",
    "low_rank_mass",
    "metropolis",
    "select",
]

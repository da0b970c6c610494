"""Many chains on any target."""

from energyppl.inference.sampling.chains import Chains
from energyppl.inference.sampling.pyro_kernel import PyroKernel
from energyppl.inference.sampling.pyro_model import ModelPotential
from energyppl.inference.sampling.run_chain import MarkovSampler, Trajectory, run_chain
from energyppl.inference.sampling.sample_chains import sample_chains

__all__ = ["Chains", "MarkovSampler", "ModelPotential", "PyroKernel", "Trajectory", "run_chain", "sample_chains"]

"""energyppl: energy-based models as distributions that can be declared, trained, queried and diagnosed inside Pyro.

The map:

- models: ``RecoveryEBM JointEBM EBM MultiscaleEBM``, made of others by ``product mixture measured``
- files: ``save load`` a model, ``save_checkpoint load_checkpoint`` anything
- networks: ``MLPEnergy ConvEnergy``, initializers ``MLPInitializer UNetInitializer``; levels: ``NoiseSchedule``
- training: ``fit``, or ``Training`` step by step, by ``RecoveryLikelihood CooperativeRecovery PersistentLikelihood``
  and the other objectives of ``energyppl.objectives``
- energies: ``Energy``, its algebra in ``energyppl.potentials``; as distributions in Pyro ``EnergyDistribution
  RecoveryDistribution``
- chains: ``sample_chains``, with ``HMC ChEES NUTS MALA Langevin`` and the other kernels of ``energyppl.kernels``
- log Z: ``log_normalizer``, with the methods of ``energyppl.normalizing``; up to two dimensions ``quadrature``
- what a model is worth: ``long_run``, ``energyppl.evaluation``, ``energyppl.metrics``
- tables as they are: ``energyppl.tables``
- data and pictures: ``energyppl.data``, ``energyppl.plots``, ``energyppl.toys``
- what is raised: ``energyppl.errors``

Each name is imported when it is first used, so that ``import energyppl`` and ``energyppl --help`` need not wait for
torch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from energyppl import data, distributed, errors, integration, metrics, plots, potentials, tables, toys
    from energyppl.autodiff.gradient import energy_and_grad
    from energyppl.checkpoints import load_checkpoint, save_checkpoint
    from energyppl.distributions import EnergyDistribution, RecoveryDistribution
    from energyppl.errors import EnergyPPLError, InvalidInput, NotNormalized, TrainingDiverged
    from energyppl.inference import evaluation, kernels, levels, normalizing, objectives, sampling
    from energyppl.inference.adaptation.warmup import adapt
    from energyppl.inference.evaluation.long_run import long_run
    from energyppl.inference.kernels.hamiltonian import HMC, ChEES
    from energyppl.inference.kernels.langevin import MALA, Langevin
    from energyppl.inference.kernels.nuts import NUTS
    from energyppl.inference.normalizing.log_normalizer import log_normalizer
    from energyppl.inference.objectives.cooperative import CooperativeRecovery
    from energyppl.inference.objectives.persistent import PersistentLikelihood
    from energyppl.inference.objectives.recovery import RecoveryLikelihood
    from energyppl.inference.sampling.chains import Chains
    from energyppl.inference.sampling.pyro_kernel import PyroKernel
    from energyppl.inference.sampling.sample_chains import sample_chains
    from energyppl.inference.training.fit import fit
    from energyppl.inference.training.history import History
    from energyppl.inference.training.options import TrainingOptions
    from energyppl.inference.training.run import Training
    from energyppl.integration.estimates import Estimate, LogNormalizer
    from energyppl.integration.quadrature import Grid, quadrature
    from energyppl.models.composition import LinearMeasurement, measured, mixture, product
    from energyppl.models.ebm import EBM
    from energyppl.models.joint import JointEBM
    from energyppl.models.multiscale import MultiscaleEBM
    from energyppl.models.networks.conv import ConvEnergy
    from energyppl.models.networks.mlp import MLPEnergy
    from energyppl.models.networks.mlp_initializer import MLPInitializer
    from energyppl.models.networks.unet import UNetInitializer
    from energyppl.models.recovery import RecoveryEBM
    from energyppl.models.storage import load, save
    from energyppl.potentials.algebra import Energy
    from energyppl.schedule import NoiseSchedule

__version__ = "0.2.0"

__all__ = [
    "EBM",
    "HMC",
    "MALA",
    "NUTS",
    "ChEES",
    "Chains",
    "ConvEnergy",
    "CooperativeRecovery",
    "Energy",
    "EnergyDistribution",
    "EnergyPPLError",
    "Estimate",
    "Grid",
    "History",
    "InvalidInput",
    "JointEBM",
    "Langevin",
    "LinearMeasurement",
    "LogNormalizer",
    "MLPEnergy",
    "MLPInitializer",
    "MultiscaleEBM",
    "NoiseSchedule",
    "NotNormalized",
    "PersistentLikelihood",
    "PyroKernel",
    "RecoveryDistribution",
    "RecoveryEBM",
    "RecoveryLikelihood",
    "Training",
    "TrainingDiverged",
    "TrainingOptions",
    "UNetInitializer",
    "__version__",
    "adapt",
    "data",
    "distributed",
    "energy_and_grad",
    "errors",
    "evaluation",
    "fit",
    "integration",
    "kernels",
    "levels",
    "load",
    "load_checkpoint",
    "log_normalizer",
    "long_run",
    "measured",
    "metrics",
    "mixture",
    "normalizing",
    "objectives",
    "plots",
    "potentials",
    "product",
    "quadrature",
    "sample_chains",
    "sampling",
    "save",
    "save_checkpoint",
    "tables",
    "toys",
]

_SUB_PACKAGES = {  # name here: module
    "autodiff": "energyppl.autodiff",
    "data": "energyppl.data",
    "distributed": "energyppl.distributed",
    "errors": "energyppl.errors",
    "estimator": "energyppl.estimator",
    "evaluation": "energyppl.inference.evaluation",
    "inference": "energyppl.inference",
    "integration": "energyppl.integration",
    "kernels": "energyppl.inference.kernels",
    "levels": "energyppl.inference.levels",
    "metrics": "energyppl.metrics",
    "models": "energyppl.models",
    "normalizing": "energyppl.inference.normalizing",
    "objectives": "energyppl.inference.objectives",
    "plots": "energyppl.plots",
    "potentials": "energyppl.potentials",
    "sampling": "energyppl.inference.sampling",
    "tables": "energyppl.tables",
    "toys": "energyppl.toys",
}

_HOMES = {  # name here: the module that defines it
    "ChEES": "energyppl.inference.kernels.hamiltonian",
    "Chains": "energyppl.inference.sampling.chains",
    "ConvEnergy": "energyppl.models.networks.conv",
    "CooperativeRecovery": "energyppl.inference.objectives.cooperative",
    "EBM": "energyppl.models.ebm",
    "Energy": "energyppl.potentials.algebra",
    "EnergyDistribution": "energyppl.distributions",
    "EnergyPPLError": "energyppl.errors",
    "Estimate": "energyppl.integration.estimates",
    "Grid": "energyppl.integration.quadrature",
    "HMC": "energyppl.inference.kernels.hamiltonian",
    "History": "energyppl.inference.training.history",
    "InvalidInput": "energyppl.errors",
    "JointEBM": "energyppl.models.joint",
    "Langevin": "energyppl.inference.kernels.langevin",
    "LinearMeasurement": "energyppl.models.composition",
    "LogNormalizer": "energyppl.integration.estimates",
    "MALA": "energyppl.inference.kernels.langevin",
    "MLPEnergy": "energyppl.models.networks.mlp",
    "MLPInitializer": "energyppl.models.networks.mlp_initializer",
    "MultiscaleEBM": "energyppl.models.multiscale",
    "NUTS": "energyppl.inference.kernels.nuts",
    "NoiseSchedule": "energyppl.schedule",
    "NotNormalized": "energyppl.errors",
    "PersistentLikelihood": "energyppl.inference.objectives.persistent",
    "PyroKernel": "energyppl.inference.sampling.pyro_kernel",
    "RecoveryDistribution": "energyppl.distributions",
    "RecoveryEBM": "energyppl.models.recovery",
    "RecoveryLikelihood": "energyppl.inference.objectives.recovery",
    "Training": "energyppl.inference.training.run",
    "TrainingDiverged": "energyppl.errors",
    "TrainingOptions": "energyppl.inference.training.options",
    "UNetInitializer": "energyppl.models.networks.unet",
    "adapt": "energyppl.inference.adaptation.warmup",
    "energy_and_grad": "energyppl.autodiff.gradient",
    "fit": "energyppl.inference.training.fit",
    "load": "energyppl.models.storage",
    "load_checkpoint": "energyppl.checkpoints",
    "log_normalizer": "energyppl.inference.normalizing.log_normalizer",
    "long_run": "energyppl.inference.evaluation.long_run",
    "measured": "energyppl.models.composition",
    "mixture": "energyppl.models.composition",
    "product": "energyppl.models.composition",
    "quadrature": "energyppl.integration.quadrature",
    "sample_chains": "energyppl.inference.sampling.sample_chains",
    "save": "energyppl.models.storage",
    "save_checkpoint": "energyppl.checkpoints",
}

if not TYPE_CHECKING:  # type checkers and IDEs read the imports above

    def __getattr__(name: str) -> object:
        """Import what is asked for (PEP 562), and keep it."""
        if name in _SUB_PACKAGES:
            value = import_module(_SUB_PACKAGES[name])
        elif name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module 'energyppl' has no attribute {name!r}{_hint(name)}")
        globals()[name] = value
        return value

    def _hint(name: str) -> str:
        """Say in which sub-packages a public name is that the top level has not; nothing of modules and other names."""
        if name.startswith("_") or find_spec(f"energyppl.{name}") is not None:
            return ""
        homes = [f"energyppl.{own}.{name}" for own, home in _SUB_PACKAGES.items() if _exports(home, name)]
        return f"; there is {' and '.join(homes)}" if homes else ""

    def _exports(module: str, name: str) -> bool:
        return name in getattr(import_module(module), "__all__", ())

    def __dir__() -> list[str]:
        """List what users may ask for, imported or not."""
        return sorted({*(name for name in globals() if name.startswith("__")), *_SUB_PACKAGES, *_HOMES})

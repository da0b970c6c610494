"""Energy networks and the models that are made of them."""

if __name__ != "energyppl.models":
    raise ImportError("import energyppl.models: this folder is its source, not a package of its own")

from energyppl.models.averaging import averaged
from energyppl.models.composition import LinearMeasurement, measured, mixture, product
from energyppl.models.conditional import ConditionalDistribution, ConditionalEBM
from energyppl.models.ebm import EBM
from energyppl.models.interpolation import interpolate
from energyppl.models.joint import JointEBM
from energyppl.models.latent import LatentPrior
from energyppl.models.multiscale import MultiscaleEBM
from energyppl.models.networks.averaged import AveragedEnergy
from energyppl.models.networks.conv import ConvEnergy
from energyppl.models.networks.mlp import MLPEnergy
from energyppl.models.networks.mlp_initializer import MLPInitializer
from energyppl.models.networks.unet import UNetInitializer
from energyppl.models.networks.unet_energy import UNetEnergy
from energyppl.models.of_columns import model_of_columns, suited_log_snr_max
from energyppl.models.recovery import RecoveryEBM
from energyppl.models.simulation import Resampled, Simulations, posterior, simulate
from energyppl.models.storage import load, save

__all__ = [
    "EBM",
    "AveragedEnergy",
    "ConditionalDistribution",
    "ConditionalEBM",
    "ConvEnergy",
    "JointEBM",
    "LatentPrior",
    "LinearMeasurement",
    "MLPEnergy",
    "MLPInitializer",
    "MultiscaleEBM",
    "RecoveryEBM",
    "Resampled",
    "Simulations",
    "UNetEnergy",
    "UNetInitializer",
    "averaged",
    "interpolate",
    "load",
    "measured",
    "mixture",
    "model_of_columns",
    "posterior",
    "product",
    "save",
    "simulate",
    "suited_log_snr_max",
]

"""Energy networks and the models that are made of them."""

if __name__ != "energyppl.models":
    raise ImportError("import energyppl.models: this folder is its source, not a package of its own")

from energyppl.models.composition import LinearMeasurement, measured, mixture, product
from energyppl.models.ebm import EBM
from energyppl.models.interpolation import interpolate
from energyppl.models.joint import JointEBM
from energyppl.models.multiscale import MultiscaleEBM
from energyppl.models.networks.conv import ConvEnergy
from energyppl.models.networks.mlp import MLPEnergy
from energyppl.models.networks.mlp_initializer import MLPInitializer
from energyppl.models.networks.unet import UNetInitializer
from energyppl.models.networks.unet_energy import UNetEnergy
from energyppl.models.recovery import RecoveryEBM
from energyppl.models.storage import load, save

__all__ = [
    "EBM",
    "ConvEnergy",
    "JointEBM",
    "LinearMeasurement",
    "MLPEnergy",
    "MLPInitializer",
    "MultiscaleEBM",
    "RecoveryEBM",
    "UNetEnergy",
    "UNetInitializer",
    "interpolate",
    "load",
    "measured",
    "mixture",
    "product",
    "save",
]

"""What is declared: energy networks and the models that are made of them."""

if __name__ != "energyppl.models":
    raise ImportError("import energyppl.models: this folder is its source, not a package of its own")

from energyppl.models.conditional import LinearMeasurement, measured, mixture, product
from energyppl.models.conv import ConvEnergy
from energyppl.models.ebm import EBM
from energyppl.models.initializers import MLPInitializer
from energyppl.models.joint import JointEBM
from energyppl.models.mlp import MLPEnergy
from energyppl.models.multiscale import MultiscaleEBM
from energyppl.models.recovery import RecoveryEBM
from energyppl.models.unet import UNetInitializer

__all__ = [
    "EBM",
    "ConvEnergy",
    "JointEBM",
    "LinearMeasurement",
    "MLPEnergy",
    "MLPInitializer",
    "MultiscaleEBM",
    "RecoveryEBM",
    "UNetInitializer",
    "measured",
    "mixture",
    "product",
]

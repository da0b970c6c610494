"""Energy and initializer networks."""

from energyppl.models.networks.averaged import AveragedEnergy
from energyppl.models.networks.conv import ConvEnergy
from energyppl.models.networks.mlp import MLPEnergy
from energyppl.models.networks.mlp_initializer import MLPInitializer
from energyppl.models.networks.unet import UNetInitializer
from energyppl.models.networks.unet_energy import UNetEnergy

__all__ = ["AveragedEnergy", "ConvEnergy", "MLPEnergy", "MLPInitializer", "UNetEnergy", "UNetInitializer"]

"""Every network in one table, and settings of small ones of images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from energyppl.models.networks.conv import ConvEnergy
from energyppl.models.networks.mlp import MLPEnergy
from energyppl.models.networks.mlp_initializer import MLPInitializer
from energyppl.models.networks.unet import UNetInitializer

SHAPE = (1, 8, 8)

SMALL: dict[str, Any] = {"width": 8, "levels": 5, "classes": 3}

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def stirred(net: Any) -> Any:
    """With other weights than the initial ones, of which many are zero."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def tiny_drl(**options: Any) -> ConvEnergy:
    return ConvEnergy.drl_cifar10(width=8, blocks=1, **options)


CONV: dict[str, Callable[[], ConvEnergy]] = {
    "plain": lambda: ConvEnergy(SHAPE),
    "classes": lambda: ConvEnergy(SHAPE, classes=4),
    "spectral norm": lambda: ConvEnergy(SHAPE, spectral_norm=True),
    "unconfined": lambda: ConvEnergy(SHAPE, confinement=0.0, output_scale=torch.linspace(3.0, 1.0, 64)),
    "drl": tiny_drl,
    "cdrl": lambda: ConvEnergy.cdrl_cifar10(width=8, blocks=1),
}


# A new network is one line: the network, and its event shape.
NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "conv": lambda: (ConvEnergy(SHAPE, **SMALL), SHAPE),
    "conv, spectral": lambda: (ConvEnergy(SHAPE, spectral_norm=True, **SMALL), SHAPE),
    "drl": lambda: (tiny_drl(levels=5, classes=3), (3, 32, 32)),
    "cdrl": lambda: (ConvEnergy.cdrl_cifar10(5, width=8, blocks=1, classes=3), (3, 32, 32)),
    "mlp": lambda: (MLPEnergy((3, 2), hidden=16, levels=5, classes=3), (3, 2)),
    "mlp initializer": lambda: (
        MLPInitializer((3, 2), hidden=16, levels=5, classes=3, learn_scale=True),
        (3, 2),
    ),
    "mlp initializer of numbers": lambda: (MLPInitializer((), hidden=16, levels=5, classes=3), ()),
    "u-net": lambda: (UNetInitializer(SHAPE, attention=(4,), learn_scale=True, **SMALL), SHAPE),
    "u-net, cdrl": lambda: (UNetInitializer.cdrl_cifar10(5, width=8, blocks=1, classes=3).eval(), (3, 32, 32)),
}

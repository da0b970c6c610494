"""Settings of small image networks."""

from collections.abc import Callable
from typing import Any

import torch

from energyppl.models.networks.conv import ConvEnergy

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

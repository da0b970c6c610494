"""Devices of potentials and distributions, and points moved to them."""

import torch
from torch import Tensor

from energyppl.autodiff.structure import Untraceable, structure

__all__ = []


def device_of(owner: object) -> torch.device | None:
    """Find the device of a potential or distribution: the one that it names, or that of what it holds off the CPU.

    Returns:
        The device; None if it can't be told, since what is held on the CPU is often converted to the points.
    """
    named = getattr(owner, "device", None)
    if isinstance(named, torch.device):
        return named
    try:
        parts = structure(owner)
    except Untraceable:
        return None
    held = (*parts.tensors, *(t for module in parts.modules for t in (*module.parameters(), *module.buffers())))
    return next((t.device for t in held if t.device.type != "cpu"), None)


def beside(owner: object, x: Tensor) -> Tensor:
    """Move points to the device of a potential or distribution, as far as that can be told."""
    device = device_of(owner)
    return x if device is None else x.to(device)

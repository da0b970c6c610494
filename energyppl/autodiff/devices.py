"""Devices of models, potentials and distributions, and points moved to them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from energyppl._checks import check_kind
from energyppl.autodiff.structure import Untraceable, structure
from energyppl.errors import InvalidInput, first_line

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


def move_to(model: nn.Module, device: str | torch.device) -> None:
    """Move a model to a device.

    Raises:
        InvalidInput: if there is no such device here.
    """
    with _usable(device):
        model.to(device)


def check_device(device: str | torch.device) -> None:
    """Require a device that can be used here.

    Raises:
        InvalidInput: if there is no such device.
    """
    with _usable(device):
        torch.empty(0, device=device)


@contextmanager
def _usable(device: str | torch.device) -> Iterator[None]:
    check_kind("device", device, str | int | torch.device)
    try:
        yield
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = first_line(error)
        raise InvalidInput(
            f"device {str(device)!r} can't be used ({reason}): leave it out to stay where it is"
        ) from error

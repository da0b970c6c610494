"""What a model asks of its network, and how it integrates its energy in one and two dimensions."""

import torch
from torch import Tensor, nn

from energyppl._checks import shape_text
from energyppl.errors import InvalidInput, QuadratureError
from energyppl.potential import Potential
from energyppl.quadrature import Grid, Quadrature, quadrature

__all__ = ["integrate_widening", "needs_level_for_each"]


def needs_level_for_each(net: nn.Module, levels: int, like: Tensor) -> bool:
    """Try the network on points shaped as ``like``, ``(*event)``: does it want a level for each of many points?

    Raises:
        InvalidInput: if it returns another shape or non-finite values, or has fewer levels.
    """
    top = levels - 1
    level = torch.tensor([0, top, top], device=like.device)
    points = torch.zeros(3, *like.shape).to(like)
    with torch.no_grad():
        try:
            energy = net(points, level)
        except IndexError as error:
            raise InvalidInput(
                f"the network does not take levels up to {top} ({error}): build it with levels={top + 1} or more"
            ) from error
        except (TypeError, RuntimeError, ValueError) as error:
            raise InvalidInput(
                f"the network must take points {shape_text(points.shape)} and whole levels (3,); it raised: {error}"
            ) from error
    if not isinstance(energy, Tensor) or energy.shape != (3,):
        came = shape_text(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
        raise InvalidInput(
            f"the network must return one energy for each point, shape (3,) for 3 points; got {came}: "
            "sum or squeeze the last dimensions in its forward"
        )
    if not bool(torch.isfinite(energy).all()):
        raise InvalidInput(f"the network must return finite energies; got {energy.tolist()} at the origin")

    with torch.no_grad():
        try:  # one level for all points is cheaper, if the network takes it
            return bool(net(points, level[0]).shape != (3,))
        except (TypeError, RuntimeError, ValueError, IndexError):
            return True


def integrate_widening(potential: Potential, dtype: torch.dtype) -> Quadrature:
    """The integral over a square as narrow as the mass allows, since the grid is finer for it.

    Raises:
        QuadratureError: if 64 is not wide enough.
    """
    size = potential.event_shape[0]
    for half_width in (4.0, 8.0, 16.0, 32.0, 64.0):
        grid = Grid((-half_width,) * size, (half_width,) * size, (256,) * size)
        try:
            return quadrature(potential, grid, dtype=dtype)
        except QuadratureError as error:
            reason = error
    raise reason

"""Whether an energy rises far away as it must for exp(−U) to have a finite integral."""

import math

import torch
from torch import Tensor

from energyppl.autodiff.gradient import eager_energy
from energyppl.errors import NotNormalizable
from energyppl.potentials.algebra import Potential

__all__ = ["require_normalizable"]

_NEAR, _FAR = 1e3, 1e6  # distances, in spreads of the points
_MAX_AXES = 64
_MARGIN = 0.05  # of the slope: rounding, and tails that have not quite settled


def require_normalizable(potential: Potential, x: Tensor) -> None:
    """Look along rays from the middle of points, and along coordinates from each, whether the energy rises fast enough.

    For the integral to be finite, U must rise faster than d log r along almost all rays, and faster than log r along
    almost all lines parallel to an axis (Fubini).  Both are judged from 1,000 to a million spreads away, so what
    happens nearer is not mistaken for a tail.  It is a check for what goes wrong in practice, not a proof.

    Args:
        potential: the energy U.
        x: points about where its mass is, ``(n, *event)``.

    Raises:
        NotNormalizable: if the energy doesn't rise so.
    """
    shape, rows = potential.event_shape, x.reshape(len(x), -1)
    dim, middle = rows.shape[1], rows.mean(0)
    spread = float((rows - middle).square().mean().sqrt()) or 1.0
    directions = torch.nn.functional.normalize(rows - middle + 1e-3 * spread * torch.randn_like(rows), dim=1)
    slope = _slope(potential, middle.expand_as(rows), directions, spread, shape)
    if _most(slope < dim - _MARGIN):
        raise NotNormalizable(_words(float(slope.nan_to_num(posinf=1e9).median()), dim, "in all directions"))
    some = rows[: max(8, min(len(rows), 64))]
    for axis in range(dim) if dim <= _MAX_AXES else torch.randperm(dim)[:_MAX_AXES].tolist():
        for sign in (1.0, -1.0):
            along = torch.zeros_like(some)
            along[:, axis] = sign
            slope = _slope(potential, some, along, spread, shape)
            if _most(slope < 1.0 - _MARGIN):
                place = f"along coordinate {axis}, towards {'plus' if sign > 0 else 'minus'} infinity"
                raise NotNormalizable(_words(float(slope.nan_to_num(posinf=1e9).median()), 1, place))


def _slope(potential: Potential, begin: Tensor, direction: Tensor, spread: float, shape: torch.Size) -> Tensor:
    """DU / d log r far away, ``(n,)``; +∞ where the energy is infinite, or not a number, by then."""
    ends = [(begin + radius * spread * direction).reshape(-1, *shape) for radius in (_NEAR, _FAR)]
    (near,), (far,) = (eager_energy(potential, end) for end in ends)
    slope = (far - near).double() / math.log(_FAR / _NEAR)
    return torch.where(torch.isnan(slope) | (far == math.inf), math.inf, slope)


def _most(failed: Tensor) -> bool:
    return bool(failed.double().mean() > 0.5)


def _words(slope: float, needed: int, where: str) -> str:
    return (
        f"the energy is not normalizable: {where} it rises by {slope:.3g} nats for each e-fold of the distance, and "
        f"must rise by more than {needed} for exp(−U) to have a finite integral. Add a confining term such as ½|x|², "
        "or check the energy's sign"
    )

"""Values worked out from a model's weights and kept until they change."""

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar
from zlib import crc32

import torch
from torch import Tensor, nn

from energyppl.autodiff.private import module_tables
from energyppl.errors import QuadratureError
from energyppl.integration.quadrature import Grid, GridOptions, Quadrature, quadrature
from energyppl.potentials.algebra import Potential

__all__ = ["LevelIntegrals", "WeightKeyedCache"]

T = TypeVar("T")

_NUMPY = frozenset({torch.float32, torch.float64, torch.bool, torch.int64})  # which numpy knows too


class WeightKeyedCache(Generic[T]):
    """Values worked out from a model's weights, worked out again when they have changed."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Hashable, T]] = {}

    def known(self, model: Any, key: Hashable) -> T | None:
        """Return the value of ``key``, or None if it is not known for these weights."""
        known = self._known.get(key)
        return known[1] if known is not None and known[0] == weights_key(model) else None

    def keep(self, model: Any, key: Hashable, value: T) -> T:
        """Keep and return a value of these weights."""
        self._known[key] = (weights_key(model), value)
        return value

    def get(self, model: Any, key: Hashable, work: Callable[[], T]) -> T:
        """Return the value of ``key``, by ``work()`` if it is not known for these weights."""
        known = self.known(model, key)
        return self.keep(model, key, work()) if known is None else known  # keyed after the work: it may tune step sizes


def weights_key(model: nn.Module) -> Hashable:
    """Return what differs between models of other weights, buffers, layers or modes (training or not).

    Every byte counts, by CRC-32: torch's own version counters don't tell, since its fused optimizers and writes to
    ``.data`` leave them as they are, and sums or norms miss a change of sign or of order.
    """
    key: list[Hashable] = []
    for module in model.modules():
        parameters, buffers, _ = module_tables(module)
        key += [id(module), module.training]
        key += [_crc(tensor) for table in (parameters, buffers) for tensor in table.values() if tensor is not None]
    return tuple(key)


def _crc(tensor: Tensor) -> int:
    tensor = tensor.detach()
    if tensor.dtype in _NUMPY and tensor.device.type == "cpu" and tensor.is_contiguous():
        return crc32(tensor.numpy().data)
    return crc32(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class LevelIntegrals:
    """The integrals of a model's levels in standardized coordinates."""

    def __init__(self) -> None:
        self._known: WeightKeyedCache[Quadrature] = WeightKeyedCache()

    def quadrature(self, model: Any, level: int) -> Quadrature:
        """Return the integral of a level, up to two dimensions."""
        return self._known.get(model, level, lambda: _integrate_widening(model.potential(level), model.loc.dtype))

    def quantiles(self, model: Any, level: int) -> Tensor:
        """Return grid nodes that stand for equal shares of a level's mass, ``(16384, *event)``: no noise."""
        count = 16_384
        found = self.quadrature(model, level)
        mass = found.density.flatten().cumsum(0)
        index = torch.searchsorted(mass, mass[-1] * (torch.arange(count) + 0.5) / count).clamp(max=len(mass) - 1)
        places = torch.unravel_index(index, found.grid.points)
        return torch.stack([axis[i] for axis, i in zip(found.grid.axes(), places, strict=True)], -1).to(model.loc)


def _integrate_widening(potential: Potential, dtype: torch.dtype) -> Quadrature:
    """Integrate over a square as narrow as the mass allows, since the grid is finer for it.

    Raises:
        QuadratureError: if 64 is not wide enough.
    """
    size = potential.event_shape[0]
    for half_width in (4.0, 8.0, 16.0, 32.0, 64.0):
        grid = Grid((-half_width,) * size, (half_width,) * size, (256,) * size)
        try:
            return quadrature(potential, grid, GridOptions(dtype=dtype))
        except QuadratureError as error:
            reason = error
    raise reason

"""What a model asks of its network, and how it integrates its energy in one and two dimensions."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from energyppl._checks import check_whole, shape_text
from energyppl.autodiff.structure import Watch
from energyppl.errors import InvalidInput, QuadratureError
from energyppl.integration.quadrature import Grid, Quadrature, quadrature
from energyppl.potentials.algebra import Potential
from energyppl.schedule import NoiseSchedule

__all__ = [
    "LevelIntegrals",
    "Remembered",
    "check_label",
    "check_parts",
    "event_shape_of",
    "handed_a_level",
    "needs_level_for_each",
]


def check_parts(net: object, schedule: object, event_shape: Sequence[int] | None) -> torch.Size:
    """The event shape of a model's parts, which must be a network and a schedule."""
    if not isinstance(schedule, NoiseSchedule):
        raise InvalidInput(f"schedule must be a NoiseSchedule; got {type(schedule).__name__}")
    return event_shape_of(net, event_shape)


def event_shape_of(net: object, event_shape: Sequence[int] | None) -> torch.Size:
    """The event shape that is given, or that a network names."""
    if not isinstance(net, nn.Module):
        raise InvalidInput(f"net must be a torch module net(x, level); got {type(net).__name__}")
    shape = event_shape if event_shape is not None else getattr(net, "event_shape", None)
    if shape is None:
        raise InvalidInput("the network has no event_shape: pass event_shape=(…), the shape of one data point")
    return torch.Size(shape)


def check_label(net: nn.Module, label: int | Tensor, guidance: float) -> Tensor:
    """Classes of a network as whole numbers; the arguments are those of ``RecoveryEBM.given``."""
    classes = int(getattr(net, "classes", 0))
    if classes == 0:
        raise InvalidInput(
            f"this model's network, {type(net).__name__}, has no classes: build it with classes=… and train it with "
            "fit(…, labels=…)"
        )
    try:
        labels = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"label must be a whole number or a tensor of them; got {label!r}: {classes} means no class"
        ) from error
    check_whole("label", labels)
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= classes):
        raise InvalidInput(
            f"label must lie between 0 and {classes - 1}, or be {classes} for no class; got {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    if not math.isfinite(guidance):
        raise InvalidInput(f"guidance must be finite; got {guidance}")
    return labels.long()


class _Model(Protocol):
    """What is integrated."""

    net: nn.Module
    loc: Tensor

    def potential(self, level: int) -> Potential: ...

    def checksum(self) -> str: ...


T = TypeVar("T")


class Remembered(Generic[T]):
    """What was worked out from a model's weights, worked out again when they have changed."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[str, Watch, T]] = {}

    def get(self, model: _Model, key: Hashable, work: Callable[[], T]) -> T:
        """The value of ``key``, by ``work()`` if it is not known."""
        known = self._known.get(key)
        if known is None or known[0] != model.checksum() or known[1].changed():
            value = work()
            known = self._known[key] = (model.checksum(), Watch([model.net]), value)  # sampling sets step sizes
        return known[2]


class LevelIntegrals:
    """The integrals of a model's levels in standardised coordinates."""

    def __init__(self) -> None:
        self._known: Remembered[Quadrature] = Remembered()

    def quadrature(self, model: _Model, level: int) -> Quadrature:
        """The integral of a level, up to two dimensions."""
        return self._known.get(model, level, lambda: _integrate_widening(model.potential(level), model.loc.dtype))

    def quantiles(self, model: _Model, level: int, count: int = 16_384) -> Tensor:
        """Grid nodes that stand for equal shares of a level's mass, ``(count, *event)``: no noise."""
        found = self.quadrature(model, level)
        mass = found.density.flatten().cumsum(0)
        index = torch.searchsorted(mass, mass[-1] * (torch.arange(count) + 0.5) / count).clamp(max=len(mass) - 1)
        places = torch.unravel_index(index, found.grid.points)
        return torch.stack([axis[i] for axis, i in zip(found.grid.axes(), places, strict=True)], -1).to(model.loc)


def needs_level_for_each(net: nn.Module, levels: int, like: Tensor) -> bool:
    """Try the network on points shaped as ``like``, ``(*event)``: does it want a level for each of many points?

    Raises:
        InvalidInput: if it returns another shape or non-finite values, or has fewer levels.
    """
    top = levels - 1
    level = torch.tensor([0, top, top], device=like.device)
    points = torch.zeros(3, *like.shape).to(like)
    try:
        _tried(net, points, level)
    except IndexError as error:
        raise InvalidInput(
            f"the network does not take levels up to {top} ({error}): build it with levels={top + 1} or more"
        ) from error
    except (TypeError, RuntimeError, ValueError) as error:
        raise InvalidInput(
            f"the network must take points {shape_text(points.shape)} and whole levels (3,); it raised: {error}"
        ) from error

    with torch.no_grad():
        try:  # one level for all points is cheaper, if the network takes it
            return bool(net(points, level[0]).shape != (3,))
        except (TypeError, RuntimeError, ValueError, IndexError):
            return True


class _WithoutLevel(nn.Module):
    """A network that takes no level, where one is handed on."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        energy: Tensor = self.net(x)
        return energy


def handed_a_level(net: nn.Module, like: Tensor) -> nn.Module:
    """The network as one that takes points and a level, whether it looks at the level or not.

    It is tried on points shaped as ``like``, ``(*event)``.

    Raises:
        InvalidInput: if it takes points neither alone nor with a level, or returns another shape or non-finite values.
    """
    return net if _takes_level(net, like) else _WithoutLevel(net)


def _takes_level(net: nn.Module, like: Tensor) -> bool:
    """Try the network on points shaped as ``like``, ``(*event)``: does it want a level beside them?

    Raises:
        InvalidInput: if it takes points neither alone nor with a level, or returns another shape or non-finite values.
    """
    points = torch.zeros(3, *like.shape).to(like)
    try:
        _tried(net, points)
        return False
    except TypeError:
        pass
    except (RuntimeError, ValueError) as error:
        raise InvalidInput(f"the network must take points {shape_text(points.shape)}; it raised: {error}") from error
    try:
        _tried(net, points, torch.tensor(0, device=like.device))
    except (TypeError, RuntimeError, ValueError, IndexError) as error:
        raise InvalidInput(
            f"the network must take points {shape_text(points.shape)}, alone or with a level; it raised: {error}"
        ) from error
    return True


def _tried(net: nn.Module, *arguments: Tensor) -> None:
    """Require finite energies, ``(3,)``, of three points; the network's own errors come through."""
    with torch.no_grad():
        energy = net(*arguments)
    if not isinstance(energy, Tensor) or energy.shape != (3,):
        came = shape_text(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
        raise InvalidInput(
            f"the network must return one energy for each point, shape (3,) for 3 points; got {came}: "
            "sum or squeeze the last dimensions in its forward"
        )
    if not bool(torch.isfinite(energy).all()):
        raise InvalidInput(f"the network must return finite energies; got {energy.tolist()} at the origin")


def _integrate_widening(potential: Potential, dtype: torch.dtype) -> Quadrature:
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

"""Networks as potentials: their coordinates, noise level, condition and guidance."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from energyppl._checks import (
    check_event,
    check_fields,
    check_kind,
    check_number,
    check_positive,
    check_shape,
    check_whole,
)
from energyppl.autodiff.private import is_dispatched, is_transformed
from energyppl.errors import InvalidInput

__all__ = ["AtLevel", "AtLogSNR", "EnergyNetwork", "energy_at_levels"]

_AT_ONCE = 4096  # points where no gradient is asked for; layers of 65,536 leave the cache, and take 2.7 times as long


class EnergyNetwork(Protocol):
    """The contract of a network: ``net(x, level[, condition]) -> energies``.  Any torch module that keeps it will do.

    Points come standardized, with about unit variance at every noise level; energies are in nats, low where data are.
    There is one batch dimension, ``(n, *event)``, whatever batch was asked for; only contexts keep theirs.
    A network of one energy, for ``EBM`` or ``MultiscaleEBM``, may leave the level out.  One with an attribute
    ``continuous = True`` is given log-SNRs, floating point, in place of whole levels; one with an attribute ``classes``
    is given whole labels as the condition, of which ``classes`` itself means "no class"; one with an attribute
    ``context_shape`` is given contexts, floating point, ``(*context_shape)`` or ``(*batch, *context_shape)``.

    >>> class Bell(torch.nn.Module):
    ...     event_shape = torch.Size((2,))
    ...     def forward(self, x, level):
    ...         return 0.5 * (x * x).sum(-1)
    >>> ep.RecoveryEBM(Bell(), ep.NoiseSchedule.cosine(levels=3)).marginal().energy(torch.zeros(4, 2)).shape
    torch.Size([4])
    """

    event_shape: torch.Size  # of one point; or pass event_shape=… to the model

    def __call__(self, x: Tensor, level: Tensor, *condition: Tensor) -> Tensor:
        """Evaluate energies ``(*batch,)`` of points ``(*batch, *event)`` at levels ``()`` or ``(*batch,)``."""
        ...


@dataclass(frozen=True, eq=False)
class AtLevel:
    """A network that is told the noise level as a potential: ``net((x − loc) / scale, level)``.

    With a condition it is ``(1 + w) net(…, level, condition) − w net(…, level)``, classifier-free guidance (Ho &
    Salimans 2022).

    Args:
        net: maps points ``(*batch, *event)`` and levels ``(*batch,)`` or ``()`` to energies ``(*batch,)`` in
            nats; with a condition it is the third argument.
        level: whole levels, one for all points, ``()``, or one for each, ``(*batch,)``.
        event_shape: shape of one point.
        loc: where the points are centred, a number or a tensor that broadcasts against them.
        scale: the points' standard deviation, likewise.
        each: whether the network is given a level for each point even where one serves them all.
        condition: the class of all points, a whole number ``()``, or of each, ``(*batch,)``; or contexts, floating
            point, of all points or of each.  None for none.
        guidance: the weight w; 0 is the condition's own energy.
        log_snr: of each whole level, ``(levels,)``, for a network that is continuous in the noise level: it is given
            log-SNRs in place of whole levels, by its ``at_levels(points, level, log_snr)`` if it has one.

    Raises:
        InvalidInput: if ``net`` can't be called, ``level`` is no tensor of whole numbers, or ``condition`` is neither
            that nor floating point.

    Example:
        >>> net = ep.MLPEnergy((2,), levels=3)
        >>> sharp = ep.potentials.AtLevel(net, torch.tensor(0), torch.Size((2,)))
        >>> sharp(torch.randn(5, 2)).shape
        torch.Size([5])
    """

    net: Callable[..., Tensor]
    level: Tensor
    event_shape: torch.Size
    loc: float | Tensor = 0.0
    scale: float | Tensor = 1.0
    each: bool = False
    condition: Tensor | None = None
    guidance: float = 0.0
    log_snr: Tensor | None = None

    def __post_init__(self) -> None:
        # Values are not looked at: one is made at every training step, and reading them would make a GPU wait.
        if isinstance(self.net, type) or not callable(self.net):
            raise InvalidInput(
                f"net must map (points, level) to energies; got {type(self.net).__name__}: pass a module"
            )
        for name, value in (("loc", self.loc), ("scale", self.scale)):
            check_kind(name, value, float | Tensor)
            if isinstance(value, Tensor) and value.is_complex():
                raise InvalidInput(f"{name} must be real; got {value.dtype}: pass its real part")
        if not isinstance(self.loc, Tensor):
            check_number("loc", self.loc)
        if not isinstance(self.scale, Tensor):
            check_positive("scale", self.scale)
        check_number("guidance", self.guidance)
        check_whole("level", self.level)
        if self.condition is not None and not (
            isinstance(self.condition, Tensor) and self.condition.dtype.is_floating_point
        ):
            check_whole("condition", self.condition)
        object.__setattr__(self, "event_shape", check_shape("event_shape", self.event_shape))

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of the points ``x``."""
        batch = x.shape[: x.dim() - len(self.event_shape)]
        level = self.level.expand(batch) if self.each or self.level.dim() else self.level
        points, condition = (x - self.loc) / self.scale, self.condition
        # A convolution takes one batch dimension and no other number of them.
        flat = len(batch) != 1 and not _is_context(condition)
        if flat:
            points = points.reshape(batch.numel(), *self.event_shape)
            level = level.reshape(batch.numel()) if level.dim() or self.each else level
            condition = condition.expand(batch).reshape(-1) if condition is not None and condition.dim() else condition
        energy = self._in_parts(points, level, condition)
        if not flat:
            return energy
        return energy.unflatten(0, batch) if batch else energy.squeeze(0)

    def _in_parts(self, points: Tensor, level: Tensor, condition: Tensor | None) -> Tensor:
        watched = torch.is_grad_enabled() or is_dispatched() or is_transformed()
        if len(points) <= _AT_ONCE or watched or _is_context(condition):
            return self._guided(points, level, condition)
        energies = []
        for i in range(0, len(points), _AT_ONCE):
            part = slice(i, i + _AT_ONCE)
            own = condition[part] if condition is not None and condition.dim() else condition
            energies.append(self._guided(points[part], level[part] if level.dim() else level, own))
        return torch.cat(energies)

    def _guided(self, points: Tensor, level: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None:
            return self._ask(points, level)
        own = self._ask(points, level, _beside(points, condition))
        if self.guidance == 0.0:
            return own
        return (1.0 + self.guidance) * own - self.guidance * self._ask(points, level)

    def _ask(self, points: Tensor, level: Tensor, *condition: Tensor) -> Tensor:
        if self.log_snr is None:
            return self.net(points, level, *condition)
        return energy_at_levels(self.net, points, level, self.log_snr, *condition)


def energy_at_levels(
    net: Callable[..., Tensor], points: Tensor, level: Tensor, log_snr: Tensor, *condition: Tensor
) -> Tensor:
    """Evaluate a continuous network at whole levels of a table of log-SNRs, by its own ``at_levels`` if it has one."""
    at_levels = getattr(net, "at_levels", None)
    if at_levels is None:
        energy: Tensor = net(points, log_snr.take(level.long()), *condition)
    else:
        energy = at_levels(points, level, log_snr, *condition)
    return energy


@dataclass(frozen=True, eq=False)
class AtLogSNR:
    """A network that is continuous in the noise level as a potential, at any log-SNR: ``net(x, log_snr)``.

    Args:
        net: maps points ``(*batch, *event)`` and log-SNRs ``(*batch,)`` or ``()`` to energies ``(*batch,)`` in nats.
        log_snr: ``()`` or ``(*batch,)``.
        event_shape: shape of one point.
        condition: as for :class:`AtLevel`.

    Example:
        >>> net = ep.MLPEnergy((2,), continuous=True)
        >>> ep.potentials.AtLogSNR(net, torch.tensor(1.5), torch.Size((2,)))(torch.randn(5, 2)).shape
        torch.Size([5])
    """

    net: Callable[..., Tensor]
    log_snr: Tensor
    event_shape: torch.Size
    condition: Tensor | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_event("log_snr", self.log_snr, ())
        object.__setattr__(self, "event_shape", check_shape("event_shape", self.event_shape))

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of the points ``x``."""
        if self.condition is None:
            return self.net(x, self.log_snr)
        return self.net(x, self.log_snr, _beside(x, self.condition))


def _is_context(condition: Tensor | None) -> bool:
    return condition is not None and condition.dtype.is_floating_point


def _beside(x: Tensor, condition: Tensor) -> Tensor:
    """Return a condition on the points' device, contexts in their dtype."""
    return condition.to(x) if _is_context(condition) else condition.to(x.device)

"""Checks of a model's network: its shapes, its levels and its labels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from energyppl._checks import check_shape, check_whole, shape_text
from energyppl.errors import InvalidInput
from energyppl.models._cache import KnownEnergies
from energyppl.potentials.network import AtLevel
from energyppl.schedule import NoiseSchedule, whole_levels

__all__ = ["OneEnergy", "check_label", "check_parts", "event_shape_of", "handed_a_level", "needs_level_for_each"]


def check_parts(net: object, schedule: object, event_shape: Sequence[int] | None) -> torch.Size:
    """Return the event shape of a model's parts, which must be a network and a schedule."""
    if not isinstance(schedule, NoiseSchedule):
        raise InvalidInput(f"schedule must be a NoiseSchedule; got {type(schedule).__name__}")
    return event_shape_of(net, event_shape)


def event_shape_of(net: object, event_shape: Sequence[int] | None) -> torch.Size:
    """Return the event shape that is given, or that a network names."""
    if not isinstance(net, nn.Module):
        raise InvalidInput(f"net must be a torch module net(x, level); got {type(net).__name__}")
    shape = event_shape if event_shape is not None else getattr(net, "event_shape", None)
    if shape is None:
        raise InvalidInput("the network has no event_shape: pass event_shape=(…), the shape of one data point")
    return check_shape("event_shape", shape)


def check_label(net: nn.Module, label: int | Tensor, guidance: float) -> Tensor:
    """Return classes of a network as whole numbers; the arguments are those of ``RecoveryEBM.given``."""
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


def needs_level_for_each(
    net: nn.Module, levels: int, like: Tensor, log_snr: Tensor | None = None, condition: tuple[Tensor, ...] = ()
) -> bool:
    """Try the network on points shaped as ``like``, ``(*event)``: does it want a level for each of many points?

    Args:
        net: the network.
        levels: how many it should have.
        like: a point.
        log_snr: of each level, for a network that takes log-SNRs in place of whole levels.
        condition: what it is told of three points beside their levels, ``(3, *condition)``, if anything.

    Raises:
        InvalidInput: if it returns another shape or non-finite values, or has fewer levels.
    """
    top = levels - 1
    level = torch.tensor([0, top, top], device=like.device)
    if log_snr is not None:  # the network takes log-SNRs in place of whole levels
        level = log_snr[level]
    points = torch.zeros(3, *like.shape).to(like)
    try:
        _tried(net, points, level, *condition)
    except IndexError as error:
        raise InvalidInput(
            f"the network does not take levels up to {top} ({error}): build it with levels={top + 1} or more"
        ) from error
    except (TypeError, RuntimeError, ValueError) as error:
        raise InvalidInput(
            f"the network must take points and their noise levels, as forward(self, x, level) does, here "
            f"{shape_text(points.shape)} and {'log-SNRs' if log_snr is not None else 'whole levels'} (3,)"
            f"{''.join(f' and contexts {shape_text(c.shape)}' for c in condition)}; it raised: {error}"
        ) from error

    with torch.no_grad():
        try:  # one level for all points is cheaper, if the network takes it
            return bool(net(points, level[0], *condition).shape != (3,))
        except (TypeError, RuntimeError, ValueError, IndexError):
            return True


class OneEnergy:
    """A model of one energy, whose network takes a level or doesn't."""

    event_shape: torch.Size
    net: nn.Module
    loc: Tensor
    _energies: KnownEnergies
    _trial: tuple[nn.Module, nn.Module] | None = None

    def _network(self) -> nn.Module:
        """Return the network as one that takes a level: tried anew when it was replaced."""
        if self._trial is None or self._trial[0] is not self.net:
            # In a tuple, so that neither becomes a second module of the model.
            self._trial = (self.net, handed_a_level(self.net, self.loc))
        return self._trial[1]

    def _at_level_0(self, level: int | Tensor, who: str) -> AtLevel:
        return self._energies.get(self, level, lambda: self._checked_at_level_0(level, who))

    def _checked_at_level_0(self, level: int | Tensor, who: str) -> AtLevel:
        whole = whole_levels(level).to(self.loc.device)
        # A number is compared as it is: where a Pyro model is traced, no tensor's value may be read.
        if level != 0 if isinstance(level, int) else bool((whole != 0).any()):
            raise InvalidInput(f"{who} has level 0 only; got {whole.tolist()}: RecoveryEBM and JointEBM have levels")
        return AtLevel(self._network(), whole, self.event_shape)


class _WithoutLevel(nn.Module):
    """A network that takes no level, where one is handed on."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        energy: Tensor = self.net(x)
        return energy


class _WithoutNoise(nn.Module):
    """A network that is continuous in the noise level, asked for the level without noise."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        energy: Tensor = self.net(x, torch.full(level.shape, 20.0, dtype=x.dtype, device=x.device))
        return energy


def handed_a_level(net: nn.Module, like: Tensor) -> nn.Module:
    """Return the network as one that takes points and a level, whether it looks at the level or not.

    It is tried on points shaped as ``like``, ``(*event)``.

    Raises:
        InvalidInput: if it takes points neither alone nor with a level, or returns another shape or non-finite values.
    """
    if getattr(net, "continuous", False):
        return _WithoutNoise(net)
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

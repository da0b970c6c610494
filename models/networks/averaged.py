"""The mean of several networks' energies, as one network."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from energyppl._checks import check_shape
from energyppl.errors import InvalidInput
from energyppl.models.networks.recipe import Rebuildable
from energyppl.potentials.bases import Base
from energyppl.potentials.network import energy_at_levels

__all__ = ["AveragedEnergy"]


class AveragedEnergy(Rebuildable, nn.Module):
    """The mean of several networks' energies: the geometric mean of their densities (logarithmic pool; Heskes 1998).

    By Hölder's inequality log Z of the mean energy is at most the mean of their log Z's.  The difference is what the
    log density, normalized, is above the mean of theirs, and it is the same at every point.  An evaluation costs as
    much as one of each network.

    Args:
        networks: modules ``net(x, level)`` of points of the same shape, all continuous in the noise level or none, with
            as many classes, and without contexts.

    Raises:
        InvalidInput: for no network, something that is none, or networks that don't fit together.

    Example:
        >>> one, other = ep.MLPEnergy((3,)), ep.MLPEnergy((3,))
        >>> net, x, log_snr = ep.models.AveragedEnergy([one, other]), torch.randn(5, 3), torch.tensor(1.0)
        >>> torch.allclose(net(x, log_snr), 0.5 * (one(x, log_snr) + other(x, log_snr)))
        True
    """

    event_shape: torch.Size

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not isinstance(networks, Sequence) or not networks or not all(isinstance(n, nn.Module) for n in networks):
            raise InvalidInput(f"networks must be a list of one torch module or more; got a {type(networks).__name__}")
        for index, network in enumerate(networks):
            self._require_alike(index, network, networks[0])
        shape = _event_shape(networks[0])
        if shape is not None:
            self.event_shape = shape
        self.continuous = bool(getattr(networks[0], "continuous", False))
        self.classes = int(getattr(networks[0], "classes", 0))
        self.networks = nn.ModuleList(networks)

    @staticmethod
    def _require_alike(index: int, network: nn.Module, first: nn.Module) -> None:
        if getattr(network, "context_shape", None) is not None:
            raise InvalidInput(f"network {index} is told contexts, of which an average is none: pass others")
        if _event_shape(network) != _event_shape(first):
            raise InvalidInput(f"networks must have the same event_shape; those of networks 0 and {index} differ")
        continuous = bool(getattr(first, "continuous", False))
        if bool(getattr(network, "continuous", False)) != continuous:
            raise InvalidInput(
                f"networks must all take log-SNRs or all whole levels; network {index} is "
                f"{'not ' if continuous else ''}continuous, unlike network 0"
            )
        if int(getattr(network, "classes", 0)) != int(getattr(first, "classes", 0)):
            raise InvalidInput(f"networks must have as many classes; those of networks 0 and {index} differ")

    def forward(self, x: Tensor, level: Tensor, *condition: Tensor) -> Tensor:
        """Evaluate energies in nats, ``(*batch,)``, of points ``(*batch, *event)``; the rest as each network takes it.

        Args:
            x: points, ``(*batch, *event)``.
            level: whole levels or log-SNRs, ``()`` or ``(*batch,)``.
            condition: classes, likewise, if any.
        """
        return self._mean([network(x, level, *condition) for network in self.networks])

    def at_levels(self, x: Tensor, level: Tensor, log_snr: Tensor, *condition: Tensor) -> Tensor:
        """Evaluate continuous networks at whole levels of a table of log-SNRs, as :meth:`MLPEnergy.at_levels` does."""
        return self._mean([energy_at_levels(network, x, level, log_snr, *condition) for network in self.networks])

    def fit_base(self, rows: Tensor) -> None:
        """Fit the bases of those networks that have one, to standardized rows ``(n, *event)``."""
        for network in self.networks:
            fit_base: Any = getattr(network, "fit_base", None)
            if fit_base is not None:
                fit_base(rows)

    def noisiest_base(self) -> Base | None:
        """Return the first network's density at λ_min, where paths of log Z begin; None for about N(0, I)."""
        known: Any = getattr(self.networks[0], "noisiest_base", None)
        return None if known is None else cast("Base | None", known())

    def _mean(self, energies: list[Tensor]) -> Tensor:
        total = energies[0]
        for energy in energies[1:]:
            total = total + energy
        return total / len(energies)


def _event_shape(network: nn.Module) -> torch.Size | None:
    shape: Any = getattr(network, "event_shape", None)
    return None if shape is None else check_shape("event_shape", shape)

"""What models of several noise levels share: energies at every level, their densities and normalizers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from energyppl._checks import check_event
from energyppl.inference.normalizing.levels import anneal_through_levels
from energyppl.integration.estimates import LogNormalizer
from energyppl.models._network_checks import check_parts, needs_level_for_each
from energyppl.models.base import EnergyModel
from energyppl.potentials.network import AtLevel
from energyppl.schedule import NoiseSchedule


class LevelEnergies(EnergyModel):
    """Energies U(x, t) at the levels of a noise schedule; a model of them says how they are sampled.

    Args:
        net: any module ``net(x, level)``.
        schedule: the noise levels.
        event_shape: shape of one point; taken from ``net.event_shape`` if it has one.
        levels: how many have an energy; those below white noise if None.
    """

    label: Tensor | None = None  # the class or classes asked of it
    guidance: float = 0.0

    def __init__(
        self, net: nn.Module, schedule: NoiseSchedule, event_shape: Sequence[int] | None, levels: int | None = None
    ) -> None:
        super().__init__(check_parts(net, schedule, event_shape), net)
        self.schedule = schedule
        self.levels = schedule.levels if levels is None else levels
        marginal_std = schedule.marginal_std
        self._marginal_std = None if bool(torch.allclose(marginal_std, torch.ones_like(marginal_std))) else marginal_std
        self._each = needs_level_for_each(net, self.levels, self.loc)

    def diffuse(self, x0: Tensor, level: int | Tensor) -> Tensor:
        """Clean data, ``(*batch, *event)``, at a marginal of the schedule, in data coordinates."""
        check_event("x0", x0, self.event_shape)
        return self.loc + self.scale * self.schedule.diffuse(self.to_unit(x0), level)

    def potential(self, level: int | Tensor = 0) -> AtLevel:
        """The energy at one level, or at each point's own level ``(*batch,)``, in standardized coordinates."""
        self.schedule.check_level(level, marginal=self.levels > self.schedule.levels)
        level = torch.as_tensor(level, device=self.loc.device)
        scale = 1.0 if self._marginal_std is None else wide(self._marginal_std.to(self.loc)[level], self.event_shape)
        return AtLevel(self.net, level, self.event_shape, 0.0, scale, self._each, self.label, self.guidance)

    def _anneal(self, level: int, **options: Any) -> LogNormalizer:
        # The network itself sees points of unit variance.
        stops = [replace(self.potential(t), scale=1.0) for t in range(level, self.levels)]
        return anneal_through_levels(self, level, stops, float(self.schedule.marginal_std[level]), **options)


def wide(value: Tensor, event_shape: torch.Size) -> Tensor:
    """A number for each point, made broadcastable against the points."""
    return value.reshape(*value.shape, *[1] * len(event_shape))

"""EBM: one energy without noise levels, for contrastive divergence, score matching and their relatives."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_shape
from energyppl.inference.adaptation.warmup import adapt
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.normalizing.levels import anneal_through_levels
from energyppl.inference.objectives.persistent import PersistentLikelihood
from energyppl.integration.estimates import LogNormalizer
from energyppl.models._network_checks import OneEnergy, event_shape_of
from energyppl.models.base import KernelModel
from energyppl.potentials.network import AtLevel

__all__ = ["EBM"]


class EBM(OneEnergy, KernelModel):
    """``p(x) ∝ exp(−U(x))``, U a network of points of about unit variance, to which data are standardized.

    Args:
        net: any module ``net(x)``, or ``net(x, level)`` which then is asked for level 0, from points
            ``(*batch, *event)`` to energies ``(*batch,)`` in nats, low where data are.
        event_shape: shape of one point; taken from ``net.event_shape`` if it has one.
        kernel: moves chains; MALA if None.

    Raises:
        InvalidInput: if the network returns another shape or non-finite values.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> ebm.potential()(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    default_objective = PersistentLikelihood
    levels = 1
    schedule = None

    def __init__(
        self, net: nn.Module, *, event_shape: Sequence[int] | None = None, kernel: TunableKernel | None = None
    ) -> None:
        super().__init__(event_shape_of(net, event_shape), net)
        self.initial_kernel = self.kernel = MALA(0.1) if kernel is None else kernel
        self._network()  # tries it

    def potential(self, level: int | Tensor = 0) -> AtLevel:
        """Return the energy in standardized coordinates; there is only level 0."""
        return self._at_level_0(level, "an EBM")

    def sample(self, sample_shape: int | Sequence[int] = (), *, level: int = 0, steps: int = 1000) -> Tensor:
        """Return the ends of chains from N(0, I), ``(*sample_shape, *event)``: samples, if the chains are long enough.

        Args:
            sample_shape: shape of the batch.
            level: the only one there is, 0.
            steps: of each chain, the kernel's step size tuned on the way.
        """
        check_count("steps", steps)
        shape, potential = check_shape("sample_shape", sample_shape), self.potential(level)
        start = torch.randn(max(1, shape.numel()), *self.event_shape).to(self.loc)
        x = adapt(self.kernel, potential, start, steps).state.x[: shape.numel()]
        return self.from_unit(x.reshape(*shape, *self.event_shape))

    def _anneal(self, level: int, **options: Any) -> LogNormalizer:
        return anneal_through_levels(self, level, [self.potential(level)], 1.0, **options)

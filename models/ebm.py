"""EBM: one energy, without noise levels; what contrastive divergence, score matching and their kin train."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from energyppl._checks import check_count
from energyppl.errors import InvalidInput
from energyppl.inference.adaptation.warmup import adapt
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.normalizing.levels import anneal_through_levels
from energyppl.inference.objectives.persistent import PersistentLikelihood
from energyppl.inference.objectives.persistent_chains import ChainBuffer
from energyppl.integration.estimates import LogNormalizer
from energyppl.models._network_checks import event_shape_of, handed_a_level
from energyppl.models.base import EnergyModel
from energyppl.potentials.network import AtLevel

__all__ = ["EBM"]


class EBM(EnergyModel):
    """``p(x) ∝ exp(−U(x))``, U a network of points of about unit variance, to which data are standardized.

    Args:
        net: any module ``net(x)``, or ``net(x, level)`` which then is asked for level 0, from points
            ``(*batch, *event)`` to energies ``(*batch,)`` in nats, low where data are.
        event_shape: shape of one point; taken from ``net.event_shape`` if it has one.
        kernel: moves chains; MALA if None.

    Raises:
        InvalidInput: if the network returns another shape or non-finite values.
    """

    default_objective = PersistentLikelihood
    levels = 1
    schedule = None
    step_sizes: Tensor
    chains: ChainBuffer | None
    _one: nn.Module

    def __init__(
        self, net: nn.Module, *, event_shape: Sequence[int] | None = None, kernel: TunableKernel | None = None
    ) -> None:
        super().__init__(event_shape_of(net, event_shape), net)
        self.kernel: TunableKernel = MALA(0.1) if kernel is None else kernel
        self.register_buffer("step_sizes", self.loc.new_zeros(1))  # zero until training has tuned it
        self.chains = None
        # Not a module of its own: its weights are those of net.
        self.__dict__["_one"] = handed_a_level(net, self.loc)

    def potential(self, level: int | Tensor = 0) -> AtLevel:
        """The energy in standardized coordinates; there is only level 0."""
        level = torch.as_tensor(level, device=self.loc.device)
        if bool((level != 0).any()):
            raise InvalidInput(f"an EBM has level 0 only; got {level.tolist()}: RecoveryEBM and JointEBM have levels")
        return AtLevel(self._one, level, self.event_shape)

    def sample(self, sample_shape: Sequence[int] = (), *, level: int = 0, steps: int = 1000) -> Tensor:
        """The ends of chains from N(0, I), ``(*sample_shape, *event)``: as good as ``steps`` moves can make them.

        Args:
            sample_shape: shape of the batch.
            level: 0.
            steps: moves, the kernel's step size tuned on the way.
        """
        check_count("steps", steps)
        shape, potential = torch.Size(sample_shape), self.potential(level)
        start = torch.randn(max(1, shape.numel()), *self.event_shape).to(self.loc)
        x = adapt(self.kernel, potential, start, steps).state.x[: shape.numel()]
        return self.loc + self.scale * x.reshape(*shape, *self.event_shape)

    def at_level(self, data: Tensor, level: Tensor) -> Tensor:
        """Rows of data ``(n, *event)``, standardized; their levels ``(n,)`` are all 0."""
        return self.to_unit(data)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *options: Any) -> None:
        # Training has made the chains, which a model that was never trained lacks.
        chains = state_dict.get(f"{prefix}chains.x")
        if chains is not None and self.chains is None:
            self.chains = ChainBuffer(self.event_shape, len(chains)).to(self.loc)
        super()._load_from_state_dict(state_dict, prefix, *options)

    def _anneal(self, level: int, **options: Any) -> LogNormalizer:
        return anneal_through_levels(self, level, [self.potential(level)], 1.0, **options)

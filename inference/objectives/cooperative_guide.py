"""MCMC teaching as a Pyro guide (Xie et al. 2020)."""

from dataclasses import dataclass, field

import pyro
from torch import Tensor

from energyppl._checks import check_data, check_fields
from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import Conditional
from energyppl.inference.objectives.contract import KernelState
from energyppl.inference.objectives.cooperative import CooperativeRecovery

__all__ = ["CooperativeGuide"]


@dataclass(frozen=True)
class CooperativeGuide:
    """MCMC teaching as a Pyro guide: with the model itself as the Pyro model, ``SVI`` trains both networks at once.

    ``SVI(ebm, CooperativeGuide(ebm), Adam(…), Trace_ELBO()).step(batch)`` has the gradients of
    :class:`CooperativeRecovery`, summed over rows.  The guide has no sample sites: its loss enters as a factor.  It
    sees nothing of the model's chains, so it runs its own, for a quarter of the rows if the objective's
    ``extra_chain_fraction`` is 0.

    Args:
        model: has an initializer.
        objective: how the initializer learns; its negatives are its own.
        state: of the objective, ``objective.init(model)``; a new one if None.

    Raises:
        InvalidInput: if the model has no initializer, or the objective takes the energy's negatives from it.

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> schedule = ep.NoiseSchedule.cosine(levels=3)
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), schedule, initializer=ep.MLPInitializer((2,)))
        >>> ebm.standardize(torch.randn(500, 2))
        >>> guide = ep.objectives.CooperativeGuide(ebm)
        >>> svi = SVI(ebm, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> isinstance(svi.step(torch.randn(32, 2)), float)
        True
    """

    model: Conditional
    objective: CooperativeRecovery = field(default_factory=CooperativeRecovery)
    state: KernelState | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.objective.from_initializer:
            raise InvalidInput("from_initializer shares chains between model and guide: train by fit for that")
        if self.state is None:
            object.__setattr__(self, "state", self.objective.init(self.model))

    def __call__(self, data: Tensor) -> None:
        """Add the initializer's loss on rows ``(n, *event)``, noised afresh."""
        data = check_data("data", data, self.model.event_shape).to(self.model.loc)
        assert self.model.initializer is not None  # init has seen to it
        assert self.state is not None
        pyro.module("initializer", self.model.initializer)
        pairs = self.objective.recipe.pairs(self.model, data)
        loss = self.objective.initializer_loss(self.model, self.state, pairs).value
        # What a guide adds is taken off the evidence bound, so a loss goes in with a plus sign.
        pyro.factor("initializer_loss", self.objective.weight * len(data) * loss, has_rsample=True)

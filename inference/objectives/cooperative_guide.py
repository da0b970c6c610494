"""MCMC teaching as a Pyro guide."""

from dataclasses import dataclass, field

import pyro
from torch import Tensor

from energyppl._checks import check_data
from energyppl.errors import InvalidInput
from energyppl.inference.levels.initializers import (
    CooperativeModel,
)
from energyppl.inference.objectives.cooperative import CooperativeRecovery

__all__ = ["CooperativeGuide"]


@dataclass(frozen=True)
class CooperativeGuide:
    """MCMC teaching as a Pyro guide: with the model itself as the Pyro model, ``SVI`` trains both networks at once.

    ``SVI(ebm, CooperativeGuide(ebm), Adam(…), Trace_ELBO()).step(batch)`` has the gradients of
    :class:`CooperativeRecovery`, summed over rows.  The guide has no sample sites: its loss enters as a factor.  It
    sees nothing of the model's chains, so it runs its own, for a quarter of the rows if the
    objective's ``extra_chain_fraction`` is 0.

    Args:
        model: has an initializer.
        objective: how the initializer is taught; its negatives are its own.

    Raises:
        InvalidInput: if the model has no initializer, or the objective takes the energy's negatives from it.
    """

    model: CooperativeModel
    objective: CooperativeRecovery = field(default_factory=CooperativeRecovery)

    def __post_init__(self) -> None:
        if self.objective.from_initializer:
            raise InvalidInput("from_initializer shares chains between model and guide: train by fit for that")
        self.objective.prepare(self.model)

    def __call__(self, data: Tensor) -> None:
        """Teach on rows ``(n, *event)``, noised afresh."""
        data = check_data("data", data, self.model.event_shape).to(self.model.step_sizes)
        assert self.model.initializer is not None  # prepare has seen to it
        pyro.module("initializer", self.model.initializer)
        pairs = self.objective.recipe.pairs(self.model, data)
        taught = self.objective.initializer_loss(self.model, pairs).value
        # What a guide adds is taken off the evidence bound, so a loss goes in with a plus sign.
        pyro.factor("teaching", self.objective.weight * len(data) * taught, has_rsample=True)

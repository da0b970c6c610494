"""Independence Metropolis–Hastings: proposals that do not depend on where the chain is."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from energyppl.autodiff.gradient import energy_only
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import Info, State, evaluate, metropolis
from energyppl.potentials.algebra import Potential

__all__ = ["IndependentMetropolis"]


@dataclass(frozen=True, eq=False)
class IndependentMetropolis:
    """Independent proposals from a distribution, accepted by Metropolis and Hastings: it changes speed, not the target.

    With an initializer's q(y | x_{t+1}) as the proposal a recovery chain forgets where it began at its first accepted
    move.  In a :class:`Cycle` with a local kernel the chain is exact however bad the proposal.

    Args:
        proposal: over ``(*chains, *event)``: its ``sample()`` and ``log_prob``, ``(*chains,)``, are used; its support
            must cover the target's.

    Example:
        >>> import pyro.distributions as dist
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> kernel = ep.kernels.IndependentMetropolis(dist.Normal(torch.zeros(8, 2), 1.5).to_event(1))
        >>> ep.sampling.run_chain(kernel, normal, torch.randn(8, 2), 5).state.x.shape
        torch.Size([8, 2])
    """

    proposal: dist.TorchDistribution

    def __post_init__(self) -> None:
        methods = ("sample", "log_prob")
        if isinstance(self.proposal, type) or not all(callable(getattr(self.proposal, m, None)) for m in methods):
            raise InvalidInput(f"proposal must be a distribution, with sample and log_prob; got {self.proposal!r}")

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return evaluate(potential, x)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Propose a fresh draw for every chain and accept it by its ratio of target to proposal."""
        with torch.no_grad():
            x = self.proposal.sample()
            if x.shape != state.x.shape:
                raise InvalidInput(
                    f"the proposal must draw one point for each chain, {tuple(state.x.shape)}; got {tuple(x.shape)}: "
                    "expand it to the chains"
                )
            old, new = self.proposal.log_prob(state.x), self.proposal.log_prob(x)
        energy = energy_only(potential, x)
        return metropolis((state.energy - energy) + (old - new), State(x, energy, state.grad), state)

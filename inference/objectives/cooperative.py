"""Cooperative recovery likelihood: an energy and the initializer of its chains, trained together (CDRL)."""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from energyppl._checks import check_fields, check_number
from energyppl.autodiff.gradient import energy_only
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import TunableKernel, casting
from energyppl.inference.levels.contract import Conditional
from energyppl.inference.levels.initializers import model_of_rows, recovery_proposal
from energyppl.inference.levels.recovery import recovery_kernel, recovery_potential
from energyppl.inference.objectives.contract import KernelState, Loss, check_model, check_tunable
from energyppl.inference.objectives.recovery import RecoveryLikelihood, RecoveryPairs
from energyppl.inference.sampling.run_chain import Trajectory, run_chain
from energyppl.potentials.algebra import RecoveryPotential

__all__ = ["CooperativeRecovery"]


@dataclass(frozen=True)
class CooperativeRecovery:
    """Recovery likelihood with a learned initializer (Zhu et al. 2024, Algorithm 1).

    The initializer draws ŷ given the noisy point, the kernel refines it to ỹ, and the initializer learns to begin where
    the chain ended (MCMC teaching, Xie et al. 2020).  In CDRL the energy's negatives are the same ỹ; chains can then
    run away as those from the noisy point do.  By default they are not: negatives begin at the data, as in
    :class:`RecoveryLikelihood`, and the initializer learns from them: that costs a fifth of an update, and where the
    chains settle it is the same draws.  With ``extra_chain_fraction`` chains of its own, which begin at ŷ, do so.

    Args:
        kernel: moves all chains; the recipe's, or else the model's own, if None.
        steps: moves of every chain; the recipe's if None.
        recipe: everything else about the pairs and the energy's negatives.
        from_initializer: take the energy's negatives from the initializer's chains, as CDRL does.
        extra_chain_fraction: share of each batch with second chains that begin at the initializer's draws, from
            which it learns; 0 for none.
        initializer_fraction: share of each batch from whose negatives it learns where there are no second chains.  More
            helps little in the plane and makes updates longer; images take all of them.
        weight: of the initializer's loss beside the energy's.

    Raises:
        InvalidInput: for a share outside [0, 1], an ``initializer_fraction`` of 0, or a negative weight.

    Example:
        >>> schedule = ep.NoiseSchedule.cosine(levels=3)
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), schedule, initializer=ep.MLPInitializer((2,)))
        >>> options = ep.TrainingOptions(steps=2, batch_size=32)
        >>> history = ep.fit(ebm, torch.randn(100, 2), ep.CooperativeRecovery(), options=options, progress=False)
        >>> len(history.records)
        2
    """

    kernel: TunableKernel | None = None
    steps: int | None = None
    recipe: RecoveryLikelihood = field(default_factory=RecoveryLikelihood)
    from_initializer: bool = False
    extra_chain_fraction: float = 0.0
    initializer_fraction: float = 0.25
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_tunable(self.kernel)
        check_fields(self)
        check_number("weight", self.weight)
        if not 0.0 <= self.extra_chain_fraction <= 1.0:
            raise InvalidInput(f"extra_chain_fraction must lie in [0, 1]; got {self.extra_chain_fraction}")
        if not 0.0 < self.initializer_fraction <= 1.0:
            raise InvalidInput(f"initializer_fraction must lie in (0, 1]; got {self.initializer_fraction}")
        if not self.weight >= 0.0:
            raise InvalidInput(f"weight must not be negative; got {self.weight}")
        changes = {"kernel": self.kernel, "steps": self.steps}
        object.__setattr__(
            self,
            "recipe",
            replace(self.recipe, **{k: v for k, v in changes.items() if v is not None}),  # type: ignore[arg-type]
        )

    def init(self, model: Conditional) -> KernelState:
        """Make the state of the energy's chains, which the initializer learns from too.

        Raises:
            InvalidInput: for another kind of model, or one without an initializer.
        """
        needs = "cooperative training needs a model of levels whose chains an initializer begins, as a RecoveryEBM"
        check_model(model, needs, "initializer", "conditions", "guidance")
        if model.initializer is None:
            raise InvalidInput(
                "cooperative training needs an initializer: build the model with "
                "RecoveryEBM(net, schedule, initializer=MLPInitializer(…))"
            )
        return self.recipe.init(model)

    def loss(self, model: Conditional, state: KernelState, batch: Tensor) -> Loss:
        """Return the energy's contrastive loss of ``batch``, ``(n, *event)``, plus the initializer's.

        Each has the gradient of its own weights.
        """
        pairs = self.recipe.pairs(model, batch)
        if self.from_initializer:
            draws = self._draw(model, pairs)
            start = self.recipe.start(pairs.clean, pairs.potential.center)
            chain = self.recipe.negatives(state, model, pairs, start.index_copy(0, draws.rows, draws.points.detach()))
            learned = _initializer_loss(draws, chain.state.x[draws.rows], chain.state.energy[draws.rows])
        else:
            chain = self.recipe.negatives(state, model, pairs)
            learned = self.initializer_loss(model, state, pairs, None if self.extra_chain_fraction else chain)
        own = self.recipe.contrast(model, state, pairs, chain)
        return own._replace(value=own.value + self.weight * learned.value, record={**own.record, **learned.record})

    def initializer_loss(
        self, model: Conditional, state: KernelState, pairs: RecoveryPairs, chain: Trajectory | None = None
    ) -> Loss:
        """Return the initializer's own loss: chains begin at its draws, and it learns to begin where they end.

        With a ``chain`` from elsewhere for the same pairs it learns to begin where that ended.
        """
        share = self.extra_chain_fraction or self.initializer_fraction
        draws = self._draw(model, pairs, most=max(1, int(share * len(pairs.level))))
        if chain is not None:
            return _initializer_loss(draws, chain.state.x[draws.rows], chain.state.energy[draws.rows])
        kernel = recovery_kernel(state.level_kernel, model.schedule, pairs.level[draws.rows])
        end = run_chain(kernel, draws.potential, draws.points.detach(), self.recipe.steps).state
        return _initializer_loss(draws, end.x, end.energy)

    def _draw(self, model: Conditional, pairs: RecoveryPairs, most: int | None = None) -> "_InitializerDraws":
        # From a farther marginal than the next q has not learned to begin.
        rows = (pairs.upper == pairs.level + 1).nonzero()[:most, 0]
        part, level, noisy = model_of_rows(model, rows), pairs.level[rows], pairs.noisy[rows]
        potential = recovery_potential(part, noisy, level)
        with casting(noisy, self.recipe.autocast):
            proposal = recovery_proposal(part, noisy, level, potential)
        return _InitializerDraws(rows, potential, proposal, proposal.rsample())

    def measure(self, model: Conditional, state: KernelState, data: Tensor) -> float:
        """Return the denoising error of held-out data, as :meth:`RecoveryLikelihood.measure` does."""
        return self.recipe.measure(model, state, data)


class _InitializerDraws(NamedTuple):
    """The initializer's draws for some rows of a batch, before chains refine them."""

    rows: Tensor  # (m,), of the batch
    potential: RecoveryPotential
    proposal: TorchDistribution
    points: Tensor  # (m, *event), differentiable


def _initializer_loss(draws: _InitializerDraws, refined: Tensor, energy: Tensor) -> Loss:
    """Return ½|ỹ − ŷ|² in standard deviations, a mean over coordinates; −log q(ỹ) where the scale is learned."""
    proposal, drawn = draws.proposal, draws.points
    drop = energy_only(draws.potential, drawn.detach()) - energy
    deviation = proposal.base_dist.scale
    distance = (refined - drawn) / deviation.detach()
    if not len(drawn):  # no row of a small batch is paired with the next level: there is nothing to learn from
        value = drawn.sum()
    elif deviation.requires_grad:
        value = -proposal.log_prob(refined).mean() / math.prod(proposal.event_shape)
    else:  # the same expected gradient with less noise: a chain that hardly moves has almost no gradient
        value = 0.5 * distance.square().mean()
    record = {
        "initializer_loss": float(value.detach()),
        "initializer_drop": float(drop[torch.isfinite(drop)].mean()),
        "initializer_moved": float(distance.detach().square().mean().sqrt()),
    }
    return Loss(value, record)

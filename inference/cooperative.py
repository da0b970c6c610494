"""Cooperative recovery likelihood: an energy and the initializer of its chains teach each other (CDRL)."""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from energyppl._checks import check_data
from energyppl.errors import InvalidInput
from energyppl.gradient import energy_only
from energyppl.inference.chains import run_chain
from energyppl.inference.initializers import (
    CooperativeModel,
    check_initializer,
    gaussian_start,
    model_of_rows,
    recovery_proposal,
)
from energyppl.inference.objectives import Loss, RecoveryLikelihood, level_kernel, recovery_potential
from energyppl.inference.transition import TunableKernel

__all__ = ["CooperativeRecovery", "InitializerReport", "initializer_report"]


@dataclass(frozen=True)
class CooperativeRecovery:
    """Recovery likelihood with a learned initializer (Zhu et al. 2024, Algorithm 1).

    The initializer draws ŷ given the noisy point, the kernel refines it to ỹ, and the initializer learns to begin where
    the chain ended (MCMC teaching, Xie et al. 2020).  In CDRL the energy's negatives are the same ỹ; chains can then
    run away as those from the noisy point do.  By default they are not: negatives begin at the data, as in
    :class:`RecoveryLikelihood`, and a share of the batch has a second chain, which begins at ŷ, for the teaching.

    Args:
        kernel: moves all chains; the recipe's, or else the model's own, if None.
        initializer: the network, such as ``MLPInitializer``; the model's own if None.
        steps: moves of every chain; the recipe's if None.
        recipe: everything else about the pairs and the energy's negatives.
        from_initializer: take the energy's negatives from the initializer's chains, as CDRL does.
        teach: share of each batch that teaches the initializer, where the negatives are not from it.
        weight: of the initializer's loss beside the energy's.

    Raises:
        InvalidInput: for a share outside (0, 1], or a negative weight.
    """

    kernel: TunableKernel | None = None
    initializer: nn.Module | None = None
    steps: int | None = None
    recipe: RecoveryLikelihood = field(default_factory=RecoveryLikelihood)
    from_initializer: bool = False
    teach: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.teach <= 1.0:
            raise InvalidInput(f"teach must lie in (0, 1]; got {self.teach}")
        if not self.weight >= 0.0:
            raise InvalidInput(f"weight must not be negative; got {self.weight}")
        changes = {"kernel": self.kernel, "steps": self.steps}
        object.__setattr__(
            self,
            "recipe",
            replace(self.recipe, **{k: v for k, v in changes.items() if v is not None}),  # type: ignore[arg-type]
        )

    def prepare(self, model: CooperativeModel) -> None:
        """Give the model its kernel and its initializer, before the optimiser collects what is to be learned.

        Raises:
            InvalidInput: if neither has an initializer, or it is for points of another shape.
        """
        self.recipe.prepare(model)
        if self.initializer is not None:
            check_initializer(self.initializer, model.event_shape)
            model.initializer = self.initializer
        if model.initializer is None:
            raise InvalidInput(
                "cooperative training needs an initializer: pass CooperativeRecovery(initializer=MLPInitializer(…))"
            )

    def loss(self, model: CooperativeModel, batch: Tensor) -> Loss:
        """The energy's contrastive loss plus the initializer's, ``(n, *event)``; each has its own weights' gradient."""
        pairs = self.recipe.pairs(model, batch)
        # From a farther marginal than the next q has not learned to begin.
        rows = (pairs.upper == pairs.level + 1).nonzero()[:, 0]
        if not self.from_initializer:
            chain = self.recipe.move(model, pairs)
            rows = rows[: max(1, int(self.teach * len(batch)))]
        part, level, noisy = model_of_rows(model, rows), pairs.level[rows], pairs.noisy[rows]
        potential, proposal = recovery_potential(part, noisy, level), recovery_proposal(part, noisy, level)
        drawn = proposal.rsample()
        if self.from_initializer:
            start = self.recipe.start(pairs.clean, pairs.potential.center).index_copy(0, rows, drawn.detach())
            chain = self.recipe.move(model, pairs, start)
            refined, energy = chain.state.x[rows], chain.state.energy[rows]
        else:
            state = run_chain(level_kernel(model, level), potential, drawn.detach(), self.recipe.steps).state
            refined, energy = state.x, state.energy
        drop = energy_only(potential, drawn.detach()) - energy
        taught = self._teach(proposal, drawn, refined, drop)
        own = self.recipe.contrast(model, pairs, chain, batch)
        return Loss(own.value + self.weight * taught.value, own.record | taught.record)

    def measure(self, model: CooperativeModel, data: Tensor) -> float:
        """As :meth:`RecoveryLikelihood.measure`."""
        return self.recipe.measure(model, data)

    def _teach(self, proposal: TorchDistribution, drawn: Tensor, refined: Tensor, drop: Tensor) -> Loss:
        """½|ỹ − ŷ|² in standard deviations, a mean over coordinates; −log q(ỹ) where the scale is learned."""
        deviation = proposal.base_dist.scale
        distance = (refined - drawn) / deviation.detach()
        if deviation.requires_grad:
            value = -proposal.log_prob(refined).mean() / math.prod(proposal.event_shape)
        else:  # the same expected gradient with less noise: a chain that hardly moves teaches almost nothing
            value = 0.5 * distance.square().mean()
        record = {
            "initializer_loss": float(value.detach()),
            "initializer_drop": float(drop[torch.isfinite(drop)].mean()),
            "initializer_moved": float(distance.detach().square().mean().sqrt()),
        }
        return Loss(value, record)


class InitializerReport(NamedTuple):
    """What a model's initializer is worth, level by level."""

    drop: Tensor  # (levels,), nats that the energy falls by from q's draws to the refined ones
    drop_without: Tensor  # (levels,), the same from the start that chains have without an initializer
    spread: Tensor  # (levels,), standard deviation of q's draws around their mean over that of the refined ones
    problems: tuple[str, ...]  # in words; empty if there are none


def initializer_report(model: CooperativeModel, data: Tensor, steps: int = 100) -> InitializerReport:
    """Compare an initializer's draws with chains that begin at the data, which are at home from the start.

    Args:
        model: has an initializer.
        data: rows ``(n, *event)``, some hundreds.
        steps: moves of those chains.

    Raises:
        InvalidInput: if the model has no initializer.
    """
    check_data("data", data, model.event_shape, at_least=2)
    clean = model.standardized(data)
    columns: list[list[float]] = [[], [], []]
    for t in range(model.schedule.levels):
        level = torch.full((len(data),), t, device=clean.device)
        pair = model.schedule.pairs(clean, level)
        potential = recovery_potential(model, pair.noisy, level)
        with torch.no_grad():
            proposal = recovery_proposal(model, pair.noisy, level)
            drawn = proposal.sample()
        start = gaussian_start(potential, model.schedule.spread.to(clean)[level])
        refined = run_chain(level_kernel(model, level), potential, pair.clean, steps).state.x
        home = energy_only(potential, refined)
        for column, points in zip(columns, (drawn, start), strict=False):
            column.append(float((energy_only(potential, points) - home).median()))
        columns[2].append(float((drawn - proposal.mean).std() / (refined - proposal.mean).std()))
    drop, without, spread = (torch.tensor(column) for column in columns)
    problems = []
    useless = [t for t in range(len(drop)) if drop[t] > without[t] + 0.5]
    if useless:
        problems.append(
            f"at level(s) {useless} chains begin no better with the initializer than without: train it longer"
        )
    collapsed = [t for t in range(len(drop)) if spread[t] < 0.05]
    if collapsed:
        problems.append(
            f"at level(s) {collapsed} the initializer has collapsed: its draws differ by less than a twentieth of what "
            "the chains do"
        )
    return InitializerReport(drop, without, spread, tuple(problems))

"""Kernels for binary vectors: single-site Gibbs, and Langevin proposals that flip many sites at once."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_count, check_event, check_positive
from energyppl.autodiff.gradient import energy_and_grad, energy_only
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import Info, State, dot, metropolis
from energyppl.potentials.algebra import Potential

__all__ = ["BinaryGibbs", "DiscreteLangevin"]


@dataclass(frozen=True, eq=False)
class BinaryGibbs:
    """Gibbs updates of random single sites (Geman & Geman 1984): reversible, needs no gradient and no tuning.

    Args:
        updates: sites that each chain updates in a step, drawn with replacement; one evaluation of the energy each.

    Raises:
        InvalidInput: for fewer than one update; when chains begin, for points that are not zeros and ones.

    Example:
        >>> spins = ep.Energy(lambda x: -(x * x.roll(1, -1)).sum(-1), (5,))
        >>> x = torch.bernoulli(torch.full((8, 5), 0.5))
        >>> end = ep.sampling.run_chain(ep.kernels.BinaryGibbs(updates=5), spins, x, 10).state.x
        >>> bool(((end == 0) | (end == 1)).all())
        True
    """

    updates: int = 1

    def __post_init__(self) -> None:
        check_count("updates", self.updates)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the energy at ``x``, ``(*chains, *event)``, of zeros and ones."""
        _check_binary(potential, x)
        x = x.detach()
        return State(x, energy_only(potential, x), torch.zeros((), dtype=x.dtype, device=x.device).expand_as(x))

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Update every chain at ``updates`` random sites."""
        x, energy = state.x, state.energy
        changed = torch.zeros_like(energy, dtype=torch.bool)
        size = math.prod(potential.event_shape)
        for _ in range(self.updates):
            rows = x.reshape(*energy.shape, size)
            site = torch.randint(size, (*energy.shape, 1), device=x.device)
            flipped = rows.scatter(-1, site, 1.0 - rows.gather(-1, site)).reshape(x.shape)
            other = energy_only(potential, flipped)
            flips = torch.rand_like(energy) < torch.sigmoid(energy - other)
            x = torch.where(append_dims(flips, x), flipped, x)
            energy = torch.where(flips, other, energy)
            changed |= flips
        one = torch.ones_like(energy)
        return State(x, energy, state.grad), Info(one, changed, torch.isnan(energy), self.updates)


@dataclass(frozen=True, eq=False)
class DiscreteLangevin:
    """Metropolis-adjusted discrete Langevin proposals (Zhang, Liu & Liu 2022, Algorithm 1), for binary vectors.

    Every site flips by itself, with probability ``sigmoid(−½ ∂U·(x' − x) − 1 / (2α))``; the flips are accepted or
    rejected together.  The energy must have a gradient at zeros and ones, as any formula in them has.

    Args:
        step_size: α, a number or one for each chain, ``(*chains,)``.

    Raises:
        InvalidInput: for a step size that is not positive; when chains begin, for points that are not zeros and ones.

    Example:
        >>> biased = ep.Energy(lambda x: -x.sum(-1), (4,))  # of vectors of zeros and ones
        >>> start = torch.zeros(8, 4)
        >>> ep.sampling.run_chain(ep.kernels.DiscreteLangevin(), biased, start, 10).state.x.unique().numel() <= 2
        True
    """

    step_size: float | Tensor = 0.2
    target_acceptance: ClassVar[float | None] = 0.574
    max_step_size: ClassVar[float] = 100.0
    step_size_limit: ClassVar[float] = 100.0  # far above it nearly every site follows its gradient alone

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)

    def with_step_size(self, step_size: float | Tensor) -> "DiscreteLangevin":
        """Return the same kernel with another step size."""
        return replace(self, step_size=step_size)

    def resized(self, step: Tensor, width: Tensor, marginal_std: Tensor) -> "DiscreteLangevin":
        """Return the same kernel with steps of ``step``; sites have no width."""
        return replace(self, step_size=step)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``, of zeros and ones."""
        _check_binary(potential, x)
        return State(x.detach(), *energy_and_grad(potential, x.detach()))

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Propose flips for every chain and accept them by the Metropolis–Hastings rule."""
        logit = self._logit(state.x, state.grad)
        flips = torch.rand_like(logit) < torch.sigmoid(logit)
        x = torch.where(flips, 1.0 - state.x, state.x)
        new = State(x, *energy_and_grad(potential, x))
        log_sigmoid = torch.nn.functional.logsigmoid
        sign = torch.where(flips, 1.0, -1.0).to(logit)
        there, back = log_sigmoid(sign * logit), log_sigmoid(sign * self._logit(new.x, new.grad))
        ratio = state.energy - new.energy + dot(back - there, torch.ones_like(there), new.energy)
        return metropolis(ratio, new, state)

    def _logit(self, x: Tensor, grad: Tensor) -> Tensor:
        size = append_dims(torch.as_tensor(self.step_size).to(x), x)
        return -0.5 * grad * (1.0 - 2.0 * x) - 0.5 / size


def _check_binary(potential: Potential, x: Tensor) -> None:
    check_event("x", x, potential.event_shape)
    if not bool(((x == 0) | (x == 1)).all()):
        raise InvalidInput(
            "binary kernels move points of zeros and ones; got other numbers: begin at torch.bernoulli(…), for "
            "sample_chains init=lambda shape: torch.bernoulli(torch.full((*shape, …), 0.5))"
        )

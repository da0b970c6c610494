"""Langevin kernels: unadjusted, and adjusted by Metropolis and Hastings."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_positive
from energyppl.autodiff.gradient import energy_and_grad
from energyppl.inference.kernels.contract import (
    Info,
    State,
    check_force_dtype,
    dot,
    evaluate,
    metropolis,
    select,
    surely_finite,
)
from energyppl.potentials.algebra import Potential

__all__ = ["MALA", "Langevin"]


def _langevin_proposal(step_size: float | Tensor, state: State) -> tuple[Tensor, Tensor, float | Tensor]:
    """Return ``x − ½ s² ∇U + s ξ``, the noise ξ, and s made broadcastable."""
    noise = torch.randn_like(state.x)
    if isinstance(step_size, Tensor) and step_size.dim():
        wide = append_dims(step_size.to(state.x), state.x)
        drift = torch.addcmul(state.x, wide * wide, state.grad, value=-0.5)
        return torch.addcmul(drift, wide, noise), noise, wide
    size = float(step_size)
    return state.x.add(state.grad, alpha=-0.5 * size * size).add_(noise, alpha=size), noise, size


@dataclass(frozen=True, eq=False)
class Langevin:
    """Unadjusted Langevin: ``x ← x − ½ s² ∇U(x) + s ξ`` (Gao et al. 2021, eq. 9; biased at any fixed s).

    Args:
        step_size: the standard deviation s of the noise in one step, a number or one for each chain, ``(*chains,)``.
        force_dtype: arithmetic of the network, ``torch.bfloat16`` for large ones; nothing corrects its rounding, which
            the energies of the states carry too.

    Raises:
        InvalidInput: for a step size that is not positive and finite.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> ep.sampling.run_chain(ep.Langevin(0.1), normal, torch.randn(8, 2), 20).state.x.shape
        torch.Size([8, 2])
    """

    step_size: float | Tensor
    force_dtype: torch.dtype | None = None
    target_acceptance: ClassVar[float | None] = None
    max_step_size: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_force_dtype(self.force_dtype)

    def with_step_size(self, step_size: float | Tensor) -> "Langevin":
        """Return the same kernel with another step size."""
        return replace(self, step_size=step_size)

    def adjusted(self) -> "MALA":
        """Return the kernel that makes the same proposals and accepts them by Metropolis and Hastings."""
        return MALA(self.step_size, self.force_dtype)

    def resized(self, step: Tensor, width: Tensor, marginal_std: Tensor) -> "Langevin":
        """Return the same kernel with steps of ``step`` widths."""
        return replace(self, step_size=step * width)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return evaluate(potential, x, self.force_dtype)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Move every chain once; a move to a non-finite energy or gradient is not made, and flagged."""
        x, _, _ = _langevin_proposal(self.step_size, state)
        new = State(x, *energy_and_grad(potential, x, self.force_dtype))
        if surely_finite(new.energy, new.grad):
            fine = torch.ones_like(new.energy, dtype=torch.bool)
            return new, Info(torch.ones_like(new.energy), fine, ~fine)
        finite = (new.energy + dot(new.grad, new.grad, new.energy)).abs() < math.inf
        return select(finite, new, state), Info(finite.to(new.energy.dtype), finite, ~finite)


@dataclass(frozen=True, eq=False)
class MALA:
    """Metropolis-adjusted Langevin (Roberts & Tweedie 1996): exact for any step size.

    Args:
        step_size: the standard deviation s of the noise in one step, a number or one for each chain, ``(*chains,)``.
        force_dtype: arithmetic of the drift, ``torch.bfloat16`` for large networks: any deterministic drift is as good
            to the accept step, which uses the energy's own dtype, so the target stays exact.

    Raises:
        InvalidInput: for a step size that is not positive and finite.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> ep.sampling.run_chain(ep.MALA(0.5), normal, torch.randn(8, 2), 20).accept_prob.shape
        torch.Size([8])
    """

    step_size: float | Tensor
    force_dtype: torch.dtype | None = None
    target_acceptance: ClassVar[float | None] = (
        0.6  # fastest mixing is near .574 in high dimension (Roberts & Rosenthal 1998)
    )
    max_step_size: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_force_dtype(self.force_dtype)

    def with_step_size(self, step_size: float | Tensor) -> "MALA":
        """Return the same kernel with another step size."""
        return replace(self, step_size=step_size)

    def resized(self, step: Tensor, width: Tensor, marginal_std: Tensor) -> "MALA":
        """Return the same kernel with steps of ``step`` widths."""
        return replace(self, step_size=step * width)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return evaluate(potential, x, self.force_dtype)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Propose a Langevin move for every chain and accept it by the Metropolis–Hastings rule."""
        x, noise, size = _langevin_proposal(self.step_size, state)
        new = evaluate(potential, x, self.force_dtype)
        # The way back needs the noise r = ξ − d with d = ½ s (g + g'), so the proposals' log-ratio is
        # ½ (|ξ|² − |r|²) = d · (ξ − ½ d).
        d = (state.grad + new.grad) * (0.5 * size)
        log_ratio = (state.energy - new.energy) + dot(d, noise.sub_(d, alpha=0.5), new.energy)
        return metropolis(log_ratio, new, state)

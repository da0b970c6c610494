"""Contracts of Markov kernels (what moves them, what tunes them) and the steps that kernels share.

A kernel is a frozen value that holds only its hyperparameters.  ``init`` evaluates the potential where chains stand,
``step`` moves them; after the potential changes (other weights, temperature or level) call ``init`` again.  Random
numbers come from torch's global generator.  A proposal whose energy or gradient is not finite is rejected and flagged,
never repaired.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from energyppl._checks import append_dims, is_number
from energyppl.autodiff.gradient import energy_and_grad, energy_only, gradient_only
from energyppl.errors import InvalidInput
from energyppl.potentials.algebra import Potential

__all__ = [
    "Info",
    "Kernel",
    "State",
    "StepSizeTunable",
    "TunableKernel",
    "Unadjusted",
    "casting",
    "check_force_dtype",
    "check_kernel",
    "combined",
    "dot",
    "evaluate",
    "metropolis",
    "middle_step",
    "select",
    "surely_finite",
]


class State(NamedTuple):
    """Chain state: what the next step needs.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> state = ep.MALA(0.5).init(normal, torch.ones(4, 2))
        >>> state.energy, state.grad.shape
        (tensor([1., 1., 1., 1.]), torch.Size([4, 2]))
    """

    x: Tensor  # (*chains, *event)
    energy: Tensor  # (*chains,), nats
    grad: Tensor  # (*chains, *event); with a force_dtype, the force's gradient
    inner: Any = None  # what a kernel made of others keeps beside


class Info(NamedTuple):
    """Step record: what diagnostics need, one entry for each chain.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> kernel = ep.MALA(0.5)
        >>> state, info = kernel.step(normal, kernel.init(normal, torch.ones(4, 2)))
        >>> info.accept_prob.shape, info.cost()
        (torch.Size([4]), 1.0)
    """

    accept_prob: Tensor  # (*chains,), in [0, 1]
    accepted: Tensor  # (*chains,), bool
    diverging: Tensor  # (*chains,), bool: not finite, or an energy error that no step size is meant to make
    gradients: int | Tensor = 1  # evaluations that the step cost each chain, (*chains,) if they differ
    total_energy: Tensor | None = None  # (*chains,), nats, kinetic included, where the chain ended
    tree_depth: Tensor | None = None  # (*chains,), of NUTS

    def cost(self) -> float:
        """Count the evaluations of each chain, their mean if they differ."""
        counted = self.gradients
        return float(counted) if isinstance(counted, int) else float(counted.double().mean())


def combined(infos: Sequence[Info]) -> Info:
    """Join the records of several steps; total energies and tree depths belong to one step and are left out."""
    return Info(
        torch.stack([info.accept_prob for info in infos]).mean(0),
        torch.stack([info.accepted for info in infos]).any(0),
        torch.stack([info.diverging for info in infos]).any(0),
        sum((info.gradients for info in infos), start=0),
    )


class Kernel(Protocol):
    """One Markov transition for a batch of chains: all that :func:`~energyppl.sample_chains` asks of a kernel.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> kernel: ep.kernels.Kernel = ep.MALA(0.5)
        >>> state = kernel.init(normal, torch.zeros(4, 2))
        >>> for _ in range(10):
        ...     state, info = kernel.step(normal, state)
        >>> state.x.shape
        torch.Size([4, 2])
    """

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at the chains' positions ``(*chains, *event)``."""
        ...

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Move every chain once."""
        ...


@runtime_checkable
class StepSizeTunable(Kernel, Protocol):
    """A kernel with one step size, which :func:`~energyppl.adapt` tunes to a mean acceptance.

    A class attribute ``step_size_limit`` is the largest step size that is valid, 1 for the β of Crank–Nicolson; without
    it a step size may be any positive number.

    Example:
        >>> [isinstance(kernel, ep.kernels.StepSizeTunable) for kernel in (ep.MALA(0.1), ep.kernels.BinaryGibbs())]
        [True, False]
    """

    target_acceptance: ClassVar[float | None]
    """The mean acceptance that serves it best; None if it never rejects (see :class:`Unadjusted`)."""

    @property
    def step_size(self) -> float | Tensor:
        """A number, or one for each chain, ``(*chains,)``."""
        ...

    def with_step_size(self, step_size: float | Tensor) -> "StepSizeTunable":
        """Return the same kernel with another step size."""
        ...


@runtime_checkable
class Unadjusted(StepSizeTunable, Protocol):
    """A kernel that never rejects: its step size is judged by the acceptance that its proposals would have.

    Example:
        >>> ep.Langevin(0.5).adjusted()
        MALA(step_size=0.5...)
    """

    def adjusted(self) -> StepSizeTunable:
        """Return the kernel that makes the same proposals and accepts them by Metropolis and Hastings."""
        ...


class TunableKernel(StepSizeTunable, Protocol):
    """A kernel whose step size can be set for each noise level.

    Example:
        >>> kernel: ep.kernels.TunableKernel = ep.MALA(0.1)
        >>> step, one = torch.tensor([0.1, 0.2]), torch.ones(2)
        >>> kernel.resized(step, width=0.5 * one, marginal_std=one).step_size.shape
        torch.Size([2])
    """

    max_step_size: ClassVar[float]
    """The largest step size that makes sense, in widths of the target."""

    def resized(self, step: Tensor, width: Tensor, marginal_std: Tensor) -> "TunableKernel":
        """Return the same kernel for noise levels, one step size for each chain.

        Args:
            step: relative step size.
            width: width of the recovery distribution at most, the tilt's.
            marginal_std: standard deviation of the level's marginal.
        """
        ...


def middle_step(kernel: object) -> float:
    """Find the median step size of a kernel's chains; NaN for a kernel that has no one step size."""
    size = getattr(kernel, "step_size", math.nan)
    if isinstance(size, Tensor):
        return float(size.median())
    return float(size) if is_number(size) else math.nan


def evaluate(potential: Potential, x: Tensor, force_dtype: torch.dtype | None = None) -> State:
    """Evaluate the state at ``x``, ``(*chains, *event)``, its gradient in ``force_dtype`` if one is given.

    Example:
        >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> ep.kernels.evaluate(bell, torch.ones(1, 2)).energy
        tensor([1.])
    """
    if force_dtype is None:
        energy, grad = energy_and_grad(potential, x)
    else:
        energy, grad = energy_only(potential, x), gradient_only(potential, x, force_dtype)
    return State(x.detach(), energy, grad)


def check_kernel(kernel: Any, name: str = "kernel") -> None:
    """Require a kernel, and not its class."""
    if isinstance(kernel, type) or not all(callable(getattr(kernel, method, None)) for method in ("init", "step")):
        raise InvalidInput(f"{name} must have init and step, as HMC() or NUTS(); got {kernel!r}")


def check_force_dtype(dtype: torch.dtype | None, name: str = "force_dtype") -> None:
    """Require None, or a floating type that networks run faster in."""
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise InvalidInput(f"{name} must be None, torch.bfloat16 or torch.float16; got {dtype}")


def casting(x: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """Cast to ``dtype`` automatically on the device of ``x``; do nothing if None."""
    return torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None)


def select(accepted: Tensor, new: State, old: State) -> State:
    """Take the new state where ``accepted``, ``(*chains,)``, and the old one elsewhere.

    Example:
        >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (1,))
        >>> old, new = (ep.kernels.evaluate(bell, x) for x in (torch.zeros(2, 1), torch.ones(2, 1)))
        >>> ep.kernels.select(torch.tensor([True, False]), new, old).x
        tensor([[1.],
                [0.]])
    """
    wide = append_dims(accepted, old.x).expand(old.x.shape).contiguous()  # where is slow on a strided mask
    return State(
        torch.where(wide, new.x, old.x),
        torch.where(accepted, new.energy, old.energy),
        old.grad if new.grad is old.grad else torch.where(wide, new.grad, old.grad),
    )


def metropolis(log_ratio: Tensor, new: State, old: State) -> tuple[State, Info]:
    """Accept with probability min(1, exp(log_ratio)); NaN, −∞ and a proposal of energy −∞ are rejected and flagged.

    A ratio of +∞ is a chain that started where the energy is infinite: it may leave.

    Example:
        >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> old, new = (ep.kernels.evaluate(bell, x) for x in (torch.ones(4, 2), torch.zeros(4, 2)))
        >>> state, info = ep.kernels.metropolis(old.energy - new.energy, new, old)  # downhill is always accepted
        >>> info.accepted
        tensor([True, True, True, True])
    """
    accept_prob = log_ratio.clamp(max=0.0).exp_()
    if surely_finite(log_ratio):  # then no energy is infinite either
        diverging = torch.zeros_like(accept_prob, dtype=torch.bool)
    else:
        legal = (log_ratio > -math.inf) & (new.energy > -math.inf)
        accept_prob, diverging = torch.where(legal, accept_prob, 0.0), ~legal
    accepted = torch.rand_like(accept_prob) < accept_prob
    return select(accepted, new, old), Info(accept_prob, accepted, diverging)


def surely_finite(*values: Tensor) -> bool:
    """Tell, where it costs little, that all values are finite; on a GPU the question would make every step wait."""
    return values[0].device.type == "cpu" and math.isfinite(sum(float(value.sum()) for value in values))


def dot(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Take the inner product over the event dimensions; ``like`` has the chains' dimensions only.

    Example:
        >>> ep.kernels.dot(torch.ones(3, 2), torch.ones(3, 2), like=torch.zeros(3))
        tensor([2., 2., 2.])
    """
    return (a * b).sum(dim=tuple(range(like.dim(), a.dim()))) if a.dim() > like.dim() else a * b

"""Run a kernel for a number of steps."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_count
from energyppl.autodiff.bound import bind
from energyppl.inference.kernels.contract import Info, Kernel, State
from energyppl.potentials.algebra import Potential

__all__ = ["MarkovSampler", "Trajectory", "run_chain"]


class Trajectory(NamedTuple):
    """Where the chains ended and how they fared."""

    state: State
    accept_prob: Tensor  # (*chains,), mean over the steps
    diverging: Tensor  # (*chains,), bool: any step did, as kernels count it
    evaluations: float  # of the energy (with its gradient, if the kernel needs one) for each chain, the first included


def run_chain(kernel: Kernel, potential: Potential, x: Tensor, steps: int) -> Trajectory:
    """Move the chains at ``x``, ``(*chains, *event)``, ``steps`` times.

    Raises:
        InvalidInput: if ``x`` does not end in the potential's event shape, or ``steps`` is below one.
    """
    check_count("steps", steps)
    potential = bind(potential)
    state = kernel.init(potential, x)
    accept_prob = torch.zeros_like(state.energy)
    diverging = ~torch.isfinite(state.energy)
    evaluations = 1.0
    info: Info
    for _ in range(steps):
        state, info = kernel.step(potential, state)
        accept_prob += info.accept_prob
        diverging |= info.diverging
        evaluations += info.cost()
    return Trajectory(state, accept_prob / steps, diverging, evaluations)


@dataclass(frozen=True, eq=False)
class MarkovSampler:
    """Draws from a potential by a fixed number of steps from white noise: how a bare energy becomes sampleable.

    Args:
        kernel: moves the chains.
        steps: moves for each draw.
        start_scale: standard deviation of the chains' starting points around the origin.
    """

    kernel: Kernel
    steps: int
    start_scale: float = 1.0

    def __call__(self, potential: Potential, shape: torch.Size, like: Tensor) -> Tensor:
        """Draws of shape ``(*shape, *event)`` with the dtype and device of ``like``."""
        start = self.start_scale * torch.randn((*shape, *potential.event_shape), dtype=like.dtype, device=like.device)
        return run_chain(self.kernel, potential, start, self.steps).state.x

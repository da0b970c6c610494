"""Fixed-length runs of a kernel."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_count, check_positive
from energyppl.autodiff.bound import bind
from energyppl.inference.kernels.contract import Info, Kernel, State, check_kernel
from energyppl.potentials.algebra import Potential, as_potential

__all__ = ["MarkovSampler", "Trajectory", "run_chain"]


class Trajectory(NamedTuple):
    """End of a run: where the chains are and how they fared.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> end = ep.sampling.run_chain(ep.MALA(0.5), normal, torch.zeros(8, 2), 20)
        >>> end.state.x.shape, int(end.diverging.sum())
        (torch.Size([8, 2]), 0)
    """

    state: State
    accept_prob: Tensor  # (*chains,), mean over the steps
    diverging: Tensor  # (*chains,), bool: any step did, as kernels count it
    evaluations: float  # of the energy (with its gradient, if the kernel needs one) for each chain, the first included


def run_chain(kernel: Kernel, potential: Potential, x: Tensor, steps: int) -> Trajectory:
    """Move the chains at ``x``, ``(*chains, *event)``, ``steps`` times.

    Raises:
        InvalidInput: if ``x`` does not end in the potential's event shape, or ``steps`` is below one.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> end = ep.sampling.run_chain(ep.MALA(0.5), normal, torch.zeros(8, 2), 20)
        >>> end.state.x.shape, end.accept_prob.shape, end.evaluations
        (torch.Size([8, 2]), torch.Size([8]), 21.0)
    """
    check_kernel(kernel)
    as_potential("the target", potential)
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
    """A sampler for a bare energy: a fixed number of steps from white noise.

    Args:
        kernel: moves the chains.
        steps: moves for each draw.
        start_scale: standard deviation of the chains' starting points around the origin.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> ep.EnergyDistribution(normal, sampler=ep.sampling.MarkovSampler(ep.MALA(1.0), 10)).sample((5,)).shape
        torch.Size([5, 2])
    """

    kernel: Kernel
    steps: int
    start_scale: float = 1.0

    def __post_init__(self) -> None:
        check_kernel(self.kernel)
        check_count("steps", self.steps)
        check_positive("start_scale", self.start_scale)

    def __call__(self, potential: Potential, shape: torch.Size, like: Tensor) -> Tensor:
        """Draw points ``(*shape, *event)`` with the dtype and device of ``like``."""
        start = self.start_scale * torch.randn((*shape, *potential.event_shape), dtype=like.dtype, device=like.device)
        return run_chain(self.kernel, potential, start, self.steps).state.x

"""An exact joint density of points and levels, and a kernel that moves nothing."""

import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.kernels.contract import Info, State


class Bells(nn.Module):
    """N(0, I) at every level, plus a height for each: exact shares of levels are softmax(−heights)."""

    def __init__(self, size: int, heights: Tensor) -> None:
        super().__init__()
        self.event_shape = torch.Size((size,))
        self.heights = nn.Parameter(heights)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return 0.5 * x.square().sum(-1) + self.heights[level]


def bells(size: int = 2, heights: Tensor | None = None) -> ep.JointEBM:
    heights = torch.tensor([0.0, 0.7, -0.4, 0.2]) if heights is None else heights
    return ep.JointEBM(Bells(size, heights), ep.NoiseSchedule.cosine(len(heights) - 1))


class Still:
    """A kernel that moves nothing."""

    step_size, target_acceptance, max_step_size = 1.0, None, 1.0

    def resized(self, step: Tensor, width: Tensor, marginal_std: Tensor) -> "Still":
        return self

    def with_step_size(self, step_size: float | Tensor) -> "Still":
        return self

    def init(self, potential: ep.potentials.Potential, x: Tensor) -> State:
        return State(x, potential(x).detach(), torch.zeros_like(x))

    def step(self, potential: ep.potentials.Potential, state: State) -> tuple[State, Info]:
        ones = torch.ones_like(state.energy)
        return state, Info(ones, ones > 0, ones < 0)

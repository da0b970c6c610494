"""Multi-scale models of a Gaussian."""

import torch
from torch import Tensor, nn

import energyppl as ep
from tests.benchmarks.temperature import BASE, CIFAR


class Bell(nn.Module):
    """``½ k |x|²``: with it U is a Gaussian's energy."""

    def __init__(self, event_shape: tuple[int, ...] = (2,), k: float = 1.0) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.k = nn.Parameter(torch.tensor(k))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.k * x.square().flatten(x.dim() - len(self.event_shape)).sum(-1)


def gaussian(event_shape: tuple[int, ...] = (2,), k: float = 1.0) -> ep.MultiscaleEBM:
    return ep.MultiscaleEBM(Bell(event_shape, k), CIFAR, base_sigma=BASE)

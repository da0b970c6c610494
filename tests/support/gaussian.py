"""A Gaussian energy that is learned, and draws of it."""

import torch
from torch import Tensor, nn

import energyppl as ep

__all__ = []


COVARIANCE = torch.tensor([[1.0, 0.5], [0.5, 0.8]], dtype=torch.float64)


class Gaussian(nn.Module):
    """½ xᵀ P x, the symmetric P learnable."""

    def __init__(self, precision: Tensor) -> None:
        super().__init__()
        self.event_shape = torch.Size((len(precision),))
        self.weights = nn.Parameter(precision.clone())

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * torch.einsum("...i,ij,...j->...", x, self.weights, x)


def small_ebm(size: int = 2) -> ep.EBM:
    return ep.EBM(ep.MLPEnergy((size,), hidden=16, depth=2, frequencies=4, levels=1))


def draws(count: int) -> Tensor:
    return torch.randn(count, 2, dtype=torch.float64) @ torch.linalg.cholesky(COVARIANCE).mT

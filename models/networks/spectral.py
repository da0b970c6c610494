"""Spectral normalization whose vectors move when a weight is trained, and at no other time."""

import functools
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrize import register_parametrization

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def spectrally_normalized(layer: Layer, *, shrink: bool = False) -> Layer:
    """Divide a layer's weight, as a matrix of one row for each output, by its largest singular value.

    Args:
        layer: convolution or dense layer, changed in place.
        shrink: divide only where the value is above 1, so that a weight may be small, or begin at zero.
    """
    register_parametrization(layer, "weight", _SpectralNorm(layer.weight, shrink))
    return layer


class _SpectralNorm(nn.Module):
    """``W / σ(W)``, σ by one power iteration from the vector that the last training step left (Miyato et al. 2018).

    torch's own moves its vectors at each pass in ``train()`` mode, sampling included: energies would change under the
    chains, and no trace could serve them.  Here a pass writes nothing, so that the energy is a function of the weights,
    the same for sampling and for the loss; the vector is stored when the weight receives a gradient, once a backward.
    """

    def __init__(self, weight: Tensor, shrink: bool) -> None:
        super().__init__()
        self.shrink = shrink
        self.register_buffer("left", normalize(torch.randn(len(weight)).to(weight), dim=0))
        for _ in range(15):
            self.left.copy_(self._vectors(weight.detach().flatten(1))[0])

    left: Tensor

    def _vectors(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        right = normalize(matrix.t() @ self.left, dim=0)
        left = normalize(matrix @ right, dim=0)
        return torch.where(left.abs().sum() > 0, left, self.left), right  # a weight of zeros has no direction

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # half the digits would not find a singular value
            matrix = weight.flatten(1)
            with torch.no_grad():
                left, right = self._vectors(matrix)
            normed = weight / left.dot(matrix @ right).clamp(min=1.0 if self.shrink else 1e-12)
        if normed.requires_grad:
            normed.register_hook(functools.partial(self._store, left))
        return normed

    def _store(self, left: Tensor, _: Tensor) -> None:
        self.left.copy_(left)

"""Random Fourier features, which perceptrons see points through (Tancik et al. 2020)."""

import math

import torch
from torch import Tensor, nn

from energyppl.errors import InvalidInput

__all__ = ["random_frequencies"]


def random_frequencies(size: int, count: int, limits: tuple[float, float]) -> Tensor:
    """Random directions with angular frequencies spread evenly on a log scale between the limits, ``(size, count)``.

    Raises:
        InvalidInput: if the limits are not positive or don't increase.
    """
    low, high = limits
    if not 0 < low <= high:
        raise InvalidInput(f"frequency_range must be 0 < low <= high; got {limits}")
    direction = nn.functional.normalize(torch.randn(size, count), dim=0)
    return direction * torch.logspace(math.log10(low), math.log10(high), count)

"""Perceptrons on Fourier features (Tancik et al. 2020), whose layers are scaled and shifted from outside."""

import itertools
import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from energyppl.errors import InvalidInput
from energyppl.models.networks.linear import Linear, is_plain, linear

__all__ = ["amplitudes", "axis_frequencies", "feature_layers", "random_frequencies", "through_layers"]


def random_frequencies(size: int, count: int, limits: tuple[float, float]) -> Tensor:
    """Draw random directions with angular frequencies evenly on a log scale between limits, ``(size, count)``."""
    along = _frequencies(count, limits)
    return nn.functional.normalize(torch.randn(size, count), dim=0) * along


def axis_frequencies(size: int, count: int, limits: tuple[float, float]) -> Tensor:
    """Return the same angular frequencies along each coordinate, evenly on a log scale, ``(size, size * count)``.

    The columns of tables have bounds, grids and gaps: edges that lie across one coordinate.
    """
    return torch.kron(torch.eye(size), _frequencies(count, limits)[None])


def amplitudes(size: int, random: int, along: Tensor, decay: float) -> Tensor:
    """Return amplitudes of coordinates, of sines and of cosines, ``(size + 2 (random + count),)``.

    A feature along a coordinate with an angular frequency ω above 1 has the amplitude ``ω ** −decay``, all others 1: a
    smooth density is learned before a rough one, as by a kernel whose spectrum falls likewise (Rahimi & Recht 2007).

    Args:
        size: number of coordinates.
        random: number of features in random directions, which come first.
        along: frequencies along coordinates, ``(size, count)``.
        decay: the power.
    """
    phases = torch.cat([torch.ones(random), along.norm(dim=0).clamp(min=1.0) ** -decay])
    return torch.cat([torch.ones(size), phases, phases])


def _frequencies(count: int, limits: tuple[float, float]) -> Tensor:
    low, high = limits
    if not 0 < low <= high:
        raise InvalidInput(f"frequency_range must be 0 < low <= high; got {limits}")
    return torch.logspace(math.log10(low), math.log10(high), count)


def feature_layers(size: int, frequencies: int, hidden: int, depth: int) -> nn.ModuleList:
    """Make the hidden layers of a perceptron on so many coordinates and both phases of so many frequencies."""
    widths = [size + 2 * frequencies, *[hidden] * depth]
    return nn.ModuleList(Linear(a, b) for a, b in itertools.pairwise(widths))


def through_layers(
    points: Tensor,
    frequencies: Tensor,
    layers: nn.ModuleList,
    modulation: Iterable[tuple[Tensor, Tensor]],
    amplitude: Tensor | None = None,
) -> Tensor:
    """Take points ``(*batch, size)`` through the features and the layers, ``(*batch, hidden)``.

    Args:
        points: rows.
        frequencies: of the features, ``(size, count)``.
        layers: from :func:`feature_layers`.
        modulation: factor and shift of each layer's units before its SiLU, ``(*batch, hidden)`` or ``(hidden,)``.
        amplitude: of the coordinates and the features, from :func:`amplitudes`; all 1 if None.
    """
    phase = points @ frequencies
    hidden = torch.cat([points, phase.sin(), phase.cos()], -1)
    for number, (layer, (factor, shift)) in enumerate(zip(layers, modulation, strict=True)):
        scaled = amplitude if number == 0 else None
        if scaled is None and not (factor.dim() == 1 and is_plain(layer)):
            hidden = torch.addcmul(shift, layer(hidden), factor)
        else:  # scaling the weights costs less than scaling every point, and by one level is done once for a chain
            dense = cast(nn.Linear, layer)
            weight, bias = dense.weight if scaled is None else dense.weight * scaled, dense.bias
            if factor.dim() == 1:
                hidden = linear(hidden, weight * factor[:, None], torch.addcmul(shift, bias, factor))
            else:
                hidden = torch.addcmul(shift, linear(hidden, weight, bias), factor)
        hidden = nn.functional.silu(hidden)
    return hidden

"""Building blocks of image networks: shapes, channel multipliers, and modulated features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_shape, shape_text
from energyppl.errors import InvalidInput


def image_shape(event_shape: Sequence[int]) -> torch.Size:
    """Require ``(channels, height, width)``, each at least 1."""
    shape = check_shape("event_shape", event_shape, at_least=1)
    if len(shape) != 3:
        raise InvalidInput(
            f"event_shape must be (channels, height, width); got {shape_text(shape)}: give grey images one channel"
        )
    return shape


def channel_multipliers(shape: torch.Size, multipliers: Sequence[int] | None, *, widen: bool = True) -> tuple[int, ...]:
    """Return channel multipliers, one for each resolution, every one half of the last; by the image's size if None.

    By itself a network halves up to three times, while both sides are even and above 4: 8 → 4, 28 → 14 → 7, and
    32 → 16 → 8 → 4; its channels double once if ``widen``.
    """
    _, height, width = shape
    if multipliers is None:
        halvings = next(n for n in range(4) if n == 3 or _odd_or_small(height >> n) or _odd_or_small(width >> n))
        return (1, *[2 if widen else 1] * halvings)
    if not multipliers:
        raise InvalidInput("multipliers must name at least one resolution; got none: pass (1,) for no downsampling")
    for multiplier in multipliers:
        check_count("every multiplier", multiplier)
    factor = 2 ** (len(multipliers) - 1)
    if height % factor or width % factor:
        raise InvalidInput(
            f"{len(multipliers)} multipliers need sides that {factor} divides; got {height}×{width}: "
            "pass fewer multipliers, or pad the images"
        )
    return tuple(multipliers)


def _odd_or_small(side: int) -> bool:
    return side % 2 == 1 or side <= 4


def modulated(features: Tensor, piece: Tensor) -> Tensor:
    """Shift features ``(n, channels, height, width)`` by ``(n, channels)``; scale them too, if it is twice as many."""
    piece = piece.to(features.dtype)[..., None, None]  # float32 would turn the features of autocast into itself
    if piece.shape[-3] == features.shape[-3]:
        return features + piece
    scale, shift = piece.chunk(2, -3)
    return torch.addcmul(shift, features, 1.0 + scale)  # one pass over the features


def convolution(before: int, after: int, size: int = 3, *, zero: bool = False) -> nn.Conv2d:
    """Make a convolution that keeps the resolution; with ``zero`` it returns zeros at first."""
    layer = nn.Conv2d(before, after, size, padding=size // 2)
    if zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer

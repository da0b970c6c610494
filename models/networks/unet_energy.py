"""A small U-Net of image patches that returns an energy at a continuous noise level, for a CPU."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad, pixel_unshuffle, silu

from energyppl._checks import check_count, check_number, checked
from energyppl.models.networks.blocks import convolution, image_shape, modulated
from energyppl.models.networks.conditioning import LogSNRTable, check_log_snr, one_batch, one_batch_of_rows
from energyppl.models.networks.recipe import Rebuildable

__all__ = ["UNetEnergy"]

_PATCH = 2
_FADING = 0.25  # of log-SNR, over which the tilt of the sharpest level sets in
_NEVER = 1e6  # a log-SNR that no level has
_COARSEST = 8  # patches in a row at the lowest resolution, at most


class UNetEnergy(Rebuildable, nn.Module):
    """``U(x, λ, c) = ½ |x|² + (d/2) log 2π + (e^{λ/2} − e^{λ_min/2}) f(x, λ, c)``, f a U-Net's features summed up.

    The noise level is continuous: λ is the log-SNR, and at λ_min the energy is that of N(0, I).  As e^{λ/2} is α/σ, f's
    gradient is of the order of one at every level, and a score of the noise follows from it without large numbers.

    f is linear in its last features.  At log-SNRs from ``tilt_from`` on, a quarter below which it fades in, the weights
    of these have a term of their own, ``tilt``, which :func:`energyppl.levels.match_moments` fits; zero before.

    Patches of 2×2 pixels become channels first, so that no convolution works at the full resolution.  Resolutions halve
    until at most 8 patches are left in a row; there all patches are mixed, by a dense layer over their positions.  On
    the way up each resolution gets back what it was on the way down.  Nothing normalizes features; all of them grow at
    most linearly, so that ½|x|² makes every level normalizable.  Images of any size are padded by their mean.

    Args:
        event_shape: ``(channels, height, width)``.
        width: channels at the first resolution; twice as many below.
        blocks: residual blocks at each resolution, on the way down and again on the way up; at least one.
        log_snr_min: λ_min, at most the noisiest level's.
        classes: number of classes.  Labels are 0 to ``classes − 1``; ``classes`` means "no class", as does no label.

    Raises:
        InvalidInput: for sizes below one.

    Example:
        >>> net = ep.models.UNetEnergy((1, 28, 28), width=8, classes=10)
        >>> ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(levels=30, log_snr_max=5.0))
        >>> ebm.given(3).marginal().energy(torch.rand(4, 1, 28, 28)).shape
        torch.Size([4])
    """

    continuous = True
    levels = None
    tilt: Tensor  # (width,)
    tilt_from: Tensor  # (), a log-SNR

    @checked
    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        width: int = 32,
        blocks: int = 1,
        log_snr_min: float = -6.0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("blocks", blocks)):
            check_count(name, value)
        check_count("classes", classes, at_least=0)
        check_number("log_snr_min", log_snr_min)
        self.event_shape = image_shape(event_shape)
        self.classes = classes
        self.log_snr_min = float(log_snr_min)
        channels, *sides = self.event_shape
        patches = [-(-side // _PATCH) for side in sides]
        halvings = max(0, math.ceil(math.log2(max(patches) / _COARSEST)))
        coarse = [-(-side // 2**halvings) for side in patches]
        self._padding = [side * 2**halvings * _PATCH - own for side, own in zip(coarse, sides, strict=True)]
        widths = [width, *[2 * width] * halvings]
        before = [width, *widths[:-1]]
        self.stem = convolution(channels * _PATCH**2, width)
        self.down = nn.ModuleList(_blocks(blocks, first, size) for first, size in zip(before, widths, strict=True))
        self.mixing = _Mixing(widths[-1], coarse[0] * coarse[1])
        self.narrow = nn.ModuleList(convolution(above, size, 1) for size, above in pairwise(widths))
        self.up = nn.ModuleList(_blocks(blocks, size, size) for size in widths)
        sizes = [2 * size for size in (*widths, *reversed(widths)) for _ in range(blocks)]
        self.conditioning = LogSNRTable(sizes, width, classes=classes)
        self.readout = nn.Parameter(torch.zeros(width))
        self.register_buffer("tilt", torch.zeros(width))
        self.register_buffer("tilt_from", torch.tensor(_NEVER))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast in bfloat16

    def forward(self, x: Tensor, level: Tensor, label: int | Tensor | None = None) -> Tensor:
        """Evaluate the energies, in nats.

        Args:
            x: images, ``(*batch, channels, height, width)``.
            level: log-SNRs, ``()`` or broadcastable to ``(*batch,)``.
            label: classes, likewise; ``classes`` or None for no class.

        Returns:
            Energies, ``(*batch,)``.

        Raises:
            InvalidInput: for images of another shape, whole levels, or a label that is out of range or where there are
                no classes.
        """
        images, batch = one_batch(x, self.event_shape)
        check_log_snr(level)
        return self._energy(images, self.conditioning(level, label, batch), level, batch)

    def at_levels(self, x: Tensor, level: Tensor, log_snr: Tensor, label: int | Tensor | None = None) -> Tensor:
        """Evaluate the energies at whole levels of a table of log-SNRs, whose modulations are worked out once.

        Args:
            x: images, ``(*batch, channels, height, width)``.
            level: indices into the table, ``()`` or ``(*batch,)``.
            log_snr: the table, ``(levels,)``.
            label: as in :meth:`forward`.
        """
        images, batch = one_batch(x, self.event_shape)
        return self._energy(images, self.conditioning(level, label, batch, log_snr), log_snr.take(level.long()), batch)

    def moments(self, x: Tensor, level: Tensor) -> Tensor:
        """Evaluate the features that the tilt weighs, for no class, ``(*batch, width)``.

        Args:
            x: images, ``(*batch, channels, height, width)``.
            level: one log-SNR, ``()``.
        """
        images, batch = one_batch(x, self.event_shape)
        *pieces, _ = self.conditioning(level, None, batch)
        return (self._weight(level) * self._pooled(images, pieces)).reshape(*batch, -1)

    def _energy(self, images: Tensor, modulations: list[Tensor], log_snr: Tensor, batch: torch.Size) -> Tensor:
        *pieces, weights = modulations
        near = (1.0 + (log_snr - self.tilt_from) / _FADING).clamp(0.0, 1.0)
        weights = weights + self.readout + one_batch_of_rows(near[..., None] * self.tilt, batch)
        f = (self._pooled(images, pieces) * weights).sum(-1).reshape(batch)
        weight = self._weight(log_snr)
        square = (images * images).sum((-3, -2, -1)).reshape(batch)
        energy: Tensor = weight * f + 0.5 * (square + math.prod(self.event_shape) * math.log(2.0 * math.pi))
        return energy

    def _weight(self, log_snr: Tensor) -> Tensor:
        return (0.5 * log_snr).exp() - math.exp(0.5 * self.log_snr_min)

    def _pooled(self, images: Tensor, pieces: list[Tensor]) -> Tensor:
        features = self._features(images, iter(pieces))
        return silu(features).sum((-2, -1), dtype=images.dtype)  # a sum in bfloat16 has three digits

    def _features(self, images: Tensor, pieces: Iterator[Tensor]) -> Tensor:
        """Return features of the patches, ``(n, width, height, width)``; ``pieces`` modulate the blocks in order."""
        height, width = self._padding
        x = self.stem(pixel_unshuffle(pad(images, (0, width, 0, height)), _PATCH))
        kept = []
        for index, part in enumerate(self.down):
            x = avg_pool2d(x, 2) if index else x
            for block in cast(nn.ModuleList, part):
                x = block(x, next(pieces))
            kept.append(x)
        x = self.mixing(x)
        for index in reversed(range(len(self.up))):
            if index < len(self.narrow):
                x = kept[index] + interpolate(self.narrow[index](x), scale_factor=2.0)
            for block in cast(nn.ModuleList, self.up[index]):
                x = block(x, next(pieces))
        features: Tensor = x
        return features


def _blocks(count: int, before: int, after: int) -> nn.ModuleList:
    return nn.ModuleList(_Block(after if index else before, after) for index in range(count))


class _Block(nn.Module):
    """Two convolutions past a shortcut, modulated in between; the second is zero at first: a block is its shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = convolution(before, after)
        self.second = convolution(after, after, zero=True)
        self.shortcut = convolution(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, piece: Tensor) -> Tensor:
        hidden = modulated(self.first(silu(x)), piece)
        total: Tensor = self.shortcut(x) + self.second(silu(hidden))
        return total


class _Mixing(nn.Module):
    """A dense layer over the positions of a grid, the same for each channel, past a shortcut; zero at first."""

    def __init__(self, channels: int, positions: int) -> None:
        super().__init__()
        self.inner = convolution(channels, channels, 1)
        self.positions = nn.Linear(positions, positions)
        self.outer = convolution(channels, channels, 1, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.positions(self.inner(silu(x)).flatten(2)).unflatten(2, x.shape[2:])
        total: Tensor = x + self.outer(silu(hidden))
        return total

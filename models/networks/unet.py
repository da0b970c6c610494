"""U-Net that initializes recovery chains of images: q(y | x_{t+1}) of CDRL (Zhu et al. 2024)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, scaled_dot_product_attention, silu

from energyppl._checks import check_count, checked
from energyppl.errors import InvalidInput
from energyppl.models.networks.blocks import channel_multipliers, convolution, image_shape, modulated
from energyppl.models.networks.conditioning import (
    Conditioning,
    ConditionTable,
    SinusoidalConditioning,
    level_rows,
    one_batch,
)
from energyppl.models.networks.conv import log_snr_positions
from energyppl.models.networks.mlp_initializer import soft_log_scale
from energyppl.models.networks.recipe import Rebuildable

__all__ = ["UNetInitializer"]


class UNetInitializer(Rebuildable, nn.Module):
    """``(shift, log_scale)`` of a Gaussian q(y | x_{t+1}) of images, relative to a reference that the caller adds.

    The contract is that of :class:`~energyppl.models.MLPInitializer`: both are zero at first.  The network is the U-Net
    of denoising diffusion (Ho et al. 2020), with residual blocks that also halve and double (Zhu et al. 2024); level
    and class scale and shift the features of every block, by tables with one row for each.

    Args:
        event_shape: ``(channels, height, width)``.
        width: channels at the first resolution; as in CDRL, half of those of the energy.
        multipliers: channels at each resolution, in widths; each but the first is half as large as the one before.  By
            itself the network keeps its width and halves up to three times, while both sides are even and above 4.
        blocks: residual blocks at each resolution on the way down; one more on the way up.
        levels: rows of the level table; at least the schedule's levels.
        classes: number of classes.  Labels are 0 to ``classes − 1``; ``classes`` means "no class", as does no label.
        attention: heights of the images at which every block attends to all places; the innermost always does.
        dropout: share of features dropped in each block in ``train()`` mode; CDRL's is 0.1.
        learn_scale: learn a log scale for each level, between −6 and 2; else it is 0.
        conditioning: what turns level and class into a scale and shift of every block, in place of the tables; built by
            a function of the blocks' sizes and 0.

    Raises:
        InvalidInput: for sizes below one, images whose sides can't be halved as often, heights that don't occur, or a
            share outside [0, 1).

    Example:
        >>> net = ep.UNetInitializer((1, 8, 8), levels=3, width=8)
        >>> shift, log_scale = net(torch.rand(5, 1, 8, 8), torch.tensor(0))
        >>> shift.shape
        torch.Size([5, 1, 8, 8])
    """

    @checked
    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        width: int = 16,
        multipliers: Sequence[int] | None = None,
        blocks: int = 1,
        levels: int = 64,
        classes: int = 0,
        attention: Sequence[int] = (),
        dropout: float = 0.0,
        learn_scale: bool = False,
        conditioning: Conditioning | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("blocks", blocks), ("levels", levels)):
            check_count(name, value)
        check_count("classes", classes, at_least=0)
        if not 0.0 <= dropout < 1.0:
            raise InvalidInput(f"dropout must lie in [0, 1); got {dropout}")
        self.event_shape = image_shape(event_shape)
        self.levels = levels
        self.classes = classes
        channels = [
            width * multiplier for multiplier in channel_multipliers(self.event_shape, multipliers, widen=False)
        ]
        heights = [self.event_shape[1] >> index for index in range(len(channels))]
        if not set(attention) <= set(heights):
            raise InvalidInput(f"attention must name heights that occur, of {heights}; got {list(attention)}")

        stages = [_Stage(size, height in attention) for size, height in zip(channels, heights, strict=True)]
        down, kept = _way_down(width, stages, blocks, dropout)
        middle = [_Block(channels[-1], channels[-1], dropout, attends=attends) for attends in (True, False)]
        up = _way_up(kept, stages, blocks, dropout)
        self.stem = convolution(self.event_shape[0], width)
        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)
        self.norm = _group_norm(channels[0])
        self.last = convolution(channels[0], self.event_shape[0], zero=True)
        sizes = [2 * block.first.out_channels for block in (*down, *middle, *up)]
        self.conditioning: nn.Module = (
            ConditionTable(sizes, levels=levels, classes=classes) if conditioning is None else conditioning(sizes, 0)
        )
        self.log_scale = nn.Parameter(torch.zeros(levels, 1)) if learn_scale else None

    def forward(self, x: Tensor, level: Tensor, label: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return shift and log scale of the starts, given the noisy images.

        Args:
            x: noisy images x_{t+1} of about unit variance, ``(*batch, channels, height, width)``.
            level: whole levels t, ``()`` or broadcastable to ``(*batch,)``.
            label: classes, likewise; ``classes`` or None for no class.

        Returns:
            The shift, shaped like ``x``, and the log scale, ``(*level, 1, 1, 1)``, or a zero ``()`` if it is not
            learned.

        Raises:
            InvalidInput: for images of another shape, or a label that is out of range or where there are no classes.
        """
        images, batch = one_batch(x, self.event_shape)
        pieces = iter(self.conditioning(level, label, batch))
        features = self.stem(images)
        kept = [features]
        for block in self.down:
            features = block(features, next(pieces))
            kept.append(features)
        for block in self.middle:
            features = block(features, next(pieces))
        for block in self.up:
            features = features if block.resample is not None else torch.cat([features, kept.pop()], 1)
            features = block(features, next(pieces))
        shift: Tensor = self.last(silu(self.norm(features)))
        log_scale = x.new_zeros(())
        if self.log_scale is not None:
            log_scale = soft_log_scale(level_rows(self.log_scale, level, batch))[..., None, None]
        return shift.reshape(x.shape), log_scale

    @classmethod
    def cdrl_cifar10(
        cls, levels: int = 6, *, width: int = 64, blocks: int = 3, classes: int = 0, learn_scale: bool = False
    ) -> "UNetInitializer":
        """Build CDRL's initializer for CIFAR-10: 64 channels at 32, 16 and 8, attention at 16 and 8 (Zhu et al. 2024).

        Levels enter by their log-SNR on the cosine schedule, through sinusoids and two dense layers.  The paper's
        network adds its output to its input and bounds both by a tanh, since it predicts an image in [−1, 1]; here the
        caller adds the shift to a reference.

        Args:
            levels: of the cosine schedule.
            width: channels at all three resolutions.
            blocks: residual blocks at each resolution; 2 for ImageNet32.
            classes: number of classes.
            learn_scale: learn a log scale for each level; in the paper it is fixed.
        """

        def conditioning(sizes: Sequence[int], head: int) -> nn.Module:
            positions = log_snr_positions(levels)
            return SinusoidalConditioning(sizes, head, positions=positions, width=width, classes=classes)

        net = cls(
            (3, 32, 32),
            width=width,
            multipliers=(1, 1, 1),
            blocks=blocks,
            levels=levels,
            classes=classes,
            attention=(16, 8),
            dropout=0.1,
            learn_scale=learn_scale,
            conditioning=conditioning,
        )
        options = {"width": width, "blocks": blocks, "classes": classes, "learn_scale": learn_scale}
        return net.built_by("cdrl_cifar10", levels=levels, **options)


class _Stage(NamedTuple):
    """Resolution of a U-Net: the channels of its blocks, and whether they attend."""

    channels: int
    attends: bool


def _way_down(width: int, stages: Sequence[_Stage], blocks: int, dropout: float) -> tuple[list["_Block"], list[int]]:
    """Return the blocks down to the lowest resolution, and the channels of the features kept for the way up."""
    down: list[_Block] = []
    kept = [width]
    for index, stage in enumerate(stages):
        for _ in range(blocks):
            down.append(_Block(kept[-1], stage.channels, dropout, attends=stage.attends))
            kept.append(stage.channels)
        if index < len(stages) - 1:
            down.append(_Block(stage.channels, stage.channels, dropout, resample=_halve))
            kept.append(stage.channels)
    return down, kept


def _way_up(kept: Sequence[int], stages: Sequence[_Stage], blocks: int, dropout: float) -> list["_Block"]:
    """Return the blocks up again, each of which also takes in features of ``kept``, the last first."""
    up: list[_Block] = []
    before, beside = stages[-1].channels, iter(reversed(kept))
    for index, stage in reversed(list(enumerate(stages))):
        for _ in range(blocks + 1):
            up.append(_Block(before + next(beside), stage.channels, dropout, attends=stage.attends))
            before = stage.channels
        if index > 0:
            up.append(_Block(stage.channels, stage.channels, dropout, resample=_double))
    return up


def _halve(x: Tensor) -> Tensor:
    return avg_pool2d(x, 2)


def _double(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0, mode="nearest")


def _group_norm(channels: int) -> nn.GroupNorm:
    """Make a group norm of 32 groups where there are channels enough for two in each."""
    return nn.GroupNorm(math.gcd(32, channels, max(1, channels // 2)), channels, eps=1e-6)


class _Block(nn.Module):
    """Two normalized convolutions past a shortcut, modulated in between; the second is zero at first.

    Args:
        before: channels that come in.
        after: channels that go out.
        rate: share of features dropped.
        attends: attend to all places afterwards.
        resample: halve or double the resolution on the way.
    """

    def __init__(
        self,
        before: int,
        after: int,
        rate: float,
        *,
        attends: bool = False,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.rate = rate
        self.resample = resample
        self.first_norm, self.second_norm = _group_norm(before), _group_norm(after)
        self.first = convolution(before, after)
        self.second = convolution(after, after, zero=True)
        self.shortcut = convolution(before, after, 1) if before != after else nn.Identity()
        self.attention = _Attention(after) if attends else nn.Identity()

    def forward(self, x: Tensor, piece: Tensor) -> Tensor:
        hidden = silu(self.first_norm(x))
        if self.resample is not None:
            hidden, x = self.resample(hidden), self.resample(x)
        hidden = silu(modulated(self.second_norm(self.first(hidden)), piece))
        if self.rate:
            hidden = nn.functional.dropout(hidden, self.rate, self.training)
        total: Tensor = self.attention(self.shortcut(x) + self.second(hidden))
        return total


class _Attention(nn.Module):
    """Softmax attention of all places to each other, one head, added to its input; zero at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.to_unit = convolution(channels, 3 * channels, 1)
        self.project_out = convolution(channels, channels, 1, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.to_unit(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
        attended = scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(x.shape)
        total: Tensor = x + self.project_out(attended)
        return total

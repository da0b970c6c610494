"""A residual, time-conditioned convolutional network that returns the energy of an image."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, silu

from energyppl._checks import check_count, check_number, check_positive, checked, shape_text
from energyppl.errors import InvalidInput
from energyppl.models.networks.blocks import channel_multipliers, convolution, image_shape, modulated
from energyppl.models.networks.conditioning import (
    Conditioning,
    ConditionTable,
    LogSNRTable,
    SinusoidalConditioning,
    check_log_snr,
    level_rows,
    near_gaussian,
    one_batch,
    table_rows,
)
from energyppl.models.networks.recipe import Rebuildable
from energyppl.models.networks.spectral import spectrally_normalized
from energyppl.schedule import NoiseSchedule

__all__ = ["ConvEnergy"]

Activation = Callable[[Tensor], Tensor]


class ConvEnergy(Rebuildable, nn.Module):
    """``U(x, t, c) = f(x, t, c) + ½ confinement |x|²`` with f a residual network whose features are summed over space.

    A ``continuous`` network takes the log-SNR λ in place of a whole level t, as :class:`MLPEnergy` does:
    ``U(x, λ, c) = ½ |x|² + (d/2) log 2π + (sigmoid λ − sigmoid λ_min) f(x, λ, c)``, N(0, I) at λ_min.

    It expects images of about unit variance, which :class:`~energyppl.RecoveryEBM` hands it at every level.  f grows at
    most linearly, so the quadratic term makes every level's energy normalizable.  Level and class scale and shift the
    features of every block and weigh the sum at the end, by tables with one row for each or by a small perceptron of λ.
    :meth:`drl_cifar10` and :meth:`cdrl_cifar10` are the published networks; the defaults are small ones, for a CPU.

    Args:
        event_shape: ``(channels, height, width)``.
        width: channels at the first resolution.
        multipliers: channels at each resolution, in widths; each but the first is half as large as the one before.  By
            itself the network halves up to three times, while both sides are even and above 4.
        blocks: residual blocks at each resolution.
        levels: rows of the level table, at least the schedule's levels; 64 if None and it is not continuous.
        continuous: whether the noise level is continuous.
        log_snr_min: λ_min of a continuous network.
        classes: number of classes.  Labels are 0 to ``classes − 1``; ``classes`` means "no class", as does no label.
        spectral_norm: divide every weight but the head's by its largest singular value; the second convolution of a
            block only where that is above 1, and it gets a gain for each channel.
        confinement: strength of the quadratic term, 0 for none, as in the papers; the energy may then not be
            normalizable.
        activation: applied to features, elementwise.
        final_activation: applied before the sum; ``activation`` if None.
        shortcut_size: side of the convolution past a block that changes the number of channels, odd.
        output_scale: what f is multiplied with at each level, ``(levels,)``; 1 if None.  The papers' energy in nats is
            that of their network times 1/s_t², s_t the step of their Langevin noise.
        conditioning: what turns level and class into a shift of every block and the weights of the sum, in place of the
            tables; built by a function of the blocks' and the head's sizes.

    Raises:
        InvalidInput: for sizes below one, images whose sides can't be halved as often, a negative confinement, or
            levels, a confinement, an output scale or a conditioning of a continuous network.

    Example:
        >>> net = ep.ConvEnergy((1, 8, 8), levels=3, width=8)
        >>> net(torch.rand(5, 1, 8, 8), torch.tensor(0)).shape
        torch.Size([5])
    """

    output_scale: Tensor | None

    @checked
    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        width: int = 32,
        multipliers: Sequence[int] | None = None,
        blocks: int = 1,
        levels: int | None = None,
        continuous: bool = False,
        log_snr_min: float = -6.0,
        classes: int = 0,
        spectral_norm: bool = False,
        confinement: float = 1.0,
        activation: Activation = silu,
        final_activation: Activation | None = None,
        shortcut_size: int = 1,
        output_scale: Sequence[float] | Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> None:
        super().__init__()
        levels = table_rows(levels, continuous)
        _check_sizes(width, blocks, shortcut_size, classes, confinement)
        self.continuous = continuous
        if continuous and (confinement != 1.0 or output_scale is not None or conditioning is not None):
            raise InvalidInput(
                "a continuous network has confinement 1 and neither output_scale nor conditioning: leave them out"
            )
        check_number("log_snr_min", log_snr_min)
        self.log_snr_min = float(log_snr_min)
        self.event_shape = image_shape(event_shape)
        self.levels, self.classes, self.confinement = levels, classes, confinement
        self.activation = activation
        self.final_activation = activation if final_activation is None else final_activation
        self.register_buffer("output_scale", None if levels is None else _scales(output_scale, levels))

        multipliers = channel_multipliers(self.event_shape, multipliers)
        channels = [width * multiplier for multiplier in multipliers for _ in range(blocks)]
        self.stem = convolution(self.event_shape[0], width)
        if spectral_norm:
            spectrally_normalized(self.stem)
        self.blocks = nn.ModuleList(
            _Block(before, after, activation, spectral_norm, shortcut_size, halve=index > 0 and index % blocks == 0)
            for index, (before, after) in enumerate(zip([width, *channels], channels, strict=False))
        )
        self.readout: nn.Parameter | None = None
        if conditioning is None:
            sizes = [2 * size for size in channels]
            self.conditioning: nn.Module = (
                LogSNRTable(sizes, channels[-1], classes=classes)
                if levels is None
                else ConditionTable(sizes, channels[-1], levels=levels, classes=classes)
            )
            # A mean over space to begin with: a sum of random features would drown the quadratic term.
            area = self.event_shape[1] * self.event_shape[2] / 4 ** (len(multipliers) - 1)
            drawn = torch.zeros(channels[-1]) if self.continuous else torch.randn(channels[-1])
            self.readout = nn.Parameter(drawn / (area * math.sqrt(channels[-1])))
        else:
            self.conditioning = conditioning(channels, channels[-1])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast in bfloat16

    def forward(self, x: Tensor, level: Tensor, label: int | Tensor | None = None) -> Tensor:
        """Evaluate the energies, in nats.

        Args:
            x: images, ``(*batch, channels, height, width)``.
            level: whole levels, or log-SNRs if the network is continuous, ``()`` or broadcastable to ``(*batch,)``.
            label: classes, likewise; ``classes`` or None for no class.

        Returns:
            Energies, ``(*batch,)``.

        Raises:
            InvalidInput: for images of another shape, or a label that is out of range or where there are no classes, or
                whole levels for a continuous network.
        """
        images, batch = one_batch(x, self.event_shape)
        if self.continuous:
            check_log_snr(level)
            return self._continuous(images, self.conditioning(level, label, batch), level, batch)
        f = self._features(images, self.conditioning(level, label, batch), batch)
        if self.output_scale is not None:
            f = f * level_rows(self.output_scale[:, None], level, batch).squeeze(-1)
        if self.confinement:
            f = f + 0.5 * self.confinement * (images * images).sum((-3, -2, -1)).reshape(batch)
        return f

    def at_levels(self, x: Tensor, level: Tensor, log_snr: Tensor, label: int | Tensor | None = None) -> Tensor:
        """Evaluate a continuous network at whole levels of a table of log-SNRs, whose modulations are worked out once.

        Args:
            x: images, ``(*batch, channels, height, width)``.
            level: indices into the table, ``()`` or ``(*batch,)``.
            log_snr: the table, ``(levels,)``.
            label: as in :meth:`forward`.
        """
        images, batch = one_batch(x, self.event_shape)
        return self._continuous(
            images, self.conditioning(level, label, batch, log_snr), log_snr.take(level.long()), batch
        )

    def _continuous(self, images: Tensor, modulations: list[Tensor], log_snr: Tensor, batch: torch.Size) -> Tensor:
        square = (images * images).sum((-3, -2, -1)).reshape(batch)
        return near_gaussian(
            self._features(images, modulations, batch), square, log_snr, self.log_snr_min, math.prod(self.event_shape)
        )

    def _features(self, images: Tensor, modulations: list[Tensor], batch: torch.Size) -> Tensor:
        """Return f, ``(*batch,)``."""
        *pieces, weights = modulations
        features = self.stem(images)
        for block, piece in zip(self.blocks, pieces, strict=True):
            features = block(features, piece)
        pooled = self.final_activation(features).sum((-2, -1), dtype=images.dtype)  # a sum in bfloat16 has three digits
        weights = weights if self.readout is None else weights + self.readout
        f: Tensor = (pooled * weights).sum(-1).reshape(batch)
        return f

    # --- The papers' networks ---

    @classmethod
    def drl_cifar10(
        cls,
        levels: int = 6,
        *,
        width: int = 128,
        blocks: int = 8,
        classes: int = 0,
        output_scale: Sequence[float] | Tensor | None = None,
    ) -> "ConvEnergy":
        """Build DRL's network for CIFAR-10: 34,833,408 parameters with its defaults (Gao et al. 2021).

        Leaky ReLU of slope 0.2, a final ReLU, spectral norm everywhere but in the head, 3×3 shortcuts, average pooling,
        integer levels through sinusoids of 128 dimensions and two dense layers.  The paper names no parameter count:
        this is the sum of its layers.  Initial weights are torch's own, where the paper's code draws them by Glorot's
        rule.  f enters here with a plus sign: the sign of the head is learned.

        Args:
            levels: of the schedule.
            width: channels at the first of four resolutions (1, 2, 2, 2).
            blocks: residual blocks at each.
            classes: number of classes; the paper has none.
            output_scale: what f is multiplied with at each level, ``(levels,)``; the paper's is 1/s_t².
        """
        positions = torch.arange(levels)
        net = cls._published(width, blocks, levels, classes, output_scale, positions=positions)
        options = {"width": width, "blocks": blocks, "classes": classes, "output_scale": output_scale}
        return net.built_by("drl_cifar10", levels=levels, **options)

    @classmethod
    def cdrl_cifar10(
        cls,
        levels: int = 6,
        *,
        width: int = 128,
        blocks: int = 8,
        classes: int = 0,
        output_scale: Sequence[float] | Tensor | None = None,
    ) -> "ConvEnergy":
        """Build CDRL's network for CIFAR-10: 34,833,152 parameters with its defaults (Zhu et al. 2024).

        As :meth:`drl_cifar10`, but levels enter by their log-SNR λ as 1000 · (2/π) arctan(e^{−λ/2}), on the cosine
        schedule; the projections are activated once more, the head has no bias, and the second convolution of a block
        begins like any other, fully normalized.  CDRL-large has twice the width.  Where a class enters the unpublished
        conditional CIFAR-10 network is not known; here it is added to the embedding of the level.

        Args:
            levels: of the cosine schedule.
            width: channels at the first of four resolutions (1, 2, 2, 2).
            blocks: residual blocks at each.
            classes: number of classes.
            output_scale: what f is multiplied with at each level, ``(levels,)``; the paper's is 1/s_t².
        """
        variant = {"positions": log_snr_positions(levels), "activate": True, "head_bias": False}
        net = cls._published(width, blocks, levels, classes, output_scale, **variant)
        options = {"width": width, "blocks": blocks, "classes": classes, "output_scale": output_scale}
        net.built_by("cdrl_cifar10", levels=levels, **options)
        for block in net.blocks:
            assert isinstance(block, _Block)
            channels = block.second.out_channels
            block.second = spectrally_normalized(convolution(channels, channels))
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def _published(
        cls,
        width: int,
        blocks: int,
        levels: int,
        classes: int,
        output_scale: Sequence[float] | Tensor | None,
        **options: object,
    ) -> "ConvEnergy":
        activation = nn.LeakyReLU(0.2)

        def conditioning(sizes: Sequence[int], head: int) -> nn.Module:
            return SinusoidalConditioning(
                sizes,
                head,
                width=width,
                classes=classes,
                activation=activation,
                normalize=spectrally_normalized,
                **options,  # type: ignore[arg-type]
            )

        return cls(
            (3, 32, 32),
            width=width,
            multipliers=(1, 2, 2, 2),
            blocks=blocks,
            levels=levels,
            classes=classes,
            spectral_norm=True,
            confinement=0.0,
            activation=activation,
            final_activation=nn.ReLU(),
            shortcut_size=3,
            output_scale=output_scale,
            conditioning=conditioning,
        )


def log_snr_positions(levels: int) -> Tensor:
    """Return CDRL's position of each level of the cosine schedule, in (0, 1000), ``(levels,)``."""
    log_snr = NoiseSchedule.cosine(levels).log_snr[:-1]
    return 2000.0 / math.pi * torch.exp(-0.5 * log_snr).arctan()


def _check_sizes(width: int, blocks: int, shortcut_size: int, classes: int, confinement: float) -> None:
    for name, value in (("width", width), ("blocks", blocks), ("shortcut_size", shortcut_size)):
        check_count(name, value)
    check_count("classes", classes, at_least=0)
    if shortcut_size % 2 == 0:
        raise InvalidInput(f"shortcut_size must be odd, to keep the resolution; got {shortcut_size}: pass 1 or 3")
    if not (math.isfinite(confinement) and confinement >= 0.0):
        raise InvalidInput(f"confinement must be 0 or positive, and finite; got {confinement}")


def _scales(output_scale: Sequence[float] | Tensor | None, levels: int) -> Tensor | None:
    if output_scale is None:
        return None
    scales = torch.as_tensor(output_scale, dtype=torch.float32)
    if scales.shape != (levels,):
        raise InvalidInput(
            f"output_scale must hold one number for each of {levels} levels; got {shape_text(scales.shape)}"
        )
    check_positive("output_scale", scales)
    return scales


class _Block(nn.Module):
    """Two convolutions past a shortcut, modulated in between; the second is zero at first: a block is its shortcut.

    Args:
        before: channels that come in.
        after: channels that go out.
        activation: before each convolution.
        spectral_norm: normalize all weights, the second convolution's only above 1, and give that one a gain.
        shortcut_size: side of the shortcut's convolution, if the number of channels changes.
        halve: average 2×2 pixels first.
    """

    def __init__(
        self,
        before: int,
        after: int,
        activation: Activation,
        spectral_norm: bool,
        shortcut_size: int,
        halve: bool,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.halve = halve
        self.first = convolution(before, after)
        self.second = convolution(after, after, zero=True)
        self.shortcut = convolution(before, after, shortcut_size) if before != after else nn.Identity()
        self.gain = nn.Parameter(torch.ones(after, 1, 1)) if spectral_norm else None
        if spectral_norm:
            spectrally_normalized(self.first)
            spectrally_normalized(self.second, shrink=True)
            if isinstance(self.shortcut, nn.Conv2d):
                spectrally_normalized(self.shortcut)

    def forward(self, x: Tensor, piece: Tensor) -> Tensor:
        x = avg_pool2d(x, 2) if self.halve else x
        hidden = modulated(self.first(self.activation(x)), piece)
        hidden = self.second(self.activation(hidden))
        hidden = hidden if self.gain is None else hidden * self.gain.to(hidden.dtype)
        total: Tensor = self.shortcut(x) + hidden
        return total

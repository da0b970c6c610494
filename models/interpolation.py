"""Interpolation between images through the noise levels."""

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_count, check_event, checked, shape_text
from energyppl.errors import InvalidInput
from energyppl.inference.levels.ancestral import come_down
from energyppl.models.recovery import RecoveryEBM

__all__ = ["interpolate"]

_LOG_SNR = -1.5  # where outlines are open, and which digit it is begins to show


@checked
def interpolate(
    ebm: RecoveryEBM, one: Tensor, other: Tensor, *, count: int = 9, level: int | None = None, steps: int = 0
) -> Tensor:
    """Interpolate between points: noise both to a level with one noise, mix them, and come down again.

    As in figure 8 of Ho, Jain & Abbeel (2020).  All points of a path share the noise of every step too, so that it is
    smooth.  The ends are other draws than ``one`` and ``other``, as far from them as the level's noise is large.

    Args:
        ebm: a model that :attr:`~energyppl.RecoveryEBM.denoises`.
        one: where paths begin, in data coordinates, ``(*batch, *event)``.
        other: where they end, likewise.
        count: points of each path, ends included; at least 2.
        level: the level at which they are mixed; that of a log-SNR of about −1.5 if None.
        steps: moves of the model's kernel at each level.

    Returns:
        The paths, denoised, ``(count, *batch, *event)``.

    Raises:
        InvalidInput: for points of different shapes, or a model that does not denoise.

    Example:
        >>> net, schedule = ep.models.UNetEnergy((1, 8, 8), width=4), ep.NoiseSchedule.cosine(5, log_snr_min=-6.0)
        >>> ebm = ep.RecoveryEBM(net, schedule)
        >>> ep.models.interpolate(ebm, torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8), count=4).shape
        torch.Size([4, 2, 1, 8, 8])
    """
    if not isinstance(ebm, RecoveryEBM) or not ebm.denoises:
        raise InvalidInput(
            f"interpolation needs a RecoveryEBM of images with a continuous network; got {type(ebm).__name__}: build "
            "it on UNetEnergy"
        )
    check_event("one", one, ebm.event_shape)
    check_event("other", other, ebm.event_shape)
    check_count("count", count, at_least=2)
    check_count("steps", steps, at_least=0)
    if one.shape != other.shape:
        raise InvalidInput(f"one and other must have one shape; got {shape_text(one.shape)}, {shape_text(other.shape)}")
    if level is None:
        level = int((ebm.schedule.log_snr[:-1] - _LOG_SNR).abs().argmin())
    ebm.schedule.check_level(level)
    first, last = ebm.to_unit(one), ebm.to_unit(other)
    weight = append_dims(torch.linspace(0.0, 1.0, count).to(first), first.expand(count, *first.shape))
    mixed = (1.0 - weight) * first + weight * last
    alpha, sigma = (float(value[level]) for value in (ebm.schedule.alpha_bar, ebm.schedule.sigma_bar))
    moves = (steps,) * ebm.schedule.levels
    found = come_down(ebm, alpha * mixed + sigma * _shared(mixed), level, moves=moves, denoise=True, noise=_shared)
    return ebm.from_unit(found.x)


def _shared(x: Tensor) -> Tensor:
    """Draw noise that all points of a path share."""
    return torch.randn_like(x[0]).expand_as(x)

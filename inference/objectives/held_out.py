"""Measures of held-out data with the same noise at every call."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from energyppl.autodiff.gradient import energy_only
from energyppl.inference.objectives.contract import ScoredModel, points_at

__all__ = ["conditional_contrast", "fixed_noise"]


MEASURE_SEED = 7_482_913  # nobody's: data drawn after manual_seed(0) would be the very noise that seed 0 gives


@contextmanager
def fixed_noise(like: Tensor) -> Iterator[None]:
    """Inside, random numbers on the device of ``like`` are the same at every call; outside they go on undisturbed."""
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        torch.manual_seed(MEASURE_SEED)
        yield


_NEAR, _FAR = 0.1, 1.5  # how far noise lies from its data point, in standard deviations


def conditional_contrast(model: ScoredModel, data: Tensor, level: int = 0) -> float:
    """Conditional noise contrast: ``E log(1 + exp(U(x) − U(y)))``, y = x + noise (Ceylan & Gutmann 2018).

    As y given x is as likely as x given y, the noise's density and log Z cancel: a proper score of the energy itself,
    at the same cost in any dimension.  The lengths of the noise are spread evenly, on a log scale, from 0.1 to 1.5
    standard deviations.  It follows the likelihood where denoising does not, whose optimum is another density: that of
    the data with its noise.

    Args:
        model: any energy in standardized coordinates.
        data: held-out rows, ``(n, *event)``.
        level: of a model of levels.

    Returns:
        Lower is better, and log 2 is what a constant energy gets; the noise is the same at every call.
    """
    with fixed_noise(data):
        x = points_at(model, data, level).detach()
        length = _NEAR * (_FAR / _NEAR) ** torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device).to(x)
        y = x + length / math.sqrt(max(1, x[0].numel())) * torch.randn_like(x)
    own, theirs = energy_only(model.potential(level), torch.cat([x, y])).split(len(x))
    return float(nn.functional.softplus(own - theirs).mean())

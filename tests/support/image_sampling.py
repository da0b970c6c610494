"""A model of small images, untrained, whose samples are no white noise."""

import torch

import energyppl as ep
from energyppl.models import ConvEnergy

__all__ = []

SHAPE = (1, 8, 8)


def model(kernel: ep.kernels.CrankNicolsonLangevin | ep.MALA | None = None, classes: int = 0) -> ep.RecoveryEBM:
    """Untrained, with features that matter."""
    torch.manual_seed(0)
    net = ConvEnergy(SHAPE, width=8, levels=3, classes=classes)
    with torch.no_grad():
        net.readout.mul_(20.0)  # type: ignore[union-attr]
    return ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(3), kernel=kernel)

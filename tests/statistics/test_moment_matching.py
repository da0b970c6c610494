"""The tilt of level 0 by maximum likelihood, on Gaussians whose answer is known, and on a network of images."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep

SHAPE = (1, 1, 3)
VARIANCE = torch.tensor([0.3, 1.0, 2.0]).reshape(SHAPE)


class Gaussians(nn.Module):
    """Energies of N(0, 1) at every log-SNR, and a tilt of the squares of each pixel."""

    event_shape, continuous = torch.Size(SHAPE), True

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("tilt", torch.zeros(3))
        self.register_buffer("tilt_from", torch.tensor(1e6))

    def moments(self, x: Tensor, level: Tensor) -> Tensor:
        return 0.5 * x.square().flatten(-3)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        near = (log_snr >= self.tilt_from)[..., None] * self.tilt
        moments = self.moments(x, log_snr)
        return (moments * (1.0 + near)).sum(-1) + self.bias


def test_the_tilt_is_that_of_maximum_likelihood() -> None:
    """Three precisions within .1, five standard deviations over runs; the base's own lie off by 1 and .4."""
    torch.manual_seed(0)
    ebm = ep.RecoveryEBM(Gaussians(), ep.NoiseSchedule.cosine(6, log_snr_max=1.0, log_snr_min=-6.0))
    ep.levels.match_moments(ebm, VARIANCE.sqrt() * torch.randn(50_000, *SHAPE), moves=3000, chains=2000)
    alpha, sigma = (float(value[0]) for value in (ebm.schedule.alpha_bar, ebm.schedule.sigma_bar))
    expected = 1.0 / (alpha**2 * VARIANCE.flatten() + sigma**2) - 1.0
    torch.testing.assert_close(ebm.net.tilt, expected, rtol=0.0, atol=0.1)


def images() -> ep.RecoveryEBM:
    torch.manual_seed(0)
    net = ep.models.UNetEnergy((1, 8, 8), width=4, classes=2)
    nn.init.normal_(net.readout, std=0.1)
    return ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(8, log_snr_max=5.0, log_snr_min=-6.0))


def test_the_tilt_changes_level_0_alone_and_is_kept_in_files(tmp_path: Path) -> None:
    ebm, x = images(), torch.rand(5, 1, 8, 8)
    level = torch.tensor(0), torch.tensor(1)
    before = [ebm.potential(t)(x) for t in level]
    ebm.net.tilt_from.copy_(ebm.schedule.log_snr[0])
    ebm.net.tilt.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    moments = ebm.net.moments(x, ebm.schedule.log_snr[0].float())
    torch.testing.assert_close(ebm.potential(level[0])(x), before[0] + moments @ ebm.net.tilt)
    torch.testing.assert_close(ebm.potential(level[1])(x), before[1])
    torch.testing.assert_close(ebm.net(x, ebm.schedule.log_snr[0].float()), ebm.potential(level[0])(x))
    ep.save(ebm, tmp_path / "model.ebm")
    torch.testing.assert_close(ep.load(tmp_path / "model.ebm").potential(level[0])(x), ebm.potential(level[0])(x))


def test_a_network_without_a_tilt_is_refused() -> None:
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
    with pytest.raises(ep.errors.InvalidInput, match="has no tilt"):
        ep.levels.match_moments(ebm, torch.randn(10, 2))

"""Noise-contrastive estimation with a learned proposal: its minimizer is the normalized density given the context."""

import math

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.models import ConditionalEBM, MLPEnergy
from energyppl.models.networks.context import ContextGaussian

SCHEDULE = ep.NoiseSchedule.cosine(4, log_snr_max=6.0, log_snr_min=-6.0)
WIDTH = 0.4  # of x around (c, −c)


class Known(nn.Module):
    """The energy of N((c, −c), WIDTH²) with noise, shifted, and with another log Z, beside a Gaussian twice as wide."""

    event_shape, context_shape, continuous = torch.Size((2,)), torch.Size((1,)), True

    def __init__(self, shift: float = 0.0, log_z: float = 0.0) -> None:
        super().__init__()
        self.shift, self.log_z = nn.Parameter(torch.tensor(shift)), nn.Parameter(torch.tensor(log_z))

    def forward(self, x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        mean = torch.cat([condition, -condition], -1) + self.shift
        alpha2, sigma2 = level.sigmoid().unsqueeze(-1), (-level).sigmoid().unsqueeze(-1)
        variance = alpha2 * WIDTH**2 + sigma2
        square = (x - alpha2.sqrt() * mean).square() / variance
        return 0.5 * (square + (2.0 * math.pi * variance).log()).sum(-1) - self.log_z

    def proposal(self, context: Tensor) -> ContextGaussian:
        mean = torch.cat([context, -context], -1)
        return ContextGaussian(mean, torch.full_like(mean, math.log(2.0 * WIDTH)), None)


def gradients(net: Known, batches: int = 200) -> Tensor:
    """Gradients of the loss, ``(batches, 2)``, the proposal's own fit having none."""
    ebm, objective = ConditionalEBM(net, SCHEDULE), ep.objectives.ProposalContrastive(ratio=4)
    found = []
    for _ in range(batches):
        c = torch.randn(64, 1)
        x = torch.cat([c, -c], -1) + WIDTH * torch.randn(64, 2)
        loss = objective.loss(ebm.conditioned(c), objective.init(ebm.conditioned(c)), x).value
        found.append(torch.stack(torch.autograd.grad(loss, [net.shift, net.log_z])))
    return torch.stack(found)


@pytest.mark.parametrize("wrong", [{}, {"shift": 0.1}, {"log_z": 0.2}])
def test_the_gradient_vanishes_at_the_normalized_truth_alone(wrong: dict[str, float]) -> None:
    """Both means within 4 standard errors, false-alarm rate 1.3e-4; the negative controls are beyond 10."""
    torch.manual_seed(0)
    found = gradients(Known(**wrong))
    z = found.mean(0) / (found.std(0) / math.sqrt(len(found)))
    assert (float(z.abs().max()) > 10.0) if wrong else (float(z.abs().max()) < 4.0), z


def test_the_measure_is_least_at_the_truth() -> None:
    """Of the same rows and noise: each control is worse by a tenth of a nat or more but for log Z, by .02 exactly."""
    torch.manual_seed(0)
    c = torch.randn(4000, 1)
    x = torch.cat([c, -c], -1) + WIDTH * torch.randn(4000, 2)
    objective = ep.objectives.ProposalContrastive()

    def measure(net: Known) -> float:
        model = ConditionalEBM(net, SCHEDULE).conditioned(c)
        return objective.measure(model, objective.init(model), x)

    own = measure(Known())
    variance = float(SCHEDULE.alpha_bar[0] ** 2 * WIDTH**2 + SCHEDULE.sigma_bar[0] ** 2)
    assert own == pytest.approx(1.0 + math.log(2.0 * math.pi * variance), abs=0.1)  # the entropy
    assert measure(Known(shift=0.2)) > own + 0.1
    for log_z in (-0.2, 0.2):  # e^a − a − 1
        assert measure(Known(log_z=log_z)) > own + 0.01


def test_log_z_of_each_context_is_near_zero_after_training() -> None:
    """A curved band whose width grows with the context: rms of log Z below .1 nats; with half a nat more in every
    energy, the negative control, it is not.
    """
    torch.manual_seed(0)
    ebm = ConditionalEBM(MLPEnergy(2, context_shape=1, hidden=64, depth=2, frequencies=16), SCHEDULE)
    c, u = 2.0 * torch.rand(3000, 1) - 1.0, torch.randn(3000, 1)
    x = torch.cat([u, 0.5 * u.square() - c + (0.2 + 0.1 * c) * torch.randn(3000, 1)], -1)
    ep.fit(ebm, (x, c), steps=400, progress=False)

    def rms() -> float:
        p = ebm.given(torch.linspace(-0.8, 0.8, 5)[:, None])
        with torch.no_grad():
            return float((p.quadrature() - p.implied_log_normalizer()).square().mean().sqrt())

    assert rms() < 0.1
    with torch.no_grad():
        ebm.net.readout.bias += 0.5  # type: ignore[union-attr, operator]
    assert rms() > 0.3, "negative control"


def test_a_schedule_whose_level_0_is_clean_is_refused() -> None:
    clean = ep.NoiseSchedule.sqrtcumlinear(levels=50, end=0.03)
    ebm = ConditionalEBM(MLPEnergy(2, context_shape=1, hidden=16), clean)
    with pytest.raises(ep.InvalidInput, match="level 0 has none"):
        ep.Training(ebm, (torch.randn(100, 2), torch.rand(100, 1)), steps=3)

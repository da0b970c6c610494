"""The perceptron far from the data."""

import pytest
import torch
from torch import nn

import energyppl as ep
from energyppl.models import MLPEnergy


def test_a_perceptron_is_nearly_constant_along_rays_far_out() -> None:
    torch.manual_seed(0)
    net = MLPEnergy((8,), levels=1, saturation_radius=2.0).double()
    ray = nn.functional.normalize(torch.randn(8, dtype=torch.float64), dim=0)
    with torch.no_grad():
        out = torch.stack([net(r * ray, torch.tensor(0)) - 0.5 * r * r for r in (1e2, 1e3, 1e4)])
    assert float((out - out[-1]).abs().max()) < 0.1
    with pytest.raises(ep.InvalidInput, match="saturation_radius must be positive"):
        MLPEnergy((8,), saturation_radius=0.0)


def test_a_continuous_network_is_a_normalized_gaussian_at_its_noisiest_level() -> None:
    net = MLPEnergy((3,))
    torch.nn.init.normal_(net.readout.weight)
    x = torch.randn(50, 3)
    exact = -torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(net(x, torch.tensor(-6.0)), exact)
    assert float((net(x, torch.tensor(2.0)) - exact).detach().abs().max()) > 1e-3, (
        "and something else where there is less noise"
    )


def test_whole_levels_of_a_table_are_the_log_snrs_one_by_one() -> None:
    net, table = MLPEnergy((3,), classes=2).double(), torch.tensor([4.0, 0.0, -3.0], dtype=torch.float64)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, level = torch.randn(20, 3, dtype=torch.float64), torch.randint(3, (20,))
    label = torch.randint(2, (20,))
    torch.testing.assert_close(net.at_levels(x, level, table, label), net(x, table[level], label))


def test_any_schedule_can_be_laid_on_a_continuous_network() -> None:
    net = MLPEnergy((3,))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(10, 3)
    energies = []
    for levels in (4, 8):  # the middle of one is the middle of the other
        ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(levels))
        energies.append(ebm.potential(levels // 2)(x))
    torch.testing.assert_close(*energies)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPEnergy((3,))(torch.randn(2, 3), torch.tensor(0)), "takes log-SNRs, floating point"),
        (lambda: MLPEnergy((3,), confinement=2.0), "confinement must be 1"),
        (lambda: MLPEnergy((3,), axis_features=-1), "axis_features must be"),
        (
            lambda: ep.objectives.LevelScoreMatching(tie=1.0).init(
                ep.RecoveryEBM(MLPEnergy((3,), levels=4), ep.NoiseSchedule.cosine(4))
            ),
            "whose noise level varies continuously",
        ),
        (
            lambda: ep.objectives.LevelScoreMatching().init(
                ep.RecoveryEBM(MLPEnergy((3,)), ep.NoiseSchedule.cosine(4, log_snr_min=-2.0))
            ),
            "a noisy end",
        ),
        (lambda: ep.objectives.LevelScoreMatching(tie=-1.0), "tie must be a finite number"),
    ],
)
def test_bad_input_is_said(make: object, message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        make()  # type: ignore[operator]


def test_layers_that_were_replaced_or_have_hooks_are_called() -> None:
    """One level's modulation goes into the weights of plain layers alone."""
    net, x, level = ep.MLPEnergy((3,)), torch.randn(10, 3), torch.tensor(1.0)
    torch.nn.init.normal_(net.readout.weight)
    plain = net(x, level)
    seen: list[torch.Size] = []
    handle = net.layers[1].register_forward_hook(lambda _layer, _inputs, output: seen.append(output.shape))
    torch.testing.assert_close(net(x, level), plain)
    assert seen == [(10, 128)]
    handle.remove()
    net.layers[1] = torch.nn.Sequential(net.layers[1], torch.nn.Identity())
    torch.testing.assert_close(net(x, level), plain)

"""The perceptron far from the data."""

import pytest
import torch
from torch import nn

import energyppl as ep
from energyppl.models import MLPEnergy


def test_a_perceptron_is_nearly_constant_along_rays_far_out() -> None:
    torch.manual_seed(0)
    net = MLPEnergy((8,), saturation_radius=2.0).double()
    ray = nn.functional.normalize(torch.randn(8, dtype=torch.float64), dim=0)
    with torch.no_grad():
        out = torch.stack([net(r * ray, torch.tensor(0)) - 0.5 * r * r for r in (1e2, 1e3, 1e4)])
    assert float((out - out[-1]).abs().max()) < 0.1
    with pytest.raises(ep.InvalidInput, match="saturation_radius must be positive"):
        MLPEnergy((8,), saturation_radius=0.0)

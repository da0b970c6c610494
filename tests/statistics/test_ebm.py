"""The model of one energy: log Z by annealing, and moments of its samples."""

import math

import pytest
import torch

import energyppl as ep
from tests.support.multiscale import Bell


def test_above_two_dimensions_it_anneals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five dimensions, where log Z is known: within 4.5 of its standard errors, a false alarm in 70,000."""
    ebm = ep.EBM(Bell((5,)))
    ebm.scale.fill_(0.5)
    found = ebm.log_normalizer()
    assert abs(found.estimate - 2.5 * math.log(2 * math.pi * 0.25)) < 4.5 * found.standard_error + 1e-3
    assert ebm.log_normalizer() is found, "kept until the weights change"
    with torch.no_grad():
        ebm.net.k.mul_(2.0)  # type: ignore[operator, union-attr]
    with monkeypatch.context() as patch:
        patch.setattr(ep.EBM, "_anneal", None)  # whoever anneals again fails
        with pytest.raises(TypeError):
            ebm.log_normalizer()


def test_samples_have_the_energys_moments() -> None:
    """Mean and variance of 2,000 chains, 4.5 standard errors: 4 numbers, a false alarm in 35,000."""
    ebm = ep.EBM(Bell())
    ebm.loc.fill_(-1.0)
    x = ebm.sample((2000,), steps=300)
    assert float((x.mean(0) + 1.0).abs().max()) < 4.5 / math.sqrt(2000)
    assert float((x.var(0) - 1.0).abs().max()) < 4.5 * math.sqrt(2.0 / 2000)
    assert ebm.sample(steps=5).shape == (2,)

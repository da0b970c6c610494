"""The key by which what was worked out from weights is kept: it sees every change, and log densities follow."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import energyppl as ep
from energyppl.models._cache import weights_key


def adam(ebm: ep.EBM) -> None:
    """One step of the fused optimizer, which leaves version counters as they are."""
    ebm.potential()(torch.randn(4, 2)).sum().backward()
    torch.optim.Adam([p for p in ebm.parameters() if p.grad is not None], fused=True).step()


def write_one(ebm: ep.EBM) -> None:
    ebm.net.layers[0].weight.data[3, 1] += 1e-6


def flip_signs(ebm: ep.EBM) -> None:
    ebm.net.layers[0].weight.data.neg_()


def swap_rows(ebm: ep.EBM) -> None:
    rows = ebm.net.layers[0].weight.data
    rows[5:7] = rows[5:7].flip(0)


def load(ebm: ep.EBM) -> None:
    ebm.load_state_dict({name: value + 1 for name, value in ebm.state_dict().items()})


def replace(ebm: ep.EBM) -> None:
    ebm.net.layers[0] = nn.Linear(*ebm.net.layers[0].weight.shape[::-1])


def evaluate(ebm: ep.EBM) -> None:
    ebm.eval()


@pytest.mark.parametrize("change", [adam, write_one, flip_signs, swap_rows, load, replace, evaluate])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_key_sees_every_change(change: Callable[[ep.EBM], None], dtype: torch.dtype) -> None:
    ebm = ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=2, frequencies=2, levels=1))
    if dtype == torch.bfloat16:
        ebm.loc = ebm.loc.to(dtype)  # a buffer that numpy does not know
    before = weights_key(ebm)
    assert weights_key(ebm) == before
    change(ebm)
    assert weights_key(ebm) != before


def test_log_prob_follows_a_write_to_data() -> None:
    """log Z is worked out again: the density still integrates to 1, on a grid of its own, to 1e-3."""
    ebm = ep.EBM(ep.MLPEnergy((1,), hidden=8, depth=1, frequencies=2, levels=1))
    x = torch.linspace(-12.0, 12.0, 4001)[:, None]
    ebm.log_prob(x)
    ebm.net.readout.weight.data += 0.5
    with torch.no_grad():
        mass = ebm.log_prob(x).exp().sum() * 24.0 / 4000.0
    assert abs(float(mass) - 1.0) < 1e-3

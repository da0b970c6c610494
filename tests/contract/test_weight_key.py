"""The snapshot by which what was worked out from weights is kept: it sees every change, and log densities follow."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import energyppl as ep
from energyppl.models._cache import WeightSnapshot


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
def test_the_snapshot_sees_every_change(change: Callable[[ep.EBM], None], dtype: torch.dtype) -> None:
    ebm = ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=2, frequencies=2, levels=1))
    if dtype == torch.bfloat16:
        ebm.loc = ebm.loc.to(dtype)  # a buffer that numpy does not know
    before = WeightSnapshot(ebm)
    assert before.holds(ebm)
    change(ebm)
    assert not before.holds(ebm)


def test_nan_and_a_layout_of_its_own_are_the_same_as_themselves() -> None:
    ebm = ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=2, frequencies=2, levels=1))
    weight = ebm.net.layers[0].weight
    weight.data = weight.data.t().contiguous().t()
    weight.data[0, 0] = torch.nan
    before = WeightSnapshot(ebm)
    assert before.holds(ebm)
    weight.data[1, 0] += 1.0
    assert not before.holds(ebm)


def test_a_deep_copy_knows_its_own_weights() -> None:
    ebm = ep.EBM(ep.MLPEnergy((1,), hidden=8, depth=1, frequencies=2, levels=1))
    x = torch.linspace(-1.0, 1.0, 5)[:, None]
    before = ebm.log_prob(x)
    twin = copy.deepcopy(ebm)
    twin.net.readout.weight.data += 0.5
    assert not torch.allclose(twin.log_prob(x), before)
    assert torch.equal(ebm.log_prob(x), before)


def test_log_prob_follows_a_write_to_data() -> None:
    """log Z is worked out again: the density still integrates to 1, on a grid of its own, to 1e-3."""
    ebm = ep.EBM(ep.MLPEnergy((1,), hidden=8, depth=1, frequencies=2, levels=1))
    x = torch.linspace(-12.0, 12.0, 4001)[:, None]
    ebm.log_prob(x)
    ebm.net.readout.weight.data += 0.5
    with torch.no_grad():
        mass = ebm.log_prob(x).exp().sum() * 24.0 / 4000.0
    assert abs(float(mass) - 1.0) < 1e-3


def test_a_level_asked_for_in_inference_mode_serves_autograd_later() -> None:
    ebm = ep.RecoveryEBM(ep.MLPEnergy((1,), hidden=8, depth=1, frequencies=2), ep.NoiseSchedule.cosine(levels=2))
    x = torch.zeros(3, 1)
    with torch.inference_mode():
        ebm.potential(1)(x)
    ebm.potential(1)(x).sum().backward()
    ebm.double()
    assert ebm.potential(1)(x.double()).dtype == torch.float64
    ebm.net = ep.MLPEnergy((1,), hidden=8, depth=1, frequencies=2).double()
    assert ebm.potential(1).net is ebm.net


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda ebm: pickle.loads(pickle.dumps(ebm))], ids=["copy", "pickle"])
def test_a_copy_knows_what_was_known_of_its_weights_and_forgets_it_with_them(copied: Callable[[Any], Any]) -> None:
    """The moves that training found, without which samples are others, and a log Z that took minutes."""
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=8, depth=1), ep.NoiseSchedule.cosine(levels=3))
    ep.fit(ebm, torch.randn(60, 2), steps=2, progress=False)
    ebm._kept.keep(ebm, (0, 0.95), ep.LogNormalizer(0.5, 0.1, 0.3, 0.7, 10, "exact"))
    other = copied(ebm)
    drawn = []
    for each in (ebm, other):
        torch.manual_seed(1)
        drawn.append(each.sample(3))
    assert torch.equal(*drawn)
    assert other._kept.known(other, (0, 0.95)).estimate == 0.5
    assert ebm._kept.known(other, (0, 0.95)) is None
    replace(other)
    assert other._kept.known(other, (0, 0.95)) is None
    assert ebm._kept.known(ebm, (0, 0.95)) is not None

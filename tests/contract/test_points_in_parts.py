"""Many points are evaluated some at a time, unless that gives other values."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.autodiff import bind, bound
from tests.support.changes import new_weights
from tests.support.gradients import require_equal, serving
from tests.support.networks import net

POINTS = 21  # five parts of four, and one more


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of 512 bytes, of which a network of 16 units fills 8 points, and traces that know of it."""
    monkeypatch.setattr(bound, "_traces", OrderedDict())
    monkeypatch.setattr(bound, "_CACHE", 512)
    monkeypatch.setattr(bound, "_FEWEST", 4)


def is_in_parts(potential: Any, x: Tensor) -> bool:
    return isinstance(serving(potential, x), bound._InParts)


def test_points_of_a_network_are_evaluated_in_parts() -> None:
    module, x = net(), torch.randn(POINTS, 2)
    assert is_in_parts(module, x)
    require_equal(module, x)
    require_equal(bind(module), x)
    new_weights(module)
    require_equal(module, x)
    require_equal(bind(module), x)
    ep.sampling.run_chain(ep.MALA(0.1), module, x, 3)


def test_few_points_are_evaluated_at_once() -> None:
    assert isinstance(serving(net(), torch.randn(4, 2)), bound._Traced)


@pytest.mark.parametrize("dims", [1, 2])
def test_a_tensor_of_each_point_keeps_them_together(dims: int) -> None:
    """Its rows would belong to other points."""
    module, x = net(), torch.randn(POINTS, 2)
    each = torch.linspace(0.1, 1.0, POINTS)
    potential: Any = (
        ep.potentials.Scaled(module, each)
        if dims == 1
        else ep.potentials.RecoveryPotential(module, each[:, None] * torch.ones(POINTS, 2), 0.5)
    )
    assert not is_in_parts(potential, x)
    require_equal(potential, x)


def test_energies_that_count_their_points_keep_them_together() -> None:
    module = net()
    potential = ep.Energy(lambda x: module(x) + torch.arange(len(x)), (2,))
    x = torch.randn(POINTS, 2)
    assert not is_in_parts(potential, x)
    require_equal(potential, x)

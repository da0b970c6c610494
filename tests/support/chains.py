"""Targets and short runs of many chains that tests share."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import energyppl as ep

__all__ = []


INF = math.inf


SOME_DIVERGE = pytest.mark.filterwarnings("ignore:.* of the draws diverged:UserWarning")


def energy(function: Callable[[Tensor], Tensor], *event: int) -> ep.Energy:
    return ep.Energy(function, torch.Size(event))


NORMAL = energy(lambda x: 0.5 * (x * x).sum(-1), 2)


def sample(kernel: Any, on: Any, *args: Any, chains: int = 64, **options: Any) -> ep.Chains:
    options = {"draws": 200, "warmup": 200, "progress": False, **options}
    return ep.sample_chains(kernel, on, args, chains=chains, **options)


def constrained(function: Callable[[Tensor], Tensor], support: Any, *event: int) -> ep.EnergyDistribution:
    return ep.EnergyDistribution(energy(function, *event), support=support)


KERNELS: dict[str, Any] = {
    "HMC": ep.HMC(),
    "ChEES": ep.ChEES(),
    "MALT": ep.kernels.MALT(),
    "NUTS": ep.NUTS(),
    "MALA": ep.MALA(0.5),
    "cycle": ep.kernels.Cycle(ep.MALA(0.5), ep.HMC()),
    "mixture": ep.kernels.Mixture(ep.MALA(0.5), ep.HMC()),
    "block": ep.kernels.Cycle(ep.kernels.Block(ep.MALA(0.5), torch.tensor([True, False])), ep.HMC()),
    "tempered": ep.kernels.Tempered(ep.MALA(0.5)),
}

"""Random numbers of a seed inside, and all generators, GPUs' too, as they were outside."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl import distributed
from energyppl._seeds import seeded
from energyppl.inference.objectives.held_out import fixed_noise
from energyppl.inference.training import processes


class PretendedGenerators:
    """The generators of two GPUs, each a state that a seed sets."""

    def __init__(self, patch: pytest.MonkeyPatch, *, in_use: bool = True) -> None:
        self.states = [torch.tensor([1]), torch.tensor([2])]
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_initialized", lambda: in_use)
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # asks for a driver, of old optimizers
        patch.setattr(torch.cuda, "get_rng_state", lambda device=0: self.states[device].clone())
        patch.setattr(torch.cuda, "set_rng_state", self.put)
        patch.setattr(torch.cuda, "manual_seed_all", self.seed)

    def put(self, state: Tensor, device: int = 0) -> None:
        self.states[device] = state

    def seed(self, seed: int) -> None:
        self.states = [torch.tensor([seed]), torch.tensor([seed])]

    def numbers(self) -> list[int]:
        return [int(state) for state in self.states]


def ebm() -> ep.RecoveryEBM:
    return ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=8, depth=1, levels=3), ep.NoiseSchedule.cosine(levels=3))


def batches() -> None:
    quick, options = ep.objectives.DenoisingScoreMatching(0.3), ep.TrainingOptions(steps=2, batch_size=8)
    run = ep.Training(ebm_of_one(), [torch.randn(8, 2) for _ in range(4)], quick, options=options)
    next(run)


def ebm_of_one() -> ep.EBM:
    return ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=1))


def estimator() -> None:
    ep.estimator.EnergyDensity(steps=2, hidden=4, depth=1, random_state=0).fit(
        np.random.default_rng(0).normal(size=(50, 2))
    )


def imputation() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=60), "b": rng.normal(size=60)})
    model = ep.tables.fit(frame, steps=2, progress=False)
    generators = torch.cuda.get_rng_state(0), torch.cuda.get_rng_state(1)
    frame.loc[0, "a"] = np.nan
    ep.tables.impute(model, frame[:4], draws=2)
    assert [int(state) for state in generators] == [int(torch.cuda.get_rng_state(i)) for i in (0, 1)]
    torch.cuda.set_rng_state(torch.tensor([1]), 0)  # that fit uses a seed for good is another matter
    torch.cuda.set_rng_state(torch.tensor([2]), 1)


def noise() -> None:
    with fixed_noise():
        torch.rand(())


USERS: dict[str, Callable[[], Any]] = {
    "batches": batches,
    "moves": lambda: ebm().measure_moves(),
    "measures": noise,
    "estimator": estimator,
    "imputation": imputation,
}


@pytest.mark.parametrize("name", USERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_generators_of_all_gpus_are_left_as_they_were(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generators = PretendedGenerators(monkeypatch)
    USERS[name]()
    assert generators.numbers() == [1, 2]


def test_each_processs_own_numbers_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generators = PretendedGenerators(monkeypatch)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "agreed", lambda value: 7)
    with distributed.own_numbers():
        assert generators.numbers() == [8, 8]
    assert generators.numbers() == [1, 2]


def test_gpus_that_are_not_in_use_yet_get_the_seed_they_would_have_had(monkeypatch: pytest.MonkeyPatch) -> None:
    generators = PretendedGenerators(monkeypatch, in_use=False)
    torch.manual_seed(5)
    following = torch.rand(())
    torch.manual_seed(5)
    with seeded(3):
        assert generators.numbers() == [3, 3]
    assert generators.numbers() == [5, 5]
    assert torch.rand(()) == following


@pytest.mark.parametrize("in_use", [True, False])
def test_all_processes_go_on_with_the_gpus_numbers_of_the_first(in_use: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(11)
    first = torch.get_rng_state()
    generators = PretendedGenerators(monkeypatch, in_use=in_use)
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "agreed", lambda value: (first, torch.tensor([9]) if in_use else None))
    torch.manual_seed(4)
    processes.end_together()
    assert generators.numbers() == ([9, 4] if in_use else [11, 11])  # the other GPU is another process's
    assert torch.equal(torch.get_rng_state(), first)

"""``fit`` is killed again and again, in a process of its own each time, and ends as if it never had been.

Processes are forked from a server that has imported everything, so each starts within a moment and shares nothing else.
"""

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

import energyppl as ep
from tests.support.trainings import MODELS, PAIRS, data_of

KILLS = 5  # of each pair of a model and an objective: over 100 in all
OPTIONS = ep.TrainingOptions(steps=60, batch_size=16, evaluate_every=3, patience=20)  # checkpoints at every third step


def _fit(place: int, folder: Path, pause: float) -> None:
    """Train, slowly enough to be killed on the way, and keep the model's tensors."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kind, objective = PAIRS[place]
    model: Any = MODELS[kind]()

    def slowly(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        def rate(step: int) -> float:
            time.sleep(pause)
            return 1.0

        return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    ep.fit(
        model,
        objective=objective,
        options=OPTIONS,
        scheduler=slowly,
        checkpoint=folder / "run.ckpt",
        progress=False,
        **data_of(kind, model),
    )
    ep.save_checkpoint(folder / "end.ckpt", {"tensors": dict(model.state_dict())})


def _started(place: int, folder: Path, pause: float = 0.0) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["energyppl", "tests.support.trainings", __name__])
    process = context.Process(target=_fit, args=(place, folder, pause))
    process.start()
    return process


def _finished(process: BaseProcess) -> None:
    process.join(timeout=300)
    assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", range(len(PAIRS)), ids=[f"{kind} by {type(objective).__name__}" for kind, objective in PAIRS]
)
def test_a_run_that_is_killed_ends_with_the_same_bits(place: int, tmp_path: Path) -> None:
    """Kills come at random moments within some steps of a new checkpoint, some of them while the next is written."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    _finished(_started(place, whole))
    moments, killed = random.Random(place), 0
    for _ in range(KILLS):
        process = _started(place, torn, pause=0.02)
        written = (torn / "run.ckpt").stat().st_mtime_ns if (torn / "run.ckpt").exists() else 0
        deadline = time.monotonic() + 120.0
        while process.is_alive() and time.monotonic() < deadline:  # until it has written once more, so that it gets on
            if (torn / "run.ckpt").exists() and (torn / "run.ckpt").stat().st_mtime_ns > written:
                break
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.1))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed == KILLS, "the run was too short to be killed so often"
    _finished(_started(place, torn))
    one, other = (ep.load_checkpoint(folder / "end.ckpt")["tensors"] for folder in (whole, torn))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name

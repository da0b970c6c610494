"""Every test starts from the same seeded, quiet, single-threaded place, whichever tests ran before it."""

import gc
import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
# Before anything imports torch, for workers and subprocesses too: idle threads of a busy machine wait for each other.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np
import pyro
import pytest
import torch

from energyppl._seeds import seed_all
from energyppl.inference.levels import coupling
from energyppl.inference.normalizing import forward, levels, mode_search, paths
from energyppl.potentials import mixture_fit

torch.set_num_threads(1)  # sums come out bit for bit the same on any number of cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the files to pytest-xdist's workers, to each as many tests and the statistical ones first.

    A worker begins with an equal part of the list, and one that is done takes from the end of another's part: there the
    short tests must lie, or all wait for a long one.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    longest_first = ("statistics", "usage", "contract")
    for path in sorted(files, key=lambda path: (longest_first.index(path.parent.name), -len(files[path]))):
        min(parts, key=len).extend(files[path])
    items[:] = [item for part in parts for item in part]


def pytest_collection_finish() -> None:
    """Spare the collector the hundreds of thousands of objects that stay until the end, at each of its passes."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def short_searches() -> Iterator[None]:
    """Let annealing and measurements search little: for tests of shapes and words.

    What they find is tested in ``tests/statistics``.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module, name, small in (
            (coupling, "_PAIRS", 128),
            (forward, "_STARTS", 16),
            (forward, "_SEARCHES", 2),
            (forward, "_MORE", 1),
            (levels, "_RELAXED", 20),
            (mode_search, "_FEWEST_ROUNDS", 2),
            (mode_search, "_ROUNDS", 2),
            (mixture_fit, "_CANDIDATES", (1, 8)),
            (paths, "_PILOT", 64),
        ):
            patch.setattr(module, name, small)
        yield


@pytest.fixture(autouse=True)
def _fresh_start(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed torch, numpy and random from the test's own name, and forget Pyro's parameters."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)
    seed_all(seed)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()

"""Every test starts from the same seeded, quiet, single-threaded place, whichever tests ran before it."""

import os
import zlib
from collections.abc import Iterator

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
# Before anything imports torch, for workers and subprocesses too: idle threads of a busy machine wait for each other.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import pyro
import pytest
import torch

torch.set_num_threads(1)  # sums come out bit for bit the same on any number of cores


@pytest.fixture(autouse=True)
def _fresh_start(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed torch, numpy and random from the test's own name, and forget Pyro's parameters."""
    pyro.set_rng_seed(zlib.crc32(request.node.nodeid.encode()))
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()

"""Random numbers of a seed for a while, with torch's own generators left as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seed_all", "seeded"]


def seed_all(seed: int) -> None:
    """Seed all devices, as ``torch.manual_seed``, in a hundredth of the time where there is no GPU.

    Torch keeps a GPU's seed until it is in use, and with each the traceback of who asked, half a millisecond's work.
    """
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    (torch if gpu else torch.default_generator).manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Use random numbers of a seed inside, on all devices; outside they go on as they were.

    ``torch.manual_seed`` seeds the generators of all GPUs, so all of them are kept, and not only that of the device in
    use.  CUDA is not initialized for it: GPUs that are not in use yet get the seed that they would have begun with.
    """
    in_use, before = torch.cuda.is_initialized(), torch.initial_seed()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if in_use else []):
        try:
            seed_all(seed)
            yield
        finally:
            if not in_use and torch.cuda.is_available():
                torch.cuda.manual_seed_all(before)

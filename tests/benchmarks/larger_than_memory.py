"""Training on a file that is larger than the memory it may take: peak memory, speed, and the gap to the truth."""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.utils.data import Dataset

import energyppl as ep

SHARE, APART, BLOCK = 0.7, 4.0, 2**20  # of rows in the first component; standard deviations; rows written at once


def truth(columns: int) -> MixtureSameFamily:
    """Two Gaussians, of which the file has all rows of one before all rows of the other."""
    loc = torch.zeros(2, columns)
    loc[1, 0] = APART
    scale = torch.linspace(0.5, 1.5, columns).expand(2, columns)
    return MixtureSameFamily(Categorical(torch.tensor([SHARE, 1.0 - SHARE])), Independent(Normal(loc, scale), 1))


def write(path: Path, rows: int, columns: int) -> None:
    """Write rows of the truth, sorted by component, a block at a time."""
    array: Any = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, columns))
    parts = cast(Any, truth(columns).component_distribution).base_dist
    generator = np.random.default_rng(0)
    for begin in range(0, rows, BLOCK):
        end = min(rows, begin + BLOCK)
        component = (np.arange(begin, end) >= SHARE * rows).astype(int)
        noise = generator.standard_normal((end - begin, columns), dtype=np.float32)
        array[begin:end] = parts.loc.numpy()[component] + noise * parts.scale.numpy()[component]
        array._mmap.madvise(4)  # MADV_DONTNEED: what was written is not to count
    array.flush()


class FileRows(Dataset[Tensor]):
    """The rows of a file, read one by one."""

    def __init__(self, path: Path) -> None:
        array = np.load(path, mmap_mode="r")
        self.shape, self.offset = array.shape, array.offset
        self.file = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: int) -> Tensor:
        size = 4 * self.shape[1]
        return torch.frombuffer(bytearray(os.pread(self.file, size, self.offset + size * index)), dtype=torch.float32)


def peak() -> float:
    """The most memory that this process ever had, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def train(data: Any, columns: int, steps: int) -> tuple[ep.RecoveryEBM, float]:
    """A table's usual model and options; with the seconds that it took."""
    torch.manual_seed(0)
    ebm = ep.RecoveryEBM(ep.MLPEnergy((columns,)), ep.NoiseSchedule.cosine(20))
    began = time.perf_counter()
    ep.fit(ebm, data, steps=steps, progress=False)
    return ebm, time.perf_counter() - began


def report(name: str, ebm: ep.RecoveryEBM, seconds: float, steps: int, fresh: Tensor) -> None:
    """Print a line: nats by which the density of fresh rows falls short of the truth's, and what the training took."""
    gaps = truth(fresh.shape[1]).log_prob(fresh) - ebm.log_prob(fresh).detach()
    share = float((ebm.sample((2000,))[:, 0] < APART / 2).double().mean())
    error = float(gaps.std()) / len(gaps) ** 0.5
    print(
        f"{name:18} gap {float(gaps.mean()):.3f} ± {error:.3f} nats, {share:.3f} of samples in the first component "
        f"(truth {SHARE}), {seconds:.0f} s, {1000 * seconds / steps:.1f} ms a step, peak memory so far {peak():.2f} GB",
        flush=True,
    )


def main(arguments: Sequence[str]) -> None:
    """Write the file, train on it, and then on a tensor of some rows beside it."""
    parser = argparse.ArgumentParser(prog="larger_than_memory", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of the file (default: 5)")
    parser.add_argument("--columns", type=int, default=8, help="columns, float32 (default: 8)")
    parser.add_argument("--steps", type=int, default=2000, help="updates (default: 2000)")
    parser.add_argument("--kind", choices=["mapped", "dataset"], default="mapped", help="how it is passed")
    parser.add_argument("--folder", type=Path, help="where the file is put and deleted (default: a temporary folder)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = int(options.gigabytes * 1e9 / (4 * options.columns))
    print(f"{rows:,} rows of {options.columns} columns; memory before {peak():.2f} GB", flush=True)
    torch.manual_seed(1)
    fresh = truth(options.columns).sample((2000,))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "rows.npy"
        began = time.perf_counter()
        write(path, rows, options.columns)
        print(f"written in {time.perf_counter() - began:.0f} s; peak memory {peak():.2f} GB", flush=True)
        data = np.load(path, mmap_mode="r") if options.kind == "mapped" else FileRows(path)
        ebm, seconds = train(data, options.columns, options.steps)
        report(f"file, {options.kind}", ebm, seconds, options.steps, fresh)
    some = truth(options.columns).sample((min(rows, 1_000_000),))
    ebm, seconds = train(some, options.columns, options.steps)
    report(f"{len(some):,} in memory", ebm, seconds, options.steps, fresh)

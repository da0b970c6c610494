"""The contract of sources of training rows, and what all of them need."""

import random
from collections.abc import Iterable
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from energyppl.errors import InvalidInput

__all__ = [
    "MEASURED_ROWS",
    "SETTLING_ROWS",
    "Draw",
    "Readable",
    "Source",
    "digests",
    "held_out_places",
    "rows_and_labels",
    "sample_size",
]

MEASURED_ROWS = 4096  # of the held-out data
SETTLING_ROWS = 2048  # that stand for all where a model is standardized already
_SAMPLE_ROWS, _SAMPLE_NUMBERS = 2**16, 2**23  # of the rows that stand for all: at most 32 MiB in float32

Draw = tuple[Tensor, Tensor | None]
"""Rows ``(n, *event)``, and their labels ``(n,)`` or contexts ``(n, *context)`` if they have any."""

Readable = Tensor | NDArray[Any] | Dataset[Any] | Iterable[Any] | tuple[Any, Any]
"""Data that a run can be trained on: rows in memory, rows that are read by number, or batches one after another.

A conditional model takes a pair of rows and contexts, both in memory or mapped from files.
"""


class Source(Protocol):
    """Training rows as a run asks for them, in the model's dtype and on its device."""

    sample: Tensor  # (k, *event): all rows, or some that stand for them where all would be too many
    contexts: Tensor | None  # (k, *context): beside the sample, of a conditional model
    held_out: Tensor  # (m, *event): rows to evaluate on, which are never drawn
    held_out_contexts: Tensor | None  # (m, *context)

    def draw(self) -> Draw | None:
        """Return the next batch, of several processes this one's share; None if there is none, and none to come."""
        ...

    def key(self) -> list[Any]:
        """Return numbers that tell these rows from others."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position."""
        ...


def digests(sample: Tensor, *others: Tensor | None) -> list[Any]:
    """Return the shape and the numbers that tell a source's rows, and what stands beside them, from others.

    They are CRC-32 of the tensors' bytes, the same on every device, and others if rows or columns change places.
    """
    known = [tensor for tensor in (sample, *others) if tensor is not None]
    raw = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data for tensor in known]
    return [list(sample.shape), *(crc32(part) for part in raw)]


def sample_size(row: Tensor) -> int:
    """Return how many rows like this one stand for all."""
    return min(_SAMPLE_ROWS, max(2, _SAMPLE_NUMBERS // max(1, row.numel())))


def held_out_places(count: int) -> NDArray[np.int64]:
    """Choose a tenth of so many rows to evaluate on, 4096 at most: always the same ones, their numbers rising."""
    aside = min(MEASURED_ROWS, max(1, count // 10))
    return np.array(sorted(random.Random(0).sample(range(count), aside)), dtype=np.int64)


def rows_and_labels(item: Any, what: str) -> tuple[Tensor, Any]:
    """Return the rows, or the row, of an item ``x``, ``(x,)`` or ``(x, label or context)``, and what stands beside it.

    Raises:
        InvalidInput: for anything else.
    """
    x, label = item, None
    if isinstance(item, (tuple, list)):
        if len(item) not in (1, 2):
            raise InvalidInput(
                f"{what} must be rows, or a pair (rows, labels); got {len(item)} things: leave out others"
            )
        x, label = item[0], item[1] if len(item) == 2 else None
    if isinstance(x, (np.ndarray, np.floating)):
        x = torch.from_numpy(np.array(x, dtype=x.dtype.newbyteorder("="))) if x.dtype.kind in "fiub" else x
    if not isinstance(x, Tensor):
        raise InvalidInput(
            f"{what} must be a torch tensor or an array, or a pair of one with its labels; got {type(x).__name__}: "
            "wrap rows in torch.as_tensor"
        )
    return x, label

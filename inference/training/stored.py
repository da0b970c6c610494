"""Rows that stay on a disk or behind a dataset, and are read by number, a batch at a time."""

import mmap
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from energyppl._checks import check_event, shape_text
from energyppl.distributed import rank, world_size
from energyppl.errors import InvalidInput
from energyppl.inference.training._checks import check_condition, is_conditional
from energyppl.inference.training.contract import (
    SETTLING_ROWS,
    Draw,
    digests,
    held_out_places,
    rows_and_labels,
    sample_size,
)
from energyppl.inference.training.parts import WindowedBatches

__all__ = ["ArrayReader", "DatasetReader", "Reader", "StoredRows", "mapping_of"]

_RELEASED = 4096  # rows that are read from a mapped file until its pages are given back
_DONT_NEED = getattr(mmap, "MADV_DONTNEED", None)  # Windows has none


class Reader(Protocol):
    """Rows that can be read by number."""

    what: str  # they are, in error sentences

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def read(self, numbers: NDArray[np.int64]) -> Draw:
        """Return the rows of these numbers, which rise, and their labels or contexts."""
        ...


class StoredRows:
    """Rows that stay where they are, and are read a batch at a time.

    They are visited in a random order of its own each epoch, which needs little memory and reads neighbours at about
    the same time, see :class:`WindowedBatches`.  Nothing looks at all of them: up to 65,536 rows, from a thousand
    places that are evenly spread, stand for them where a model is standardized, and at most 4096 are held out.

    Args:
        model: that is trained.
        reader: of the rows.
        held_out: rows to evaluate on, and contexts; if None a tenth of the rows, 4096 at most, chosen at random.
        size: rows in a batch, at most.

    Raises:
        InvalidInput: for too few rows, and for rows of the wrong shape or dtype or that are not finite when they are
            read.
    """

    def __init__(self, model: nn.Module, reader: Reader, held_out: Draw | None, size: int) -> None:
        self._model, self._reader, count = model, reader, len(reader)
        least = 3 if held_out is None else 2  # two rows are needed for a standard deviation
        if count < least:
            raise InvalidInput(f"{reader.what} must have at least {least} row(s); got {count}: pass more data")
        row = self._read(np.zeros(1, np.int64))[0][0]
        aside = held_out_places(count) if held_out is None else np.empty(0, np.int64)
        size, bytes_each = min(size, count - len(aside)), max(1, row.numel() * row.element_size())
        self._batches = WindowedBatches(count, size, aside, bytes_each)
        few, contexts = self._read(self._batches.some(SETTLING_ROWS))
        settled = bool(getattr(model, "is_standardized", True))
        self.sample, conditions = (few, contexts) if settled else self._read(self._batches.some(sample_size(row)))
        self.held_out, held_out_conditions = self._read(aside) if held_out is None else held_out
        conditional = is_conditional(model)
        self.contexts = conditions if conditional else None
        self.held_out_contexts = held_out_conditions if conditional else None
        self._key = [count, *digests(few, self.held_out, contexts, self.held_out_contexts)]

    def draw(self) -> Draw:
        """Return the next batch, or this process's share of it."""
        return self._read(np.sort(self._batches.draw())[rank() :: world_size()])

    def _read(self, numbers: NDArray[np.int64]) -> Draw:
        """Return rows by number, checked, as the model's weights are and where they are."""
        rows, labels = self._reader.read(numbers)
        event_shape = getattr(self._model, "event_shape", rows.shape[1:])
        check_event(self._reader.what, rows, event_shape)
        if rows.dim() != len(event_shape) + 1:
            raise InvalidInput(
                f"{self._reader.what} must have rows of shape {shape_text(event_shape)}; got "
                f"{shape_text(rows.shape[1:])}: put one data point in each row"
            )
        bad = numbers[~torch.isfinite(rows).reshape(len(rows), -1).all(1).numpy()]
        if len(bad):
            raise InvalidInput(
                f"{self._reader.what} must be finite; got NaN or infinity in {len(bad)} of the {len(rows)} rows just "
                f"read, first in row {bad[0]}: drop or impute such rows"
            )
        rows = rows.to(next(self._model.parameters()))
        return rows, check_condition(self._model, self._reader.what, rows, labels)

    def key(self) -> list[Any]:
        """Return how many rows there are, and digests of those that were looked at."""
        return self._key

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch's seed and the position in it."""
        return self._batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position."""
        self._batches.load_state_dict(state)


class ArrayReader:
    """Rows of a numpy array that is mapped from a file, and labels or contexts beside them.

    Args:
        array: ``(n, *event)``, floating point.
        labels: whole numbers ``(n,)``, or contexts ``(n, *context)``, a tensor or an array.

    Raises:
        InvalidInput: for another dtype, or labels of another number.
    """

    what = "the mapped array"

    def __init__(self, array: NDArray[Any], labels: Any = None) -> None:
        if array.dtype.kind != "f":
            raise InvalidInput(
                f"{self.what} must be floating point; got {array.dtype}: write it so, or pass a torch Dataset that "
                "makes floats of its rows"
            )
        if array.ndim == 0 or (labels is not None and len(labels) != len(array)):
            came = shape_text(array.shape) + ("" if labels is None else f" and {len(labels)} labels")
            raise InvalidInput(f"{self.what} must have one data point, and one label if any, in each row; got {came}")
        self._array, self._labels, self._since = array, labels, 0
        found = mapping_of(array)
        # Where writing would stay this process's own (mode "c"), giving pages back would undo it.
        self._mapping = found._mmap if found is not None and found.mode != "c" else None  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._array)

    def read(self, numbers: NDArray[np.int64]) -> Draw:
        """Return the rows of these numbers."""
        rows = np.asarray(self._array[numbers])
        labels = None if self._labels is None else torch.as_tensor(np.asarray(self._labels[numbers]))
        self._since += len(numbers)
        if self._mapping is not None and _DONT_NEED is not None and self._since >= _RELEASED:
            self._mapping.madvise(_DONT_NEED)  # else every page that was ever read counts as this process's memory
            self._since = 0
        return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=False)), labels


class DatasetReader:
    """Items of a map-style dataset: rows, or pairs of a row and its label or context.

    Args:
        dataset: with a length; its items are tensors or arrays ``(*event)``, with or without a whole number or a
            context ``(*context)`` beside.
    """

    what = "the dataset"

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, numbers: NDArray[np.int64]) -> Draw:
        """Return the items of these numbers.

        Raises:
            InvalidInput: for items of another kind, or that differ in shape, dtype, or in having a label.
        """
        items = [rows_and_labels(self._dataset[i], f"item {i} of {self.what}") for i in numbers.tolist()]
        kinds = [(row.shape, row.dtype, label is not None) for row, label in items]
        for number, kind in zip(numbers.tolist(), kinds, strict=True):
            if kind != kinds[0]:
                raise InvalidInput(
                    f"items of {self.what} must be alike; item {number} is {_words(kind)}, item {numbers[0]} "
                    f"{_words(kinds[0])}: let the dataset make them so"
                )
        rows = torch.stack([row for row, _ in items])
        return rows, torch.stack([torch.as_tensor(label) for _, label in items]) if kinds[0][2] else None


def _words(kind: tuple[torch.Size, torch.dtype, bool]) -> str:
    shape, dtype, labelled = kind
    return f"{dtype} {shape_text(shape)} {'with' if labelled else 'without'} a label"


def mapping_of(array: object) -> "np.memmap[Any, Any] | None":
    """Return the memory-mapped array that an array is, or is a view of; None if it lies in memory."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and isinstance(getattr(array, "_mmap", None), mmap.mmap):
            return array
        array = array.base
    return None

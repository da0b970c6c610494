"""The source of training rows that suits what was passed: a tensor, an array, a dataset, or batches."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from energyppl._checks import check_data
from energyppl.distributed import rank, world_size
from energyppl.errors import InvalidInput
from energyppl.inference.training._checks import check_labels, require_no_classes
from energyppl.inference.training.contract import MEASURED_ROWS, Draw, Source, rows_and_labels, sums
from energyppl.inference.training.parts import Batches
from energyppl.inference.training.stored import ArrayReader, DatasetReader, Reader, StoredRows, mapping_of
from energyppl.inference.training.streams import StreamedBatches

__all__ = ["TensorRows", "source_of"]


def source_of(model: nn.Module, data: Any, labels: Any, held_out: Any, batch_size: int) -> Source:
    """Make the source of what was passed to train on.

    Args:
        model: that is trained.
        data: rows in memory, rows that are read by number, or batches one after another.
        labels: each row's class, where ``data`` does not bring them along.
        held_out: rows to evaluate on, of any of these kinds, of which the first 4096 count; None to set some aside.
        batch_size: rows in a batch, where the batches are ours to make.

    Raises:
        InvalidInput: for anything else, and for data or labels that can't be used.
    """
    data = _in_memory(data)
    if held_out is not None:
        held_out = _first_rows(model, held_out)
    if isinstance(data, Tensor):
        return TensorRows(model, data, _in_memory(labels), held_out, batch_size)
    if isinstance(data, np.ndarray):
        return StoredRows(model, ArrayReader(data, labels), held_out, batch_size)
    if labels is not None:
        raise InvalidInput(
            f"labels go with rows in memory or a mapped array; got them beside a {type(data).__name__}: let it give "
            "pairs (rows, labels)"
        )
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=batch_size)
    if isinstance(data, Dataset):
        return StoredRows(model, _dataset_reader(data), held_out, batch_size)
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes, dict)):
        raise InvalidInput(
            "data must be a torch tensor, a numpy array, a torch Dataset or DataLoader, or an iterable of batches; got "
            f"{type(data).__name__}: pass one of these"
        )
    return StreamedBatches(model, data, held_out)


class TensorRows:
    """Rows in memory, visited in a fresh random order each epoch.

    Args:
        model: that is trained.
        data: ``(n, *event)``.
        labels: ``(n,)``, for a model with classes.
        held_out: rows to evaluate on; a tenth of ``data`` is set aside if None.
        size: rows in a batch, at most.

    Raises:
        InvalidInput: for rows of the wrong shape, dtype or number, and labels that don't fit.
    """

    def __init__(
        self, model: nn.Module, data: Tensor, labels: Tensor | None, held_out: Tensor | None, size: int
    ) -> None:
        event_shape = getattr(model, "event_shape", None)
        least = 3 if held_out is None else 2  # two rows are needed for a standard deviation
        check_data("data", data, data.shape[1:] if event_shape is None else event_shape, at_least=least)
        data = data.detach().to(next(model.parameters()))
        if labels is None:
            require_no_classes(model)
        else:
            labels = check_labels(model, data, labels)
        if held_out is None:
            # Always the same split, so that a continued run has the same rows.
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).to(data.device)
            aside = max(1, len(data) // 10)
            held_out, data = data[order[:aside]], data[order[aside:]]
            labels = labels if labels is None else labels[order[aside:]]
        self.sample, self.held_out, self._labels = data, held_out[:MEASURED_ROWS], labels
        self._batches = Batches(len(data), min(size, len(data)))

    def draw(self) -> Draw:
        """Return the next batch, or this process's share of it."""
        rows = self._batches.draw()[rank() :: world_size()].to(self.sample.device)
        return self.sample[rows], None if self._labels is None else self._labels[rows]

    def key(self) -> list[Any]:
        """Return shape and sums, one of which tells the order of labels."""
        labels = self._labels
        order = -1 if labels is None else int((labels.cpu() * torch.arange(1, len(labels) + 1)).sum())
        return [*sums(self.sample, self.held_out), order]

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch's seed and the position in it."""
        return self._batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position."""
        self._batches.load_state_dict(state)


def _in_memory(value: Any) -> Any:
    """Return arrays and tables that lie in memory as tensors, and all else as it is."""
    if hasattr(value, "to_numpy"):  # a DataFrame or a Series
        value = value.to_numpy()
        if value.dtype.kind not in "fiub":
            raise InvalidInput(
                f"a table must hold numbers to be trained on; got values of dtype {value.dtype}: encode or drop its "
                "other columns"
            )
    if isinstance(value, np.ndarray) and mapping_of(value) is None:
        if value.dtype.kind not in "fiub":
            raise InvalidInput(f"an array must hold numbers to be trained on; got dtype {value.dtype}: convert it")
        return torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))  # copies if it must
    return value


def _dataset_reader(dataset: Any) -> Reader:
    try:
        len(dataset)
    except TypeError:
        raise InvalidInput(
            f"the Dataset {type(dataset).__name__} must have a length, as its items are read by number; it has none: "
            "define __len__, or make it an IterableDataset"
        ) from None
    return DatasetReader(dataset)


def _first_rows(model: nn.Module, held_out: Any) -> Tensor:
    """Return the first 4096 held-out rows, as the model's weights are and where they are.

    Raises:
        InvalidInput: for rows of the wrong shape or dtype, none, or some that are not finite.
    """
    rows = _in_memory(held_out)
    if isinstance(rows, IterableDataset):
        rows = DataLoader(rows, batch_size=MEASURED_ROWS)
    if isinstance(rows, (np.ndarray, Dataset)):
        reader = ArrayReader(rows) if isinstance(rows, np.ndarray) else _dataset_reader(rows)
        rows = reader.read(np.arange(min(MEASURED_ROWS, len(reader))))[0] if len(reader) else torch.empty(0)
    elif isinstance(rows, Iterable) and not isinstance(rows, Tensor):
        seen: list[Tensor] = []
        for batch in islice(rows, MEASURED_ROWS):
            seen.append(rows_and_labels(batch, "a batch of held_out")[0])
            if sum(map(len, seen)) >= MEASURED_ROWS:
                break
        rows = torch.cat(seen) if seen else torch.empty(0)
    shape = getattr(model, "event_shape", rows.shape[1:] if isinstance(rows, Tensor) else ())
    return check_data("held_out", rows, shape)[:MEASURED_ROWS].detach().to(next(model.parameters()))

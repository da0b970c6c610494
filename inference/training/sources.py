"""The source of training rows that suits what was passed: a tensor, an array, a dataset, or batches."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from energyppl._checks import as_points, check_data
from energyppl.distributed import everyone, rank, world_size
from energyppl.errors import InvalidInput
from energyppl.inference.training._checks import check_condition, is_conditional, split_pair
from energyppl.inference.training.contract import (
    MEASURED_ROWS,
    Draw,
    Source,
    digests,
    held_out_places,
    rows_and_labels,
)
from energyppl.inference.training.parts import Batches
from energyppl.inference.training.stored import ArrayReader, DatasetReader, Reader, StoredRows, mapping_of
from energyppl.inference.training.streams import StreamedBatches

__all__ = ["TensorRows", "source_of"]


def source_of(model: nn.Module, data: Any, labels: Any, held_out: Any, batch_size: int) -> Source:
    """Make the source of what was passed to train on.

    Args:
        model: that is trained.
        data: rows in memory, rows that are read by number, or batches one after another; for a conditional model a
            pair of rows and contexts, or what gives such pairs.
        labels: each row's class, where ``data`` does not bring them along.
        held_out: rows to evaluate on, of any of these kinds, of which the first 4096 count; None to set some aside.
        batch_size: rows in a batch, where the batches are ours to make.

    Raises:
        InvalidInput: for anything else, for data or labels that can't be used, and for rows that are others in another
            process of ``torchrun``: each takes its share of the same batches.
    """
    data, contexts = split_pair(model, "data", data)
    data, beside = _in_memory("data", data), labels if contexts is None else contexts
    if held_out is not None:
        held_out = _first_rows(model, held_out)
    if isinstance(data, Tensor):
        beside = _in_memory("labels" if contexts is None else "contexts", beside, whole=contexts is None)
        return _the_same_everywhere(TensorRows(model, data, beside, held_out, batch_size))
    if isinstance(data, np.ndarray):
        return _the_same_everywhere(StoredRows(model, ArrayReader(data, beside), held_out, batch_size))
    if beside is not None:
        raise InvalidInput(
            f"labels go with rows in memory or a mapped array; got them beside a {type(data).__name__}: let it give "
            "pairs (rows, labels)"
        )
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=batch_size)
    if isinstance(data, Dataset):
        return _the_same_everywhere(StoredRows(model, _dataset_reader(data), held_out, batch_size))
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
        conditions: labels ``(n,)``, for a model with classes, or contexts ``(n, *context)``, for a conditional one.
        held_out: rows to evaluate on, and contexts; if None a tenth of ``data``, 4096 rows at most, is set aside.
        size: rows in a batch, at most.

    Raises:
        InvalidInput: for rows of the wrong shape, dtype or number, and labels or contexts that don't fit.
    """

    def __init__(
        self, model: nn.Module, data: Tensor, conditions: Tensor | None, held_out: Draw | None, size: int
    ) -> None:
        event_shape = getattr(model, "event_shape", None)
        least = 3 if held_out is None else 2  # two rows are needed for a standard deviation
        check_data("data", data, data.shape[1:] if event_shape is None else event_shape, at_least=least)
        data = data.detach().to(next(model.parameters()))
        conditions = check_condition(model, "data", data, conditions)
        if held_out is None:
            aside = torch.from_numpy(held_out_places(len(data))).to(data.device)
            kept = torch.ones(len(data), dtype=torch.bool, device=data.device).index_fill_(0, aside, False)
            held_out = data[aside], None if conditions is None else conditions[aside]
            data, conditions = data[kept], None if conditions is None else conditions[kept]
        self.sample, self._conditions = data, conditions
        self.contexts, self.held_out_contexts = None, None
        self.held_out = held_out[0][:MEASURED_ROWS]
        if is_conditional(model):
            assert held_out[1] is not None
            self.contexts, self.held_out_contexts = conditions, held_out[1][:MEASURED_ROWS]
        self._batches = Batches(len(data), min(size, len(data)))

    contexts: Tensor | None
    held_out_contexts: Tensor | None

    def draw(self) -> Draw:
        """Return the next batch, or this process's share of it."""
        rows = self._batches.draw()[rank() :: world_size()].to(self.sample.device)
        return self.sample[rows], None if self._conditions is None else self._conditions[rows]

    def key(self) -> list[Any]:
        """Return shape and digests, of labels or contexts too."""
        return digests(self.sample, self.held_out, self._conditions, self.held_out_contexts)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch's seed and the position in it."""
        return self._batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position."""
        self._batches.load_state_dict(state)


def _the_same_everywhere(source: Source) -> Source:
    if world_size() > 1:
        keys = everyone(source.key())
        odd = [number for number, key in enumerate(keys) if key != keys[0]]
        if odd:
            raise InvalidInput(
                "every process must be given the same rows, of whose batches each takes its share; process "
                f"{odd[0]} was given others than process 0: pass all rows to each, or each a DataLoader of its own part"
            )
    return source


def _in_memory(name: str, value: Any, *, whole: bool = False) -> Any:
    """Return arrays and tables that lie in memory as tensors, and all else as it is, mapped arrays too."""
    if isinstance(value, np.ndarray) and mapping_of(value) is not None:
        return value
    return as_points(name, value, whole=whole)


def _dataset_reader(dataset: Any) -> Reader:
    try:
        len(dataset)
    except TypeError:
        raise InvalidInput(
            f"the Dataset {type(dataset).__name__} must have a length, as its items are read by number; it has none: "
            "define __len__, or make it an IterableDataset"
        ) from None
    return DatasetReader(dataset)


def _first_rows(model: nn.Module, held_out: Any) -> Draw:
    """Return the first 4096 held-out rows, and contexts if the model has any, as its weights are and where they are.

    Raises:
        InvalidInput: for rows of the wrong shape or dtype, none, or some that are not finite.
    """
    rows, beside = split_pair(model, "held_out", held_out)
    rows, beside = _in_memory("held_out", rows), _in_memory("contexts of held_out", beside)
    if isinstance(rows, IterableDataset):
        rows = DataLoader(rows, batch_size=MEASURED_ROWS)
    if isinstance(rows, (np.ndarray, Dataset)):
        reader = ArrayReader(rows, beside) if isinstance(rows, np.ndarray) else _dataset_reader(rows)
        rows, beside = (
            reader.read(np.arange(min(MEASURED_ROWS, len(reader)))) if len(reader) else (torch.empty(0), None)
        )
    elif isinstance(rows, Iterable) and not isinstance(rows, Tensor):
        seen: list[tuple[Tensor, Any]] = []
        for batch in islice(rows, MEASURED_ROWS):
            seen.append(rows_and_labels(batch, "a batch of held_out"))
            if sum(len(part) for part, _ in seen) >= MEASURED_ROWS:
                break
        rows = torch.cat([part for part, _ in seen]) if seen else torch.empty(0)
        beside = torch.cat([torch.as_tensor(part) for _, part in seen]) if seen and seen[0][1] is not None else None
    shape = getattr(model, "event_shape", rows.shape[1:] if isinstance(rows, Tensor) else ())
    check_data("held_out", rows, shape)
    contexts = check_condition(model, "held_out", rows, beside) if is_conditional(model) else None
    found = rows[:MEASURED_ROWS].detach().to(next(model.parameters()))
    return found, None if contexts is None else contexts[:MEASURED_ROWS]

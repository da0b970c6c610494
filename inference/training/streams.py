"""Batches that an iterable gives one after another, such as a torch DataLoader."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from energyppl._checks import check_data, shape_text
from energyppl._seeds import seeded
from energyppl.distributed import rank, shared_seed, world_size
from energyppl.errors import InvalidInput, warn_user
from energyppl.inference.training._checks import check_condition, is_conditional
from energyppl.inference.training.contract import (
    MEASURED_ROWS,
    SETTLING_ROWS,
    Draw,
    digests,
    held_out_places,
    rows_and_labels,
    sample_size,
)

__all__ = ["StreamedBatches"]

_END = object()


class StreamedBatches:
    """Batches as an iterable gives them: pass after pass if it can be iterated again, or once, as of a generator.

    The first 65,536 rows stand for all where a model is standardized, and a tenth of them, the first batches up to 4096
    rows, are held out and left out of each pass.  Of a DataLoader over a dataset that can be indexed a tenth of the
    dataset is held out, at random, and the loader then never sees it.

    A position is the number of batches into a pass.  Going on at one reads the pass anew up to there, with torch's
    random numbers as they were at its beginning; what an iterator has given can't be read again.

    Args:
        model: that is trained.
        batches: tensors or arrays ``(n, *event)``, or pairs of them with labels ``(n,)`` or contexts ``(n, *context)``.
        held_out: rows to evaluate on, and contexts; some of the batches if None.

    Raises:
        InvalidInput: for an iterable that ends at once or is too short, batches of another kind, shape or dtype or with
            rows that are not finite, by number, and without ``held_out`` for batches whose order is another one in each
            pass.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any], held_out: Draw | None) -> None:
        self._model = model
        self._kind: tuple[torch.dtype, torch.Size, bool] | None = None  # of all batches: dtype, event, without labels
        self._batches, self._once, self._own = batches, isinstance(batches, Iterator), held_out is None
        self._is_shared = isinstance(getattr(batches, "sampler", None), DistributedSampler)  # each process has its own
        self._seed, self._position, self._last = 0, 0, 0.0
        self._aside, self._given = 0, 0  # batches of each pass that are held out, batches that this pass gave
        self._pass: Iterator[Any] | None = None
        self._states: list[Tensor] = []  # of a loader's own generators, at the beginning of the pass
        self._waiting: deque[Draw] = deque()  # of an iterator, read to standardize and not yet trained on
        if held_out is None and isinstance(batches, DataLoader) and _is_plain(batches):
            self._batches, held_out = self._without_some(batches)
        self._begin(seed=0)
        (self.sample, contexts), (self.held_out, held_out_contexts) = self._look(held_out)
        conditional = is_conditional(model)
        self.contexts = contexts if conditional else None
        self.held_out_contexts = held_out_contexts if conditional else None
        if not self._once:
            self._pass = None

    # --- Reading ---

    def draw(self) -> Draw | None:
        """Return the next batch, or this process's share of it; None where an iterator has ended."""
        while True:
            drawn = self._waiting.popleft() if self._waiting else self._following()
            if drawn is None:
                return None
            self._position += 1
            self._last = float(drawn[0].double().sum())
            if self._is_shared:
                return drawn
            if len(drawn[0]) >= world_size():  # else the rest of a pass has nothing for some process
                share = slice(rank(), None, world_size())
                return drawn[0][share], None if drawn[1] is None else drawn[1][share]

    def _following(self) -> Draw | None:
        """Return the next batch of this pass, or of another."""
        if self._pass is None:
            self._begin(shared_seed())
        found = self._next()
        if found is None and not self._once:
            self._begin(shared_seed())
            found = self._next()
            if found is None:
                raise InvalidInput(f"{self._what()} gave no batch in another pass: pass one that does in each")
        return found

    def _begin(self, seed: int, skip: int = 0) -> None:
        """Begin a pass with random numbers of its own, and pass over the held-out batches and ``skip`` more."""
        if self._once and self._pass is not None:
            return
        self._seed, self._position, self._given = seed, skip, 0
        if self._is_shared:
            self._batches.sampler.set_epoch(seed % 2**31)  # type: ignore[attr-defined]
        self._states = [generator.get_state() for generator in _own_generators(self._batches)]
        with seeded(seed):
            items = iter(self._batches)
            for item in items:
                if self._given == self._aside + skip:
                    items = chain([item], items)  # a generator's first lines run when its first batch is asked for
                    break
                self._given += 1
                if skip and self._given == self._aside + skip:
                    self._last = float(self._checked(item)[0].double().sum())
        self._pass = items

    def _next(self) -> Draw | None:
        assert self._pass is not None
        item = next(self._pass, _END)
        if item is _END:
            return None
        self._given += 1
        return self._checked(item)

    def _checked(self, item: Any) -> Draw:
        """Return a batch's rows and labels, as the model's weights are and where they are."""
        what = f"batch {max(0, self._given - 1)} of {self._what()}"
        rows, labels = rows_and_labels(item, what)
        check_data(what, rows, getattr(self._model, "event_shape", rows.shape[1:]))
        kind = (rows.dtype, rows.shape[1:], labels is None)
        self._kind = self._kind or kind
        if kind != self._kind:
            raise InvalidInput(
                f"{what} must be as those before, {_words(*self._kind)}; got {_words(*kind)}: make all batches alike"
            )
        rows = rows.detach().to(next(self._model.parameters()), non_blocking=True)
        beside = None if labels is None else torch.as_tensor(labels)
        return rows, check_condition(self._model, what, rows, beside)

    def _what(self) -> str:
        return f"the {type(self._batches).__name__}"

    # --- Rows that stand for others ---

    def _look(self, held_out: Draw | None) -> tuple[Draw, Draw]:
        """Return rows that stand for all, and the held-out rows: a tenth of the first batches if there are none yet."""
        seen, enough = self._first_batches(settled=held_out is not None and self._is_standardized())
        if held_out is None:
            if not seen:
                raise InvalidInput(f"{self._what()} ended at once: pass an iterable that gives batches of rows")
            while self._aside < max(1, len(seen) // 10) and sum(len(b[0]) for b in seen[: self._aside]) < MEASURED_ROWS:
                self._aside += 1
            held_out = _joined(seen[: self._aside])
            if not self._once:
                self._require_same_order(seen[0][0])
        training = seen[self._aside :] if self._own else seen
        if sum(len(rows) for rows, _ in training) < 2:  # needed for a standard deviation
            aside = f" after {len(held_out[0])} rows that were set aside to evaluate on" if self._aside else ""
            raise InvalidInput(
                f"{self._what()} ended with {sum(len(rows) for rows, _ in training)} row(s) to train on{aside}: pass "
                "more, or pass held_out=rows"
            )
        if self._once:
            self._waiting.extend(training)
        return _first(_joined(training), enough), _first(held_out, MEASURED_ROWS)

    def _first_batches(self, *, settled: bool) -> tuple[list[Draw], int]:
        """Read batches until there are enough rows to standardize a model, and say how many rows are enough."""
        seen: list[Draw] = []
        count = enough = 0
        while not seen or count < enough:
            found = self._next()
            if found is None:
                break
            seen.append(found)
            count += len(found[0])
            enough = SETTLING_ROWS if settled else sample_size(found[0][0])
        return seen, enough

    def _is_standardized(self) -> bool:
        return bool(getattr(self._model, "is_standardized", True))

    def _require_same_order(self, first: Tensor) -> None:
        """Require that another pass begins with the same batch: rows set aside must not come back elsewhere."""
        aside, self._aside = self._aside, 0
        self._begin(seed=1)
        again = self._next()
        if again is None or not torch.equal(again[0], first):
            raise InvalidInput(
                f"{self._what()} gives its batches in another order in each pass, so rows set aside from the first "
                "would be trained on later: pass held_out=rows (another loader, say), or the dataset itself"
            )
        self._aside = aside

    def _without_some(self, loader: "DataLoader[Any]") -> tuple["DataLoader[Any]", Draw]:
        """Return the same loader without a tenth of its dataset, and those rows."""
        dataset: Any = loader.dataset
        if len(dataset) < 3:
            raise InvalidInput(
                f"the DataLoader's dataset must have at least 3 items; got {len(dataset)}: pass more data"
            )
        places = held_out_places(len(dataset))
        items = [dataset[i] for i in places.tolist()]
        held_out = self._checked(loader.collate_fn(items))
        return _rebuilt(loader, _Without(dataset, places)), held_out

    # --- Keeping and continuing ---

    def key(self) -> list[Any]:
        """Return the shape of a row, and a digest of held-out rows where they are the same in each process."""
        known = not (self._once and self._own)
        return [list(self.sample.shape[1:]), digests(self.held_out, self.held_out_contexts) if known else []]

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches into which pass this is, and held-out rows that can't be read again."""
        return {
            "seed": self._seed,
            "position": self._position,
            "last": self._last,
            "generators": self._states,
            "held_out": [self.held_out, self.held_out_contexts] if self._once and self._own else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the pass that ``state`` was taken in, with a warning where that can't be the same one."""
        seed, position, last = int(state["seed"]), int(state["position"]), float(state["last"])
        if seed < 0 or position < 0:
            raise ValueError(f"the position is batch {position} of a pass with seed {seed}")
        if self._once:
            if state["held_out"] is not None:
                rows, contexts = state["held_out"]
                self.held_out = rows.to(self.held_out)
                self.held_out_contexts = None if contexts is None else contexts.to(self.held_out)
            if position != self._position:
                warn_user(
                    f"{self._what()} can't be read again from its beginning: training goes on after batch {position} "
                    "with the batches that it gives now, and is not bit for bit the run without a break. Pass batches "
                    "that can be read again for that, such as a DataLoader"
                )
            self._position = position
            return
        if position == 0:
            self._pass, self._seed, self._position = None, seed, 0
            return
        for generator, beginning in zip(_own_generators(self._batches), state["generators"], strict=False):
            generator.set_state(beginning)
        self._pass = None
        self._begin(seed, skip=position)
        if self._last != last:
            warn_user(
                f"{self._what()} gives other batches than before, and training goes on with those: not bit for bit the "
                "run without a break. Its order must follow from torch's random numbers, or be the same in each pass"
            )
            self._last = last


def _joined(draws: list[Draw]) -> Draw:
    """Return some batches as one."""
    conditions = [condition for _, condition in draws if condition is not None]
    return torch.cat([rows for rows, _ in draws]), torch.cat(conditions) if conditions else None


def _first(drawn: Draw, count: int) -> Draw:
    return drawn[0][:count], None if drawn[1] is None else drawn[1][:count]


def _words(dtype: torch.dtype, event: torch.Size, unlabelled: bool) -> str:
    return f"{dtype} rows {shape_text(event)} {'without' if unlabelled else 'with'} labels"


# --- DataLoaders ---


class _Without(Dataset[Any]):
    """A dataset without some of its items.

    Args:
        dataset: of which there is a length.
        places: of the items that are left out, rising.
    """

    def __init__(self, dataset: Any, places: NDArray[np.int64]) -> None:
        self._dataset, self._count = dataset, len(places)
        self._before = (places - np.arange(len(places))).tolist()  # items kept before each one left out

    def __len__(self) -> int:
        return len(self._dataset) - self._count

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index + bisect_right(self._before, index)]


def _is_plain(loader: "DataLoader[Any]") -> bool:
    """Tell whether a loader reads each item of an indexed dataset once, in order or shuffled, in batches."""
    sampler = loader.sampler
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    return (
        type(loader) is DataLoader
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
        and whole
    )


def _own_generators(batches: Any) -> list[torch.Generator]:
    """Return the generators that a loader and its sampler have instead of torch's, each once."""
    found = [getattr(owner, "generator", None) for owner in (batches, getattr(batches, "sampler", None))]
    return list(dict.fromkeys(own for own in found if isinstance(own, torch.Generator)))


def _rebuilt(loader: "DataLoader[Any]", dataset: Dataset[Any]) -> "DataLoader[Any]":
    """Return a loader as this one of another dataset."""
    sampler = None
    if isinstance(loader.sampler, RandomSampler):  # whose order may follow from a generator of its own
        sampler = RandomSampler(dataset, generator=loader.sampler.generator)  # type: ignore[arg-type]
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )

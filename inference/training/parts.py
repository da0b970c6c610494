"""Parts of a training run: batches, averaged weights, gradient clipping, a guard against divergence, early stopping."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from energyppl.distributed import shared_seed
from energyppl.inference.objectives.contract import Loss

__all__ = ["Batches", "EarlyStop", "Ema", "GradientClip", "Guard", "WindowedBatches"]

_BLOCK, _WINDOW = 2**16, 2**26  # bytes of neighbouring rows, and of the rows that are shuffled together
_MAX_BLOCKS, _MAX_WINDOW = 2**20, 2**19  # blocks of an epoch, rows of a window: what numbers are held in memory
_MIN_BATCHES = 16  # of a window
_PLACES = 1024  # from which rows are taken to stand for all


class Batches:
    """The rows of each batch, in a fresh random order each epoch.

    Args:
        count: how many rows there are.
        size: of a batch, at most ``count``.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._seed, self._position = 0, count
        self._order = torch.empty(0, dtype=torch.long)

    def draw(self) -> Tensor:
        """Return the next rows, ``(size,)``; a rest that is smaller than a batch waits for another epoch."""
        if self._position + self.size > self.count:
            self._seed, self._position = shared_seed(), 0
            self._shuffle()
        rows = self._order[self._position : self._position + self.size]
        self._position += self.size
        return rows

    def _shuffle(self) -> None:
        self._order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self._seed))

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch's seed and the position in it."""
        return {"seed": self._seed, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        seed, position = int(state["seed"]), int(state["position"])
        if not (0 <= position <= self.count and seed >= 0):
            raise ValueError(f"the position in an epoch is {position} of {self.count}, with seed {seed}")
        self._seed, self._position = seed, position
        self._shuffle()


class WindowedBatches:
    """The row numbers of each batch where the rows are too many to shuffle, and neighbours are read fastest together.

    Rows are cut into blocks of neighbours (64 KiB). Each epoch shuffles the blocks, takes a window of them at a time
    (64 MiB), and shuffles the rows of the window: a batch has rows of up to a thousand places, and memory holds the
    numbers of one window.  Rows that fit into a window are shuffled as a whole.

    Args:
        count: how many rows there are.
        size: of a batch, at most ``count`` less those left out.
        left_out: numbers of rows that never come, rising.
        row_bytes: that a row takes.
    """

    def __init__(self, count: int, size: int, left_out: NDArray[np.int64], row_bytes: int) -> None:
        self.count, self.size, self.left_out = count, size, left_out
        self._block = max(1, _BLOCK // row_bytes, -(-count // _MAX_BLOCKS))
        self._blocks = -(-count // self._block)
        window = min(_MAX_WINDOW, _WINDOW // row_bytes)
        self._windows = max(1, min(self._blocks, count // max(window, _MIN_BATCHES * size)))
        self._seed, self._window, self._position = 0, self._windows, 0
        self._rows = np.empty(0, np.int64)

    def draw(self) -> NDArray[np.int64]:
        """Return the next numbers, ``(size,)``; a window's rest that is less than a batch is left for another epoch."""
        while self._position + self.size > len(self._rows):
            self._window, self._position = self._window + 1, 0
            if self._window >= self._windows:
                self._seed, self._window = shared_seed(), 0
            self._shuffle()
        rows = self._rows[self._position : self._position + self.size]
        self._position += self.size
        return rows

    def some(self, count: int) -> NDArray[np.int64]:
        """Return the numbers of so many rows, rising: a few neighbours in each part of them, always the same ones."""
        if count >= self.count:
            rows = np.arange(self.count)
        else:
            parts = min(count, _PLACES)
            run = count // parts
            within = torch.rand(parts, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
            first = ((np.arange(parts) + within) * ((self.count - run) / parts)).astype(np.int64)
            rows = np.unique(first[:, None] + np.arange(run))
        return rows[~np.isin(rows, self.left_out)]

    def _shuffle(self) -> None:
        blocks = np.array_split(_permuted(self._blocks, self._seed), self._windows)[self._window]
        rows = self._members(blocks)
        self._rows = rows[_permuted(len(rows), self._seed + 1 + self._window)]

    def _members(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of blocks, without those left out."""
        rows = (blocks[:, None] * self._block + np.arange(self._block)).reshape(-1)
        rows = rows[rows < self.count]
        return rows[~np.isin(rows, self.left_out)]

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch's seed, and the window and the position in it."""
        return {"seed": self._seed, "window": self._window, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        seed, window, position = (int(state[name]) for name in ("seed", "window", "position"))
        if not (seed >= 0 and 0 <= window <= self._windows and 0 <= position <= self.count):
            raise ValueError(f"the position is {position} of window {window} of {self._windows}, with seed {seed}")
        self._seed, self._window, self._position = seed, window, position
        if window < self._windows:
            self._shuffle()
        else:
            self._rows = np.empty(0, np.int64)


def _permuted(count: int, seed: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    return order


class Ema:
    """An exponential moving average of weights, with a shorter memory at first.

    Args:
        weights: averaged after each update.
        decay: of the average, below 1.
    """

    def __init__(self, weights: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self.average = [p.detach().clone() for p in weights]

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor], step: int) -> None:
        """Move the average towards the weights after update number ``step``."""
        decay = min(self.decay, (step + 1) / (step + 10))
        for average, weight in zip(self.average, weights, strict=True):
            average.lerp_(weight, 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over an average."""
        _take_over(self.average, state["average"], "the averaged weights")


class GradientClip:
    """Clipping of gradients far longer than they recently were: one bad batch must not throw the weights away.

    Args:
        parts: groups of weights whose gradients are different things, and are clipped apart.
        times: a gradient longer than this many times its recent length is shortened to that.
    """

    def __init__(self, parts: Sequence[Sequence[Tensor]], times: float) -> None:
        self.parts, self.times = parts, times
        self._recent = [0.0] * len(parts)

    def clip(self) -> float:
        """Clip the gradients and return their length before, of all parts together."""
        norms = []
        for index, part in enumerate(self.parts):
            recent = self._recent[index]
            limit = self.times * recent if recent else math.inf
            norm = float(nn.utils.clip_grad_norm_(part, limit if math.isfinite(limit) else 1e30))
            if math.isfinite(norm):
                kept = min(norm, limit)
                self._recent[index] = kept if not recent else 0.98 * recent + 0.02 * kept
            norms.append(norm)
        return math.sqrt(sum(norm * norm for norm in norms))

    def state_dict(self) -> dict[str, Any]:
        """Return the recent lengths."""
        return {"recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over recent lengths."""
        recent = [float(value) for value in state["recent"]]
        if len(recent) != len(self.parts) or not all(math.isfinite(value) and value >= 0.0 for value in recent):
            raise ValueError(f"the gradients' recent lengths are {recent[:4]}")
        self._recent = recent


class Guard:
    """A look at each update's numbers, which says when training runs away.

    Args:
        limit: nats that the energy gap's running mean may reach; one wild batch is not divergence.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.gap = limit, 0.0

    def trouble(self, loss: Loss, norm: float) -> str:
        """Say which quantity left its range, of a loss and the gradient's norm; nothing if none did."""
        self.gap = 0.9 * self.gap + 0.1 * (loss.energy_gap or 0.0)
        value = float(loss.value.detach())
        smallest = 1.0 if loss.smallest_step is None else loss.smallest_step
        for bad, what in (
            (not math.isfinite(value), f"the loss is {value}"),
            (not math.isfinite(norm), f"the gradient's norm is {norm}"),
            (not abs(self.gap) <= self.limit, f"the energy gap is {self.gap:.3g} nats (limit {self.limit:.3g})"),
            (smallest < 1e-7, f"a level's step size fell to {smallest:.2g} of its width: its chains don't move"),
        ):
            if bad:
                return what
        return ""


class EarlyStop:
    """The best weights by a measure of held-out data, and a stop when it has been clearly worse for long.

    Args:
        weights: tensors that are kept when they are the best, buffers included.
        patience: evaluations in a row that are clearly worse than the best one.
        tolerance: how much worse, relative to the best, is clearly worse: the measure wanders by about a percent while
            the density still gets better.
    """

    def __init__(self, weights: Sequence[Tensor], patience: int, tolerance: float) -> None:
        self.patience, self.tolerance = patience, tolerance
        self.best = [p.detach().clone() for p in weights]
        self.measure, self.stale = math.inf, 0

    def update(self, measure: float, weights: Sequence[Tensor]) -> bool:
        """Judge one evaluation; return whether to stop."""
        if measure < self.measure:
            self.measure = measure
            copy_all(self.best, weights)
        worse = not measure <= self.measure + self.tolerance * abs(self.measure)  # NaN is worse
        self.stale = self.stale + 1 if worse else 0
        return self.stale >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights and how the evaluations went."""
        return {"best": self.best, "measure": self.measure, "stale": self.stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        _take_over(self.best, state["best"], "the best weights")
        self.measure, self.stale = float(state["measure"]), int(state["stale"])
        if math.isnan(self.measure) or self.stale < 0:
            raise ValueError(f"the evaluations are {self.measure}, worse {self.stale} times")


@torch.no_grad()
def copy_all(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Copy tensors into others of the same shapes, in the memory order that these have."""
    for own, their in zip(ours, theirs, strict=True):
        own.copy_(their)


def _take_over(ours: Sequence[Tensor], theirs: Sequence[Tensor], what: str) -> None:
    """Copy tensors of a checkpoint, after a look at all of them.

    Raises:
        ValueError: for others in number, shape or dtype, or that are not finite.
    """
    fits = len(ours) == len(theirs) and all(
        isinstance(their, Tensor) and their.shape == own.shape and their.dtype == own.dtype
        for own, their in zip(ours, theirs, strict=True)
    )
    if not fits or not all(bool(torch.isfinite(their).all()) for their in theirs):
        raise ValueError(f"{what} differ in number, shape or dtype from the model's, or are not finite")
    copy_all(ours, theirs)

"""Parts of a training run, each with a state: batches, averaged weights, gradient clipping, early stopping."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Batches", "EarlyStop", "Ema", "GradientClip"]


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
            self._seed, self._position = int(torch.randint(2**62, ())), 0
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

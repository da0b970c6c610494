"""Chains that outlive an update: their points, levels and ages, kept slot by slot on the model's device."""

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, shape_text
from energyppl.errors import InvalidInput

__all__ = ["ChainBuffer"]


class ChainBuffer(nn.Module):
    """Persistent chains (Tieleman 2008) as buffers of a module, so they follow the model to its device and checkpoints.

    A chain is read from a slot and written back to the same: with a sampler that does nothing the buffer stays as it
    is.  Chains begin at N(0, I), the levels evenly shared, at an age of 0 moves.

    Args:
        event_shape: shape of one point.
        slots: how many chains.
        levels: number of levels; 1 for a model without any.

    Raises:
        InvalidInput: for no slots or no levels, or fewer slots than levels.
    """

    x: Tensor
    level: Tensor
    age: Tensor

    def __init__(self, event_shape: torch.Size, slots: int = 4096, levels: int = 1) -> None:
        super().__init__()
        check_count("levels", levels)
        check_count("slots", slots, at_least=levels)
        self.event_shape = torch.Size(event_shape)
        self.levels = levels
        self.register_buffer("x", torch.randn(slots, *event_shape))
        self.register_buffer("level", torch.arange(slots) % levels)
        self.register_buffer("age", torch.zeros(slots, dtype=torch.long))

    def __len__(self) -> int:
        return len(self.x)

    def check(self, event_shape: torch.Size, levels: int, like: Tensor) -> None:
        """Require chains of a model's points and levels, on its device.

        Raises:
            InvalidInput: if they belong to another model or lie on another device.
        """
        if self.event_shape != event_shape or self.levels != levels:
            raise InvalidInput(
                f"the chains must be those of the model, {levels} level(s) of points {shape_text(event_shape)}; got "
                f"{self.levels} of {shape_text(self.event_shape)}: pass none to have them made"
            )
        if self.x.device != like.device or self.x.dtype != like.dtype:
            raise InvalidInput(
                f"the chains must lie on the model's device, {like.device}, as {like.dtype}; got {self.x.device} and "
                f"{self.x.dtype}: call .to(…) on them as on the model"
            )

    def draw(self, count: int) -> Tensor:
        """Different slots at random, ``(count,)``; all of them if there are no more."""
        return torch.randperm(len(self), device=self.x.device)[:count]

    def begin_anew(self, slots: Tensor) -> None:
        """Put fresh chains into slots: noise, at the level with most noise, where that is what lives there."""
        self.x[slots] = torch.randn_like(self.x[slots])
        self.level[slots] = self.levels - 1
        self.age[slots] = 0

    def store(self, slots: Tensor, x: Tensor, level: Tensor, moves: int) -> None:
        """Write chains back to their slots, older by some moves."""
        self.x[slots], self.level[slots] = x, level
        self.age[slots] += moves

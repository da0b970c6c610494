"""Persistent chains: kept slot by slot from update to update, and their contrast with data (Tieleman 2008)."""

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_shape, checked, shape_text
from energyppl.errors import InvalidInput
from energyppl.inference.adaptation.step_size import group_means

__all__ = ["ChainBuffer", "chain_contrast"]

_MARGIN = 3.0  # nats


class ChainBuffer(nn.Module):
    """Persistent chains (Tieleman 2008) as buffers, so they follow an objective's state to its device and checkpoints.

    A chain is read from a slot and written back to the same: with a sampler that does nothing the buffer stays as it
    is.  Chains begin at N(0, I), the levels evenly shared, at an age of 0 moves.

    Args:
        event_shape: shape of one point.
        slots: how many chains.
        levels: number of levels; 1 for a model without any.

    Raises:
        InvalidInput: for no slots or no levels, or fewer slots than levels.

    Example:
        >>> ep.objectives.ChainBuffer(torch.Size((2,)), slots=16).x.shape
        torch.Size([16, 2])
    """

    x: Tensor
    level: Tensor
    age: Tensor

    @checked
    def __init__(self, event_shape: torch.Size, slots: int = 4096, levels: int = 1) -> None:
        super().__init__()
        check_count("levels", levels)
        check_count("slots", slots, at_least=levels)
        self.event_shape = check_shape("event_shape", event_shape)
        self.levels = levels
        self.register_buffer("x", torch.randn(slots, *self.event_shape))
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
        """Draw different slots at random, ``(count,)``; all of them if there are no more."""
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


def chain_contrast(
    own: Tensor, own_level: Tensor, theirs: Tensor, level: Tensor, levels: int, room: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mean energy of data less that of chains, ``()``, and how much each chain counts, ``(chains,)``.

    The latter is ``sigmoid(mean energy of its level's data + room + 3 − U)``.  A chain that doesn't count stands for
    data of its level, so that levels keep their shares of the gradient: left out, it would let a level sink, unopposed,
    to which chains that choose their level then go.

    Args:
        own: energies of data, ``(n,)``, in nats.
        own_level: their levels, ``(n,)``.
        theirs: energies of chains, ``(chains,)``.
        level: their levels, ``(chains,)``; where there are no data, those of all levels serve.
        levels: how many there are.
        room: nats that a place may make up for by its size, a number or ``(chains,)``.
    """
    usual = group_means(own, own_level, levels)
    usual = torch.where(usual.isnan(), own.mean(), usual)[level]
    weight = torch.sigmoid((usual + room + _MARGIN - theirs).detach())
    return own.mean() - (weight * theirs + (1.0 - weight) * usual).mean(), weight

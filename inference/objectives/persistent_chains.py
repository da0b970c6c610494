"""Persistent chains of a model's marginals: they go where recovery likelihood's short, tilted chains never come.

In more than two dimensions a network is free to dig holes far from the data: no tilt leads there, so nothing fills
them, samples look right, and the normalized density is nonsense.  Chains that go on from update to update (Tieleman
2008), from wide noise and without a tilt, find such holes; there they are negatives of plain maximum likelihood.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, shape_text
from energyppl.errors import InvalidInput
from energyppl.inference.adaptation.step_size import group_means
from energyppl.inference.kernels.contract import append_dims, casting
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.levels.recovery import RecoveryModel
from energyppl.inference.levels.step_sizes import adapt_step_sizes
from energyppl.inference.sampling.run_chain import run_chain

__all__ = ["ChainBuffer", "Contrast", "chain_contrast", "persistent_contrast", "persistent_levels"]

_WIDE = 1.5  # standard deviations of the marginal: where chains begin
_FRESH = 0.02  # share of the visited chains that begin anew
_FIRST_STEP = 0.1
_ADAPTATION_RATE = 0.1
_MARGIN = 3.0  # nats


class Contrast(NamedTuple):
    """A term of a loss, and what to write down about it."""

    value: Tensor  # (), differentiable: mean energy of data less that of chains
    weight: float  # mean weight of the chains: near 1 when they are where the data are
    gap: float  # energy of data less that of all chains, in nats


def persistent_levels(slots: int, levels: int) -> Tensor:
    """The level of each slot, ``(slots,)``: a quarter at level 0 on top of equal shares; it is the sharpest."""
    first = slots // 4
    return torch.cat([torch.zeros(first, dtype=torch.long), torch.arange(slots - first) % levels])


def persistent_contrast(
    model: RecoveryModel, batch: Tensor, steps: int, autocast: torch.dtype | None = None
) -> Contrast:
    """Move as many persistent chains as ``batch``, ``(n, *event)``, has rows, and contrast them with these rows.

    A chain that is still on its way from the noise lies where the model has no mass, and must not be pushed for ever.
    A place whose energy is Δ above the data's still holds mass if it is e^Δ times as large, and no place is larger than
    the marginal's own Gaussian, whose entropy exceeds that of the level's noise by d log(marginal_std / σ̄).  So a chain
    counts by ``sigmoid(data's mean energy + d log(marginal_std / σ̄) + 3 − U)``.

    Args:
        model: its chains and their step sizes are written in place.
        batch: clean rows, no more than there are slots.
        steps: moves of each chain.
        autocast: arithmetic of the energies in the loss.
    """
    chains, count = model.persistent_chains, len(batch)
    marginal_std = model.schedule.marginal_std.to(chains)
    levels = persistent_levels(len(chains), model.schedule.levels).to(chains.device)
    wide = append_dims(_WIDE * marginal_std[levels], chains)
    if not bool(chains.any()):
        chains.copy_(wide * torch.randn_like(chains))
        model.persistent_steps.copy_(_FIRST_STEP * marginal_std[:-1])
    slots = torch.randperm(len(chains))[:count].to(chains.device)
    level, start = levels[slots], chains[slots]
    fresh = torch.rand(len(slots), device=chains.device) < _FRESH
    start = torch.where(append_dims(fresh, start), wide[slots] * torch.randn_like(start), start)
    kernel = MALA(model.persistent_steps[level], force_dtype=getattr(model.kernel, "force_dtype", None))
    chain = run_chain(kernel, model.potential(level), start, steps)
    chains[slots] = chain.state.x
    adapt_step_sizes(
        model.persistent_steps,
        chain.accept_prob,
        level,
        _ADAPTATION_RATE,
        MALA.target_acceptance,
        largest=float(marginal_std.max()),
    )

    data = model.schedule.diffuse(model.to_unit(batch), level)
    with casting(data, autocast):
        energy = model.potential(torch.cat([level, level]))(torch.cat([data, chain.state.x]))
    own, theirs = energy.to(data.dtype).split(count)
    room = math.prod(model.event_shape) * (marginal_std / model.schedule.sigma_bar.to(marginal_std)).log()[level]
    value, weight = chain_contrast(own, level, theirs, level, model.schedule.levels, room)
    return Contrast(value, float(weight.mean()), float((own - theirs).detach().mean()))


def chain_contrast(
    own: Tensor, own_level: Tensor, theirs: Tensor, level: Tensor, levels: int, room: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Mean energy of data less that of chains, ``()``, and how much each chain counts, ``(chains,)``.

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

"""Chains that several processes share: each runs its part, and all have the result."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from energyppl._checks import shape_text
from energyppl.distributed import everyone, gather, mean, rank, shard, world_size
from energyppl.errors import InvalidInput
from energyppl.inference.sampling.chains import Chains
from energyppl.inference.sampling.targets import Init

__all__ = ["joined", "own_share"]


def own_share(chains: int, init: Init) -> tuple[int, Init]:
    """Return how many of so many chains this process runs, and where they begin.

    Raises:
        InvalidInput: for fewer chains than processes, or starts of another number of chains.
    """
    if world_size() == 1:
        return chains, init
    if chains < world_size():
        raise InvalidInput(f"chains must be at least the number of processes, {world_size()}; got {chains}")
    part = shard(chains)
    given = init.values() if isinstance(init, Mapping) else [init]
    for value in given:
        if isinstance(value, Tensor) and value.shape[:1] != (chains,):
            raise InvalidInput(
                f"init must have a row for each of the {chains} chains of all processes; got {shape_text(value.shape)}"
            )
    if isinstance(init, Tensor):
        init = init[part]
    elif isinstance(init, Mapping):
        init = {name: value[part] for name, value in init.items()}
    return part.stop - part.start, init


def joined(own: Chains) -> Chains:
    """Return the chains of all processes, in each of them; the kernel is the one that this process tuned."""
    if world_size() == 1:
        return own
    drawn = min(everyone(own.draws.shape[1]))  # Ctrl-C may end one before another

    def whole(value: Tensor) -> Tensor:
        return gather(value[:, :drawn])

    def known_to_all(value: Tensor | None) -> Tensor | None:
        known = all(everyone(value is not None))
        return whole(value) if known and value is not None else None

    means = mean({"seconds": own.seconds, "warmup_seconds": own.warmup_seconds, "gradients": own.warmup_gradients})
    counts = everyone(len(own.draws))
    note = (
        f"each of {world_size()} processes tuned a kernel of its own for its {' and '.join(map(str, counts))} chains; "
        f"kernel is that of process {rank()}"
    )
    return replace(
        own,
        draws=whole(own.draws),
        energy=whole(own.energy),
        acceptance=whole(own.acceptance),
        diverging=whole(own.diverging),
        moved=whole(own.moved),
        steps=whole(own.steps),
        step_sizes=torch.stack(everyone(own.step_sizes[:drawn])).mean(0),
        total_energy=known_to_all(own.total_energy),
        tree_depth=known_to_all(own.tree_depth),
        warmup=None if own.warmup is None else joined(own.warmup),
        interrupted=any(everyone(own.interrupted)),
        seconds=means["seconds"],
        warmup_seconds=means["warmup_seconds"],
        warmup_gradients=means["gradients"],
        notes=(*own.notes, note),
    )

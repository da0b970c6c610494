"""Particles that several processes share."""

import math
from dataclasses import replace

from torch import Tensor

from energyppl.distributed import rank, world_size
from energyppl.inference.normalizing.methods import ISLANDS, Annealing
from energyppl.inference.normalizing.paths import Draws

__all__ = ["own_share"]


def own_share(samples: Draws | None, method: Annealing) -> tuple[Draws | None, Annealing]:
    """Return the draws and the particles that are this process's to run; each of them finds a path of its own.

    Weights from several paths may be put together: which path a particle takes is one more random number, which runs
    forward and in reverse draw alike.
    """
    world = world_size()
    if world == 1:
        return samples, method
    if isinstance(samples, Tensor):
        samples = samples[: len(samples) // world * world][rank() :: world]
    share = ISLANDS * math.ceil(method.particles / (ISLANDS * world))
    return samples, replace(method, particles=max(4 * ISLANDS, share))

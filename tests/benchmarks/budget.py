"""Trainings that take as long as asked, the cosine decay of their rate fitted to the speed of some first updates."""

import time
from collections.abc import Callable

import energyppl as ep


def training_within(
    seconds: float,
    build: Callable[[int], ep.Training],
    *,
    skip: int = 10,
    over: int = 20,
    least: int = 100,
    clock: Callable[[], float] = time.process_time,  # whatever else runs on the machine
) -> ep.Training:
    """A training that has not begun, of as many updates as fit.

    Args:
        seconds: to fill, by ``clock``.
        build: makes the same training for a number of updates.
        skip: updates before the clock runs.
        over: updates that are timed.
        least: updates, however slow they are.
        clock: tells the time.
    """
    trial = build(100_000)
    for _ in range(skip):
        next(trial)
    began = clock()
    for _ in range(over):
        next(trial)
    return build(max(least, int(over * seconds / (clock() - began))))

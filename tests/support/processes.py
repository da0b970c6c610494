"""Processes that work together, forked from this one: what each of them returns, and how it ended."""

import multiprocessing
import pickle
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed as dist


class Ended(NamedTuple):
    """How a process ended: what it returned, or the sentence of its error."""

    value: Any
    error: str
    code: int | None  # minus the signal's number, None if it had to be killed


def _work(
    function: Callable[..., Any], number: int, count: int, folder: Path, arguments: tuple[Any, ...], together: bool
) -> None:
    torch.set_num_threads(1)
    value, error = None, ""
    meeting, rank, size = ("meeting", number, count) if together else (f"meeting-{number}", 0, 1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{meeting}", rank=rank, world_size=size)
    try:
        torch.manual_seed(3)  # as a script does, in each process alike
        value = function(*arguments)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    (folder / f"result-{number}").write_bytes(pickle.dumps((value, error)))


def run(
    function: Callable[..., Any],
    folder: Path,
    *arguments: Any,
    count: int = 2,
    limit: float = 60.0,
    together: bool = True,
) -> list[Ended]:
    """Call a function in several processes at once, of one group or each of its own, and wait for all of them."""
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_work, args=(function, i, count, folder, arguments, together)) for i in range(count)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 and later warn of forks beside threads
        for process in processes:
            process.start()
    ends = []
    for number, process in enumerate(processes):
        process.join(limit)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        path = folder / f"result-{number}"
        value, error = pickle.loads(path.read_bytes()) if path.exists() else (None, "")
        ends.append(Ended(value, error, None if late else process.exitcode))
    return ends


def values(ends: list[Ended]) -> list[Any]:
    """What all processes returned, none of which failed."""
    assert [end.error for end in ends] == [""] * len(ends)
    assert [end.code for end in ends] == [0] * len(ends)
    return [end.value for end in ends]


KILLED = -signal.SIGKILL

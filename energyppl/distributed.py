"""Several processes as one: the rows of a batch, chains and particles shared among the processes of ``torchrun``.

Start a script by ``torchrun --nproc-per-node 2 script.py`` and it is run twice, on one machine or on several.  Then
``fit`` averages gradients over the processes, ``sample_chains`` and ``log_normalizer`` share chains and particles, and
all of them return the same in each process; started by ``python script.py`` the same lines are for one process.

- Each process must make the same calls in the same order.  What only one of them is to do (``if rank() == 0:``) goes
  into :func:`alone`, or it waits for the others for ten minutes.
- The processes are joined by the first call that needs it, over gloo on CPUs and nccl on GPUs; a group that
  ``torch.distributed.init_process_group`` made before is used as it is.
- If a process ends, the others end with an :class:`~energyppl.EnergyPPLError`; torchrun then ends or restarts them all.
"""

import atexit
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from energyppl._checks import check_count, checked
from energyppl._seeds import seeded
from energyppl.errors import EnergyPPLError, first_line

__all__ = [
    "agreed",
    "alone",
    "average_gradients",
    "broadcast",
    "everyone",
    "gather",
    "mean",
    "own_numbers",
    "own_stream",
    "rank",
    "shard",
    "shared_seed",
    "world_size",
]

_TIMEOUT = timedelta(minutes=10)  # for a process that does not answer; one that ended is noticed at once
_T = TypeVar("_T")
_alone = 0  # how many blocks of alone() are open


def world_size() -> int:
    """Return how many processes share the work, 1 without ``torchrun``; the first call joins them.

    Raises:
        EnergyPPLError: if they can't be joined.

    Example:
        >>> ep.distributed.world_size()
        1
    """
    if _alone or not dist.is_available():
        return 1
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched() or os.environ.get("WORLD_SIZE", "1") == "1":
            return 1
        _join()
    return dist.get_world_size()


def rank() -> int:
    """Return this process's number, from 0; files are written by number 0.

    Example:
        >>> ep.distributed.rank()
        0
    """
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """Work as one process inside, whatever the others do.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> if ep.distributed.rank() == 0:
        ...     with ep.distributed.alone():
        ...         chains = ep.sample_chains(ep.HMC(), normal, chains=8, draws=20, warmup=20, progress=False)
    """
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


# --- Shares ---


@checked
def shard(count: int) -> slice:
    """Return this process's share of so many things, as a slice: neighbours, as many as the others have, or one more.

    Example:
        >>> ep.distributed.shard(10)
        slice(0, 10, None)
    """
    check_count("count", count, at_least=0)
    world, number = world_size(), rank()
    return slice(count * number // world, count * (number + 1) // world)


@checked
def gather(value: Tensor, dim: int = 0) -> Tensor:
    """Join the shares of all processes along a dimension, in which alone they may differ in size.

    Args:
        value: this process's share, of the others' dtype.
        dim: along which they are joined.

    Returns:
        The same in each process, on the device of ``value``.

    Raises:
        EnergyPPLError: if another process has ended or does not answer.

    Example:
        >>> ep.distributed.gather(torch.zeros(3, 2)).shape
        torch.Size([3, 2])
    """
    world = world_size()
    if world == 1:
        return value
    rows = value.detach().movedim(dim, 0).contiguous()
    each = rows[0].numel() * rows.element_size() if len(rows) else 0
    mine = torch.tensor([len(rows), each], device=value.device)
    sizes = [torch.empty_like(mine) for _ in range(world)]
    with _together("gather"):
        dist.all_gather(sizes, mine)
        counts, each = [int(size[0]) for size in sizes], max(int(size[1]) for size in sizes)
        padded = torch.zeros(max(counts) * each, dtype=torch.uint8, device=value.device)
        padded[: len(rows) * each] = rows.reshape(-1).view(torch.uint8)
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
    joined = torch.cat([part[: count * each] for part, count in zip(parts, counts, strict=True)])
    return joined.view(value.dtype).reshape(sum(counts), *rows.shape[1:]).movedim(0, dim)


# --- What is the same everywhere ---


@checked
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each parameter's gradient by its mean over the processes; without any there a parameter has none here.

    Raises:
        EnergyPPLError: if another process has ended or does not answer.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> weight.sum().backward()
        >>> ep.distributed.average_gradients([weight])
        >>> weight.grad
        tensor([1., 1.])
    """
    world, weights = world_size(), list(parameters)
    if world == 1:
        return
    for dtype, device in dict.fromkeys((weight.dtype, weight.device) for weight in weights):
        group = [weight for weight in weights if (weight.dtype, weight.device) == (dtype, device)]
        known = torch.tensor([weight.grad is not None for weight in group], dtype=dtype, device=device)
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in group]
        flat = torch.cat([known, *(grad.reshape(-1) for grad in grads)])  # one message for all of them
        with _together("the mean of gradients"):
            dist.all_reduce(flat)
        flat /= world
        known, *means = flat.split([len(group), *(weight.numel() for weight in group)])
        for weight, there, average in zip(group, known.tolist(), means, strict=True):
            if there:
                grad = torch.empty_like(weight) if weight.grad is None else weight.grad
                weight.grad = grad.copy_(average.reshape(weight.shape))


@checked
def mean(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each number over the processes, which have the same names.

    Raises:
        EnergyPPLError: if another process has ended or does not answer.

    Example:
        >>> ep.distributed.mean({"loss": 0.5})  # in one process, its own
        {'loss': 0.5}
    """
    world = world_size()
    if world == 1:
        return dict(numbers)
    values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=_device())
    with _together("the mean of numbers"):
        dist.all_reduce(values)
    return dict(zip(numbers, (values / world).tolist(), strict=True))


@torch.no_grad()
@checked
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of process 0.

    Raises:
        EnergyPPLError: if another process has ended or does not answer.

    Example:
        >>> weights = [torch.ones(2)]
        >>> ep.distributed.broadcast(weights)  # in one process they stay as they are
        >>> weights
        [tensor([1., 1.])]
    """
    if world_size() == 1:
        return
    for tensor in tensors:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).clone()
        with _together("a broadcast"):
            dist.broadcast(raw, 0)
        tensor.copy_(raw.view(tensor.dtype).reshape(tensor.shape))


def agreed(value: _T) -> _T:
    """Return the value that process 0 has: of any kind, sent as a pickle among the processes of one run.

    Raises:
        EnergyPPLError: if another process has ended or does not answer.

    Example:
        >>> ep.distributed.agreed({"seed": 3})  # in one process, its own
        {'seed': 3}
    """
    if world_size() == 1:
        return value
    box = [value if rank() == 0 else None]
    with _together("what process 0 found"):
        dist.broadcast_object_list(box, 0)
    return box[0]  # type: ignore[return-value]


def everyone(value: _T) -> list[_T]:
    """Return the values of all processes, of any kind, by their numbers.

    Raises:
        EnergyPPLError: if another process has ended or does not answer.

    Example:
        >>> ep.distributed.everyone("done")  # in one process, a list of one
        ['done']
    """
    world = world_size()
    if world == 1:
        return [value]
    values: list[_T] = [value] * world
    with _together("what all processes have"):
        dist.all_gather_object(values, value)
    return values


# --- Random numbers ---


def shared_seed() -> int:
    """Draw a seed from torch's random numbers, the same one in each process.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> ep.distributed.shared_seed() < 2**62
        True
    """
    return agreed(int(torch.randint(2**62, ())))


def own_stream() -> None:
    """Give each process random numbers of its own, for what they share; one process keeps those that it has.

    Example:
        >>> ep.distributed.own_stream()  # in one process nothing changes
    """
    if world_size() > 1:
        torch.manual_seed((shared_seed() + rank()) % 2**63)


@contextmanager
def own_numbers() -> Iterator[None]:
    """Use random numbers of each process's own inside; outside they go on as they were.

    Example:
        >>> with ep.distributed.own_numbers():
        ...     rows = torch.randint(1000, (32,))  # of this process's share
        >>> rows.shape
        torch.Size([32])
    """
    if world_size() == 1:
        yield
        return
    seed = shared_seed()
    with seeded((seed + rank()) % 2**63):
        yield


# --- Joining ---


def _join() -> None:
    """Join the processes that torchrun started, and take the GPU that is this one's."""
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise EnergyPPLError(
            f"the processes of torchrun could not be joined ({first_line(error)}): see that all of them started, and "
            "that MASTER_ADDR and MASTER_PORT can be reached"
        ) from error
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _device() -> torch.device:
    """Return a device whose tensors the group can send."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextmanager
def _together(what: str) -> Iterator[None]:
    """Turn the failure of a message into a sentence."""
    try:
        yield
    except RuntimeError as error:  # torch's own errors of messages are of this kind
        reason = re.sub(r"^(\[[^]]*\]\s*)+", "", first_line(error)).split(". ")[0]  # without source lines
        raise EnergyPPLError(
            f"process {dist.get_rank()} of {dist.get_world_size()} has no answer to {what}: another process ended or "
            f"makes other calls, and so this one ends too ({reason}). See what it said, and start all of "
            "them again; fit goes on from its checkpoint"
        ) from error

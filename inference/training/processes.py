"""State of a run that its processes share, and state that each has for itself."""

from typing import Any

import torch
from torch import nn

from energyppl.distributed import agreed, broadcast, everyone, mean, own_stream, rank, world_size
from energyppl.errors import InvalidInput, warn_user
from energyppl.inference.objectives.contract import Loss
from energyppl.inference.training.options import TrainingOptions

__all__ = ["begin_together", "end_together", "over_processes", "own_parts", "share_buffers", "take_own_part"]


def begin_together(model: nn.Module, options: TrainingOptions) -> None:
    """Give all processes the weights of the first, and random numbers of its own to each.

    Raises:
        InvalidInput: for batches with fewer rows than there are processes.
    """
    if options.batch_size < world_size():
        raise InvalidInput(
            f"batch_size must be at least the number of processes, {world_size()}, which share a batch; got "
            f"{options.batch_size}"
        )
    broadcast([*model.parameters(), *model.buffers()])
    own_stream()


def share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the first, and tell the modules that keep something besides of them."""
    broadcast(model.buffers())
    for part in model.modules() if world_size() > 1 else ():
        changed: Any = getattr(part, "buffers_changed", None)
        if changed is not None:
            changed()


def end_together(*parts: nn.Module) -> None:
    """Give all processes the weights, buffers and random numbers of the first."""
    for part in parts:
        broadcast([*part.parameters(), *part.buffers()])
    _adopt_numbers()


def _adopt_numbers() -> None:
    """Go on with the random numbers of the first process, so that what follows is the same in all."""
    if world_size() == 1:
        return
    numbers, on_device = agreed(
        (torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None)
    )
    torch.set_rng_state(numbers)
    if on_device is None:  # GPUs not in use yet, which have each process's own seed waiting for them
        torch.cuda.manual_seed_all(torch.initial_seed())
    else:
        torch.cuda.set_rng_state(on_device)  # of this process's own GPU


def over_processes(loss: Loss) -> Loss:
    """Return a loss with the means of its numbers over all processes."""
    if world_size() == 1:
        return loss
    own = {"value": float(loss.value.detach()), "gap": loss.energy_gap or 0.0, "step": loss.smallest_step or 0.0}
    means = mean(own | {f"record {name}": value for name, value in loss.record.items()})
    return Loss(
        loss.value.detach().new_tensor(means["value"]),
        {name: means[f"record {name}"] for name in loss.record},
        None if loss.energy_gap is None else means["gap"],
        None if loss.smallest_step is None else means["step"],
    )


def own_parts(state: nn.Module, *, cuda: bool) -> list[dict[str, Any]]:
    """Return what each process has for itself, by its number: random numbers, and the state with its chains."""
    numbers = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if cuda else [])]
    kept = {} if world_size() == 1 else {name: value.cpu() for name, value in state.state_dict().items()}
    return everyone({"rng": numbers, "state": kept})


def take_own_part(state: nn.Module, parts: list[dict[str, Any]], *, cuda: bool) -> None:
    """Go on with what this process had for itself; where they were others in number, with new random numbers."""
    if len(parts) != world_size():
        warn_user(
            f"this checkpoint is of {len(parts)} process(es), and {world_size()} go on from it: not bit for bit the "
            "run without a break"
        )
        own = parts[0]
    else:
        own = parts[rank()]
    if own["state"]:
        state.load_state_dict(own["state"])
    torch.set_rng_state(own["rng"][0])
    if cuda and len(own["rng"]) > 1:
        torch.cuda.set_rng_state_all(own["rng"][1:])
    if len(parts) != world_size():
        own_stream()

"""``fit``: a loop over a training run, with a progress bar and a checkpoint."""

import os
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from energyppl._checks import check_flag
from energyppl._progress import progress_bar
from energyppl.autodiff.devices import move_to
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.distributed import agreed, rank, world_size
from energyppl.inference.evaluation.regions import warn_of_masses
from energyppl.inference.objectives.contract import Objective
from energyppl.inference.training._checks import check_trainable
from energyppl.inference.training.contract import Readable
from energyppl.inference.training.history import History
from energyppl.inference.training.options import TrainingOptions
from energyppl.inference.training.run import Training
from energyppl.inference.training.updates import MakeOptimizer, MakeScheduler

__all__ = ["fit"]

_WHOLE_RUN = 500  # updates, below which a run was a trial, whose density nobody takes for the data's
_SHOWN = ("energy_gap", "acceptance", "denoising", "tie")  # beside the loss, of what the objective records


def fit(
    model: nn.Module,
    data: Readable,
    objective: Objective | None = None,
    *,
    labels: Tensor | NDArray[Any] | None = None,
    held_out: Readable | None = None,
    options: TrainingOptions | None = None,
    steps: int | None = None,
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` on ``data``, with a progress bar, a held-out measure and guards against divergence.

    Started by ``torchrun`` in several processes, each takes its share of every batch, gradients are averaged, and all
    end with the same model; process 0 alone writes the checkpoint and shows progress, see :mod:`energyppl.distributed`.

    Args:
        model: such as a :class:`~energyppl.RecoveryEBM`; trained in place, with the weights of :meth:`Training.finish`
            in the end.
        data: rows, ``(n, *event)``, floating point and finite: a tensor, a numpy array or a table of numbers; an array
            that is mapped from a file (``numpy.load(path, mmap_mode="r")``), or a torch ``Dataset``, which are read a
            batch at a time; a ``DataLoader``, or any iterable of batches ``(rows, *event)``, taken as they come, of any
            size, in pass after pass until all steps are made.  Datasets and iterables may give pairs (rows, labels).
            For a ``ConditionalEBM`` a pair of rows and their contexts, ``(n, *context)``, or what gives such pairs.
        objective: what to minimize; the one that the model names, with its defaults, if None.
        labels: each row's class, whole numbers, ``(n,)``, for a model whose network has classes.
        held_out: rows for the measure that can stop training early, of which the first 4096 count; anything that
            ``data`` may be.  If None they are set aside: a tenth of ``data`` at random, at most 4096 rows (a plain
            ``DataLoader`` included), or an iterable's first batches.
        options: how to optimize; those that suit the objective if None.
        steps: updates at most, with the other options as they suit the objective.
        optimizer: makes an optimizer of a list of parameters, such as ``functools.partial(torch.optim.SGD, lr=0.01)``,
            which has a learning rate and a weight decay of its own in place of the options'.  If None
            :class:`~energyppl.inference.training.SOAP` where the objective says that it suits the model, as score
            matching tied across levels and, in one and two dimensions, recovery likelihood do, else AdamW.
        scheduler: makes a learning-rate scheduler of the optimizer, such as
            ``functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01, total_steps=1500)``; a warm-up and a
            cosine decay if neither is given, nothing beside another optimizer.
        checkpoint: a file to keep the run in, written at every evaluation; if it exists the run goes on from it.
        device: move the model there first, such as ``"cuda"``; data follow the model, which stays there.
        progress: show a bar with the loss, the energy gap and the acceptance.

    Returns:
        One record a step, and why training stopped.  In one and two dimensions, after 500 updates or more, a warning
        says where a model of levels gives a region another mass than the data have.

    Raises:
        InvalidInput: for data of the wrong shape or dtype, non-finite or empty, or a device that is not there.
        TrainingDiverged: when a quantity left its range: it names the step and the quantity.  The model then holds its
            best weights so far, and the checkpoint the run as it was at the last evaluation.
        CheckpointError: for a checkpoint that is damaged or of another run.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> history = ep.fit(ebm, torch.randn(100, 2), options=ep.TrainingOptions(steps=2), progress=False)
        >>> len(history.records)
        2

        Of rows in a file, however large it is:

        >>> import numpy, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "rows.npy"
        >>> numpy.save(file, numpy.random.default_rng(0).normal(size=(1000, 2)))
        >>> rows = numpy.load(file, mmap_mode="r")
        >>> len(ep.fit(ebm, rows, steps=2, progress=False).records)
        2
    """
    check_flag("progress", progress)
    check_trainable(model)
    world_size()  # joins the processes, each to a GPU of its own
    if device is not None:
        move_to(model, device)
    training = Training(
        model,
        data,
        objective,
        labels=labels,
        held_out=held_out,
        options=options,
        steps=steps,
        optimizer=optimizer,
        scheduler=scheduler,
    )
    path = None if checkpoint is None else Path(checkpoint)
    first = rank() == 0
    if path is not None and agreed(path.exists()):
        training.load_state_dict(agreed(load_checkpoint(path) if first else {}))
    total = training.options.steps
    with progress_bar(
        total=total, initial=len(training.records), disable=not (progress and first), desc="training", unit="step"
    ) as bar:
        for record in training:
            bar.update()
            if record.step % 10 == 0:
                shown = {"loss": record.loss, **{name: record.values[name] for name in _SHOWN if name in record.values}}
                bar.set_postfix_str(" ".join(f"{name} {value:+.3f}" for name, value in shown.items()), refresh=False)
            if path is not None and (record.step + 1) % training.options.evaluate_every == 0:
                _keep(path, training)
    if path is not None:
        _keep(path, training)
    history = training.finish()
    if first and len(history.records) >= _WHOLE_RUN:
        warn_of_masses(training.model, training.sample)
    return history


def _keep(path: Path, training: Training) -> None:
    """Write a run to its checkpoint, by process 0."""
    state = training.state_dict()
    if rank() == 0:
        save_checkpoint(path, state)

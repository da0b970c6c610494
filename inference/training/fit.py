"""Training of a model by an objective: an iterator that yields one record a step, and ``fit``, a loop over it."""

import copy
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from energyppl._checks import check_flag
from energyppl.autodiff.private import AdamW
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.errors import CheckpointError, TrainingDiverged
from energyppl.inference.objectives.contract import Loss, Objective, describe
from energyppl.inference.objectives.recovery import RecoveryLikelihood
from energyppl.inference.training._checks import (
    check_same_run,
    check_trainable,
    checked_objective,
    clipped_apart,
    data_key,
    default_learning_rate,
    load_adam,
    move_to,
    split_rows,
)
from energyppl.inference.training.history import History, Record
from energyppl.inference.training.options import TrainingOptions, chosen_options
from energyppl.inference.training.parts import Batches, EarlyStop, Ema, GradientClip, copy_all

__all__ = ["Training", "fit"]

_SHOWN = ("energy_gap", "acceptance", "denoising", "tie")  # beside the loss, of what the objective records


class Training:
    """A run that can be stepped, saved and continued: iterate over it, then call :meth:`finish`.

    The data are visited in a fresh random order each epoch.  All random numbers come from torch's global generator,
    whose state is part of :meth:`state_dict`, so a continued run gives bit for bit the weights of an undisturbed one.

    Args:
        model: holds the parameters; standardized to the data if it wants to be and is not yet.
        data: training rows, ``(n, *event)``.
        objective: what to minimize; the one that the model names if None.
        labels: each row's class, whole numbers, ``(n,)``, for a model whose network has classes.
        held_out: rows to evaluate on, ``(m, *event)``, of which the first 4096 count; a tenth of ``data`` is set aside
            if None.
        options: how to optimize; those that suit the objective if None.
        steps: updates at most, with the other options as they suit the objective.

    Attributes:
        state: what the objective learns beside the model's weights.
        records: one for each update so far.
        stopped: why the run ended, in words; empty while it goes on.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> options = ep.TrainingOptions(steps=2, batch_size=32)
        >>> training = ep.Training(ebm, torch.randn(100, 2), options=options)
        >>> [record.step for record in training]
        [0, 1]
        >>> training.finish().stopped
        'all 2 steps made'
    """

    def __init__(
        self,
        model: nn.Module,
        data: Tensor,
        objective: Objective | None = None,
        *,
        labels: Tensor | None = None,
        held_out: Tensor | None = None,
        options: TrainingOptions | None = None,
        steps: int | None = None,
    ) -> None:
        self.model: Any = cast(Any, model)
        default: Any = getattr(model, "default_objective", RecoveryLikelihood)
        check_trainable(model)
        self.objective: Objective = default() if objective is None else checked_objective(objective)
        self.options = chosen_options(self.objective, model, options, steps)
        self.state = self.objective.init(self.model)
        rows = split_rows(model, data, labels, held_out)
        self.data, self.labels, self.held_out = rows.data, rows.labels, rows.held_out
        if hasattr(model, "standardize") and not bool(self.model.is_standardized):
            self.model.standardize(self.data)
        self.records: list[Record] = []
        self.stopped = ""
        self._gap = 0.0
        self._rate = self.options.learning_rate or default_learning_rate(self.objective, model, self.data)
        self._weights = [p for p in (*model.parameters(), *self.state.parameters()) if p.requires_grad]
        groups = [
            {"params": [p for p in part.parameters() if p.requires_grad], "weight_decay": decay}
            for part, decay in ((model, self.options.weight_decay), (self.state, 0.0))
        ]
        self._optimizer = AdamW([group for group in groups if group["params"]], fused=True)
        self._batches = Batches(len(self.data), min(self.options.batch_size, len(self.data)))
        self._clip = GradientClip(clipped_apart(model, self._weights), self.options.clip)
        self._ema = Ema(self._weights, self.options.ema)
        self._early = EarlyStop(self._everything(), self.options.patience, self.options.tolerance)

    # --- One step ---

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        """Make one update.

        Raises:
            StopIteration: when the steps are used up or patience has run out; ``stopped`` says which.
            TrainingDiverged: when a quantity left its range; the model then has its last good weights.
        """
        step, options = len(self.records), self.options
        if not self.stopped and step >= options.steps:
            self.stopped = f"all {options.steps} steps made"
        if self.stopped:
            raise StopIteration
        rate = options.rate(step, self._rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        model, batch = self._next_batch()
        loss = self.objective.loss(model, self.state, batch)
        self._optimizer.zero_grad()
        loss.value.backward()
        norm = self._clip.clip()
        self._guard(step, loss, norm)
        self._optimizer.step()
        self._ema.update(self._weights, step)
        due = (step + 1) % options.evaluate_every == 0 or step + 1 == options.steps
        measure = self._evaluate(step) if due else math.nan
        record = Record(step, float(loss.value.detach()), rate, norm, measure, loss.columns())
        self.records.append(record)
        return record

    def finish(self) -> History:
        """Give the model its kernel and weights, and return the history.

        The weights are the averaged ones, or the best by the held-out measure if patience ran out or the objective
        ``keeps_best``.
        """
        keeps_best = self.stopped.startswith("worse") or getattr(self.objective, "keeps_best", False)
        if keeps_best and math.isfinite(self._early.measure):  # else nothing was evaluated yet
            copy_all(self._everything(), self._early.best)
        else:
            copy_all(self._weights, self._ema.average)
        settle = getattr(self.objective, "settle", None)
        if settle is not None:
            settle(self.model, self.state, self.data)
        self._set_model_kernel()
        return History(tuple(self.records), self.stopped or f"stopped by the caller after {len(self.records)} steps")

    def _next_batch(self) -> tuple[Any, Tensor]:
        """Return the model, which is given the next rows' classes if they have any, and the rows."""
        rows = self._batches.draw().to(self.data.device)
        if self.labels is None:
            return self.model, self.data[rows]
        hidden = torch.rand(len(rows), device=rows.device) < self.options.label_drop
        labels = torch.where(hidden, self.model.net.classes, self.labels[rows])
        return self.model.given(labels), self.data[rows]

    def _guard(self, step: int, loss: Loss, norm: float) -> None:
        # One wild batch is not divergence: the gap is judged by its running mean.
        self._gap = 0.9 * self._gap + 0.1 * (loss.energy_gap or 0.0)
        limit = self.options.max_gap * math.prod(self.data.shape[1:])
        value = float(loss.value.detach())
        smallest = 1.0 if loss.smallest_step is None else loss.smallest_step
        for bad, what in (
            (not math.isfinite(value), f"the loss is {value}"),
            (not math.isfinite(norm), f"the gradient's norm is {norm}"),
            (not abs(self._gap) <= limit, f"the energy gap is {self._gap:.3g} nats (limit {limit:.3g})"),
            (smallest < 1e-7, f"a level's step size fell to {smallest:.2g} of its width: its chains don't move"),
        ):
            if bad:
                copy_all(self._everything(), self._early.best)
                self._set_model_kernel()
                raise TrainingDiverged(
                    f"training diverged at step {step}: {what}. The model has the best weights so far; lower the "
                    "learning rate, start the chains from_data, or adapt the step sizes"
                )

    def _evaluate(self, step: int) -> float:
        """Measure the averaged weights on held-out data."""
        present = [p.detach().clone() for p in self._weights]
        copy_all(self._weights, self._ema.average)
        measure = self.objective.measure(self.model, self.state, self.held_out)
        if self._early.update(measure, self._everything()):
            self.stopped = f"worse on held-out data for {self._early.stale} evaluations, at step {step}"
        copy_all(self._weights, present)
        return measure

    def _everything(self) -> list[Tensor]:
        """Return the weights and the buffers of the model and of the objective's state."""
        return [*self._weights, *self.model.buffers(), *self.state.buffers()]

    def _set_model_kernel(self) -> None:
        kernel = getattr(self.state, "level_kernel", None)
        if kernel is not None and hasattr(self.model, "set_kernel"):
            self.model.set_kernel(kernel.kernel, kernel.step_sizes)

    # --- Keeping and continuing ---

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a run needs to go on bit for bit, as tensors, numbers and strings."""
        cuda = torch.cuda.get_rng_state_all() if self.data.is_cuda else []
        return {
            "options": asdict(self.options),
            "objective": describe(self.objective),
            "schedule": describe(getattr(self.model, "schedule", None)),
            "kernel": describe(getattr(self.model, "initial_kernel", None)),
            "data": data_key(self.data, self.held_out, self.labels),
            "model": dict(self.model.state_dict()),
            "state": dict(self.state.state_dict()),
            "optimizer": self._optimizer.state_dict(),
            **{name: part.state_dict() for name, part in self._parts().items()},
            "gap": self._gap,
            "records": [[*r[:5], dict(r.values)] for r in self.records],
            "stopped": self.stopped,
            "rng": [torch.get_rng_state(), *cuda],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            CheckpointError: if it belongs to another model, other data, or other options, or is damaged; nothing is
                changed then.
        """
        mine = self.state_dict()
        before = copy.deepcopy(mine)
        try:
            check_same_run(state, mine)
            self._assign(state)
        except CheckpointError:  # which is raised before anything is changed
            raise
        except (TypeError, AttributeError, ValueError, KeyError, IndexError, RuntimeError) as error:
            self._assign(before)
            raise CheckpointError(f"this checkpoint is damaged ({error}): use another copy or begin again") from error

    def _parts(self) -> dict[str, Batches | Ema | GradientClip | EarlyStop]:
        return {"batches": self._batches, "ema": self._ema, "clip": self._clip, "early": self._early}

    def _assign(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.state.load_state_dict(state["state"])
        load_adam(self._optimizer, state["optimizer"])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if not (math.isfinite(state["gap"]) and isinstance(state["stopped"], str)):
            raise ValueError("the energy gap is not finite, or the reason of the end no text")
        self._gap = float(state["gap"])
        self.records = [Record(*row) for row in state["records"]]
        self.stopped = state["stopped"]
        torch.set_rng_state(state["rng"][0])
        if self.data.is_cuda:
            torch.cuda.set_rng_state_all(state["rng"][1:])


def fit(
    model: nn.Module,
    data: Tensor,
    objective: Objective | None = None,
    *,
    labels: Tensor | None = None,
    held_out: Tensor | None = None,
    options: TrainingOptions | None = None,
    steps: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` on ``data``, with a progress bar, a held-out measure and guards against divergence.

    Args:
        model: such as a :class:`~energyppl.RecoveryEBM`; trained in place, with the weights of :meth:`Training.finish`
            in the end.
        data: rows, ``(n, *event)``, floating point and finite.
        objective: what to minimize; the one that the model names, with its defaults, if None.
        labels: each row's class, whole numbers, ``(n,)``, for a model whose network has classes.
        held_out: rows for the measure that can stop training early; a tenth of ``data`` is set aside if None.
        options: how to optimize; those that suit the objective if None.
        steps: updates at most, with the other options as they suit the objective.
        checkpoint: a file to keep the run in, written at every evaluation; if it exists the run goes on from it.
        device: move the model there first, such as ``"cuda"``; data follow the model, which stays there.
        progress: show a bar with the loss, the energy gap and the acceptance.

    Returns:
        One record a step, and why training stopped.

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
    """
    check_flag("progress", progress)
    check_trainable(model)
    if device is not None:
        move_to(model, device)
    training = Training(model, data, objective, labels=labels, held_out=held_out, options=options, steps=steps)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        training.load_state_dict(load_checkpoint(path))
    total = training.options.steps
    with tqdm(total=total, initial=len(training.records), disable=not progress, unit="step") as bar:
        for record in training:
            bar.update()
            if record.step % 10 == 0:
                shown = {"loss": record.loss, **{name: record.values[name] for name in _SHOWN if name in record.values}}
                bar.set_postfix_str(" ".join(f"{name} {value:+.3f}" for name, value in shown.items()), refresh=False)
            if path is not None and (record.step + 1) % training.options.evaluate_every == 0:
                save_checkpoint(path, training.state_dict())
    if path is not None:
        save_checkpoint(path, training.state_dict())
    return training.finish()

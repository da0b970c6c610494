"""Train a model by an objective: an iterator that yields one record a step, and ``fit``, a short loop over it."""

import copy
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from energyppl._checks import check_count, check_data, check_positive
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.errors import CheckpointError, InvalidInput, TrainingDiverged
from energyppl.inference.objectives.contract import Objective, describe
from energyppl.inference.objectives.recovery import RecoveryLikelihood
from energyppl.inference.training._checks import (
    Labelled,
    Preparing,
    Standardizing,
    check_labels,
    default_learning_rate,
    initializer_parameters,
    label_sum,
    move_to,
    require_same_tensors,
)
from energyppl.inference.training.history import History, Record

__all__ = ["Training", "TrainingOptions", "fit"]


@dataclass(frozen=True)
class TrainingOptions:
    """How to optimize.

    Args:
        steps: updates at most.
        batch_size: rows in a batch; all of the data if they are fewer.
        learning_rate: Adam's, after a short warm-up and before its cosine decay to zero; if None what suits the
            objective, or else 4e-3 in one and two dimensions and 1e-3 above.
        ema: decay of the averaged weights that the model ends with.
        clip: a gradient longer than this many times its recent length is shortened to that.
        evaluate_every: updates between evaluations on held-out data, which are also when a checkpoint is written.
        patience: evaluations in a row that are clearly worse on held-out data than the best one, after which training
            stops, and the best weights are taken.
        tolerance: how much worse, relative to the best, is clearly worse.
        label_drop: share of rows whose label is hidden at each update: the energy without a class is learned too.
        max_gap: energy gap, in nats for each dimension, beyond which training counts as diverged.
    """

    steps: int = 1500
    batch_size: int = 512
    learning_rate: float | None = None
    ema: float = 0.999
    clip: float = 10.0
    evaluate_every: int = 100
    patience: int = 10
    tolerance: float = 0.02
    max_gap: float = 100.0
    label_drop: float = 0.1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "patience"):
            check_count(name, getattr(self, name))
        for name in ("learning_rate", "clip", "max_gap"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if not self.tolerance >= 0.0:
            raise InvalidInput(f"tolerance must not be negative; got {self.tolerance}")
        if not 0.0 <= self.label_drop <= 1.0:
            raise InvalidInput(f"label_drop must lie in [0, 1]; got {self.label_drop}")
        if not 0.0 <= self.ema < 1.0:
            raise InvalidInput(f"ema must lie in [0, 1); got {self.ema}")

    def rate(self, step: int, largest: float) -> float:
        """The learning rate at a step, of which ``largest`` is the largest."""
        warm = min(1.0, (step + 1) / max(1.0, 0.02 * self.steps))
        return largest * warm * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))


class Training:
    """A run that can be stepped, saved and continued: iterate over it, then call :meth:`finish`.

    The data are visited in a fresh random order each epoch.  All random numbers come from torch's global generator,
    whose state is part of :meth:`state_dict`, so a continued run gives bit for bit the weights of an undisturbed one.

    Args:
        model: holds the parameters; standardized to the data if it wants to be and is not yet.
        data: training rows, ``(n, *event)``.
        objective: what to minimize.
        labels: each row's class, whole numbers, ``(n,)``, for a model whose network has classes.
        held_out: rows to evaluate on, ``(m, *event)``, of which the first 4096 count; a tenth of ``data`` is set aside
            if None.
        options: how to optimize.
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
    ) -> None:
        self.model = model
        # Each kind of model names what trains it unless another way is asked for.
        default = getattr(model, "default_objective", RecoveryLikelihood)
        self.objective: Objective = default() if objective is None else objective
        self.options = TrainingOptions() if options is None else options
        event_shape = getattr(model, "event_shape", None)
        like = next(model.parameters(), None)
        if like is None:
            raise InvalidInput("the model has no parameters: there is nothing to train")
        if isinstance(self.objective, Preparing):
            cast(Preparing, self.objective).prepare(model)
        check_data("data", data, data.shape[1:] if event_shape is None else event_shape, at_least=2)
        data = data.detach().to(like)
        self.labels = None if labels is None else check_labels(model, data, labels)
        if held_out is None:
            # Always the same split, so that a continued run has the same rows.
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).to(data.device)
            aside = max(1, len(data) // 10)
            held_out, data = data[order[:aside]], data[order[aside:]]
            self.labels = self.labels if self.labels is None else self.labels[order[aside:]]
        self.data = data
        self.held_out = check_data("held_out", held_out, data.shape[1:])[:4096].detach().to(like)
        if isinstance(model, Standardizing) and not bool(model.is_standardized):
            model.standardize(self.data)
        self._largest_rate = self.options.learning_rate or default_learning_rate(self.objective, model, self.data)
        self.records: list[Record] = []
        self.stopped = ""
        self._epoch_seed, self._position = 0, len(self.data)
        self._order = torch.empty(0, dtype=torch.long)
        self._gap = 0.0
        self._best = math.inf
        self._stale = 0
        self._parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        # An initializer's gradient and the energy's are different things, and are clipped apart.
        started = {id(p) for p in initializer_parameters(model)}
        parts = ([p for p in self._parameters if (id(p) in started) == own] for own in (False, True))
        self._parts = [part for part in parts if part]
        self._norms = [0.0] * len(self._parts)
        self._optimizer = torch.optim.Adam(self._parameters, fused=True)  # its rate is set at every step
        self._average = [p.detach().clone() for p in self._parameters]
        self._best_weights = [p.clone() for p in self._average]
        self._best_buffers = [b.clone() for b in model.buffers()]

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
        rate = options.rate(step, self._largest_rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss, values = self.objective.loss(*self._next_batch())
        self._optimizer.zero_grad()
        loss.backward()
        norm = self._clip()
        self._guard(step, float(loss.detach()), norm, values)
        self._optimizer.step()
        decay = min(options.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._parameters, 1.0 - decay)
        due = (step + 1) % options.evaluate_every == 0 or step + 1 == options.steps
        measure = self._evaluate(step) if due else math.nan
        record = Record(step, float(loss.detach()), rate, norm, measure, values)
        self.records.append(record)
        return record

    def finish(self) -> History:
        """Give the model its averaged weights (the best ones if patience ran out), and return the history."""
        if self.stopped.startswith("worse"):
            self._put_best()
        else:
            self._put(self._average)
        return History(tuple(self.records), self.stopped or f"stopped by the caller after {len(self.records)} steps")

    def _next_batch(self) -> tuple[Any, Tensor]:
        """The next rows, and the model, which is given their classes if they have any."""
        count, size = len(self.data), min(self.options.batch_size, len(self.data))
        if self._position + size > count:
            self._epoch_seed, self._position = int(torch.randint(2**62, ())), 0
            self._order = self._epoch_order()
        rows = self._order[self._position : self._position + size]
        self._position += size
        rows = rows.to(self.data.device)
        if self.labels is None:
            return self.model, self.data[rows]
        hidden = torch.rand(size, device=rows.device) < self.options.label_drop
        model = cast(Labelled, self.model)
        return model.given(torch.where(hidden, model.net.classes, self.labels[rows])), self.data[rows]

    def _epoch_order(self) -> Tensor:
        return torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self._epoch_seed))

    def _clip(self) -> float:
        """Shorten a gradient far longer than its recent length: one bad batch must not throw the weights away."""
        norms = []
        for index, part in enumerate(self._parts):
            recent = self._norms[index]
            limit = self.options.clip * recent if recent else math.inf
            norm = float(nn.utils.clip_grad_norm_(part, limit if math.isfinite(limit) else 1e30))
            if math.isfinite(norm):
                kept = min(norm, limit)
                self._norms[index] = kept if not recent else 0.98 * recent + 0.02 * kept
            norms.append(norm)
        return math.sqrt(sum(norm * norm for norm in norms))

    def _guard(self, step: int, loss: float, norm: float, values: dict[str, float]) -> None:
        # One wild batch is not divergence: the gap is judged by its running mean.
        self._gap = 0.9 * self._gap + 0.1 * values.get("energy_gap", 0.0)
        limit = self.options.max_gap * math.prod(self.data.shape[1:])
        smallest = values.get("smallest_step", 1.0)
        for bad, what in (
            (not math.isfinite(loss), f"the loss is {loss}"),
            (not math.isfinite(norm), f"the gradient's norm is {norm}"),
            (abs(self._gap) > limit, f"the energy gap is {self._gap:.3g} nats (limit {limit:.3g})"),
            (smallest < 1e-7, f"a level's step size fell to {smallest:.2g} of its width: its chains don't move"),
        ):
            if bad:
                self._put_best()
                raise TrainingDiverged(
                    f"training diverged at step {step}: {what}. The model has the best weights so far; lower the "
                    "learning rate, start the chains from_data, or adapt the step sizes"
                )

    def _evaluate(self, step: int) -> float:
        present = [p.detach().clone() for p in self._parameters]
        self._put(self._average)
        measure = self.objective.measure(self.model, self.held_out)
        self._put(present)
        if measure < self._best:
            self._best = measure
            self._best_weights = [p.clone() for p in self._average]
            self._best_buffers = [b.clone() for b in self.model.buffers()]
        # Only what is clearly worse counts: the measure wanders by about a percent while the density still gets better.
        self._stale = self._stale + 1 if measure > self._best + self.options.tolerance * abs(self._best) else 0
        if self._stale >= self.options.patience:
            self.stopped = f"worse on held-out data for {self._stale} evaluations, at step {step}"
        return measure

    def _put_best(self) -> None:
        self._put(self._best_weights)
        for buffer, kept in zip(self.model.buffers(), self._best_buffers, strict=True):
            buffer.copy_(kept)

    def _put(self, weights: list[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, weights)

    # --- Keeping and continuing ---

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on bit for bit, as tensors, numbers and strings."""
        cuda = torch.cuda.get_rng_state_all() if self.data.is_cuda else []
        return {
            "options": asdict(self.options),
            "objective": describe(self.objective),
            "schedule": describe(getattr(self.model, "schedule", None)),
            "kernel": describe(getattr(self.model, "kernel", None)),
            "data": self._fingerprint(),
            "model": dict(self.model.state_dict()),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average,
            "best_weights": self._best_weights,
            "best_buffers": self._best_buffers,
            "numbers": [self._best, self._stale, self._gap, self._epoch_seed, self._position, *self._norms],
            "records": [[*r[:5], dict(r.values)] for r in self.records],
            "stopped": self.stopped,
            "rng": [torch.get_rng_state(), *cuda],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            CheckpointError: if it belongs to another model, other data, or other options; nothing is changed then.
        """
        mine = self.state_dict()
        if not isinstance(state, dict) or state.keys() != mine.keys():
            raise CheckpointError("this checkpoint does not hold a training run: pass one that fit wrote")
        for key, what in (
            ("data", "other data"),
            ("options", "other options"),
            ("objective", "another objective"),
            ("schedule", "another model's schedule"),
            ("kernel", "another model's kernel"),
        ):
            if state[key] != mine[key]:
                raise CheckpointError(
                    f"this checkpoint was made with {what}: {state.get(key)}, not {mine[key]}; "
                    "continue with the same, or write to another place"
                )
        require_same_tensors(state["model"], mine["model"])
        before = copy.deepcopy(mine)
        try:
            self._assign(state)
        except (TypeError, AttributeError, ValueError, KeyError, IndexError, RuntimeError) as error:
            self._assign(before)
            raise CheckpointError(f"this checkpoint is damaged ({error}): use another copy or begin again") from error

    def _assign(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for place, kept in (
            (self._average, state["average"]),
            (self._best_weights, state["best_weights"]),
            (self._best_buffers, state["best_buffers"]),
        ):
            for ours, theirs in zip(place, kept, strict=True):
                ours.copy_(theirs)
        self._best, self._stale, self._gap, self._epoch_seed, self._position, *self._norms = state["numbers"]
        self.records = [Record(*row) for row in state["records"]]
        self.stopped = state["stopped"]
        self._order = self._epoch_order()
        torch.set_rng_state(state["rng"][0])
        if self.data.is_cuda:
            torch.cuda.set_rng_state_all(state["rng"][1:])

    def _fingerprint(self) -> list[Any]:
        return [
            list(self.data.shape),
            float(self.data.cpu().double().sum()),  # a GPU adds up in an order of its own
            float(self.held_out.cpu().double().sum()),
            label_sum(self.labels),
        ]


def fit(
    model: nn.Module,
    data: Tensor,
    objective: Objective | None = None,
    *,
    labels: Tensor | None = None,
    held_out: Tensor | None = None,
    options: TrainingOptions | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` on ``data``, with a progress bar, a held-out measure and guards against divergence.

    Args:
        model: such as a :class:`~energyppl.RecoveryEBM`; trained in place, and left with its averaged weights.
        data: rows, ``(n, *event)``, floating point and finite.
        objective: what to minimize; :class:`RecoveryLikelihood` with its defaults if None.
        labels: each row's class, whole numbers, ``(n,)``, for a model whose network has classes.
        held_out: rows for the measure that can stop training early; a tenth of ``data`` is set aside if None.
        options: how to optimize.
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
    """
    if device is not None:
        move_to(model, device)
    training = Training(model, data, objective, labels=labels, held_out=held_out, options=options)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        training.load_state_dict(load_checkpoint(path))
    total = training.options.steps
    with tqdm(total=total, initial=len(training.records), disable=not progress, unit="step") as bar:
        for record in training:
            bar.update()
            if record.step % 10 == 0:
                gap, acceptance = record.values.get("energy_gap", math.nan), record.values.get("acceptance", math.nan)
                bar.set_postfix_str(f"loss {record.loss:+.3f} gap {gap:+.3f} accept {acceptance:.2f}", refresh=False)
            if path is not None and not math.isnan(record.held_out):
                save_checkpoint(path, training.state_dict())
    if path is not None:
        save_checkpoint(path, training.state_dict())
    return training.finish()

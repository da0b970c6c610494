"""Training runs: an iterator that yields one record for each update, saved and continued bit for bit."""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

from numpy.typing import NDArray
from torch import Tensor, nn

from energyppl.distributed import average_gradients, broadcast, mean, rank, world_size
from energyppl.errors import CheckpointError, InvalidInput, TrainingDiverged
from energyppl.inference.objectives.contract import Loss, Objective, describe
from energyppl.inference.objectives.recovery import RecoveryLikelihood
from energyppl.inference.training._checks import (
    check_same_run,
    check_trainable,
    checked_objective,
    clipped_apart,
    one_condition,
)
from energyppl.inference.training.conditions import Conditions
from energyppl.inference.training.contract import Readable, Source
from energyppl.inference.training.history import History, Record
from energyppl.inference.training.options import TrainingOptions, chosen_options, suited_optimizer
from energyppl.inference.training.parts import EarlyStop, Ema, GradientClip, Guard, copy_all
from energyppl.inference.training.processes import (
    begin_together,
    end_together,
    over_processes,
    own_parts,
    share_buffers,
    take_own_part,
)
from energyppl.inference.training.sources import source_of
from energyppl.inference.training.updates import MakeOptimizer, MakeScheduler, Updates

__all__ = ["Training"]


class Training:
    """A run that can be stepped, saved and continued: iterate over it, then call :meth:`finish`.

    The data are visited in a fresh random order each epoch.  All random numbers come from torch's global generator,
    whose state is part of :meth:`state_dict`, so a continued run gives bit for bit the weights of an undisturbed one.

    Data that don't fit into memory are read a batch at a time, and nothing looks at all of them: up to 65,536 rows (or
    eight million numbers) stand for all where the model is standardized, from a thousand places of an array or a
    dataset, the first batches of an iterable.  Call ``model.standardize(rows)`` before to choose them yourself.  A
    position in an array, a dataset or a loader is part of :meth:`state_dict` too; an iterator can't go back, and a run
    that goes on with another one says so in a warning.

    Args:
        model: holds the parameters; standardized to the data if it wants to be and is not yet.
        data: see :func:`fit`.
        objective: what to minimize; the one that the model names if None.
        labels: each row's class, whole numbers, ``(n,)``, for a model whose network has classes.
        held_out: rows to evaluate on, of which the first 4096 count, as a tensor or anything that ``data`` may be; see
            :func:`fit`.
        options: how to optimize; those that suit the objective if None.
        steps: updates at most, with the other options as they suit the objective.
        optimizer: see :func:`fit`.
        scheduler: likewise.

    Attributes:
        state: what the objective learns beside the model's weights.
        records: one for each update so far.
        stopped: why the run ended, in words; empty while it goes on.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> options = ep.TrainingOptions(steps=2, batch_size=32)
        >>> training = ep.Training(ebm, torch.randn(100, 2), options=options)
        >>> log = []
        >>> for record in training:  # any logger: with TensorBoard's writer.add_scalar(name, value, record.step)
        ...     log += [(record.step, name, value) for name, value in record.numbers().items()]
        >>> [(step, name) for step, name, _ in log][:3]
        [(0, 'loss'), (0, 'learning_rate'), (0, 'gradient_norm')]
        >>> training.finish().stopped
        'all 2 steps made'
    """

    def __init__(
        self,
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
    ) -> None:
        self.model: Any = cast(Any, model)
        default: Any = getattr(model, "default_objective", RecoveryLikelihood)
        check_trainable(model)
        self.objective: Objective = default() if objective is None else checked_objective(objective)
        self.options = chosen_options(self.objective, model, options, steps)
        begin_together(model, self.options)
        self.state = self.objective.init(one_condition(self.model))
        broadcast(self.state.parameters())  # its buffers, such as chains, are each process's own
        self._source = source_of(model, data, labels, held_out, self.options.batch_size)
        self._conditions = Conditions(model, self.options)
        self._conditions.prepare(self._source.sample, self._source.contexts, self.objective)
        share_buffers(model)
        self.records: list[Record] = []
        self.stopped = ""
        self._guard = Guard(self.options.max_gap * math.prod(self._source.sample.shape[1:]))
        # Of rows that are read on the way the sample is a part, but a large one.
        settings = suited_optimizer(self.objective, model, self._source.sample)
        self._weights = [p for p in (*model.parameters(), *self.state.parameters()) if p.requires_grad]
        self._updates = Updates(model, self.state, self.options, settings, optimizer, scheduler)
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
        drawn = None if self.stopped else self._next_batch()
        if drawn is None:
            raise StopIteration
        model, batch = drawn
        rate = self._updates.begin(step)
        loss = self.objective.loss(model, self.state, batch)
        self._updates.zero_grad()
        if not loss.value.requires_grad:
            raise InvalidInput(
                "the loss must depend on the weights; got one without a gradient: leave .detach(), numpy and "
                "torch.no_grad() out of the network's forward"
            )
        # Not by the points and their noise levels too, which would take a twentieth of its time.
        loss.value.backward(inputs=[weight for weight in self._weights if weight.requires_grad])
        average_gradients(self._weights)
        loss = over_processes(loss)
        norm = self._clip.clip()
        self._require_good(step, loss, norm)
        self._updates.step()
        self._ema.update(self._weights, step)
        due = (step + 1) % options.evaluate_every == 0 or step + 1 == options.steps
        measure = self._evaluate(step) if due else math.nan
        if due:
            self._updates.evaluated(measure)
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
            settle(self._conditions.given(self._source.contexts), self.state, self._source.sample)
        self._conditions.settle(self._source.held_out, self._source.held_out_contexts)
        self._set_model_kernel()
        end_together(self.model, self.state)
        measure_moves = getattr(self.model, "measure_moves", None)
        if measure_moves is not None:
            measure_moves()
        return History(tuple(self.records), self.stopped or f"stopped by the caller after {len(self.records)} steps")

    @property
    def sample(self) -> Tensor:
        """Training rows, or some that stand for them where all would be too many, ``(k, *event)``."""
        return self._source.sample

    def _next_batch(self) -> tuple[Any, Tensor] | None:
        """Return the model, which is given the next rows' classes or contexts if any, and the rows; None at the end."""
        drawn = self._source.draw()
        if drawn is None:
            self._end(f"the data ended after {len(self.records)} steps: pass batches that can be read again for more")
            return None
        return self._conditions.in_training(*drawn), drawn[0]

    def _end(self, why: str) -> None:
        """End the run at a step that was not planned to be the last, with a last evaluation."""
        self.stopped = why
        if self.records and math.isnan(self.records[-1].held_out):
            self.records[-1] = self.records[-1]._replace(held_out=self._evaluate(len(self.records) - 1))
            self.stopped = why

    def _require_good(self, step: int, loss: Loss, norm: float) -> None:
        trouble = self._guard.trouble(loss, norm)
        if trouble:
            copy_all(self._everything(), self._early.best)
            self._set_model_kernel()
            raise TrainingDiverged(
                f"training diverged at step {step}: {trouble}. The model has the best weights so far; lower the "
                "learning rate, start the chains from_data, or adapt the step sizes"
            )

    def _evaluate(self, step: int) -> float:
        """Measure the averaged weights on held-out data."""
        present = [p.detach().clone() for p in self._weights]
        copy_all(self._weights, self._ema.average)
        held_out = self._source.held_out
        share = slice(rank(), None, world_size()) if len(held_out) >= world_size() else slice(None)
        contexts = self._source.held_out_contexts
        model = self._conditions.given(None if contexts is None else contexts[share])
        measure = mean({"measure": self.objective.measure(model, self.state, held_out[share])})["measure"]
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
        """Return everything that a run needs to go on bit for bit, as tensors, numbers and strings.

        Several processes call it together, and each of them gets the state of all.
        """
        return {
            "options": asdict(self.options),
            "objective": describe(self.objective),
            "schedule": describe(getattr(self.model, "schedule", None)),
            "kernel": describe(getattr(self.model, "initial_kernel", None)),
            "data": self._source.key(),
            "model": dict(self.model.state_dict()),
            "state": dict(self.state.state_dict()),
            "updates": self._updates.kind(),
            "optimizer": self._updates.optimizer_state(),
            "scheduler": self._updates.scheduler_state(),
            **{name: part.state_dict() for name, part in self._parts().items()},
            "gap": self._guard.gap,
            "records": [[*r[:5], dict(r.values)] for r in self.records],
            "stopped": self.stopped,
            "processes": own_parts(self.state, cuda=self._source.held_out.is_cuda),
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

    def _parts(self) -> dict[str, Source | Ema | GradientClip | EarlyStop]:
        return {"batches": self._source, "ema": self._ema, "clip": self._clip, "early": self._early}

    def _assign(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.state.load_state_dict(state["state"])
        self._updates.load(state["optimizer"], state["scheduler"])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if not (math.isfinite(state["gap"]) and isinstance(state["stopped"], str)):
            raise ValueError("the energy gap is not finite, or the reason of the end no text")
        self._guard.gap = float(state["gap"])
        self.records = [Record(*row) for row in state["records"]]
        self.stopped = state["stopped"]
        take_own_part(self.state, state["processes"], cuda=self._source.held_out.is_cuda)

"""Training history: one record a step."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from energyppl._html import summary_table
from energyppl.errors import InvalidInput

__all__ = ["History", "Record"]


class Record(NamedTuple):
    """Record of one update: the objective's numbers, and the optimizer's own.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> history = ep.fit(ebm, torch.randn(200, 2), ep.objectives.SlicedScoreMatching(), steps=3, progress=False)
        >>> history.records[-1].step, sorted(history.records[-1].numbers())[:2]
        (2, ['gradient_norm', 'held_out'])
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    held_out: float  # the objective's measure on held-out data with averaged weights; NaN between evaluations
    values: dict[str, float]

    def numbers(self) -> dict[str, float]:
        """Return what is known of this update by name, for any logger; without what was not measured."""
        own = {"loss": self.loss, "learning_rate": self.learning_rate, "gradient_norm": self.gradient_norm}
        measured = {} if math.isnan(self.held_out) else {"held_out": self.held_out}
        return own | measured | self.values


@dataclass(frozen=True)
class History:
    """Training history: the records of all updates, and why training stopped.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> history = ep.fit(ebm, torch.randn(200, 2), ep.objectives.SlicedScoreMatching(), steps=3, progress=False)
        >>> history.column("loss").shape
        (3,)
    """

    records: tuple[Record, ...]
    stopped: str

    def column(self, name: str) -> NDArray[np.float64]:
        """Return a field of the records, or one of the objective's values, as an array with one entry a step."""
        known = {*Record._fields, *(key for record in self.records for key in record.values)} - {"values"}
        if not isinstance(name, str) or name not in known:
            raise InvalidInput(f"there is no column {name!r}; choose from {', '.join(sorted(known))}")
        if name in Record._fields:
            return np.array([getattr(r, name) for r in self.records], dtype=np.float64)
        return np.array([r.values.get(name, math.nan) for r in self.records], dtype=np.float64)

    def __repr__(self) -> str:
        """Summarize in one line: many objectives' losses mean little by themselves, so the held-out measure leads."""
        rows = self._summary()
        shown = [f"{name} {rows[name]}" for name in ("held-out measure", "loss") if name in rows]
        return f"History({'; '.join([f'{len(self.records)} steps', *shown, self.stopped])})"

    def _repr_html_(self) -> str:
        remarks = ["what follows the loss is a mean of the same last steps"] if self.records else []
        return summary_table(f"Training: {self.stopped}", self._summary(), remarks)

    def _summary(self) -> dict[str, str]:
        """Describe the run: its best held-out measure, and means over the last tenth of the steps."""
        if not self.records:
            return {"steps": "0"}
        rows = {"steps": str(len(self.records))}
        measures = [(r.held_out, r.step) for r in self.records if math.isfinite(r.held_out)]
        if measures:
            best, step = min(measures)
            rows["held-out measure"] = f"{best:.4g} at best, at step {step}"
        last = self.records[-max(1, len(self.records) // 10) :]
        rows["loss"] = f"{np.mean([r.loss for r in last]):.4g} in the last {len(last)} steps"
        for name in last[-1].values:
            values = [r.values.get(name, math.nan) for r in last]
            known = [value for value in values if not math.isnan(value)]
            if known:
                rows[name.replace("_", " ")] = f"{np.mean(known):.4g}"
        return rows

"""Training history: one record a step."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from energyppl.errors import InvalidInput

__all__ = ["History", "Record"]


class Record(NamedTuple):
    """Record of one update: the objective's numbers, and the optimizer's own."""

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
    """Training history: the records of all updates, and why training stopped."""

    records: tuple[Record, ...]
    stopped: str

    def column(self, name: str) -> NDArray[np.float64]:
        """Return a field of the records, or one of the objective's values, as an array with one entry a step."""
        known = {*Record._fields, *(key for record in self.records for key in record.values)} - {"values"}
        if name not in known:
            raise InvalidInput(f"there is no column {name!r}; choose from {', '.join(sorted(known))}")
        if name in Record._fields:
            return np.array([getattr(r, name) for r in self.records], dtype=np.float64)
        return np.array([r.values.get(name, math.nan) for r in self.records], dtype=np.float64)

    def __repr__(self) -> str:
        last = self.records[-1] if self.records else None
        end = f", loss {last.loss:.4g}" if last else ""
        return f"History({len(self.records)} steps{end}; {self.stopped})"

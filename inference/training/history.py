"""What a training run did: one record a step."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from energyppl.errors import InvalidInput

__all__ = ["History", "Record"]


class Record(NamedTuple):
    """One update: what the objective wrote down, and the optimizer's own numbers."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    held_out: float  # the objective's measure on held-out data with averaged weights; NaN between evaluations
    values: dict[str, float]


@dataclass(frozen=True)
class History:
    """What a training run did."""

    records: tuple[Record, ...]
    stopped: str

    def column(self, name: str) -> NDArray[np.float64]:
        """A field of the records, or one of the objective's values, as an array with one entry a step."""
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

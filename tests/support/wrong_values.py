"""Wrong values for arguments of any kind."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

Calls = dict[str, tuple[Callable[..., Any], dict[str, Any]]]

WRONG: dict[str, Any] = {
    "None": None,
    "text": "x",
    "-1": -1,
    "nan": math.nan,
    "inf": math.inf,
    "list": [],
    "dict": {},
    "object": object(),
    "class": dict,
    "other shape": torch.zeros(3, 7, 5),
    "complex": torch.zeros(4, 2, dtype=torch.complex64),
    "nan tensor": torch.full((6, 2), math.nan),
}


class Case(NamedTuple):
    """One argument of a callable with one wrong value."""

    call: str
    argument: str
    wrong: str


def cases(calls: Calls) -> Iterator[Case]:
    """Every argument of every callable with every wrong value."""
    for call, (_, arguments) in calls.items():
        for argument in arguments:
            for wrong in WRONG:
                yield Case(call, argument, wrong)

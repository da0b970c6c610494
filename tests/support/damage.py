"""Damaged and hostile files, and the memory that reading them took."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def memory_bounded(most: float) -> Iterator[None]:
    """Require that the block takes at most so many bytes at its peak, beyond what the process held before it."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():  # Linux: else a larger peak before this block would hide its own
        reset.write_text("5")
    before = _memory("VmRSS")
    yield
    assert _memory("VmHWM") - before <= most


def _memory(name: str) -> int:
    """Bytes that the process holds, ``VmRSS``, or held at most, ``VmHWM``."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", status.read_text())[1])  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with a bit flipped, some bytes changed, a piece cut out, doubled or filled with zeros."""
    start, size = int(rng.integers(len(content))), int(rng.integers(1, 64))
    piece = content[start : start + size]
    match int(rng.integers(5)):
        case 0:
            piece = bytes([piece[0] ^ 1 << int(rng.integers(8))]) + piece[1:]
        case 1:
            piece = rng.bytes(len(piece))
        case 2:
            piece = b""
        case 3:
            piece = piece + piece
        case 4:
            piece = bytes(len(piece))
    return content[:start] + piece + content[start + size :]


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)

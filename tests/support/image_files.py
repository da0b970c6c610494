"""Small images, and files of them made byte by byte."""

import struct
import zlib
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np

RNG = np.random.default_rng(0)

BYTES = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)

BYTES[0, 0, :2] = 0, 255

COLOUR = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)

LABELS = np.arange(6) % 3

HOLE = np.arange(120).reshape(6, 5, 4) == 45  # image 2


def idx(values: np.ndarray[Any, Any], code: int = 0x08, kind: str = ">u1") -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, code, values.ndim]) + sizes + values.astype(kind).tobytes()


def png(
    rows: list[bytes], width: int, *, depth: int = 8, colour: int = 0, extra: dict[bytes, bytes] | None = None
) -> bytes:
    """A PNG of a kind that matplotlib does not write."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = {b"IHDR": header, **(extra or {}), b"IDAT": pixels, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )


def save_png(path: Path, picture: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    matplotlib.image.imsave(path, picture, cmap="gray", vmin=0, vmax=255)
    return path


# --- Refusing files ---

SMALL = png([b"abcd", b"efgh"], 4)

"""Damaged files of data are refused in one sentence that names them, within bounded memory."""

import gzip
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from energyppl.data.arrays import read_npy
from energyppl.data.images import read_images
from energyppl.data.tables import read_table
from energyppl.errors import InvalidInput
from tests.support.damage import damaged, memory_bounded

ROWS = np.random.default_rng(0).normal(size=(50, 2))
PIXELS = np.random.default_rng(0).integers(256, size=(6, 5, 4), dtype=np.uint8)


def require_refusal(read: Callable[[], Any], path: Path) -> None:
    """In one sentence that names the file or what lies in it."""
    with pytest.raises(InvalidInput, match=re.escape(str(path))) as caught:
        read()
    assert "\n" not in str(caught.value)


def read_or_refused(read: Callable[[], Any], path: Path) -> Any:
    """What was read, or None where it was refused in one sentence that names the file; nothing else may be raised."""
    try:
        return read()
    except InvalidInput as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return None


def saved(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_six_hundred_damaged_headers_are_refused_or_harmless(tmp_path: Path) -> None:
    """Of numpy's format, which has no checksum: one bit, the byte order's, can't be told from a right one."""
    path, content = tmp_path / "t.npy", saved(ROWS)
    rng, start = np.random.default_rng(0), len(content) - ROWS.nbytes
    flips = [content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :] for i in range(start) for bit in range(8)]
    others = [damaged(content[:start], rng) + content[start:] for _ in range(300)]
    chosen = [*(flips[i] for i in rng.permutation(len(flips))[:300]), *others]
    with memory_bounded(2 * len(content) + 200e6):
        for other in (each for each in chosen if b"'>f8'" not in each):
            path.write_bytes(other)
            back = read_or_refused(lambda: read_npy(path), path)
            if back is not None:
                np.testing.assert_array_equal(back, ROWS)


def an_archive(compress: bool) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, x=ROWS)
    return buffer.getvalue()


@pytest.mark.parametrize("compress", [False, True])
def test_damaged_archives(compress: bool, tmp_path: Path) -> None:
    """An archive has checksums of its arrays; what they leave out is its directory's attributes and dates."""
    path, content, rng = tmp_path / "t.npz", an_archive(compress), np.random.default_rng(0)
    refusals = 0
    for _ in range(150):
        path.write_bytes(damaged(content, rng))
        table = read_or_refused(lambda: read_table(path), path)
        refusals += table is None
        if table is not None:
            np.testing.assert_array_equal(table.values, ROWS)
    assert refusals > 75


def test_damaged_text(tmp_path: Path) -> None:
    """A digit for a digit is another table; all else is refused or harmless, and never another kind of error."""
    path, rng = tmp_path / "t.csv", np.random.default_rng(0)
    content = ("a,b\n" + "".join(f"{x},{y}\n" for x, y in ROWS)).encode()
    for _ in range(150):
        path.write_bytes(damaged(content, rng))
        read_or_refused(lambda: read_table(path), path)


def test_damaged_pictures(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.png", np.random.default_rng(0)
    matplotlib.image.imsave(path, PIXELS[0], cmap="gray")
    content, whole = path.read_bytes(), read_images(tmp_path, levels=256).x
    for _ in range(150):
        path.write_bytes(damaged(content, rng))
        back = read_or_refused(lambda: read_images(tmp_path, levels=256), tmp_path)
        if back is not None:
            np.testing.assert_array_equal(back.x, whole)


def idx(pixels: Any, shape: tuple[int, ...] | None = None) -> bytes:
    sizes = pixels.shape if shape is None else shape
    return struct.pack(f">I{len(sizes)}I", 0x0800 + len(sizes), *sizes) + pixels.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx_files(packed: bool, tmp_path: Path) -> None:
    """Sizes must fit the file to the byte; a gzipped one has a checksum besides."""
    path, rng = tmp_path / "t.idx", np.random.default_rng(0)
    content = gzip.compress(idx(PIXELS)) if packed else idx(PIXELS)
    for _ in range(150):
        path.write_bytes(damaged(content, rng))
        back = read_or_refused(lambda: read_images(path), path)
        assert back is None or back.x.numel() == PIXELS.size


# --- Bombs: small files that would unpack to 512 MiB of zeros ---


def npz_bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as f,
    ):
        np.lib.format.write_array_header_1_0(f, {"descr": "<f8", "fortran_order": False, "shape": (2**16, 1024)})
        for _ in range(2**6):
            f.write(bytes(2**23))


def idx_bomb(path: Path) -> None:
    with gzip.open(path, "wb", 1) as file:
        file.write(idx(np.empty((0,), np.uint8), (2**9, 2**10, 2**10)))
        for _ in range(2**6):
            file.write(bytes(2**23))


def png_bomb(path: Path) -> None:
    packer = zlib.compressobj(1)
    row = packer.compress(bytes(2**23))
    data = row + b"".join(packer.compress(bytes(2**23)) for _ in range(2**6 - 1)) + packer.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 23_170, 23_170, 8, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


@pytest.mark.parametrize("kind", ["npz table", "npz images", "idx.gz", "png"])
def test_a_bomb_is_refused_by_its_header(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{kind.split()[0]}"
    {"npz": npz_bomb, "idx": idx_bomb, "png": png_bomb}[kind[:3]](path)
    assert path.stat().st_size < 4e6
    place = tmp_path if kind == "png" else path
    with memory_bounded(200e6):
        require_refusal(lambda: (read_table if kind == "npz table" else read_images)(place), path)


def test_a_header_that_promises_more_than_its_file_holds_takes_no_memory(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2)}
    np.lib.format.write_array_header_1_0(buffer, header)
    (tmp_path / "t.npy").write_bytes(buffer.getvalue() + ROWS.tobytes())
    (tmp_path / "t.idx").write_bytes(idx(PIXELS, (2**31, 2**31, 2**20)))
    with memory_bounded(50e6):
        require_refusal(lambda: read_table(tmp_path / "t.npy"), tmp_path / "t.npy")
        require_refusal(lambda: read_images(tmp_path / "t.idx"), tmp_path / "t.idx")


def test_zeros_that_are_meant_are_read(tmp_path: Path) -> None:
    """Negative control of the bound: ten megabytes of zeros, which pack a thousandfold."""
    images = np.zeros((1000, 100, 100), np.uint8)
    images[0, 0, 0] = 255
    np.savez_compressed(tmp_path / "t.npz", x=images)
    assert os.path.getsize(tmp_path / "t.npz") < 20_000
    assert read_images(tmp_path / "t.npz").x.shape == (1000, 1, 100, 100)

"""Files of images as arrays: IDX, folders of PNGs, numpy's own. Whatever is damaged is refused by name."""

import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import matplotlib.image
import numpy as np
from numpy.typing import NDArray

from energyppl._checks import UNREADABLE, shape_text
from energyppl.errors import InvalidInput

Array = NDArray[Any]

LABEL_NAMES = ("y", "labels", "target")
_PNG, _PALETTE, _GREY = b"\x89PNG\r\n\x1a\n", 3, (0, 4)
_IDX = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class Folder(NamedTuple):
    """What a folder of PNGs holds."""

    images: Array  # (n, channels, height, width), float32 in [0, 1]
    labels: Array | None  # (n,), the sub-folder's number
    classes: tuple[str, ...]  # names of the sub-folders
    levels: int  # grey values that the deepest file can tell apart


def read_npy(path: Path) -> Array:
    """The array of an ``.npy`` file, never unpickled."""
    with _refused(path, "an array", "write it again with numpy.save"), path.open("rb") as file:
        loaded: Array = np.lib.format.read_array(file, allow_pickle=False)
    return loaded


def read_npz(path: Path, array: str | None, labels: str | None) -> tuple[Array, Array | None, str]:
    """From an ``.npz`` archive the images, the labels or None, and the name of the images; never unpickled.

    Without names the images are the only array that is not called like labels, and the labels the one that is.
    """
    with _refused(path, "an archive of arrays", "write it again with numpy.savez"), zipfile.ZipFile(path) as archive:
        names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        listing = ", ".join(names) or "none"
        for wanted in (array, labels):
            if wanted is not None and wanted not in names:
                raise InvalidInput(f"{path} has no array {wanted!r}; its arrays: {listing}")
        images = [n for n in names if n not in (*LABEL_NAMES, labels)] if array is None else [array]
        if len(images) != 1:
            raise InvalidInput(f"{path} must hold one array of images, or be told which; its arrays: {listing}")
        found = [n for n in LABEL_NAMES if n in names and n != array] if labels is None else [labels]
        if len(found) > 1:
            raise InvalidInput(f"{path} must hold one array of labels, or be told which; its arrays: {listing}")
        loaded = [_member(archive, name) for name in (*images, *found)]
    return loaded[0], loaded[1] if found else None, images[0]


def read_idx(path: Path) -> Array:
    """The array of an IDX file, MNIST's format, which may be gzipped: magic number, sizes and values, big-endian."""
    with _refused(path, "a file", "download it again"):
        data = path.read_bytes()
        if path.suffix.lower() == ".gz" or data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX or not 1 <= data[3] <= 4:
        raise InvalidInput(
            f"{path} must begin with IDX's magic number, such as 00000803 for images; got {data[:4].hex() or 'no byte'}"
            ": pass a .npy, .npz or IDX file, or a folder of PNGs"
        )
    kind, start = np.dtype(_IDX[data[2]]), 4 + 4 * data[3]
    if len(data) < start:
        raise InvalidInput(f"{path} must give {data[3]} sizes; it ends after {len(data)} bytes: download it again")
    sizes = struct.unpack_from(f">{data[3]}I", data, 4)
    needed = math.prod(sizes) * kind.itemsize
    if len(data) - start != needed:
        raise InvalidInput(
            f"{path} must hold {needed:,} bytes for its sizes {shape_text(sizes)}; got {len(data) - start:,}: "
            "it is truncated or damaged, download it again"
        )
    return np.frombuffer(data, kind, offset=start).reshape(sizes).astype(kind.newbyteorder("="))


def read_folder(folder: Path) -> Folder:
    """All PNGs of a folder, or of its sub-folders, each a class, in the order of their names; hidden ones left out.

    Raises:
        InvalidInput: if there is none, anything else lies among them, their sizes differ, or one is damaged.
    """
    entries = _visible(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    groups = [_visible(entry) for entry in classes] if classes else [entries]
    stray = [p for p in entries if p not in classes] if classes else []
    stray += [p for group in groups for p in group if p.is_dir() or p.suffix.lower() != ".png"]
    if stray:
        raise InvalidInput(
            f"{folder} must hold PNGs only, or one sub-folder of PNGs for each class; got {stray[0]}: "
            "move it elsewhere, or convert it"
        )
    for place, group in zip(classes or [folder], groups, strict=True):
        if not group:
            raise InvalidInput(f"{place} must hold at least one PNG; it is empty: fill it or remove it")
    paths = [path for group in groups for path in group]
    pictures, levels = [], 2
    for path in paths:
        picture, own = read_png(path)
        pictures.append(picture)
        levels = max(levels, own)
        if picture.shape != pictures[0].shape:
            raise InvalidInput(
                f"all images must have one size; got {_size(pictures[0])} in {paths[0]} and {_size(picture)} in "
                f"{path}: resize them, or read them apart"
            )
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups]) if classes else None
    images = np.stack([picture.reshape(*picture.shape[:2], -1).transpose(2, 0, 1) for picture in pictures])
    return Folder(images, labels, tuple(entry.name for entry in classes), levels)


def read_png(path: Path) -> tuple[Array, int]:
    """One PNG, ``(height, width)`` or ``(height, width, 3)`` in [0, 1], and how many grey values it can tell apart.

    Raises:
        InvalidInput: if it is damaged, or holds what would be lost: transparency, further frames, 16 bits a colour.
    """
    with _refused(path, "a file", "check who may read it"):
        data = path.read_bytes()
    kinds = _checked_chunks(path, data)
    depth, colour = data[24], data[25]
    try:
        picture: Array = matplotlib.image.imread(io.BytesIO(data), format="png")
    except Exception as error:  # the decoder raises kinds of its own that are neither OSError nor ValueError
        _refuse(path, "a PNG", "write it again", error)
    if (b"tRNS" in kinds and colour != _PALETTE) or (picture.ndim == 3 and (picture[..., 3:] != 1).any()):
        raise InvalidInput(f"{path} must be opaque; got transparent pixels: put it on a background first")
    if b"acTL" in kinds:
        raise InvalidInput(f"{path} must be one picture; got an animation: write its frames one by one")
    if depth == 16 and colour != 0:
        raise InvalidInput(f"{path} must have 8 bits a colour; got 16, which can't all be kept: convert it to 8")
    if picture.ndim == 3:
        picture = picture[..., 0] if colour in _GREY else picture[..., :3]
    # Current decoders widen 2 and 4 bits to 8, and matplotlib then divides by 3 or 15 all the same.
    if picture.max() > 1:
        picture = picture * np.float32((2**depth - 1) / 255)
    return picture, 256 if colour == _PALETTE else 2**depth


def _checked_chunks(path: Path, data: bytes) -> set[bytes]:
    """The kinds of a PNG's chunks, once their checksums hold: the decoder itself skips those of the pixels."""
    if data[:8] != _PNG:
        raise InvalidInput(
            f"{path} must begin with a PNG's signature; got {data[:8].hex() or 'an empty file'}: "
            "it is of another kind or damaged, write it again"
        )
    kinds: set[bytes] = set()
    place = len(_PNG)
    while b"IEND" not in kinds:
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + length
        kind, checksum = data[place + 4 : place + 8], data[end : end + 4]
        if len(checksum) < 4:
            raise InvalidInput(f"{path} must end in an IEND chunk; it is truncated: write it again")
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(checksum, "big") or (not kinds and kind != b"IHDR"):
            raise InvalidInput(f"{path} can't be read as a PNG (damaged in its chunk {kind!r}): write it again")
        kinds.add(kind)
        place = end + 4
    return kinds


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _size(picture: Array) -> str:
    return f"{picture.shape[0]}×{picture.shape[1]} {'colour' if picture.ndim == 3 else 'grey'}"


def _member(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(f"{name}.npy") as file:
        loaded: Array = np.lib.format.read_array(io.BytesIO(file.read()), allow_pickle=False)
    return loaded


@contextmanager
def _refused(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Within it, whatever a reader raises becomes an InvalidInput that names the file."""
    try:
        yield
    except InvalidInput:
        raise
    except UNREADABLE as error:
        _refuse(path, what, remedy, error)


def _refuse(path: Path, what: str, remedy: str, error: BaseException) -> NoReturn:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise InvalidInput(
        f"{path} can't be read as {what} ({reason}): it is truncated, damaged, pickled or something else; {remedy}"
    ) from error

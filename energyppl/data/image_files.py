"""Readers of image files: IDX, folders of PNGs and JPEGs, numpy's archives; a damaged file is refused by name."""

import gzip
import io
import math
import struct
import warnings
import zipfile
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from energyppl._checks import shape_text
from energyppl.data.arrays import Array, check_unpacked, read_member, refuse, refused
from energyppl.errors import InvalidInput

LABEL_NAMES = ("y", "labels", "target")
_PNG, _PALETTE, _GREY = b"\x89PNG\r\n\x1a\n", 3, (0, 4)
_PICTURES = (".png", ".jpg", ".jpeg")
_SYSTEM = ("Thumbs.db", "desktop.ini")  # what Windows puts into folders, and hides
_NAMED = 5  # files, at most, in one message
_MAX_PIXELS = 2**24  # which decode to 256 MiB
_IDX = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class Folder(NamedTuple):
    """The images of a folder, with their classes."""

    images: Array  # (n, channels, height, width), float32 in [0, 1]
    labels: Array | None  # (n,), the sub-folder's number
    classes: tuple[str, ...]  # names of the sub-folders
    levels: int  # grey values that the deepest file can tell apart


def read_npz(path: Path, array: str | None, labels: str | None) -> tuple[Array, Array | None, str]:
    """Read the images of an ``.npz`` archive, its labels or None, and the name of the images' array.

    Without names the images are the only array that is not called like labels, and the labels the one that is.
    """
    with refused(path, "an archive of arrays", "write it again with numpy.savez"), zipfile.ZipFile(path) as archive:
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
        loaded = [read_member(archive, name) for name in (*images, *found)]
    return loaded[0], loaded[1] if found else None, images[0]


def read_idx(path: Path) -> Array:
    """Read an IDX file, MNIST's format, which may be gzipped: a magic number, sizes and values, all big-endian.

    Raises:
        InvalidInput: if the file is damaged or of another kind.
    """
    with refused(path, "a file", "download it again"), path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b" or path.suffix.lower() == ".gz"
        plain.seek(0)
        with gzip.GzipFile(fileobj=plain) if packed else nullcontext(plain) as file:
            kind, sizes = _idx_header(path, file.read(4), file)
            needed, size = math.prod(sizes) * kind.itemsize, path.stat().st_size
            if packed:
                check_unpacked(needed, size)
            data = file.read((needed if packed else min(needed, size)) + 1)
    if len(data) != needed:
        raise InvalidInput(
            f"{path} must hold {needed:,} bytes for its sizes {shape_text(sizes)}; got "
            f"{len(data):,}{' or more' if len(data) > needed else ''}: it is truncated or damaged, download it again"
        )
    return np.frombuffer(data, kind).reshape(sizes).astype(kind.newbyteorder("="))


def _idx_header(path: Path, magic: bytes, file: BinaryIO | gzip.GzipFile) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return the kind of an IDX file's numbers, and its sizes."""
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX or not 1 <= magic[3] <= 4:
        raise InvalidInput(
            f"{path} must begin with IDX's magic number, such as 00000803 for images; got {magic.hex() or 'no byte'}"
            ": pass a .npy, .npz or IDX file, or a folder of pictures"
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise InvalidInput(
            f"{path} must give {magic[3]} sizes; it ends after {4 + len(sizes)} bytes: download it again"
        )
    return np.dtype(_IDX[magic[2]]), struct.unpack(f">{magic[3]}I", sizes)


def read_folder(folder: Path) -> Folder:
    """Read all PNGs and JPEGs of a folder, or of its sub-folders, each a class, in the order of their names.

    Hidden ones are left out.

    Raises:
        InvalidInput: if there is none, anything else lies among them, their sizes differ, or one is damaged.
    """
    entries = _visible(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    groups = [_visible(entry) for entry in classes] if classes else [entries]
    stray = [p for p in entries if p not in classes] if classes else []
    stray += [p for group in groups for p in group if p.is_dir() or p.suffix.lower() not in _PICTURES]
    if stray:
        raise InvalidInput(
            f"{folder} must hold PNGs and JPEGs only, or one sub-folder of them for each class; got {stray[0]}: "
            "move it elsewhere, or convert it"
        )
    for place, group in zip(classes or [folder], groups, strict=True):
        if not group:
            raise InvalidInput(f"{place} must hold at least one PNG or JPEG; it is empty: fill it or remove it")
    paths = [path for group in groups for path in group]
    pictures, levels = [], 2
    refused_files: list[tuple[Path, InvalidInput]] = []
    for path in paths:
        try:
            picture, own = read_png(path) if path.suffix.lower() == ".png" else (read_jpeg(path), 256)
        except InvalidInput as error:
            refused_files.append((path, error))  # the others are named with it, so that all can be mended at once
            continue
        pictures.append(picture)
        levels = max(levels, own)
        if not refused_files and picture.shape != pictures[0].shape:
            raise InvalidInput(
                f"all images must have one size; got {_size(pictures[0])} in {paths[0]} and {_size(picture)} in "
                f"{path}: resize them, or read them apart"
            )
    if refused_files:
        (_, first), *others = refused_files
        named = ", ".join(str(path) for path, _ in others[:_NAMED]) + ", …" * (len(others) > _NAMED)
        raise InvalidInput(f"{first}" + f" ({len(others)} more can't be taken: {named})" * bool(others)) from first
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups]) if classes else None
    images = np.stack([picture.reshape(*picture.shape[:2], -1).transpose(2, 0, 1) for picture in pictures])
    return Folder(images, labels, tuple(entry.name for entry in classes), levels)


def read_png(path: Path) -> tuple[Array, int]:
    """Read a PNG as ``(height, width)`` or ``(height, width, 3)`` in [0, 1], and tell how many grey values it can hold.

    Raises:
        InvalidInput: if it is damaged, or holds what would be lost: transparency, further frames, 16 bits a colour.
    """
    with refused(path, "a file", "check who may read it"):
        data = path.read_bytes()
    kinds = _checked_chunks(path, data)
    depth, colour = data[24], data[25]
    width, height = struct.unpack_from(">II", data, 16)
    if width * height > _MAX_PIXELS:
        raise InvalidInput(f"{path} must have at most {_MAX_PIXELS:,} pixels; got {width}×{height}: make it smaller")
    import matplotlib.image  # here, since it takes long and only pictures need it

    try:
        picture: Array = matplotlib.image.imread(io.BytesIO(data), format="png")
    except Exception as error:  # the decoder raises kinds of its own that are neither OSError nor ValueError
        refuse(path, "a PNG", "write it again", error)
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


def read_jpeg(path: Path) -> Array:
    """Read a JPEG as ``(height, width)`` or ``(height, width, 3)`` in [0, 1], turned as its camera says.

    Raises:
        InvalidInput: if it is damaged, too large, or neither grey nor of three colours.
    """
    from PIL import Image, ImageOps  # matplotlib's own reader of JPEGs

    with refused(path, "a JPEG", "write it again"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
        try:
            picture = Image.open(path, formats=("JPEG",))
        except Image.DecompressionBombError as error:
            raise InvalidInput(f"{path} must have at most {_MAX_PIXELS:,} pixels; {error}: make it smaller") from error
        with picture:
            _check_size(path, *picture.size)
            if picture.mode not in ("L", "RGB"):
                raise InvalidInput(f"{path} must be grey or have three colours; got {picture.mode}: convert it to RGB")
            grey: Array = np.asarray(ImageOps.exif_transpose(picture), np.float32) / np.float32(255)
    return grey


def _check_size(path: Path, width: int, height: int) -> None:
    """Refuse a picture that would decode to too much, by its header."""
    if width * height > _MAX_PIXELS:
        raise InvalidInput(f"{path} must have at most {_MAX_PIXELS:,} pixels; got {width}×{height}: make it smaller")


def _checked_chunks(path: Path, data: bytes) -> set[bytes]:
    """Check a PNG's checksums, of which the decoder itself skips the pixels', and return the kinds of its chunks."""
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
    entries = (path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in _SYSTEM)
    return sorted(entries)


def _size(picture: Array) -> str:
    return f"{picture.shape[0]}×{picture.shape[1]} {'colour' if picture.ndim == 3 else 'grey'}"

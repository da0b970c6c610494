"""Files of numpy arrays, read without unpickling anything; sizes are checked before memory is taken."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from energyppl.errors import InvalidInput, first_line

Array = NDArray[Any]

_FREE = 2**28  # bytes that any compressed file may unpack to
_MAX_RATIO = 100  # of unpacked to packed size beyond that; images of digits reach 6, one-hot tables 40


def read_npy(path: Path) -> Array:
    """Read the array of an ``.npy`` file.

    Raises:
        InvalidInput: if the file is damaged, pickled or of another kind.
    """
    with refused(path, "an array", "write it again with numpy.save"), path.open("rb") as file:
        return _read_array(file, path.stat().st_size)


def member_shapes(archive: zipfile.ZipFile) -> dict[str, tuple[int, ...]]:
    """Tell the shapes of an ``.npz`` archive's arrays, by name, from their headers alone."""
    shapes = {}
    for name in archive.namelist():
        if name.endswith(".npy"):
            with archive.open(name) as file:
                shapes[name.removesuffix(".npy")] = _read_header(file)[0]
    return shapes


def read_member(archive: zipfile.ZipFile, name: str) -> Array:
    """Read one array of an ``.npz`` archive.

    Raises:
        ValueError: if it is damaged, pickled, or would unpack to far more than its file's size.
    """
    info = archive.getinfo(f"{name}.npy")
    check_unpacked(info.file_size, info.compress_size)
    with archive.open(info) as file:
        return _read_array(file, info.file_size)


def check_unpacked(unpacked: int, packed: int) -> None:
    """Require that compressed data unpack to a size that numbers worth training on could have.

    Raises:
        ValueError: for more than 256 MiB that are also more than 100 times the packed size.
    """
    if unpacked > max(_FREE, _MAX_RATIO * packed):
        raise ValueError(f"{packed:,} bytes in it would unpack to {unpacked:,}; if they should, write it uncompressed")


@contextmanager
def refused(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a reader raises inside into an InvalidInput that names the file."""
    try:
        yield
    except InvalidInput:
        raise
    except Exception as error:  # what damage raises depends on where it lies: tokenize.TokenError, zlib.error, …
        refuse(path, what, remedy, error)


def refuse(path: Path, what: str, remedy: str, error: BaseException) -> NoReturn:
    """Refuse a file for what reading it raised."""
    reason = first_line(error)
    raise InvalidInput(
        f"{path} can't be read as {what} ({reason}): it is truncated, damaged, pickled or something else; {remedy}"
    ) from error


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, whether the first index runs fastest, and the dtype."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its version is {version[0]}.{version[1]}")
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype


def _read_array(file: IO[bytes], size: int) -> Array:
    """Return the array of a file of so many bytes; more or fewer than its header promises are damage."""
    shape, fortran, dtype = _read_header(file)
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"it holds {'pickled objects' if dtype.hasobject else 'nothing'}, dtype {dtype}")
    needed, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or needed != left:
        raise ValueError(f"its header promises {needed:,} bytes of numbers; it holds {left:,}")
    data = file.read()  # to the end, where an archive checks its sum
    if len(data) != needed:
        raise ValueError("it became shorter while it was read")
    array: Array = np.frombuffer(data, dtype) if needed else np.empty(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C")

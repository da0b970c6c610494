"""Files that are kept: written whole or not at all, in a folder that one process at a time may hold."""

import errno
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from energyppl.errors import EnergyPPLError, InvalidInput, warn_user

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["folder_made", "locked", "sentence_of", "whole_file", "write_json"]

_LOCK = ".lock"
_OTHER_PATH = "choose another path"
_REASONS = {  # of the system's refusals of a path
    errno.EEXIST: f"what stands there is no folder: {_OTHER_PATH}",
    errno.ENOTDIR: f"what stands there is no folder: {_OTHER_PATH}",
    errno.EISDIR: "it is a folder: name a file",
    errno.EACCES: f"you have no permission there: {_OTHER_PATH}",
    errno.EPERM: f"you have no permission there: {_OTHER_PATH}",
    errno.EROFS: f"its file system can't be written to: {_OTHER_PATH}",
    errno.ENAMETOOLONG: "its name is too long: choose a shorter one",
    errno.ELOOP: f"its links lead in a circle: {_OTHER_PATH}",
}


def sentence_of(error: OSError, path: object = None) -> str:
    """Say in one sentence which path the system refuses, and why."""
    named = error.filename if path is None else path
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)
    return reason if named is None else f"{named} can't be used: {reason}"


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turn the refusal of a path into an error of the argument; a full disk and its like stay what they are."""
    try:
        yield
    except OSError as error:
        guessed = error.errno == errno.EEXIST and str(error.filename) != str(path)  # our own name for a part
        if error.errno not in _REASONS or guessed:
            raise
        raise InvalidInput(sentence_of(error, path)) from error


def folder_made(folder: Path) -> Path:
    """Make a folder, and those above it, if it is not there.

    Raises:
        InvalidInput: if it can't be one.
    """
    with _in_words(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` when the block ends; if it fails, nothing changes.

    The file is written under a name of its own, opened exclusively so that no symbolic link is followed, and renamed
    once it is on the disk: a reader sees the old file or the new one, and never a part.

    Raises:
        InvalidInput: for a path at which no file can be.
    """
    path = Path(path)
    part = folder_made(path.parent) / f".{secrets.token_hex(8)}.part"
    with _in_words(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _in_words(path):
            os.replace(part, path)
        _sync(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], record: Any) -> None:
    """Write a record as indented JSON, whole or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it when the process ends, however it ends.

    Where the file system has no locks a warning says so; on Windows nothing is locked.

    Raises:
        EnergyPPLError: if another process holds the folder; the message names it.
        InvalidInput: if there can be no folder.
    """
    folder_made(folder)
    if fcntl is None:
        yield
        return
    path = folder / _LOCK
    descriptor = _take(path, folder)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile finds that it is gone
        os.close(descriptor)


def _take(path: Path, folder: Path) -> int:
    """Return the open lock file of a folder, locked."""
    while True:
        with _in_words(folder):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise EnergyPPLError(
                f"{folder} is in use by {holder}: wait until it has ended, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(descriptor)
                raise
            warn_user(f"{folder} can't be locked ({error.strerror}): see that no other process uses it")
        if _is_still(descriptor, path):
            return descriptor
        os.close(descriptor)  # the last holder removed it between our opening and our locking


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    """Put a folder's entries on the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

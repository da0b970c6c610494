"""Checkpoints: trees of tensors, numbers and strings in one file with a checksum; no pickle is written or loaded.

The layout is as plain as it can be, so that whoever has the file can read it: one line that names the format, the
length of a JSON text as eight bytes (big-endian), the text, the bytes of its tensors in order, uncompressed and in the
byte order of the machine, and the BLAKE2b-256 digest of all that.  Equal trees are equal files.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from energyppl._checks import as_path
from energyppl._files import whole_file
from energyppl.errors import CheckpointError, first_line

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = b"energyppl-checkpoint-2 " + sys.byteorder.encode() + b"-endian\n"
_LENGTH, _DIGEST = 8, 32  # bytes
_Tree = Any  # tensors, numbers, strings, None, and lists, tuples and dicts of them


def save_checkpoint(path: str | os.PathLike[str], tree: _Tree) -> None:
    """Write a tree of tensors, numbers, strings, lists and dicts to one file, all of it or nothing.

    Args:
        path: of the file; its folder is made if it is not there, and an older file is replaced.
        tree: what to keep; tensors may lie on any device.

    Raises:
        CheckpointError: if the tree holds anything else.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "state.ckpt"
        >>> ep.save_checkpoint(file, {"step": 3, "weights": torch.zeros(2)})
        >>> ep.load_checkpoint(file)
        {'step': 3, 'weights': tensor([0., 0.])}
    """
    tensors: list[Tensor] = []
    text = json.dumps(encode(tree, tensors)).encode()
    digest = blake2b(digest_size=_DIGEST)
    head = (_FORMAT, len(text).to_bytes(_LENGTH, "big"), text)
    parts: Iterator[bytes | memoryview] = chain(head, map(raw_bytes, tensors))
    with whole_file(as_path(path)) as file:
        for part in parts:
            file.write(part)
            digest.update(part)
        file.write(digest.digest())


def load_checkpoint(path: str | os.PathLike[str]) -> _Tree:
    """Read what :func:`save_checkpoint` wrote, tensors on the CPU.

    Every size is compared with the file's before memory is taken, so that a damaged or forged file takes no more
    memory than its own size.

    Raises:
        CheckpointError: if there is no such file, it is truncated or damaged, or it is something else, such as a
            pickle, which is never executed.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "state.ckpt"
        >>> ep.save_checkpoint(file, {"step": 3})
        >>> ep.load_checkpoint(file)
        {'step': 3}
    """
    path = as_path(path)
    with _refused(path), path.open("rb") as file:
        left, digest = os.fstat(file.fileno()).st_size, blake2b(digest_size=_DIGEST)

        def take(size: int) -> bytearray:
            nonlocal left
            if not 0 <= size <= left:
                raise ValueError(f"a part of it should have {size:,} bytes, and {left:,} are left")
            left -= size
            return _read(file, size)

        head = take(min(left, len(_FORMAT)))
        if head != _FORMAT:
            raise ValueError(f"it begins with {bytes(head[:24])!r}")
        length = take(_LENGTH)
        text = take(int.from_bytes(length, "big"))
        for part in (head, length, text):
            digest.update(part)

        def tensor(node: dict[str, Any]) -> Tensor:
            dtype, shape = getattr(torch, node["tensor"]), node["shape"]
            if not isinstance(dtype, torch.dtype) or not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"it holds a tensor of dtype {node['tensor']} and shape {shape}")
            raw = take(math.prod(shape) * dtype.itemsize)
            digest.update(raw)
            value = torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)
            return value.contiguous(memory_format=torch.channels_last) if node.get("channels_last") else value

        tree = decode(json.loads(text), tensor)
        if take(left) != digest.digest():
            raise ValueError("its checksum is wrong")
    return tree


def _read(file: BinaryIO, size: int) -> bytearray:
    """Read so many bytes, in memory that a tensor may share and write to."""
    part = bytearray(size)
    if file.readinto(part) != size:  # type: ignore[attr-defined]
        raise ValueError("it became shorter while it was read")
    return part


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn whatever reading raises inside into a CheckpointError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except Exception as error:  # what damage raises depends on where it lies: RecursionError, AttributeError, …
        reason = first_line(error)
        raise CheckpointError(
            f"{path} is not a whole energyppl checkpoint ({reason}): it is truncated, damaged or something else; "
            "use another copy or begin again"
        ) from error


def raw_bytes(value: Tensor) -> memoryview:
    """Return a tensor's bytes in order of its indices; every dtype has them, bfloat16 included."""
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")


def encode(value: _Tree, tensors: list[Tensor]) -> Any:
    """Return a tree as JSON, its tensors replaced by their dtypes and shapes, and appended to the list."""
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        tensors.append(value)
        node = {"tensor": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        # Convolutions that were asked for this order in memory go on in it, to the same digits.
        return {**node, "channels_last": True} if _is_channels_last(value) else node
    if isinstance(value, np.number):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [encode(item, tensors) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, tensors), encode(v, tensors)] for k, v in value.items()]}
    kind = f"a {value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
    raise CheckpointError(f"a checkpoint holds dense tensors, numbers, strings, lists and dicts; got {kind}")


def _is_channels_last(value: Tensor) -> bool:
    return value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)


def decode(value: Any, tensor: Any) -> _Tree:
    """Return the tree of a JSON text; ``tensor`` reads the next tensor."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensor(value)
    if "list" in value:
        return [decode(item, tensor) for item in value["list"]]
    if "tuple" in value:
        return tuple(decode(item, tensor) for item in value["tuple"])
    return {decode(k, tensor): decode(v, tensor) for k, v in value["dict"]}

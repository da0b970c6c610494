"""Trees of tensors, numbers and strings in ``.safetensors`` files, whose tensors other tools can read by name.

The format has no checksum of its own, so the header holds one of all that is read here.  Equal trees are equal files.
It needs the package of that name: ``pip install energyppl[safetensors]``.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from energyppl._checks import as_path
from energyppl._files import whole_file
from energyppl.checkpoints import decode, encode, raw_bytes
from energyppl.errors import CheckpointError, InvalidInput, first_line

__all__ = ["is_safetensors", "load_safetensors", "save_safetensors"]

# In the header: the tree without its tensors, their names in order, and a digest of both and of the tensors' bytes.
_TREE, _ORDER, _SUM = "energyppl", "energyppl_order", "energyppl_blake2b"
_LENGTH = 8  # bytes that say how long the header is


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path ends in ``.safetensors``."""
    return as_path(path).suffix.lower() == ".safetensors"


def save_safetensors(path: str | os.PathLike[str], tree: Any, names: Mapping[str, Tensor]) -> None:
    """Write a tree to one file, whole or not at all.

    Args:
        path: of the file.
        tree: as :func:`~energyppl.save_checkpoint` takes it.
        names: what tensors of the tree are called; others are numbered.

    Raises:
        CheckpointError: if the tree holds anything else.
        InvalidInput: if the package is missing.
    """
    write = _package("safetensors.torch").save
    tensors: list[Tensor] = []
    text = json.dumps(encode(tree, tensors))
    known = {id(tensor): name for name, tensor in names.items()}
    order = [known.get(id(tensor), f"{_TREE}.{i}") for i, tensor in enumerate(tensors)]
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in zip(order, tensors, strict=True)}
    header = {"format": "pt", _TREE: text, _ORDER: json.dumps(order), _SUM: _digest(text, order, tensors)}
    head, tensors_bytes = _sorted_header(write(own, metadata=header))
    with whole_file(as_path(path)) as file:
        file.write(head)
        file.write(tensors_bytes)


def load_safetensors(path: str | os.PathLike[str]) -> Any:
    """Read what :func:`save_safetensors` wrote, tensors on the CPU; nothing in a file is ever executed.

    Raises:
        CheckpointError: if there is no such file, it is damaged, or it was not written by this library.
        InvalidInput: if the package is missing.
    """
    path, opened = as_path(path), _package("safetensors").safe_open
    if not path.exists():
        raise CheckpointError(f"there is no file at {path}")
    try:
        with opened(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if _TREE not in header:
                raise ValueError("it has no model of this library beside its tensors")
            order = json.loads(header[_ORDER])
            tensors = [file.get_tensor(name) for name in order]
            if _SUM in header and header[_SUM] != _digest(header[_TREE], order, tensors):  # older files have none
                raise ValueError("its checksum is wrong")
            waiting = tensors[::-1]
            return decode(json.loads(header[_TREE]), lambda node: _fitting(node, waiting.pop()))
    except Exception as error:  # what damage raises depends on where it lies
        raise CheckpointError(
            f"{path} is not a whole model ({first_line(error)}): it is truncated, damaged or something else; "
            "save it again"
        ) from error


def _digest(text: str, order: Sequence[str], tensors: Iterable[Tensor]) -> str:
    """Return what tells a tree and its tensors from others."""
    digest = blake2b(json.dumps([text, list(order)]).encode(), digest_size=32)
    for tensor in tensors:
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def _sorted_header(content: bytes) -> tuple[bytes, memoryview]:
    """Return a file's header with its names in order, which the package leaves to chance, and the tensors' bytes."""
    size = int.from_bytes(content[:_LENGTH], "little")
    header = json.loads(content[_LENGTH : _LENGTH + size])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)  # tensors begin at multiples of eight bytes
    return len(text).to_bytes(_LENGTH, "little") + text, memoryview(content)[_LENGTH + size :]


def _fitting(node: Mapping[str, Any], value: Tensor) -> Tensor:
    """Return a tensor that is as the tree says.

    Raises:
        ValueError: for another one.
    """
    if list(value.shape) != node["shape"] or str(value.dtype) != f"torch.{node['tensor']}":
        raise ValueError(f"a tensor is {value.dtype} {list(value.shape)}, not {node['tensor']} {node['shape']}")
    return value.contiguous(memory_format=torch.channels_last) if node.get("channels_last") else value


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InvalidInput(
            f"a .safetensors file needs the package safetensors ({first_line(error)}): pip install safetensors, or "
            "choose another ending"
        ) from error

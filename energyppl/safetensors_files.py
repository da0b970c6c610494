"""Trees of tensors, numbers and strings in ``.safetensors`` files, whose tensors other tools can read by name.

The format has no checksum: a damaged header is refused, a changed number in a tensor is not seen.  It needs the package
of that name: ``pip install energyppl[safetensors]``.
"""

import json
import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from energyppl._checks import as_path
from energyppl._files import whole_file
from energyppl.checkpoints import decode, encode
from energyppl.errors import CheckpointError, InvalidInput, first_line

__all__ = ["is_safetensors", "load_safetensors", "save_safetensors"]

_TREE, _ORDER = "energyppl", "energyppl_order"  # in the header: the tree without its tensors, and their names in order


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
    with whole_file(as_path(path)) as file:
        file.write(write(own, metadata={"format": "pt", _TREE: text, _ORDER: json.dumps(order)}))


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
            waiting = [file.get_tensor(name) for name in json.loads(header[_ORDER])][::-1]
            return decode(json.loads(header[_TREE]), lambda node: _fitting(node, waiting.pop()))
    except Exception as error:  # what damage raises depends on where it lies
        raise CheckpointError(
            f"{path} is not a whole model ({first_line(error)}): it is truncated, damaged or something else; "
            "save it again"
        ) from error


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

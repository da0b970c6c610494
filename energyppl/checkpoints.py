"""Checkpoints: a zip of numpy arrays and one JSON text; no pickle is ever written or loaded.

A file is written beside its place and renamed into it, so a reader sees the old one or the new one and never a part.
"""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from energyppl.errors import CheckpointError

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "energyppl-checkpoint-1"
_Tree = Any  # tensors, numbers, strings, None, and lists, tuples and dicts of them


def save_checkpoint(path: str | os.PathLike[str], tree: _Tree) -> None:
    """Write a tree of tensors, numbers, strings, lists and dicts to one file, all of it or nothing.

    Raises:
        CheckpointError: if the tree holds anything else.
    """
    path = Path(path)
    arrays: list[np.ndarray[Any, Any]] = []
    text = json.dumps({"format": _FORMAT, "tree": _encode(tree, arrays)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("tree.json", text)
            for index, array in enumerate(arrays):
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                archive.writestr(f"{index}.npy", buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_checkpoint(path: str | os.PathLike[str]) -> _Tree:
    """Read what :func:`save_checkpoint` wrote, tensors on the CPU.

    Raises:
        CheckpointError: if there is no such file, it is truncated or damaged, or it is something else (a pickle is
            recognized by what it is not, and never executed).
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            document = json.loads(archive.read("tree.json"))
            names = sorted((n for n in archive.namelist() if n.endswith(".npy")), key=lambda n: int(n[:-4]))
            arrays = [np.load(io.BytesIO(archive.read(n)), allow_pickle=False) for n in names]
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
        return _decode(document["tree"], arrays)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except Exception as error:  # damage shows as anything: zlib.error, struct.error, RuntimeError, AttributeError, …
        raise CheckpointError(
            f"{path} is not a whole energyppl checkpoint ({error}): it is truncated, damaged or something else; "
            "use another copy or begin again"
        ) from error


def _encode(value: _Tree, arrays: "list[np.ndarray[Any, Any]]") -> Any:
    if isinstance(value, Tensor):
        # Raw bytes carry every dtype, bfloat16 included.
        raw = value.detach().cpu().contiguous()
        arrays.append(raw.reshape(-1).view(torch.uint8).numpy() if raw.numel() else np.empty(0, np.uint8))
        return {"tensor": len(arrays) - 1, "dtype": str(raw.dtype).removeprefix("torch."), "shape": list(raw.shape)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(item, arrays) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(k, arrays), _encode(v, arrays)] for k, v in value.items()]}
    raise CheckpointError(f"a checkpoint holds tensors, numbers, strings, lists and dicts; got {type(value).__name__}")


def _decode(value: Any, arrays: "list[np.ndarray[Any, Any]]") -> _Tree:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        dtype = getattr(torch, value["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"no dtype {value['dtype']}")
        raw = torch.from_numpy(arrays[value["tensor"]].copy())
        return raw.view(dtype).reshape(value["shape"]) if raw.numel() else torch.empty(value["shape"], dtype=dtype)
    if "list" in value:
        return [_decode(item, arrays) for item in value["list"]]
    if "tuple" in value:
        return tuple(_decode(item, arrays) for item in value["tuple"])
    return {_decode(k, arrays): _decode(v, arrays) for k, v in value["dict"]}

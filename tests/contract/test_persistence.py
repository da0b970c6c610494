"""Checkpoints: what goes in comes out bit for bit, damage is named, and nothing in a file is ever executed."""

import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.errors import CheckpointError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
COMPLEX = (torch.complex64, torch.complex128)
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (3, 2), (0,), (4, 0, 2))


def require_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert raw(one) == raw(other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert [type(key) for key in one] == [type(key) for key in other]
        for key in one:
            require_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            require_same(*pair)
    elif isinstance(one, float) and math.isnan(one):
        assert math.isnan(other)
    else:
        assert one == other


def raw(value: Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


@pytest.mark.parametrize("dtype", FLOATS + WHOLE + COMPLEX, ids=str)
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    tree = [(torch.randn(shape) * 10).to(dtype) for shape in SHAPES]
    tree.append((torch.randn(4, 6) * 10).to(dtype).t()[1::2])  # neither contiguous nor from the start of its storage
    save_checkpoint(tmp_path / "c", tree)
    back = load_checkpoint(tmp_path / "c")
    require_same(back, tree)
    if back[2].dtype.is_floating_point and back[2].element_size() > 1:
        back[2].add_(1)  # a loaded tensor may be written to


TREES: dict[str, Any] = {
    "numbers": [0, -1, 2**80, 0.1, 5e-324, math.inf, -math.inf, math.nan, True, False, None],
    "strings": ["", "ε ∇U", '\n"\\', "\ud800"],
    "int keys": {0: {"exp_avg": torch.randn(3)}, 1: {2: {3: [torch.tensor(1.5)]}}},
    "tuple keys": {(0, "a"): 1, None: 2, True: 3, 1.5: 4},
    "tuples": ((), (1,), [(2, [3, ()])], {}),
    "names like ours": {"tensor": 0, "dtype": "float32", "list": [1], "tuple": 2, "dict": [[1, 2]]},
    "nothing": None,
    "special values": torch.tensor([math.nan, -math.nan, math.inf, -0.0, 1e-45]),
    "parameter": {"p": torch.nn.Parameter(torch.ones(2)).detach()},
}


@pytest.mark.parametrize("name", list(TREES))
def test_trees_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", TREES[name])
    require_same(load_checkpoint(tmp_path / "c"), TREES[name])


def test_an_optimizer_and_the_random_state_come_back(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    tree = {"optimizer": optimizer.state_dict(), "model": dict(module.state_dict()), "rng": torch.get_rng_state()}
    save_checkpoint(tmp_path / "c", tree)
    expected = torch.randn(5)
    back = load_checkpoint(tmp_path / "c")
    require_same(back, tree)
    torch.set_rng_state(back["rng"])
    assert torch.equal(torch.randn(5), expected)
    optimizer.load_state_dict(back["optimizer"])


@pytest.mark.parametrize(
    "odd", [object(), {1, 2}, b"bytes", np.zeros(3), lambda: 0, 1j], ids=lambda v: type(v).__name__
)
def test_what_a_checkpoint_can_not_hold_is_named_and_nothing_is_written(odd: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"got {type(odd).__name__}"):
        save_checkpoint(tmp_path / "c", {"deep": [odd]})
    assert list(tmp_path.iterdir()) == []


# --- Damage ---


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "c"
    save_checkpoint(path, {"weights": torch.randn(5, 3), "level": torch.arange(4), "note": "hello", 0: [1.5, None]})
    return path


def test_truncation_anywhere_is_seen(whole: Path) -> None:
    content = whole.read_bytes()
    positions = {*range(0, len(content), 7), *range(40), *range(len(content) - 40, len(content))}
    for size in sorted(positions):
        whole.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="not a whole energyppl checkpoint"):
            load_checkpoint(whole)
    whole.write_bytes(content)
    load_checkpoint(whole)


def test_a_flipped_byte_is_an_error_or_does_no_harm(whole: Path) -> None:
    """Anywhere in the file; harmless are only bytes that no reader looks at, such as time stamps."""
    content, truth = whole.read_bytes(), load_checkpoint(whole)
    harmless = 0
    for position in range(0, len(content), 3):
        whole.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            back = load_checkpoint(whole)
        except CheckpointError:
            continue
        require_same(back, truth)
        harmless += 1
    assert harmless < len(content) / 3 / 2


class Bomb:
    """Would write a file if it were unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


def an_archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return buffer.getvalue()


def tree_json(tree: Any, name: str = "energyppl-checkpoint-1") -> bytes:
    return json.dumps({"format": name, "tree": tree}).encode()


def an_array(array: Any, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def torch_file(bomb: Bomb) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": bomb}, buffer)
    return buffer.getvalue()


ONE = {"tensor": 0, "dtype": "float32", "shape": [1]}
BYTES = an_array(np.zeros(4, np.uint8))
HOSTILE: dict[str, Callable[[Bomb], bytes]] = {
    "pickle": lambda b: pickle.dumps(b),
    "torch.save": torch_file,
    "numpy object file": lambda b: an_array(np.array([b], dtype=object), allow_pickle=True),
    "pickled npy in a zip": lambda b: an_archive(
        tree_json=tree_json(ONE), **{"0_npy": an_array(np.array([b], dtype=object), allow_pickle=True)}
    ),
    "pickle named npy": lambda b: an_archive(tree_json=tree_json(ONE), **{"0_npy": pickle.dumps(b)}),
    "nothing": lambda b: b"",
    "text": lambda b: b"hello",
    "no tree": lambda b: an_archive(**{"0_npy": BYTES}),
    "no array": lambda b: an_archive(tree_json=tree_json(ONE)),
    "another format": lambda b: an_archive(tree_json=tree_json(1, "energyppl-checkpoint-2")),
    "not a document": lambda b: an_archive(tree_json=b"[]"),
    "not json": lambda b: an_archive(tree_json=b"{"),
    "not utf-8": lambda b: an_archive(tree_json=b"\xff\xfe\x00"),
    "deep json": lambda b: an_archive(tree_json=b"[" * 100_000),
    "no such dtype": lambda b: an_archive(tree_json=tree_json({**ONE, "dtype": "nonsense"}), **{"0_npy": BYTES}),
    "a function for dtype": lambda b: an_archive(tree_json=tree_json({**ONE, "dtype": "load"}), **{"0_npy": BYTES}),
    "wrong shape": lambda b: an_archive(tree_json=tree_json({**ONE, "shape": [7]}), **{"0_npy": BYTES}),
    "odd size": lambda b: an_archive(tree_json=tree_json({**ONE, "dtype": "float64"}), **{"0_npy": BYTES}),
    "unknown node": lambda b: an_archive(tree_json=tree_json({"object": 1})),
    "another name": lambda b: an_archive(tree_json=tree_json(ONE), **{"x_npy": BYTES}),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_another_file_is_refused_and_never_executed(name: str, tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "boom")
    path = tmp_path / "c"
    path.write_bytes(HOSTILE[name](bomb))
    with pytest.raises(CheckpointError, match="not a whole energyppl checkpoint"):
        load_checkpoint(path)
    assert not bomb.target.exists()


def test_the_bomb_works(tmp_path: Path) -> None:
    """Negative control: a loader that unpickles sets it off."""
    bomb = Bomb(tmp_path / "boom")
    pickle.loads(HOSTILE["pickle"](bomb))
    assert bomb.target.exists()


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="not a whole"):
        load_checkpoint(tmp_path)


# --- All or nothing ---


def fail(*_: Any, **__: Any) -> None:
    raise OSError("the disk is full")


FAILURES = ["os.fsync", "pathlib.Path.replace", "numpy.save", "zipfile.ZipFile.writestr", "json.dumps"]


@pytest.mark.parametrize("where", FAILURES)
def test_a_write_that_fails_leaves_the_old_checkpoint(where: str, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = whole.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(OSError, match="the disk is full"):
            save_checkpoint(whole, {"other": torch.zeros(9)})
    assert whole.read_bytes() == before
    save_checkpoint(whole, {"other": torch.zeros(9)})  # whatever is left over is not in the way
    require_same(load_checkpoint(whole), {"other": torch.zeros(9)})
    assert [p.name for p in whole.parent.iterdir()] == ["c"]


def test_folders_are_made_and_text_paths_taken(tmp_path: Path) -> None:
    save_checkpoint(str(tmp_path / "a" / "b" / "c"), 1)
    assert load_checkpoint(str(tmp_path / "a" / "b" / "c")) == 1

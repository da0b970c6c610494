"""Checkpoints: what goes in comes out bit for bit, damage is named, and nothing in a file is ever executed."""

import hashlib
import io
import json
import math
import os
import pickle
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from energyppl._files import locked
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.errors import CheckpointError, EnergyPPLError
from tests.support.damage import Bomb, damaged, memory_bounded

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


def test_two_thousand_damaged_files_are_refused_within_their_own_memory(whole: Path) -> None:
    """A random change is seen by the checksum, but for the few that change nothing (zeros for zeros)."""
    content, rng = whole.read_bytes(), np.random.default_rng(0)
    with memory_bounded(2 * len(content) + 200e6):
        for other in (damaged(content, rng) for _ in range(2000)):
            whole.write_bytes(other)
            if other != content:
                with pytest.raises(CheckpointError, match=f"{whole} is not a whole energyppl checkpoint"):
                    load_checkpoint(whole)


def test_reading_and_writing_take_the_memory_of_the_file(tmp_path: Path) -> None:
    tree = {"weights": [torch.zeros(25_000_000), torch.zeros(25_000_000)]}  # 200 MB
    with memory_bounded(20e6):
        save_checkpoint(tmp_path / "c", tree)
    with memory_bounded(220e6):
        back = load_checkpoint(tmp_path / "c")
    assert torch.equal(back["weights"][1], tree["weights"][1])


def forged(tree: Any, data: bytes = b"", *, length: int | None = None, text: bytes | None = None) -> bytes:
    """A file of our format with a right checksum, whatever it holds."""
    text = json.dumps(tree).encode() if text is None else text
    head = f"energyppl-checkpoint-2 {sys.byteorder}-endian\n".encode()
    content = head + (len(text) if length is None else length).to_bytes(8, "big") + text + data
    return content + hashlib.blake2b(content, digest_size=32).digest()


def an_array(array: Any, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def torch_file(bomb: Bomb) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": bomb}, buffer)
    return buffer.getvalue()


ONE = {"tensor": "float32", "shape": [1]}
HOSTILE: dict[str, Callable[[Bomb], bytes]] = {
    "pickle": lambda b: pickle.dumps(b),
    "torch.save": torch_file,
    "numpy object file": lambda b: an_array(np.array([b], dtype=object), allow_pickle=True),
    "nothing": lambda b: b"",
    "text": lambda b: b"hello",
    "an older format": lambda b: b"PK\x03\x04" + forged(1)[4:],
    "another byte order": lambda b: forged(1).replace(b"little", b"middle").replace(b"big-", b"mid-"),
    "no data": lambda b: forged(ONE),
    "no data for many": lambda b: forged({**ONE, "shape": [2**40]}),
    "too little data": lambda b: forged(ONE, bytes(3)),
    "too much data": lambda b: forged(ONE, bytes(5)),
    "a length beyond the file": lambda b: forged(1, length=2**62),
    "not json": lambda b: forged(None, text=b"{"),
    "not utf-8": lambda b: forged(None, text=b"\xff\xfe\x00"),
    "deep json": lambda b: forged(None, text=b"[" * 100_000),
    "no such dtype": lambda b: forged({**ONE, "tensor": "nonsense"}, bytes(4)),
    "a function for dtype": lambda b: forged({**ONE, "tensor": "load"}, bytes(4)),
    "a negative shape": lambda b: forged({**ONE, "shape": [-1, -1]}, bytes(4)),
    "an inferred shape": lambda b: forged({**ONE, "shape": [-1]}, bytes(4)),
    "a shape of text": lambda b: forged({**ONE, "shape": "1"}, bytes(4)),
    "unknown node": lambda b: forged({"object": 1}),
    "unhashable key": lambda b: forged({"dict": [[{"list": []}, 1]]}),
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


def kill(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "energyppl.checkpoints.raw_bytes", "json.dumps"])
@pytest.mark.parametrize(("failure", "raised"), [(fail, OSError), (kill, KeyboardInterrupt)])
def test_a_write_that_fails_leaves_the_old_checkpoint(
    where: str, failure: Any, raised: type[BaseException], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(where, failure)
        with pytest.raises(raised):
            save_checkpoint(whole, {"other": torch.zeros(9)})
    assert whole.read_bytes() == before
    assert [p.name for p in whole.parent.iterdir()] == ["c"]  # nothing is left over
    save_checkpoint(whole, {"other": torch.zeros(9)})
    require_same(load_checkpoint(whole), {"other": torch.zeros(9)})


def test_file_and_folder_are_put_on_the_disk(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode)))
    save_checkpoint(whole, 1)
    assert synced == [False, True]


def test_planted_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one at the file's place, nor one at the temporary name, even if that can be guessed."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "c").symlink_to(victim)
    save_checkpoint(tmp_path / "c", 1)
    assert load_checkpoint(tmp_path / "c") == 1
    monkeypatch.setattr("secrets.token_hex", lambda size: "guessed")
    (tmp_path / ".guessed.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        save_checkpoint(tmp_path / "d", 1)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("now", [0.0, 5e9], ids=["1970", "2128"])
def test_equal_trees_are_equal_files_whatever_the_clock_says(
    now: float, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = load_checkpoint(whole)
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.localtime", lambda *_: (1970, 1, 1, 0, 0, 0, 3, 1, 0))
    save_checkpoint(whole.parent / "later", tree)
    assert (whole.parent / "later").read_bytes() == whole.read_bytes()


def test_memory_order_of_images_comes_back(tmp_path: Path) -> None:
    """Adam's moments of a channels-last network are channels-last in a run that goes on, too."""
    last = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "c", [last, last.contiguous()])
    back = load_checkpoint(tmp_path / "c")
    assert [each.stride() for each in back] == [last.stride(), last.contiguous().stride()]
    assert torch.equal(back[0], last)


# --- One process at a time ---


HOLDER = """
import sys, time
from pathlib import Path
from energyppl._files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_and_free_when_that_was_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    message = f"in use by process {holder.pid} on {re.escape(socket.gethostname())}: wait"
    with pytest.raises(EnergyPPLError, match=message), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path), pytest.raises(EnergyPPLError, match=f"process {os.getpid()} "), locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_and_text_paths_taken(tmp_path: Path) -> None:
    save_checkpoint(str(tmp_path / "a" / "b" / "c"), 1)
    assert load_checkpoint(str(tmp_path / "a" / "b" / "c")) == 1


def test_a_sparse_tensor_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"dense tensors.*got a torch.sparse_coo tensor"):
        save_checkpoint(tmp_path / "c", torch.eye(3).to_sparse())

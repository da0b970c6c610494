"""Models in .safetensors files: the same bit for bit, named as other tools expect, damage refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import energyppl as ep
from energyppl.errors import CheckpointError, InvalidInput

safetensors = pytest.importorskip("safetensors.torch")

SMALL: dict[str, Any] = {"hidden": 8, "depth": 2, "frequencies": 4, "levels": 4}
SCHEDULE = ep.NoiseSchedule.cosine(3)


def image() -> ep.RecoveryEBM:
    ebm = ep.RecoveryEBM(ep.ConvEnergy((1, 8, 8), width=4, levels=4), SCHEDULE)
    return ebm.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


MODELS: dict[str, Callable[[], Any]] = {
    "recovery": lambda: ep.RecoveryEBM(
        ep.MLPEnergy((2,), **SMALL), SCHEDULE, initializer=ep.MLPInitializer((2,), hidden=8, depth=1, levels=4)
    ),
    "continuous": lambda: ep.RecoveryEBM(ep.MLPEnergy((3,), hidden=8, depth=1), SCHEDULE),
    "float64": lambda: ep.EBM(ep.MLPEnergy((2,), **SMALL).double(), kernel=ep.HMC(0.1, 3)),
    "images": image,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    ep.save(model, tmp_path / "m.safetensors")
    same = ep.load(tmp_path / "m.safetensors")
    assert type(same) is type(model)
    assert same.checksum() == model.checksum()
    x = torch.randn(5, *model.event_shape).to(model.loc)
    assert torch.equal(same.marginal().energy(x), model.marginal().energy(x))
    theirs = safetensors.load_file(tmp_path / "m.safetensors")  # as another tool reads it
    for key, value in model.state_dict().items():
        assert torch.equal(theirs[key], value), key


@pytest.fixture
def file(tmp_path: Path) -> Path:
    ep.save(ep.EBM(ep.MLPEnergy((2,), **SMALL)), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_a_truncated_or_damaged_file_is_refused(file: Path) -> None:
    content = file.read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="not a whole model") as caught:
            ep.load(file)
        assert "\n" not in str(caught.value)
    file.write_bytes(content.replace(b"float32", b"float64"))  # of the tree, and not of the tensors
    with pytest.raises(CheckpointError, match="its checksum is wrong"):
        ep.load(file)


def test_equal_models_are_equal_files_and_no_flipped_bit_changes_a_model(file: Path) -> None:
    """Sixty places in all parts of the file: refused, or in words of the header that no one reads."""
    content, model = file.read_bytes(), ep.load(file)
    for _ in range(4):  # the package itself orders the names of its header anew each time
        ep.save(model, file)
        assert file.read_bytes() == content
    header, refused = int.from_bytes(content[:8], "little"), 0
    places = [*range(0, header, header // 30), *range(header + 8, len(content), (len(content) - header) // 30)]
    for place in places:
        file.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        try:
            assert ep.load(file).checksum() == model.checksum()
        except CheckpointError:
            refused += 1
    assert refused > 0.9 * len(places)


def test_tensors_without_a_model_and_no_file_are_refused(tmp_path: Path) -> None:
    safetensors.save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="no model of this library"):
        ep.load(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="there is no file"):
        ep.load(tmp_path / "none.safetensors")


def test_a_missing_package_is_named_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidInput, match="pip install safetensors"):
        ep.save(ep.EBM(ep.MLPEnergy((2,), **SMALL)), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []

"""Reading images, and spreading grey values out and back."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from energyppl.data.images import Images, images_from_array, read_images
from energyppl.errors import InvalidInput
from tests.support.image_files import BYTES, COLOUR, HOLE, LABELS, RNG, idx, png, save_png


def same(images: Images, pixels: np.ndarray[Any, Any]) -> bool:
    """Are these the images of ``pixels``, (n, channels, h, w) bytes?"""
    return images.levels == 256 and bool((images.x * 255).round().numpy().astype(np.uint8).tolist() == pixels.tolist())


# --- Reading ---


@pytest.mark.parametrize("kind", ["npy", "npz", "idx", "gz", "colour npy"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    pixels = COLOUR if kind == "colour npy" else BYTES
    path, labels = tmp_path / "images", tmp_path / "labels"
    if kind == "npz":
        path = path.with_suffix(".npz")
        np.savez(path, x=pixels, y=LABELS)
        images = read_images(path)
    elif kind in ("idx", "gz"):
        pack: Callable[[bytes], bytes] = gzip.compress if kind == "gz" else bytes
        path, labels = path.with_suffix(f".{kind}"), labels.with_suffix(f".{kind}")
        path.write_bytes(pack(idx(pixels)))
        labels.write_bytes(pack(idx(LABELS)))
        images = read_images(path, labels)
    else:
        path, labels = path.with_suffix(".npy"), labels.with_suffix(".npy")
        np.save(path, pixels)
        np.save(labels, LABELS)
        images = read_images(path, labels)
    assert same(images, pixels.transpose(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None])
    assert images.x.dtype == torch.float32
    assert images.labels is not None
    assert images.labels.dtype == torch.int64
    assert images.labels.tolist() == LABELS.tolist()
    assert str(path) in images.source


def test_folder_of_classes(tmp_path: Path) -> None:
    """Sorted by name: 10 comes before 9; hidden files are not missed."""
    for name, picture in {"b/1.png": 0, "a/9.png": 1, "a/10.PNG": 2, "b/0.png": 3}.items():
        save_png(tmp_path / name, COLOUR[picture])
    (tmp_path / "a" / ".hidden").touch()
    images = read_images(tmp_path)
    assert same(images, COLOUR[[2, 1, 3, 0]].transpose(0, 3, 1, 2))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.classes == ("a", "b")


def test_jpegs_beside_pngs_turned_as_the_camera_says(tmp_path: Path) -> None:
    """JPEG is lossy: a grey ramp comes back within 3 grey values."""
    ramp = np.tile(np.arange(0, 240, 30, dtype=np.uint8), (8, 1))
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 8  # turn by 90° to the left
    Image.fromarray(np.rot90(ramp, -1).copy()).save(tmp_path / "b.JPEG", quality=95, exif=exif)
    (tmp_path / "c.png").write_bytes(png([bytes(row) for row in ramp], 8))
    images = read_images(tmp_path)
    assert images.x.shape == (3, 1, 8, 8)
    assert float((images.x - images.x[2]).abs().max()) * 255 <= 3


def test_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    for i, picture in enumerate(COLOUR):
        save_png(tmp_path / f"{i}.png", picture)
    images = read_images(tmp_path)
    assert images.labels is None
    assert images.classes == ()
    assert same(images, COLOUR.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("data", "shape", "levels", "first"),
    [
        (png([b"\x00\x80"], 2), (1, 1, 1, 2), 256, [0, 128 / 255]),
        (png([b"\xa0"], 3, depth=1), (1, 1, 1, 3), 2, [1, 0, 1]),
        (png([b"\x1b"], 4, depth=2), (1, 1, 1, 4), 4, [0, 1 / 3, 2 / 3, 1]),
        (png([b"\x1f"], 2, depth=4), (1, 1, 1, 2), 16, [1 / 15, 1]),
        (png([b"\x00\x00\x80\x00"], 2, depth=16), (1, 1, 1, 2), 65536, [0, 32768 / 65535]),
        (png([b"\x40\xff\x50\xff"], 2, colour=4), (1, 1, 1, 2), 256, [64 / 255, 80 / 255]),  # with an opaque alpha
        (
            png([b"\x01"], 1, colour=3, extra={b"PLTE": b"abcdef"}),
            (1, 3, 1, 1),
            256,
            [100 / 255, 101 / 255, 102 / 255],
        ),
    ],
    ids=["grey", "1 bit", "2 bits", "4 bits", "16 bits", "opaque", "palette"],
)
def test_kinds_of_png(tmp_path: Path, data: bytes, shape: Any, levels: int, first: list[float]) -> None:
    (tmp_path / "a.png").write_bytes(data)
    images = read_images(tmp_path)
    assert images.x.shape == shape
    assert images.levels == levels
    np.testing.assert_allclose(images.x.flatten(), first, atol=1e-6)


def test_arrays_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, train=BYTES, test=BYTES[:2], y_train=LABELS, target=LABELS[:2])
    assert read_images(path, "y_train", array="train").x.shape == (6, 1, 5, 4)
    assert len(read_images(path, array="test").x) == 2
    with pytest.raises(InvalidInput, match="or be told which; its arrays: train, test, y_train, target"):
        read_images(path)
    with pytest.raises(InvalidInput, match=r"t.npz has no array 'third'; its arrays: train"):
        read_images(path, array="third")
    with pytest.raises(InvalidInput, match=r"labels of .*t.npz, array train must have shape \(6,\).*got \(2,\)"):
        read_images(path, array="train")


# --- Arrays ---


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((6, 5, 4), (6, 1, 5, 4)),
        ((6, 5, 4, 3), (6, 3, 5, 4)),
        ((6, 3, 5, 4), (6, 3, 5, 4)),
        ((6, 5, 4, 1), (6, 1, 5, 4)),
        ((6, 1, 5, 4), (6, 1, 5, 4)),
        ((6, 4, 7, 3), (6, 3, 4, 7)),
    ],
)
def test_where_the_channels_are(shape: tuple[int, ...], read: tuple[int, ...]) -> None:
    values = (np.arange(np.prod(shape)) % 256).astype(np.uint8).reshape(shape)
    x = images_from_array(values).x
    assert x.shape == read
    assert images_from_array(torch.from_numpy(values)).x.equal(x)
    moved = values[:, None] if values.ndim == 3 else values if shape == read else values.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(x * 255, moved, atol=1e-4)


def test_an_opaque_alpha_is_dropped() -> None:
    alpha = np.full((6, 5, 7, 1), 255, dtype=np.uint8)
    rgba = np.concatenate([RNG.integers(0, 256, (6, 5, 7, 3), dtype=np.uint8), alpha], 3)
    assert images_from_array(rgba).x.shape == (6, 3, 5, 7)
    assert images_from_array(rgba.transpose(0, 3, 1, 2)).x.shape == (6, 3, 5, 7)
    rgba[3, 1, 1, 3] = 254
    with pytest.raises(InvalidInput, match="opaque; got an alpha below 255"):
        images_from_array(rgba)


@pytest.mark.parametrize(
    ("values", "arguments", "levels"),
    [
        (BYTES, {}, 256),
        (BYTES.astype(np.int64), {"value_range": (0, 255)}, 256),
        (BYTES / 255, {}, 256),
        ((BYTES / 255).astype(np.float32), {}, 256),
        (BYTES / 127.5 - 1, {"value_range": (-1, 1)}, 256),
        (np.arange(60).reshape(3, 5, 4) % 17 * 1.0, {"value_range": (0, 16)}, 17),
        (BYTES > 99, {}, 2),
        (BYTES % 2, {"value_range": (0, 1)}, 2),
        (BYTES % 5 / 4, {}, 5),
        (RNG.random((3, 5, 4)), {"levels": 256}, 256),
        (torch.rand(3, 1, 5, 4).bfloat16(), {"levels": 256}, 256),
        (RNG.integers(0, 65536, (3, 5, 4), dtype=np.uint16), {"value_range": (0, 65535)}, 65536),
    ],
)
def test_grey_values(values: Any, arguments: dict[str, Any], levels: int) -> None:
    images = images_from_array(values, **arguments)
    assert images.levels == levels
    grey = images.x.double() * (levels - 1)
    assert float((grey - grey.round()).abs().max()) < 1e-2 * (levels > 256) + 1e-4
    assert 0 <= float(images.x.min()) <= float(images.x.max()) <= 1


@pytest.mark.parametrize(
    ("values", "arguments", "message"),
    [
        (BYTES.astype(str), {}, "real numbers; got dtype"),
        (BYTES[0], {}, r"must be \(n, height, width\).*got shape \(5, 4\)"),
        (BYTES[:0], {}, r"at least one pixel; got shape \(0, 5, 4\)"),
        (np.zeros((2, 5, 5, 2)), {}, r"no axis has 1, 3 or 4 channels in \(2, 5, 5, 2\)"),
        (np.zeros((2, 3, 5, 3)), {}, r"either the second or the last axis might be the channels in \(2, 3, 5, 3\)"),
        (np.zeros((2, 4, 5, 4)), {}, "either the second or the last"),
        (np.where(HOLE, np.nan, BYTES / 255), {}, r"NaN or infinity in 1 image\(s\), first in image 2"),
        (np.where(HOLE, -np.inf, BYTES / 255), {}, "first in image 2"),
        (BYTES / 1.0, {}, r"value_range \(0, 1\); its values run from 0 to 255: pass the numbers"),
        (BYTES / 255 - 1e-7, {}, "run from -1e-07 to 0.9999999"),
        (BYTES, {"value_range": (0, 16)}, r"\(0, 16\); its values run from 0 to 255"),
        (BYTES.astype(np.int32), {}, "with a value_range, being int32; its values run from 0 to 255"),
        (BYTES % 2, {}, r"bytes of 0 and 1 only: pass value_range=\(0, 1\)"),
        (BYTES, {"value_range": (255, 0)}, "two finite numbers in order"),
        (BYTES, {"value_range": (0, np.inf)}, "two finite numbers in order"),
        (RNG.random((3, 5, 4)), {}, r"evenly spaced grey values; got 60 distinct ones.*levels=256"),
        (RNG.random((3, 5, 40)), {}, "got 600 distinct ones"),
        (BYTES, {"levels": 1}, "levels must be a whole number of at least 2"),
        (BYTES.astype(np.int64), {"value_range": (0, 1e6)}, "at most 65536 grey values; got 1000001"),
        (BYTES, {"labels": LABELS[:5]}, r"labels of an array must have shape \(6,\).*got \(5,\)"),
        (BYTES, {"labels": LABELS[:, None]}, r"got \(6, 1\)"),
        (BYTES, {"labels": LABELS - 1}, "whole numbers from 0; got dtype int64 and -1"),
        (BYTES, {"labels": LABELS / 1.0}, "whole numbers from 0; got dtype float64"),
        (BYTES, {"labels": LABELS, "classes": ("a", "b")}, "below 2, the number of classes; got 2"),
    ],
)
def test_bad_array_is_refused(values: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        images_from_array(values, **arguments)


# --- Sizes ---


def test_images_are_averaged_down_to_grey_values(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", BYTES.reshape(3, 8, 5)[:, :, :4])
    images = read_images(tmp_path / "t.npy", size=(4, 2))
    means = BYTES.reshape(3, 8, 5)[:, :, :4].reshape(3, 4, 2, 2, 2).mean((2, 4))
    assert images.x.shape == (3, 1, 4, 2)
    assert float(np.abs(images.x[:, 0].numpy() * 255 - means).max()) <= 0.5 + 1e-4
    np.testing.assert_allclose(images.x * 255, (images.x * 255).round(), atol=1e-4)
    for size in (4, (16, 8), (0, 0)):
        with pytest.raises(InvalidInput, match=r"size must be no larger|height must be"):
            read_images(tmp_path / "t.npy", size=size)


# --- Grey values, spread out and back ---


@pytest.mark.parametrize("levels", [2, 17, 256, 4096, 65536])
def test_spread_values_fill_their_gaps_and_go_back(levels: int) -> None:
    """A Kolmogorov-Smirnov test that fails by chance once in 10,000 runs."""
    images = images_from_array(RNG.integers(0, levels, (50, 9, 7)), value_range=(0, levels - 1))
    spread, again = (images.dequantized(torch.Generator().manual_seed(3)) for _ in range(2))
    assert spread.equal(again)
    assert spread.dtype == torch.float32
    assert 0 < float(spread.min()) < float(spread.max()) < 1
    assert images.quantized(spread).equal(images.x)
    assert levels > 4096 or images.quantized(images.x).equal(images.x)
    place = spread.double() * levels - (images.x.double() * (levels - 1)).round()
    assert levels > 256 or stats.kstest(place.flatten().numpy(), "uniform").pvalue > 1e-4  # float32 is coarse there


@pytest.mark.parametrize("noise", [0.0, 1.0 - 2.0**-53])
@pytest.mark.parametrize("levels", [2, 3, 17, 256, 65536])
def test_extreme_noise_stays_in_its_gap(monkeypatch: pytest.MonkeyPatch, levels: int, noise: float) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, noise, dtype=torch.float64))
    images = images_from_array(np.arange(levels).reshape(-1, 1, 1), value_range=(0, levels - 1))
    spread = images.dequantized()
    assert 0 < float(spread.min()) < float(spread.max()) < 1
    assert images.quantized(spread).equal(images.x)


def test_points_beyond_the_ends_go_to_the_ends() -> None:
    images = images_from_array(BYTES % 5 / 4)
    points = torch.tensor([-3.0, 0.0, 0.19, 0.21, 0.99, 1.0, 7.0]).reshape(-1, 1, 1, 1).expand(-1, 1, 5, 4)
    assert images.quantized(points)[:, 0, 0, 0].tolist() == [0.0, 0.0, 0.0, 0.25, 1.0, 1.0, 1.0]
    with pytest.raises(InvalidInput, match=r"points must end in event_shape \(1, 5, 4\)"):
        images.quantized(points[..., :3])

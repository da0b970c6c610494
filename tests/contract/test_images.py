"""Reading images, refusing bad ones by name, and spreading grey values out and back."""

import gzip
import io
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy import stats

from energyppl.data.images import Images, images_from_array, read_images
from energyppl.errors import InvalidInput

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
BYTES[0, 0, :2] = 0, 255
COLOUR = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(6) % 3
HOLE = np.arange(120).reshape(6, 5, 4) == 45  # image 2


def idx(values: np.ndarray[Any, Any], code: int = 0x08, kind: str = ">u1") -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, code, values.ndim]) + sizes + values.astype(kind).tobytes()


def png(
    rows: list[bytes], width: int, *, depth: int = 8, colour: int = 0, extra: dict[bytes, bytes] | None = None
) -> bytes:
    """A PNG of a kind that matplotlib does not write."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = {b"IHDR": header, **(extra or {}), b"IDAT": pixels, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )


def save_png(path: Path, picture: np.ndarray[Any, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    matplotlib.image.imsave(path, picture, cmap="gray", vmin=0, vmax=255)
    return path


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


# --- Refusing files ---

SMALL = png([b"abcd", b"efgh"], 4)
FILES: dict[str, tuple[bytes, str]] = {
    "empty.idx": (b"", r"magic number.*got no byte"),
    "magic.idx": (b"\x01" + idx(BYTES)[1:], "magic number, such as 00000803 for images; got 01000803"),
    "type.idx": (idx(BYTES, code=0x0A), "got 00000a03"),
    "five.idx": (idx(BYTES[None, None]), "got 00000805"),
    "sizes.idx": (idx(BYTES)[:10], "give 3 sizes; it ends after 10 bytes"),
    "cut.idx": (idx(BYTES)[:-1], r"120 bytes for its sizes \(6, 5, 4\); got 119"),
    "long.idx": (idx(BYTES) + b"\0", "120 bytes .* got 121"),
    "huge.idx": (bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"\0" * 120, r"for its sizes \(4294967295, .*; got 120"),
    "none.idx": (idx(BYTES[:0]), "at least one pixel"),
    "labels.idx": (idx(LABELS), r"must be \(n, height, width\).*got shape \(6,\)"),
    "nan.idx": (idx(np.where(HOLE, np.nan, 0.5), 0x0D, ">f4"), "first in image 2"),
    "range.idx": (idx(BYTES / 1.0, 0x0E, ">f8"), "its values run from 0 to 255"),
    "cut.gz": (gzip.compress(idx(BYTES))[:-20], "can't be read as a file"),
    "plain.gz": (idx(BYTES), "can't be read as a file .*[Nn]ot a gzip"),
    "inner.gz": (gzip.compress(idx(BYTES)[:-5]), "120 bytes .* got 115"),
    "a.jpg": (b"\xff\xd8\xff\xe0JFIF", "magic number.*got ffd8ffe0: pass a .npy"),
    "empty.npy": (b"", "can't be read as an array"),
    "cut.npz": (b"PK\x03\x04 and no more", "can't be read as an archive"),
    "empty.png": (b"", "PNG's signature; got an empty file"),
    "jpeg.png": (b"\xff\xd8\xff\xe0JFIF    ", "PNG's signature; got ffd8ffe04a464946"),
    "cut.png": (SMALL[:-20], "IEND chunk; it is truncated"),
    "flipped.png": (SMALL.replace(b"IHDR\0\0\0\4", b"IHDR\0\0\0\5"), "damaged in its chunk b'IHDR'"),
    "short.png": (png([b"abcd"], 5), "can't be read as a PNG"),
    "alpha.png": (png([b"\x40\xff\x50\xfe"], 2, colour=4), "opaque; got transparent"),
    "key.png": (png([b"\x40\x50"], 2, extra={b"tRNS": b"\0\x40"}), "opaque; got transparent"),
    "moving.png": (
        png([b"\x40\x50"], 2, extra={b"acTL": b"\0\0\0\1\0\0\0\0"}),
        "one picture; got an animation",
    ),
    "deep.png": (png([b"\1\2\3\4\5\6"], 1, depth=16, colour=2), "8 bits a colour; got 16"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """A damaged PNG lies in a folder between two good ones."""
    data, message = FILES[name]
    (tmp_path / name).write_bytes(data)
    png_folder = name.endswith(".png")
    if png_folder:
        (tmp_path / "a.png").write_bytes(SMALL)
        (tmp_path / "z.png").write_bytes(SMALL)
    with pytest.raises(InvalidInput, match=f"(?s){re.escape(str(tmp_path / name))}.*") as caught:
        read_images(tmp_path if png_folder else tmp_path / name)
    assert re.search(message, str(caught.value))


def test_no_flipped_byte_changes_the_pixels(tmp_path: Path) -> None:
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, BYTES)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as members:
        members.writestr("x.npy", array.getvalue())
    files = {  # the archive's dates and modes are read by nobody
        "folder/a.png": (SMALL, 0.9),
        "a.gz": (gzip.compress(idx(BYTES)), 0.9),
        "a.npz": (archive.getvalue(), 0.6),
    }
    for path, (data, share) in ((tmp_path / name, file) for name, file in files.items()):
        path.parent.mkdir(exist_ok=True)
        where = path.parent if path.suffix == ".png" else path
        path.write_bytes(data)
        whole = read_images(where)
        refused = 0
        for i in range(len(data)):
            path.write_bytes(data[:i] + bytes([data[i] ^ 0x10]) + data[i + 1 :])
            try:
                assert read_images(where).x.equal(whole.x)
            except InvalidInput as problem:
                refused += str(path) in str(problem)
        assert refused > share * len(data)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    def refused(message: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(InvalidInput, match=message):
            read_images(tmp_path, *arguments, **options)

    refused("at least one PNG; it is empty")
    save_png(tmp_path / "a.png", COLOUR[0])
    refused("leave the name 'x' out", array="x")
    refused("leave both out", value_range=(0, 255))
    refused("leave both out", tmp_path / "labels.npy")
    odd = save_png(tmp_path / "b.png", COLOUR[0, :3])
    refused(f"got 5×4 colour in {re.escape(str(tmp_path / 'a.png'))} and 3×4 colour in {re.escape(str(odd))}")
    odd.write_bytes(png([b"abcd"] * 5, 4))
    refused("5×4 colour in .* and 5×4 grey in .*b.png")
    odd.rename(tmp_path / "notes.txt")
    refused("PNGs only.*got .*notes.txt")
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "cats").mkdir()
    refused("got .*a.png: move it")
    (tmp_path / "a.png").rename(tmp_path / "cats" / "a.png")
    (tmp_path / "dogs").mkdir()
    refused(".*dogs must hold at least one PNG; it is empty")
    (tmp_path / "dogs" / "puppies").mkdir()
    refused("got .*puppies")


def test_other_refusals(tmp_path: Path) -> None:
    path, labels = tmp_path / "t.npy", tmp_path / "l.idx"
    np.save(path, BYTES)
    labels.write_bytes(idx(LABELS[:5]))
    with pytest.raises(InvalidInput, match=r"l.idx must hold one label for each of the 6 images of .*t.npy; got .*5"):
        read_images(path, labels)
    with pytest.raises(InvalidInput, match=r"no file .*none.idx"):
        read_images(path, tmp_path / "none.idx")
    with pytest.raises(InvalidInput, match=r"no file .*absent"):
        read_images(tmp_path / "absent")
    with pytest.raises(InvalidInput, match="leave the name 'x' out"):
        read_images(path, array="x")
    np.savez(tmp_path / "two.npz", x=BYTES, y=LABELS, target=LABELS)
    with pytest.raises(InvalidInput, match="one array of labels, or be told which; its arrays: x, y, target"):
        read_images(tmp_path / "two.npz")


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_refused_unexecuted(tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "executed")
    np.save(tmp_path / "a.npy", np.array([bomb] * 20), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([bomb] * 20))
    np.savez(tmp_path / "b.npz", x=BYTES, y=np.array([bomb] * 6))
    (tmp_path / "b.npy").write_bytes(pickle.dumps(bomb))
    for path in tmp_path.glob("*.np[yz]"):
        with pytest.raises(InvalidInput, match=re.escape(str(path))):
            read_images(path)
    assert not bomb.path.exists()


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

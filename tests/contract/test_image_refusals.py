"""Damaged, foreign and unfit image files, refused by name."""

import gzip
import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from energyppl.data.images import read_images
from energyppl.errors import InvalidInput
from tests.support.image_files import BYTES, COLOUR, HOLE, LABELS, SMALL, idx, png, save_png

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

    refused("at least one PNG or JPEG; it is empty")
    save_png(tmp_path / "a.png", COLOUR[0])
    refused("leave the name 'x' out", array="x")
    refused("leave both out", value_range=(0, 255))
    refused("leave both out", tmp_path / "labels.npy")
    odd = save_png(tmp_path / "b.png", COLOUR[0, :3])
    refused(f"got 5×4 colour in {re.escape(str(tmp_path / 'a.png'))} and 3×4 colour in {re.escape(str(odd))}")
    odd.write_bytes(png([b"abcd"] * 5, 4))
    refused("5×4 colour in .* and 5×4 grey in .*b.png")
    odd.rename(tmp_path / "notes.txt")
    refused("PNGs and JPEGs only.*got .*notes.txt")
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "cats").mkdir()
    refused("got .*a.png: move it")
    (tmp_path / "a.png").rename(tmp_path / "cats" / "a.png")
    (tmp_path / "dogs").mkdir()
    refused(".*dogs must hold at least one PNG or JPEG; it is empty")
    (tmp_path / "dogs" / "puppies").mkdir()
    refused("got .*puppies")


def test_bad_jpegs_are_refused_by_name(tmp_path: Path) -> None:
    good = io.BytesIO()
    Image.fromarray(COLOUR[0]).save(good, "JPEG")
    wide, cmyk = io.BytesIO(), io.BytesIO()
    Image.new("L", (5000, 4000)).save(wide, "JPEG")
    Image.new("CMYK", (4, 5)).save(cmyk, "JPEG")
    bomb = good.getvalue().replace(b"\x11\x08\0\x05\0\x04", b"\x11\x08\xff\xff\xff\xff")
    assert bomb != good.getvalue()
    for name, data, message in (
        ("empty.jpg", b"", "can't be read as a JPEG"),
        ("cut.jpg", good.getvalue()[:-200], "can't be read as a JPEG"),
        ("png.jpeg", SMALL, "can't be read as a JPEG"),
        ("wide.JPG", wide.getvalue(), "at most 16,777,216 pixels; got 5000×4000"),
        ("bomb.jpg", bomb, "at most 16,777,216 pixels"),
        ("cmyk.jpg", cmyk.getvalue(), "three colours; got CMYK"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InvalidInput, match=re.escape(str(path))) as caught:
            read_images(tmp_path)
        assert message in str(caught.value), caught.value
        path.unlink()


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


def test_what_windows_hides_in_folders_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(SMALL)
    for name in ("Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0")
    assert len(read_images(tmp_path).x) == 1


def test_all_damaged_files_of_a_folder_are_named(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(SMALL[:-20] if name in "bd" else SMALL)
    with pytest.raises(InvalidInput, match=r"b\.png .* it is truncated.* \(1 more can't be taken: .*d\.png\)"):
        read_images(tmp_path)

"""Images from files and arrays, and their dequantization for continuous densities."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from energyppl._checks import as_path, check_count, check_event, checked, numpy_of, shape_text, without_mask
from energyppl.data.arrays import Array, read_npy
from energyppl.data.image_files import read_folder, read_idx, read_npz
from energyppl.errors import InvalidInput

__all__ = ["Images", "images_from_array", "read_images"]

Range = tuple[float, float]

_INFERRED = 256  # most grey values that are recognized in numbers that come without them
_MAX_LEVELS = 65536
_BLOCK = 1024  # images spread out at a time, in float64


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size on a lattice of grey values.

    Attributes:
        x: ``(n, channels, height, width)``, float32, multiples of ``1 / (levels - 1)`` in [0, 1]; 1 or 3 channels.
        labels: ``(n,)``, int64 from 0, or None.
        levels: how many grey values there are: 256 for bytes.
        source: where they came from, in words.
        classes: the labels' names, or none.

    Example:
        >>> images = ep.data.images_from_array(torch.randint(256, (5, 28, 28)), [0, 1, 2, 3, 4], value_range=(0, 255))
        >>> images.x.shape, images.labels.tolist()
        (torch.Size([5, 1, 28, 28]), [0, 1, 2, 3, 4])
    """

    x: Tensor
    labels: Tensor | None
    levels: int
    source: str
    classes: tuple[str, ...] = ()

    def dequantized(self, generator: torch.Generator | None = None) -> Tensor:
        """Dequantize: spread grey value k of ``x`` evenly over ``(k / levels, (k + 1) / levels)``, in ``x``'s shape.

        Draw it once, with a generator of a fixed seed, so that a continued run sees the same data.  A density of these
        points bounds the probability of the grey values from below (Theis et al. 2016).

        Args:
            generator: source of the noise, on ``x``'s device; torch's global one if None.
        """
        blocks = []
        for block in self.x.split(_BLOCK):
            grey = (block * (self.levels - 1)).round()
            noise = torch.rand(block.shape, dtype=torch.float64, device=block.device, generator=generator)
            spread = ((grey + noise) / self.levels).to(block.dtype)
            # Rounding to float32 may reach the next grey value, or 1, where a logit is infinite.
            edges = (grey / self.levels, (grey + 1) / self.levels)
            inner = [torch.nextafter(a, b) for a, b in (edges, edges[::-1])]
            blocks.append(spread.clamp(*inner))
        return torch.cat(blocks)

    def quantized(self, points: Tensor) -> Tensor:
        """Round ``points``, ``(*batch, channels, height, width)``, to the grey values in [0, 1] whose gaps they lie in.

        It undoes :meth:`dequantized`, leaves ``x`` of up to 4,096 levels as it is, and puts points outside [0, 1] on
        the nearest end.

        Raises:
            InvalidInput: if ``points`` are not floating point or of another size.
        """
        check_event("points", points, self.x.shape[1:])
        grey = (points.double() * self.levels).floor().clamp(0, self.levels - 1)
        return (grey / (self.levels - 1)).to(points.dtype)


def read_images(
    path: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    *,
    array: str | None = None,
    value_range: Range | None = None,
    levels: int | None = None,
    size: int | tuple[int, int] | None = None,
) -> Images:
    """Read images from ``.npy``, ``.npz``, an IDX file (MNIST's format, gzipped or not) or a folder of PNGs and JPEGs.

    Nothing is ever unpickled or left out.  Files of a folder come in the order of their names; its sub-folders, if it
    has any, are the classes.

    Args:
        path: of the file or folder; arrays as in :func:`images_from_array`.
        labels: an ``.npy`` or IDX file; for an archive the name of an array in it, found by itself if that is ``y``,
            ``labels`` or ``target``.
        array: which array of an archive that holds several.
        value_range: the numbers of black and full brightness, as in :func:`images_from_array`.
        levels: how many grey values there are, as in :func:`images_from_array`.
        size: height and width, or both in one, to average the images down to, in their own proportions; the means are
            rounded to grey values.

    Raises:
        InvalidInput: if there is no such file, it is of another kind, damaged or pickled, its images are not finite,
            lie outside ``value_range`` or differ in size, there are not as many labels, or ``size`` does not fit.

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "digits.npy"
        >>> np.save(file, np.random.default_rng(0).integers(256, size=(5, 8, 8)).astype(np.uint8))
        >>> ep.data.read_images(file).x.shape
        torch.Size([5, 1, 8, 8])
    """
    path = as_path(path)
    kind = "folder" if path.is_dir() else path.suffix.lower()
    if not path.exists():
        raise InvalidInput(f"there is no file {path}: pass a .npy, .npz or IDX file, or a folder of pictures")
    if array is not None and kind != ".npz":
        raise InvalidInput(f"only an .npz archive has named arrays; {path} is none: leave the name {array!r} out")
    if kind == "folder":
        if labels is not None or value_range is not None:
            raise InvalidInput(f"{path} is a folder of pictures, which bring labels and range: leave both out")
        folder = read_folder(path)
        known = folder.levels if levels is None else levels
        images = _assembled(folder.images, folder.labels, (0.0, 1.0), known, folder.classes, str(path))
    elif kind == ".npz":
        pixels, found, name = read_npz(path, array, None if labels is None else os.fspath(labels))
        images = images_from_array(
            pixels, found, value_range=value_range, levels=levels, source=f"{path}, array {name}"
        )
    else:
        pixels = read_npy(path) if kind == ".npy" else read_idx(path)
        found = None if labels is None else _read_labels(Path(labels), len(pixels) if pixels.ndim else 0, path)
        images = images_from_array(pixels, found, value_range=value_range, levels=levels, source=str(path))
    return images if size is None else _smaller(images, size)


@checked
def images_from_array(
    array: Array | Tensor,
    labels: Array | Tensor | Sequence[int] | None = None,
    *,
    value_range: Range | None = None,
    levels: int | None = None,
    classes: Sequence[str] = (),
    source: str = "an array",
) -> Images:
    """Make checked images from an array ``(n, h, w)``, ``(n, h, w, channels)`` or ``(n, channels, h, w)``.

    Args:
        array: of numpy or torch, with 1 or 3 channels, or 4 if the last one, alpha, is opaque everywhere.
        labels: whole numbers from 0, ``(n,)``.
        value_range: the numbers of black and full brightness; (0, 255) for bytes and (0, 1) for floats if None.
        levels: how many grey values there are, to which the images are rounded.  If None, one for each whole number
            of the range for integers, and the fewest evenly spaced ones that all floats lie on, up to 256.
        classes: the labels' names.
        source: where the array came from, in words.

    Raises:
        InvalidInput: if it is not numeric, not finite, of another shape, transparent or outside ``value_range``, if its
            range, channels or grey values can't be told from it, or if ``labels`` don't fit.

    Example:
        >>> import numpy as np
        >>> images = ep.data.images_from_array(np.zeros((20, 8, 8), dtype=np.uint8) + np.arange(8, dtype=np.uint8))
        >>> images.x.shape, images.levels
        (torch.Size([20, 1, 8, 8]), 256)
    """
    raw = _channels_first(_as_array(array), source)
    return _assembled(raw, labels, value_range, levels, tuple(classes), source)


def _assembled(
    raw: Array,
    labels: Array | Tensor | Sequence[int] | None,
    value_range: Range | None,
    levels: int | None,
    classes: tuple[str, ...],
    source: str,
) -> Images:
    """Check numbers and make images of them, ``(n, channels, height, width)``."""
    bad = ~np.isfinite(raw).all((1, 2, 3))
    if bad.any():
        raise InvalidInput(
            f"{source} must be finite; got NaN or infinity in {bad.sum()} image(s), first in image {bad.argmax()}: "
            "drop those images"
        )
    low, high = _checked_range(raw, value_range, source)
    if raw.shape[1] == 4:
        if (raw[:, 3] != high).any():
            raise InvalidInput(f"{source} must be opaque; got an alpha below {high:g}: put it on a background first")
        raw = raw[:, :3]
    whole = raw.dtype.kind in "biu" and float(low).is_integer() and float(high).is_integer()
    scaled = raw.astype(np.result_type(raw, np.float32))
    scaled -= low
    scaled /= high - low
    if levels is not None:
        check_count("levels", levels, at_least=2)
    else:
        levels = round(high - low) + 1 if whole else _inferred_levels(scaled, source)
    if levels > _MAX_LEVELS:
        raise InvalidInput(f"{source} must have at most {_MAX_LEVELS} grey values; got {levels}: pass fewer levels=")
    x = _rounded(torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float32)), levels)
    found = None if labels is None else _checked_labels(_as_array(labels), len(x), len(classes), source)
    return Images(x, found, levels, source, classes)


def _as_array(values: Array | Tensor | Sequence[int]) -> Array:
    if isinstance(values, Tensor):
        return numpy_of("images", values)
    return np.asarray(without_mask(values))


def _channels_first(raw: Array, source: str) -> Array:
    """Return numbers in a known layout, ``(n, channels, height, width)``."""
    if raw.dtype.kind not in "biuf":
        raise InvalidInput(f"{source} must hold real numbers; got dtype {raw.dtype}: convert them first")
    if raw.ndim not in (3, 4):
        raise InvalidInput(
            f"{source} must be (n, height, width), (n, height, width, channels) or (n, channels, height, width); "
            f"got shape {shape_text(raw.shape)}: reshape it"
        )
    if not raw.size:
        raise InvalidInput(f"{source} must hold at least one pixel; got shape {shape_text(raw.shape)}: pass images")
    return raw[:, None] if raw.ndim == 3 else np.moveaxis(raw, _channel_axis(raw.shape, source), 1)


def _channel_axis(shape: tuple[int, ...], source: str) -> int:
    """Choose the axis, 1 or 3, with as many entries as images have channels; 4 counts where the other can't be it."""
    axes = [axis for axis in (1, 3) if shape[axis] in (1, 3)] or [axis for axis in (1, 3) if shape[axis] == 4]
    if len(axes) == 1:
        return axes[0]
    what = "either the second or the last axis might be the channels" if axes else "no axis has 1, 3 or 4 channels"
    raise InvalidInput(
        f"{source} must have 1, 3 or 4 channels in its second or its last axis; {what} in {shape_text(shape)}: "
        "pass (n, height, width) for grey images, or transpose or pad it"
    )


def _checked_range(raw: Array, value_range: Range | None, source: str) -> Range:
    least, most = float(raw.min()), float(raw.max())
    if value_range is None:
        if raw.dtype == np.uint8 and most == 1:
            raise InvalidInput(
                f"{source} holds bytes of 0 and 1 only: pass value_range=(0, 1) if 1 is white, (0, 255) if it is black"
            )
        if raw.dtype.kind in "iu" and raw.dtype != np.uint8:
            raise InvalidInput(
                f"{source} must come with a value_range, being {raw.dtype}; its values run from {least:g} to {most:g}: "
                "pass the numbers of black and full brightness"
            )
        value_range = (0.0, 255.0) if raw.dtype == np.uint8 else (0.0, 1.0)
    low, high = value_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise InvalidInput(f"value_range must be two finite numbers in order; got {value_range}")
    if least < low or most > high:
        raise InvalidInput(
            f"{source} must lie in its value_range ({low:g}, {high:g}); its values run from {least:.9g} to {most:.9g}: "
            "pass the numbers of black and full brightness as value_range, or clip it"
        )
    return low, high


def _inferred_levels(scaled: Array, source: str) -> int:
    """Return the fewest evenly spaced values from 0 to 1 that include all of ``scaled``."""
    values = np.unique(np.round(scaled, 6))
    if len(values) <= _INFERRED:
        for levels in range(2, _INFERRED + 1):
            steps = values * (levels - 1)
            if (np.abs(steps - np.round(steps)) < 1e-3).all():
                return levels
    raise InvalidInput(
        f"{source} must lie on at most {_INFERRED} evenly spaced grey values; got {len(values)} distinct ones that "
        "don't: pass levels=256 to round them to 256"
    )


def _rounded(x: Tensor, levels: int) -> Tensor:
    return (x * (levels - 1)).round() / (levels - 1)


def _checked_labels(raw: Array, count: int, classes: int, source: str) -> Tensor:
    if raw.shape != (count,):
        raise InvalidInput(
            f"the labels of {source} must have shape ({count},), one for each image; got {shape_text(raw.shape)}: "
            "pass the labels of these images"
        )
    if raw.dtype.kind not in "biu" or (raw < 0).any():
        raise InvalidInput(
            f"the labels of {source} must be whole numbers from 0; got dtype {raw.dtype}"
            f"{f' and {raw.min()}' if raw.dtype.kind == 'i' else ''}: number the classes"
        )
    if classes and raw.max() >= classes:
        raise InvalidInput(
            f"the labels of {source} must be below {classes}, the number of classes; got {raw.max()}: name them all"
        )
    return torch.from_numpy(raw.astype(np.int64))


def _read_labels(path: Path, count: int, images: Path) -> Array:
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}: pass an .npy or IDX file of labels")
    found = read_npy(path) if path.suffix.lower() == ".npy" else read_idx(path)
    if found.shape != (count,):
        raise InvalidInput(
            f"{path} must hold one label for each of the {count} images of {images}; got shape "
            f"{shape_text(found.shape)}: pass the labels of these images"
        )
    return found


def _smaller(images: Images, size: int | tuple[int, int]) -> Images:
    height, width = size if isinstance(size, Sequence) else (size, size)
    check_count("height", height)
    check_count("width", width)
    before = images.x.shape[2:]
    if height > before[0] or height * before[1] != width * before[0]:
        raise InvalidInput(
            f"size must be no larger than the images, in their proportions; got {height}×{width} for "
            f"{before[0]}×{before[1]} in {images.source}: crop them first, or choose another size"
        )
    x = torch.nn.functional.adaptive_avg_pool2d(images.x, (height, width))
    return Images(_rounded(x, images.levels), images.labels, images.levels, images.source, images.classes)

"""Metrics of image samples: distances between features, balance of labels, nearest training images.

No network comes with them: the caller brings the features, from a classifier of the same data or from anywhere else.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from energyppl._checks import check_count, check_data, checked, shape_text
from energyppl.errors import InvalidInput

__all__ = [
    "KernelDistance",
    "LabelBalance",
    "Memorization",
    "Neighbours",
    "frechet_distance",
    "kernel_distance",
    "label_balance",
    "memorized",
    "nearest_neighbours",
]

_ROWS = 1024  # of a kernel matrix at a time


class KernelDistance(NamedTuple):
    """An estimate of the squared kernel distance, with its standard error.

    Example:
        >>> found = ep.metrics.kernel_distance(torch.randn(200, 3), 2.0 + torch.randn(200, 3))
        >>> found.value > 5.0 * found.standard_error
        True
    """

    value: float  # the squared distance; below 0 by chance where the two hardly differ
    standard_error: float


class LabelBalance(NamedTuple):
    """Shares of classes, and their differences from the expected shares.

    Example:
        >>> found = ep.metrics.label_balance(torch.tensor([0] * 90 + [1] * 10), classes=2)
        >>> found.shares.tolist(), found.p_value < 0.01
        ([0.9, 0.1], True)
    """

    shares: Tensor  # (classes,), float64
    standard_errors: Tensor  # (classes,), of the shares
    z_scores: Tensor  # (classes,), differences from the expected shares in their own standard errors
    p_value: float  # Pearson's χ² test of all shares at once


class Neighbours(NamedTuple):
    """The nearest training points, the nearest first.

    Example:
        >>> training = torch.arange(10.0)[:, None]
        >>> found = ep.metrics.nearest_neighbours(torch.tensor([[3.2], [7.9]]), training)
        >>> found.indices[:, 0].tolist(), found.distance.shape
        ([3, 8], torch.Size([2, 1]))
    """

    indices: Tensor  # (n, k), rows of the training data
    distance: Tensor  # (n, k), Euclidean, float64


class Memorization(NamedTuple):
    """Distances to the nearest training point, in the data's units.

    Example:
        >>> training, held_out = torch.randn(2, 500, 4)
        >>> found = ep.metrics.memorized(training[:100], training, held_out)  # copies
        >>> found.sample_median, found.held_out_median > 0.1
        (0.0, True)
    """

    sample_median: float
    held_out_median: float
    share: float  # of the samples no farther than the nearest 1 % of the held-out data


@checked
def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Compute the squared Fréchet distance of two Gaussians with the samples' moments (Heusel et al. 2017, equation 6).

    ``|μ − μ'|² + tr(Σ + Σ' − 2 (ΣΣ')^½)``.  It is FID only on the features of the Inception network that the paper
    used; on other features its size means nothing next to published numbers.  It is biased upwards by an amount that
    falls as 1/n: compare only samples of equal size.

    Args:
        a: features ``(n, d)``, n at least 2; compared in float64.
        b: features ``(m, d)``.

    Raises:
        InvalidInput: for fewer than two rows, non-finite rows, or different d.

    Example:
        >>> x = torch.randn(500, 3)
        >>> ep.metrics.frechet_distance(x, x) < 1e-6 < ep.metrics.frechet_distance(x, x + 1.0)
        True
    """
    a, b = _pair(a, b, at_least=2)
    means = a.mean(0), b.mean(0)
    # With Σ = RᵀR, and R' likewise, the trace of (ΣΣ')^½ is the sum of R R'ᵀ's singular values.  Roots of eigenvalues
    # would turn rounding at zero, 1e-16, into 1e-8 for each direction that too few rows leave without variance.
    roots = [_triangle((x - mean) / (len(x) - 1) ** 0.5) for x, mean in zip((a, b), means, strict=True)]
    overlap = torch.linalg.svdvals(roots[0] @ roots[1].mT).sum()
    spread = sum(root.square().sum() for root in roots)
    return max(0.0, float((means[0] - means[1]).square().sum() + spread - 2.0 * overlap))


@checked
def kernel_distance(a: Tensor, b: Tensor, *, degree: int = 3) -> KernelDistance:
    """Estimate the squared kernel distance of two samples by KID's unbiased formula (Bińkowski et al. 2018, section 4).

    The kernel is ``(x·y / d + 1)^degree``.  It is KID only on the features of the Inception network.  The standard
    error is that of the whole two-sample U-statistic and not of subsets: both terms of Hoeffding's decomposition are
    estimated, so that it holds where the distributions are equal, where the first one vanishes, and where they are not.
    It errs upwards, by up to a quarter, where they are equal and few directions carry the kernel.

    Args:
        a: features ``(n, d)``, independent rows, n at least 4; compared in float64.
        b: features ``(m, d)``, m at least 4.
        degree: of the kernel.

    Returns:
        The estimate and its standard error.  Time grows with ``(n + m)²``, memory with n + m.

    Raises:
        InvalidInput: for fewer than four rows, non-finite rows, different d, or a degree below 1.

    Example:
        >>> found = ep.metrics.kernel_distance(torch.randn(200, 3), 2.0 + torch.randn(200, 3))
        >>> found.value > 5.0 * found.standard_error
        True
    """
    a, b = _pair(a, b, at_least=4)
    check_count("degree", degree)
    n, m = len(a), len(b)
    own_a, second_a = _within(a, degree)
    own_b, second_b = _within(b, degree)
    cross_a, cross_b, second_cross = _across(a, b, degree)
    value = own_a.mean() + own_b.mean() - 2.0 * cross_a.mean()
    second = 2.0 * second_a / (n * (n - 1)) + 2.0 * second_b / (m * (m - 1)) + 4.0 * second_cross / (n * m)
    # The jackknife counts the second-order terms twice (Efron & Stein 1981).
    row_a, row_b = own_a * ((n - 1) / (n - 2)) - cross_a, own_b * ((m - 1) / (m - 2)) - cross_b
    jackknife = 4.0 * row_a.var() / n + 4.0 * row_b.var() / m
    variance = (jackknife - 2.0 * second).clamp(min=0.0) + second
    return KernelDistance(float(value), float(variance.sqrt()))


def label_balance(labels: Tensor, classes: int, expected: Tensor | None = None) -> LabelBalance:
    """Test whether classes are drawn as often as they should be, by Pearson's χ².

    Args:
        labels: of independent samples, ``(n,)``, integers from 0; from a classifier, whose errors count as imbalance.
        classes: how many there are, at least 2.
        expected: shares ``(classes,)`` that sum to 1; equal ones if None.

    Returns:
        Shares with their standard errors, z-scores, and the p-value of all of them at once, which needs about five
        expected samples in each class.

    Raises:
        InvalidInput: if labels are no integers below ``classes``, or expected shares no positive ones that sum to 1.

    Example:
        >>> ep.metrics.label_balance(torch.tensor([0] * 90 + [1] * 10), classes=2).p_value < 0.01
        True
    """
    check_count("classes", classes, at_least=2)
    if not isinstance(labels, Tensor):
        raise InvalidInput(
            f"labels must be a tensor of integers; got {type(labels).__name__}: wrap them in torch.as_tensor"
        )
    if labels.dim() != 1 or not len(labels) or labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise InvalidInput(
            f"labels must be integers of shape (n,); got {labels.dtype} of shape {shape_text(labels.shape)}: "
            "pass one class for each sample"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise InvalidInput(
            f"labels must lie from 0 to {classes - 1}; got {int(labels.min())} to {int(labels.max())}: "
            "number the classes from 0"
        )
    if expected is None:
        expected = torch.full((classes,), 1.0 / classes, dtype=torch.float64)
    ideal = torch.as_tensor(expected).detach().cpu().double()
    if ideal.shape != (classes,) or not bool((ideal > 0).all()) or abs(float(ideal.sum()) - 1.0) > 1e-4:
        raise InvalidInput(
            f"expected must be {classes} positive shares that sum to 1; got {ideal.tolist()}: divide by their sum"
        )
    ideal = ideal / ideal.sum()
    count = len(labels)
    counts = torch.bincount(labels.detach().cpu().long(), minlength=classes).double()
    shares = counts / count
    errors = (shares * (1.0 - shares) / count).sqrt()
    z_scores = (shares - ideal) / (ideal * (1.0 - ideal) / count).sqrt()
    from scipy import stats  # takes half a second to import

    p_value = float(stats.chisquare(counts.numpy(), (ideal * count).numpy()).pvalue)
    return LabelBalance(shares, errors, z_scores, p_value)


@checked
def nearest_neighbours(samples: Tensor, training: Tensor, k: int = 1, batch: int = 1024) -> Neighbours:
    """Find the ``k`` nearest training points of each sample in Euclidean distance, in float64.

    Distances are exact to the last digits.  Which points are the nearest is told by squares about the training data's
    mean: two are told apart if their squared distances differ by more than about 1e-15 of the largest square.

    Args:
        samples: ``(n, *event)``.
        training: ``(m, *event)``, on the same device, m at least k.
        k: neighbours.
        batch: rows of each that are compared at a time; memory grows with ``batch²`` and ``batch`` events.

    Raises:
        InvalidInput: for different events, non-finite rows, or fewer training points than ``k``.

    Example:
        >>> training = torch.tensor([[0.0], [1.0], [2.0]])
        >>> ep.metrics.nearest_neighbours(torch.tensor([[1.9]]), training).indices
        tensor([[2]])
    """
    check_count("k", k)
    check_count("batch", batch)
    _same_event("samples", samples, "training", training)
    check_data("samples", samples, samples.shape[1:])
    check_data("training", training, training.shape[1:], at_least=k)
    samples, training = samples.detach().flatten(1), training.detach().flatten(1)
    centre = sum(rows.double().sum(0) for rows in training.split(batch)) / len(training)
    found = [_nearest(block.double(), training, centre, k, batch) for block in samples.split(batch)]
    return Neighbours(torch.cat([index for index, _ in found]), torch.cat([distance for _, distance in found]))


@checked
def memorized(samples: Tensor, training: Tensor, held_out: Tensor) -> Memorization:
    """Test whether samples lie nearer to the training data than fresh data do (Meehan et al. 2020).

    The share that is returned is about 0.01 if nothing is memorized, with a standard error of about
    ``(0.0099 (1/n + 1/h))^½``, and near 1 if samples repeat the training data.  Samples that are worse than the data,
    blurred or noisy, lie elsewhere and may shift it either way: look at both medians too.

    Args:
        samples: ``(n, *event)``.
        training: ``(m, *event)``, what the model was trained on.
        held_out: ``(h, *event)`` from the same source, never trained on; h at least 100.

    Raises:
        InvalidInput: for different events, non-finite rows, or fewer than 100 held-out points.

    Example:
        >>> training, held_out = torch.randn(500, 2), torch.randn(500, 2)
        >>> ep.metrics.memorized(training[:200], training, held_out).share > 0.9  # copies
        True
    """
    _same_event("held_out", held_out, "training", training)
    check_data("held_out", held_out, held_out.shape[1:], at_least=100)
    ours = nearest_neighbours(samples, training).distance[:, 0]
    fresh = nearest_neighbours(held_out, training).distance[:, 0].cpu().numpy()
    # Of all definitions this one lets a fresh point lie below it in 1 % of cases for any number of points.
    near = float(np.quantile(fresh, 0.01, method="weibull"))
    # "No farther", since both are zero for a copy where the held-out data themselves repeat training points.
    return Memorization(float(ours.median()), float(np.median(fresh)), float((ours <= near).double().mean()))


def _same_event(name: str, x: Tensor, other: str, y: Tensor) -> None:
    if x.dim() < 2 or x.shape[1:] != y.shape[1:]:
        raise InvalidInput(
            f"{name} and {other} must hold points of one shape, (n, *event); got {shape_text(x.shape)} and "
            f"{shape_text(y.shape)}: pass both as the model takes them"
        )


def _pair(a: Tensor, b: Tensor, *, at_least: int) -> tuple[Tensor, Tensor]:
    """Check two samples of features, ``(n, d)`` and ``(m, d)``, and return them in float64."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise InvalidInput(
            f"a and b must be features (n, d) and (m, d); got {shape_text(a.shape)} and {shape_text(b.shape)}: "
            "flatten them, and take both from one network"
        )
    check_data("a", a, a.shape[1:], at_least=at_least)
    check_data("b", b, b.shape[1:], at_least=at_least)
    return a.detach().double(), b.detach().double().to(a.device)


def _triangle(x: Tensor) -> Tensor:
    """Return R with ``RᵀR = xᵀx``, ``(min(n, d), d)``."""
    triangle: Tensor = torch.linalg.qr(x, mode="r").R
    return triangle


def _kernel(x: Tensor, y: Tensor, degree: int) -> Iterator[tuple[int, Tensor]]:
    """Return the kernel matrix of ``x`` and ``y`` in blocks of rows, each with the number of its first row."""
    for start in range(0, len(x), _ROWS):
        yield start, (x[start : start + _ROWS] @ y.mT / x.shape[1] + 1.0) ** degree


def _within(x: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """Return row means of a sample's kernel matrix without its diagonal, and the mean square of its second-order part.

    The latter is unbiased, by U-centring (Székely & Rizzo 2014).
    """
    n = len(x)
    rows = torch.cat([block.sum(1) - block.diagonal(start) for start, block in _kernel(x, x, degree)])
    shift, total = rows / (n - 2), rows.sum() / ((n - 1) * (n - 2))
    squares = rows.new_zeros(())
    for start, block in _kernel(x, x, degree):
        centred = block - shift[start : start + _ROWS, None] - shift + total
        squares += centred.square().sum() - centred.diagonal(start).square().sum()
    return rows / (n - 1), squares / (n * (n - 3))


def _across(x: Tensor, y: Tensor, degree: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return row and column means of the kernel matrix of two samples, and the mean square of its second-order part."""
    rows = torch.cat([block.mean(1) for _, block in _kernel(x, y, degree)])
    columns = torch.cat([block.mean(1) for _, block in _kernel(y, x, degree)])
    squares = rows.new_zeros(())
    for start, block in _kernel(x, y, degree):
        centred = block - rows[start : start + _ROWS, None] - columns + rows.mean()
        squares += centred.square().sum()
    return rows, columns, squares / ((len(x) - 1) * (len(y) - 1))


def _nearest(block: Tensor, training: Tensor, centre: Tensor, k: int, batch: int) -> tuple[Tensor, Tensor]:
    from_centre = block - centre  # far from the origin the squares below would cancel
    squares = block.new_empty(len(block), 0)
    index = torch.empty(len(block), 0, dtype=torch.int64, device=block.device)
    for start in range(0, len(training), batch):
        rows = training[start : start + batch].double() - centre
        # |x − y|² but for |x|², which is the same for all: one product, many times faster than differences.
        squares = torch.cat([squares, rows.square().sum(1) - 2.0 * from_centre @ rows.mT], 1)
        own = torch.arange(start, start + len(rows), device=block.device)
        index = torch.cat([index, own.expand(len(block), -1)], 1)
        squares, kept = squares.topk(min(k, squares.shape[1]), 1, largest=False)
        index = index.gather(1, kept)
    # Differences once more for the few that are left: of the product no digit is right where a copy has distance 0.
    exact = torch.stack([(block - training[column]).norm(dim=1) for column in index.mT], 1)
    distance, order = exact.sort(dim=1, stable=True)
    return index.gather(1, order), distance

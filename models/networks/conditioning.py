"""Conditioning on levels and classes: rows of tables, or projections of a sinusoidal embedding."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from energyppl._checks import broadcast_shapes, check_count, check_event, check_whole, shape_text
from energyppl.errors import InvalidInput

# --- Batches ---


def one_batch(x: Tensor, event_shape: torch.Size) -> tuple[Tensor, torch.Size]:
    """Return points ``(*batch, *event)`` as ``(n, *event)``, and their batch shape."""
    batch = batch_shape(x, event_shape)
    return x.reshape(math.prod(batch), *event_shape), batch


def batch_shape(x: Tensor, event_shape: torch.Size) -> torch.Size:
    """Return the batch shape of points, which must end in ``event_shape``."""
    check_event("x", x, event_shape)
    return x.shape[: x.dim() - len(event_shape)]


def one_batch_of_rows(rows: Tensor, batch: torch.Size) -> Tensor:
    """Lay out rows of levels, ``(*levels, size)``, as ``(n, size)``, or as ``(size,)`` if one serves all points."""
    return rows.expand(*batch, rows.shape[-1]).reshape(math.prod(batch), rows.shape[-1]) if rows.dim() > 1 else rows


# --- Tables ---


def level_rows(table: Tensor, level: Tensor, batch: torch.Size) -> Tensor:
    """Look up rows of a table ``(levels, size)`` for whole levels that broadcast to ``batch``: ``(*level, size)``.

    Raises:
        InvalidInput: for levels that are not whole numbers or don't broadcast.
        IndexError: for a level that the table lacks.
    """
    return nn.functional.embedding(_whole("level", level, batch), table)


def class_rows(table: Tensor | None, label: int | Tensor | None, batch: torch.Size) -> Tensor | None:
    """Look up rows of a table ``(classes + 1, size)`` for labels that broadcast to ``batch``: ``(*label, size)``.

    Args:
        table: None in a network without classes.
        label: whole numbers; the last row, "no class" (∅), if None.
        batch: shape of the points' batch.

    Raises:
        InvalidInput: for a label where there are no classes, or that is out of range (on a GPU torch itself fails),
            is not whole or does not broadcast.
    """
    if table is None:
        if label is not None:
            raise InvalidInput(
                "this network has no classes, but got a label: build it with classes=…, or pass no label"
            )
        return None
    if label is None:
        return table[-1]
    top = len(table) - 1
    label = _whole("label", torch.tensor(label, device=table.device) if isinstance(label, int) else label, batch)
    try:  # torch's own check costs nothing, where reading the labels would keep the network from being traced
        return nn.functional.embedding(label, table)
    except IndexError as error:
        raise InvalidInput(f"label must lie between 0 and {top}; got {label.tolist()}: {top} means no class") from error


def _whole(name: str, value: Tensor, batch: torch.Size) -> Tensor:
    if not isinstance(value, Tensor):
        raise InvalidInput(f"{name} must be a tensor of whole numbers; got {type(value).__name__}: use torch.tensor")
    check_whole(name, value)
    try:
        fits = broadcast_shapes(value.shape, batch) == batch
    except RuntimeError:
        fits = False
    if not fits:
        raise InvalidInput(
            f"{name} must broadcast to the batch {shape_text(batch)}; got {shape_text(value.shape)}: "
            "pass one number, or one for each point"
        )
    return value.long()


# --- Conditioning modules: (level, label, batch) -> one vector for each part of a network ---

Conditioning = Callable[[Sequence[int], int], nn.Module]
"""Builds a conditioning module for a network's blocks, given the sizes of what each takes, and for its head (0: none).

The module maps (level, label, batch) to a list of tensors, ``(n, size)`` or ``(size,)``, the head's last.
"""


class ConditionTable(nn.Module):
    """A row for each level plus a row for each class, both zero at first: level and class make no difference yet.

    Args:
        sizes: what each block takes.
        head: what the head takes; 0 for none.
        levels: number of levels.
        classes: number of classes; one more row means "no class".
    """

    def __init__(self, sizes: Sequence[int], head: int = 0, *, levels: int, classes: int = 0) -> None:
        super().__init__()
        check_count("levels", levels)
        check_count("classes", classes, at_least=0)
        self.sizes = (*sizes, head) if head else tuple(sizes)
        self.level_table = nn.Parameter(torch.zeros(levels, sum(self.sizes)))
        self.class_table = nn.Parameter(torch.zeros(classes + 1, sum(self.sizes))) if classes else None

    def forward(self, level: Tensor, label: int | Tensor | None, batch: torch.Size) -> list[Tensor]:
        """Return the modulations of every layer, one tensor a layer, for points of batch shape ``batch``."""
        rows = level_rows(self.level_table, level, batch)
        of_class = class_rows(self.class_table, label, batch)
        rows = rows if of_class is None else rows + of_class
        return list(one_batch_of_rows(rows, batch).split(self.sizes, -1))


class SinusoidalConditioning(nn.Module):
    """A sinusoidal embedding of each level's position, two dense layers, and one projection for each block (DRL, CDRL).

    A class adds a row to the embedding.  The sinusoids of all levels are worked out once and looked up.

    Args:
        sizes: what each block takes.
        head: what the head takes; 0 for none.
        positions: where each level lies, ``(levels,)``, at a scale of 1 to 1000.
        width: of the sinusoidal embedding, even; the dense layers have four times as many units.
        classes: number of classes; one more row means "no class".
        activation: between the dense layers, and before the projections.
        activate: apply it after the blocks' projections too, as CDRL does.
        head_bias: whether the head's projection has a bias; in CDRL it has none.
        normalize: what wraps every dense layer but the head's, such as a spectral norm.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        head: int = 0,
        *,
        positions: Tensor,
        width: int,
        classes: int = 0,
        activation: Callable[[Tensor], Tensor] = nn.functional.silu,
        activate: bool = False,
        head_bias: bool = True,
        normalize: Callable[[nn.Linear], nn.Linear] | None = None,
    ) -> None:
        super().__init__()
        check_count("classes", classes, at_least=0)
        if width < 2 or width % 2:
            raise InvalidInput(f"width must be even, half sines and half cosines; got {width}")
        wrap = (lambda layer: layer) if normalize is None else normalize
        self.activation = activation
        self.activate = activate
        rate = torch.logspace(0, -4, width // 2, dtype=torch.float64)
        phase = positions.double()[:, None] * rate
        self.register_buffer("sinusoids", torch.cat([phase.sin(), phase.cos()], -1).float())
        self.dense = nn.ModuleList([wrap(nn.Linear(width, 4 * width)), wrap(nn.Linear(4 * width, 4 * width))])
        self.projections = nn.ModuleList(wrap(nn.Linear(4 * width, size)) for size in sizes)
        self.head = nn.Linear(4 * width, head, bias=head_bias) if head else None
        self.class_table = nn.Parameter(torch.zeros(classes + 1, 4 * width)) if classes else None

    sinusoids: Tensor

    def forward(self, level: Tensor, label: int | Tensor | None, batch: torch.Size) -> list[Tensor]:
        """Return the modulations of every layer, one tensor a layer, for points of batch shape ``batch``."""
        first, second = self.dense
        embedding = second(self.activation(first(level_rows(self.sinusoids, level, batch))))
        of_class = class_rows(self.class_table, label, batch)
        embedding = embedding if of_class is None else embedding + of_class
        active = self.activation(one_batch_of_rows(embedding, batch))
        pieces = [project(active) for project in self.projections]
        if self.activate:
            pieces = [self.activation(piece) for piece in pieces]
        return pieces if self.head is None else [*pieces, self.head(active)]


class LogSNRConditioning(nn.Module):
    """A small perceptron from a log-SNR to rows of modulations, zero at first: a continuous noise level.

    Args:
        size: entries of a row.
        hidden: width of the perceptron.
    """

    _SCALE = 8.0  # log-SNRs of the usual schedules lie within about ± 10
    _FREQUENCIES = (0.25, 0.5, 1.0)

    def __init__(self, size: int, hidden: int = 64) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.tensor(self._FREQUENCIES), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(1 + 2 * len(self._FREQUENCIES), hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.readout = nn.Linear(hidden, size)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    frequencies: Tensor

    def forward(self, log_snr: Tensor) -> Tensor:
        """Return the rows of log-SNRs ``(*levels,)``, ``(*levels, size)``."""
        phase = log_snr.unsqueeze(-1) * self.frequencies
        inputs = torch.cat([log_snr.unsqueeze(-1) / self._SCALE, phase.sin(), phase.cos()], -1)
        rows: Tensor = self.readout(self.layers(inputs))
        return rows


def table_rows(levels: int | None, continuous: bool) -> int | None:
    """Return how many rows a network's table of levels has: 64 unless it is told, none if it is continuous.

    Raises:
        InvalidInput: for both, or fewer than one.
    """
    if levels is None:
        return None if continuous else 64
    check_count("levels", levels)
    if continuous:
        raise InvalidInput(f"a continuous network has no table of levels; got levels={levels}: leave it out")
    return levels


def check_log_snr(log_snr: Tensor) -> None:
    """Require log-SNRs of whoever calls a network that is continuous in the noise level.

    Raises:
        InvalidInput: for whole levels.
    """
    if not isinstance(log_snr, Tensor):
        raise InvalidInput(f"log-SNRs must be a tensor; got {type(log_snr).__name__}: use torch.tensor")
    if not log_snr.is_floating_point():
        raise InvalidInput(
            "this network is continuous in the noise level and takes log-SNRs, floating point; got whole levels: "
            "build it with levels=…, or put it into a model, which knows its schedule"
        )


def level_weight(log_snr: Tensor, log_snr_min: float) -> Tensor:
    """Return ``sigmoid λ − sigmoid λ_min``, how much a network says at log-SNRs λ: nothing at λ_min."""
    return torch.sigmoid(log_snr) - 1.0 / (1.0 + math.exp(-log_snr_min))


def near_gaussian(f: Tensor, square: Tensor, log_snr: Tensor, log_snr_min: float, dimensions: int) -> Tensor:
    """Return ``½ |x|² + (d/2) log 2π + (sigmoid λ − sigmoid λ_min) f``, the energy of N(0, I) at λ_min, ``(*batch,)``.

    Args:
        f: of a network, ``(*batch,)``.
        square: |x|², ``(*batch,)``.
        log_snr: λ, ``()`` or ``(*batch,)``.
        log_snr_min: λ_min.
        dimensions: d.
    """
    return level_weight(log_snr, log_snr_min) * f + 0.5 * (square + dimensions * math.log(2.0 * math.pi))


class LogSNRTable(nn.Module):
    """A small perceptron's row for each log-SNR plus a row for each class, both zero at first.

    Args:
        sizes: what each block takes.
        head: what the head takes.
        classes: number of classes; one more row means "no class".
    """

    def __init__(self, sizes: Sequence[int], head: int, *, classes: int = 0) -> None:
        super().__init__()
        self.sizes = (*sizes, head)
        self.rows = LogSNRConditioning(sum(self.sizes))
        self.class_table = nn.Parameter(torch.zeros(classes + 1, sum(self.sizes))) if classes else None

    def forward(
        self, level: Tensor, label: int | Tensor | None, batch: torch.Size, log_snr: Tensor | None = None
    ) -> list[Tensor]:
        """Return the modulations of every layer at log-SNRs ``level``, or at whole levels of a table ``log_snr``."""
        rows = self.rows(level) if log_snr is None else nn.functional.embedding(level, self.rows(log_snr))
        of_class = class_rows(self.class_table, label, batch)
        rows = rows if of_class is None else rows + of_class
        return list(one_batch_of_rows(rows, batch).split(self.sizes, -1))

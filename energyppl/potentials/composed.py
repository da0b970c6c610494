"""Potentials that compositions of models are made of: other coordinates, mixtures, measurements."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from energyppl._checks import check_fields, check_finite, shape_text
from energyppl.errors import InvalidInput
from energyppl.potentials.algebra import Potential, as_potential

__all__ = ["LogSumExp", "Measured", "Standardized"]


@dataclass(frozen=True, eq=False)
class Standardized:
    """``U((x − loc) / scale)``: an energy asked in other coordinates.

    Args:
        potential: U, of standardized points.
        loc: where the points are centred, a number or a tensor that broadcasts against them.
        scale: the points' standard deviation, likewise.

    Example:
        >>> unit = ep.Energy(lambda z: 0.5 * (z * z).sum(-1), (1,))
        >>> ep.potentials.Standardized(unit, torch.tensor([3.0]), torch.tensor([2.0]))(torch.tensor([[5.0]]))
        tensor([0.5000])
    """

    potential: Potential
    loc: float | Tensor = 0.0
    scale: float | Tensor = 1.0

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.potential.event_shape

    def __call__(self, x: Tensor) -> Tensor:
        """Return the energies of points ``(*batch, *event)``, ``(*batch,)`` in nats."""
        return self.potential((x - self.loc) / self.scale)


@dataclass(frozen=True, eq=False)
class LogSumExp:
    """``−log Σ_i exp(log_weight_i − U_i)``: the energy of a mixture (Du, Li & Mordatch 2020).

    Args:
        potentials: U_i, over points of one shape.
        log_weights: one for each, in nats: a number, or a tensor that broadcasts against the batch.

    Raises:
        InvalidInput: for no potential, or others than there are weights.

    Example:
        >>> left, right = (ep.Energy(lambda x, c=c: 0.5 * (x - c).square().sum(-1), (1,)) for c in (-1.0, 1.0))
        >>> ep.potentials.LogSumExp((left, right), (0.0, 0.0))(torch.zeros(1, 1))  # ½ − log 2
        tensor([-0.1931])
    """

    potentials: tuple[Potential, ...]
    log_weights: tuple[float | Tensor, ...]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.potentials or len(self.potentials) != len(self.log_weights):
            raise InvalidInput(
                f"a mixture needs a log weight for each of its potentials, of which it needs one at least; got "
                f"{len(self.potentials)} potentials and {len(self.log_weights)} weights"
            )
        _one_shape(self.potentials)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.potentials[0].event_shape

    def __call__(self, x: Tensor) -> Tensor:
        """Return the energies of points ``(*batch, *event)``, ``(*batch,)`` in nats."""
        parts = [weight - potential(x) for weight, potential in zip(self.log_weights, self.potentials, strict=True)]
        return -torch.logsumexp(torch.stack(parts), 0)


@dataclass(frozen=True, eq=False)
class Measured:
    """``U(x) + ½ Σ_j precision_j ((rows x)_j − observed_j)²``: an energy given a linear Gaussian measurement.

    Args:
        potential: U, the prior's.
        rows: of the measurement over the flattened event, ``(m, d)``.
        observed: what was measured, ``(m,)``.
        gain: by which points are multiplied before, ``()`` or ``(*batch,)``.
        precision: one over the noise's variance, ``(m,)`` or ``(*batch, m)``.

    Raises:
        InvalidInput: for numbers that are not finite, or shapes that don't fit.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), event_shape=(2,))
        >>> row, seen = torch.tensor([[1.0, 1.0]]), torch.tensor([2.0])
        >>> given = ep.potentials.Measured(normal, row, seen, gain=torch.tensor(1.0), precision=torch.tensor([4.0]))
        >>> given(torch.zeros(2))  # ½ · 4 · 2²
        tensor(8.)
    """

    potential: Potential
    rows: Tensor
    observed: Tensor
    gain: Tensor
    precision: Tensor

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("rows", "observed", "gain", "precision"):
            check_finite(name, getattr(self, name))
        count = len(self.observed) if self.observed.dim() == 1 else -1
        size = math.prod(self.event_shape)
        if self.rows.shape != (count, size) or self.precision.shape[-1:] not in (
            (),
            (1,),
            (count,),
        ):
            raise InvalidInput(
                f"m measurements of {size} numbers need rows (m, {size}), "
                f"observed (m,) and precision (…, m); got {shape_text(self.rows.shape)}, "
                f"{shape_text(self.observed.shape)} and {shape_text(self.precision.shape)}"
            )

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        return self.potential.event_shape

    def __call__(self, x: Tensor) -> Tensor:
        """Return the energies of points ``(*batch, *event)``, ``(*batch,)`` in nats."""
        energy = self.potential(x)
        flat = x.reshape(*energy.shape, -1) * self.gain.unsqueeze(-1)
        misfit = flat @ self.rows.mT - self.observed
        return energy + 0.5 * (misfit.square() * self.precision).sum(-1)


def _one_shape(potentials: Sequence[Potential]) -> None:
    shapes = [as_potential("each part", potential).event_shape for potential in potentials]
    if any(shape != shapes[0] for shape in shapes):
        raise InvalidInput(
            f"potentials must share one event_shape; got {', '.join(shape_text(shape) for shape in shapes)}"
        )

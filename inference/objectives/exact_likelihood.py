"""Maximum likelihood without sampling, by quadrature on a grid: the truth that other objectives are compared with."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_fields, check_positive, shape_text
from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import EnergyModel
from energyppl.inference.objectives.contract import Loss, diffuse
from energyppl.inference.objectives.held_out import fixed_noise
from energyppl.integration.quadrature import Grid

__all__ = ["ExactLikelihood"]


@dataclass(frozen=True)
class ExactLikelihood:
    """Exact maximum likelihood in one and two dimensions: mean U(data) + log Z, with log Z = log Σ exp(−U) cell.

    The sum is the midpoint rule over a box of equal cells, and autograd's gradient of it is −E[∂U/∂θ] of the model
    itself.  The grid is shifted at random by up to half a cell at each update: it stays as good a rule, and the network
    can't hide mass between nodes that never move.

    Args:
        points: cells along each dimension; in the plane a step costs ``points²`` evaluations.  Cells should be at most
            a third of the finest feature wide.
        half_width: the box reaches this far from the data's mean on every side, in their standard deviations.
        level: the level to train, of a model of levels.

    Raises:
        InvalidInput: for fewer than 8 points or a width that is not positive.

    Example:
        >>> ebm, objective = ep.EBM(ep.MLPEnergy((1,), levels=1)), ep.objectives.ExactLikelihood()
        >>> len(ep.fit(ebm, torch.randn(200, 1), objective, steps=3, progress=False).records)
        3
    """

    points: int = 128
    half_width: float = 6.0
    level: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("level", self.level, at_least=0)
        check_count("points", self.points, at_least=8)
        check_positive("half_width", self.half_width)

    def init(self, model: EnergyModel) -> nn.Module:
        """Require a model of one or two dimensions, and of one density; nothing is learned beside its weights.

        Raises:
            InvalidInput: for more, or a model that was given a class for each row.
        """
        self._check(model)
        return nn.Module()

    def _check(self, model: EnergyModel) -> None:
        if not 1 <= math.prod(model.event_shape) <= 2:
            raise InvalidInput(
                f"exact likelihood integrates on a grid, in one or two dimensions; got event_shape "
                f"{shape_text(model.event_shape)}: train by ContrastiveDivergence, score matching or RecoveryLikelihood"
            )
        conditions = getattr(model, "conditions", None)
        if conditions is not None and conditions.dim() > getattr(model, "condition_dims", 0):
            raise InvalidInput(
                f"exact likelihood is of one density at a time, and each class or context has its own; got one for "
                f"each of {len(conditions)} rows: train by RecoveryLikelihood or NoiseContrastive, or leave them out"
            )

    def loss(self, model: EnergyModel, state: nn.Module, batch: Tensor) -> Loss:
        """Return minus the mean log likelihood of ``batch``, ``(n, *event)``, in nats, of standardized points.

        Raises:
            InvalidInput: for points outside of the box, or more than two dimensions.
        """
        return self._likelihood(model, batch, self.points, torch.rand(math.prod(model.event_shape)) - 0.5)

    def measure(self, model: EnergyModel, state: nn.Module, data: Tensor) -> float:
        """Return the same of held-out ``data``, ``(n, *event)``, on a grid twice as fine."""
        with fixed_noise(), torch.no_grad():
            shift = torch.zeros(math.prod(model.event_shape))
            return float(self._likelihood(model, data, 2 * self.points, shift).value)

    def _likelihood(self, model: EnergyModel, batch: Tensor, points: int, shift: Tensor) -> Loss:
        self._check(model)  # here too: a batch may come with a class for each row
        x, potential, size = diffuse(model, batch, self.level), model.potential(self.level), len(shift)
        farthest = float(x.detach().abs().max())
        if not farthest <= self.half_width:
            raise InvalidInput(
                f"data must lie within half_width = {self.half_width:g} standard deviations of their mean; got a point "
                f"{farthest:.3g} away: pass a larger half_width, and more points with it"
            )
        grid = Grid((-self.half_width,) * size, (self.half_width,) * size, (points,) * size)
        nodes = (grid.nodes() + shift * (2.0 * self.half_width / points)).to(x).reshape(-1, *model.event_shape)
        log_z = torch.logsumexp(-potential(nodes), 0) + math.log(grid.cell)
        return Loss(potential(x).mean() + log_z, {"log_z": float(log_z.detach())})

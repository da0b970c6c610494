"""Noise-contrastive estimation: learn to tell data from noise of a known density, and with it log Z.

Where noise is made from each data point by itself there is no log Z to learn: a score of held-out data for any energy.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from energyppl._checks import check_count, check_fields, shape_text
from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import EnergyModel
from energyppl.inference.levels.initializers import model_of_rows
from energyppl.inference.objectives.contract import Loss, diffuse
from energyppl.inference.objectives.held_out import fixed_noise
from energyppl.potentials.bases import Base, GaussianBase

__all__ = ["NoiseContrastive", "NoiseState"]


class NoiseState(nn.Module):
    """The learned log Z and the noise that was fitted to the first batch.

    Args:
        like: gives the dtype, device and shape of a point.

    Example:
        >>> state = ep.objectives.NoiseContrastive().init(ep.EBM(ep.MLPEnergy((2,), levels=1)))
        >>> state.log_z.item(), state.noise.shape
        (0.0, torch.Size([2, 2]))
    """

    noise: Tensor  # (2, *event), mean and standard deviations of the Gaussian noise; zero until the first batch

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.log_z = nn.Parameter(like.new_zeros(()))  # nats, in standardized coordinates
        self.register_buffer("noise", like.new_zeros(2, *like.shape))


@dataclass(frozen=True)
class NoiseContrastive:
    """Noise-contrastive estimation (Gutmann & Hyvärinen 2010, eq. 3; with ``ratio`` noise points for a data point).

    A logistic regression with the log-odds ``log p(x) − log p_noise(x) − log ratio``, in which log p = −U − log Z and
    log Z is a number that is learned like any weight.  It is a parameter of the objective's state.

    The closer the noise to the data the less there is left to chance: in many dimensions a Gaussian is told from data
    at a glance, and then nothing is learned.

    Args:
        base: the noise, over standardized points; a Gaussian of independent coordinates fitted to the first batch, 1.1
            times as wide, if None.
        ratio: noise points for each data point.
        level: the level to train, of a model of levels.

    Raises:
        InvalidInput: for a ratio below one or a base that is none.

    Example:
        >>> ebm, objective = ep.EBM(ep.MLPEnergy((2,), levels=1)), ep.objectives.NoiseContrastive()
        >>> len(ep.fit(ebm, torch.randn(200, 2), objective, steps=3, progress=False).records)
        3
    """

    base: Base | None = None
    ratio: int = 1
    level: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("level", self.level, at_least=0)
        check_count("ratio", self.ratio)
        # A Pyro distribution has all that a base has, but calling it draws.
        if self.base is not None and (isinstance(self.base, Distribution) or not isinstance(self.base, Base)):
            raise InvalidInput(
                f"base must be an energy with exact draws, such as GaussianBase; got {type(self.base).__name__}: wrap "
                "a distribution in DistributionBase"
            )

    def init(self, model: EnergyModel) -> NoiseState:
        """Make the state: log Z and the noise, both of which begin with the first batch.

        Raises:
            InvalidInput: if :attr:`base` is over other points.
        """
        if self.base is not None and self.base.event_shape != model.event_shape:
            raise InvalidInput(
                f"base must have the model's event_shape {shape_text(model.event_shape)}; got "
                f"{shape_text(self.base.event_shape)}"
            )
        return NoiseState(model.loc)

    def loss(self, model: EnergyModel, state: NoiseState, batch: Tensor) -> Loss:
        """Return the logistic loss of ``batch``, ``(n, *event)``, in nats for each data point."""
        x = diffuse(model, batch, self.level)
        if not bool(state.noise.any()):
            with torch.no_grad():
                self._begin(model, state, x)
        base = self._base(state)
        noise = base.sample(self.ratio * len(x)).to(x)
        own, theirs = model.potential(self.level)(x), self._of_noise(model).potential(self.level)(noise)
        odds = torch.cat([base(x), base(noise)]) - torch.cat([own, theirs]) - state.log_z
        own, theirs = (odds - math.log(self.ratio)).split([len(x), len(noise)])
        value = nn.functional.softplus(-own).mean() + self.ratio * nn.functional.softplus(theirs).mean()
        right = 0.5 * ((own > 0).double().mean() + (theirs < 0).double().mean())
        return Loss(value, {"log_z": float(state.log_z.detach()), "told_apart": float(right)})

    def measure(self, model: EnergyModel, state: NoiseState, data: Tensor) -> float:
        """Return the same of held-out ``data``, ``(n, *event)``, with noise that is the same at every call."""
        with fixed_noise(), torch.no_grad():
            return float(self.loss(model, state, data).value)

    def log_normalizer(self, model: EnergyModel, state: NoiseState) -> float:
        """Return the learned log Z in data coordinates, nats: what ``model.log_normalizer()`` would find out."""
        return float(state.log_z.detach() + model.scale.log().expand(model.event_shape).sum())

    def _begin(self, model: EnergyModel, state: NoiseState, x: Tensor) -> None:
        """Fit the noise to standardized points ``(n, *event)``, and estimate log Z from it.

        Adam moves a number by its learning rate at a step, so from zero log Z would be long on its way.
        """
        if len(x) > 1:
            fitted = GaussianBase.fitted(x, model.event_shape)
        else:  # of one point no width is known, but standardized ones have about 1
            fitted = GaussianBase(torch.zeros_like(x[0]), torch.ones_like(x[0]))
        state.noise.copy_(torch.stack([fitted.loc, fitted.scale]))
        base = self._base(state)
        draws = base.sample(len(x)).to(x)
        log_weights = base(draws) - model.potential(self.level)(draws)
        state.log_z.copy_(torch.logsumexp(log_weights, 0) - math.log(len(x)))

    def _of_noise(self, model: Any) -> EnergyModel:
        """Return the model of the noise points, which have the conditions of the rows they are compared with."""
        condition = getattr(model, "conditions", None)
        if condition is not None and condition.dim() > model.condition_dims:
            model = model_of_rows(model, torch.arange(len(condition), device=condition.device).repeat(self.ratio))
        given: EnergyModel = model
        return given

    def _base(self, state: NoiseState) -> Base:
        return GaussianBase(state.noise[0], state.noise[1]) if self.base is None else self.base

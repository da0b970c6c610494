"""Noise-contrastive estimation: learn to tell data from noise of a known density, and with it log Z.

Where noise is made from each data point by itself there is no log Z to learn: a score of held-out data for any energy.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from energyppl._checks import check_count, shape_text
from energyppl.errors import InvalidInput
from energyppl.inference.objectives.contract import Loss, ScoredModel, points_at
from energyppl.inference.objectives.held_out import fixed_noise
from energyppl.potentials.bases import Base, GaussianBase

__all__ = ["ContrastedModel", "NoiseContrastive"]


class ContrastedModel(ScoredModel, Protocol):
    """A model that :meth:`NoiseContrastive.prepare` was called on."""

    log_z: nn.Parameter  # (), nats, of the standardized coordinates
    noise: Tensor  # (2, *event), mean and standard deviations of the Gaussian noise; zero until the first batch
    scale: Tensor  # (*event), of the data


@dataclass(frozen=True)
class NoiseContrastive:
    """Noise-contrastive estimation (Gutmann & Hyvärinen 2010, eq. 3; with ``ratio`` noise points for a data point).

    A logistic regression with the log-odds ``log p(x) − log p_noise(x) − log ratio``, in which log p = −U − log Z and
    log Z is a number that is learned like any weight.  It lives in the model: :meth:`prepare` adds a parameter
    ``log_z`` and a buffer ``noise``, so a model that is to *load* such weights is prepared first, too.

    The closer the noise to the data the less there is left to chance: in many dimensions a Gaussian is told from data
    at a glance, and then nothing is learned.

    Args:
        base: the noise, over standardized points; a Gaussian of independent coordinates fitted to the first batch, 1.1
            times as wide, if None.
        ratio: noise points for each data point.
        level: the level to train, of a model of levels.

    Raises:
        InvalidInput: for a ratio below one or a base that is none.
    """

    base: Base | None = None
    ratio: int = 1
    level: int = 0

    def __post_init__(self) -> None:
        check_count("ratio", self.ratio)
        # A Pyro distribution has all that a base has, but calling it draws.
        if self.base is not None and (isinstance(self.base, Distribution) or not isinstance(self.base, Base)):
            raise InvalidInput(
                f"base must be an energy with exact draws, such as GaussianBase; got {type(self.base).__name__}: wrap "
                "a distribution in DistributionBase"
            )

    def prepare(self, model: Any) -> None:
        """Add ``log_z`` and ``noise`` to the model if it lacks them, before an optimizer takes its parameters.

        Raises:
            InvalidInput: for a base over other points.
        """
        if self.base is not None and self.base.event_shape != model.event_shape:
            raise InvalidInput(
                f"base must have the model's event_shape {shape_text(model.event_shape)}; got "
                f"{shape_text(self.base.event_shape)}"
            )
        if getattr(model, "log_z", None) is None:
            model.register_parameter("log_z", nn.Parameter(model.scale.new_zeros(())))
            model.register_buffer("noise", model.scale.new_zeros(2, *model.event_shape))

    def loss(self, model: ContrastedModel, batch: Tensor) -> Loss:
        """The logistic loss of ``batch``, ``(n, *event)``, in nats for each data point.

        Raises:
            InvalidInput: for a model that was not prepared.
        """
        if getattr(model, "log_z", None) is None:
            raise InvalidInput(
                "log Z is learned with the weights: call objective.prepare(model) before the optimizer is made"
            )
        x = points_at(model, batch, self.level)
        if not bool(model.noise.any()):
            with torch.no_grad():
                self._begin(model, x)
        base = self._base(model)
        noise = base.sample(self.ratio * len(x)).to(x)
        own, theirs = model.potential(self.level)(x), self._of_noise(model).potential(self.level)(noise)
        odds = torch.cat([base(x), base(noise)]) - torch.cat([own, theirs]) - model.log_z
        own, theirs = (odds - math.log(self.ratio)).split([len(x), len(noise)])
        value = nn.functional.softplus(-own).mean() + self.ratio * nn.functional.softplus(theirs).mean()
        right = 0.5 * ((own > 0).double().mean() + (theirs < 0).double().mean())
        return Loss(value, {"log_z": float(model.log_z.detach()), "told_apart": float(right)})

    def measure(self, model: ContrastedModel, data: Tensor) -> float:
        """The same of held-out ``data``, ``(n, *event)``, with noise that is the same at every call."""
        with fixed_noise(data), torch.no_grad():
            return float(self.loss(model, data).value)

    def log_normalizer(self, model: ContrastedModel) -> float:
        """The learned log Z in data coordinates, nats: what ``model.log_normalizer()`` would find out."""
        return float(model.log_z.detach() + model.scale.log().expand(model.event_shape).sum())

    def _begin(self, model: ContrastedModel, x: Tensor) -> None:
        """Fit the noise to standardized points ``(n, *event)``, and estimate log Z from it.

        Adam moves a number by its learning rate at a step, so from zero log Z would be long on its way.
        """
        fitted = GaussianBase.fitted(x, model.event_shape)
        model.noise.copy_(torch.stack([fitted.loc, fitted.scale]))
        base = self._base(model)
        draws = base.sample(len(x)).to(x)
        log_weights = base(draws) - model.potential(self.level)(draws)
        model.log_z.copy_(torch.logsumexp(log_weights, 0) - math.log(len(x)))

    def _of_noise(self, model: Any) -> ContrastedModel:
        """The model of the noise points, which have the classes of the rows they are compared with."""
        label = getattr(model, "label", None)
        if label is not None and label.dim():
            model = model.unconditional.given(label.repeat(self.ratio), guidance=model.guidance)
        given: ContrastedModel = model
        return given

    def _base(self, model: ContrastedModel) -> Base:
        return GaussianBase(model.noise[0], model.noise[1]) if self.base is None else self.base

"""Score matching: train the gradient of the energy, which needs neither chains nor a normalizer.

The Fisher divergence ½ E|∇U + ∇log p|² holds the unknown density p of the data.  Its three known ways out are here:
integrate by parts and pay for the Laplacian (exact), estimate that along random directions (sliced), or match the
score of data plus noise, which is known (denoising).  The first two read a third derivative of the network when the
weights' gradient is taken, so activations must be smooth; the last reads a second.

Scores are slopes: a region that no data connect to another tells nothing of the two regions' relative weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_fields, check_positive
from energyppl.autodiff.gradient import gradient_only
from energyppl.inference.levels.contract import EnergyModel
from energyppl.inference.objectives.contract import Loss, diffuse
from energyppl.inference.objectives.held_out import fixed_noise
from energyppl.inference.objectives.second_order import check_second_order, differentiable_score

__all__ = ["DenoisingScoreMatching", "ExactScoreMatching", "SlicedScoreMatching"]

_ROWS = 512  # of a measure at a time: the graph of a second derivative is large


@dataclass(frozen=True)
class ExactScoreMatching:
    """Score matching with the exact Laplacian: ``E[½ |∇U|² − tr ∇²U]`` (Hyvärinen 2005, theorem 1).

    It costs a backward pass for each coordinate, so a step costs about as much as ``dimensions + 1`` steps of
    :class:`SlicedScoreMatching`: for tens of dimensions at most.

    Args:
        level: the level to train, of a model of levels.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> options = ep.TrainingOptions(steps=2, batch_size=32)
        >>> objective = ep.objectives.ExactScoreMatching()
        >>> history = ep.fit(ebm, torch.randn(100, 2), objective, options=options, progress=False)
        >>> len(history.records)
        2
    """

    level: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("level", self.level, at_least=0)

    def init(self, model: EnergyModel) -> nn.Module:
        """Make an empty state, for nothing is learned beside the weights, of a network with the derivatives it takes.

        Raises:
            InvalidInput: for a network that can't be differentiated twice, or has kinks.
        """
        check_second_order(model, lambda model: model.potential(self.level), curvature=True)
        return nn.Module()

    def loss(self, model: EnergyModel, state: nn.Module, batch: Tensor) -> Loss:
        """Return the score matching loss of ``batch``, ``(n, *event)``."""
        x = diffuse(model, batch, self.level).detach().requires_grad_()
        score = differentiable_score(model.potential(self.level), x)
        return _matching(score, _laplacian(score, x, create_graph=True))

    def measure(self, model: EnergyModel, state: nn.Module, data: Tensor) -> float:
        """Return the same of held-out ``data``, ``(n, *event)``: the Fisher divergence up to a constant."""
        total = 0.0
        with fixed_noise():
            for rows in diffuse(model, data, self.level).detach().split(_ROWS):
                x = rows.requires_grad_()
                score = differentiable_score(model.potential(self.level), x)
                total += len(x) * float(_matching(score, _laplacian(score, x, create_graph=False)).value.detach())
        return total / len(data)


@dataclass(frozen=True)
class SlicedScoreMatching:
    """Sliced score matching, the form of reduced variance: ``E[½ |∇U|² − vᵀ ∇²U v]`` (Song et al. 2019).

    The directions v have independent entries ±1, so that E[v vᵀ] = I and the expectation is that of
    :class:`ExactScoreMatching`; in one dimension, and for any ∇²U that is diagonal, they add no noise at all.

    Args:
        projections: directions for each point; one backward pass each.
        level: the level to train, of a model of levels.

    Raises:
        InvalidInput: for fewer than one projection.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> options = ep.TrainingOptions(steps=2, batch_size=32)
        >>> objective = ep.objectives.SlicedScoreMatching()
        >>> history = ep.fit(ebm, torch.randn(100, 2), objective, options=options, progress=False)
        >>> len(history.records)
        2
    """

    projections: int = 1
    level: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("level", self.level, at_least=0)
        check_count("projections", self.projections)

    def init(self, model: EnergyModel) -> nn.Module:
        """Make an empty state, for nothing is learned beside the weights, of a network with the derivatives it takes.

        Raises:
            InvalidInput: for a network that can't be differentiated twice, or has kinks.
        """
        check_second_order(model, lambda model: model.potential(self.level), curvature=True)
        return nn.Module()

    def loss(self, model: EnergyModel, state: nn.Module, batch: Tensor) -> Loss:
        """Return the score matching loss of ``batch``, ``(n, *event)``, along fresh directions."""
        x = diffuse(model, batch, self.level)
        return self._sliced(model, x, create_graph=True)

    def measure(self, model: EnergyModel, state: nn.Module, data: Tensor) -> float:
        """Return the same of held-out ``data``, ``(n, *event)``, along directions that are the same at every call."""
        total = 0.0
        with fixed_noise():
            for rows in diffuse(model, data, self.level).split(_ROWS):
                total += len(rows) * float(self._sliced(model, rows, create_graph=False).value.detach())
        return total / len(data)

    def _sliced(self, model: EnergyModel, points: Tensor, *, create_graph: bool) -> Loss:
        x = points.detach().requires_grad_()
        score = differentiable_score(model.potential(self.level), x)
        along = torch.zeros_like(x)
        for _ in range(self.projections):
            v = torch.randint(2, x.shape, device=x.device).to(x) * 2.0 - 1.0
            along = along + v * _directional(score, x, v, create_graph=create_graph)
        return _matching(score, (along / self.projections).reshape(len(x), -1).sum(1))


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """Denoising score matching: ``E |σ ∇U(x + σ ε) − ε|² / dimensions`` (Vincent 2011).

    What is learned is the density of the data *with the noise*, N(0, σ²) in standardized units.  The smaller σ, the
    closer to the data, and the noisier the gradient: its variance grows as 1 / σ².

    Args:
        sigma: standard deviation of the noise, in standardized units.
        level: the level to train, of a model of levels, whose own noise comes first.

    Raises:
        InvalidInput: for noise that is not positive.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> options = ep.TrainingOptions(steps=2, batch_size=32)
        >>> objective = ep.objectives.DenoisingScoreMatching(sigma=0.2)
        >>> history = ep.fit(ebm, torch.randn(100, 2), objective, options=options, progress=False)
        >>> len(history.records)
        2
    """

    sigma: float
    level: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("level", self.level, at_least=0)
        check_positive("sigma", self.sigma)

    def init(self, model: EnergyModel) -> nn.Module:
        """Make an empty state, for nothing is learned beside the weights, of a network with the derivatives it takes.

        Raises:
            InvalidInput: for a network that can't be differentiated twice.
        """
        check_second_order(model, lambda model: model.potential(self.level))
        return nn.Module()

    def loss(self, model: EnergyModel, state: nn.Module, batch: Tensor) -> Loss:
        """Return the denoising loss of ``batch``, ``(n, *event)``: the unexplained share of the noise's variance."""
        x = diffuse(model, batch, self.level)
        noise = torch.randn_like(x)
        score = differentiable_score(model.potential(self.level), x + self.sigma * noise)
        return Loss((self.sigma * score - noise).square().mean(), {"score_norm": _root_mean_square(score)})

    def measure(self, model: EnergyModel, state: nn.Module, data: Tensor) -> float:
        """Return the same of held-out ``data``, ``(n, *event)``, with noise that is the same at every call."""
        with fixed_noise():
            x = diffuse(model, data, self.level)
            noise = torch.randn_like(x)
        grad = gradient_only(model.potential(self.level), x + self.sigma * noise)
        return float((self.sigma * grad - noise).square().mean())


def _matching(score: Tensor, laplacian: Tensor) -> Loss:
    """Return ``½ |∇U|² − tr ∇²U``, its mean over the points, from both, ``(n, *event)`` and ``(n,)``."""
    value = (0.5 * score.reshape(len(score), -1).square().sum(1) - laplacian).mean()
    return Loss(value, {"score_norm": _root_mean_square(score), "laplacian": float(laplacian.detach().mean())})


def _root_mean_square(score: Tensor) -> float:
    return float(score.detach().square().mean().sqrt())


def _laplacian(score: Tensor, x: Tensor, *, create_graph: bool) -> Tensor:
    """Work out ``tr ∇²U`` at every point, ``(n,)``, one row of the Hessian at a time."""
    total, unit = score.new_zeros(len(x)), torch.eye(x[0].numel()).to(x)
    for i, direction in enumerate(unit):
        row = _directional(score, x, direction.reshape(x.shape[1:]).expand_as(x), create_graph=create_graph)
        total = total + row.reshape(len(x), -1)[:, i]
    return total


def _directional(score: Tensor, x: Tensor, v: Tensor, *, create_graph: bool) -> Tensor:
    """Work out ``∇²U v`` at every point, ``(n, *event)``."""
    (product,) = torch.autograd.grad(score, x, v, create_graph=create_graph, retain_graph=True, materialize_grads=True)
    return product

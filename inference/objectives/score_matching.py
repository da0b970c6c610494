"""Score matching: train the gradient of the energy, which needs neither chains nor a normalizer.

The Fisher divergence ½ E|∇U + ∇log p|² holds the unknown density p of the data.  Its three known ways out are here:
integrate by parts and pay for the Laplacian (exact), estimate that along random directions (sliced), or match the
score of data plus noise, which is known (denoising).  The first two read a third derivative of the network when the
weights' gradient is taken, so activations must be smooth; the last reads a second.

Scores are slopes: a region that no data connect to another tells nothing of the two regions' relative weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_positive
from energyppl.autodiff.gradient import gradient_only
from energyppl.autodiff.structure import Snapshot
from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import EnergyModel
from energyppl.inference.objectives.contract import Loss, diffuse
from energyppl.inference.objectives.held_out import fixed_noise
from energyppl.inference.objectives.second_order import differentiable_score

__all__ = ["DenoisingScoreMatching", "ExactScoreMatching", "SlicedScoreMatching"]

_ROWS = 512  # of a measure at a time: the graph of a second derivative is large
_ROUNDING = 1e-3  # of a weight's effect on slopes, below which it counts as the same in two places
_curved: "WeakSet[nn.Module]" = WeakSet()  # networks that were tried, and whose weights have a part in the curvature


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

    def init(self, model: EnergyModel) -> nn.Module:
        """Make an empty state: nothing is learned beside the model's weights."""
        return nn.Module()

    def loss(self, model: EnergyModel, state: nn.Module, batch: Tensor) -> Loss:
        """Return the score matching loss of ``batch``, ``(n, *event)``.

        Raises:
            InvalidInput: for a network that can't be differentiated twice, or with weights that don't curve its energy.
        """
        x = diffuse(model, batch, self.level).detach().requires_grad_()
        _require_curved(model.potential(self.level), x, model.net)
        score = differentiable_score(model.potential(self.level), x, model.net)
        return _matching(score, _laplacian(score, x, create_graph=True))

    def measure(self, model: EnergyModel, state: nn.Module, data: Tensor) -> float:
        """Return the same of held-out ``data``, ``(n, *event)``: the Fisher divergence up to a constant."""
        total = 0.0
        with fixed_noise(data):
            for rows in diffuse(model, data, self.level).detach().split(_ROWS):
                x = rows.requires_grad_()
                score = differentiable_score(model.potential(self.level), x, model.net)
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
        check_count("projections", self.projections)

    def init(self, model: EnergyModel) -> nn.Module:
        """Make an empty state: nothing is learned beside the model's weights."""
        return nn.Module()

    def loss(self, model: EnergyModel, state: nn.Module, batch: Tensor) -> Loss:
        """Return the score matching loss of ``batch``, ``(n, *event)``, along fresh directions.

        Raises:
            InvalidInput: for a network that can't be differentiated twice, or with weights that don't curve its energy.
        """
        x = diffuse(model, batch, self.level)
        _require_curved(model.potential(self.level), x, model.net)
        return self._sliced(model, x, create_graph=True)

    def measure(self, model: EnergyModel, state: nn.Module, data: Tensor) -> float:
        """Return the same of held-out ``data``, ``(n, *event)``, along directions that are the same at every call."""
        total = 0.0
        with fixed_noise(data):
            for rows in diffuse(model, data, self.level).split(_ROWS):
                total += len(rows) * float(self._sliced(model, rows, create_graph=False).value.detach())
        return total / len(data)

    def _sliced(self, model: EnergyModel, points: Tensor, *, create_graph: bool) -> Loss:
        x = points.detach().requires_grad_()
        score = differentiable_score(model.potential(self.level), x, model.net)
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
        check_positive("sigma", self.sigma)

    def init(self, model: EnergyModel) -> nn.Module:
        """Make an empty state: nothing is learned beside the model's weights."""
        return nn.Module()

    def loss(self, model: EnergyModel, state: nn.Module, batch: Tensor) -> Loss:
        """Return the denoising loss of ``batch``, ``(n, *event)``: the unexplained share of the noise's variance.

        Raises:
            InvalidInput: for a network that can't be differentiated twice.
        """
        x = diffuse(model, batch, self.level)
        noise = torch.randn_like(x)
        score = differentiable_score(model.potential(self.level), x + self.sigma * noise, model.net)
        return Loss((self.sigma * score - noise).square().mean(), {"score_norm": _root_mean_square(score)})

    def measure(self, model: EnergyModel, state: nn.Module, data: Tensor) -> float:
        """Return the same of held-out ``data``, ``(n, *event)``, with noise that is the same at every call."""
        with fixed_noise(data):
            x = diffuse(model, data, self.level)
            noise = torch.randn_like(x)
        grad = gradient_only(model.potential(self.level), x + self.sigma * noise)
        return float((self.sigma * grad - noise).square().mean())


def _matching(score: Tensor, laplacian: Tensor) -> Loss:
    """``½ |∇U|² − tr ∇²U``, its mean over the points, from both, ``(n, *event)`` and ``(n,)``."""
    value = (0.5 * score.reshape(len(score), -1).square().sum(1) - laplacian).mean()
    return Loss(value, {"score_norm": _root_mean_square(score), "laplacian": float(laplacian.detach().mean())})


def _require_curved(potential: Callable[[Tensor], Tensor], x: Tensor, net: nn.Module) -> None:
    """Require that weights which change the slope by place, at points ``x``, ``(n, *event)``, change the curvature.

    Autograd finds no curvature in a kink, so that the loss could only flatten what ReLU makes, whatever else is curved,
    as the ½|x|² that confines.  The other weights may leave the curvature as it is: a mean does, and so does at first
    what lies behind a zero.  A network is tried until a weight changes the curvature.

    Raises:
        InvalidInput: for an energy that is linear, or piecewise so, in what a weight makes of it.
    """
    if net in _curved:
        return
    before = Snapshot([net])
    try:
        found = _bending(potential, x.detach(), net)
    finally:
        before.restore()  # what a forward pass counts: this was only a look
    if found.straight or not (found.curved or found.by_weights):
        where = f" (weight {found.straight[0]!r})" if found.straight else ""
        raise InvalidInput(
            "the energy must be curved by its weights; that of this network is linear in x, or piecewise so as with "
            f"ReLU{where}: use smooth activations such as SiLU, or train by DenoisingScoreMatching"
        )
    if found.by_weights:
        _curved.add(net)


class _Bending(NamedTuple):
    """Sources of an energy's curvature: its points and its weights."""

    straight: list[str]  # weights that change its slope differently in different places, and its curvature nowhere
    curved: bool  # it is curved somewhere
    by_weights: bool  # some weight changes its curvature


def _bending(potential: Callable[[Tensor], Tensor], x: Tensor, net: nn.Module) -> _Bending:
    """Find what curves an energy at points ``x``, ``(n, *event)``, along one direction."""
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    weights = list(named.values())
    with fixed_noise(x):
        v, away = torch.randn(x.shape[1:]).to(x).expand_as(x), torch.randn(x.shape).to(x)
    x = x.requires_grad_()
    here, there = (_slope(potential, points, v, net) for points in (x, x.detach() + away))
    (product,) = torch.autograd.grad(here, x, create_graph=True, materialize_grads=True)
    bends = [bool(effect.any()) for effect in _effects((v * product).sum(), weights)]
    places = zip(_effects(here, weights), _effects(there, weights), strict=True)
    turns = [bool((a - b).norm() > _ROUNDING * (a.norm() + b.norm())) for a, b in places]
    straight = [name for name, turn, bend in zip(named, turns, bends, strict=True) if turn and not bend]
    return _Bending(straight, bool(product.any()), any(bends))


def _slope(potential: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, net: nn.Module) -> Tensor:
    """``Σ v · ∇U`` over points ``(n, *event)``, ``()``, with the same dropout at every call."""
    with fixed_noise(x):
        return (v * differentiable_score(potential, x, net)).sum()


def _effects(value: Tensor, weights: list[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of a number with respect to each weight, zero where it does not depend on it."""
    if not (weights and value.requires_grad):
        return [torch.zeros_like(p) for p in weights]
    return list(torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True))


def _root_mean_square(score: Tensor) -> float:
    return float(score.detach().square().mean().sqrt())


def _laplacian(score: Tensor, x: Tensor, *, create_graph: bool) -> Tensor:
    """``tr ∇²U`` at every point, ``(n,)``, one row of the Hessian at a time."""
    total, unit = score.new_zeros(len(x)), torch.eye(x[0].numel()).to(x)
    for i, direction in enumerate(unit):
        row = _directional(score, x, direction.reshape(x.shape[1:]).expand_as(x), create_graph=create_graph)
        total = total + row.reshape(len(x), -1)[:, i]
    return total


def _directional(score: Tensor, x: Tensor, v: Tensor, *, create_graph: bool) -> Tensor:
    """``∇²U v`` at every point, ``(n, *event)``."""
    (product,) = torch.autograd.grad(score, x, v, create_graph=create_graph, retain_graph=True, materialize_grads=True)
    return product

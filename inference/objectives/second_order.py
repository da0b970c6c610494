"""The score as something to train on, and one check that a network's second derivatives are there.

Score matching differentiates a gradient, which not every network allows: some operations have no second derivative in
torch, and the backward pass of an ``autograd.Function`` may leave autograd, for numpy say, without an error: its part
of the weights' gradient would be missing.  So second derivatives are compared with finite differences, once, when an
objective's state is made, in float64 and with weights a little off their own (a head may begin at zero).
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from energyppl.autodiff.structure import Snapshot
from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import EnergyModel
from energyppl.inference.objectives.held_out import fixed_noise
from energyppl.inference.objectives.second_order_faults import (
    curvature_fault,
    fan_in,
    layer_at_fault,
    second_order_fault,
    slope,
)

__all__ = ["check_second_order", "differentiable_score"]

_POINTS = 16
_MAX_NUMBERS = 2048  # of all points together: images are tried on few
_PERTURBATION = 0.1  # of each weight, in units of 1 / √fan_in


def differentiable_score(potential: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ∇U at points ``x``, differentiable with respect to the weights, and to ``x`` if that requires a gradient.

    Args:
        potential: maps ``(*batch, *event)`` to ``(*batch,)``, in nats; see :func:`check_second_order`.
        x: points, ``(*batch, *event)``.
    """
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        (score,) = torch.autograd.grad(potential(x).sum(), x, create_graph=True)
    return score


def check_second_order(
    model: EnergyModel, potential: Callable[[Any], Callable[[Tensor], Tensor]], *, curvature: bool = False
) -> None:
    """Require that ∇U depends on the weights and that autograd knows how, by finite differences at random points.

    A copy of the model in float64 and evaluation mode is tried.  A network that can't be copied, or does not compute in
    float64, is tried in place in its own dtype, with looser bounds, and left as it was.  Points at which the gradient
    is not finite are left out.

    Args:
        model: whose weights are to be trained; it stays as it is.
        potential: the energy of a copy of the model, such as ``lambda model: model.potential(0)``.
        curvature: also require that the slope is the integral of the curvature, which a kink (ReLU) breaks: autograd
            finds no curvature there, so that a Laplacian could only flatten the energy.

    Raises:
        InvalidInput: if one of them fails; the message names the layer or the parameter where it can be told.
    """
    potential(model)  # which checks the level
    with torch.inference_mode(False), torch.enable_grad(), fixed_noise(), _trial(model, potential) as trial:
        if len(trial.x):
            _check_weights(trial)
            if curvature:
                _check_curvature(trial)


@dataclass(frozen=True)
class _Trial:
    """A network on trial."""

    net: nn.Module
    energy: Callable[[Tensor], Tensor]
    x: Tensor  # points, (n, *event)
    weights: dict[str, nn.Parameter]


def _check_weights(trial: _Trial) -> None:
    """Require ∂(v·∇U)/∂θ to be there, and to be that of finite differences."""
    v, weights = torch.randn_like(trial.x), list(trial.weights.values())

    def along() -> Tensor:
        return slope(trial.energy, trial.x, v)

    why = second_order_fault(along, weights)
    if why is not None:
        guilty = (name for name, weight in trial.weights.items() if second_order_fault(along, [weight]) is not None)
        layer, layers_own = layer_at_fault(trial.net, trial.energy, trial.x, second_order_fault)
        where = layer or f"{type(trial.net).__name__} (parameter {next(guilty, '?')!r})"
        raise InvalidInput(
            f"score matching differentiates the network twice, which {where} does not allow ({layers_own or why}): "
            "replace that layer, or train by an objective of energies such as ContrastiveDivergence"
        )
    value = along()
    found = torch.autograd.grad(value, weights, allow_unused=True) if weights and value.requires_grad else []
    if weights and all(grad is None for grad in found):
        cut, _ = layer_at_fault(trial.net, trial.energy, trial.x, None)
        raise InvalidInput(
            f"the gradient ∇U(x) must depend on the weights; that of {type(trial.net).__name__} does not"
            f"{f' ({cut} lets no gradient through)' if cut else ''}: score matching can't train it"
        )


def _check_curvature(trial: _Trial) -> None:
    """Require v·(∇U(x + a) − ∇U(x)) to be the integral of the curvature between."""
    if curvature_fault(trial.energy, trial.x):
        layer, _ = layer_at_fault(trial.net, trial.energy, trial.x, curvature_fault)
        raise InvalidInput(
            f"the energy must be smooth, so that its slope is the integral of its curvature; that of "
            f"{type(trial.net).__name__} has kinks{f', from {layer}' if layer else ''}: use smooth activations such as "
            "SiLU, or train by DenoisingScoreMatching"
        )


@contextmanager
def _trial(model: Any, potential: Callable[[Any], Callable[[Tensor], Tensor]]) -> Iterator[_Trial]:
    """Yield a copy of the model in float64 with other weights or, where that can't be, the model itself."""
    size = math.prod(model.event_shape)
    shape = (min(_POINTS, max(2, _MAX_NUMBERS // max(1, size))), *model.event_shape)
    x = torch.randn(shape, dtype=model.loc.dtype, device=model.loc.device)
    twin = _double_copy(model, potential, x)
    if twin is not None:
        yield _perturbed(twin.net, potential(twin), x.double())
        return
    before, weights = Snapshot([model.net]), [(p, p.detach().clone()) for p in model.net.parameters()]
    try:
        model.net.eval()
        yield _perturbed(model.net, potential(model), x)
    finally:
        before.restore()
        _write(weights)


def _double_copy(model: Any, potential: Callable[[Any], Callable[[Tensor], Tensor]], x: Tensor) -> Any:
    """Return a copy of the model in float64 and evaluation mode; None if there is none that gives energies."""
    try:
        twin = copy.deepcopy(model).double().eval()
        with fixed_noise():
            energy = potential(twin)(x.double())
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError, ValueError, NotImplementedError):
        return None
    return twin if energy.dtype == torch.float64 else None


def _perturbed(net: nn.Module, energy: Callable[[Tensor], Tensor], x: Tensor) -> _Trial:
    """Move the weights a little, unless energies are no longer finite then, and keep the points where they are."""
    weights = {name: p for name, p in net.named_parameters() if p.requires_grad and p.is_floating_point()}
    before = [(p, p.detach().clone()) for p in weights.values()]
    moved = [(p, p + _PERTURBATION * torch.randn_like(p) / math.sqrt(fan_in(p))) for p in weights.values()]
    _write(moved)
    if not bool(_finite_rows(energy, x).all()):
        _write(before)
    return _Trial(net, energy, x[_finite_rows(energy, x)], weights)


def _finite_rows(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Tell where energy and gradient are finite, ``(n,)``."""
    x = x.detach().requires_grad_()
    with fixed_noise():
        values = energy(x)
    finite = values.isfinite()
    if values.requires_grad:
        (grad,) = torch.autograd.grad(values.sum(), x, materialize_grads=True)
        finite = finite & grad.reshape(len(x), -1).isfinite().all(1)
    return finite


@torch.no_grad()
def _write(values: Sequence[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in values:
        tensor.copy_(value)

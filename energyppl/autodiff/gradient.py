"""Energies and gradients of potentials in one call, by traced programs where they serve, else by eager autograd.

Everything that samples calls :func:`energy_and_grad`.  A loop that changes no weights binds its potential before it
begins (:func:`~energyppl.autodiff.bind`) and so pays for the trace's prologue once; for any other potential the
prologue runs at each call, so that every change of a weight, a switch or a field is seen.  Even so a network's energy
and gradient cost less than by eager autograd.
"""

import functools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from energyppl._checks import check_event
from energyppl.autodiff.bound import BoundPotential, evaluate
from energyppl.autodiff.private import is_view
from energyppl.autodiff.structure import dtype_named, ordinary, without_inference_tensors
from energyppl.autodiff.tracing import Evaluation
from energyppl.errors import InvalidInput

__all__ = [
    "eager_energy",
    "eager_energy_and_grad",
    "eager_gradient",
    "energy_and_grad",
    "energy_only",
    "gradient_only",
    "gradients_along",
]


def energy_and_grad(
    potential: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Evaluate the energy of each point and its gradient with respect to the point; parameters take no gradient.

    The first call for a potential's structure and a shape of points traces it, which takes tens of milliseconds.

    Args:
        potential: maps ``(*batch, *event)`` to ``(*batch,)``, in nats, bound or not; points must not influence each
            other.
        x: points, ``(*batch, *event)``, floating point.
        dtype: of the network's arithmetic, ``torch.bfloat16`` or ``torch.float16`` as in ``torch.autocast``; the
            points' own if None.  The results have the points' dtype either way.

    Returns:
        ``(energy, grad)`` of shapes ``(*batch,)`` and ``(*batch, *event)``, detached.  Non-finite values are handed on
        as they are: the caller decides (the kernels reject and flag).

    Raises:
        InvalidInput: if the potential returns anything but one number for each point.

    Example:
        >>> energy, grad = ep.energy_and_grad(lambda x: 0.5 * (x * x).sum(-1), torch.ones(5, 2))
        >>> energy[0], grad[0]
        (tensor(1.), tensor([1., 1.]))
    """
    _check_arguments(potential, x, dtype)
    with dtype_named("x", x, potential):
        energy, grad = evaluate(potential, eager_energy_and_grad if dtype is None else _autocast(dtype), x)
    return energy, grad


def energy_only(potential: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Evaluate the energy alone, ``(*batch,)``, under the same terms as :func:`energy_and_grad`.

    Example:
        >>> ep.autodiff.energy_only(lambda x: 0.5 * (x * x).sum(-1), torch.ones(3, 2))
        tensor([1., 1., 1.])
    """
    with dtype_named("x", x, potential):
        (energy,) = evaluate(potential, eager_energy, x)
    return energy


def gradient_only(potential: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Evaluate the gradient alone, ``(*batch, *event)``; what is not needed for it is not worked out.

    Args:
        potential: as for :func:`energy_and_grad`.
        x: points, ``(*batch, *event)``.
        dtype: as for :func:`energy_and_grad`.

    Example:
        >>> ep.autodiff.gradient_only(lambda x: 0.5 * (x * x).sum(-1), torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    _check_arguments(potential, x, dtype)
    with dtype_named("x", x, potential):
        (grad,) = evaluate(potential, eager_gradient if dtype is None else _autocast_gradient(dtype), x)
    return grad


def gradients_along(
    potential: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None = None
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return :func:`gradient_only`, in a tuple, for the points of one trajectory: what serves it is looked up once.

    Args:
        potential: as for :func:`energy_and_grad`.
        x: its first point, ``(*batch, *event)``.
        dtype: as for :func:`energy_and_grad`.
    """
    what = eager_gradient if dtype is None else _autocast_gradient(dtype)
    return potential.serving(what, x) if isinstance(potential, BoundPotential) else partial(evaluate, potential, what)


def eager_energy_and_grad(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate both by plain autograd: the reference that every trace is compared with."""
    _check_points(potential, x)
    if torch.is_inference_mode_enabled() or x.is_inference():
        with torch.inference_mode(False):  # in which autograd is silent, and the gradient would be zero
            return eager_energy_and_grad(without_inference_tensors(potential), ordinary(x))
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        energy = potential(leaf)
        _check_energy(potential, energy, x)
        if not energy.requires_grad:  # a potential that is constant in x
            return _own(energy), torch.zeros_like(x)
        (grad,) = torch.autograd.grad(energy.sum(), leaf, allow_unused=True)
    return _own(energy), torch.zeros_like(x) if grad is None else grad


def eager_energy(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor]:
    """Evaluate the energy alone without a trace, in a tuple."""
    _check_points(potential, x)
    with torch.no_grad():
        energy = potential(x.detach())
    _check_energy(potential, energy, x)
    return (_own(energy),)


def eager_gradient(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor]:
    """Evaluate the gradient alone without a trace, in a tuple."""
    return (eager_energy_and_grad(potential, x)[1],)


@functools.cache  # traces are kept by this function's identity
def _autocast(dtype: torch.dtype) -> Evaluation:
    def evaluation(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        def cast(points: Tensor) -> Tensor:
            with torch.autocast(points.device.type, dtype=dtype, cache_enabled=False):
                energy: Tensor = potential(points)
            return energy.to(points.dtype)

        return eager_energy_and_grad(cast, x)

    return evaluation


@functools.cache
def _autocast_gradient(dtype: torch.dtype) -> Evaluation:
    def gradient(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor]:
        return (_autocast(dtype)(potential, x)[1],)

    return gradient


def _own(energy: Tensor) -> Tensor:
    """Detach the energy, and copy it where it is a view of the points."""
    return energy.detach().clone() if is_view(energy) or energy.is_leaf else energy.detach()


def _check_arguments(potential: object, x: Tensor, dtype: object) -> None:
    if isinstance(potential, type) or not callable(potential) or not isinstance(dtype, torch.dtype | None):
        raise InvalidInput(
            "potential must map points to energies, and dtype be a torch.dtype or None; got "
            f"{type(potential).__name__} and {dtype!r}: pass an energy, and torch.bfloat16"
        )
    _check_points(potential, x)


def _check_points(potential: object, x: Tensor) -> None:
    check_event("x", x, getattr(potential, "event_shape", ()))


def _check_energy(potential: object, energy: object, x: Tensor) -> None:
    event_shape = getattr(potential, "event_shape", None)
    expected = x.shape[: x.dim() - len(event_shape)] if event_shape is not None else x.shape[:1]
    if not isinstance(energy, Tensor) or (event_shape is not None and energy.shape != expected):
        came = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
        raise InvalidInput(
            f"the energy must return one number for each point, shape {tuple(expected)}; got {came} "
            f"for points of shape {tuple(x.shape)}: sum or squeeze the last dimensions in the network's forward"
        )
    if not energy.dtype.is_floating_point:
        raise InvalidInput(
            f"energies must be floating point; got {energy.dtype}: call .float() in the network's forward"
        )

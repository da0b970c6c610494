"""Finite differences that tell where autograd's second derivatives are wrong or absent, and in which layer."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from energyppl.errors import first_line
from energyppl.inference.objectives.held_out import fixed_noise

__all__ = ["curvature_fault", "fan_in", "layer_at_fault", "second_order_fault", "slope"]

Function = Callable[[Tensor], Tensor]

_STEPS = {torch.float64: (1e-6, 1e-7, 1e-4, 1e-2)}  # the larger ones for networks that compute in float32 inside
_FEW_STEPS = (1e-2, 1e-3)
_BOUND = {torch.float64: 1e-5}
_LOOSE_BOUND = 3e-2
_NOISE = 0.1  # of a disagreement with autograd: differences that disagree among themselves by more say nothing
_SEGMENT = 0.1  # standard deviation of each coordinate of a segment
_SEGMENTS = 2
_NODES = 8
_FEW_NODES = 2
_HALVINGS = {torch.float64: 12}
_FEW_HALVINGS = 8


def slope(function: Function, x: Tensor, v: Tensor) -> Tensor:
    """Return ``v · ∇ Σ function(x)``, ``()``, with its graph; the state of random numbers stays as it is."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        value = function(x).sum()
    if not value.requires_grad:
        return value.new_zeros(())
    (grad,) = torch.autograd.grad(value, x, create_graph=True, materialize_grads=True)
    return (v * grad).sum()


def fan_in(weight: Tensor) -> int:
    """Return how many inputs each row of a weight takes."""
    return max(1, weight[0].numel()) if weight.dim() > 1 else 1


def second_order_fault(value: Callable[[], Tensor], leaves: Sequence[Tensor]) -> str | None:
    """Compare the derivative of ``value()``, ``()``, along a random direction by backward and by central differences.

    Differences with one step and with twice that tell how far they can be trusted, as not across a kink.

    Args:
        value: made by a backward pass that keeps its graph, from the present values of ``leaves``.
        leaves: moved along the direction and put back.

    Returns:
        Why autograd can't be trusted, or None.
    """
    if not leaves:
        return None
    directions = [torch.randn_like(leaf) / math.sqrt(fan_in(leaf)) for leaf in leaves]
    try:
        here = value()
        grads: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in leaves]
        if here.requires_grad:
            grads = torch.autograd.grad(here, leaves, materialize_grads=True)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return first_line(error).rstrip(".")
    if _is_cut_off(here):
        return "its backward is once_differentiable"
    parts = [grad * direction for grad, direction in zip(grads, directions, strict=True)]
    own, spread = (float(sum(f(part) for part in parts)) for f in (torch.sum, lambda part: part.square().sum()))
    for step in _STEPS.get(here.dtype, _FEW_STEPS):
        found, check = (_difference(value, leaves, directions, h) for h in (step, 2.0 * step))
        off = abs(found - own)
        if off <= _BOUND.get(here.dtype, _LOOSE_BOUND) * (abs(found) + math.sqrt(spread)):
            return None
        if abs(found - check) < _NOISE * off:
            return "its backward leaves autograd: finite differences give another second derivative"
    return None


def _is_cut_off(value: Tensor) -> bool:
    """Tell whether a value's graph holds the node that ``once_differentiable`` leaves, which raises in ``backward``."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            if node.name() == "torch::autograd::Error":
                return True
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return False


@torch.no_grad()
def _difference(
    value: Callable[[], Tensor], leaves: Sequence[Tensor], directions: Sequence[Tensor], step: float
) -> float:
    """Return the central difference of ``value`` along directions."""
    before, ends = [leaf.detach().clone() for leaf in leaves], []
    for sign in (1.0, -1.0):
        for leaf, start, direction in zip(leaves, before, directions, strict=True):
            leaf.copy_(start + sign * step * direction)
        with torch.enable_grad():
            ends.append(float(value().detach()))
    for leaf, start in zip(leaves, before, strict=True):
        leaf.copy_(start)
    return (ends[0] - ends[1]) / (2.0 * step)


def curvature_fault(function: Function, x: Tensor) -> bool:
    """Tell whether the slope of ``Σ function(x)`` jumps, by ``v·(∇f(x + a) − ∇f(x)) = ∫ vᵀ ∇²f(x + t a) a dt``.

    The integral is by Gauss–Legendre.  Where the two sides differ the segment is halved again and again, the half of
    the larger difference kept: a jump stays, and what is merely sharp, or jumps in its curvature as ELU, vanishes.
    """
    return any(_jumps(function, x.detach()) for _ in range(_SEGMENTS))


def _jumps(function: Function, x: Tensor) -> bool:
    a, v = _SEGMENT * torch.randn_like(x), torch.randn_like(x)
    bound, halvings = _BOUND.get(x.dtype, _LOOSE_BOUND), _HALVINGS.get(x.dtype, _FEW_HALVINGS)
    first, scale = _difference_from_curvature(function, x, a, v, _NODES)
    if first <= bound * scale:
        return False
    last = first
    for _ in range(halvings):
        a = 0.5 * a
        halves = [(_difference_from_curvature(function, start, a, v, _FEW_NODES)[0], start) for start in (x, x + a)]
        last, x = max(halves, key=lambda half: half[0])
    return bool(last > 2.0 ** (-halvings / 2) * first)


def _difference_from_curvature(function: Function, x: Tensor, a: Tensor, v: Tensor, count: int) -> tuple[float, float]:
    """Return how far the two sides are from each other, and how large they are."""
    ends = [float(slope(function, point, v).detach()) for point in (x, x + a)]
    nodes, weights = np.polynomial.legendre.leggauss(count)
    values = [_curvature(function, x + 0.5 * (1.0 + float(t)) * a, a, v) for t in nodes]
    integral = sum(0.5 * float(w) * c for w, c in zip(weights, values, strict=True))
    scale = abs(ends[1] - ends[0]) + sum(0.5 * float(w) * abs(c) for w, c in zip(weights, values, strict=True))
    return abs(ends[1] - ends[0] - integral), scale


def _curvature(function: Function, x: Tensor, a: Tensor, v: Tensor) -> float:
    """Return ``vᵀ ∇²f(x) a``."""
    x = x.detach().requires_grad_()
    value = slope(function, x, v)
    if not value.requires_grad:
        return 0.0
    (product,) = torch.autograd.grad(value, x, materialize_grads=True)
    return float((product * a).sum())


def layer_at_fault(
    net: nn.Module, energy: Function, x: Tensor, fault: Callable[..., Any] | None
) -> tuple[str, str] | tuple[None, None]:
    """Name the innermost layer that has a fault of its own at the inputs that it gets, and say what it is.

    Args:
        net: the network.
        energy: calls it.
        x: points, ``(n, *event)``.
        fault: :func:`second_order_fault` or :func:`curvature_fault`; None for a layer that lets no gradient through.
    """
    for name, module, args, kwargs in reversed(_calls(net, energy, x)):
        start = args[0].detach().clone().requires_grad_()

        def output(a: Tensor, module: nn.Module = module, rest: Any = args[1:], kwargs: Any = kwargs) -> Any:
            return module(a.clone(), *rest, **kwargs)  # a copy, for layers that write in place

        with fixed_noise():
            made = output(start)
        if not isinstance(made, Tensor) or not made.is_floating_point():
            continue
        why = _layer_fault(output, start, made, fault)
        if why is not None:
            return f"layer {name!r} ({type(module).__name__})", why
    return None, None


def _layer_fault(output: Function, start: Tensor, made: Tensor, fault: Callable[..., Any] | None) -> str | None:
    if fault is None:
        return None if made.requires_grad else "it lets no gradient through"
    cotangent, v = torch.randn_like(made).requires_grad_(), torch.randn_like(start)

    def weighted(a: Tensor) -> Tensor:
        return (cotangent * output(a)).sum()

    if fault is curvature_fault:
        return "it has a kink" if curvature_fault(weighted, start) else None
    return second_order_fault(lambda: slope(weighted, start, v), [start, cotangent])


def _calls(net: nn.Module, energy: Function, x: Tensor) -> list[tuple[str, nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """List the layers inside a network with what each is first called with, an outer one before those in it."""
    names = {module: name for name, module in net.named_modules() if name}
    seen: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module not in seen and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            seen[module] = ((args[0].detach().clone(), *args[1:]), kwargs)

    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in names]
    try:
        with fixed_noise():
            energy(x.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    return [(name, module, *seen[module]) for module, name in names.items() if module in seen]

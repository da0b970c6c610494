"""Particles on the geometric path ``(1 − β) U_base + β U_target`` (Neal 2001), moved at one β after another."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from energyppl._checks import append_dims
from energyppl.autodiff.bound import BoundPotential, bind
from energyppl.autodiff.gradient import eager_energy_and_grad, energy_and_grad
from energyppl.autodiff.tracing import Evaluation, Values
from energyppl.inference.kernels.contract import Kernel, State
from energyppl.potentials.algebra import Bridge, Potential

__all__ = ["Ends", "Particles"]

_SMALL = 0.01  # of β: below, the target's part of a sum would be lost in rounding, and is evaluated by itself


Ends = tuple[Tensor, Tensor]
"""Energies ``(particles, *batch)`` and gradients ``(particles, *batch, *event)`` of one end of a path."""


class Parts(NamedTuple):
    """Energies and gradients of base and target, told apart so that β changes without evaluating again."""

    base: Tensor
    base_grad: Tensor
    target: Tensor
    target_grad: Tensor

    def end(self, *, base: bool) -> Ends:
        """Return the energy and gradient of one end."""
        return (self.base, self.base_grad) if base else (self.target, self.target_grad)

    def at(self, beta: float, x: Tensor) -> State:
        """Return the state at ``x`` for the path at β."""
        energy = (1.0 - beta) * self.base + beta * self.target
        return State(x, energy, (1.0 - beta) * self.base_grad + beta * self.target_grad)

    def work(self) -> Tensor:
        """Return U_target − U_base, float64: the work of a unit of β; +∞ outside of the target's support."""
        return torch.nan_to_num((self.target - self.base).double(), nan=math.inf, posinf=math.inf, neginf=-math.inf)

    def where(self, accepted: Tensor, new: "Parts") -> "Parts":
        """Return new parts where moves were ``accepted``, ``(particles, *batch)``, and these elsewhere."""
        wide = append_dims(accepted, self.base_grad)
        return Parts(
            torch.where(accepted, new.base, self.base),
            torch.where(wide, new.base_grad, self.base_grad),
            torch.where(accepted, new.target, self.target),
            torch.where(wide, new.target_grad, self.target_grad),
        )

    def chosen(self, index: Tensor) -> "Parts":
        """Return the parts of other particles, ``(particles, *batch)`` their indices."""
        return Parts(*(_take(part, index) for part in self))


def _take(values: Tensor, index: Tensor) -> Tensor:
    return torch.take_along_dim(values, append_dims(index, values), 0)


class BoundBridge(BoundPotential):
    """The path at one β, bound: energy and gradient are those of its ends put together, which it keeps."""

    def __init__(self, base: BoundPotential, target: BoundPotential, like: Tensor) -> None:
        self._beta = torch.zeros((), dtype=like.dtype, device=like.device)
        super().__init__(Bridge(base, target, self._beta))
        self._ends, self._weights = (base, target), (1.0, 0.0)
        self._seen: tuple[Tensor, Parts] | None = None  # the last points whose energy and gradient were asked for

    def go_to(self, beta: float) -> None:
        """Go to another β."""
        self._beta.fill_(beta)
        self._weights, self._seen = (1.0 - beta, beta), None

    def serving(self, what: Evaluation, x: Tensor) -> Callable[[Tensor], Values]:
        """Return what puts the results of both ends together."""
        return partial(self._sum, what)

    def _sum(self, what: Evaluation, x: Tensor) -> Values:
        lower, upper = (end.evaluate(what, x) for end in self._ends)
        if what is eager_energy_and_grad:
            self._seen = x, Parts(*lower, *upper)
        rest, beta = self._weights
        if not rest:  # 0 · ∞ would be NaN where the base has the smaller support
            return upper
        return tuple(rest * low + beta * up for low, up in zip(lower, upper, strict=True))

    def parts_at(self, x: Tensor, accepted: Tensor) -> Parts | None:
        """Return the parts of the points that moves to ``x`` were accepted from, if those were evaluated last."""
        if self._seen is None:
            return None
        proposed, parts = self._seen
        moved = torch.where(append_dims(accepted, x), proposed, x)
        return parts if torch.equal(moved, x) else None


class Particles:
    """Particles on the geometric path, moved by a kernel at one β after another.

    Args:
        base: where the path begins.
        target: where it ends.
        kernel: moves them.
        x: where they are, ``(particles, *batch, *event)``.
        at_base: energy and gradient of the base there, if they are known.
        at_target: likewise of the target.
    """

    def __init__(
        self,
        base: Potential,
        target: Potential,
        kernel: Kernel,
        x: Tensor,
        *,
        at_base: Ends | None = None,
        at_target: Ends | None = None,
    ) -> None:
        self.base, self.target, self.kernel, self.x = bind(base), bind(target), kernel, x
        at_base, at_target = at_base or energy_and_grad(self.base, x), at_target or energy_and_grad(self.target, x)
        self.parts = Parts(*at_base, *at_target)
        self.particles = self.parts.target.numel()
        self.evaluations = float(self.particles)
        places = torch.arange(len(x), device=x.device)
        self.roots = append_dims(places, self.parts.target).expand_as(self.parts.target)
        self._bridge = BoundBridge(self.base, self.target, x)

    def move(self, beta: float, step_size: float) -> Tensor:
        """Move by one step of the kernel at β > 0; return its mean acceptance."""
        self._bridge.go_to(beta)
        state, info = resized(self.kernel, step_size).step(self._bridge, self.parts.at(beta, self.x))
        self.x = state.x
        self.evaluations += info.cost() * self.particles
        new = self._bridge.parts_at(state.x, info.accepted) or self._parts_at(state, beta)
        self.parts = self.parts.where(info.accepted, new)  # as it was where it was refused: no rounding builds up
        return info.accept_prob.mean()

    def _parts_at(self, state: State, beta: float) -> Parts:
        """Evaluate the parts of a state; the target's by difference, if it would not be lost in rounding."""
        energy, grad = energy_and_grad(self.base, state.x)
        if beta < _SMALL:
            self.evaluations += self.particles
            return Parts(energy, grad, *energy_and_grad(self.target, state.x))
        rest = 1.0 - beta
        return Parts(energy, grad, (state.energy - rest * energy) / beta, (state.grad - rest * grad) / beta)

    def resample(self, index: Tensor) -> None:
        """Replace the particles by others, ``(particles, *batch)`` their indices."""
        self.x, self.parts, self.roots = _take(self.x, index), self.parts.chosen(index), _take(self.roots, index)


def resized(kernel: Any, step_size: float) -> Kernel:
    """Return the kernel with another step size; as it is if it has none."""
    found: Kernel = replace(kernel, step_size=step_size) if hasattr(kernel, "step_size") else kernel
    return found

"""The one hot door: an energy and its gradient in one call, traced once and run without autograd.

Everything that samples calls :func:`energy_and_grad`.  Behind it a potential is traced once per shape into a flat list
of ATen operations (forward and backward together), and that list is split in two:

- the *prologue*, which does not depend on ``x`` (transposed weights, embeddings of noise levels, the gradient of the
  last layer, ...); it runs again only when a weight or a tensor field of the potential changes;
- the *body*, which runs at every call, with no autograd bookkeeping and every buffer freed at its last use.

Where tracing can't serve (random numbers, in-place updates, control flow on values, a plain function whose closure
could change unseen) the door falls back to eager autograd, and a new trace is compared with eager before it is used.
Weights may be changed in every way but one: writing in place *through* ``.data`` (``p.data.mul_(2)``) leaves no trace
in torch; use ``torch.no_grad()``.
"""

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from energyppl._checks import check_event
from energyppl.autodiff.structure import (
    ModuleFingerprint,
    Snapshot,
    Structure,
    Untraceable,
    ordinary,
    rebuild,
    structure,
    without_inference_tensors,
)
from energyppl.autodiff.tracing import Evaluation, Trace, TraceFailure, Values
from energyppl.errors import InvalidInput

__all__ = ["eager_energy_and_grad", "energy_and_grad", "energy_only", "gradient_only"]

_TRACES_KEPT = 64


def energy_and_grad(
    potential: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Energy of each point and its gradient with respect to the point; parameters take no gradient.

    Args:
        potential: maps ``(*batch, *event)`` to ``(*batch,)``, in nats; points must not influence each other.
        x: points, ``(*batch, *event)``, floating point.
        dtype: of the network's arithmetic, ``torch.bfloat16`` or ``torch.float16`` as in ``torch.autocast``; the
            points' own if None.  The results have the points' dtype either way.

    Returns:
        ``(energy, grad)`` of shapes ``(*batch,)`` and ``(*batch, *event)``, detached.  Non-finite values are handed on
        as they are: the caller decides (the kernels reject and flag).

    Raises:
        InvalidInput: if the potential returns anything but one number for each point.
    """
    energy, grad = _serve(potential, x, eager_energy_and_grad if dtype is None else _autocast(dtype))
    return energy, grad


def energy_only(potential: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The energy alone, ``(*batch,)``, through the same door and under the same terms as :func:`energy_and_grad`."""
    (energy,) = _serve(potential, x, eager_energy)
    return energy


def gradient_only(potential: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The gradient alone, ``(*batch, *event)``, through the same door: what is not needed for it is not worked out.

    Args:
        potential: as for :func:`energy_and_grad`.
        x: points, ``(*batch, *event)``.
        dtype: as for :func:`energy_and_grad`.
    """
    (grad,) = _serve(potential, x, eager_gradient if dtype is None else _autocast_gradient(dtype))
    return grad


def eager_energy_and_grad(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The same by plain autograd: the reference that every trace is compared with."""
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
    """The energy alone, in a tuple, without a trace."""
    _check_points(potential, x)
    with torch.no_grad():
        energy = potential(x.detach())
    _check_energy(potential, energy, x)
    return (_own(energy),)


def eager_gradient(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor]:
    """The gradient alone, in a tuple, without a trace."""
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
    """Detached, and not a view of the points."""
    return energy.detach().clone() if energy._is_view() or energy.is_leaf else energy.detach()


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


# --- Bound potentials ------------------------------------------------------------------------------------------------


class _Bound:
    """A potential with the trace that serves it and the prologue's values for its present weights."""

    def __init__(self, trace: Trace, parts: Structure, x: Tensor) -> None:
        self._trace = trace
        self._tensors = parts.tensors
        # Tensors made in inference mode keep no version; nothing may write to them outside it either.
        self._watched = [t for t in (*parts.tensors, *trace.constants) if not t.is_inference()]
        self._signature = (x.shape, x.dtype, x.device)
        self._body = trace.body
        self._refresh()

    def _refresh(self) -> None:
        self._versions = _versions(self._watched)
        with torch.inference_mode(False), torch.no_grad():
            self._carried = self._trace.prologue(*self._tensors, *self._trace.constants)

    def serves(self, x: Tensor) -> bool:
        return (x.shape, x.dtype, x.device) == self._signature and not self._trace.watch.changed()

    def __call__(self, x: Tensor) -> Values:
        if _versions(self._watched) != self._versions:
            self._refresh()
        with torch._C._AutoDispatchBelowAutograd():
            return self._body(x.contiguous(), *self._carried)


class _Eager:
    """The fallback, with the reason why no trace serves."""

    def __init__(
        self, potential: Callable[[Tensor], Tensor], what: Evaluation, reason: str, refusal: TraceFailure | None
    ) -> None:
        self._potential = weakref.ref(potential) if _is_weak(potential) else lambda: potential
        self._what = what
        self._refusal = refusal
        self.reason = reason

    def serves(self, x: Tensor) -> bool:
        return self._refusal is None or self._refusal.usable()

    def __call__(self, x: Tensor) -> Values:
        potential = self._potential()
        assert potential is not None  # the caller holds it
        return self._what(potential, x)


_optimizer_steps = 0  # torch's fused optimizers write to weights without raising their version


@functools.cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_count_optimizer_step)


def _count_optimizer_step(*_: object) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    # The address, because `parameter.data = other` leaves the version as it is.
    return [_optimizer_steps, *[t._version for t in tensors], *[t.data_ptr() for t in tensors]]


def _is_weak(potential: object) -> bool:
    return type(potential).__weakrefoffset__ > 0 and type(potential).__hash__ is not None


_bound: "weakref.WeakKeyDictionary[Any, dict[Evaluation, _Bound | _Eager]]" = weakref.WeakKeyDictionary()
_traces: "OrderedDict[tuple[Any, ...], Trace | TraceFailure]" = OrderedDict()


def _serve(potential: Callable[[Tensor], Tensor], x: Tensor, what: Evaluation) -> Values:
    table = _bound.get(potential) if _is_weak(potential) else None
    bound = table.get(what) if table is not None else None
    if bound is None or not bound.serves(x):
        bound = _bind(potential, x, what)
    return bound(x)


def _bind(potential: Callable[[Tensor], Tensor], x: Tensor, what: Evaluation) -> "_Bound | _Eager":
    _check_points(potential, x)
    if torch.is_autocast_enabled(x.device.type):
        return _Eager(potential, what, "autocast is on", None)
    bound: _Bound | _Eager
    try:
        parts = structure(potential)
        trace = _find_trace(potential, parts, x, what)
        bound = _Bound(trace, parts, x) if isinstance(trace, Trace) else _Eager(potential, what, trace.reason, trace)
    except Untraceable as reason:
        bound = _Eager(potential, what, str(reason), None)
    if _is_weak(potential):
        _bound.setdefault(potential, {})[what] = bound
    return bound


def _find_trace(
    potential: Callable[[Tensor], Tensor], parts: Structure, x: Tensor, what: Evaluation
) -> "Trace | TraceFailure":
    _watch_optimizers()
    key = (what, *parts.key, x.shape, x.dtype, x.device)
    trace = _traces.get(key)
    if trace is None or not trace.usable():
        attempt = trace.attempt + 1 if isinstance(trace, TraceFailure) else 1
        try:
            trace = _make_trace(potential, parts, x, what)
        except Untraceable as reason:
            trace = TraceFailure(str(reason), parts, attempt)
        for dead in [k for k, t in _traces.items() if not t.usable()]:
            del _traces[dead]
        _traces[key] = trace
        if len(_traces) > _TRACES_KEPT:
            _traces.popitem(last=False)
    _traces.move_to_end(key)
    return trace


def _make_trace(potential: Callable[[Tensor], Tensor], parts: Structure, x: Tensor, what: Evaluation) -> Trace:
    """Trace and compare with eager, leaving random numbers and the modules as they were: this was only a look."""
    if any(nn.parameter.is_lazy(p) for module in parts.modules for p in module.parameters()):
        raise Untraceable("a lazy module has no shapes yet")
    before, watch = Snapshot(parts.modules), ModuleFingerprint(parts.modules)
    with torch.inference_mode(False):
        x = ordinary(x).contiguous()
        parts = Structure(parts.key, [ordinary(t) for t in parts.tensors], parts.modules)
        try:
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                trace = Trace(potential, parts, x, what)
                _require_equal_to_eager(potential, trace, parts, x, what)
            if watch.changed():
                raise Untraceable("a forward pass changes the module's attributes")
        finally:
            before.restore()
    return trace


def _require_equal_to_eager(
    potential: Callable[[Tensor], Tensor], trace: Trace, parts: Structure, x: Tensor, what: Evaluation
) -> None:
    """Compare at points other than the traced ones, so that a value frozen into the trace shows."""
    other = (x.detach().flip(0) if x.dim() else x.detach()) * 0.9 + 0.05
    tolerance = 1e-9 if x.dtype == torch.float64 else 1e-3
    theirs = what(rebuild(potential, iter(parts.tensors)), other)
    for our, their in zip(_Bound(trace, parts, x)(other), theirs, strict=True):
        scale = their[torch.isfinite(their)].abs().amax() if bool(torch.isfinite(their).any()) else 1.0
        if not torch.allclose(our, their, rtol=tolerance, atol=tolerance * float(scale), equal_nan=True):
            raise Untraceable("the trace gave other numbers than eager autograd")

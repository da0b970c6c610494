"""Bound potentials: a potential with the traced programs that serve it, for as long as its weights stay as they are.

A potential is traced once per shape of points into a flat list of ATen operations (forward and backward together), and
that list is split in two:

- the *prologue*, which does not depend on the points (transposed weights, embeddings of noise levels, the gradient of
  the last layer, ...); it runs once for each bound potential;
- the *body*, which runs at every call, with no autograd bookkeeping and every buffer freed at its last use.

Traces are kept by structure: weights, tilts and levels are inputs of a trace, so binding a new potential of a known
structure traces nothing.  Where a trace can't serve (random numbers, in-place updates, control flow on values, a plain
function whose closure could change unseen), eager autograd does, and a new trace is compared with eager autograd before
it is used.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from energyppl._checks import check_event
from energyppl.autodiff.private import below_autograd
from energyppl.autodiff.structure import (
    ModuleFingerprint,
    Snapshot,
    Structure,
    Untraceable,
    Wrapper,
    check_not_model,
    ordinary,
    rebuild,
    structure,
)
from energyppl.autodiff.tracing import Evaluation, Trace, TraceFailure, Values

__all__ = ["BoundPotential", "bind", "evaluate", "unbound"]

Function = Callable[[Tensor], Tensor]
_TRACES_KEPT = 64
_CACHE, _FEWEST = 2**21, 512  # bytes of a core's cache, about; points that are worth a call


class BoundPotential(Wrapper):
    """A potential with its programs, made by :func:`bind`; as a potential it is the one that it was made from.

    Attributes:
        unbound: the potential that it was made from.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> bound = ep.autodiff.bind(normal)
        >>> bound.unbound is normal, bound(torch.ones(3, 2))
        (True, tensor([1., 1., 1.]))
    """

    unbound: Function

    def __init__(self, potential: Function) -> None:
        super().__init__(potential)
        self._served: dict[tuple[Any, ...], _Serving] = {}

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one point."""
        shape: torch.Size = self.unbound.event_shape  # type: ignore[attr-defined]  # of every Potential
        return shape

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of points ``x``, ``(*batch, *event)`` to ``(*batch,)``, by the potential itself."""
        return self.unbound(x)

    def evaluate(self, what: Evaluation, x: Tensor) -> Values:
        """Work out energy, gradient or both at the points ``x``, ``(*batch, *event)``."""
        return self.serving(what, x)(x)

    def serving(self, what: Evaluation, x: Tensor) -> Callable[[Tensor], Values]:
        """Return what works it out at points like ``x``, for a loop over points of one shape."""
        if torch.is_autocast_enabled(x.device.type):
            return partial(what, self.unbound)
        key = (what, x.shape, x.dtype, x.device)
        serving = self._served.get(key)
        if serving is None:
            serving = self._served[key] = _serving(self.unbound, what, x)
        return serving

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the potential that it was made from; programs can be neither, and are made again."""
        return bind, (self.unbound,)


def bind(potential: Function) -> BoundPotential:
    """Bind a potential for a loop that changes no weights: what does not depend on the points is worked out once.

    Programs are made at the first evaluation of each kind and shape of points.  A bound potential must not be used
    after a weight, a tensor field or anything else of the potential has changed: bind again, which is cheap (tens of
    microseconds; the trace is known).

    Args:
        potential: maps ``(*batch, *event)`` to ``(*batch,)``, in nats; one that is bound is returned as it is.

    Example:
        >>> bound = ep.autodiff.bind(ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,)))
        >>> ep.energy_and_grad(bound, torch.ones(1, 2))[1]
        tensor([[1., 1.]])
    """
    return potential if isinstance(potential, BoundPotential) else BoundPotential(potential)


def unbound(potential: Function) -> Function:
    """Return the potential that a bound one was made from, for those who ask for its class or its fields.

    Example:
        >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> ep.autodiff.unbound(ep.autodiff.bind(bell)) is bell
        True
    """
    return potential.unbound if isinstance(potential, BoundPotential) else potential


def evaluate(potential: Function, what: Evaluation, x: Tensor) -> Values:
    """Work out energy, gradient or both; a potential that is not bound is bound for this one call."""
    if not isinstance(x, Tensor):
        check_event("x", x, getattr(potential, "event_shape", ()))
    if isinstance(potential, BoundPotential):
        return potential.evaluate(what, x)
    if torch.is_autocast_enabled(x.device.type):
        return what(potential, x)
    return _serving(potential, what, x)(x)


class _Traced:
    """The body of a trace, with what its prologue makes of a potential's present tensors."""

    def __init__(self, trace: Trace, parts: Structure) -> None:
        self._body, self._prologue = trace.body, trace.prologue
        self._carried = self._fold([*parts.tensors, *trace.constants])

    def _fold(self, tensors: list[Tensor]) -> Values:
        """Run the prologue."""
        with torch.inference_mode(False), torch.no_grad():
            return self._prologue(*tensors)

    def __call__(self, x: Tensor) -> Values:
        with below_autograd():
            return self._body(x.contiguous(), *self._carried)


class _Eager:
    """Eager autograd, with the reason why no trace serves."""

    def __init__(self, potential: Function, what: Evaluation, reason: str) -> None:
        self._potential, self._what, self.reason = potential, what, reason

    def __call__(self, x: Tensor) -> Values:
        return self._what(self._potential, x)


class _InParts:
    """Many points, some at a time: what larger tensors cost more than smaller ones is the memory outside the cache."""

    def __init__(self, potential: Function, what: Evaluation, x: Tensor, rows: int) -> None:
        self._rows = rows
        self._some = _serving(potential, what, x[:rows])
        rest = len(x) % rows
        self._last = _serving(potential, what, x[-rest:]) if rest else self._some

    def __call__(self, x: Tensor) -> Values:
        *parts, last = x.split(self._rows)
        found = [*map(self._some, parts), self._last(last)]
        return tuple(map(torch.cat, zip(*found, strict=True)))


_Serving = _Traced | _Eager | _InParts
_traces: "OrderedDict[tuple[Any, ...], Trace | TraceFailure]" = OrderedDict()


def _serving(potential: Function, what: Evaluation, x: Tensor) -> "_Serving":
    """Find what evaluates a potential as it is now, at points like ``x``."""
    check_not_model("the energy", potential)
    check_event("x", x, getattr(potential, "event_shape", ()))
    try:
        parts = structure(potential)
    except Untraceable as reason:
        return _Eager(potential, what, str(reason))
    trace = _find_trace(potential, parts, what, x)
    if not isinstance(trace, Trace):
        return _Eager(potential, what, trace.reason)
    return _InParts(potential, what, x, trace.rows_at_once) if trace.rows_at_once else _Traced(trace, parts)


def _find_trace(potential: Function, parts: Structure, what: Evaluation, x: Tensor) -> Trace | TraceFailure:
    key = (what, *parts.key, x.shape, x.dtype, x.device)
    trace = _traces.get(key)
    if trace is None or not trace.usable():
        attempt = trace.attempt + 1 if isinstance(trace, TraceFailure) else 1
        try:
            trace = _make_trace(potential, parts, what, x)
        except Untraceable as reason:
            trace = TraceFailure(str(reason), parts, attempt)
        for outdated in [k for k, t in _traces.items() if not t.usable()]:
            del _traces[outdated]
        _traces[key] = trace
        if len(_traces) > _TRACES_KEPT:
            _traces.popitem(last=False)
    _traces.move_to_end(key)
    return trace


def _make_trace(potential: Function, parts: Structure, what: Evaluation, x: Tensor) -> Trace:
    """Trace and compare with eager autograd; random numbers and modules are left as they were."""
    if any(nn.parameter.is_lazy(p) for module in parts.modules for p in module.parameters()):
        raise Untraceable("a lazy module has no shapes yet")
    before, fingerprint = Snapshot(parts.modules), ModuleFingerprint(parts.modules)
    with torch.inference_mode(False):
        x = ordinary(x).contiguous()
        parts = Structure(parts.key, [ordinary(t) for t in parts.tensors], parts.modules)
        # Points other than the traced ones, so that a value frozen into the trace shows.
        other = (x.detach().flip(0) if x.dim() else x.detach()) * 0.9 + 0.05
        try:
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                eager = _eagerly(potential, parts, what, other)  # first: it may work out constants
                trace = Trace(potential, parts, x, what)
                _require_equal(_Traced(trace, parts)(other), eager)
                trace.rows_at_once = _rows_at_once(trace, potential, parts, what, other, eager)
            if fingerprint.changed():
                raise Untraceable("a forward pass changes the module's attributes")
        finally:
            before.restore()
    return trace


def _rows_at_once(
    trace: Trace, potential: Function, parts: Structure, what: Evaluation, x: Tensor, values: Values
) -> int:
    """Return how many points to evaluate at a time for all that is made of them to stay in the cache; 0 for all.

    It is 0 too where some points have other values than among all, or a tensor may belong to the points one by one.
    """
    count = len(x) if x.dim() else 0
    batch = x.dim() - len(getattr(potential, "event_shape", x.shape[1:]))
    each = any(tensor.shape[:1] == x.shape[:1] for tensor in (*parts.tensors, *trace.constants))
    if trace.largest <= 2 * _CACHE or x.device.type != "cpu" or batch != 1 or each:
        return 0
    rows = max(_FEWEST, 1 << (count * _CACHE // trace.largest).bit_length() - 1)
    if rows >= count:
        return 0
    try:
        for part in (slice(rows), slice(count - rows, None)):
            _require_equal(_eagerly(potential, parts, what, x[part]), tuple(value[part] for value in values))
    except Untraceable:
        return 0
    return rows


def _eagerly(potential: Function, parts: Structure, what: Evaluation, x: Tensor) -> Values:
    try:
        return what(rebuild(potential, iter(parts.tensors)), x)
    except Exception as error:  # a potential may refuse points that nobody asked for
        raise Untraceable(str(error)) from error


def _require_equal(ours: Values, theirs: Values) -> None:
    for our, their in zip(ours, theirs, strict=True):
        tolerance = 1e-9 if their.dtype == torch.float64 else 1e-3
        scale = their[torch.isfinite(their)].abs().amax() if bool(torch.isfinite(their).any()) else 1.0
        if not torch.allclose(our, their, rtol=tolerance, atol=tolerance * float(scale), equal_nan=True):
            raise Untraceable("the trace gave other numbers than eager autograd")

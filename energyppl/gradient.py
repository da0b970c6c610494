"""The one hot door: an energy and its gradient in one call, traced once and run without autograd.

Everything that samples calls :func:`energy_and_grad`.  Behind it a potential is traced once per shape into a flat list
of ATen operations (forward and backward together), and that list is split in two:

- the *prologue*, which does not depend on ``x`` (transposed weights, embeddings of noise levels, the gradient of the
  last layer, ...); it runs again only when a weight or a tensor field of the potential changes;
- the *body*, which runs at every call, with no autograd bookkeeping and every buffer freed at its last use.

Where tracing can't serve (random numbers, in-place updates, control flow on values, a plain function whose closure
could change unseen) the door falls back to eager autograd, and a new trace is compared with eager before it is used.
"""

import dataclasses
import functools
import operator
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.optimizer import register_optimizer_step_post_hook

from energyppl.errors import InvalidInput

__all__ = ["eager_energy_and_grad", "energy_and_grad", "energy_only"]

_Values = tuple[Tensor, ...]
_Evaluation = Callable[[Callable[[Tensor], Tensor], Tensor], _Values]
_TRACES_KEPT = 64
_SCALARS = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size)


def energy_and_grad(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Energy of each point and its gradient with respect to the point; parameters take no gradient.

    Args:
        potential: maps ``(*batch, *event)`` to ``(*batch,)``, in nats; points must not influence each other.
        x: points, ``(*batch, *event)``, floating point.

    Returns:
        ``(energy, grad)`` of shapes ``(*batch,)`` and ``(*batch, *event)``, detached.  Non-finite values are handed on
        as they are: the caller decides (the kernels reject and flag).

    Raises:
        InvalidInput: if the potential returns anything but one number for each point.
    """
    energy, grad = _serve(potential, x, eager_energy_and_grad)
    return energy, grad


def energy_only(potential: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The energy alone, ``(*batch,)``, through the same door and under the same terms as :func:`energy_and_grad`."""
    (energy,) = _serve(potential, x, eager_energy)
    return energy


def eager_energy_and_grad(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The same by plain autograd: the reference that every trace is compared with."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        energy = potential(leaf)
        _check_energy(potential, energy, x)
        if not energy.requires_grad:  # a potential that is constant in x
            return energy.detach(), torch.zeros_like(x)
        (grad,) = torch.autograd.grad(energy.sum(), leaf, allow_unused=True)
    return energy.detach(), torch.zeros_like(x) if grad is None else grad


def eager_energy(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor]:
    """The energy alone, in a tuple, without a trace."""
    with torch.no_grad():
        energy = potential(x.detach())
    _check_energy(potential, energy, x)
    return (energy,)


def _check_energy(potential: object, energy: object, x: Tensor) -> None:
    event_shape = getattr(potential, "event_shape", None)
    expected = x.shape[: x.dim() - len(event_shape)] if event_shape is not None else x.shape[:1]
    if not isinstance(energy, Tensor) or (event_shape is not None and energy.shape != expected):
        came = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
        raise InvalidInput(
            f"the energy must return one number for each point, shape {tuple(expected)}; got {came} "
            f"for points of shape {tuple(x.shape)}: sum or squeeze the last dimensions in the network's forward"
        )


# --- What a potential is made of ------------------------------------------------------------------------------------
# A dataclass potential (our algebra) is a tree: its tensors become inputs of the trace, so a new batch of tethers or
# levels re-uses the trace of the last one.  A module is a leaf whose parameters the trace holds by reference.


class _Untraceable(Exception):
    """Tracing can't serve this potential; the reason is the message."""


@dataclasses.dataclass(frozen=True)
class _Structure:
    key: tuple[Any, ...]
    tensors: list[Tensor]
    modules: list[nn.Module]


def _structure(potential: object) -> _Structure:
    tensors: list[Tensor] = []
    modules: list[nn.Module] = []

    def visit_field(owner: object, field: "dataclasses.Field[Any]") -> Any:
        value = getattr(owner, field.name)
        return ("pure", value) if field.metadata.get("pure") else visit(value)

    def visit(value: object) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return ("tensor", value.shape, value.dtype, value.device, value.stride())
        if isinstance(value, nn.Module):
            modules.append(value)
            return ("module", id(value))
        if isinstance(value, _SCALARS):
            return (type(value), value)
        if isinstance(value, tuple):
            return tuple(visit(item) for item in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return (type(value), *(visit_field(value, f) for f in dataclasses.fields(value)))
        raise _Untraceable(f"a {type(value).__name__}, which could change unseen")

    return _Structure((visit(potential),), tensors, modules)


def _rebuild(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same potential with its tensor fields replaced, in the order in which `_structure` met them."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        return tuple(_rebuild(item, tensors) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, nn.Module)):
        copy = object.__new__(type(value))
        for field in dataclasses.fields(value):
            object.__setattr__(copy, field.name, _rebuild(getattr(value, field.name), tensors))
        return copy
    return value


class _Watch:
    """Notices when a module is no longer what was traced: a weight, a buffer, a switch or a number was replaced."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._slots: list[tuple[dict[str, Any], str]] = []
        for module in {id(m): m for root in modules for m in root.modules()}.values():
            for table in (module._parameters, module._buffers, module._modules):
                self._slots.extend((table, name) for name in table)
            names = [n for n in vars(module) if n == "training" or not n.startswith("_")]
            self._slots.extend((vars(module), name) for name in names)
        self._seen = self._look()

    def _look(self) -> list[Any]:
        return [v if isinstance(v := table.get(name), (int, float, str)) else id(v) for table, name in self._slots]

    def changed(self) -> bool:
        return self._look() != self._seen


# --- Tracing ---------------------------------------------------------------------------------------------------------

_aten = torch.ops.aten
_SAME = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh_copy.default, _aten.lift_fresh.default}
_FILLED = {_aten.ones_like.default: 1.0, _aten.zeros_like.default: 0.0}
# The same operations through torch's own bindings, which cost a few microseconds less a call than `torch.ops`.
_QUICK = {
    _aten.addmm.default: torch.addmm,
    _aten.mm.default: torch.mm,
    _aten.mul.Tensor: torch.mul,
    _aten.add.Tensor: torch.add,
    _aten.sub.Tensor: torch.sub,
    _aten.div.Tensor: torch.div,
    _aten.neg.default: torch.neg,
    _aten.sin.default: torch.sin,
    _aten.cos.default: torch.cos,
    _aten.silu.default: nn.functional.silu,
}


class _Program:
    """Python generated for a list of ATen nodes: inputs in, a tuple of values out, each buffer freed at its last use."""

    def __init__(self, nodes: Sequence[Node], inputs: Sequence[Node], outputs: Sequence[Node]) -> None:
        space: dict[str, Any] = {}
        names = {node: f"v{index}" for index, node in enumerate([*inputs, *nodes])}

        def literal(value: Any) -> str:
            if isinstance(value, Node):
                return names[value]
            if isinstance(value, (list, tuple)):
                return "[" + "".join(literal(item) + ", " for item in value) + "]"
            space[f"c{len(space)}"] = value
            return f"c{len(space) - 1}"

        kept = set(outputs) | set(inputs)
        last_use = {used: node for node in nodes for used in node.all_input_nodes}
        lines = [f"def program({', '.join(names[n] for n in inputs)}):"]
        for node in nodes:
            space[f"f{names[node]}"] = _QUICK.get(node.target, node.target)  # type: ignore[call-overload]
            arguments = [literal(a) for a in node.args] + [f"{k}={literal(a)}" for k, a in node.kwargs.items()]
            lines.append(f"    {names[node]} = f{names[node]}({', '.join(arguments)})")
            lines += [f"    del {names[n]}" for n in node.all_input_nodes if last_use[n] is node and n not in kept]
        lines.append(f"    return ({''.join(names[n] + ', ' for n in outputs)})")
        exec("\n".join(lines), space)
        self.run: Callable[..., tuple[Any, ...]] = space["program"]


class _Trace:
    """A potential's operations at one shape, split into a prologue (free of x) and a body."""

    def __init__(self, potential: Any, structure: _Structure, x: Tensor, what: _Evaluation) -> None:
        def evaluate(x: Tensor, *tensors: Tensor) -> _Values:
            return what(_rebuild(potential, iter(tensors)), x)

        try:
            module = make_fx(evaluate, tracing_mode="real")(x.detach(), *structure.tensors)
        except InvalidInput:
            raise
        except Exception as error:  # whatever a user's network does that a tracer can't follow
            raise _Untraceable(str(error)) from error
        self.watch = _Watch(structure.modules)
        self._modules = [weakref.ref(m) for m in structure.modules]
        graph = module.graph
        _simplify(graph)
        point, *tensors = (n for n in graph.nodes if n.op == "placeholder")
        held = [n for n in graph.nodes if n.op == "get_attr"]
        calls = [n for n in graph.nodes if n.op == "call_function"]
        results = list(graph.output_node().args[0])
        depends = {point}
        for node in calls:
            _require_pure(node)
            if any(used in depends for used in node.all_input_nodes):
                depends.add(node)
        body = [n for n in calls if n in depends]
        needed = [used for node in body for used in node.all_input_nodes] + results
        carried = list(dict.fromkeys(n for n in needed if n not in depends))
        early = [n for n in calls if n not in depends]
        self.constants: list[Tensor] = [operator.attrgetter(str(n.target))(module) for n in held]
        self.prologue = _Program(early, [*tensors, *held], carried).run
        self.body = _Program(body, [point, *carried], results).run


    def usable(self) -> bool:
        return all(ref() is not None for ref in self._modules) and not self.watch.changed()


def _simplify(graph: torch.fx.Graph) -> None:
    """Drop identities, turn ``ones_like(something of x)`` into a constant, and remove what nobody uses."""
    for node in list(graph.nodes):
        if node.target in _SAME:
            node.replace_all_uses_with(node.args[0])
        elif node.target in _FILLED:
            val = node.meta["val"]
            with graph.inserting_before(node):
                kwargs = {"dtype": val.dtype, "device": val.device}
                full = graph.call_function(_aten.full.default, (list(val.shape), _FILLED[node.target]), kwargs)
            node.replace_all_uses_with(full)
    graph.eliminate_dead_code()


def _require_pure(node: Node) -> None:
    if isinstance(node.target, torch._ops.OpOverload):
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise _Untraceable(f"{node.target} draws random numbers")
        if node.target._schema.is_mutable:
            raise _Untraceable(f"{node.target} writes in place")
    elif node.target is not operator.getitem:
        raise _Untraceable(f"{node.target} is not a plain operation")


# --- Bound potentials ------------------------------------------------------------------------------------------------


class _Bound:
    """A potential with the trace that serves it and the prologue's values for its present weights."""

    def __init__(self, trace: _Trace, structure: _Structure, x: Tensor) -> None:
        self._trace = trace
        self._tensors = structure.tensors
        # Tensors made in inference mode keep no version; nothing may write to them outside it either.
        self._watched = [t for t in (*structure.tensors, *trace.constants) if not t.is_inference()]
        self._signature = (x.shape, x.dtype, x.device)
        self._body = trace.body
        self._refresh()

    def _refresh(self) -> None:
        self._versions = _versions(self._watched)
        with torch.no_grad():
            self._carried = self._trace.prologue(*self._tensors, *self._trace.constants)

    def serves(self, x: Tensor) -> bool:
        return (x.shape, x.dtype, x.device) == self._signature and not self._trace.watch.changed()

    def __call__(self, x: Tensor) -> _Values:
        if _versions(self._watched) != self._versions:
            self._refresh()
        with torch._C._AutoDispatchBelowAutograd():
            return self._body(x, *self._carried)


class _Eager:
    """The fallback, with the reason why no trace serves."""

    def __init__(self, potential: Callable[[Tensor], Tensor], what: _Evaluation, reason: str) -> None:
        self._potential = weakref.ref(potential) if _is_weak(potential) else lambda: potential
        self._what = what
        self.reason = reason

    def serves(self, x: Tensor) -> bool:
        return True

    def __call__(self, x: Tensor) -> _Values:
        potential = self._potential()
        assert potential is not None  # the caller holds it
        return self._what(potential, x)


_optimizer_steps = 0  # torch's fused optimisers write to weights without raising their version


@functools.cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_count_optimizer_step)


def _count_optimizer_step(*_: object) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [_optimizer_steps, *[t._version for t in tensors]]


def _is_weak(potential: object) -> bool:
    return type(potential).__weakrefoffset__ > 0 and type(potential).__hash__ is not None


_bound: "weakref.WeakKeyDictionary[Any, dict[_Evaluation, _Bound | _Eager]]" = weakref.WeakKeyDictionary()
_traces: "OrderedDict[tuple[Any, ...], _Trace]" = OrderedDict()


def _serve(potential: Callable[[Tensor], Tensor], x: Tensor, what: _Evaluation) -> _Values:
    table = _bound.get(potential) if _is_weak(potential) else None
    bound = table.get(what) if table is not None else None
    if bound is None or not bound.serves(x):
        bound = _bind(potential, x, what)
    return bound(x)


def _bind(potential: Callable[[Tensor], Tensor], x: Tensor, what: _Evaluation) -> "_Bound | _Eager":
    bound: _Bound | _Eager
    try:
        if torch.is_autocast_enabled(x.device.type):
            raise _Untraceable("autocast is on")
        structure = _structure(potential)
        bound = _Bound(_find_trace(potential, structure, x, what), structure, x)
    except _Untraceable as reason:
        bound = _Eager(potential, what, str(reason))
    if _is_weak(potential):
        _bound.setdefault(potential, {})[what] = bound
    return bound


def _find_trace(
    potential: Callable[[Tensor], Tensor], structure: _Structure, x: Tensor, what: _Evaluation
) -> _Trace:
    _watch_optimizers()
    key = (what, *structure.key, x.shape, x.dtype, x.device)
    trace = _traces.get(key)
    if trace is None or not trace.usable():
        # A network that draws random numbers must not see other ones because it was looked at here.
        with torch.random.fork_rng(devices=[]):
            trace = _Trace(potential, structure, x, what)
            _require_equal_to_eager(potential, trace, structure, x, what)
        for dead in [k for k, t in _traces.items() if not t.usable()]:
            del _traces[dead]
        _traces[key] = trace
        if len(_traces) > _TRACES_KEPT:
            _traces.popitem(last=False)
    _traces.move_to_end(key)
    return trace


def _require_equal_to_eager(
    potential: Callable[[Tensor], Tensor], trace: _Trace, structure: _Structure, x: Tensor, what: _Evaluation
) -> None:
    """Compare at points other than the traced ones, so that a value frozen into the trace shows."""
    other = x.detach().flip(0) * 0.9 + 0.05
    tolerance = 1e-9 if x.dtype == torch.float64 else 1e-3
    for ours, theirs in zip(_Bound(trace, structure, x)(other), what(potential, other), strict=True):
        scale = theirs[torch.isfinite(theirs)].abs().amax() if bool(torch.isfinite(theirs).any()) else 1.0
        if not torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(scale), equal_nan=True):
            raise _Untraceable("the trace gave other numbers than eager autograd")

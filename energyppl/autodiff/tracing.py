"""Traces of a potential's energy and gradient: flat lists of ATen operations, split into a prologue and a body."""

import operator
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from energyppl.autodiff.private import (
    OpOverload,
    is_mutable,
    out_of_place,
    returns_view,
)
from energyppl.autodiff.program import Program
from energyppl.autodiff.recording import kind_of, record
from energyppl.autodiff.structure import ModuleFingerprint, Structure, Untraceable, rebuild
from energyppl.errors import InvalidInput

__all__ = ["Evaluation", "Trace", "TraceFailure", "Values"]

Values = tuple[Tensor, ...]
Evaluation = Callable[[Callable[[Tensor], Tensor], Tensor], Values]
"""Results that a program gives of a potential at points: its energy, its gradient, or both."""
_ATTEMPTS = 3

_aten = torch.ops.aten
_MASKS = (torch.bool, torch.uint8)
_SAME = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh_copy.default, _aten.lift_fresh.default}
_NEUTRAL: dict[Any, int] = {
    _aten.pow.Tensor_Scalar: 1,
    _aten.mul.Scalar: 1,
    _aten.mul.Tensor: 1,
    _aten.div.Tensor: 1,
    _aten.sub.Tensor: 0,
}
_FILLED = {_aten.ones_like.default: 1.0, _aten.zeros_like.default: 0.0}


class Trace:
    """A potential's operations at one shape of points, split into a prologue (free of x) and a body.

    ``largest`` is the size in bytes of the largest tensor that the body makes, ``rows_at_once`` how many points are
    better evaluated at a time, 0 for all.

    Weights and closures' tensors are read where they are whenever the prologue runs, so their values can't be stale.
    """

    def __init__(self, potential: Any, parts: Structure, x: Tensor, what: Evaluation) -> None:
        def evaluate(x: Tensor, *tensors: Tensor) -> Values:
            return what(rebuild(potential, iter(tensors)), x)

        try:
            graph, held = record(evaluate, x.detach(), *parts.tensors)
        except (InvalidInput, Untraceable):
            raise
        except Exception as error:  # whatever a user's network does that a tracer can't follow
            raise Untraceable(str(error)) from error
        self._fingerprint = ModuleFingerprint(parts.modules)
        self._modules = [weakref.ref(m) for m in parts.modules]
        for node in graph.nodes:
            _make_pure(node)
            _require_pure(node)
        _simplify(graph)
        point, *tensors = (n for n in graph.nodes if n.op == "placeholder")
        _own_results(graph, point)
        read = [n for n in graph.nodes if n.op == "get_attr"]
        calls = [n for n in graph.nodes if n.op == "call_function"]
        results: list[Node] = list(_output(graph).args[0])  # type: ignore[arg-type]
        depends = _depending(graph, point)
        body = [n for n in calls if n in depends]
        needed = [used for node in body for used in node.all_input_nodes]
        carried = list(dict.fromkeys(n for n in needed if n not in depends))
        early = [n for n in calls if n not in depends]
        self.largest = max(
            (kind_of(n).shape.numel() * kind_of(n).dtype.itemsize for n in body if "kind" in n.meta), default=0
        )
        self.rows_at_once = 0
        self.constants: list[Tensor] = [held[n] for n in read]
        self._layouts = _layouts(self.constants)
        self.prologue = Program(early, [*tensors, *read], carried)
        self.body = Program(body, [point, *carried], results)

    def usable(self) -> bool:
        """Tell whether the modules are still made of what was traced."""
        alive = all(ref() is not None for ref in self._modules)
        return alive and not self._fingerprint.changed() and _layouts(self.constants) == self._layouts


def _layouts(tensors: list[Tensor]) -> list[Any]:
    """Return shapes and the like, which ``parameter.data = other`` may change while the parameter stays the same."""
    return [(t.shape, t.stride(), t.dtype, t.device) for t in tensors]


class TraceFailure:
    """The reason why a structure can't be traced.

    Another attempt is made when a module has changed (from train to eval), but only a few times.
    """

    def __init__(self, reason: str, parts: Structure, attempt: int) -> None:
        self.reason = reason
        self.attempt = attempt
        self._fingerprint = ModuleFingerprint(parts.modules)
        self._modules = [weakref.ref(m) for m in parts.modules]

    def usable(self) -> bool:
        """Tell whether another attempt would be for nothing."""
        return all(ref() is not None for ref in self._modules) and (
            self.attempt >= _ATTEMPTS or not self._fingerprint.changed()
        )


def _depending(graph: torch.fx.Graph, point: Node) -> set[Node]:
    """Find the nodes that depend on the points, with the copies of results that each call must make afresh."""
    depends = {point}
    for node in graph.nodes:
        if node.meta.get("fresh") or any(used in depends for used in node.all_input_nodes):
            depends.add(node)
    return depends


def _output(graph: torch.fx.Graph) -> Node:
    """Return a graph's last node, which torch before 2.5 has no method for."""
    last: Node = next(iter(reversed(graph.nodes)))
    return last


def _own_results(graph: torch.fx.Graph, point: Node) -> None:
    """Copy a result that is a view of the points, another result or the same at every call: callers may write to it."""
    depends, output = _depending(graph, point), _output(graph)
    results: list[Node] = []
    every: Any = output.args[0]
    for result in every:
        source = result
        while source is not point and source in depends and _is_view(source):
            source = source.all_input_nodes[0]
        if source is point or source not in depends or result in results:
            with graph.inserting_before(output):
                result = graph.call_function(_aten.clone.default, (result,))
                result.meta["fresh"] = True
        results.append(result)
    output.args = (results,)


def _is_view(node: Node) -> bool:
    if isinstance(node.target, OpOverload):
        return returns_view(node.target)
    return node.target is operator.getitem


def _simplify(graph: torch.fx.Graph) -> None:
    """Drop identities and repetitions, make ``ones_like(something of x)`` a constant, and remove what nobody uses."""
    for node in list(graph.nodes):
        if node.target in _SAME:
            node.replace_all_uses_with(node.args[0])
        elif node.target in _FILLED:
            kind = kind_of(node)
            with graph.inserting_before(node):
                full = graph.call_function(
                    _aten.full.default,
                    (list(kind.shape), _FILLED[node.target]),
                    {"dtype": kind.dtype, "device": kind.device},
                )
            full.meta["kind"] = kind
            node.replace_all_uses_with(full)
        elif node.target is _aten.pow.Tensor_Scalar and node.args[1] == 2:  # as torch works it out itself
            node.target, node.args = _aten.mul.Tensor, (node.args[0], node.args[0])
        elif node.target in _NEUTRAL and _keeps(node):
            node.replace_all_uses_with(node.args[0])
    _merge_equal(graph)
    graph.eliminate_dead_code()


def _keeps(node: Node) -> bool:
    """Tell whether an operation with its neutral number leaves a tensor as it is, its type included."""
    value, number = node.args[0], node.args[1]
    same = isinstance(value, Node) and kind_of(value).dtype == kind_of(node).dtype
    return same and isinstance(number, (int, float)) and number == _NEUTRAL[node.target]


def _merge_equal(graph: torch.fx.Graph) -> None:
    """Let operations be run once that are run twice on the same values: autograd works sines and cosines out anew."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function":
            first = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
            if first is not node:
                node.replace_all_uses_with(first)


def _make_pure(node: Node) -> None:
    """Replace an in-place operation by one that makes a new tensor, where nobody else uses the one written to."""
    if not isinstance(node.target, OpOverload) or not is_mutable(node.target):
        return
    pure, written = out_of_place(node.target), node.args[0] if node.args else None
    if pure is None or not isinstance(written, Node):
        return
    shared = written.op != "call_function" or _is_view(written) or any(_is_view(u) for u in written.users if u != node)
    if not shared or node.target is _aten.squeeze_.dim:  # that one is matmul's own, on a vector of its own
        node.target = pure


def _require_pure(node: Node) -> None:
    """Refuse operations whose results are not the same function of their inputs at every call."""
    if node.op != "call_function":
        return
    if isinstance(node.target, OpOverload):
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise Untraceable(f"{node.target} draws random numbers")
        if is_mutable(node.target):
            raise Untraceable(f"{node.target} writes in place")
        masks = [n for n in node.all_input_nodes if "kind" in n.meta and kind_of(n).dtype in _MASKS]
        by_index = node.target is _aten.index.Tensor
        if masks if by_index else torch.Tag.dynamic_output_shape in node.target.tags:
            raise Untraceable(f"{node.target} returns a shape that depends on values")
    elif node.target is not operator.getitem:
        raise Untraceable(f"{node.target} is not a plain operation")

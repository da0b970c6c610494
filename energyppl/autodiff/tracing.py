"""Flat programs of ATen operations, traced from a potential's energy and gradient."""

import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from energyppl.autodiff.structure import ModuleFingerprint, Structure, Untraceable, rebuild
from energyppl.errors import InvalidInput

Values = tuple[Tensor, ...]
Evaluation = Callable[[Callable[[Tensor], Tensor], Tensor], Values]
_ATTEMPTS = 3

_aten = torch.ops.aten
_MASKS = (torch.bool, torch.uint8)
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
    _aten.exp.default: torch.exp,
    _aten.log.default: torch.log,
    _aten.cat.default: torch.cat,
    _aten.select.int: torch.select,
}


_ROWS, _COLUMNS = 256, 32  # of a product from which on oneDNN is the faster


def _matrix_product(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """``rows @ matrix + bias`` by oneDNN: MKL, which torch takes, is half as fast on processors not made by Intel."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, matrix.t(), bias, "none", [], "")
    return product


def _biased_product(bias: Tensor, rows: Tensor, matrix: Tensor) -> Tensor:
    return _matrix_product(rows, matrix, bias)


def _is_large(rows: Any, matrix: Any) -> bool:
    rows, matrix = rows.meta["val"], matrix.meta["val"]
    large = rows.shape[0] >= _ROWS and min(matrix.shape) >= _COLUMNS
    return bool(
        large and rows.dtype == torch.float32 and rows.device.type == "cpu" and torch.backends.mkldnn.is_available()
    )


def _quick(node: Node) -> Any:
    """What to call for a node: the same operation by the shortest way there is."""
    if node.target is _aten.mm.default and _is_large(*node.args):
        return _matrix_product
    if node.target is _aten.addmm.default and not node.kwargs and _is_large(*node.args[1:]):
        bias: Any = node.args[0]
        if bias.meta["val"].dim() == 1:
            return _biased_product
    return _QUICK.get(node.target, getattr(node.target, "_op", node.target))  # type: ignore[call-overload]


class _Program:
    """Python generated for a list of ATen nodes: inputs in, a tuple of values out, buffers freed at their last use."""

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
            space[f"f{names[node]}"] = _quick(node)
            arguments = [literal(a) for a in node.args] + [f"{k}={literal(a)}" for k, a in node.kwargs.items()]
            lines.append(f"    {names[node]} = f{names[node]}({', '.join(arguments)})")
            lines += [f"    del {names[n]}" for n in node.all_input_nodes if last_use[n] is node and n not in kept]
        lines.append(f"    return ({''.join(names[n] + ', ' for n in outputs)})")
        exec("\n".join(lines), space)
        self.run: Callable[..., tuple[Any, ...]] = space["program"]


class _NoReading(TorchDispatchMode):
    """Refuses to read a tensor's value while tracing: the number would be frozen into the trace."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags:
            raise Untraceable(f"{func} reads a tensor's value")
        return func(*args, **(kwargs or {}))


class Trace:
    """A potential's operations at one shape, split into a prologue (free of x) and a body."""

    def __init__(self, potential: Any, parts: Structure, x: Tensor, what: Evaluation) -> None:
        def evaluate(x: Tensor, *tensors: Tensor) -> Values:
            return what(rebuild(potential, iter(tensors)), x)

        try:
            with _NoReading():  # type: ignore[no-untyped-call]
                module = make_fx(evaluate, tracing_mode="real")(x.detach(), *parts.tensors)
        except (InvalidInput, Untraceable):
            raise
        except Exception as error:  # whatever a user's network does that a tracer can't follow
            raise Untraceable(str(error)) from error
        self.watch = ModuleFingerprint(parts.modules)
        self._modules = [weakref.ref(m) for m in parts.modules]
        graph = module.graph
        for node in graph.nodes:
            _make_pure(node)
            _require_pure(node)
        _simplify(graph)
        point, *tensors = (n for n in graph.nodes if n.op == "placeholder")
        _own_results(graph, point)
        held = [n for n in graph.nodes if n.op == "get_attr"]
        calls = [n for n in graph.nodes if n.op == "call_function"]
        results: list[Node] = list(graph.output_node().args[0])  # type: ignore[arg-type]
        depends = _depending(graph, point)
        body = [n for n in calls if n in depends]
        needed = [used for node in body for used in node.all_input_nodes]
        carried = list(dict.fromkeys(n for n in needed if n not in depends))
        early = [n for n in calls if n not in depends]
        self.constants: list[Tensor] = [operator.attrgetter(str(n.target))(module) for n in held]
        self.prologue = _Program(early, [*tensors, *held], carried).run
        self.body = _Program(body, [point, *carried], results).run

    def usable(self) -> bool:
        """Tell whether the potential is still what was looked at."""
        return all(ref() is not None for ref in self._modules) and not self.watch.changed()


class TraceFailure:
    """Why no trace serves a structure; tried again when a module has changed (from train to eval), but not for ever."""

    def __init__(self, reason: str, parts: Structure, attempt: int) -> None:
        self.reason = reason
        self.attempt = attempt
        self._watch = ModuleFingerprint(parts.modules)
        self._modules = [weakref.ref(m) for m in parts.modules]

    def usable(self) -> bool:
        """Tell whether the potential is still what was looked at."""
        return all(ref() is not None for ref in self._modules) and (
            self.attempt >= _ATTEMPTS or not self._watch.changed()
        )


def _depending(graph: torch.fx.Graph, point: Node) -> set[Node]:
    """The nodes whose values depend on the points, with the copies of results that each call must make afresh."""
    depends = {point}
    for node in graph.nodes:
        if node.meta.get("fresh") or any(used in depends for used in node.all_input_nodes):
            depends.add(node)
    return depends


def _own_results(graph: torch.fx.Graph, point: Node) -> None:
    """Copy a result that is a view of the points or the same at every call, so that a caller may write to it."""
    depends, output = _depending(graph, point), graph.output_node()
    for result in dict.fromkeys(output.all_input_nodes):
        source = result
        while source is not point and source in depends and _is_view(source):
            source = source.all_input_nodes[0]
        if source is point or source not in depends:
            with graph.inserting_before(output):
                copy = graph.call_function(_aten.clone.default, (result,))
                copy.meta["fresh"] = True
            output.replace_input_with(result, copy)


def _is_view(node: Node) -> bool:
    if isinstance(node.target, torch._ops.OpOverload):
        return any(value.alias_info is not None for value in node.target._schema.returns)
    return node.target is operator.getitem


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
        elif node.target is _aten.pow.Tensor_Scalar and node.args[1] == 2:  # as torch works it out itself
            node.target, node.args = _aten.mul.Tensor, (node.args[0], node.args[0])
        elif (node.target is _aten.pow.Tensor_Scalar or node.target is _aten.mul.Scalar) and _keeps(node):
            node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code()


def _keeps(node: Node) -> bool:
    """Whether a power or product with one leaves a tensor as it is, its type included."""
    value, factor = node.args[0], node.args[1]
    same = isinstance(value, Node) and value.meta["val"].dtype == node.meta["val"].dtype
    return bool(factor == 1 and same)


def _make_pure(node: Node) -> None:
    """Make a new value instead, where the tensor written to is nobody else's: later uses mean the result anyway."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return
    name, written = node.target._schema.name.removeprefix("aten::"), node.args[0] if node.args else None
    packet = getattr(_aten, name.removesuffix("_"), None)
    overload = getattr(packet, node.target._overloadname, None)
    if not name.endswith("_") or overload is None or overload._schema.is_mutable or not isinstance(written, Node):
        return
    shared = written.op != "call_function" or _is_view(written) or any(_is_view(u) for u in written.users if u != node)
    if not shared or node.target is _aten.squeeze_.dim:  # that one is matmul's own, on a vector of its own
        node.target = overload


def _require_pure(node: Node) -> None:
    if node.op != "call_function":
        return
    if isinstance(node.target, torch._ops.OpOverload):
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise Untraceable(f"{node.target} draws random numbers")
        if node.target._schema.is_mutable:
            raise Untraceable(f"{node.target} writes in place")
        masks = [n for n in node.all_input_nodes if getattr(n.meta.get("val"), "dtype", None) in _MASKS]
        by_index = node.target is _aten.index.Tensor
        if masks if by_index else torch.Tag.dynamic_output_shape in node.target.tags:
            raise Untraceable(f"{node.target} returns a shape that depends on values")
    elif node.target is not operator.getitem:
        raise Untraceable(f"{node.target} is not a plain operation")

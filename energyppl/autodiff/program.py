"""Programs: flat lists of ATen operations, run one after another with no autograd."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from energyppl.autodiff.private import fused_linear, prefers_onednn, short_binding
from energyppl.autodiff.recording import kind_of

__all__ = ["Program"]

_aten = torch.ops.aten
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


class Program:
    """A list of (operation, places of its arguments, place of its result), run in order; bits equal to the trace.

    Args:
        nodes: calls of operations, in an order in which they can run.
        inputs: nodes whose values are passed at each call.
        outputs: nodes whose values are returned, in a tuple.
    """

    def __init__(self, nodes: Sequence[Node], inputs: Sequence[Node], outputs: Sequence[Node]) -> None:
        self._values: list[Any] = []  # constants at their places, None where results go
        self._steps: list[tuple[Callable[..., Any], Callable[[Any], Any], int, tuple[int, ...]]] = []
        self._place = {node: index for index, node in enumerate(inputs)}
        self._inputs = len(inputs)
        kept = {*inputs, *outputs}
        last_use = {used: node for node in nodes for used in node.all_input_nodes}
        for node in nodes:
            spent = [self._place[n] for n in node.all_input_nodes if last_use[n] is node and n not in kept]
            function = _by_name(_quick(node), tuple(node.kwargs)) if node.kwargs else _quick(node)
            arguments = (*node.args, *node.kwargs.values())
            self._place[node] = self._append(function, arguments, spent)
        self._outputs = _getter([self._place[n] for n in outputs])

    def __call__(self, *inputs: Tensor) -> tuple[Any, ...]:
        """Run every operation; a buffer is freed at its last use."""
        values = [*inputs, *self._values]
        for function, arguments, place, spent in self._steps:
            values[place] = function(*arguments(values))
            if spent:
                for index in spent:
                    values[index] = None
        return tuple(self._outputs(values))

    def _append(self, function: Callable[..., Any], arguments: Sequence[Any], spent: Sequence[int] = ()) -> int:
        """Add a step; its result takes the place of a value that it is the last to use, if there is one."""
        places: list[int] = []
        for argument in arguments:
            if isinstance(argument, Node):
                places.append(self._place[argument])
            elif isinstance(argument, (list, tuple)) and any(isinstance(item, Node) for item in argument):
                places.append(self._append(_listed, argument))
                spent = [*spent, places[-1]]
            else:  # fx has a list of its own
                places.append(self._new(list(argument) if isinstance(argument, (list, tuple)) else argument))
        place, *rest = spent or [self._new(None)]
        self._steps.append((function, _getter(places), place, tuple(rest)))
        return place

    def _new(self, value: Any) -> int:
        self._values.append(value)
        return self._inputs + len(self._values) - 1


def _listed(*items: Any) -> list[Any]:
    return list(items)


def _by_name(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """Make the last arguments of a function named ones."""

    def call(*arguments: Any) -> Any:
        named = dict(zip(names, arguments[-len(names) :], strict=True))
        return function(*arguments[: -len(names)], **named)

    return call


def _getter(places: Sequence[int]) -> Callable[[Any], Any]:
    """Make what picks values at several places, in C; of one place too it must return a sequence."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    return operator.itemgetter(slice(places[0], places[0] + 1) if places else slice(0, 0))


def _quick(node: Node) -> Callable[..., Any]:
    """Choose what to call for a node: the same operation by the shortest way there is."""
    arguments: tuple[Any, ...] = node.args
    if node.target is _aten.mm.default and _is_large(*arguments):
        return _matrix_product
    if node.target is _aten.mm.default and _is_large(*arguments, columns=2):
        return _narrow_product
    biased = node.target is _aten.addmm.default and not node.kwargs and len(kind_of(arguments[0]).shape) == 1
    if biased and _is_large(*arguments[1:]):
        return _biased_product
    quick: Callable[..., Any] = _QUICK.get(node.target) or short_binding(node.target)  # type: ignore[call-overload]
    return quick


def _matrix_product(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``rows @ matrix + bias`` by oneDNN."""
    return fused_linear(rows, matrix.t(), bias)


def _narrow_product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Compute ``rows @ matrix`` of few columns, of which MKL is slow unless they lie in memory one after another."""
    return _matrix_product(rows, matrix) if matrix.is_contiguous() else torch.mm(rows, matrix)


def _biased_product(bias: Tensor, rows: Tensor, matrix: Tensor) -> Tensor:
    return _matrix_product(rows, matrix, bias)


def _is_large(rows: Any, matrix: Any, *, columns: int = _COLUMNS) -> bool:
    rows, matrix = kind_of(rows), kind_of(matrix)
    large = rows.shape[0] >= _ROWS and matrix.shape[0] >= _COLUMNS and matrix.shape[1] >= columns
    return bool(large and rows.dtype == torch.float32 and rows.device.type == "cpu" and prefers_onednn())

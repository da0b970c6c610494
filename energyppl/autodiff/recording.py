"""Recordings: the ATen operations that a function runs, written down as a graph while it runs.

``torch.fx``'s ``make_fx`` records the same operations, but imports torch's compiler and a computer algebra system for
it, which takes seconds.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from energyppl.autodiff.private import TorchDispatchMode, WeakTensorKeyDictionary
from energyppl.autodiff.structure import Untraceable

__all__ = ["Kind", "Recording", "kind_of", "record"]

_aten = torch.ops.aten


class Kind(NamedTuple):
    """Shape, dtype and device of a recorded tensor, without its values."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Recording(NamedTuple):
    """A graph whose placeholders are the inputs, whose output is a list of results, and what else it reads.

    Attributes:
        graph: its nodes are calls of ATen operations, with their :class:`Kind` if they return a tensor.
        held: tensors that the function read without being given them, such as weights, by the nodes that stand for
            them, of kind ``get_attr``.
    """

    graph: Graph
    held: dict[Node, Tensor]


def record(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Recording:
    """Run a function of tensors and record every ATen operation that it runs, those of autograd's backward included.

    Raises:
        Untraceable: if a tensor's value is read, which would be frozen into the recording.
    """
    recorder = _Recorder()
    for tensor in inputs:
        recorder.name(tensor, recorder.graph.placeholder(f"input_{len(recorder.graph.nodes)}"))
    with recorder:
        results = function(*inputs)
    recorder.graph.output([recorder.node_of(result) for result in results])
    return Recording(recorder.graph, recorder.held)


def kind_of(node: Node) -> Kind:
    """Return the kind of the tensor that a recorded node stands for."""
    kind: Kind = node.meta["kind"]
    return kind


class _Recorder(TorchDispatchMode):
    """A mode that appends each operation to a graph; tensors are told apart by identity."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.held: dict[Node, Tensor] = {}
        self._nodes: Any = WeakTensorKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch not to shield the mode from its compiler, which it would import to do so."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in func.tags:
            raise Untraceable(f"{func} reads a tensor's value")
        if func is _aten.lift_fresh.default:  # a number made a tensor, which may be written to: keep the number apart
            func = _aten.lift_fresh_copy.default
        places, named = map_aggregate((args, kwargs), lambda value: self._place(value))
        node = self.graph.call_function(func, places, named)
        result = func(*args, **kwargs)
        self._name_all(result, node)
        return result

    def name(self, tensor: Tensor, node: Node) -> None:
        """Let a node stand for a tensor from here on: one that is written in place is another from then on."""
        node.meta["kind"] = Kind(tensor.shape, tensor.dtype, tensor.device)
        self._nodes[tensor] = node

    def node_of(self, tensor: Tensor) -> Node:
        """Return the node that stands for a tensor; one that nothing recorded has made is held from here on."""
        node: Node | None = self._nodes.get(tensor)
        if node is None:
            node = self.graph.create_node("get_attr", f"held_{len(self.held)}")
            self.held[node] = tensor
            self.name(tensor, node)
        return node

    def _place(self, value: Any) -> Any:
        return self.node_of(value) if isinstance(value, Tensor) else value

    def _name_all(self, result: Any, node: Node) -> None:
        if isinstance(result, Tensor):
            self.name(result, node)
        elif isinstance(result, (tuple, list)):
            for index, item in enumerate(result):
                if isinstance(item, Tensor):
                    self.name(item, self.graph.call_function(operator.getitem, (node, index)))

"""Differentiable scores: ∇U(x) with the graph that leads back to the weights.

Score matching differentiates a gradient, which not every network allows: some operations have no second derivative in
torch, and an ``autograd.Function`` may be marked ``once_differentiable`` or work on numpy arrays.  The last kind raises
no error: its part of the gradient would be missing.  So every network is tried once, and the layer at fault is named.
"""

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from energyppl.errors import InvalidInput

__all__ = ["differentiable_score"]

_sound: "WeakSet[nn.Module]" = WeakSet()  # networks that were tried, and can be differentiated twice


def differentiable_score(potential: Callable[[Tensor], Tensor], x: Tensor, net: nn.Module) -> Tensor:
    """Evaluate ∇U at points ``x``, differentiable with respect to the weights, and to ``x`` if it requires a gradient.

    A network is tried when it comes here for the first time, at the cost of one more double backward.  A backward
    function that stays within autograd and yet detaches what it saved can't be found this way.

    Args:
        potential: maps ``(*batch, *event)`` to ``(*batch,)``, in nats.
        x: points, ``(*batch, *event)``.
        net: the network behind ``potential``, in whose layers a fault is looked for.

    Returns:
        The gradient, ``(*batch, *event)``.

    Raises:
        InvalidInput: if the network can't be differentiated twice, or its gradient does not depend on its weights; the
            message names the layer.
    """
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        energy = potential(x) if net in _sound else _tried(potential, x, net)
        (score,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    return score


class _Layers:
    """Whose forward made which node of the graph; used as a context around one forward pass."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self.owner: dict[Node, str] = {}
        self.cuts: list[str] = []  # layers whose input has a gradient and whose output has none
        self._open: list[str] = [""]

    def __enter__(self) -> "_Layers":
        names = {module: name for name, module in self._net.named_modules()}

        def enter(module: nn.Module, args: object, kwargs: dict[str, Any]) -> None:
            self.own((args, kwargs))
            self._open.append(names[module])

        def leave(module: nn.Module, args: object, kwargs: dict[str, Any], output: object) -> None:
            self.own(output)
            self._open.pop()
            if any(t.requires_grad for t in _tensors((args, kwargs))) and not any(
                t.requires_grad for t in _tensors(output)
            ):
                self.cuts.append(names[module])

        self._hooks = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in names]
        self._hooks += [module.register_forward_hook(leave, with_kwargs=True) for module in names]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def own(self, value: object) -> None:
        """Give nodes that led to these tensors and have no owner yet to the innermost layer that is open."""
        waiting = [t.grad_fn for t in _tensors(value)]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in self.owner:
                self.owner[node] = self._open[-1]
                waiting += [following for following, _ in node.next_functions]

    def say(self, name: str) -> str:
        """Name a layer as a person looks for it."""
        kind = type(self._net.get_submodule(name)).__name__
        return f"layer {name!r} ({kind})" if name else kind


def _tried(potential: Callable[[Tensor], Tensor], x: Tensor, net: nn.Module) -> Tensor:
    """Return the energy, after it was differentiated twice on a trial."""
    with _Layers(net) as layers:
        energy = potential(x)
    layers.own(energy)
    weights = [p for p in net.parameters() if p.requires_grad]
    fault = _fault(energy, [x, *weights], layers.owner)
    if fault is not None:
        where, why = fault
        raise InvalidInput(
            f"score matching differentiates the network twice, which {layers.say(where)} does not allow ({why}): "
            "replace that layer, or train by an objective of energies such as ContrastiveDivergence"
        )
    if not _reaches(_score(energy, x), weights):
        cut = f" ({layers.say(layers.cuts[0])} lets no gradient through)" if layers.cuts else ""
        raise InvalidInput(
            f"the gradient ∇U(x) must depend on the weights; that of {layers.say('')} does not{cut}: score matching "
            "can't train it"
        )
    _sound.add(net)
    return energy


def _score(energy: Tensor, x: Tensor) -> Tensor | None:
    """∇U(x) with its graph, or None where the energy does not depend on ``x``."""
    if not energy.requires_grad:
        return None
    return torch.autograd.grad(energy.sum(), x, create_graph=True, allow_unused=True)[0]


def _reaches(score: Tensor | None, weights: list[nn.Parameter]) -> bool:
    """Tell whether there is a score and it depends on a weight, if there are any."""
    if score is None or not weights:
        return score is not None
    if not score.requires_grad:
        return False
    found = torch.autograd.grad(score.sum(), weights, retain_graph=True, allow_unused=True)
    return any(grad is not None for grad in found)


def _fault(energy: Tensor, leaves: list[Tensor], owner: dict[Node, str]) -> tuple[str, str] | None:
    """Find the owner of the first node whose backward can't be differentiated, and why; None if there is none.

    A gradient is linear in the cotangent that it starts from.  So where that requires a gradient, all that any node
    hands on must require one too, unless it is zero.
    """
    if not energy.requires_grad:
        return None
    made: list[tuple[Node, list[Tensor]]] = []  # from the energy back to the points

    def watch(node: Node) -> Any:
        def keep(grad_inputs: Any, grad_outputs: Any) -> None:
            made.append((node, list(_tensors(grad_inputs))))

        return node.register_hook(keep)

    hooks = [watch(node) for node in owner if node.next_functions]
    cotangent = torch.ones_like(energy).requires_grad_()
    try:
        (score,) = torch.autograd.grad(energy, leaves[0], cotangent, create_graph=True, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    for node, grads in made:
        for grad in grads:
            if not grad.requires_grad and bool(grad.any()):
                return owner[node], f"the backward of {node.name()} leaves autograd"
            if grad.grad_fn is not None and grad.grad_fn.name() == "torch::autograd::Error":
                return owner[node], f"{node.name()} is once_differentiable"
    if score is None or _refusal([score], [cotangent, *leaves]) is None:
        return None
    for node, grads in made:
        why = _refusal([grad for grad in grads if grad.requires_grad], [cotangent, *leaves])
        if why is not None:
            return owner[node], why
    return None


def _refusal(values: list[Tensor], leaves: list[Tensor]) -> str | None:
    """Return torch's words when it can't differentiate ``values``; None if it can."""
    try:
        if values:
            torch.autograd.grad([v.sum() for v in values], leaves, retain_graph=True, allow_unused=True)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return str(error).splitlines()[0].rstrip(".")
    return None


def _tensors(value: object) -> Iterator[Tensor]:
    """List all tensors in a value, or in tuples, lists and dictionaries of values."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)

"""Recipes of networks: the constructor and the arguments that a network was built with, as JSON."""

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["Rebuildable", "own_networks", "rebuilt"]

_CONSTRUCTORS = ("drl_cifar10", "cdrl_cifar10")  # class methods; "" is the class itself
_ACTIVATIONS = ("celu", "elu", "gelu", "hardswish", "leaky_relu", "mish", "relu", "relu6", "selu", "silu", "softplus")

Network = TypeVar("Network", bound="Rebuildable")


class Rebuildable:
    """A network that remembers how it was built, so that a file can say so without a pickle."""

    recipe: str | None
    """A JSON object of ``constructor``, ``arguments`` and torch's default ``dtype``.

    This library's networks among the arguments are written as their class and their own recipe.  None if an argument
    has no JSON, as another module or a closure.
    """

    def __new__(cls: type[Network], *args: Any, **kwargs: Any) -> Network:
        """Remember the arguments; those that don't fit are left for ``__init__`` to refuse."""
        network: Network = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind_partial(network, *args, **kwargs)
        except TypeError:
            return network
        network.recipe = _recipe("", dict(list(bound.arguments.items())[1:]))
        return network

    def built_by(self: Network, constructor: str, **arguments: Any) -> Network:
        """Say that a class method built this network, and from which arguments."""
        self.recipe = _recipe(constructor, arguments)
        return self


def _recipe(constructor: str, arguments: dict[str, Any]) -> str | None:
    try:
        plain = {name: _plain(value) for name, value in arguments.items()}
        dtype = str(torch.get_default_dtype()).removeprefix("torch.")  # of numbers that are no part of a state dict
        return json.dumps({"constructor": constructor, "arguments": plain, "dtype": dtype})
    except TypeError:
        return None


def _plain(value: Any) -> Any:
    """Return an argument as JSON."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, Rebuildable):
        if value.recipe is None or own_networks().get(type(value).__name__) is not type(value):
            raise TypeError(f"{type(value).__name__} has no recipe")
        return {"network": type(value).__name__, "recipe": json.loads(value.recipe)}
    for name in _ACTIVATIONS:
        if value is getattr(torch.nn.functional, name):
            return {"activation": name}
    return value


def rebuilt(cls: type[Network], recipe: str) -> Network:
    """Build a network of ``cls`` by its recipe, with weights of its own.

    Raises:
        ValueError: if the recipe is none, or names a constructor, an activation or a network that there isn't.
    """
    found = json.loads(recipe)
    constructor, arguments = found["constructor"], dict(found["arguments"])
    if constructor and (constructor not in _CONSTRUCTORS or not hasattr(cls, constructor)):
        raise ValueError(f"there is no constructor {constructor!r}")
    arguments = {name: _as_it_was(value) for name, value in arguments.items()}
    build: Any = getattr(cls, constructor) if constructor else cls
    network: Network
    with _default_dtype(found.get("dtype", "float32")):
        network = build(**arguments)
    return network


def own_networks() -> dict[str, type[Any]]:
    """Return this library's networks by name; a subclass of a user's own has no recipe that a file could tell."""
    package = __name__.rpartition(".")[0]
    return {cls.__name__: cls for cls in Rebuildable.__subclasses__() if cls.__module__.rpartition(".")[0] == package}


def _as_it_was(value: Any) -> Any:
    """Return an argument of :func:`_plain`'s making as it was passed, but for sequences, which are lists now."""
    if isinstance(value, list):
        return [_as_it_was(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "network" in value:
        cls = own_networks().get(value["network"])
        if cls is None:
            raise ValueError(f"there is no network {value['network']!r}")
        return rebuilt(cls, json.dumps(value["recipe"]))
    if value.get("activation") not in _ACTIVATIONS:
        raise ValueError(f"there is no activation {value}")
    return getattr(torch.nn.functional, value["activation"])


@contextmanager
def _default_dtype(name: str) -> Iterator[None]:
    """Let torch's default be a dtype inside: what a network computes once is then rounded as it was."""
    if name not in ("float16", "bfloat16", "float32", "float64"):
        raise ValueError(f"there is no default dtype {name!r}")
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)

"""Structures of potentials: the tensors and modules that they hold, and the fingerprints of modules.

A frozen dataclass (the potential algebra) is a tree: its tensors become inputs of a trace, so a new batch of tilts or
levels takes the trace of the last one.  A module is a leaf, whose weights a trace reads where they are.
"""

import dataclasses
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from energyppl.autodiff.private import hook_tables, module_tables
from energyppl.errors import InvalidInput

__all__ = [
    "ModuleFingerprint",
    "Snapshot",
    "Structure",
    "Untraceable",
    "Wrapper",
    "check_not_model",
    "dtype_named",
    "modules_of",
    "modules_read_by",
    "ordinary",
    "rebuild",
    "structure",
    "without_inference_tensors",
]

_SCALARS = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size)
_OWN = frozenset(vars(nn.Module())) - {"training"}  # torch's bookkeeping, the same for every module


class Untraceable(Exception):
    """A potential that can't be traced; the message says why."""


class Wrapper:
    """A potential around another one that changes nothing of its energy: the structure is that of the inner one."""

    def __init__(self, unbound: Any) -> None:
        self.unbound = unbound


@dataclasses.dataclass(frozen=True)
class Structure:
    """A key that equal structures share, the tensors that a trace takes as inputs, and the modules that it reads."""

    key: tuple[Any, ...]
    tensors: list[Tensor]
    modules: list[nn.Module]


def structure(potential: object) -> Structure:
    """Take a potential apart into its tensors, its modules, and a key for all else.

    Raises:
        Untraceable: if it holds something that could change unseen, such as a plain function.
    """
    tensors: list[Tensor] = []
    modules: list[nn.Module] = []

    def visit_field(owner: object, field: "dataclasses.Field[Any]") -> Any:
        value = getattr(owner, field.name)
        if not _is_pure(field, value):
            return visit(value)
        try:
            hash(value)
        except TypeError:
            raise Untraceable(f"a {type(value).__name__}, which can't be told from another") from None
        modules.extend(modules_read_by(value))
        return ("pure", value)

    def visit(value: object) -> Any:
        if isinstance(value, Wrapper):
            return visit(value.unbound)
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
            if not type(value).__dataclass_params__.frozen:  # type: ignore[attr-defined]
                raise Untraceable(f"a {type(value).__name__}, whose fields could change unseen: make it frozen")
            return (type(value), *(visit_field(value, f) for f in dataclasses.fields(value)))
        raise Untraceable(f"a {type(value).__name__}, which could change unseen")

    return Structure((visit(potential),), tensors, modules)


def check_not_model(name: str, value: object) -> None:
    """Refuse a model or a distribution where an energy is wanted: calling one does not evaluate its energy.

    Raises:
        InvalidInput: for one; the message says what to pass instead.
    """
    if isinstance(value, torch.distributions.Distribution):
        way = "its .unconstrained()" if hasattr(value, "unconstrained") else "potentials.DistributionBase(distribution)"
        came = type(value).__name__
        raise InvalidInput(f"{name} must be a potential; got {came}, which draws when it is called: pass {way}")
    if isinstance(value, nn.Module) and hasattr(value, "marginal"):
        raise InvalidInput(
            f"{name} must be a potential; got the model {type(value).__name__}: pass ebm.marginal().potential, in data "
            "coordinates, or ebm.potential(), in standardized ones"
        )


def modules_of(potential: object) -> list[nn.Module]:
    """Find the modules of a potential, as far as that can be told."""
    try:
        return structure(potential).modules
    except Untraceable:
        held = vars(potential).values() if hasattr(potential, "__dict__") else ()
        return [module for value in held for module in modules_read_by(value)]


@contextmanager
def dtype_named(name: str, x: Tensor, potential: object) -> Iterator[None]:
    """Turn what torch says of points of another dtype, or elsewhere, than a potential's weights into a sentence.

    Raises:
        InvalidInput: in place of torch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        weights = (p for module in modules_of(potential) for p in module.parameters())
        own = next((p for p in weights if p.dtype.is_floating_point), x)
        if own.dtype != x.dtype:
            raise InvalidInput(
                f"{name} must be {own.dtype} like the network's weights; got {x.dtype}: convert one of them"
            ) from error
        if own.device != x.device:
            raise InvalidInput(
                f"{name} must be on {own.device} like the network's weights; got {x.device}: move one of them"
            ) from error
        raise


def modules_read_by(function: object) -> list[nn.Module]:
    """Find the modules that a function reads: in its closure, among its globals, or as its ``self``."""
    found = [function, getattr(function, "__self__", None)]
    inner = getattr(function, "__func__", function)
    if isinstance(inner, types.FunctionType):
        found += [_content(cell) for cell in inner.__closure__ or ()]
        found += [inner.__globals__.get(name) for name in inner.__code__.co_names]
        found += [*(inner.__defaults__ or ()), *(inner.__kwdefaults__ or {}).values()]
    return [value for value in found if isinstance(value, nn.Module)]


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def rebuild(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Make the same potential with other tensor fields, in the order in which :func:`structure` met them.

    A part that can't change, such as a toy, stays as it is: it may keep what it has worked out from its numbers.
    """
    if isinstance(value, Wrapper):
        return rebuild(value.unbound, tensors)
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        return tuple(rebuild(item, tensors) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, nn.Module)) and not _is_constant(value):
        copy = object.__new__(type(value))
        for field in dataclasses.fields(value):
            part = getattr(value, field.name)
            object.__setattr__(copy, field.name, part if _is_pure(field, part) else rebuild(part, tensors))
        return copy
    return value


def _is_pure(field: "dataclasses.Field[Any]", value: object) -> bool:
    """Tell whether a field is taken whole, with all that it holds, as its owner says of it."""
    return bool(field.metadata.get("pure")) and not (isinstance(value, nn.Module) or dataclasses.is_dataclass(value))


def _is_constant(value: object) -> bool:
    """Tell whether a part of a structure is made of numbers alone."""
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, nn.Module)):
        return all(_is_constant(getattr(value, field.name)) for field in dataclasses.fields(value))
    return isinstance(value, _SCALARS)


def ordinary(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy that autograd can use if it was made in inference mode (call it outside)."""
    return tensor.clone() if tensor.is_inference() else tensor


def without_inference_tensors(potential: Any) -> Any:
    """Make the potential's tensor fields :func:`ordinary`, as far as they can be replaced."""
    try:
        tensors = structure(potential).tensors
    except Untraceable:
        return potential
    return rebuild(potential, map(ordinary, tensors)) if any(t.is_inference() for t in tensors) else potential


class ModuleFingerprint:
    """The identity of all that modules are made of, but for the values of their tensors: submodules, numbers, hooks."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._tables: list[dict[str, Any]] = []  # a new name in any of them counts
        self._slots: list[tuple[dict[str, Any], str]] = []
        self._deep: list[tuple[dict[str, Any], str]] = []
        for module in {id(m): m for root in modules for m in root.modules()}.values():
            tables = module_tables(module)
            self._tables += [vars(module), *tables, *hook_tables(module)]
            for table in tables:
                self._slots.extend((table, name) for name in table)
            for name, value in vars(module).items():
                if name not in _OWN:
                    (self._deep if _is_deep(value) else self._slots).append((vars(module), name))
        # Held, so that no new object can have an old one's id.
        self._held = [table.get(name) for table, name in self._slots]
        self._held_deep: list[Any] = []
        for table, name in self._deep:
            _frozen(table.get(name), self._held_deep)
        self._seen = self._look()

    def _look(self) -> list[Any]:
        seen = [v if isinstance(v := table.get(name), (int, float, str)) else id(v) for table, name in self._slots]
        seen += map(len, self._tables)
        if self._deep:
            seen += [_frozen(table.get(name), []) for table, name in self._deep]
        return seen

    def changed(self) -> bool:
        """Tell whether anything is different from when the fingerprint was taken."""
        return self._look() != self._seen


def _is_deep(value: object) -> bool:
    """Tell whether a module's attribute can change inside while it stays the same object."""
    if isinstance(value, tuple):
        return any(_is_deep(item) for item in value)
    if isinstance(value, (list, dict)):
        return True
    plain = (*_SCALARS, Tensor, nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType)
    return not isinstance(value, plain) and hasattr(value, "__dict__")


def _frozen(value: object, held: list[Any], depth: int = 2) -> Any:
    """Describe a container or plain object comparably, two levels deep; what is known by its id goes to ``held``."""
    if isinstance(value, (int, float, str)):
        return value
    held.append(value)
    if depth and isinstance(value, (list, tuple)):
        return (id(value), *(_frozen(item, held, depth - 1) for item in value))
    if depth and _is_deep(value):
        items = value if isinstance(value, dict) else vars(value)
        return (id(value), *((_frozen(k, held, 0), _frozen(v, held, depth - 1)) for k, v in items.items()))
    return id(value)


class Snapshot:
    """The attributes and buffers of modules, to put back what a trial forward pass has changed."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        every = {id(m): m for root in modules for m in root.modules()}.values()
        self._tables = [(t, dict(t)) for m in every for t in (vars(m), *module_tables(m))]
        buffers = [b for m in every for b in m.buffers(recurse=False) if not b.is_inference()]
        self._buffers = [(b, b.detach().clone()) for b in buffers]

    def restore(self) -> None:
        """Put everything back."""
        for table, before in self._tables:
            if table.keys() != before.keys() or any(table[name] is not before[name] for name in before):
                table.clear()
                table.update(before)
        with torch.no_grad():
            for buffer, values in self._buffers:
                if not torch.equal(buffer, values):  # batch norm writes without raising the version
                    buffer.copy_(values)

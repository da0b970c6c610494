"""A GPU to pretend: CPU storages tagged as lying on "cuda", and an error wherever a real one would refuse a mix.

Inside :func:`pretend_device` all numbers are worked out on the CPU as always, but ``device="cuda"`` and ``.to("cuda")``
tag the storage that they make, ``.device`` and ``.is_cuda`` read the tag, and what an operation makes of tagged tensors
is tagged.  An operation on tensors of both kinds raises :class:`MixedDevices`, but for what torch allows:

- a CPU tensor of no dimension where a number could stand;
- a CPU index into a device's tensor, and copies from one device to the other.

Python asks for devices through ``__torch_function__``; operations, those of autograd and ``vmap`` too, pass through
``__torch_dispatch__``.  Not pretended: traces (gradients come from eager autograd), a device's own random numbers, and
torch functions that make tensors or ask for devices inside (met so far: ``one_hot``, ``quantile``, ``Module.to`` of a
tensor).  Backward passes run with the pretence on, since those that are written in Python may ask for devices.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from energyppl.autodiff import bound

_CPU, _CUDA = torch.device("cpu"), torch.device("cuda", 0)
_COPIES = {"copy_", "_to_copy", "_foreach_copy_", "set_"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
_TAKE_NUMBERS = {*_INDEXING, "masked_fill", "masked_fill_", "fill_"}  # besides what torch calls pointwise


class MixedDevices(BaseException):
    """What a GPU would refuse; no ``Exception``, so that no fallback of the code under test hides it."""


_tagged: dict[int, StorageWeakRef] = {}  # by address, which the weak reference keeps from being used again


def _storage(x: Tensor) -> torch.UntypedStorage:
    functorch = torch._C._functorch
    with torch._C.DisableTorchFunction():
        while functorch.is_functorch_wrapped_tensor(x):
            x = functorch.get_unwrapped(x)
        return x.untyped_storage()


def _is_tagged(x: Tensor) -> bool:
    return _storage(x)._cdata in _tagged


def _tag(x: Tensor, on: bool) -> Tensor:
    storage = _storage(x)
    _tagged.pop(storage._cdata, None)
    if on:
        _tagged[storage._cdata] = StorageWeakRef(storage)
    return x


class _Operations(TorchDispatchMode):
    """Refuses mixes, and tags what operations on tagged tensors make."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [*_tensors(args), *(_tensors(list(kwargs.values())) if kwargs else ())]
        on = any(_is_tagged(x) for x in given)
        if on:
            _refuse_mixes(func, args, given)
        made = func(*args, **(kwargs or {}))
        known = {_storage(x)._cdata for x in given}  # afterwards, since set_ changes them
        for x in _tensors(made):
            if _storage(x)._cdata not in known:
                _tag(x, on)
        return made


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of an operation's arguments or results: lists and tuples, and no deeper kinds, hold them."""
    if isinstance(value, Tensor):
        return [value]
    return [x for part in value for x in _tensors(part)] if isinstance(value, (list, tuple)) else []


def _refuse_mixes(func: Any, args: Any, given: list[Tensor]) -> None:
    name = func._schema.name.split("::")[1]
    if name in _COPIES or name in _INDEXING:  # an index may lie on the CPU
        given = [args[0], *args[2:3]] if name in _INDEXING else []
    # torch's own clipping of gradients asks for their device past us, and so hands "_foreach" functions CPU scalars.
    takes_numbers = torch.Tag.pointwise in func.tags or name in _TAKE_NUMBERS or name.startswith("_foreach")
    for x in given:
        written = func._schema.is_mutable and x is args[0]
        if not _is_tagged(x) and (x.dim() or written or not takes_numbers):
            raise MixedDevices(f"{func} of a device's tensor and one of the CPU, {tuple(x.shape)} and {x.dtype}")


class _Python(TorchFunctionMode):
    """Answers where Python asks for a device, and tags where it names one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and func in _ANSWERS:
            return _ANSWERS[func](first, *args[1:], **kwargs)
        there = first is not None and _is_tagged(first)
        if there and name in ("numpy", "__array__"):
            raise MixedDevices("numpy of a device's tensor")
        named = kwargs.get("device")
        if named is not None:
            there, kwargs["device"] = _is_pretended(named), _CPU
        if there and kwargs.get("generator") is not None:
            raise MixedDevices(f"{name} on a device with the CPU's generator")
        made = func(*args, **kwargs)
        makes = named is not None or name in ("new_tensor", "__deepcopy__")  # these two, around the dispatcher
        return _tag(made, there) if makes and isinstance(made, Tensor) else made


def _is_pretended(device: str | torch.device) -> bool:
    return torch.device(device).type == _CUDA.type


def _to(x: Tensor, *args: Any, copy: bool | None = False, **options: Any) -> Tensor:
    """``x.to(...)`` in all its forms."""
    there, dtype = _is_tagged(x), x.dtype
    for value in (*args, *options.values()):
        if isinstance(value, Tensor):
            there, dtype = _is_tagged(value), value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, (str, torch.device)):
            there = _is_pretended(value)
    return _tag(x.to(dtype, copy=bool(copy) or there != _is_tagged(x)), there)


def _quantile(x: Tensor, q: float | Tensor, *args: Any, **options: Any) -> Tensor:
    """``x.quantile(...)``, which puts the number q on the device of ``x``."""
    given = q if isinstance(q, Tensor) else _tag(torch.tensor(q, dtype=x.dtype), _is_tagged(x))
    return x.quantile(given, *args, **options)


_ANSWERS: dict[Any, Callable[..., Any]] = {
    Tensor.device.__get__: lambda x: _CUDA if _is_tagged(x) else _CPU,
    Tensor.is_cuda.__get__: _is_tagged,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda x: not _is_tagged(x),  # type: ignore[attr-defined]
    Tensor.to: _to,
    Tensor.quantile: _quantile,
    torch.quantile: _quantile,
    Tensor.cpu: lambda x: _to(x, _CPU),
    Tensor.cuda: lambda x: _to(x, _CUDA),
    torch.as_tensor: _to,
    torch.tensor: lambda x, **options: _to(x.detach(), copy=True, **options),
    nn.functional.one_hot: lambda x, classes: (x[..., None] == _tag(torch.arange(classes), _is_tagged(x))).long(),
}


@contextmanager
def pretend_device() -> Iterator[None]:
    """Pretend that there is a device named "cuda"; its tensors are the CPU's again at the end."""
    move, fork, engine = nn.Module.to, torch.random.fork_rng, torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def module_to(module: nn.Module, *args: Any, **options: Any) -> nn.Module:
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype)
        return move(module, *args, **options)

    def run_backward(*args: Any, **options: Any) -> Any:
        with _Python():  # torch takes a mode off while it answers, and what runs inside would miss it
            return engine(*args, **options)

    with ExitStack() as stack:
        for owner, attribute, value in (
            (nn.Module, "to", module_to),
            (torch.autograd, "_engine_run_backward", run_backward),
            (bound, "_serving", lambda potential, what, x: bound._Eager(potential, what, "pretended")),
            (torch.random, "fork_rng", lambda devices=None: fork(devices=[])),
            (torch.cuda, "get_rng_state_all", lambda: [torch.get_rng_state()]),
            (torch.cuda, "set_rng_state_all", lambda states: None),
        ):
            stack.enter_context(mock.patch.object(owner, attribute, value))
        stack.callback(_tagged.clear)
        with _Python(), _Operations():
            yield

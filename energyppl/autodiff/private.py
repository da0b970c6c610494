"""Every private or experimental name of torch that the library uses: a new version of torch is checked here."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "AdamW",
    "OpOverload",
    "Optimizer",
    "TorchDispatchMode",
    "WeakTensorKeyDictionary",
    "below_autograd",
    "fused_linear",
    "has_fast_bfloat16",
    "hook_tables",
    "is_dispatched",
    "is_mutable",
    "is_transformed",
    "is_view",
    "module_tables",
    "out_of_place",
    "prefers_onednn",
    "returns_view",
    "short_binding",
    "without_value_checks",
]

OpOverload = torch._ops.OpOverload

below_autograd = torch._C._AutoDispatchBelowAutograd
"""A context in which operations go past autograd, so that none of its bookkeeping is paid for."""


class Optimizer(torch.optim.Optimizer):
    """Torch's optimizer without what shields it from torch's compiler, which takes two seconds to import.

    Not to be used inside ``torch.compile``.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class AdamW(Optimizer, torch.optim.AdamW):
    """Torch's AdamW, likewise."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def fused_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``rows @ weight.T + bias`` by oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product


def prefers_onednn() -> bool:
    """Tell whether oneDNN multiplies large matrices faster than what torch itself calls, which is MKL mostly.

    With AVX-512 it takes half of MKL's time on processors not by Intel.  With AVX2 it takes longer: 40 % for 256 rows
    of 128 columns, 20 % for 512, 10 % for 1,000.
    """
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def has_fast_bfloat16() -> bool:
    """Tell whether the processor multiplies matrices of bfloat16 itself, so that half precision saves time on it."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def is_dispatched() -> bool:
    """Tell whether a dispatch mode watches torch's operations, as while a trace is recorded."""
    return bool(torch._C._len_torch_dispatch_stack())


def is_transformed() -> bool:
    """Tell whether a transform of ``torch.func`` is at work, such as ``vmap``."""
    return torch._C._are_functorch_transforms_active()


def is_view(tensor: Tensor) -> bool:
    """Tell whether a tensor shares its memory with the one that it was made from."""
    return tensor._is_view()


def is_mutable(operation: Any) -> bool:
    """Tell whether an ATen operation writes to one of its arguments."""
    return bool(operation._schema.is_mutable)


def returns_view(operation: Any) -> bool:
    """Tell whether an ATen operation returns a view of one of its arguments."""
    return any(value.alias_info is not None for value in operation._schema.returns)


def out_of_place(operation: Any) -> Any:
    """Find the operation that makes a new tensor where this one writes in place; None if there is none."""
    name = operation._schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    overload = getattr(packet, operation._overloadname, None)
    return None if not name.endswith("_") or overload is None or overload._schema.is_mutable else overload


def short_binding(operation: Any) -> Callable[..., Any]:
    """Return what an ATen operation calls inside, which spares a call in Python."""
    binding: Callable[..., Any] = getattr(operation, "_op", operation)
    return binding


def module_tables(module: nn.Module) -> list[dict[str, Any]]:
    """Return a module's own dictionaries of parameters, buffers and submodules."""
    return [module._parameters, module._buffers, module._modules]


def hook_tables(module: nn.Module) -> list[dict[Any, Any]]:
    """Return a module's own dictionaries of hooks that run with its forward pass."""
    return [module._forward_hooks, module._forward_pre_hooks]


_check_values = torch.distributions.Distribution._validate_sample
_without = 0  # contexts that are open, nested ones or those of other threads


@contextmanager
def without_value_checks() -> Iterator[None]:
    """Leave out what distributions check of values, those too that were made while checks were on.

    Up to torch 2.6, ``vmap`` can't follow these checks.
    """
    global _without
    _without += 1
    torch.distributions.Distribution._validate_sample = lambda self, value: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        _without -= 1
        if not _without:
            torch.distributions.Distribution._validate_sample = _check_values  # type: ignore[method-assign]

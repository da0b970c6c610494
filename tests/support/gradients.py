"""Comparisons of traced programs with eager autograd, and what serves a potential."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from energyppl.autodiff import bound
from energyppl.autodiff.gradient import eager_energy, eager_energy_and_grad, energy_and_grad, energy_only


def cast(potential: Any, dtype: torch.dtype) -> Any:
    """The same potential with everything in it in another dtype."""
    if isinstance(potential, nn.Module):
        return potential.to(dtype)
    if isinstance(potential, Tensor):
        return potential.to(dtype) if potential.is_floating_point() else potential
    if isinstance(potential, tuple) and not isinstance(potential, torch.Size):
        return tuple(cast(item, dtype) for item in potential)
    if dataclasses.is_dataclass(potential):
        twin = copy.copy(potential)
        for field in dataclasses.fields(potential):
            object.__setattr__(twin, field.name, cast(getattr(potential, field.name), dtype))
        return twin
    return potential


def require_equal(potential: Any, x: Tensor) -> None:
    """The numbers of traced programs are eager autograd's, to rounding."""
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if x.dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
    energy, grad = energy_and_grad(potential, x)
    expected, expected_grad = eager_energy_and_grad(potential, x)
    torch.testing.assert_close(energy, expected, **tolerance, equal_nan=True)
    torch.testing.assert_close(grad, expected_grad, **tolerance, equal_nan=True)
    torch.testing.assert_close(energy_only(potential, x), expected, **tolerance, equal_nan=True)
    assert grad.shape == x.shape
    assert not energy.requires_grad
    assert not grad.requires_grad


def serving(potential: Any, x: Tensor, what: Any = eager_energy_and_grad) -> Any:
    """What evaluates a potential at points like ``x``: a trace, or eager autograd with a reason."""
    return bound._serving(potential, what, x)


def require_traced(potential: Any, x: Tensor) -> None:
    for what in (eager_energy_and_grad, eager_energy):
        found = serving(potential, x, what)
        assert isinstance(found, bound._Traced), found.reason


def require_eager(potential: Any, x: Tensor) -> None:
    found = serving(potential, x)
    assert isinstance(found, bound._Eager)
    assert found.reason


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    return wrapper

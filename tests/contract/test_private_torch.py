"""Torch's private names do what ``energyppl.autodiff.private`` says: what a new version of torch is first tried on."""

import ast
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from energyppl.autodiff import private

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "energyppl" / "autodiff" / "private.py"
SOURCES = [path for folder in ("energyppl", "inference", "models") for path in sorted((ROOT / folder).rglob("*.py"))]
add, add_ = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor


class Watch(private.TorchDispatchMode):
    """Lists the operations that it sees, and whether the library notices it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []
        self.noticed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def adam_steps(optimizer: Callable[..., torch.optim.Optimizer]) -> Tensor:
    weight = nn.Parameter(torch.arange(1.0, 6.0))
    updates = optimizer([weight], lr=0.1, weight_decay=0.2)
    for _ in range(5):
        updates.zero_grad()
        weight.square().sum().backward()
        updates.step()
    saved = updates.state_dict()
    updates.load_state_dict(saved)
    assert float(saved["state"][0]["step"]) == 5.0
    return weight.detach()


def check_adam() -> None:
    assert torch.equal(adam_steps(private.AdamW), adam_steps(torch.optim.AdamW))


def check_optimizer() -> None:
    class Descent(private.Optimizer):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for weight in self.param_groups[0]["params"]:
                    weight.sub_(weight.grad, alpha=self.param_groups[0]["lr"])
                    self.state[weight]["step"] = self.state[weight].get("step", 0) + 1

    found = adam_steps(lambda weights, lr, weight_decay: Descent(weights, {"lr": lr}))
    assert torch.allclose(found, 0.8**5 * torch.arange(1.0, 6.0))


def check_overload() -> None:
    assert isinstance(add, private.OpOverload)
    assert not isinstance(torch.add, private.OpOverload)


def check_dispatch() -> None:
    with Watch() as watch:
        torch.ones(2) + torch.ones(2)
        watch.noticed = private.is_dispatched()
    assert add in watch.seen
    assert watch.noticed
    assert not private.is_dispatched()


def check_weak_keys() -> None:
    table, one, equal = private.WeakTensorKeyDictionary(), torch.zeros(2), torch.zeros(2)
    table[one] = "one"
    assert one in table
    assert equal not in table  # by identity, not by value
    del one
    gc.collect()
    assert len(table) == 0


def check_below_autograd() -> None:
    x = torch.ones(2, requires_grad=True)
    with private.below_autograd():
        assert not (2.0 * x).requires_grad
    assert (2.0 * x).requires_grad


def check_fused_linear() -> None:
    for bias in (torch.randn(3), None):
        rows, weight = torch.randn(7, 5), torch.randn(3, 5)
        expected = nn.functional.linear(rows, weight, bias)
        torch.testing.assert_close(private.fused_linear(rows, weight, bias), expected)


def check_transforms() -> None:
    inside: list[bool] = []
    torch.func.vmap(lambda x: (inside.append(private.is_transformed()), x)[1])(torch.ones(2))
    assert inside == [True]
    assert not private.is_transformed()


def check_views() -> None:
    x = torch.ones(2)
    assert private.is_view(x[:1])
    assert not private.is_view(x.clone())


def check_mutable() -> None:
    assert private.is_mutable(add_)
    assert not private.is_mutable(add)


def check_returned_views() -> None:
    assert private.returns_view(torch.ops.aten.t.default)
    assert not private.returns_view(add)


def check_out_of_place() -> None:
    assert private.out_of_place(add_) == add
    assert private.out_of_place(add) is None


def check_binding() -> None:
    assert torch.equal(private.short_binding(add)(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))


def check_module_tables() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    assert private.module_tables(net)[2]["0"] is net[0]
    assert private.module_tables(net[0])[0]["weight"] is net[0].weight
    assert private.module_tables(net[1])[1]["running_mean"] is net[1].running_mean


def check_hook_tables() -> None:
    net = nn.Linear(1, 1)
    assert [len(table) for table in private.hook_tables(net)] == [0, 0]
    net.register_forward_hook(lambda *_: None)
    net.register_forward_pre_hook(lambda *_: None)
    assert [len(table) for table in private.hook_tables(net)] == [1, 1]


def check_bfloat16() -> None:
    assert isinstance(private.has_fast_bfloat16(), bool)


def check_onednn() -> None:
    """Of the processor alone, so that two runs with the same seed take the same products."""
    with pytest.MonkeyPatch.context() as patch:
        for capability, expected in (("AVX2", False), ("AVX512", True), ("DEFAULT", False)):
            patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
            assert private.prefers_onednn() is (expected and torch.backends.mkldnn.is_available())
    assert isinstance(torch.backends.cpu.get_cpu_capability(), str)


def check_values() -> None:
    positive = torch.distributions.Exponential(torch.ones(()), validate_args=True)
    with private.without_value_checks():
        with private.without_value_checks():
            pass
        logs = torch.func.vmap(positive.log_prob)(torch.tensor([-1.0, 1.0]))
        assert torch.isfinite(logs[1])
    with pytest.raises(ValueError, match="support"):
        positive.log_prob(torch.tensor(-1.0))


CHECKS: dict[str, Callable[[], None]] = {
    "AdamW": check_adam,
    "OpOverload": check_overload,
    "Optimizer": check_optimizer,
    "TorchDispatchMode": check_dispatch,
    "WeakTensorKeyDictionary": check_weak_keys,
    "below_autograd": check_below_autograd,
    "fused_linear": check_fused_linear,
    "has_fast_bfloat16": check_bfloat16,
    "hook_tables": check_hook_tables,
    "is_dispatched": check_dispatch,
    "is_mutable": check_mutable,
    "is_transformed": check_transforms,
    "is_view": check_views,
    "module_tables": check_module_tables,
    "out_of_place": check_out_of_place,
    "prefers_onednn": check_onednn,
    "returns_view": check_returned_views,
    "short_binding": check_binding,
    "without_value_checks": check_values,
}


@pytest.mark.parametrize("name", private.__all__)
def test_private_name(name: str) -> None:
    CHECKS[name]()


def underscored(path: Path) -> set[str]:
    """Attributes that begin with one underscore, of anything but ``self`` and ``cls``."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


def private_modules(path: Path) -> set[str]:
    """Modules of torch with an underscore in their names that a file imports from."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {module for module in modules if module.startswith("torch") and "._" in module}


def test_no_other_file_names_them() -> None:
    names = underscored(FILE)
    assert {"_ops", "_C", "_schema", "_parameters"} <= names
    assert private_modules(FILE)
    found = {path.relative_to(ROOT).as_posix(): underscored(path) & names for path in SOURCES if path != FILE}
    assert {path: here for path, here in found.items() if here} == {}
    assert [path for path in SOURCES if path != FILE and private_modules(path)] == []

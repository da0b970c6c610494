"""SOAP: steps that do not depend on the axes of a weight matrix, Adam for all else, states that fit or are refused."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.objectives.contract import OptimizerSettings
from energyppl.inference.training import SOAP
from energyppl.inference.training.updates import Updates

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
ADAM = partial(torch.optim.AdamW, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
OURS = partial(SOAP, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)


def descended(make: Make, first: Tensor, loss: Callable[[Tensor], Tensor], updates: int) -> Tensor:
    weight = nn.Parameter(first.clone())
    optimizer = make([weight])
    for _ in range(updates):
        optimizer.zero_grad()
        loss(weight).backward()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(7,), (1, 9), (1, 2, 3)], ids=["a vector", "a row", "a kernel with one output"])
def test_weights_without_a_basis_are_updated_by_adam(shape: tuple[int, ...]) -> None:
    first, target = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    ours, adams = (descended(make, first, lambda w: ((w - target) ** 4).sum(), 25) for make in (OURS, ADAM))
    assert torch.allclose(ours, adams, rtol=1e-9)


@pytest.mark.parametrize(("make", "same"), [(OURS, True), (ADAM, False)], ids=["SOAP", "Adam"])
def test_axes_of_a_matrix_do_not_matter(make: Make, same: bool) -> None:
    """Descent of f(A W B) from W is A W B's descent of f, for orthogonal A and B; Adam's is not."""
    torch.manual_seed(0)
    first = torch.randn(6, 6, dtype=torch.float64)
    target, scales = torch.randn_like(first), torch.logspace(-1, 0, 36, dtype=torch.float64).reshape(6, 6)
    left, right = (torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q for _ in range(2))
    plain = descended(make, left @ first @ right, lambda w: (scales * (w - target)).square().sum(), 40)
    turned = descended(make, first, lambda w: (scales * (left @ w @ right - target)).square().sum(), 40)
    moved = (plain - left @ first @ right).norm()
    assert bool((left @ turned @ right - plain).norm() < 1e-6 * moved) is same


@pytest.mark.parametrize("shape", [(6, 4, 2, 2), (6, 16, 1, 1), (2, 16, 8)])
def test_kernels_are_matrices_with_a_row_for_each_output(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    first, target = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    if len(shape) == 4:  # as convolutions on images keep them
        first = first.contiguous(memory_format=torch.channels_last)
    kernel = descended(OURS, first, lambda w: ((w - target) ** 4).sum(), 25)
    matrix = descended(OURS, first.flatten(1), lambda w: ((w - target.flatten(1)) ** 4).sum(), 25)
    assert torch.allclose(kernel.flatten(1), matrix, rtol=0.0, atol=1e-10)  # the same operations, so rounding at most
    assert kernel.stride() == first.stride()


@pytest.mark.parametrize(("shape", "turned"), [((3, 1030), "left"), ((1030, 3), "right"), ((3, 31), "left")])
def test_of_a_long_side_no_eigenvectors_are_followed(shape: tuple[int, int], turned: str) -> None:
    """Descent then depends on that side's axes alone: f(A W) from W is that of f, but not f(W B), or the reverse."""
    torch.manual_seed(0)
    first, target = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    scales = torch.linspace(0.1, 1.0, first.numel(), dtype=torch.float64).reshape(shape)
    assert {name for name in SOAP.shapes(first) if name.endswith("_basis")} == {f"{turned}_basis"}
    for side, size in zip(("left", "right"), shape, strict=True):
        turn = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
        turning = partial(torch.matmul, turn) if side == "left" else partial(torch.matmul, other=turn)
        start = turning(first)
        plain = descended(OURS, start, lambda w: (scales * (w - target)).square().sum(), 20)
        other = descended(OURS, first, lambda w, t=turning: (scales * (t(w) - target)).square().sum(), 20)
        assert bool((turning(other) - plain).norm() < 1e-6 * (plain - start).norm()) is (side == turned)


@pytest.mark.parametrize("every", [1, 7, 10**9])
def test_it_is_adam_where_the_axes_are_eigenvectors(every: int) -> None:
    """Of a diagonal gradient they are, and their order changes on the way, so squares must be sorted with them."""
    first = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    steep = torch.tensor([40.0, 3.0, 2.0, 0.1], dtype=torch.float64)

    def loss(weight: Tensor) -> Tensor:
        return (steep * weight.diagonal() ** 4).sum()

    # Rounding of 1e-16 beside gradients of up to 160 is divided by an eps of 1e-8, a few millionths of a step.
    ours = descended(partial(OURS, every=every, lr=0.05, preconditioner_beta=0.5), first, loss, 60)
    assert torch.allclose(ours, descended(partial(ADAM, lr=0.05), first, loss, 60), atol=1e-5)


def network(seed: int = 0) -> ep.RecoveryEBM:
    torch.manual_seed(seed)
    return ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=8, frequencies=4), ep.NoiseSchedule.cosine(levels=3))


def test_states_are_as_large_as_told() -> None:
    ebm = network()
    optimizer = SOAP(ebm.parameters())
    run = ep.Training(ebm, torch.randn(50, 2), steps=3, optimizer=lambda weights: optimizer)
    list(run)
    seen = [p for p in ebm.parameters() if p.grad is not None]
    assert any("left_basis" in optimizer.shapes(weight) for weight in seen)
    for weight in seen:
        assert {name: tuple(kept.shape) for name, kept in optimizer.state[weight].items()} == optimizer.shapes(weight)


IMAGES = ep.RecoveryEBM(ep.models.UNetEnergy((1, 8, 8), width=4), ep.NoiseSchedule.cosine(levels=3, log_snr_min=-6.0))
SUITED: dict[str, tuple[Any, Any, str]] = {
    "recovery": (network(), None, "SOAP"),
    "score": (ep.RecoveryEBM(ep.MLPEnergy((3,)), ep.NoiseSchedule.cosine(3, log_snr_min=-6.0)), None, "SOAP"),
    "images": (IMAGES, None, "SOAP"),
    "level 0 of images": (IMAGES, ep.objectives.Level0Likelihood(), "AdamW"),
    "whole levels": (network(), ep.objectives.LevelScoreMatching(), "AdamW"),
    "persistent chains": (ep.EBM(ep.MLPEnergy((2,), levels=1)), ep.PersistentLikelihood(slots=8), "AdamW"),
}


@pytest.mark.parametrize("name", SUITED)
def test_objectives_say_whom_it_suits(name: str) -> None:
    model, objective, kind = SUITED[name]
    run = ep.Training(copy.deepcopy(model), torch.randn(40, *model.event_shape), objective, steps=2)
    assert run.state_dict()["updates"] == kind
    own = ep.Training(
        copy.deepcopy(model), torch.randn(40, *model.event_shape), objective, steps=2, optimizer=torch.optim.SGD
    )
    assert own.state_dict()["updates"] == "SGD"


def decay_of(model: Any, rows: int, options: ep.TrainingOptions | None = None) -> float:
    objective = ep.objectives.LevelScoreMatching()
    run = ep.Training(copy.deepcopy(model), torch.randn(rows, *model.event_shape), objective, options=options)
    groups: list[dict[str, Any]] = run.state_dict()["optimizer"]["param_groups"]
    return float(groups[0]["weight_decay"])


def test_weights_of_tables_decay_less_the_more_rows_there_are() -> None:
    table = SUITED["score"][0]
    assert decay_of(table, 900) == 1.0
    assert decay_of(table, 10_000) == pytest.approx(3000 / 9000)  # a tenth of the rows is held out
    assert decay_of(table, 10_000, ep.TrainingOptions(weight_decay=0.5)) == 0.5
    assert decay_of(network(), 900) == 0.0
    assert decay_of(IMAGES, 30) == 0.0


class Own(ep.objectives.SlicedScoreMatching):
    def default_optimizer(self, model: ep.EBM, rows: int) -> OptimizerSettings:
        return OptimizerSettings(1.0 / rows, 0.2, soap=True)


@pytest.mark.parametrize(
    ("options", "rate", "decay"),
    [({}, 1.0 / 36, 0.2), ({"learning_rate": 0.3}, 0.3, 0.2), ({"weight_decay": 0.0}, 1.0 / 36, 0.0)],
)
def test_an_objective_of_ones_own_says_what_the_options_leave_open(
    options: dict[str, float], rate: float, decay: float
) -> None:
    ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
    run = ep.Training(ebm, torch.randn(40, 2), Own(), options=ep.TrainingOptions(**options))  # type: ignore[arg-type]
    kept = run.state_dict()
    assert kept["updates"] == "SOAP"
    group = kept["optimizer"]["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == pytest.approx((rate, decay))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_updates_are_counted_in_any_dtype(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.randn(3, 3, dtype=dtype))
    optimizer = SOAP([weight])
    for _ in range(300):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    assert int(optimizer.state[weight]["step"]) == 300


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no basis": lambda kept: kept.pop("left_basis"),
    "another size": lambda kept: kept.update(right=torch.eye(3)),
    "another dtype": lambda kept: kept.update(left=kept["left"].double()),
    "NaN": lambda kept: kept["right_basis"].fill_(torch.nan),
    "Adam's": lambda kept: [kept.pop(name) for name in ("left", "right", "left_basis", "right_basis")],
    "negative squares": lambda kept: kept["exp_avg_sq"].fill_(-1.0),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_states_are_refused(name: str) -> None:
    ebm = network()
    run = ep.Training(ebm, torch.randn(50, 2), steps=4)
    next(run)
    next(run)
    state = run.state_dict()["optimizer"]
    DAMAGE[name](next(kept for kept in state["state"].values() if "left" in kept))
    other = Updates(network(), nn.Module(), ep.TrainingOptions(steps=4), OptimizerSettings(0.01, soap=True), None, None)
    with pytest.raises(ValueError, match=r"moments|finite"):
        other.load(state, None)


@pytest.mark.parametrize(
    "settings", [{"lr": 0.0}, {"eps": 0.0}, {"betas": (1.0, 0.9)}, {"preconditioner_beta": -0.1}, {"every": 0}]
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ep.InvalidInput, match=f"{next(iter(settings))}="):
        SOAP([nn.Parameter(torch.zeros(2))], **settings)

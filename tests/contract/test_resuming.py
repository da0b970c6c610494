"""Every kind of model with every objective: continued bit for bit, one loss leaves the model alone, A then B is B."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.autodiff.private import AdamW
from energyppl.errors import CheckpointError
from tests.support.objectives import OF_ONE_ENERGY
from tests.support.trainings import COOPERATIVE, MODELS, OPTIONS, PAIRS, PERSISTENT, RECOVERY, training

every_pair = pytest.mark.parametrize(
    ("kind", "objective"), PAIRS, ids=[f"{kind} by {type(objective).__name__}" for kind, objective in PAIRS]
)


def require_equal(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@every_pair
def test_a_run_continued_twice_is_the_same_run(kind: str, objective: Any, tmp_path: Path) -> None:
    alone = training(kind, objective)
    for _ in range(3):
        next(alone)
    ep.save_checkpoint(tmp_path / "run.ckpt", alone.state_dict())
    list(alone)
    alone.finish()
    for more in (2, 3):
        torch.manual_seed(more)  # the other process is elsewhere in its stream
        other = training(kind, objective)
        other.load_state_dict(ep.load_checkpoint(tmp_path / "run.ckpt"))
        for _ in range(more):
            next(other)
        ep.save_checkpoint(tmp_path / "run.ckpt", other.state_dict())
    assert list(other) == []
    other.finish()
    assert [r.loss for r in other.records] == [r.loss for r in alone.records]
    require_equal(alone.model, other.model)
    require_equal(alone.state, other.state)


@every_pair
def test_a_loss_leaves_the_model_as_it_was(kind: str, objective: Any) -> None:
    run = training(kind, objective)
    model, batch = run._next_batch()
    before, kernel = copy.deepcopy(run.model.state_dict()), getattr(run.model, "kernel", None)
    objective.loss(model, run.state, batch).value.backward()
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert getattr(run.model, "kernel", None) is kernel
    assert any(p.grad is not None for p in run.model.parameters())


AFTER: list[tuple[str, Any, Any]] = [
    ("EBM", PERSISTENT, ep.objectives.ContrastiveDivergence(steps=2)),
    ("EBM", ep.objectives.NoiseContrastive(), PERSISTENT),
    *(("EBM", PERSISTENT, objective) for objective in OF_ONE_ENERGY),
    ("RecoveryEBM, initializer", RECOVERY, COOPERATIVE),
    ("RecoveryEBM, initializer", COOPERATIVE, RECOVERY),
    ("RecoveryEBM, continuous", RECOVERY, ep.objectives.LevelScoreMatching()),
    ("RecoveryEBM, continuous", ep.objectives.LevelScoreMatching(), RECOVERY),
]


@pytest.mark.parametrize(
    ("kind", "first", "second"), AFTER, ids=[f"{k}: {type(a).__name__}, {type(b).__name__}" for k, a, b in AFTER]
)
def test_training_by_one_then_another_is_the_other_from_its_weights(kind: str, first: Any, second: Any) -> None:
    run = training(kind, first)
    list(run)
    run.finish()
    fresh: Any = MODELS[kind]()
    for part in ("net", "initializer"):  # whose features are buffers
        if getattr(fresh, part, None) is not None:
            getattr(fresh, part).load_state_dict(getattr(run.model, part).state_dict())
    for name in ("loc", "scale", "is_standardized"):
        getattr(fresh, name).copy_(getattr(run.model, name))
    ends: list[Tensor] = []
    for model in (run.model, fresh):
        torch.manual_seed(5)
        again = training(kind, second, model)
        list(again)
        again.finish()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


def test_a_fine_tuned_model_goes_on_from_before_its_moves_are_measured_anew(tmp_path: Path) -> None:
    """``fit`` measures them at its end, for the weights of the end: no checkpoint within a run knows of them."""
    model: Any = MODELS["RecoveryEBM"]()
    ep.fit(model, torch.randn(40, 2), RECOVERY, options=OPTIONS, progress=False)
    ep.save(model, tmp_path / "model.ebm")
    run, other = (training("RecoveryEBM", RECOVERY, ep.load(tmp_path / "model.ebm")) for _ in range(2))
    assert "moves" in other.model.state_dict()
    for _ in range(4):
        next(run)
    other.load_state_dict(run.state_dict())
    assert "moves" not in other.model.state_dict()  # those were of other weights
    assert len(list(other)) == 4


def test_a_run_that_ended_is_found_ended_by_the_same_model(tmp_path: Path) -> None:
    model, data = MODELS["RecoveryEBM"](), torch.randn(40, 2)
    options: dict[str, Any] = {"options": OPTIONS, "checkpoint": tmp_path / "run.ckpt", "progress": False}
    ends = []
    for _ in range(2):
        history = ep.fit(model, data, RECOVERY, **options)
        ends.append((history.stopped, len(history.records), model.checksum(), model.moves))
    assert ends[0] == ends[1]


def _moments(state: dict[str, Any], change: Callable[[Tensor], Tensor]) -> None:
    entry = state["optimizer"]["state"][0]
    entry["exp_avg"] = change(entry["exp_avg"])


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "moments of another shape": lambda s: _moments(s, lambda m: torch.zeros(1000)),
    "moments of one number": lambda s: _moments(s, lambda m: m.flatten()[:1]),
    "moments of NaN": lambda s: _moments(s, lambda m: torch.full_like(m, torch.nan)),
    "moments in float64": lambda s: _moments(s, lambda m: m.double()),
    "ascent": lambda s: s["optimizer"]["param_groups"][0].update(maximize=True),
    "averages of NaN": lambda s: s["ema"]["average"][0].fill_(torch.nan),
    "averages of one number": lambda s: s["ema"].update(average=[torch.zeros(()) for _ in s["ema"]["average"]]),
    "too few averages": lambda s: s["ema"]["average"].pop(),
    "best weights of NaN": lambda s: s["early"]["best"][0].fill_(torch.nan),
    "weights of NaN": lambda s: s["model"]["net.readout.weight"].fill_(torch.nan),
    "a negative position": lambda s: s["batches"].update(position=-5),
    "a recent length of NaN": lambda s: s["clip"].update(recent=[torch.nan]),
    "too many lengths": lambda s: s["clip"].update(recent=[1.0, 1.0, 1.0]),
    "a gap of NaN": lambda s: s.update(gap=torch.nan),
    "records of text": lambda s: s.update(records="abcd"),
    "a reason that is a number": lambda s: s.update(stopped=3),
}


@pytest.fixture(scope="module")
def half() -> dict[str, Any]:
    """The state of a run after half of its updates; tests must not change it."""
    run = training("RecoveryEBM", RECOVERY)
    for _ in range(4):
        next(run)
    return run.state_dict()


@pytest.mark.parametrize("name", DAMAGE)
def test_crafted_checkpoints_are_refused_and_change_nothing(name: str, half: dict[str, Any]) -> None:
    state = copy.deepcopy(half)
    DAMAGE[name](state)
    other = training("RecoveryEBM", RECOVERY)
    before = other.model.checksum()
    with pytest.raises(CheckpointError) as caught:
        other.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert other.model.checksum() == before
    assert len(list(other)) == 8


def test_the_optimizer_is_torchs_adamw_bit_for_bit() -> None:
    weights = [torch.randn(3, 2, requires_grad=True), torch.randn(2, requires_grad=True)]
    twins = [weight.detach().clone().requires_grad_() for weight in weights]
    ours = AdamW(weights, lr=0.1, weight_decay=0.1, fused=True)
    theirs = torch.optim.AdamW(twins, lr=0.1, weight_decay=0.1, fused=True)
    for _ in range(2):
        for _ in range(3):
            for side, optimizer in ((weights, ours), (twins, theirs)):
                optimizer.zero_grad()
                sum((weight**2).sum() for weight in side).backward()
                optimizer.step()
        assert all(torch.equal(our, their) for our, their in zip(weights, twins, strict=True))
        assert str(ours.state_dict()) == str(theirs.state_dict())
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))  # and on they go

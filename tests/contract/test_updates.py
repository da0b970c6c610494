"""Optimizers and schedulers of a user's own: what they make of the weights, continued bit for bit, refused in words."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import energyppl as ep
from energyppl.errors import CheckpointError
from energyppl.inference.training import SOAP

OPTIONS = ep.TrainingOptions(steps=12, batch_size=16, evaluate_every=3)
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
PAIRS: dict[str, tuple[Any, Any]] = {
    "SGD": (SGD, None),
    "SOAP": (partial(SOAP, lr=0.01), None),
    **({"Adafactor": (torch.optim.Adafactor, None)} if hasattr(torch.optim, "Adafactor") else {}),  # from torch 2.5 on
    "RMSprop, steps": (partial(torch.optim.RMSprop, lr=0.01), partial(lr_scheduler.StepLR, step_size=5)),
    "AdamW, one cycle": (None, partial(lr_scheduler.OneCycleLR, max_lr=0.01, total_steps=12)),
    "AdamW, cosine": (None, partial(lr_scheduler.CosineAnnealingLR, T_max=12)),
    "SGD, plateau": (SGD, partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0, threshold_mode="abs")),
    "SGD, warm-up and decay": (
        SGD,
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[4]
        ),
    ),
}


def training(optimizer: Any, scheduler: Any, options: ep.TrainingOptions = OPTIONS) -> ep.Training:
    torch.manual_seed(5)
    ebm = ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2))
    data = torch.randn(50, 2)
    objective = ep.objectives.DenoisingScoreMatching(0.3)
    return ep.Training(ebm, data, objective, options=options, optimizer=optimizer, scheduler=scheduler)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")  # torch's own SequentialLR passes it
def test_a_run_continued_at_half_is_the_same_run(name: str, tmp_path: Path) -> None:
    alone = training(*PAIRS[name])
    for _ in range(5):
        next(alone)
    ep.save_checkpoint(tmp_path / "half.ckpt", alone.state_dict())
    list(alone)
    other = training(*PAIRS[name])
    torch.manual_seed(1)
    other.load_state_dict(ep.load_checkpoint(tmp_path / "half.ckpt"))
    assert len(list(other)) == 7
    assert [r[:4] for r in other.records] == [r[:4] for r in alone.records]  # loss, learning rate, gradient
    assert other.model.checksum() == alone.model.checksum()


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
def test_learning_rates_are_the_schedulers() -> None:
    rates = {name: [r.learning_rate for r in training(*PAIRS[name])] for name in PAIRS}
    assert rates["SGD"] == [0.01] * 12
    assert rates["RMSprop, steps"] == pytest.approx([0.01] * 5 + [0.001] * 5 + [0.0001] * 2)
    assert rates["AdamW, cosine"][0] == 4e-3  # what suits the objective
    assert rates["AdamW, cosine"] == sorted(rates["AdamW, cosine"], reverse=True)
    assert rates["SGD, plateau"][:6] == [0.01] * 6  # the first evaluation, at step 3, is the best
    assert rates["SGD, plateau"][6:] == pytest.approx([0.001] * 3 + [0.0001] * 3)


def test_an_optimizer_gets_what_the_objective_learns_too() -> None:
    ebm = ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2))
    made: list[torch.optim.Optimizer] = []

    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        made.append(SGD(parameters))
        return made[0]

    run = ep.Training(ebm, torch.randn(50, 2), ep.objectives.NoiseContrastive(), options=OPTIONS, optimizer=make)
    before = float(run.state.log_z.detach())
    next(run)
    assert len(made[0].param_groups[0]["params"]) == len(list(ebm.parameters())) + 1
    assert float(run.state.log_z.detach()) != before


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "an optimizer": (lambda: training(torch.optim.SGD([torch.zeros(1)]), None), "must be a function .* got SGD"),
    "a name": (lambda: training("SGD", None), "optimizer must be a function .* got str"),
    "no optimizer": (lambda: training(lambda p: p, None), "it made list"),
    "a closure": (lambda: training(torch.optim.LBFGS, None), "LBFGS evaluates the loss several times"),
    "a rate elsewhere": (lambda: training(SGD, None, ep.TrainingOptions(learning_rate=0.1)), "learning_rate=0.1"),
    "a scheduler's name": (lambda: training(None, "cosine"), "scheduler must be a function .* got str"),
    "no scheduler": (lambda: training(None, lambda o: o), "it made AdamW"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_optimizer_is_refused(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(ep.InvalidInput, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    state = training(*PAIRS["SGD"]).state_dict()
    with pytest.raises(CheckpointError, match="another optimizer or scheduler: SGD, not AdamW"):
        training(None, None).load_state_dict(state)
    state = training(*PAIRS["AdamW, cosine"]).state_dict()
    with pytest.raises(CheckpointError, match="AdamW with CosineAnnealingLR, not AdamW with OneCycleLR"):
        training(*PAIRS["AdamW, one cycle"]).load_state_dict(state)


def test_records_go_to_any_logger() -> None:
    records = list(training(None, None))
    assert set(records[0].numbers()) == {"loss", "learning_rate", "gradient_norm", *records[0].values}
    assert records[2].numbers()["held_out"] == records[2].held_out


def test_weights_frozen_in_the_middle_of_a_run_stay_as_they_are() -> None:
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=16), ep.NoiseSchedule.cosine(3))
    options = ep.TrainingOptions(steps=4, batch_size=32, learning_rate=0.01)
    training = iter(ep.Training(ebm, torch.randn(100, 2), ep.RecoveryLikelihood(steps=1), options=options))
    next(training)
    frozen = ebm.net.layers[0].weight
    frozen.requires_grad_(False)
    kept, others = frozen.clone(), ebm.net.layers[1].weight.clone()
    next(training)
    assert torch.equal(frozen, kept)
    assert not torch.equal(ebm.net.layers[1].weight, others)

"""Every kind of model with objectives that train it, at sizes that take a second."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import energyppl as ep
from tests.support.objectives import OF_ONE_ENERGY

SCHEDULE = ep.NoiseSchedule.cosine(levels=3)
IMAGE = (1, 8, 8)
OPTIONS = ep.TrainingOptions(steps=8, batch_size=16, evaluate_every=3)


def net(**settings: Any) -> ep.MLPEnergy:
    return ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2, levels=4, **settings)


def conv() -> ep.ConvEnergy:
    return ep.ConvEnergy(IMAGE, width=8, multipliers=(1, 2), levels=4)


def started() -> ep.RecoveryEBM:
    return ep.RecoveryEBM(net(), SCHEDULE, initializer=ep.MLPInitializer(2, hidden=8, depth=1, levels=3))


def continuous() -> ep.RecoveryEBM:
    return ep.RecoveryEBM(ep.MLPEnergy((3,), hidden=8, depth=1, axis_features=2), SCHEDULE)


def conditional(size: int) -> ep.models.ConditionalEBM:
    return ep.models.ConditionalEBM(ep.MLPEnergy(size, context_shape=2, hidden=8, depth=1), SCHEDULE)


MODELS: dict[str, Callable[[], Any]] = {
    "RecoveryEBM": lambda: ep.RecoveryEBM(net(), SCHEDULE),
    "RecoveryEBM, continuous": continuous,
    "RecoveryEBM, initializer": started,
    "RecoveryEBM, classes": lambda: ep.RecoveryEBM(net(classes=3), SCHEDULE),
    "RecoveryEBM, continuous images": lambda: ep.RecoveryEBM(ep.models.UNetEnergy(IMAGE, width=4), SCHEDULE),
    "RecoveryEBM, images": lambda: ep.RecoveryEBM(conv(), SCHEDULE),
    "ConditionalEBM of one number": lambda: conditional(1),
    "ConditionalEBM": lambda: conditional(3),
    "JointEBM": lambda: ep.JointEBM(net(), SCHEDULE),
    "JointEBM, images": lambda: ep.JointEBM(conv(), SCHEDULE),
    "EBM": lambda: ep.EBM(net()),
    "EBM, images": lambda: ep.EBM(conv()),
    "MultiscaleEBM": lambda: ep.MultiscaleEBM(net(), [1.0, 0.5, 0.1]),
    "MultiscaleEBM, images": lambda: ep.MultiscaleEBM(conv(), [1.0, 0.5, 0.1]),
}
PERSISTENT = ep.PersistentLikelihood(slots=32, num_steps=2, rejuvenate=0.1)
RECOVERY, COOPERATIVE = ep.RecoveryLikelihood(steps=2), ep.CooperativeRecovery(steps=2)
PAIRS: list[tuple[str, Any]] = [
    *((kind, RECOVERY) for kind in MODELS if kind.startswith("RecoveryEBM")),
    ("RecoveryEBM, continuous images", ep.objectives.Level0Likelihood(chains=4, num_steps=2, life=10.0)),
    ("RecoveryEBM, initializer", COOPERATIVE),
    ("RecoveryEBM, continuous", ep.objectives.LevelScoreMatching()),
    ("ConditionalEBM of one number", ep.objectives.LevelScoreMatching()),
    ("ConditionalEBM", ep.objectives.ProposalContrastive()),
    *((kind, PERSISTENT) for kind in ("JointEBM", "JointEBM, images", "EBM", "EBM, images")),
    *((kind, ep.objectives.MultiscaleScoreMatching()) for kind in ("MultiscaleEBM", "MultiscaleEBM, images")),
    *(("EBM", objective) for objective in OF_ONE_ENERGY),
    ("EBM, images", ep.objectives.ContrastiveDivergence(steps=2)),
    ("EBM, images", ep.objectives.NoiseContrastive()),
    ("EBM, images", ep.objectives.DenoisingScoreMatching(0.3)),
]


def data_of(kind: str, model: Any, count: int = 40) -> dict[str, Any]:
    """Return what a run of a kind of model is given, by the names that training takes it by."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(count, *model.event_shape, generator=generator)
    if kind.startswith("ConditionalEBM"):
        contexts = torch.randn(count, 2, generator=generator)
        return {"data": (rows, contexts), "held_out": (rows[:8], contexts[:8])}
    labels = torch.arange(count) % 3 if "classes" in kind else None
    return {"data": rows, "held_out": rows[:8], "labels": labels}


def training(kind: str, objective: Any, model: nn.Module | None = None) -> ep.Training:
    """Return a run that has not begun."""
    model = MODELS[kind]() if model is None else model
    return ep.Training(model, objective=objective, options=OPTIONS, **data_of(kind, model))

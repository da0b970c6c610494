"""Small models on a device, and the check that a result lies there."""

from typing import Any

import torch
from torch import Tensor, nn

import energyppl as ep

DEVICE = "cuda"

SHORT: dict[str, Any] = {"chains": 8, "draws": 3, "warmup": 4, "progress": False}


def data(dimension: int = 2, rows: int = 64) -> Tensor:
    """On the CPU, as users have them."""
    return torch.randn(rows, dimension)


def there(x: Tensor) -> Tensor:
    assert x.device.type == DEVICE
    return x


def net(dimension: int = 2, levels: int = 4, **settings: Any) -> ep.MLPEnergy:
    return ep.MLPEnergy((dimension,), hidden=4, depth=1, frequencies=2, levels=levels, **settings)


def starter(classes: int = 0, **settings: Any) -> ep.MLPInitializer:
    return ep.MLPInitializer((2,), hidden=4, depth=1, frequencies=2, levels=4, classes=classes, **settings)


def recovery(dimension: int = 2, *, initializer: nn.Module | None = None, **settings: Any) -> ep.RecoveryEBM:
    """On the CPU, as a network was made."""
    model = ep.RecoveryEBM(net(dimension, **settings), ep.NoiseSchedule.cosine(4), initializer=initializer)
    model.standardize(data(dimension))
    model.step_sizes.fill_(0.5)
    return model


def on_device(dimension: int = 2, **settings: Any) -> ep.RecoveryEBM:
    return recovery(dimension, **settings).to(DEVICE)


def joint(dimension: int = 2) -> ep.JointEBM:
    model = ep.JointEBM(net(dimension, 3), ep.NoiseSchedule.sqrtcumlinear(2))
    model.standardize(data(dimension))
    return model.to(DEVICE)


def fit(model: Any, x: Tensor, objective: Any = None, *, device: str = DEVICE, **more: Any) -> ep.History:
    options = ep.TrainingOptions(steps=2, batch_size=16, evaluate_every=1)
    return ep.fit(model, x, objective, options=options, device=device, progress=False, **more)

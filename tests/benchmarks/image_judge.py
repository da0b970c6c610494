"""Images of a file, and the classifier whose features and names judge those that a model draws."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import energyppl as ep

CLASSES, RECOGNIZED = 10, 0.9


class Data(NamedTuple):
    """Images in [0, 1], ``(n, 1, 28, 28)``, and their labels."""

    x: Tensor
    y: Tensor
    test: Tensor
    y_test: Tensor


class Judge(NamedTuple):
    """A classifier's body and head."""

    body: nn.Module
    head: nn.Module

    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.body(part.clamp(0.0, 1.0)) for part in x.split(1000)])

    def shares(self, x: Tensor) -> Tensor:
        """Return each class's probability, ``(n, classes)``."""
        with torch.no_grad():
            probabilities: Tensor = self.head(self.features(x)).softmax(1)
        return probabilities


def read(path: Path) -> Data:
    """The arrays of a file."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    x, test = (ep.data.images_from_array(arrays[name]).x for name in ("x_train", "x_test"))
    y, y_test = (torch.as_tensor(arrays[name].astype(np.int64)) for name in ("y_train", "y_test"))
    return Data(x, y, test, y_test)


def features() -> nn.Sequential:
    """The classifier's body: 64 numbers for each image."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU()),
    )


def classifier(x: Tensor, y: Tensor, steps: int = 2000) -> tuple[nn.Sequential, nn.Linear]:
    """Trained on real images with a little noise."""
    body, head = features(), nn.Linear(64, int(y.max()) + 1)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        loss = nn.functional.cross_entropy(head(body(x[rows] + 0.05 * torch.randn_like(x[rows]))), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return body.requires_grad_(False), head.requires_grad_(False)

"""Images of a file, the classifier that judges those that a model draws, and chains that begin at real ones."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.autodiff import energy_only

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


class LongRuns(NamedTuple):
    """Chains at level 0 that began at images with the level's noise; energies in nats."""

    draws: Tensor  # (chains, kept, 1, 28, 28)
    energies: Tensor  # (kept, chains)
    fresh: Tensor  # (8, chains), of the same images noised anew

    def drift(self) -> tuple[float, float]:
        """Return by how much energies changed, and its standard error."""
        change = self.energies[-1] - self.fresh.mean(0)
        return float(change.mean()), float(change.std() / len(change) ** 0.5)


def long_runs(model: Any, clean: Tensor, moves: int, kernel: ep.MALA, kept: int = 20) -> LongRuns:
    """Move images ``(chains, 1, 28, 28)`` by a model's energy at level 0."""
    kept = min(kept, moves)
    potential = ep.potentials.Standardized(model.potential(0), model.loc, model.scale)
    fresh = torch.stack([energy_only(potential, model.diffuse(clean, 0)) for _ in range(8)])
    start = model.diffuse(clean, 0)
    chains = ep.sample_chains(
        kernel,
        potential,
        init=start,
        chains=len(clean),
        draws=kept,
        thin=moves // kept,
        warmup=100,
        progress=False,
    )
    energies = torch.stack([energy_only(potential, chains.draws[:, i]) for i in range(kept)])
    return LongRuns(chains.draws, energies, fresh)

"""Networks of users that take one batch dimension, as torch's convolutions do: every model trains and queries them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep

SHAPE = (1, 4, 4)


class Convolution(nn.Module):
    """A network as a user writes it: it takes images ``(n, 1, 4, 4)``, of a class or none, and nothing else."""

    event_shape = torch.Size(SHAPE)
    classes = 0

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(64, 1 + classes))
        self.classes = classes

    def forward(self, x: Tensor, level: Tensor, label: Tensor | None = None) -> Tensor:
        energies = self.body(x)
        if label is not None:
            energies = torch.where((label.expand(len(x)) == self.classes)[:, None], energies, energies.roll(1, 1))
        energy: Tensor = energies[:, 0] + 0.5 * x.square().flatten(1).sum(1)
        return energy


SCHEDULE = ep.NoiseSchedule.cosine(3)
MODELS: dict[str, Callable[[], Any]] = {
    "EBM": lambda: ep.EBM(Convolution()),
    "RecoveryEBM": lambda: ep.RecoveryEBM(Convolution(), SCHEDULE),
    "JointEBM": lambda: ep.JointEBM(Convolution(), SCHEDULE),
    "MultiscaleEBM": lambda: ep.MultiscaleEBM(Convolution(), torch.linspace(3.0, 0.1, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_and_answers_for_any_batch(name: str) -> None:
    ebm = MODELS[name]()
    ep.fit(ebm, torch.randn(60, *SHAPE), steps=2, progress=False)
    energy, x = ebm.potential(), torch.randn(2, 3, *SHAPE)
    assert torch.allclose(energy(x), torch.stack([energy(part) for part in x]), atol=1e-5)
    assert torch.allclose(energy(x[0, 0]), energy(x)[0, 0], atol=1e-5)
    assert ebm.marginal().energy(x[:, :0]).shape == (2, 0)
    start, kernel = torch.randn(4, *SHAPE), ep.Langevin(0.01)
    chains = ep.sample_chains(kernel, ebm.marginal(), chains=4, draws=2, warmup=0, init=start, progress=False)
    assert chains.draws.shape == (4, 2, *SHAPE)


def test_recovery_in_any_batch_by_level_and_class() -> None:
    ebm = ep.RecoveryEBM(Convolution(classes=2), SCHEDULE)
    x, level, label = torch.randn(2, 3, *SHAPE), torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor([0, 1, 1])
    energy = ebm.given(label, guidance=0.5).potential(level)(x)
    one_by_one = [
        ebm.given(int(label[j]), guidance=0.5).potential(int(level[i, j]))(x[i, j]) for i in range(2) for j in range(3)
    ]
    assert torch.allclose(energy.flatten(), torch.stack(one_by_one), atol=1e-5)
    assert ebm.given(label).recovery(x, level.clamp(max=1)).sample().shape == x.shape
    assert ebm.sample((2, 3)).shape == x.shape

"""Simulation-based calibration of chains on posteriors whose priors are learned energies: of latents, and of classes.

The priors' draws come from a fine grid, independent of all chains.  False-alarm rate: .001 for each check.
"""

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import energyppl as ep

pytestmark = pytest.mark.slow

AXIS = torch.linspace(-10.0, 10.0, 801)  # well beyond all latents
GRID = torch.cartesian_prod(AXIS, AXIS)


def grid_draws(energy: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """Independent draws in the plane, spread over the grid's cells."""
    with torch.no_grad():
        mass = torch.softmax(-energy(GRID).double(), 0)
    assert float(mass[GRID.abs().amax(1) > 9.0].sum()) < 1e-4, "the grid cuts some off"
    return GRID[torch.multinomial(mass, count, replacement=True)] + (torch.rand(count, 2) - 0.5) * (AXIS[1] - AXIS[0])


class Latents(nn.Module):
    """z ~ energy, x ~ N(decoder(z), 1/4): trained by MCMC-EM on points whose latents have eight modes."""

    def __init__(self) -> None:
        super().__init__()
        net = ep.MLPEnergy((2,), levels=1, hidden=32, depth=2, frequencies=8, frequency_range=(0.3, 3.0))
        self.prior, self.decoder = ep.models.LatentPrior(net), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> None:
        pyro.module("latents", self)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", self.prior.marginal())
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)


@functools.cache
def latent_model() -> tuple[Any, Any, Any]:
    """A Pyro model of one row, its prior's draws, and its arguments."""
    model = Latents()
    data = 0.5 * ep.toys.EightGaussians().sample((2000,)) @ torch.randn(2, 4) + 0.5 * torch.randn(2000, 4)
    svi = SVI(model, ep.objectives.PosteriorGuide(model, steps=10), pyro.optim.Adam({"lr": 5e-3}), Trace_ELBO())
    for _ in range(200):
        svi.step(data[torch.randint(2000, (128,))])
    density = model.prior.requires_grad_(False).marginal().unnormalized()

    def one(x: Tensor) -> None:
        z = pyro.sample("z", density)
        pyro.sample("x", dist.Normal(model.decoder(z), 0.5).to_event(1), obs=x)

    return one, lambda count: {"z": grid_draws(model.prior.potential(), count)}, (torch.zeros(4),)


@functools.cache
def conditional_model() -> tuple[Any, Any, Any]:
    """Clean points of three classes, a banana each, of which noisy ones are seen."""
    rows, labels = ep.toys.Banana(curvature=0.5, scale=1.0).sample((3000,)), torch.arange(3000) % 3
    angle = labels * (2.0 * torch.pi / 3.0)
    turned = (rows[:, 0] * angle.cos() - rows[:, 1] * angle.sin(), rows[:, 0] * angle.sin() + rows[:, 1] * angle.cos())
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), levels=3, hidden=32, classes=3), ep.NoiseSchedule.cosine(levels=3))
    options = ep.TrainingOptions(steps=200, batch_size=128)
    ep.fit(ebm, torch.stack(turned, 1), labels=labels, options=options, progress=False)
    densities = [ebm.requires_grad_(False).given(label).marginal().unnormalized() for label in range(3)]

    def three(y: Tensor) -> None:
        for label, density in enumerate(densities):
            x = pyro.sample(f"x{label}", density)
            pyro.sample(f"y{label}", dist.Normal(x, 0.7).to_event(1), obs=y)

    def prior(count: int) -> dict[str, Tensor]:
        return {f"x{label}": grid_draws(density.energy, count) for label, density in enumerate(densities)}

    return three, prior, (torch.zeros(2),)


MODELS = {"latent": latent_model, "conditional": conditional_model}
KERNEL = ep.HMC(steps=4)


def calibrated(name: str, kernel: Any, **options: Any) -> ep.evaluation.Calibration:
    model, prior, args = MODELS[name]()
    options = {"replicates": 200, "false_alarm": 0.001, "progress": False, **options}
    return ep.evaluation.calibrate(model, options.pop("prior", prior), kernel, args, **options)


@pytest.mark.parametrize("name", list(MODELS))
def test_chains_on_learned_priors_are_calibrated(name: str) -> None:
    found = calibrated(name, KERNEL)
    print(found)
    assert found.passed, found


@pytest.mark.parametrize("name", list(MODELS))
def test_a_wrong_kernel_fails(name: str) -> None:
    """Unadjusted Langevin of long steps, about as long as the posteriors are wide."""
    found = calibrated(name, ep.Langevin(0.5), warmup=0, max_thin=10)
    print(found)
    assert not found.passed, found


def test_another_prior_fails() -> None:
    """Latents that are drawn from N(0, I), and not from the learned energy."""
    found = calibrated("latent", KERNEL, prior=lambda count: {"z": torch.randn(count, 2)})
    print(found)
    assert not found.passed, found

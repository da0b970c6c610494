"""A multi-scale model: networks with and without a level, what a state dict holds, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import energyppl as ep
from tests.benchmarks.temperature import BASE, CIFAR, ExactField
from tests.support.multiscale import Bell, gaussian
from tests.support.objectives import loss_of


def test_networks_with_and_without_a_level() -> None:
    """The energy is the network's value over σ0², asked at level 0 if it takes one; weights are counted once."""
    x, leveled = torch.randn(3, 2), ep.MultiscaleEBM(ep.MLPEnergy((2,), levels=1), CIFAR, base_sigma=BASE)
    assert torch.allclose(leveled.potential()(x), leveled.net(x, torch.tensor(0)) / BASE**2)
    assert torch.allclose(gaussian().potential()(x), 0.5 * x.square().sum(-1) / BASE**2)
    assert {name.split(".")[0] for name, _ in leveled.named_parameters()} == {"net"}
    assert set(dict(leveled.named_buffers())) - {"net.frequencies"} == {
        *("loc", "scale", "low", "high", "is_standardized", "sigmas")
    }


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_brings_its_base_sigma(tmp_path: Path, assign: bool) -> None:
    """Energies, traced gradients and a potential made before loading are those of the model that was saved."""
    saved, other = gaussian((2,), 0.7), ep.MultiscaleEBM(Bell((2,)), torch.linspace(3.0, 0.4, 128), base_sigma=0.4)
    x, potential = torch.randn(5, 2), other.potential()
    ep.energy_and_grad(potential, x)  # which is traced with the old σ0
    ep.save_checkpoint(tmp_path / "state", dict(saved.state_dict()))
    state = ep.load_checkpoint(tmp_path / "state")
    other.load_state_dict(state, assign=assign)
    assert state.keys() == saved.state_dict().keys(), "the caller's state dict is as it was"
    assert other.base_sigma == saved.base_sigma == BASE
    assert torch.equal(other.sigmas, saved.sigmas)
    expected = ep.energy_and_grad(saved.potential(), x)
    assert torch.allclose(expected[0], 0.35 * x.square().sum(-1) / BASE**2)
    for found in (potential, other.potential()):
        assert torch.equal(found(x), expected[0])
        assert all(map(torch.equal, ep.energy_and_grad(found, x), expected))
    assert torch.allclose(other.double().potential()(x.double()).float(), expected[0])
    assert f"{(1.0 / other.base_sigma) ** 2:.0f}" == "100"


def test_a_state_dict_without_base_sigma_is_refused() -> None:
    ebm, state = gaussian(), gaussian().state_dict()
    del state["base_sigma"]
    with pytest.raises(RuntimeError, match=r"Missing key.*base_sigma"):
        ebm.load_state_dict(state)
    assert ebm.load_state_dict(state, strict=False).missing_keys == ["base_sigma"]
    assert ebm.base_sigma == BASE


@pytest.mark.parametrize(
    ("sigmas", "base_sigma", "message"),
    [
        (CIFAR, 0.2, "another model's base_sigma: 0.1, not 0.2; continue"),
        (CIFAR * 1.1, 0.1, "another model's sigmas: 1.2, not 1.32 at place 0; continue"),
        (CIFAR.sqrt(), 0.5, "another model's sigmas"),
        (CIFAR[::2], 0.1, "another model: sigmas differ"),
    ],
)
def test_a_checkpoint_of_other_noise_levels_is_refused(
    tmp_path: Path, sigmas: Tensor, base_sigma: float, message: str
) -> None:
    path, data, options = tmp_path / "run", torch.randn(100, 3), ep.TrainingOptions(steps=4, batch_size=30)
    ep.fit(gaussian((3,), 0.5), data, options=options, checkpoint=path, progress=False)
    other = ep.MultiscaleEBM(Bell((3,), 0.5), sigmas, base_sigma=base_sigma)
    with pytest.raises(ep.errors.CheckpointError, match=message):
        ep.fit(other, data, options=options, checkpoint=path, progress=False)
    assert other.base_sigma == base_sigma
    assert other.net.k.item() == 0.5
    history = ep.fit(gaussian((3,), 0.5), data, options=options, checkpoint=path, progress=False)
    assert len(history.records) == 4


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def run(steps: int, path: Path) -> Tensor:
        torch.manual_seed(0)
        ebm = gaussian((3,), 0.5)
        training = ep.Training(
            ebm,
            torch.randn(100, 3),
            ep.objectives.MultiscaleScoreMatching(),
            options=ep.TrainingOptions(steps=20, batch_size=30),
        )
        if path.exists():
            training.load_state_dict(ep.load_checkpoint(path))
        for _ in zip(range(steps), training, strict=False):
            pass
        ep.save_checkpoint(path, training.state_dict())
        return next(ebm.parameters()).detach()

    whole = run(20, tmp_path / "whole")
    run(10, tmp_path / "parts")
    assert torch.equal(run(10, tmp_path / "parts"), whole)


# --- What it refuses, and what serves instead ---


def test_it_has_no_density() -> None:
    ebm = gaussian()
    x = torch.randn(5, 2)
    for ask in (lambda: ebm.log_prob(x), ebm.log_normalizer, lambda: ebm.marginal().log_prob(x)):
        with pytest.raises(ep.NotNormalized, match=r"in general no gradient.*RecoveryEBM"):
            ask()
    assert torch.allclose(ebm.marginal().unnormalized().log_prob(x), -0.5 * x.square().sum(-1) / BASE**2)
    assert ebm.marginal().sample((3,)).shape == (3, 2)


class Flat(torch.autograd.Function):
    """x ↦ x², whose gradient can be taken once only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Once(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Flat.apply(x)


class Stacked(nn.Module):
    """A network with such a layer."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), Once())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).sum(-1)


IMAGE, MASK = torch.zeros(3, 2), torch.tensor([True, False])

DRL = ep.NoiseSchedule.sqrtcumlinear(4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ep.MultiscaleEBM(Bell(), [0.1, 0.5, 1.0]), "must decrease, the most noise first"),
        (lambda: ep.MultiscaleEBM(Bell(), [1.0, 0.5, 0.5], base_sigma=0.5), "must decrease"),
        (lambda: ep.MultiscaleEBM(Bell(), [1.0, 0.1, 0.0]), "every sigma must be positive"),
        (lambda: ep.MultiscaleEBM(Bell(), [1.0, 0.1, -0.1]), "every sigma must be positive"),
        (lambda: ep.MultiscaleEBM(Bell(), [0.1]), "two noise levels or more.*DenoisingScoreMatching"),
        (lambda: ep.MultiscaleEBM(Bell(), [[1.0, 0.1]]), r"sigmas must be .*; got \[\[1.0, 0.1\]\]"),
        (lambda: ep.MultiscaleEBM(Bell(), [4.8, 0.2]), "base_sigma must lie within the range of noise levels"),
        (lambda: ep.MultiscaleEBM(Bell(), [1.0, 0.1], base_sigma=-1.0), "base_sigma must be positive"),
        (lambda: ep.MultiscaleEBM(nn.Linear(3, 1), [1.0, 0.1], event_shape=(2,)), "must take points"),
        (lambda: gaussian().potential(1), "level 0 only"),
        (lambda: gaussian().sample((2,), level=1), "level 0 only"),
        (lambda: gaussian().sample((2,), step_size=0.0), "step_size must be positive"),
        (lambda: gaussian().inpaint(torch.zeros(3, 4), MASK), r"image must end in event_shape \(2,\)"),
        (lambda: gaussian().inpaint(IMAGE, torch.zeros(2, dtype=torch.bool)), "got all False"),
        (lambda: gaussian().inpaint(IMAGE, torch.ones(2, dtype=torch.bool)), "got all True"),
        (lambda: gaussian().inpaint(IMAGE, torch.ones(2)), "must be a boolean mask"),
        (lambda: gaussian().inpaint(IMAGE, torch.ones(3, dtype=torch.bool)), r"of shape \(2,\), or \(3, 2\)"),
        (lambda: gaussian().inpaint(IMAGE + torch.nan, MASK), "what is seen must be finite"),
        (lambda: ep.levels.TemperatureSchedule(0.5), "start must be at least 1"),
        (lambda: ep.levels.TemperatureSchedule(hot=0, cooling=0, quench=0), "at least one step"),
        (lambda: ep.levels.TemperatureSchedule(cooling=-1), "cooling must be a whole number"),
        (
            lambda: ep.levels.anneal_temperature(ExactField.cifar(3), IMAGE),
            r"x must end in event_shape \(3,\)",
        ),
        (lambda: ep.levels.anneal_temperature(lambda x: x, IMAGE), "must be a potential"),  # type: ignore[arg-type]
        (lambda: ep.objectives.LevelScoreMatching(level0_fraction=1.0), r"level0_fraction must lie in \[0, 1\)"),
        (
            lambda: loss_of(ep.objectives.LevelScoreMatching(), ep.RecoveryEBM(ep.MLPEnergy((2,)), DRL), IMAGE),
            "this schedule's level 0 has none",
        ),
        (
            lambda: ep.fit(ep.EBM(ep.MLPEnergy((2,))), IMAGE, ep.objectives.MultiscaleScoreMatching()),
            "needs a sequence of noise levels",
        ),
        (lambda: ep.fit(gaussian(), IMAGE, ep.objectives.LevelScoreMatching()), "needs a model with a schedule"),
        (
            lambda: loss_of(
                ep.objectives.MultiscaleScoreMatching(), ep.MultiscaleEBM(Stacked(), [1.0, 0.1]), torch.randn(4, 2)
            ),
            "differentiates the network twice, which layer 'layers.1' .Once. does not allow",
        ),
    ],
)
def test_bad_input_is_said(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        make()

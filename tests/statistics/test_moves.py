"""Moves of samples at each level: measured by chains that meet, few where few do, enough for exact samples."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.levels import coupling, initializers
from energyppl.metrics.two_sample import energy_distance_test

MEANS = torch.tensor([[-1.2, -0.6], [1.0, -1.0], [0.4, 1.3], [-0.6, 0.8]])
WIDTH = 0.15
SCHEDULE = ep.NoiseSchedule.cosine(levels=6)


class Exact(nn.Module):
    """The exact energies of a mixture of four Gaussians at every level of the schedule."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(MEANS.clone())

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        alpha, sigma = (value.to(x)[level][..., None] for value in (SCHEDULE.alpha_bar, SCHEDULE.sigma_bar))
        variance = (alpha * WIDTH) ** 2 + sigma**2
        square = ((x[..., None, :] - alpha[..., None] * self.means) ** 2).sum(-1)
        return -torch.logsumexp(-0.5 * square / variance, -1) + variance.squeeze(-1).log()


def exact(count: int) -> Tensor:
    alpha, sigma = float(SCHEDULE.alpha_bar[0]), float(SCHEDULE.sigma_bar[0])
    means = MEANS[torch.randint(4, (count,))]
    return alpha * means + math.hypot(alpha * WIDTH, sigma) * torch.randn(count, 2)


def test_measured_moves_are_few_and_samples_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """False alarm: 1 in 1,000.  The same test sees the difference after one move from where Gaussian data would be."""
    ebm = ep.RecoveryEBM(Exact(), SCHEDULE)
    before = torch.get_rng_state()
    moves = ebm.measure_moves()
    assert torch.equal(before, torch.get_rng_state())
    assert sum(moves) < 0.5 * 480
    assert moves == ebm.moves == ebm.measure_moves()
    assert moves[0] == max(moves)
    found = ebm.generate((1500,))
    assert found.evaluations == sum(moves) + 6 + 4 * 16, "at the four levels with wide tilts"
    assert energy_distance_test(found.x, exact(1500), 1000).p_value > 1.5e-3
    monkeypatch.setattr(initializers, "_FEW_DIMENSIONS", 0)
    assert energy_distance_test(ebm.generate((1500,), steps=1).x, exact(1500), 1000).p_value < 1.5e-3


def test_chains_begin_in_a_far_region_as_often_as_it_has_mass() -> None:
    """A mode of 2 %, as wide as at a noisy level: the starts alone have its mass within 8 %, for Gaussian data not.

    What 400,000 starts say of the mass has a standard error of 1 % of it, and 16 candidates a bias of 2 %: false alarm
    below 1 in 10^7.
    """
    far, mass = torch.tensor([4.0, 0.0]), 0.02

    def parts(x: Tensor) -> Tensor:
        near, other = x.square().sum(-1), ((x - far) / 0.9).square().sum(-1)
        return torch.stack([math.log(1.0 - mass) - 0.5 * near, math.log(mass / 0.81) - 0.5 * other])

    energy = ep.Energy(lambda x: -parts(x).logsumexp(0), (2,))
    tilted = ep.potentials.RecoveryPotential(energy, torch.zeros(400_000, 2), 1e3)
    shares = [
        float(parts(start(tilted, torch.tensor(1.0))).softmax(0)[1].mean()) / mass
        for start in (initializers.resampled_start, initializers.gaussian_start)
    ]
    assert abs(shares[0] - 1.0) < 0.08
    assert shares[1] < 0.2, "control"


def test_starts_of_a_potential_that_is_nowhere_finite_are_those_of_gaussian_data() -> None:
    """No weight is a number then, and chains reject as they do from any other start."""
    nowhere = ep.Energy(lambda x: x.sum(-1) * float("nan"), (2,))
    tilted = ep.potentials.RecoveryPotential(nowhere, torch.zeros(50, 2), 1.0)
    assert bool(torch.isfinite(initializers.resampled_start(tilted, torch.tensor(1.0))).all())


def test_small_steps_keep_all_moves() -> None:
    """Chains that hardly move have not met when the moves are used up."""
    ebm = ep.RecoveryEBM(Exact(), SCHEDULE)
    ebm.step_sizes.fill_(0.05)
    assert ebm.measure_moves()[0] == 80


def test_a_kernel_with_gradients_keeps_its_moves() -> None:
    ebm = ep.RecoveryEBM(Exact(), SCHEDULE, kernel=ep.MALA(0.3))
    assert ebm.measure_moves() == (80,) * 6


def test_the_bound_counts_what_is_left() -> None:
    """Of 1,000 pairs two meet at move 20: after 12 moves ⌈8/8⌉ twice, .002, is left; times three for safety."""
    meeting = torch.ones(1000, dtype=torch.long)
    meeting[0], meeting[1:3] = 9, 20
    assert coupling._moves_for(meeting, 80, 3) == 36
    assert coupling._moves_for(meeting, 80, 1) == 12
    assert coupling._moves_for(meeting, 20, 3) == 20
    assert coupling._moves_for(meeting, 19, 3) == 19
    meeting[3] = 81
    assert coupling._moves_for(meeting, 80, 3) == 80
    assert coupling._moves_for(torch.ones(1000), 80, 3) == 8


def test_moves_are_kept_with_the_weights_and_with_no_others(tmp_path: Path) -> None:
    ebm = ep.RecoveryEBM(ep.MLPEnergy((1,), hidden=8, depth=1, frequencies=2, levels=3), ep.NoiseSchedule.cosine(3))
    assert "moves" not in ebm.state_dict()
    found = ebm.measure_moves()
    assert max(found) < 160
    ep.save(ebm, tmp_path / "model")
    assert ep.load(tmp_path / "model").moves == found
    twin = ep.RecoveryEBM(ep.MLPEnergy((1,), hidden=8, depth=1, frequencies=2, levels=3), ep.NoiseSchedule.cosine(3))
    state = dict(ebm.state_dict())
    twin.load_state_dict(state)
    assert twin.moves == found
    twin.load_state_dict({**state, "net.readout.weight": state["net.readout.weight"] + 1.0})
    assert twin.moves == (160,) * 3
    ebm.net.readout.weight.data += 1.0
    assert ebm.moves == (160,) * 3


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.tensor(5), torch.tensor([1, 2, 3]), "text"])
def test_damaged_moves_are_not_used(wrong: object) -> None:
    ebm = ep.RecoveryEBM(ep.MLPEnergy((1,), hidden=8, depth=1, frequencies=2, levels=3), ep.NoiseSchedule.cosine(3))
    ebm.load_state_dict({**ebm.state_dict(), "moves": wrong})
    assert ebm.moves == (160,) * 3


def test_fit_measures_once() -> None:
    ebm = ep.RecoveryEBM(ep.MLPEnergy((1,), hidden=8, depth=1, frequencies=2, levels=3), ep.NoiseSchedule.cosine(3))
    ep.fit(ebm, torch.randn(200, 1), steps=3, progress=False)
    assert sum(ebm.moves) < 480
    assert ebm.generate((5,)).evaluations == sum(ebm.moves) + 3 + 3 * 16

"""Diagnostics of chains of energy-based models, on energies and modes whose answers are known."""

import math
from dataclasses import replace

import pytest
import torch

import energyppl as ep
from energyppl.inference.evaluation import chains as diagnostics
from energyppl.inference.evaluation.chains import energy_drift, level_acceptance, mode_occupancy


def test_drift_of_straight_lines_is_exact() -> None:
    slopes = torch.tensor([1.0, 2.0, 3.0])  # nats per 1,000 draws
    drift = energy_drift(5.0 + slopes[:, None] * torch.arange(200) / 1000)
    assert drift.slope == pytest.approx(2.0, rel=1e-5)
    assert drift.standard_error == pytest.approx(1 / math.sqrt(3), rel=1e-5)
    assert drift.z == pytest.approx(2 * math.sqrt(3), rel=1e-5)
    assert drift.first == pytest.approx(5.0 + 2.0 * 0.0095, rel=1e-5)  # draws 0 to 19
    assert drift.last == pytest.approx(5.0 + 2.0 * 0.1895, rel=1e-5)  # draws 180 to 199
    assert drift.last_error == pytest.approx(0.1895 / math.sqrt(3), rel=1e-5)
    assert drift.left_out == 0


def test_drift_says_when_there_is_none_and_when_there_is() -> None:
    """Independent draws: z is Student's t with 99 degrees of freedom, beyond 4 once in 8,000 runs."""
    energy = torch.randn(100, 300).square()
    assert abs(energy_drift(energy).z) < 4
    # The negative control: a drift of ten standard errors. One chain's slope has variance 2/Σ(t − t̄)².
    error = math.sqrt(2 / (300**3 / 12)) * 1000 / math.sqrt(100)
    assert energy_drift(energy + 10 * error * torch.arange(300) / 1000).z > 5


@pytest.mark.filterwarnings("ignore:the chains disagree")  # they are slow on purpose
def test_drift_of_real_chains() -> None:
    """Chains that begin far outside come down, those that begin at draws of the target don't."""
    target = ep.toys.Banana(curvature=0.1)
    kernel = ep.MALA(0.05)
    options = {"draws": 300, "warmup": 0, "chains": 64, "progress": False}
    still = ep.sample_chains(kernel, target, init=target.sample, **options)
    coming = ep.sample_chains(kernel, target, init=4.0 + target.sample((64,)), **options)
    # Chains' slopes are independent, so z is about t with 63 degrees of freedom: beyond 4.5 once in 30,000 runs.
    assert abs(energy_drift(still).z) < 4.5
    drift = energy_drift(coming)
    assert drift.z < -4.5
    assert drift.first > drift.last
    assert energy_drift(coming.energy[:32]).slope < 0


def test_drift_leaves_out_what_is_not_finite_and_takes_batches() -> None:
    energy = torch.randn(6, 50)
    energy[2, 7] = math.inf
    energy[4] = math.nan
    drift = energy_drift(energy)
    assert drift.left_out == 2
    assert drift.slope == pytest.approx(energy_drift(energy[[0, 1, 3, 5]]).slope)
    batched = torch.randn(3, 50, 2)
    rows = torch.cat([batched[..., 0], batched[..., 1]])
    assert energy_drift(batched).slope == pytest.approx(energy_drift(rows).slope)
    assert energy_drift(torch.zeros(3, 20)).z == 0.0
    assert energy_drift(torch.arange(20.0).expand(3, 20)).z == math.inf


@pytest.mark.parametrize(
    ("energy", "words"),
    [
        (torch.zeros(4, 9), "10 draws"),
        (torch.zeros(1, 50), "two chains"),
        (torch.full((4, 50), math.nan), "got 0 of 4"),
        (torch.zeros(50), r"\(chains, draws\)"),
    ],
)
def test_drift_refuses_too_little(energy: torch.Tensor, words: str) -> None:
    with pytest.raises(ep.InvalidInput, match=words):
        energy_drift(energy)


def test_occupancy_by_hand() -> None:
    points = torch.tensor([[[-1.0], [-2.0], [3.0], [-1.0]], [[1.0], [1.0], [1.0], [1.0]]])
    found = mode_occupancy(points, lambda x: (x[..., 0] > 0).long(), 3)
    assert found.share.tolist() == [0.375, 0.625, 0.0]
    assert found.by_chain.tolist() == [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0]]
    assert found.switches.tolist() == [2, 0]


def test_occupancy_of_exact_draws() -> None:
    """Shares of 8 equal modes within 5 standard errors (a false alarm in 200,000 runs), switches nearly always."""
    toy = ep.toys.EightGaussians()
    found = mode_occupancy(toy.sample((10, 1000)), toy.modes, toy.number_of_modes)
    assert found.share.sum() == pytest.approx(1.0)
    assert (found.share - 1 / 8).abs().max() < 5 * math.sqrt(7 / 64 / 10_000)
    assert (found.switches.double() / 999 - 7 / 8).abs().max() < 5 * math.sqrt(7 / 64 / 999)


@pytest.mark.parametrize(
    ("assign", "words"),
    [
        (lambda x: x[..., 0], "whole numbers"),
        (lambda x: x[..., 0] > 0, "whole numbers"),
        (lambda x: torch.zeros(3, dtype=torch.long), "a mode for each draw"),
        (lambda x: torch.full(x.shape[:2], 4), "between 0 and 3"),
        (lambda x: torch.full(x.shape[:2], -1), "between 0 and 3"),
    ],
)
def test_occupancy_refuses_bad_assignments(assign: object, words: str) -> None:
    with pytest.raises(ep.InvalidInput, match=words):
        mode_occupancy(torch.randn(2, 5, 2), assign, 4)  # type: ignore[arg-type]


def test_occupancy_refuses_no_draws() -> None:
    with pytest.raises(ep.InvalidInput, match="one draw at least"):
        mode_occupancy(torch.randn(2, 0, 2), lambda x: x[..., 0].long(), 4)
    with pytest.raises(ep.InvalidInput, match="number_of_modes"):
        mode_occupancy(torch.randn(2, 5, 2), lambda x: x[..., 0].long(), 0)


def test_level_acceptance() -> None:
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=16, depth=1), ep.NoiseSchedule.cosine(4))
    ebm.step_sizes.fill_(0.5)
    found = level_acceptance(ebm, samples=32, steps=5)
    assert found.acceptance.shape == found.step_sizes.shape == (4,)
    assert ((found.acceptance > 0) & (found.acceptance <= 1)).all()
    ebm.step_sizes.zero_()
    assert (found.step_sizes == 0.5).all()  # a copy
    with pytest.raises(ep.InvalidInput, match="samples"):
        level_acceptance(ebm, samples=0)


def test_names_are_public() -> None:
    assert all(hasattr(diagnostics, name) for name in diagnostics.__all__)
    chains = ep.sample_chains(ep.MALA(0.5), ep.toys.Banana(), chains=4, draws=20, warmup=0, progress=False)
    assert energy_drift(chains) == energy_drift(replace(chains, interrupted=True))

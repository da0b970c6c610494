"""Mass contrast: its minimizer, and the mass that it sees and slopes at the data do not."""

import math

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.objectives.mass_contrast import MassContrast
from tests.support.objectives import loss_of

LIMIT = 4.5  # standard errors
MIXED = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, -0.5, 0.866]])  # rows are MIXED @ white noise
HOLE, WIDTH = 5.0, 0.5  # where column 0 has a hole, and its width
AWAY, SHARE = 7.0, 0.01  # of a narrow mode in the plane, its distance and mass
SCHEDULE = ep.NoiseSchedule.cosine(6, log_snr_max=4.6, log_snr_min=-6.0)


class Gaussian(nn.Module):
    """The exact energies of correlated columns at every log-SNR, without normalizer, less a hole in column 0."""

    event_shape, continuous = torch.Size((3,)), True

    def __init__(self, scale: float = 1.0, depth: float = 0.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(scale * MIXED)
        self.depth = nn.Parameter(torch.tensor(depth))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        signal = torch.sigmoid(log_snr)[..., None, None]
        covariance = signal * (self.factor @ self.factor.T) + (1.0 - signal) * torch.eye(3)
        energy = 0.5 * (x.unsqueeze(-2) @ torch.linalg.inv(covariance) @ x.unsqueeze(-1)).squeeze((-2, -1))
        hole = torch.exp(-0.5 * ((x[..., 0] - HOLE) / WIDTH).square())
        return energy - self.depth * signal[..., 0, 0] ** 40 * hole  # at the sharpest levels only


def rows(count: int) -> Tensor:
    return torch.randn(count, 3) @ MIXED.T


def slopes(net: nn.Module, weight: Tensor, draws: list[Tensor]) -> Tensor:
    """Return gradients of the contrast of an energy without noise, one for each batch of points."""

    def gradient(x: Tensor) -> Tensor:
        contrast = MassContrast.of(x)
        losses = contrast.losses(net(contrast.points, torch.tensor(30.0)))
        return torch.autograd.grad(losses.mean(), [weight])[0].flatten()

    return torch.stack([gradient(x) for x in draws])


def z_scores(grads: Tensor) -> Tensor:
    return (grads.mean(0) / (grads.std(0) / math.sqrt(len(grads)))).abs()


@pytest.mark.parametrize(("scale", "is_truth"), [(1.0, True), (1.15, False)])
def test_the_truth_is_the_minimizer(scale: float, is_truth: bool) -> None:
    """6 gradients over 200 batches within 4.5 standard errors: false alarm 1 in 17,000; a factor 15 % off is seen."""
    net = Gaussian(scale)
    grads = slopes(net, net.factor, [rows(256) for _ in range(200)])[:, [0, 3, 4, 6, 7, 8]]
    assert (float(z_scores(grads).max()) < LIMIT) == is_truth


class FarMode(nn.Module):
    """N(0, I) in the plane and a narrow mode far from it, whose mass has a weight of its own."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.log_odds = nn.Parameter(torch.tensor(math.log(share / (1.0 - share))))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        far = ((x - x.new_tensor([AWAY, 0.0])) / 0.1).square().sum(-1)
        return -torch.logaddexp(-0.5 * x.square().sum(-1), self.log_odds - 0.5 * far - 2.0 * math.log(0.1))


@pytest.mark.parametrize(("share", "is_truth"), [(SHARE, True), (SHARE / 3.0, False), (3.0 * SHARE, False)])
def test_in_the_plane_it_sees_the_mass_of_a_far_mode(share: float, is_truth: bool) -> None:
    """One gradient over 400 batches within 4.5 standard errors: false alarm 1 in 100,000."""
    net = FarMode(share)

    def points() -> Tensor:
        x, far = torch.randn(256, 2), torch.rand(256, 1) < SHARE
        return torch.where(far, torch.tensor([AWAY, 0.0]) + 0.1 * x, x)

    grads = slopes(net, net.log_odds, [points() for _ in range(400)])
    assert (float(z_scores(grads).max()) < LIMIT) == is_truth


def test_it_sees_a_hole_beyond_the_rows_and_score_matching_does_not() -> None:
    """A hole five deviations out that no row comes near: its depth has a gradient by the contrast alone.

    A proposal in 100 lands in it if it is for column 0, and half of the calls are at level 0: about .01 at weight 5.
    """
    ebm, batch = ep.RecoveryEBM(Gaussian(depth=100.0), SCHEDULE), rows(512).clamp(-2.5, 2.5)
    ebm.is_standardized.fill_(True)
    found = {}
    for masses in (0.0, 5.0):
        objective = ep.objectives.LevelScoreMatching(tie=0.0, masses=masses)
        state = objective.init(ebm)
        losses = [objective.loss(ebm, state, batch).value for _ in range(20)]
        grads = [torch.autograd.grad(loss, [ebm.net.depth])[0] for loss in losses]  # type: ignore[list-item]
        found[masses] = float(torch.stack(grads).mean())
    assert found[5.0] > 0.004, "deeper is worse"
    assert abs(found[0.0]) < 0.001, "negative control"


@pytest.mark.parametrize("objective", [ep.RecoveryLikelihood(), ep.objectives.LevelScoreMatching()])
def test_where_there_is_a_contrast(objective: ep.objectives.Objective) -> None:
    """Rows have one, for recovery likelihood in the plane only; one row has none to compare with, images neither."""
    score = isinstance(objective, ep.objectives.LevelScoreMatching)
    for shape, has in (((2,), True), ((3,), score), ((1, 4, 4), False)):
        ebm = ep.RecoveryEBM(ep.MLPEnergy(shape, hidden=8, continuous=True), SCHEDULE)
        assert ("masses" in loss_of(objective, ebm, torch.randn(16, *shape)).record) == has
    assert "masses" not in loss_of(objective, ebm, torch.randn(1, *shape)).record
    with pytest.raises(ep.errors.InvalidInput, match="masses must be a finite number that is not negative"):
        type(objective)(masses=-1.0)  # type: ignore[call-arg]

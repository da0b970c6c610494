"""Masses of regions in a density, its samples and data: two bells whose shares are known."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.evaluation import region_masses
from energyppl.inference.kernels import crank_nicolson
from energyppl.inference.levels import initializers
from energyppl.inference.objectives.contract import Loss

AWAY, WIDTH, SHARE = 5.0, 0.4, 0.1  # of the second bell: its centre along the diagonal, standard deviation and mass
SCHEDULE = ep.NoiseSchedule.cosine(6, log_snr_min=-6.0)


class TwoBells(nn.Module):
    """N(0, I) and a narrow bell that holds a tenth of the mass, with the noise of every level."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.event_shape, self.levels = torch.Size((size,)), SCHEDULE.levels
        self.center = torch.full((size,), AWAY / math.sqrt(size))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        alpha = SCHEDULE.alpha_bar.to(x)[level][..., None]
        width = torch.sqrt(1.0 - alpha.square() * (1.0 - WIDTH**2))
        far = math.log(SHARE / (1.0 - SHARE)) - len(self.center) * width.log()[..., 0]
        far = far - 0.5 * ((x - alpha * self.center) / width).square().sum(-1)
        return -torch.logaddexp(-0.5 * x.square().sum(-1), far)

    def draws(self, count: int, share: float) -> Tensor:
        """Draw clean points as if the narrow bell had another share."""
        far = torch.rand(count, 1) < share
        x = torch.randn(count, len(self.center))
        return torch.where(far, self.center + WIDTH * x, x)


def found(size: int, samples: float, data: float) -> ep.evaluation.RegionMasses:
    ebm = ep.RecoveryEBM(TwoBells(size), SCHEDULE)
    drawn = ebm.diffuse(ebm.net.draws(2000, samples), 0)
    return region_masses(ebm, ebm.net.draws(4000, data), samples=drawn)


@pytest.mark.parametrize("size", [2, 4])
def test_the_masses_of_a_right_model_agree(size: int) -> None:
    right = found(size, 0.1, 0.1)  # a false alarm in 1,000 runs
    assert right.problems() == []
    # 2 rows · KL is chi-square with 15 degrees of freedom for a right model; 45 is beyond its quantile at 1e-4.
    assert 2 * 4000 * right.gap < 45.0 or size > 2  # above two dimensions the density's masses have errors too
    assert float(right.density.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("samples", "data", "said"), [(0.02, 0.1, "samples"), (0.1, 0.02, "data")])
def test_a_wrong_mass_is_said(size: int, samples: float, data: float, said: str) -> None:
    wrong = found(size, samples, data)
    other = {"samples": "data", "data": "samples"}[said]
    assert wrong.problems()
    assert all(f"of the {said}" in text and f"of the {other}" not in text for text in wrong.problems())
    if said == "data":  # the masses' divergence alone: .02 log(.02/.1) + .98 log(.98/.9) = .0512 nats
        assert wrong.gap > 0.04


class Still:
    """An objective that leaves the weights as they are."""

    def init(self, model: ep.RecoveryEBM) -> nn.Module:
        return nn.Module()

    def loss(self, model: ep.RecoveryEBM, state: nn.Module, batch: Tensor) -> Loss:
        return Loss(0.0 * model.net.weight, {})  # type: ignore[operator]

    def measure(self, model: ep.RecoveryEBM, state: nn.Module, data: Tensor) -> float:
        return 0.0


@pytest.mark.parametrize(("steps", "data", "warns"), [(500, 0.02, True), (500, SHARE, False), (499, 0.02, False)])
def test_fit_warns_of_a_wrong_mass(steps: int, data: float, warns: bool) -> None:
    """A false alarm in 1,000 runs; a short run is a trial, and nobody asks for its masses."""
    ebm = ep.RecoveryEBM(TwoBells(2), SCHEDULE)
    ebm.net.weight = nn.Parameter(torch.zeros(()))
    ebm.is_standardized.fill_(True)
    options = ep.TrainingOptions(steps=steps, patience=1000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ep.fit(ebm, ebm.net.draws(4000, data), Still(), options=options, progress=False)
    said = [str(warning.message) for warning in caught]
    assert bool(said) == warns, said
    assert all("masses by region are not the data's" in text and "of the data" in text for text in said)
    assert all("samples" not in text.split("(energyppl")[0] for text in said)


def test_few_rows_are_refused() -> None:
    ebm = ep.RecoveryEBM(TwoBells(2), SCHEDULE)
    with pytest.raises(ep.errors.InvalidInput, match=r"100"):
        region_masses(ebm, ebm.net.draws(99, SHARE))


def test_rows_in_order_have_regions_of_all() -> None:
    """The far bell's rows come last, beyond those that the regions are found from at most."""
    ebm = ep.RecoveryEBM(TwoBells(2), SCHEDULE)
    rows = torch.cat([torch.randn(18_000, 2), ebm.net.center + WIDTH * torch.randn(2_000, 2)])
    found = region_masses(ebm, rows, samples=ebm.diffuse(ebm.net.draws(2000, SHARE), 0))
    assert int(((found.centers - ebm.net.center).norm(dim=1) < 1.5).sum()) >= 1
    assert found.problems() == []  # a false alarm in 1,000 runs


def test_integrals_see_a_mode_beyond_the_square_that_holds_the_rest() -> None:
    """A tenth of the mass lies nine deviations away, and nothing of it near the faces of the first square."""
    ebm = ep.RecoveryEBM(TwoBells(2), SCHEDULE)
    ebm.net.center = torch.tensor([9.0, 0.0])
    assert ebm.log_normalizer().estimate == pytest.approx(math.log(2.0 * math.pi / (1.0 - SHARE)), abs=2e-3)
    points = ebm.grid_points(0)
    assert points is not None
    assert float((points[:, 0] > 5.0).double().mean()) == pytest.approx(SHARE, abs=2e-3)


@pytest.mark.parametrize(("dimensions", "wide_share"), [(4, 0.15), (4, 0.0), (0, 0.15), (0, 0.0)])
def test_samples_find_a_far_mode(monkeypatch: pytest.MonkeyPatch, dimensions: int, wide_share: float) -> None:
    """A tenth of 2,000 draws within .03, 4.5 standard errors, by resampled starts or wide moves; without either not."""
    monkeypatch.setattr(initializers, "_FEW_DIMENSIONS", dimensions)
    monkeypatch.setattr(crank_nicolson, "_WIDE_SHARE", wide_share)
    ebm = ep.RecoveryEBM(TwoBells(2), SCHEDULE)
    ebm.net.center = torch.tensor([9.0, 0.0])
    far = float((ebm.sample((2000,))[:, 0] > 5.0).double().mean())
    assert (abs(far - SHARE) < 0.03) == bool(dimensions or wide_share), far

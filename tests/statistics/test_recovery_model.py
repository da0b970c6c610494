"""RecoveryEBM: its coordinates, its refusals, and the first lines of the README."""

import math

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.levels.recovery import recovery_potential, tilt


class GaussianNet(nn.Module):
    """The exact energies of Gaussian data at every level: standardized, each marginal is N(0, I)."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return 0.5 * (x * x).sum(-1) + 0.0 * level


def exact_ebm(schedule: ep.NoiseSchedule | None = None) -> tuple[ep.RecoveryEBM, Tensor]:
    ebm = ep.RecoveryEBM(GaussianNet(), schedule or ep.NoiseSchedule.cosine(6))
    data = torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 0.5]) * torch.randn(20_000, 2)
    ebm.standardize(data)
    return ebm, data


SCHEDULES = {
    "cosine": ep.NoiseSchedule.cosine(6),
    "recovery": ep.NoiseSchedule.recovery(),
    "variance exploding": ep.NoiseSchedule.geometric_sigmas(6, low=0.1, high=5.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kernel", [ep.MALA(0.5), ep.kernels.CrankNicolsonLangevin(0.8)])
def test_generation_by_gradient_kernels_in_ten_dimensions(name: str, kernel: ep.MALA) -> None:
    """Exact energies, from white noise: every coordinate's variance within 4.5 errors (60 checks, 1 alarm in 2,400)."""
    ebm = ep.RecoveryEBM(GaussianNet(), SCHEDULES[name], event_shape=(10,), kernel=kernel)
    x = ebm.sample((4000,), steps=40)
    spread = float(ebm.schedule.alpha_bar[0] ** 2 + ebm.schedule.sigma_bar[0] ** 2)
    assert float((x.var(0) / spread - 1.0).abs().max()) < 4.5 * math.sqrt(2 / 4000)


@pytest.mark.parametrize("name", SCHEDULES)
def test_generation_recovery_and_density_in_data_coordinates(name: str) -> None:
    """An exact model: all is known. 16 checks at 4.5 sigma: 1 false alarm in 9,000 runs."""
    ebm, _ = exact_ebm(SCHEDULES[name])
    x = ebm.sample((8000,), steps=30)
    # Level 0 is the data with σ̄₀ of noise.
    spread = float((ebm.schedule.alpha_bar[0] ** 2 + ebm.schedule.sigma_bar[0] ** 2).sqrt())
    assert float(((x.mean(0) - ebm.loc) / (spread * ebm.scale / math.sqrt(8000))).abs().max()) < 4.5
    assert float((x.var(0) / (spread * ebm.scale) ** 2 - 1.0).abs().max()) < 4.5 * math.sqrt(2 / 8000)
    truth = torch.distributions.Normal(ebm.loc, spread * ebm.scale)
    torch.testing.assert_close(ebm.log_prob(x[:50]), truth.log_prob(x[:50]).sum(-1), rtol=0, atol=2e-3)
    for level in (0, 3):
        noisy = ebm.loc + ebm.scale * torch.tensor([1.0, -0.5])
        site = ebm.recovery(noisy.expand(8000, 2), level=level, steps=60)
        y = site.sample()
        # Standardized: prior of y = α x_t is N(0, α² v), tilt N(x̃, σ²).
        alpha, sigma = (value[level] for value in tilt(ebm.schedule))
        v = alpha**2 * (ebm.schedule.alpha_bar[level] ** 2 + ebm.schedule.sigma_bar[level] ** 2)
        mean = ebm.loc + ebm.scale * (torch.tensor([1.0, -0.5]) * v / (v + sigma**2)).float()
        variance = (ebm.scale**2 * (v * sigma**2 / (v + sigma**2))).float()
        assert float(((y.mean(0) - mean) / (variance / 8000).sqrt()).abs().max()) < 4.5
        assert float((y.var(0) / variance - 1.0).abs().max()) < 4.5 * math.sqrt(2 / 8000)


def test_recovery_energies_are_the_same_in_both_coordinates() -> None:
    """The distribution a user sees and the potential that training uses differ by a constant only."""
    torch.manual_seed(0)
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=16, frequencies=4), ep.NoiseSchedule.cosine(6))
    ebm.standardize(torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 0.5]) * torch.randn(100, 2))
    level = torch.arange(6)
    noisy, y = torch.randn(2, 6, 2) * 0.5 + torch.tensor([3.0, -1.0])
    site = ebm.recovery(noisy, level)
    alpha = tilt(ebm.schedule)[0].float()[level, None]
    inner = recovery_potential(ebm, ebm.to_unit(noisy), level)
    x = ebm.to_unit(y) / alpha
    torch.testing.assert_close(site.energy(y), inner(x), rtol=1e-4, atol=1e-4)


def test_tweedie_removes_the_last_noise() -> None:
    """For exact Gaussian energies the denoised samples have the posterior mean's variance ᾱ₀² (of 1)."""
    ebm, _ = exact_ebm(ep.NoiseSchedule.geometric_sigmas(4, low=0.5, high=5.0))
    x = ebm.to_unit(ebm.sample((20_000,), steps=30, denoise=True))
    # E[x0 | x_0] = x_0 / (1 + σ̄²), of variance 1 / (1 + σ̄²).
    expected = 1.0 / (1.0 + 0.5**2)
    assert float((x.var(0) / expected - 1.0).abs().max()) < 4.5 * math.sqrt(2 / 20_000)


def test_log_normalizer_follows_the_weights_by_quadrature_and_by_annealing() -> None:
    ebm, _ = exact_ebm()
    before = ebm.log_normalizer()
    assert before.lower <= before.estimate <= before.upper
    assert before.method == "quadrature"
    truth = math.log(2 * math.pi) + float(ebm.scale.log().sum())
    assert abs(float(before) - truth) < 1e-3
    ebm.net.unused.data.fill_(1.0)  # in place behind torch's back: the log Z must follow all the same
    ebm.scale.mul_(2.0)
    assert abs(float(ebm.log_normalizer()) - truth - 2 * math.log(2.0)) < 1e-3
    wide = ep.RecoveryEBM(ep.MLPEnergy((5,), hidden=16, depth=2), ep.NoiseSchedule.cosine(3))
    first = wide.log_normalizer()
    assert wide.log_normalizer() is first
    assert wide.log_normalizer(confidence=0.5).confidence == 0.5  # and not the one that was kept
    first = wide.log_normalizer()
    wide.scale.mul_(2.0)
    again = wide.log_normalizer()
    error = math.hypot(first.standard_error, again.standard_error)
    assert abs(again.estimate - first.estimate - 5 * math.log(2.0)) < 4.5 * error  # 7e-6
    assert bool(torch.isfinite(wide.log_prob(torch.zeros(5))))


class Returns(nn.Module):
    """A network that returns what it is told to."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, level: Tensor) -> object:
        return self.value(x) if callable(self.value) else self.value


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda s: ep.RecoveryEBM(nn.Linear(2, 1), s), "no event_shape"),
        (
            lambda s: ep.RecoveryEBM(Returns(lambda x: x), s, event_shape=(2,)),
            r"shape \(3,\) for 3 points; got \(3, 2\)",
        ),
        (lambda s: ep.RecoveryEBM(Returns(lambda x: x[:, 0] + math.nan), s, event_shape=(2,)), "finite energies"),
        (lambda s: ep.RecoveryEBM(Returns(3.0), s, event_shape=(2,)), "got float"),
        (lambda s: ep.RecoveryEBM(ep.MLPEnergy((2,), levels=5), s), "levels=6 or more"),
        (lambda s: ep.RecoveryEBM(ep.MLPEnergy((2,)), s).recovery(torch.zeros(3, 4), level=2), r"\(2,\); got \(3, 4\)"),
        (
            lambda s: ep.RecoveryEBM(ep.MLPEnergy((2,)), s).recovery(torch.zeros(3, 2), level=6),
            "between 0 and 5; got 6",
        ),
        (lambda s: ep.RecoveryEBM(ep.MLPEnergy((2,)), s).sample((3,), level=-1), "between 0 and 5"),
        (lambda s: ep.MLPEnergy((2,), hidden=0), "hidden must be a whole number"),
        (lambda s: ep.MLPEnergy((2,), confinement=0.0), "confinement must be positive"),
        (lambda s: ep.MLPEnergy((2,), frequency_range=(2.0, 1.0)), "frequency_range"),
    ],
)
def test_bad_input_is_refused(build: object, message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        build(ep.NoiseSchedule.cosine(6))  # type: ignore[operator]


def test_the_first_ten_lines() -> None:
    """DESIGN's first lines, at a small size."""
    data = ep.toys.Checkerboard().sample((2_000,))
    ebm = ep.RecoveryEBM(ep.MLPEnergy(event_shape=(2,), hidden=16), ep.NoiseSchedule.cosine(levels=6))
    history = ep.fit(ebm, data, options=ep.TrainingOptions(steps=40), progress=False)
    assert len(history.records) == 40
    x = ebm.sample((100,))
    assert x.shape == (100, 2)
    assert math.isfinite(ebm.log_normalizer().estimate)
    assert bool(torch.isfinite(ebm.log_prob(x)).all())


class Embedded(nn.Module):
    """A user's usual network: it wants a level for each point."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.layers(torch.cat([x, self.embedding(level)], -1)).squeeze(-1) + 0.5 * (x * x).sum(-1)


def test_any_network_of_points_and_levels_will_do() -> None:
    ebm = ep.RecoveryEBM(Embedded(), ep.NoiseSchedule.cosine(6))
    ep.fit(ebm, torch.randn(300, 2), options=ep.TrainingOptions(steps=12, evaluate_every=5), progress=False)
    assert bool(torch.isfinite(ebm.log_prob(ebm.sample((20,), steps=3))).all())
    assert ebm.recovery(torch.randn(7, 2), torch.arange(7) % 6).energy(torch.randn(5, 7, 2)).shape == (5, 7)
    ebm(torch.randn(30, 2))


def test_an_empty_batch_of_samples() -> None:
    ebm, _ = exact_ebm()
    assert ebm.sample((0,), steps=2).shape == (0, 2)

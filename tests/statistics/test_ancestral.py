"""Ancestral sampling and the weighting of levels, on Gaussians whose answers are known."""

import math

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.objectives.level_score_matching import spread_log_snr
from tests.support.objectives import loss_of

SHAPE = (1, 1, 3)
VARIANCE = torch.tensor([0.3, 1.0, 2.0]).reshape(SHAPE)
COUNT, LIMIT = 20_000, 4.5


class Gaussians(nn.Module):
    """The exact energies of N(0, diag(variance)) at every log-SNR, of images of three pixels."""

    event_shape, continuous = torch.Size(SHAPE), True

    def __init__(self, variance: Tensor = VARIANCE) -> None:
        super().__init__()
        self.variance = nn.Parameter(variance.clone())

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        signal = torch.sigmoid(log_snr)[..., None, None, None]
        variance = signal * self.variance + 1.0 - signal
        return 0.5 * (x.square() / variance + variance.log() + math.log(2.0 * math.pi)).sum((-3, -2, -1))


def model(levels: int = 12, variance: Tensor = VARIANCE, log_snr_max: float = 4.6) -> ep.RecoveryEBM:
    schedule = ep.NoiseSchedule.cosine(levels, log_snr_max=log_snr_max, log_snr_min=-6.0)
    ebm = ep.RecoveryEBM(Gaussians(variance), schedule)
    ebm.is_standardized.fill_(True)  # and so unclamped
    return ebm


def predicted(ebm: ep.RecoveryEBM, variance: Tensor = VARIANCE, order: int = 2) -> Tensor:
    """The samples' variance at level 0 in closed form, by the recursion of steps of the first or the second order."""
    alpha, sigma, step = ebm.schedule.alpha_bar, ebm.schedule.sigma_bar, ebm.schedule.log_snr.diff()
    top = ebm.schedule.levels - 1
    found = torch.ones_like(variance, dtype=torch.float64)  # white noise at the top level
    shared, before = torch.zeros_like(found), torch.zeros_like(found)  # covariance with the clean mean above; its own
    for t in range(top, 0, -1):
        gain = alpha[t] * variance / (alpha[t] ** 2 * variance + sigma[t] ** 2)
        ratio = alpha[t] / alpha[t - 1]
        added = sigma[t] ** 2 - (ratio * sigma[t - 1]) ** 2
        of_clean = alpha[t - 1] * added / sigma[t] ** 2
        back = min(0.5, 0.5 * float(step[t - 1] / step[t])) * of_clean if t < top and order == 2 else 0.0 * of_clean
        slope = ratio * sigma[t - 1] ** 2 / sigma[t] ** 2 + (of_clean + back) * gain
        with_clean, clean = gain * (slope * found - back * shared), gain**2 * found
        found = slope**2 * found + back**2 * before - 2.0 * slope * back * shared
        found = found + added * sigma[t - 1] ** 2 / sigma[t] ** 2
        shared, before = with_clean, clean
    return found


def z_scores(drawn: Tensor, expected: Tensor) -> Tensor:
    """Of the sample variances of Gaussians of mean zero, whose standard error is v √(2/n)."""
    return (drawn.double().square().mean(0) / expected - 1.0) / math.sqrt(2.0 / len(drawn))


def test_samples_have_the_variance_of_the_recursion() -> None:
    """3 variances and 3 means of 20,000 draws within 4.5 standard errors: false alarm 1 in 24,000."""
    ebm = model()
    drawn = ebm.sample((COUNT,))
    expected = predicted(ebm)
    assert float(z_scores(drawn, expected).abs().max()) < LIMIT
    assert float((drawn.mean(0) / (expected / COUNT).sqrt()).abs().max()) < LIMIT
    wrong = predicted(ebm, 1.1 * VARIANCE)
    assert float(z_scores(drawn, wrong).abs().max()) > LIMIT, "negative control: another model's draws"


def test_the_long_last_steps_of_a_wide_schedule_do_not_overshoot() -> None:
    """By the whole change of the last step samples were 6 to 58 % too wide; 3 variances of draws as above."""
    variance = torch.tensor([0.04, 0.25, 1.0]).reshape(SHAPE)
    ebm = model(20, variance, log_snr_max=9.8)
    expected = predicted(ebm, variance)
    assert float(z_scores(ebm.sample((COUNT,)), expected).abs().max()) < LIMIT
    alpha, sigma = float(ebm.schedule.alpha_bar[0]), float(ebm.schedule.sigma_bar[0])
    assert float(((expected / (alpha**2 * variance + sigma**2)).sqrt() - 1.0).abs().max()) < 0.04


def test_the_recursion_tends_to_the_density_as_levels_are_added() -> None:
    """Four times the levels leave about a sixteenth of the error, and a fourth for steps of the first order."""
    for order, factor in ((2, 8.0), (1, 2.0)):
        errors = []
        for levels in (20, 80, 320):
            ebm = model(levels)
            own = ebm.schedule.alpha_bar[0] ** 2 * VARIANCE + ebm.schedule.sigma_bar[0] ** 2
            errors.append(float((predicted(ebm, order=order) / own - 1.0).abs().max()))
        assert errors[0] > factor * errors[1] > factor**2 * errors[2]
        assert factor > 2.0 or errors[2] > errors[1] / 8.0, "the first order falls no faster than that"


def test_moves_correct_the_steps() -> None:
    """30 moves a level on six coarse levels: variances within 4.5 standard errors of the density, else far off."""
    ebm = model(6)
    ebm.step_sizes.fill_(0.8)
    own = ebm.schedule.alpha_bar[0] ** 2 * VARIANCE.double() + ebm.schedule.sigma_bar[0] ** 2
    assert float(z_scores(ebm.sample((COUNT,), steps=30), own).abs().max()) < LIMIT
    assert float(z_scores(ebm.sample((COUNT,)), own).abs().max()) > LIMIT, "negative control: no moves"


def test_the_denoiser_is_the_conditional_mean_and_is_clamped() -> None:
    ebm, level = model(), 4
    noisy = torch.randn(5, *SHAPE)
    alpha, sigma = (float(v[level]) for v in (ebm.schedule.alpha_bar, ebm.schedule.sigma_bar))
    expected = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * noisy
    torch.testing.assert_close(ebm.denoised(noisy, level), expected, rtol=1e-4, atol=1e-5)
    ebm.low.fill_(-0.1)
    assert float(ebm.denoised(noisy, level).min()) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    "objective", [ep.objectives.LevelScoreMatching(), ep.objectives.Level0Likelihood()], ids=["score", "chains too"]
)
def test_the_truth_minimizes_the_weighted_loss_too(objective: ep.objectives.Objective) -> None:
    """3 gradients over 80 batches within 4.5 standard errors, t of 79 degrees: false alarm 1 in 14,000."""
    for variance, right in ((VARIANCE, True), (1.2 * VARIANCE, False)):
        ebm, found = model(variance=variance), []
        for _ in range(80):
            rows = VARIANCE.sqrt() * torch.randn(200, *SHAPE)
            value = loss_of(objective, ebm, rows).value
            found.append(torch.autograd.grad(value, [ebm.net.variance])[0].flatten())  # type: ignore[list-item]
        grads = torch.stack(found)
        z = grads.mean(0) / (grads.std(0) / math.sqrt(len(grads)))
        assert (float(z.abs().max()) < LIMIT) == right


def test_weights_of_levels() -> None:
    """Noisy levels count up to 50 times for images, sharp ones once, and a table's all once; the measure likewise."""
    objective, log_snr = ep.objectives.LevelScoreMatching(), torch.tensor([-6.0, -1.0, 20.0])
    expected = torch.tensor([50.0, 1.0 + math.e, 1.0])
    torch.testing.assert_close(objective._noise_weight(model(), log_snr), expected)
    table = ep.RecoveryEBM(ep.MLPEnergy((3,)), ep.NoiseSchedule.cosine(6, log_snr_min=-6.0))
    assert bool((objective._noise_weight(table, log_snr) == 1.0).all())
    assert objective._tie(table) == 1.0
    assert objective._tie(model()) == 0.0
    rows = VARIANCE.sqrt() * torch.randn(4000, *SHAPE)
    measured = [objective.measure(ebm, objective.init(ebm), rows) for ebm in (model(), model(variance=2.0 * VARIANCE))]
    assert measured[0] < measured[1]
    light = ep.objectives.LevelScoreMatching(max_noise_weight=1.0)
    assert light.measure(model(), light.init(model()), rows) < measured[0]


def test_levels_are_drawn_as_densely_as_the_schedule_lays_them() -> None:
    """For images every level has its share of the log-SNRs; a table's are even over the range."""
    ebm, parts = model(), (torch.arange(1200) + 0.5) / 1200
    found = spread_log_snr(ebm, parts)
    counts = torch.histogram(found.flip(0).double(), ebm.schedule.log_snr.flip(0)).hist
    torch.testing.assert_close(counts, torch.full((12,), 100.0, dtype=torch.float64))
    table = ep.RecoveryEBM(ep.MLPEnergy((3,)), ebm.schedule)
    assert bool((spread_log_snr(table, parts).diff() > 0).all())
    torch.testing.assert_close(spread_log_snr(table, parts).diff(), torch.full((1199,), 10.6 / 1200), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_noise_weight": 0.5}, "max_noise_weight must be at least 1"),
        ({"max_noise_weight": math.nan}, "max_noise_weight must be a finite number"),
        ({"autocast": torch.float64}, "autocast must be None"),
    ],
)
def test_bad_options_are_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        ep.objectives.LevelScoreMatching(**options)  # type: ignore[arg-type]


def test_a_measurement_is_met_and_leaves_the_rest_alone() -> None:
    """One of three independent pixels seen: it is within its noise, the others have their own variances.

    3 figures of 20,000 draws within 4.5 standard errors: false alarm 1 in 49,000.
    """
    ebm, image = model(), torch.tensor([1.5, 0.0, 0.0]).reshape(SHAPE)
    seen = torch.tensor([True, False, False]).reshape(SHAPE)
    posterior = ep.measured(ebm, ep.LinearMeasurement.mask(image, seen, noise=0.2))
    assert posterior.denoises
    drawn = posterior.sample((COUNT,), denoise=True)[..., 0, :]
    gain = VARIANCE.flatten()[0] / (VARIANCE.flatten()[0] + 0.2**2)
    assert abs(float(drawn[..., 0].mean()) - 1.5 * float(gain)) < 0.1, "1.32 given the prior's variance, .3"
    assert float(drawn[..., 0].std()) < 0.2
    expected = predicted(ebm).flatten()[1:]
    unseen = posterior.sample((COUNT,))[:, 0, 0, 1:]
    assert float(z_scores(unseen, expected).abs().max()) < LIMIT
    assert abs(float(unseen[:, 0].mean() / (expected[0] / COUNT).sqrt())) < LIMIT


def test_a_sum_that_was_measured_without_noise_is_kept() -> None:
    """Each sample's clean mean has the sum that was seen, up to the ridge."""
    both = ep.LinearMeasurement(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([1.0]))
    drawn = ep.measured(model(), both).sample((200,), denoise=True)
    assert float((drawn[:, 0, 0, :2].sum(1) - 1.0).abs().max()) < 1e-3
    assert float(drawn[:, 0, 0, 0].std()) > 0.2, "and is met in many ways"


def test_interpolation_goes_from_one_to_the_other() -> None:
    """Where noise is little the ends are the points and the middle their mean; all share the noise."""
    ebm = model(30)
    one, other = -torch.ones(400, *SHAPE), torch.ones(400, *SHAPE)
    path = ep.models.interpolate(ebm, one, other, count=5, level=0)
    assert path.shape == (5, 400, *SHAPE)
    steps = path.diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-4, rtol=1e-3)
    assert abs(float(path[0].mean()) + 1.0) < 0.1
    assert abs(float(path[-1].mean()) - 1.0) < 0.1
    far = ep.models.interpolate(ebm, one, other, count=5, level=29)
    assert abs(float(far[-1].mean())) < 0.3, "all noise: nothing of the points is left"

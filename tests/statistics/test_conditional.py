"""Models given a class, composed, or given a measurement, against answers that are known."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.models import LinearMeasurement, MLPEnergy, MLPInitializer, measured, mixture, product

SCHEDULE = ep.NoiseSchedule.cosine(6)


class Normal(nn.Module):
    """Exact energies of N(mean, diag(sd²)) data at every level, at points divided by the level's spread (1 here)."""

    def __init__(self, mean: Tensor, sd: Tensor) -> None:
        super().__init__()
        self.event_shape = mean.shape
        self.mean, self.sd = nn.Parameter(mean), nn.Parameter(sd)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        alpha, sigma = SCHEDULE.alpha_bar.float()[level], SCHEDULE.sigma_bar.float()[level]
        if level.dim():
            alpha, sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1)
        variance = alpha**2 * self.sd**2 + sigma**2
        return 0.5 * ((x - alpha * self.mean) ** 2 / variance).sum(-1)


class Classes(nn.Module):
    """Two classes, N(−1, 1) and N(1, 1), and N(0, 1) without; the same at every level."""

    event_shape = torch.Size((1,))
    classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([-1.0, 1.0, 0.0]))

    def forward(self, x: Tensor, level: Tensor, label: int | Tensor | None = None) -> Tensor:
        mean = self.means[2 if label is None else label]
        return 0.5 * (x[..., 0] - mean) ** 2 + 0.0 * level


def test_guidance_is_the_papers_algebra() -> None:
    """(1 + w) U(x|c) − w U(x) of unit Gaussians is one around (1 + w) c; at w = −1 the class is gone."""
    ebm, x = ep.RecoveryEBM(Classes(), SCHEDULE), torch.linspace(-3, 3, 7)[:, None]
    for weight in (0.0, 0.7, -1.0):
        found = ebm.given(1, guidance=weight).potential(2)(x)
        slope = (found[1:] - found[:-1]) - 0.5 * (x[1:, 0] ** 2 - x[:-1, 0] ** 2)
        assert torch.allclose(slope, torch.full((6,), -(1.0 + weight)), atol=1e-5)
    each = ebm.given(torch.tensor([0, 1]))
    assert torch.allclose(each.potential(0)(torch.tensor([[-1.0], [1.0]])), torch.zeros(2))
    assert each.step_sizes is ebm.step_sizes
    assert each.base is ebm


def test_a_class_is_learned_and_sampled() -> None:
    """Means of 400 samples of ±2; 0.35 is 7 standard errors of a unit Gaussian, and the classes are 4 apart."""
    torch.manual_seed(0)
    labels = torch.randint(2, (4000,))
    data = torch.randn(4000, 2) * 0.5 + torch.where(labels == 0, -2.0, 2.0)[:, None]
    net, start = (
        MLPEnergy((2,), hidden=64, depth=2, classes=2),
        MLPInitializer((2,), hidden=32, classes=2, learn_scale=True),
    )
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(4), initializer=start)
    options = ep.TrainingOptions(steps=300, batch_size=256)
    ep.fit(ebm, data, ep.CooperativeRecovery(), labels=labels, options=options, progress=False)
    for label, mean in ((0, -2.0), (1, 2.0)):
        x = ebm.given(label).sample((400,), steps=20)
        assert float((x.mean(0) - mean).abs().max()) < 0.35
    # 20 moves a level leave 4 to 5 % of the samples beyond the middle (six runs, with a level tie and without); 0.92 is
    # 5 standard errors of 1,000 samples below. The false alarm is about 1 in a million; labels confused give 0.5.
    each = ebm.given(labels[:1000]).sample((1000,), steps=20)
    assert float(((each.mean(1) > 0) == (labels[:1000] == 1)).float().mean()) > 0.92
    free = ebm.sample((400,), steps=20)
    assert 0.3 < float((free.mean(1) > 0).float().mean()) < 0.7  # 8 standard errors
    log_z = ebm.given(1).log_normalizer()
    assert log_z.warning is None


def test_products_and_mixtures_are_what_they_say_at_level_zero() -> None:
    a = ep.RecoveryEBM(Normal(torch.tensor([-1.0, 0.0]), torch.ones(2)), SCHEDULE)
    b = ep.RecoveryEBM(Normal(torch.tensor([1.0, 0.5]), torch.ones(2)), SCHEDULE)
    b.standardize(torch.tensor([[0.0, 1.0], [4.0, 3.0], [2.0, -5.0]]))  # other coordinates
    x = torch.randn(20, 2)
    energies = [m.marginal().energy(x) for m in (a, b)]
    assert torch.allclose(
        product(a, b, weights=[2.0, -0.5]).marginal().energy(x), 2 * energies[0] - 0.5 * energies[1], atol=1e-4
    )
    expected = -torch.logsumexp(torch.stack([math.log(0.3) - energies[0], math.log(0.7) - energies[1]]), 0)
    assert torch.allclose(mixture(a, b, weights=[0.3, 0.7]).marginal().energy(x), expected, atol=1e-4)


@pytest.mark.parametrize("size", [2, 64])
def test_posterior_of_a_gaussian_prior_is_exact(size: int) -> None:
    """Inpainting and a blur: means and variances of 3,000 chains at 5 standard errors, at most 128 of them.

    A false alarm in about 1 of 10,000 runs; the prior's own samples, the negative control, are dozens off.
    """
    torch.manual_seed(0)
    mean, sd = torch.linspace(-1.0, 1.0, size), torch.linspace(0.6, 1.4, size)
    ebm = ep.RecoveryEBM(Normal(mean, sd), SCHEDULE)
    seen = torch.arange(size) % 2 == 0
    truth = mean + sd * torch.randn(size)
    blur = torch.stack([torch.roll(torch.eye(size)[0] * 0.6 + torch.eye(size)[1] * 0.4, i) for i in range(0, size, 2)])
    for measurement in (
        LinearMeasurement.mask(truth, seen, 0.5),
        LinearMeasurement(blur, blur @ truth, 0.5),
    ):
        posterior = measured(ebm, measurement)
        target = posterior.marginal().potential
        start = posterior.sample((3000,), steps=10)
        tuned = ep.adapt(ep.MALA(0.2), target, start, 200)
        x = ep.sampling.run_chain(tuned.kernel, target, tuned.state.x, 300).state.x.double()
        a, sigma0 = measurement.matrix.double(), float(SCHEDULE.sigma_bar[0])
        alpha0 = float(SCHEDULE.alpha_bar[0])
        prior = torch.diag(1.0 / (alpha0**2 * sd.double() ** 2 + sigma0**2))
        precision = prior + a.T @ a / 0.25 / alpha0**2
        covariance = torch.linalg.inv(precision)
        exact = covariance @ (prior @ (alpha0 * mean.double()) + a.T @ measurement.observed.double() / 0.25 / alpha0)
        error = (covariance.diagonal() / len(x)).sqrt()
        assert float(((x.mean(0) - exact) / error).abs().max()) < 5.0
        assert float((x.var(0) / covariance.diagonal() - 1.0).abs().max()) < 5.0 * math.sqrt(2.0 / len(x))
        free = ebm.sample((3000,), steps=10).double()
        assert float(((free.mean(0) - exact) / error).abs().max()) > 10.0, "negative control"


def ordinary() -> ep.RecoveryEBM:
    return ep.RecoveryEBM(MLPEnergy((2,)), SCHEDULE)


def at_schedule(name: str, tilted_top: bool = False) -> ep.RecoveryEBM:
    """Of as many levels as the ordinary one."""
    schedule = replace(getattr(ep.NoiseSchedule, name)(6), tilted_top=tilted_top)
    return ep.RecoveryEBM(MLPEnergy((2,)), schedule)


SEEN = LinearMeasurement(torch.ones(1, 2), torch.zeros(1))


def test_equal_schedules_compose() -> None:
    assert product(at_schedule("linear_sigmas"), at_schedule("linear_sigmas")).schedule.levels == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ordinary().given(1), "MLPEnergy, has no classes"),
        (lambda: ep.RecoveryEBM(Classes(), SCHEDULE).given(3), "label must lie between 0 and 1, or be 2 for no class"),
        (lambda: ep.RecoveryEBM(Classes(), SCHEDULE).given(torch.tensor([0.5])), "whole numbers"),
        (lambda: ep.RecoveryEBM(Classes(), SCHEDULE).given(0, guidance=math.inf), "guidance must be finite"),
        (lambda: ep.Training(ordinary(), torch.randn(50, 2), labels=torch.zeros(50).long()), "network has classes"),
        (
            lambda: ep.Training(ep.RecoveryEBM(Classes(), SCHEDULE), torch.randn(50, 1), labels=torch.full((50,), 2)),
            "labels must lie between 0 and 1; got 2 to 2",
        ),
        (
            lambda: ep.Training(ep.RecoveryEBM(Classes(), SCHEDULE), torch.randn(50, 1), labels=torch.zeros(49).long()),
            "one whole number for each of 50 rows",
        ),
        (lambda: product(), "at least one model"),
        (lambda: product(ordinary(), weights=[1.0, 2.0]), "one for each model"),
        (
            lambda: product(ordinary(), ep.RecoveryEBM(MLPEnergy((2,)), ep.NoiseSchedule.cosine(3))),
            "must share",
        ),
        (lambda: product(ordinary(), at_schedule("linear_sigmas")), "got another alpha_bar, sigma_bar in model 1"),
        (
            lambda: mixture(at_schedule("linear_sigmas"), at_schedule("geometric_sigmas")),
            "got another sigma_bar in model 1 than",
        ),
        (
            lambda: product(at_schedule("linear_sigmas"), at_schedule("linear_sigmas", True)),
            "got another tilted_top in model",
        ),
        (lambda: product(ep.EBM(MLPEnergy((2,))), ep.EBM(MLPEnergy((2,)))), "as a RecoveryEBM has; got EBM: train"),
        (lambda: mixture(ordinary(), ep.JointEBM(MLPEnergy((2,)), SCHEDULE)), "as a RecoveryEBM has; got JointEBM"),
        (lambda: measured(ep.EBM(MLPEnergy((2,))), SEEN), "a measurement needs .* as a RecoveryEBM has; got EBM"),
        (lambda: measured(ep.JointEBM(MLPEnergy((2,)), SCHEDULE), SEEN), "as a RecoveryEBM has; got JointEBM"),
        (lambda: ep.RecoveryEBM(Classes(), SCHEDULE).given(None), "label must be a whole number .*; got None: 2 means"),
        (lambda: ep.RecoveryEBM(Classes(), SCHEDULE).given("a"), "label must be a whole number .*; got 'a': 2 means"),
        (lambda: mixture(ordinary(), weights=[-1.0]), "must be positive"),
        (lambda: LinearMeasurement.mask(torch.zeros(2), torch.zeros(3, dtype=torch.bool)), r"mask of shape \(2,\)"),
        (lambda: LinearMeasurement.mask(torch.zeros(2), torch.zeros(2, dtype=torch.bool)), "all False"),
        (lambda: LinearMeasurement(torch.zeros(1, 2), torch.zeros(1)), "row of zeros"),
        (lambda: LinearMeasurement(torch.ones(1, 2), torch.zeros(1), -1.0), "noise must be 0 or positive"),
        (
            lambda: measured(ordinary(), LinearMeasurement(torch.ones(1, 3), torch.zeros(1))),
            "each of the 2 coord",
        ),
    ],
)
def test_bad_input_is_said(make: object, message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        make()  # type: ignore[operator]

"""Noise schedules: the papers' numbers to three digits, and noised data with the moments that the schedule says."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from energyppl import NoiseSchedule
from energyppl.errors import InvalidInput

SCHEDULES: dict[str, NoiseSchedule] = {
    "recovery": NoiseSchedule.recovery(),
    "cosine": NoiseSchedule.cosine(levels=6),
    "sqrtcumlinear": NoiseSchedule.sqrtcumlinear(levels=6, start=0.01, end=0.3),
    "linear sigmas": NoiseSchedule.linear_sigmas(),
    "geometric sigmas": NoiseSchedule.geometric_sigmas(),
}


def images() -> NoiseSchedule:
    return NoiseSchedule.sqrtcumlinear()


# (schedule and quantity, values to the digits given), computed from the schedules of the papers and of their code:
# DRL is Gao et al. 2021 (arXiv:2012.08125), six of 1,000 linear betas; CDRL Zhu et al. 2024 (arXiv:2309.05153), a
# cosine in log-SNR; DA-EBM Zhang, Tan & Ou 2023 (arXiv:2304.10707); MDSM Li, Chen & Sommer 2019 (arXiv:1910.07762).
PAPERS: dict[str, tuple[Callable[[], Tensor], list[str]]] = {
    "DRL sigma": (lambda: SCHEDULES["recovery"].sigma, [".3237", ".5165", ".6322", ".7132", ".7734", ".9997"]),
    "DRL alpha_bar": (
        lambda: SCHEDULES["recovery"].alpha_bar,
        [".99995", ".9461", ".8102", ".6277", ".4400", ".2789", ".0064"],
    ),
    "DRL sigma_bar": (
        lambda: SCHEDULES["recovery"].sigma_bar[:-1],
        [".0100", ".3238", ".5862", ".7785", ".8980", ".9603"],
    ),
    "CDRL log-SNR": (
        lambda: SCHEDULES["cosine"].log_snr,
        ["9.80", "2.69", "1.20", ".141", "-.876", "-2.17", "-5.1"],
    ),
    "CDRL sigma_bar": (lambda: SCHEDULES["cosine"].sigma_bar[:-1], [".0074", ".252", ".482", ".682", ".840", ".947"]),
    "CDRL sigma": (lambda: SCHEDULES["cosine"].sigma, [".252", ".424", ".551", ".671", ".808", ".970"]),
    "CDRL last alpha_bar": (lambda: SCHEDULES["cosine"].alpha_bar[-1:], [".078"]),
    "DA-EBM toy beta": (
        lambda: SCHEDULES["sqrtcumlinear"].sigma ** 2,
        ["1e-4", ".0061", ".0416", ".1505", ".397", ".865"],
    ),
    "DA-EBM toy sigma_bar": (
        lambda: SCHEDULES["sqrtcumlinear"].sigma_bar[1:],
        [".01", ".079", ".218", ".437", ".716", ".966"],
    ),
    "DA-EBM images beta_50": (lambda: images().sigma[-1:] ** 2, [".255"]),
    "DA-EBM images end": (lambda: torch.stack([images().alpha_bar[-1], images().sigma_bar[-1]]), [".234", ".972"]),
    "MDSM CIFAR ends": (lambda: SCHEDULES["linear sigmas"].sigma_bar[[0, -1]], [".05", "1.2"]),
    "MDSM MNIST ends": (lambda: SCHEDULES["geometric sigmas"].sigma_bar[[0, -1]], [".1", "3"]),
}


@pytest.mark.parametrize("name", list(PAPERS))
def test_the_papers_numbers(name: str) -> None:
    """To half a unit of the page's last digit (one unit, because the page may have rounded a rounded number)."""
    numbers, printed = PAPERS[name]
    values = numbers().tolist()
    assert len(values) == len(printed)
    for value, text in zip(values, printed, strict=True):
        digits = 4 if "e" in text else len(text.partition(".")[2])
        assert value == pytest.approx(float(text), abs=10.0**-digits), (values, printed)


def test_the_levels_of_the_linear_schedule() -> None:
    linear, geometric = SCHEDULES["linear sigmas"], SCHEDULES["geometric sigmas"]
    assert linear.levels == geometric.levels == 128
    torch.testing.assert_close(linear.sigma_bar.diff(), torch.full((128,), 1.15 / 128, dtype=torch.float64))
    ratio = geometric.sigma_bar[1:] / geometric.sigma_bar[:-1]
    torch.testing.assert_close(ratio, torch.full((128,), 30.0 ** (1 / 128), dtype=torch.float64))
    assert bool((linear.alpha_bar == 1).all())


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_the_numbers_of_a_schedule_hang_together(name: str) -> None:
    schedule = SCHEDULES[name]
    assert schedule.alpha_bar.shape == schedule.sigma_bar.shape == (schedule.levels + 1,)
    assert schedule.alpha.shape == schedule.sigma.shape == (schedule.levels,)
    torch.testing.assert_close(schedule.alpha_bar[0] * schedule.alpha.cumprod(0), schedule.alpha_bar[1:])
    variance = schedule.sigma_bar[0] ** 2
    for t in range(schedule.levels):
        variance = schedule.alpha[t] ** 2 * variance + schedule.sigma[t] ** 2
        torch.testing.assert_close(variance.sqrt(), schedule.sigma_bar[t + 1])
    assert bool((schedule.log_snr[1:].diff() < 0).all())
    if name in ("recovery", "cosine", "sqrtcumlinear"):  # the ones that keep the variance
        ones = torch.ones(schedule.levels + 1, dtype=torch.float64)
        torch.testing.assert_close(schedule.alpha_bar**2 + schedule.sigma_bar**2, ones)


def require_moments(values: Tensor, mean: float, variance: float, fourth: float = 3.0) -> None:
    """Within 5 standard errors (of the mean, and of the variance of a law with this standardized fourth moment)."""
    n = len(values)
    assert abs(float(values.mean()) - mean) < 5 * math.sqrt(variance / n)
    assert abs(float(values.var()) - variance) < 5 * variance * math.sqrt((fourth - 1) / n)


@pytest.mark.parametrize("shared", [False, True], ids=["fresh noise", "shared noise"])
@pytest.mark.parametrize("name", ["recovery", "cosine", "sqrtcumlinear"])
def test_marginals_of_a_pair(name: str, shared: bool) -> None:
    """Mean and variance of x_t and x_{t+1} at every level; 144 checks at 5 sigma: false alarms 8e-5 in all."""
    schedule = SCHEDULES[name]
    n, loc = 40_000, 2.0
    for t in range(schedule.levels):
        x0 = loc + 0.5 * torch.randn(n, dtype=torch.float64)
        pair = schedule.pairs(x0, t, shared_noise=shared)
        for x, level in ((pair.clean, t), (pair.noisy, t + 1)):
            alpha, sigma = float(schedule.alpha_bar[level]), float(schedule.sigma_bar[level])
            require_moments(x, alpha * loc, alpha**2 * 0.25 + sigma**2)


def test_the_conditional_of_a_pair_is_one_step_of_noise_only_with_fresh_noise() -> None:
    """x_{t+1} − α x_t is N(0, σ²) and independent of x_t; not so with shared noise.  18 checks at 5 sigma: 1e-5."""
    schedule, n = SCHEDULES["cosine"], 40_000
    for t in range(schedule.levels):
        x0 = torch.randn(n, dtype=torch.float64).exp()
        clean, noisy = schedule.pairs(x0, t)
        residual = noisy - schedule.alpha[t] * clean
        require_moments(residual, 0.0, float(schedule.sigma[t] ** 2))
        assert abs(float(torch.corrcoef(torch.stack([residual, clean]))[0, 1])) < 5 / math.sqrt(n)
    clean, noisy = schedule.pairs(x0, 2, shared_noise=True)
    residual = noisy - schedule.alpha[2] * clean
    assert abs(float(torch.corrcoef(torch.stack([residual, clean]))[0, 1])) > 15 / math.sqrt(n)


def test_shared_noise_lowers_the_gradients_variance() -> None:
    """To .95/.40/.34/.39/.53/.90 of its value with independent noise, at the levels of Zhu et al. 2024.

    They give both points of a pair the same noise.  An exact 1-D Gaussian model: data N(0, 1), U = θ x²/2 at its true
    θ = 1, the gradient of one pair being half of x_t² − E[y² | x_{t+1}] with the exact posterior's expectation.
    200,000 pairs give a ratio to about .5 %; tolerance .015.  Equal means: 6 checks at 5 sigma.  False alarms: below
    1e-4.
    """
    schedule, n, ratios = SCHEDULES["cosine"], 200_000, []
    for t in range(6):
        alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
        variances, means = [], []
        for shared in (True, False):
            clean, noisy = schedule.pairs(torch.randn(n, dtype=torch.float64), t, shared_noise=shared)
            gradient = 0.5 * (clean**2 - (alpha * noisy) ** 2 - sigma**2)
            variances.append(float(gradient.var()))
            means.append(float(gradient.mean()))
        ratios.append(variances[0] / variances[1])
        assert abs(means[0] - means[1]) < 5 * math.sqrt(sum(variances) / n)
    assert ratios == pytest.approx([0.95, 0.40, 0.34, 0.39, 0.53, 0.90], abs=0.015)


def test_levels_for_each_row_and_shapes() -> None:
    schedule = SCHEDULES["cosine"]
    x0 = torch.ones(6, 3, 2)
    for shared in (False, True):
        pair = schedule.pairs(x0, torch.arange(6), shared_noise=shared)
        assert pair.clean.shape == pair.noisy.shape == x0.shape
        assert pair.clean.dtype == torch.float32
    torch.manual_seed(0)
    rows = schedule.diffuse(torch.ones(7, 20_000), torch.arange(7))
    assert rows.mean(1).tolist() == pytest.approx(schedule.alpha_bar.tolist(), abs=5 / math.sqrt(20_000))
    assert rows.std(1).tolist() == pytest.approx(schedule.sigma_bar.tolist(), rel=5 / math.sqrt(40_000))
    for t in range(7):
        assert schedule.diffuse(torch.ones(4, 2), t).shape == (4, 2)
        assert schedule.diffuse(torch.ones(()), torch.tensor(t)).shape == ()


def test_noise_comes_from_the_global_generator() -> None:
    schedule, x0 = SCHEDULES["cosine"], torch.zeros(5, 2)
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        runs.append(torch.stack(schedule.pairs(x0, 3)))
    assert torch.equal(*runs)


def test_a_schedule_is_immutable() -> None:
    alpha_bar, sigma_bar = torch.tensor([1.0, 0.5]), torch.tensor([0.1, 0.9])
    schedule = NoiseSchedule(alpha_bar, sigma_bar)
    alpha_bar.fill_(7.0)  # the caller's own tensor
    assert schedule.alpha_bar.tolist() == [1.0, 0.5]
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.alpha_bar = torch.ones(2)  # type: ignore[misc]


CLEAN: tuple[Any, Any] = ([1.0, 0.9], [0.0, 0.4])
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "one marginal": (lambda: NoiseSchedule(torch.ones(1), torch.ones(1)), "at least 2 marginals"),
    "a matrix": (lambda: NoiseSchedule(torch.ones(2, 2), torch.ones(2, 2)), "vector of at least 2"),
    "two lengths": (lambda: NoiseSchedule(torch.ones(3), torch.tensor([0.1, 0.2])), "one length; got 3 and 2"),
    "zero alpha": (lambda: NoiseSchedule(torch.tensor([1.0, 0.0]), torch.tensor([0.1, 1.0])), "alpha_bar must be pos"),
    "nan": (lambda: NoiseSchedule(torch.tensor([1.0, math.nan]), torch.tensor([0.1, 1.0])), "alpha_bar must be pos"),
    "nan sigma": (lambda: NoiseSchedule(torch.ones(2), torch.tensor([math.nan, 1.0])), "."),
    "sigma falls": (lambda: NoiseSchedule(torch.ones(3), torch.tensor([0.1, 0.3, 0.2])), "sorted from least to most"),
    "alpha grows": (lambda: NoiseSchedule(torch.tensor([0.5, 0.6]), torch.tensor([0.1, 0.2])), "sorted from least"),
    "negative sigma": (lambda: NoiseSchedule(torch.ones(2), torch.tensor([-0.1, 0.2])), "sorted from least to most"),
    "no levels": (lambda: NoiseSchedule.cosine(0), "levels must be a whole number of at least 1; got 0"),
    "half a level": (lambda: NoiseSchedule.cosine(2.5), "levels must be a whole number"),  # type: ignore[arg-type]
    "true": (lambda: NoiseSchedule.sqrtcumlinear(True), "levels must be a whole number"),
    "snr": (lambda: NoiseSchedule.cosine(log_snr_max=-6.0), "log_snr_max must exceed log_snr_min"),
    "too much beta": (lambda: NoiseSchedule.sqrtcumlinear(50, end=0.5), r"every beta must lie in \(0, 1\)"),
    "zero low": (lambda: NoiseSchedule.geometric_sigmas(low=0.0), "low must be positive"),
    "high below low": (
        lambda: NoiseSchedule.linear_sigmas(low=2.0, high=1.0),
        "high must be above low; got 1.0 and 2.0",
    ),
    "a name for numbers": (lambda: NoiseSchedule("cosine", "cosine"), "alpha_bar must be a vector of numbers; got str"),  # type: ignore[arg-type]
    "sigma not known": (lambda: NoiseSchedule(torch.ones(2), None), "sigma_bar must be a vector of numbers; got None"),  # type: ignore[arg-type]
    "half tilted": (lambda: NoiseSchedule(*CLEAN, tilted_top=0.5), "tilted_top must be True or False; got 0.5"),  # type: ignore[arg-type]
    "nan snr": (lambda: NoiseSchedule.cosine(log_snr_max=math.nan), "log_snr_max must be a finite number; got nan"),
    "snr in words": (lambda: NoiseSchedule.cosine(log_snr_min="low"), "log_snr_min must be a finite number"),  # type: ignore[arg-type]
    "snr out of range": (lambda: NoiseSchedule.cosine(log_snr_min=-5000.0), "log_snr_min must lie within"),
    "no start": (lambda: NoiseSchedule.sqrtcumlinear(start=0.0), "start must be positive"),
    "end in words": (lambda: NoiseSchedule.sqrtcumlinear(end="2e-2"), "end must be positive and finite; got '2e-2'"),  # type: ignore[arg-type]
    "nan high": (lambda: NoiseSchedule.geometric_sigmas(high=math.nan), "high must be positive and finite; got nan"),
    "high is low": (lambda: NoiseSchedule.geometric_sigmas(low=1.0, high=1.0), "high must be above low"),
    "data in a list": (lambda: SCHEDULES["cosine"].diffuse([1.0], 0), "x0 must be a torch tensor; got list"),  # type: ignore[arg-type]
    "data of integers": (lambda: SCHEDULES["cosine"].pairs(torch.ones(2).long(), 0), "x0 must be floating point"),
    "upper below": (lambda: SCHEDULES["cosine"].pairs(torch.ones(2), 3, upper=3), "upper must be above level"),
    "upper for other rows": (
        lambda: SCHEDULES["cosine"].pairs(torch.ones(2), torch.tensor([0, 1]), upper=torch.tensor([2, 3, 4])),
        r"upper must be one number or one for each level; got \(3,\) for levels \(2,\)",
    ),
    "level too high": (lambda: SCHEDULES["cosine"].pairs(torch.ones(2, 2), 6), "between 0 and 5; got 6"),
    "marginal too high": (lambda: SCHEDULES["cosine"].diffuse(torch.ones(2, 2), 7), "between 0 and 6; got 7"),
    "negative level": (lambda: SCHEDULES["cosine"].diffuse(torch.ones(2, 2), -1), "between 0 and 6; got -1"),
    "levels": (lambda: SCHEDULES["cosine"].diffuse(torch.ones(2, 2), torch.tensor([0, 9])), "got 0 to 9"),
    "a float level": (lambda: SCHEDULES["cosine"].pairs(torch.ones(2), 1.0), "whole number"),  # type: ignore[arg-type]
    "a bool level": (lambda: SCHEDULES["cosine"].pairs(torch.ones(2), True), "whole number"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(InvalidInput, match=message):
        make()


def test_a_schedule_prints_itself_in_a_line() -> None:
    assert repr(NoiseSchedule.linear_sigmas(128)) == (
        "NoiseSchedule(levels=128, alpha_bar=1 to 1, sigma_bar=0.05 to 1.2)"
    )
    assert repr(NoiseSchedule(*CLEAN, tilted_top=True)).endswith("tilted_top=True)")


def test_a_pair_may_skip_levels_by_a_plain_number() -> None:
    clean, noisy = SCHEDULES["cosine"].pairs(torch.zeros(7, 2), torch.arange(6).repeat(2)[:7] // 2, upper=5)
    assert clean.shape == noisy.shape == (7, 2)
    several = SCHEDULES["cosine"].pairs(torch.zeros(3, 2), 0, upper=torch.tensor([1, 3, 5]))
    assert several.clean.shape == several.noisy.shape == (3, 2)


def test_clean_data_at_level_0_are_allowed() -> None:
    schedule = NoiseSchedule(torch.tensor(CLEAN[0]), torch.tensor(CLEAN[1]))
    assert schedule.log_snr[0] == math.inf
    x0 = torch.randn(5, 2)
    assert torch.equal(schedule.pairs(x0, 0).clean, x0)

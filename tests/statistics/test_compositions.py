"""Samples of mixtures and of conditional densities, against exact Gaussian energies at every noise level."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.models import composition

SCHEDULE = ep.NoiseSchedule.cosine(6)
DRAWS = 4000


class Bell(nn.Module):
    """The normalized energies of N(0, 1) in every coordinate, at every level; of N(c, 0.4²) given a context c."""

    def __init__(
        self, size: int, context_shape: tuple[int, ...] | None = None, schedule: ep.NoiseSchedule = SCHEDULE
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size((size,))
        self.context_shape = context_shape and torch.Size(context_shape)
        # Networks see points of unit variance.
        self.register_buffer("alpha", (schedule.alpha_bar / schedule.marginal_std).float())
        self.register_buffer("sigma", (schedule.sigma_bar / schedule.marginal_std).float())
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        alpha, sigma = (values[level].reshape(-1, 1) for values in (self.alpha, self.sigma))
        width = 1.0 if context is None else 0.4
        mean = 0.0 if context is None else alpha * context
        normal = torch.distributions.Normal(mean, (alpha.square() * width**2 + sigma.square()).sqrt())
        return -self.weight * normal.log_prob(x).sum(-1)


def bell(loc: list[float], scale: list[float], schedule: ep.NoiseSchedule = SCHEDULE) -> ep.RecoveryEBM:
    """N(loc, scale²), which is N(0, 1) in coordinates of its own."""
    ebm = ep.RecoveryEBM(Bell(len(loc), schedule=schedule), schedule)
    ebm.loc.copy_(torch.tensor(loc))
    ebm.scale.copy_(torch.tensor(scale))
    ebm.is_standardized.fill_(True)
    return ebm


@pytest.mark.parametrize(
    ("locs", "scales"),
    [
        (([0.0], [3.0]), ([1.0], [1.0])),
        (([0.0], [10.0]), ([1.0], [1.0])),
        (([-5.0], [5.0]), ([1.0], [2.0])),
        (([5.0, 0.0], [-5.0, 1.0]), ([3.0, 1.0], [1.0, 1.0])),
    ],
    ids=["near", "far", "wider", "another shape"],
)
def test_samples_of_a_mixture_have_its_shares(
    locs: tuple[list[float], ...], scales: tuple[list[float], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of other data have other coordinates.  Half of the mass is asked of each: the share of samples nearer to
    the first mean within 4.5 standard errors (a false alarm in 150,000) and, where scales differ and the levels are a
    path and no more, .03 beside; their standard deviation within 5 %.  With the shift of clean data at every level, the
    negative control, shares are off by .1 at least or the deviation by 5 %.
    """

    def found() -> tuple[float, float, float]:
        one, other = (bell(loc, scale) for loc, scale in zip(locs, scales, strict=True))
        weights = [0.5 / math.prod(scale) for scale in scales]
        x = ep.mixture(one, other, weights=weights).sample((DRAWS,))[:, 0]
        truth = [torch.distributions.Normal(loc[0], scale[0]) for loc, scale in zip(locs, scales, strict=True)]
        middle = 0.5 * (locs[0][0] + locs[1][0])
        below = [float(normal.cdf(torch.tensor(middle))) for normal in truth]
        share = sum(below) / 2
        deviation = math.sqrt(sum(s[0] ** 2 for s in scales) / 2 + (locs[0][0] - locs[1][0]) ** 2 / 4)
        return float((x < middle).float().mean()) - share, share, float(x.std()) / deviation - 1.0

    off, share, wider = found()
    path = 0.0 if scales[0] == scales[1] else 0.03
    assert abs(off) < path + 4.5 * math.sqrt(share * (1 - share) / DRAWS)
    assert abs(wider) < 0.05

    def of_clean_data(first: ep.RecoveryEBM, ebm: ep.RecoveryEBM, level: int | Tensor) -> composition._Part:
        shift, ratio = (ebm.loc - first.loc) / first.scale, ebm.scale / first.scale
        return composition._Part(ep.potentials.Standardized(ebm.potential(level), shift, ratio), 0.0)

    monkeypatch.setattr(composition, "_seen_from", of_clean_data)
    off, _, wider = found()
    assert abs(off) > 0.1 or abs(wider) > 0.05


@pytest.mark.parametrize("schedule", [SCHEDULE, ep.NoiseSchedule.geometric_sigmas(6, low=0.1, high=5.0)])
def test_levels_of_a_mixture_hold_as_much_mass_as_its_densities(schedule: ep.NoiseSchedule) -> None:
    """By quadrature, in the first model's coordinates: a wider model's levels keep the share that level 0 has."""
    one, other = bell([0.0], [1.0], schedule), bell([1.0], [3.0], schedule)
    both = ep.mixture(one, other, weights=[0.5, 0.5 / 3.0])
    small = ep.mixture(one, other, weights=[0.5, 1e-12])
    for level in range(schedule.levels):
        total, first = (mixed.log_normalizer(level=level).estimate for mixed in (both, small))
        assert first - total == pytest.approx(math.log(0.5), abs=2e-3), level


def test_a_mixture_of_models_far_apart_warns() -> None:
    with pytest.warns(UserWarning, match="lies 30 standard deviations of model 0 away and is 1 times as wide: too few"):
        ep.mixture(bell([0.0], [1.0]), bell([30.0], [1.0]))
    with pytest.warns(UserWarning, match="is 30 times as wide"):
        ep.mixture(bell([0.0], [1.0]), bell([0.0], [30.0]))


class ScalarBell(Bell):
    """The same of scalar points."""

    def __init__(self) -> None:
        super().__init__(1)
        self.event_shape = torch.Size(())

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x[:, None], level)


def test_scalar_points_are_mixed_level_by_level() -> None:
    one, other = (ep.RecoveryEBM(ScalarBell(), SCHEDULE) for _ in range(2))
    other.loc.fill_(2.0)
    other.scale.fill_(3.0)
    mixed, x, levels = ep.mixture(one, other), torch.randn(SCHEDULE.levels), torch.arange(SCHEDULE.levels)
    each = torch.stack([mixed.potential(level)(x[level]) for level in levels.tolist()])
    torch.testing.assert_close(mixed.potential(levels)(x), each)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_given_a_context_are_of_its_density(temperature: float) -> None:
    """Twelve contexts' own ranks fall evenly into ten bins: χ² of nine degrees below 40 (a false alarm in 130,000
    for one context, one in 3,600 for all cases).  Draws of chains, the negative control, fail at a temperature of 0.5.
    """
    ebm = ep.models.ConditionalEBM(Bell(1, (1,)), SCHEDULE)
    ebm.is_standardized.fill_(True)
    ebm.inverse_temperature.fill_(temperature)
    contexts = torch.linspace(-1.0, 1.0, 12)[:, None]
    given = ebm.given_unchecked(contexts)
    edges = given.quantiles(torch.arange(1, 10) / 10.0)  # (9, 12)

    def misfit(x: Tensor) -> float:
        counts = torch.stack([(x > edge).float().sum(0) for edge in edges])
        shares = [len(x) - counts[0], *(a - b for a, b in pairwise(counts)), counts[-1]]
        return float(((torch.stack(shares) - len(x) / 10).square() / (len(x) / 10)).sum(0).max())

    drawn = given.sample((DRAWS,))
    assert drawn.shape == (DRAWS, 12, 1)
    assert misfit(drawn[..., 0]) < 40.0
    if temperature == 0.5:
        chains = ebm.conditioned(contexts.expand(1000, 12, 1)).sample((1000, 12))[..., 0]
        assert misfit(chains) > 80.0


def test_samples_in_plates_keep_their_contexts() -> None:
    """Means within 4.5 standard errors, a false alarm in 12,000 for all of them; contexts lie 50 errors apart."""
    ebm = ep.models.ConditionalEBM(Bell(1, (1,)), SCHEDULE)
    ebm.is_standardized.fill_(True)
    contexts = torch.tensor([-1.0, 0.0, 1.0])
    given = ebm.given_unchecked(contexts[:, None, None])  # a batch of (3, 1)
    expected = (SCHEDULE.alpha_bar[0].float() * contexts)[:, None].expand(3, 4)
    deviation = float((0.16 * SCHEDULE.alpha_bar[0] ** 2 + SCHEDULE.sigma_bar[0] ** 2).sqrt())
    drawn = given.expand([3, 4]).sample((400,))
    assert drawn.shape == (400, 3, 4, 1)
    assert float((drawn[..., 0].mean(0) - expected).abs().max()) < 4.5 * deviation / 20.0
    assert given.quantiles(torch.tensor([])).shape == (0, 3, 1)

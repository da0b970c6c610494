"""Every toy's density, draws, entropy and noised density, judged in one table."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from energyppl import toys
from energyppl.errors import InvalidInput
from energyppl.integration.quadrature import Grid, GridOptions, quadrature

WELLS = toys.DoubleWell(dim=1, tilt=0.5)
SKEWED = toys.GaussianMixture(
    torch.tensor([[0.0, 0.0], [2.0, 1.0]]),
    torch.tensor([[[1.0, 0.6], [0.6, 0.5]], [[0.2, -0.1], [-0.1, 0.3]]]),
    torch.tensor([1.0, 3.0]),
)
# name: (toy, half width of a box that holds all but 1e-6 of the mass, cells per side)
TABLE: dict[str, tuple[Any, tuple[float, ...], int]] = {
    "checkerboard": (toys.Checkerboard(), (8.0, 8.0), 64),
    "rings": (toys.Rings(), (6.0, 6.0), 256),
    "thin rings": (toys.Rings(radii=(1.0, 2.0), sd=0.05), (3.0, 3.0), 256),
    "pinwheel": (toys.Pinwheel(), (6.5, 6.5), 384),
    "two moons": (toys.TwoMoons(), (3.0, 3.0), 128),
    "eight gaussians": (toys.EightGaussians(), (8.0, 8.0), 64),
    "spirals": (toys.Spirals(), (5.0, 5.0), 192),
    "swiss roll": (toys.SwissRoll(), (5.0, 5.0), 96),
    "banana": (toys.Banana(scale=1.0), (6.5, 24.0), 192),
    "funnel": (toys.Funnel(scale=0.5), (3.0, 24.0), 256),
    "skewed mixture": (SKEWED, (8.0, 8.0), 128),
    "double well": (toys.DoubleWell(), (7.0, 7.0), 128),
    "double well in 1-d": (WELLS, (4.0,), 256),
    "1-d mixture": (toys.OneDimensionalMixture(), (4.0,), 512),
}
HIGHER: dict[str, Any] = {
    "funnel in 4-d": toys.Funnel(dim=4, scale=0.7),
    "double wells in 3-d": toys.DoubleWell(dim=3, wells=2, tilt=0.3),
    "mixture in 3-d": toys.GaussianMixture(torch.eye(3) * 2, torch.diag_embed(torch.tensor([[1.0, 0.5, 0.2]] * 3))),
    "round mixture in 5-d": toys.IsotropicMixture(torch.eye(5)[:2], 0.4),
}
ALL = {name: row[0] for name, row in TABLE.items()} | HIGHER


def by_name(table: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("name", list(table))


def grid_of(name: str) -> Grid:
    _, half, points = TABLE[name]
    return Grid(tuple(-h for h in half), half, (points,) * len(half))


@by_name(ALL)
def test_shapes_and_dtypes(name: str) -> None:
    toy = ALL[name]
    torch.manual_seed(0)
    event = tuple(toy.event_shape)
    assert toy.sample().shape == event
    assert toy.sample((0,)).shape == (0, *event)
    x = toy.sample((3, 4))
    assert x.shape == (3, 4, *event)
    assert x.dtype == torch.get_default_dtype()
    for density in (toy, toy.diffused(0.9, 0.1)):
        assert density.event_shape == event
        assert density.log_prob(x[0, 0]).shape == ()
        assert density.log_prob(x[:0]).shape == (0, 4)
        assert density.log_prob(x).shape == density(x).shape == (3, 4)
        assert torch.equal(density(x), -density.log_prob(x))
        assert density.log_prob(x.double()).dtype == torch.float64
        torch.testing.assert_close(density.log_prob(x.double()), density.log_prob(x).double(), atol=2e-4, rtol=1e-4)
        assert density.sample((2,)).shape == (2, *event)
        index = density.modes(x)
        assert index.dtype == torch.long
        assert index.shape == (3, 4)
        assert density.on_support(x).dtype == torch.bool


@by_name(ALL)
def test_gradients_are_finite_where_the_data_are_and_far_away(name: str) -> None:
    toy = ALL[name]
    torch.manual_seed(1)
    for density in (toy, toy.diffused(0.95, 0.2)):
        for spread in (1.0, 3.0):
            x = (spread * toy.sample((200,))).requires_grad_()
            value = density.log_prob(x)
            (grad,) = torch.autograd.grad(value[value > -math.inf].sum(), x)
            assert bool(grad.isfinite().all())


@by_name(TABLE)
def test_density_integrates_to_one_and_has_the_stated_entropy(name: str) -> None:
    toy = TABLE[name][0]
    result = quadrature(toy, grid_of(name), GridOptions(dtype=torch.float64, max_points=1024))
    assert abs(result.log_normalizer) < 2e-5
    assert result.entropy == pytest.approx(toy.entropy(), abs=2e-4)


@by_name(ALL)
def test_draws_agree_with_the_density(name: str) -> None:
    """The mean of -log_prob over 20,000 draws is the entropy within 4 standard errors: false alarms 6e-5 per toy.

    The share on_support is 99 % within 4 standard errors too, but for the checkerboard, whose support is exact. Where
    the entropy is itself a Monte Carlo mean (d > 2) its error is a third of the test's and is added.
    """
    toy = ALL[name]
    torch.manual_seed(2)
    x = toy.sample((20_000,))
    surprise = toy(x).double()
    error = 4 * float(surprise.std()) * math.sqrt(1 / 20_000 + 1 / 200_000)
    assert abs(float(surprise.mean()) - toy.entropy()) <= error + 1e-6
    share = float(toy.on_support(x).double().mean())
    if isinstance(toy, toys.Checkerboard):
        assert share == 1.0
    else:
        assert share == pytest.approx(0.99, abs=4 * math.sqrt(0.01 * 0.99 * (2 / 20_000)))


def cell_score(toy: Any, grid: Grid, x: torch.Tensor, shift: float = 0.0) -> float:
    """z-score of Pearson's chi-square over 8 x 8 blocks of cells, for draws x against the toy's density."""
    result = quadrature(toy, grid, GridOptions(dtype=torch.float64, max_points=1024))
    density = result.density * result.grid.cell
    side = density.shape[0] // 8
    shape = (8, side) * density.dim()
    expected = density.reshape(shape).sum(tuple(range(1, 2 * density.dim(), 2))).flatten() * len(x)
    low, high = torch.tensor(grid.low), torch.tensor(grid.high)
    block = ((x + shift - low) / (high - low) * 8).long().clamp(0, 7)
    index = block[:, 0] if block.shape[1] == 1 else block[:, 0] * 8 + block[:, 1]
    observed = index.bincount(minlength=len(expected)).double()
    kept = expected > 10
    chi2 = ((observed - expected)[kept].square() / expected[kept]).sum()
    freedom = int(kept.sum()) - 1
    # Wilson and Hilferty's cube root is nearly normal.
    return float(((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom)))


@by_name(TABLE)
def test_draws_fill_the_cells_as_the_density_says(name: str) -> None:
    """Chi-square over coarse blocks, as a z-score below 4: false alarms about 3e-5 per toy."""
    toy = TABLE[name][0]
    torch.manual_seed(3)
    assert cell_score(toy, grid_of(name), toy.sample((20_000,))) < 4


def test_the_cell_test_can_fail() -> None:
    """Draws moved by a twentieth of a square are told apart."""
    torch.manual_seed(3)
    toy = toys.EightGaussians()
    assert cell_score(toy, grid_of("eight gaussians"), toy.sample((20_000,)), shift=0.1) > 4


def convolved(toy: Any, x: torch.Tensor, alpha: float, sigma: float, points: int) -> torch.Tensor:
    """log of the mean over noise of the clean density, by the midpoint rule: slow, and sharing no code."""
    dim = x.shape[1]
    noise = Grid((-7.0,) * dim, (7.0,) * dim, (points,) * dim)
    nodes = noise.nodes()
    log_weight = -0.5 * nodes.square().sum(1) - 0.5 * dim * math.log(2 * math.pi) + math.log(noise.cell)
    rows = [(toy.log_prob((row - sigma * nodes) / alpha) + log_weight).logsumexp(0) for row in x]
    return torch.stack(rows) - dim * math.log(alpha)


@by_name(TABLE)
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.03), (0.9, 0.25), (0.6, 0.8)])
def test_noised_density_is_the_numeric_convolution(name: str, alpha: float, sigma: float) -> None:
    """At draws of the noised toy; the checkerboard's jumps limit the reference, not the toy."""
    toy = TABLE[name][0]
    torch.manual_seed(4)
    noisy = toy.diffused(alpha, sigma)
    x = noisy.sample((4,)).double()
    rough = isinstance(toy, toys.Checkerboard)
    fine = 260 if name in ("thin rings", "pinwheel") and sigma > 0.5 else 150
    reference = convolved(toy, x, alpha, sigma, 700 if rough else fine)
    torch.testing.assert_close(noisy.log_prob(x), reference, atol=4e-2 if rough else 2e-5, rtol=0)


@by_name({name: row for name, row in TABLE.items() if name not in ("funnel",)})
def test_noised_density_integrates_to_one(name: str) -> None:
    toy = TABLE[name][0]
    coarse = dataclasses.replace(grid_of(name), points=(64,) * len(TABLE[name][1]))
    result = quadrature(toy.diffused(0.9, 0.3), coarse, GridOptions(dtype=torch.float64))
    assert abs(result.log_normalizer) < 2e-5


@pytest.mark.parametrize("toy", [toys.Checkerboard(), toys.Rings(), toys.Pinwheel(), toys.Banana()])
def test_noise_upon_noise_is_one_noise(toy: Any) -> None:
    torch.manual_seed(5)
    x = toy.sample((20,)).double()
    twice = toy.diffused(0.9, 0.3).diffused(0.8, 0.1)
    once = toy.diffused(0.72, math.hypot(0.8 * 0.3, 0.1))
    torch.testing.assert_close(twice.log_prob(x), once.log_prob(x), atol=1e-5, rtol=0)


def test_checkerboard_noise_is_the_product_of_two_erf_differences() -> None:
    """Against a plain sum over the squares, and finite where a plain difference of Phi is zero."""
    toy, normal = toys.Checkerboard(), torch.distributions.Normal(0.0, 1.0)
    x = torch.tensor([[0.3, -1.2], [-3.9, 3.7], [1.0, 1.0]], dtype=torch.float64)
    total = torch.zeros(3, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            if (i + j) % 2 == 0:
                low = torch.tensor([2.0 * i - 4, 2.0 * j - 4], dtype=torch.float64)
                sides = normal.cdf((0.9 * (low + 2) - x) / 0.4) - normal.cdf((0.9 * low - x) / 0.4)
                total = total + sides.prod(1) / (32 * 0.9**2)
    torch.testing.assert_close(toy.diffused(0.9, 0.4).log_prob(x), total.log(), atol=1e-10, rtol=0)
    far = toy.diffused(1.0, 0.01).log_prob(torch.tensor([[100.0, 100.0]]))
    assert float(far) == pytest.approx(-(96.0**2) / 0.01**2, rel=1e-3)


KNOWN = [
    (toys.Checkerboard(), math.log(32)),
    (toys.Checkerboard(half_width=8.0), 4.852),
    (toys.Rings(), 3.535),
    # Thin rings: ln 4 + ln(sd sqrt(2 pi e)) + ln 2 pi + mean(ln R) = 0.8325 (a Monte Carlo estimate said .834).
    (toys.Rings(sd=0.01), math.log(8 * math.pi) + math.log(0.01 * math.sqrt(2 * math.pi * math.e)) + math.log(24) / 4),
    (toys.EightGaussians(scale=0.1), math.log(8) + 1 + math.log(2 * math.pi * 0.01)),
    (toys.OneDimensionalMixture(), 0.5623 + 0.5 * math.log(2 * math.pi * math.e * 0.01)),
    (toys.Banana(), math.log(2 * math.pi * math.e * 2)),
    (toys.Funnel(dim=3), 1.5 * math.log(2 * math.pi * math.e) + math.log(3)),
    (toys.IsotropicMixture(torch.zeros(1, 4), 2.0), 2 * math.log(2 * math.pi * math.e * 4)),
    (
        toys.GaussianMixture(torch.zeros(1, 2), torch.tensor([[[4.0, 1.0], [1.0, 1.0]]])),
        1 + math.log(2 * math.pi * 3**0.5),
    ),
]


@pytest.mark.parametrize(("toy", "entropy"), KNOWN)
def test_known_entropies(toy: Any, entropy: float) -> None:
    assert toy.entropy() == pytest.approx(entropy, abs=6e-4)


def test_modes_number_the_pieces() -> None:
    board = toys.Checkerboard()
    torch.manual_seed(6)
    counts = board.modes(board.sample((8_000,))).bincount(minlength=8)
    # 1,000 a square with sd 30: 5 sd, false alarms 5e-6 over the eight.
    assert bool(((counts - 1_000).abs() < 150).all())
    assert board.modes(torch.tensor([[-3.0, -3.0], [3.0, 3.0]])).tolist() == [0, 7]
    assert board.on_support(torch.tensor([[-3.0, -3.0], [-1.0, -3.0], [9.0, 9.0]])).tolist() == [True, False, False]
    assert toys.Rings().modes(torch.tensor([[0.0, 1.1], [-2.9, 0.0]])).tolist() == [0, 2]
    assert toys.OneDimensionalMixture().modes(torch.tensor([[-1.0], [3.0]])).tolist() == [0, 1]
    assert toys.TwoMoons().modes(torch.tensor([[0.0, 1.0], [1.0, -0.5]])).tolist() == [0, 1]
    assert toys.DoubleWell(dim=2, wells=2).modes(torch.tensor([[1.0, -1.0], [1.0, 1.0]])).tolist() == [1, 3]
    noisy = board.diffused(0.5, 0.1)
    assert noisy.modes(torch.tensor([[1.5, 1.5]])).tolist() == [7]
    for toy in ALL.values():
        assert int(toy.modes(toy.sample((2_000,))).max()) + 1 == toy.number_of_modes


def test_energy_gaps_are_the_known_ones() -> None:
    mixture = toys.OneDimensionalMixture()
    left, right = mixture(torch.tensor([[-2.0], [2.0]], dtype=torch.float64)).tolist()
    assert left - right == pytest.approx(-math.log(3), abs=1e-12)
    rings = toys.Rings(sd=0.01)
    peaks = rings.log_prob(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(peaks - peaks[0], -torch.tensor([1.0, 2, 3, 4], dtype=torch.float64).log())


def test_a_ring_density_without_its_jacobian_fails() -> None:
    """Dividing by 2 pi instead of 2 pi r, the usual slip, is caught by the integral and by the draws."""
    rings = toys.Rings()

    def wrong(x: torch.Tensor) -> torch.Tensor:
        return rings(x) - x.norm(dim=-1).clamp_min(1e-9).log()

    assert abs(quadrature(wrong, grid_of("rings"), GridOptions(dtype=torch.float64)).log_normalizer) > 0.5
    torch.manual_seed(2)
    surprise = wrong(rings.sample((20_000,))).double()
    assert abs(float(surprise.mean()) - rings.entropy()) > 4 * float(surprise.std()) / math.sqrt(20_000)


def test_draws_follow_torchs_seed_and_queries_leave_it_alone() -> None:
    toy = toys.EightGaussians()
    torch.manual_seed(7)
    first = toy.sample((5,))
    toys.Spirals().on_support(first)
    toys.IsotropicMixture(torch.eye(3), 0.5).entropy()
    second = toy.sample((5,))
    torch.manual_seed(7)
    assert torch.equal(toy.sample((5,)), first)
    assert torch.equal(toy.sample((5,)), second)


def test_toys_are_frozen_values_and_the_lookup_is_complete() -> None:
    assert toys.Rings() == toys.Rings(sd=0.15)
    with pytest.raises(dataclasses.FrozenInstanceError):
        toys.Rings().sd = 1.0  # type: ignore[misc]
    for name, make in toys.TWO_DIMENSIONAL.items():
        toy = make()
        assert toy.event_shape == (2,), name
        assert math.isfinite(toy.entropy()), name


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: toys.Checkerboard(half_width=-1.0), "half_width must be positive and finite; got -1.0"),
    (lambda: toys.Rings(radii=()), "radii must hold at least one radius"),
    (lambda: toys.Rings(sd=math.nan), "sd must be positive and finite; got nan"),
    (lambda: toys.Pinwheel(arms=0), "arms must be a whole number of at least 1; got 0"),
    (lambda: toys.Pinwheel(rate=math.inf), "rate must be a finite number; got inf"),
    (lambda: toys.TwoMoons(scale=1e-5), "scale must be at least 0.001; got 1e-05"),
    (lambda: toys.Spirals(turns=0.0), "turns must be positive"),
    (lambda: toys.Funnel(dim=1), "dim must be a whole number of at least 2; got 1"),
    (lambda: toys.DoubleWell(dim=1, wells=2), "wells must be at most dim=1; got 2"),
    (lambda: toys.DoubleWell(tilt=50.0), "tilt must be below 8 in size; got 50.0"),
    (lambda: toys.IsotropicMixture(torch.zeros(3), 1.0), r"means must be finite, of shape \(k, d\); got \(3,\)"),
    (lambda: toys.IsotropicMixture(torch.zeros(2, 1), 1.0, torch.ones(3)), r"weights must be 2 positive number"),
    (lambda: toys.IsotropicMixture(torch.zeros(2, 1), 1.0, labels=torch.ones(3)), r"labels must have shape \(2,\)"),
    (lambda: toys.OneDimensionalMixture(weights=(1.0, -1.0)), "weights must be 2 positive number"),
    (lambda: toys.GaussianMixture(torch.zeros(2, 2), torch.eye(2)), r"covariances must have shape \(2, 2, 2\)"),
    (lambda: toys.GaussianMixture(torch.zeros(1, 2), -torch.eye(2)[None]), "symmetric and positive definite"),
    (lambda: toys.Rings().diffused(0.0, 0.1), "alpha must be positive and finite; got 0.0"),
    (lambda: toys.Spirals().diffused(1.0, 0.0), "sigma must be positive and finite; got 0.0"),
    (lambda: toys.Rings().log_prob(torch.zeros(3)), r"x must end in event_shape \(2,\); got \(3,\)"),
    (lambda: toys.Rings().modes(torch.zeros(3, 2, dtype=torch.long)), "x must be floating point"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_refused_in_one_sentence(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call()


@pytest.mark.parametrize("labels", [[0, 2, 2], [7, -1, -1], [0.5, 0.7, 0.7]])
def test_modes_are_counted_from_zero_whatever_their_labels(labels: list[float]) -> None:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [1.0, 0.2]])
    toy = toys.IsotropicMixture(means, 0.1, labels=torch.tensor(labels))
    assert toy.number_of_modes == 2
    assert sorted(set(toy.modes(means).tolist())) == [0, 1]

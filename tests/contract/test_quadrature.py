"""Quadrature against closed forms: log Z, moments, entropies, KL, its own error estimate, and its refusals."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from energyppl import toys
from energyppl.errors import InvalidInput, QuadratureError
from energyppl.integration.quadrature import Grid, GridOptions, expectation, kl_divergence, quadrature
from energyppl.potentials import Energy

COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
PLANE = Grid((-8.0, -6.0), (8.0, 6.0), (96, 80))
LINE = Grid((-9.0,), (9.0,), (64,))


def bell(x: torch.Tensor) -> torch.Tensor:
    """A correlated Gaussian's energy, 1.5 nats too high."""
    away = x - MEAN.to(x)
    return 0.5 * (away @ torch.linalg.inv(COVARIANCE).to(x) * away).sum(-1) + 1.5


class ScalarEnergy:
    """event_shape (): one number is one point."""

    event_shape = torch.Size()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.square()


class Net(torch.nn.Module):
    """An energy whose parameters fix the dtype."""

    event_shape = torch.Size((1,))

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float64
        return (0.5 * (self.scale * x).square()).sum(-1)


def test_gaussian_in_the_plane_is_exact() -> None:
    result = quadrature(bell, PLANE, GridOptions(dtype=torch.float64))
    half_log_det = 0.5 * float(torch.logdet(COVARIANCE))
    assert result.log_normalizer == pytest.approx(math.log(2 * math.pi) + half_log_det - 1.5, abs=1e-10)
    assert result.entropy == pytest.approx(1 + math.log(2 * math.pi) + half_log_det, abs=1e-10)
    torch.testing.assert_close(result.mean, MEAN, atol=1e-10, rtol=0)
    torch.testing.assert_close(result.covariance, COVARIANCE, atol=1e-10, rtol=0)
    assert result.log_density.shape == result.grid.points
    assert float(result.density.sum()) * result.grid.cell == pytest.approx(1, abs=1e-12)
    assert result.leak < 1e-6
    assert result.evaluations >= result.grid.size


@pytest.mark.parametrize("potential", [ScalarEnergy(), Net(), lambda x: 0.5 * x.square().sum(-1)])
def test_one_dimension_in_every_event_shape(potential: Callable[[torch.Tensor], torch.Tensor]) -> None:
    result = quadrature(potential, LINE)
    assert result.log_normalizer == pytest.approx(0.5 * math.log(2 * math.pi), abs=2e-6)
    assert float(result.covariance) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("points", [8, 15, 32, 101])
@pytest.mark.parametrize(
    "toy", [toys.Rings(), toys.Checkerboard(half_width=3.3), toys.TwoMoons(), toys.EightGaussians()]
)
def test_the_error_estimate_covers_the_error(toy: Any, points: int) -> None:
    """From too coarse a start the grid is refined until the estimate holds; the true error is within it.

    Where a density jumps (the checkerboard, off the cells' edges) the estimate is an order of magnitude only.
    """
    jumps = isinstance(toy, toys.Checkerboard)
    grid = Grid((-7.0, -6.9), (6.8, 7.1), (points, points))
    result = quadrature(toy, grid, GridOptions(tolerance=2e-2, max_points=2048, dtype=torch.float64))
    assert abs(result.log_normalizer) <= (3e-2 if jumps else result.error + 1e-9)
    assert result.error <= 2e-2


def test_thin_rings_are_refined_until_they_are_resolved() -> None:
    result = quadrature(toys.Rings(radii=(1.0,), sd=0.01), Grid((-2.0, -2.0), (2.0, 2.0), (128, 128)))
    assert result.grid.points[0] >= 256
    assert abs(result.log_normalizer) < 1e-3


def test_chunks_make_no_difference() -> None:
    small, large = (quadrature(bell, PLANE, GridOptions(dtype=torch.float64, chunk=size)) for size in (97, 10**6))
    assert small.log_normalizer == large.log_normalizer
    assert torch.equal(small.log_density, large.log_density)


def test_infinite_energy_off_the_support_is_fine() -> None:
    def half(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] > 0, x[:, 0], math.inf)

    result = quadrature(half, Grid((-10.0,), (30.0,), (1024,)), GridOptions(dtype=torch.float64, tolerance=1e-2))
    assert result.log_normalizer == pytest.approx(0, abs=1e-3)
    assert result.entropy == pytest.approx(1, abs=1e-2)


def test_expectations() -> None:
    square = expectation(lambda x: x.square(), bell, PLANE, GridOptions(dtype=torch.float64))
    torch.testing.assert_close(square, COVARIANCE.diag() + MEAN.square(), atol=1e-10, rtol=0)
    board = toys.Checkerboard()
    # The logarithm of the density is minus infinity off the board, where nobody is asked.
    entropy = expectation(board, board, Grid((-8.0, -8.0), (8.0, 8.0), (64, 64)))
    assert float(entropy) == pytest.approx(math.log(32), abs=1e-5)


def test_kl_between_gaussians_and_to_a_disjoint_support() -> None:
    p, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.5, 1.5)
    value = kl_divergence(
        lambda x: p.log_prob(x).sum(-1), lambda x: q.log_prob(x).sum(-1), Grid((-14.0,), (14.0,), (256,))
    )
    assert value == pytest.approx(float(torch.distributions.kl_divergence(p, q)), abs=1e-5)
    board = toys.Checkerboard()
    plane = Grid((-12.0, -12.0), (12.0, 12.0), (96, 96))
    assert kl_divergence(board.log_prob, board.log_prob, plane) == pytest.approx(0, abs=1e-6)
    noisy = board.diffused(1.0, 0.3)
    assert 0 < kl_divergence(board.log_prob, noisy.log_prob, plane) < 1
    assert kl_divergence(noisy.log_prob, board.log_prob, plane) == math.inf


def test_kl_refines_for_the_sharper_of_the_two() -> None:
    """p is smooth and q is a narrow mixture: from p's coarse grid the answer would be far off."""
    narrow = toys.IsotropicMixture(torch.tensor([[-0.5], [0.5]]), 0.2)
    wide = toys.IsotropicMixture(torch.zeros(1, 1), 0.5)
    coarse, fine = (Grid((-6.0,), (6.0,), (n,)) for n in (16, 4096))
    values = [
        kl_divergence(wide.log_prob, narrow.log_prob, g, GridOptions(tolerance=1e-2, dtype=torch.float64))
        for g in (coarse, fine)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-2)


def test_grid_geometry() -> None:
    grid = Grid((0.0, -1.0), (2.0, 1.0), (8, 16))
    nodes = grid.nodes()
    assert nodes.shape == (128, 2)
    assert nodes.dtype == torch.float64
    assert nodes[:2].tolist() == [[0.125, -0.9375], [0.125, -0.8125]]
    assert float(grid.weights.sum()) == pytest.approx(4)
    torch.manual_seed(0)
    data = torch.randn(100, 2)
    around = Grid.around(data, margin=0.1, points=32)
    assert around.points == (32, 32)
    assert bool((data.amin(0) > torch.tensor(around.low)).all() & (data.amax(0) < torch.tensor(around.high)).all())
    assert Grid.around(data[:, 0]).dim == 1


def minus_infinity(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x[:, 0].abs() < 0.5, -math.inf, 0.0)


CANT: list[tuple[Callable[[], Any], str]] = [
    (lambda: quadrature(bell, Grid((-2.0, -2.0), (2.0, 2.0), (64, 64))), r"got a leak of 0\.\d+ .* enlarge the box"),
    (lambda: quadrature(lambda x: 0 * x[:, 0], LINE), "got a leak of .* enlarge the box"),
    (lambda: quadrature(lambda x: x[:, 0].abs().log1p() * 2, Grid((-99.0,), (99.0,), (1024,))), "a leak of"),
    (
        lambda: quadrature(toys.Rings(sd=0.01), Grid((-6.0, -6.0), (6.0, 6.0), (32, 32)), GridOptions(max_points=128)),
        r"the error of log Z must be at most 0.001 nats; got .* with \(128, 128\) points: raise max_points",
    ),
    (lambda: quadrature(lambda x: x[:, 0].log(), LINE), r"energies must be numbers or \+inf; got nan at 32 node"),
    (lambda: quadrature(minus_infinity, LINE), "got -inf at"),
    (lambda: quadrature(lambda x: x[:, 0] + math.inf, LINE), r"the box must hold mass; got energy \+inf"),
    (lambda: expectation(lambda x: x[:, 0].log(), line_energy, LINE), "the mean must be finite"),
    (lambda: kl_divergence(lambda x: -x[:, 0].square(), lambda x: x[:, 0], LINE), "log_p must integrate to one"),
    (
        lambda: kl_divergence(unit, lambda x: -x[:, 0].square(), LINE),
        r"log_q must integrate to one on the box; got 1.77245: normalize it",
    ),
]


def line_energy(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x[:, 0].square()


def unit(x: torch.Tensor) -> torch.Tensor:
    return -0.5 * (x[:, 0].square() + math.log(2 * math.pi))


@pytest.mark.parametrize(("call", "message"), CANT)
def test_a_grid_that_cannot_carry_the_integral_says_so(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(QuadratureError, match=message):
        call()


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: Grid((0.0,) * 3, (1.0,) * 3, (8,) * 3), "low must have one or two dimensions; got 3: estimate"),
    (lambda: Grid((0.0,), (1.0, 2.0), (8,)), "must be equally long; got 1, 2 and 1"),
    (lambda: Grid((1.0,), (0.0,), (8,)), "low must be finite and below high; got 1.0 and 0.0"),
    (lambda: Grid((0.0,), (1.0,), (4,)), "points must be a whole number of at least 8; got 4"),
    (lambda: Grid.around(torch.ones(5, 1)), "data must vary in every dimension"),
    (lambda: Grid.around(torch.ones(1, 2)), "data must be at least two finite rows"),
    (lambda: Grid.around(torch.randn(5, 2), margin=-1.0), "margin must be finite and not negative"),
    (lambda: Grid.around(torch.randn(5, 3)), "one or two dimensions; got 3"),
    (lambda: quadrature(toys.Rings(), LINE), r"event_shape must have 1 dimension\(s\), as the grid; got \(2,\)"),
    (lambda: quadrature(toys.Funnel(dim=3), PLANE), r"got \(3,\)"),
    (lambda: quadrature(lambda x: x, LINE), r"the potential must return shape \(\d+,\); got"),
    (lambda: quadrature(bell, PLANE, GridOptions(tolerance=0.0)), "tolerance must be positive"),
    (lambda: quadrature(bell, PLANE, GridOptions(chunk=0)), "chunk must be a whole number"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_refused_in_one_sentence(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call()


def test_divergence_of_distributions_is_that_of_their_densities() -> None:
    p, q = (dist.Normal(torch.tensor([mean]), 1.0).to_event(1) for mean in (0.0, 1.0))
    assert kl_divergence(p, q, Grid((-9.0,), (9.0,), (256,))) == pytest.approx(0.5, abs=1e-4)


def test_divergence_to_a_distribution_of_a_smaller_support_is_infinite() -> None:
    normal, rate = dist.Normal(torch.zeros(1), 1.0).to_event(1), dist.Exponential(torch.tensor([2.0])).to_event(1)
    grid = Grid((-8.0,), (30.0,), (1024,))
    assert kl_divergence(normal, rate, grid) == math.inf


def test_a_divergence_of_energies_is_refused_and_a_quadrature_is_a_line() -> None:
    bell = Energy(lambda x: 0.5 * x.square().sum(-1), (1,))
    with pytest.raises(InvalidInput, match="log densities are asked for; got an Energy"):
        kl_divergence(bell, bell, Grid((-9.0,), (9.0,), (64,)))
    assert repr(quadrature(bell, Grid((-9.0,), (9.0,), (64,)))).startswith("Quadrature(log Z = 0.918939 ± ")

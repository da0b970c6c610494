"""Supports: where points lie, what is refused, gradients that points outside do not poison, and pickling."""

import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import energyppl as ep
from energyppl.potentials.constrained import Constrained, bijection, constrain, contains, latent_transform
from tests.support.supports import DENSITIES, OFFSET, on_support

NORMAL = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (1,))
PLANE = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
SQUARE = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))


def known(value: float) -> ep.LogNormalizer:
    return ep.LogNormalizer(value, 0.0, value, value, 1, "exact")


based = lambda fn: ep.potentials.DistributionBase(fn.to_event(1))  # noqa: E731
HALF_LOG_Z = 0.5 * math.log(math.pi / 2.0)
HALF = ep.EnergyDistribution(NORMAL, support=constraints.positive, log_normalizer=HALF_LOG_Z)
WHOLE = ep.EnergyDistribution(NORMAL, log_normalizer=0.5 * math.log(2.0 * math.pi))


@pytest.mark.parametrize("name", DENSITIES)
def test_unconstrained_points_go_there_and_back(name: str) -> None:
    """Draws are inside, survive the round trip, and their energies differ by the Jacobian alone."""
    p, density = on_support(name, log_normalizer=-OFFSET)
    x = density.sample((50,))
    potential = p.unconstrained()
    z = p.unconstrain(x)
    assert z.shape == (50, *potential.event_shape)
    torch.testing.assert_close(constrain(potential, z), x, rtol=1e-4, atol=1e-5)
    assert bool(contains(p.support, x).all())
    torch.testing.assert_close(p.log_prob(x), density.log_prob(x), rtol=1e-4, atol=1e-4)
    energy, grad = ep.energy_and_grad(potential, z)
    assert bool(torch.isfinite(energy).all())
    assert bool(torch.isfinite(grad).all())


def test_likelihoods_and_divergences_keep_to_the_support() -> None:
    x = torch.tensor([[0.5], [-1.0], [2.0]])
    found = ep.evaluation.mean_log_likelihood(HALF, x, known(HALF_LOG_Z))
    assert found.value == -math.inf == float(HALF.log_prob(x).mean())
    assert found.standard_error == 0.0
    whole = torch.randn(1000, 1)
    assert ep.evaluation.kl_by_samples(WHOLE, HALF, whole, known(0.9189), known(HALF_LOG_Z)).value == math.inf
    half = whole.abs()  # KL(half ‖ whole) = log 2 at every point
    turned = ep.evaluation.kl_by_samples(HALF, WHOLE, half, known(HALF_LOG_Z), known(0.5 * math.log(2.0 * math.pi)))
    assert turned.value == pytest.approx(math.log(2.0), abs=1e-6)
    for call in (
        lambda: ep.evaluation.entropy(HALF, whole, known(HALF_LOG_Z)),
        lambda: ep.evaluation.kl_by_samples(HALF, WHOLE, whole, known(HALF_LOG_Z), known(0.9189)),
    ):
        with pytest.raises(ep.InvalidInput, match=r"energies must be finite at samples of p; got .* of 1000"):
            call()


class Logarithm(torch.nn.Module):
    """``rate x − shape log x``: NaN left of zero."""

    event_shape = torch.Size((1,))

    def __init__(self) -> None:
        super().__init__()
        self.shape = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        energy: Tensor = (x - self.shape * x.log()).sum(-1)
        return energy


@pytest.mark.filterwarnings("ignore:the gradient along the weights")  # a number is no log Z to learn with
@pytest.mark.parametrize(
    "log_z", [0.0, ep.objectives.Contrastive(ep.MALA(0.1), steps=2)], ids=["number", "contrastive"]
)
def test_a_row_outside_does_not_poison_the_gradient(log_z: Any) -> None:
    net = Logarithm()
    p = ep.EnergyDistribution(net, support=constraints.positive, log_normalizer=log_z)
    rows = torch.tensor([[0.5], [-1.0], [math.nan], [2.0]])
    log_prob = p.log_prob(rows)
    assert torch.isneginf(log_prob).tolist() == [False, True, True, False]
    (grad,) = torch.autograd.grad(log_prob.sum(), net.shape)
    assert bool(torch.isfinite(grad))
    if log_z == 0.0:
        assert float(grad) == pytest.approx(math.log(0.5) + math.log(2.0), abs=1e-6)


@pytest.mark.parametrize("categories", [3, 500, 5000])
def test_float32_draws_of_a_simplex_are_inside(categories: int) -> None:
    """Their sum is off by rounding, which grows with the categories."""
    p = ep.EnergyDistribution(
        ep.Energy(lambda x: 0.0 * x.sum(-1), (categories,)), support=constraints.simplex, log_normalizer=0.0
    )
    x = torch.softmax(3.0 * torch.randn(200, categories), -1)
    assert bool(torch.isfinite(p.log_prob(x)).all())
    assert bool(torch.isinf(p.log_prob(1.001 * x)).all())
    x = bijection(constraints.simplex)(torch.randn(200, categories - 1))
    assert bool(torch.isfinite(p.log_prob(x)).all())


def test_stick_breaking_in_float32_follows_float64() -> None:
    """Far out torch's own stops at 1e-7 of the stick, and its energies with it."""
    single = Constrained(ep.Energy(lambda x: 0.75 * x.log().sum(-1), (3,)), constraints.simplex)
    z = torch.cartesian_prod(torch.linspace(-30.0, 30.0, 31), torch.linspace(-30.0, 30.0, 31))
    torch.testing.assert_close(single(z), single(z.double()).float(), rtol=1e-4, atol=1e-4)
    x = single.constrain(z)
    inner = (z.abs() < 20.0).all(-1)
    torch.testing.assert_close(single.unconstrain(x)[inner], z[inner], rtol=1e-4, atol=1e-4)


def test_ends_that_differ_over_the_batch_keep_the_event_shape() -> None:
    support = constraints.interval(torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [3.0]]))
    p = ep.EnergyDistribution(
        NORMAL,
        batch_shape=(3,),
        support=support,
        log_normalizer=0.0,
        sampler=ep.sampling.MarkovSampler(ep.MALA(0.5), steps=3),
    )
    assert p.unconstrained().event_shape == (1,)
    x = p.sample((5,))
    assert x.shape == (5, 3, 1)
    assert bool(torch.isfinite(p.log_prob(x)).all())
    assert torch.isinf(p.log_prob(torch.full((3, 1), 1.5))).tolist() == [True, False, False]


def test_a_support_is_traced_once() -> None:
    """Two distributions of one event shape share their support, so that energy_and_grad need not trace them anew."""
    first, second = (ep.EnergyDistribution(NORMAL, support=constraints.positive) for _ in range(2))
    assert first.support is second.support


def test_distributions_can_be_pickled() -> None:
    net = Logarithm()
    start = ep.objectives.Contrastive(ep.MALA(0.1), steps=2)
    for p in (
        ep.EnergyDistribution(net, support=constraints.positive, log_normalizer=0.5, batch_shape=(2,)),
        ep.EnergyDistribution(net, support=constraints.interval(0.5, 3.0), log_normalizer=start),
        ep.RecoveryDistribution(net, torch.ones(2, 1), 0.5, log_normalizer=0.5),
    ):
        p.log_prob(torch.ones(2, 1))  # what it keeps from use goes along
        again = pickle.loads(pickle.dumps(p))
        assert type(again) is type(p)
        assert again.batch_shape == p.batch_shape
        torch.testing.assert_close(again.energy(torch.ones(2, 1)), p.energy(torch.ones(2, 1)))
        assert again.support.check(torch.ones(2, 1)).tolist() == p.support.check(torch.ones(2, 1)).tolist()


def test_which_latents_are_angles() -> None:
    """VonMises behind wrappers and in mixtures; the angle keeps its density, with a normalized distance beside."""
    angle = dist.VonMises(torch.zeros(3), 1.0)
    for circular in (
        angle,
        angle.to_event(1),
        angle.mask(torch.ones(3).bool()),
        dist.VonMises(0.0, 1.0).expand([3]),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(3, 2)), dist.VonMises(torch.zeros(3, 2), 1.0)),
    ):
        transform = latent_transform(circular)
        assert transform.inverse_shape(torch.Size((3,))) == (3, 2)
        theta = torch.tensor([-3.0, 0.5, 3.1])
        torch.testing.assert_close(transform(transform.inv(theta)), theta)
    grid = torch.linspace(-8.0, 8.0, 801)
    plane = torch.cartesian_prod(grid, grid)
    z = plane[plane.abs().sum(-1) > 0]
    weight = latent_transform(dist.VonMises(0.0, 1.0)).log_abs_det_jacobian(z, z[:, 0]).exp()
    assert float(weight.sum()) * 0.02**2 == pytest.approx(2.0 * math.pi, abs=1e-3)  # 1 for each unit of angle


ODD: dict[str, Any] = {
    "ordered": dist.constraints.ordered_vector,
    "positive and ordered": dist.constraints.positive_ordered_vector,  # which says that its events have no dimension
    "stacked": constraints.stack([constraints.real, constraints.positive], dim=-1),
    "side by side": constraints.cat([constraints.real, constraints.positive], dim=-1, lengths=[1, 1]),
    "above": constraints.interval(1.0, math.inf),
    "below": constraints.interval(-math.inf, 1.0),
    "everywhere": constraints.interval(-math.inf, math.inf),
}


@pytest.mark.parametrize("name", ODD)
def test_jacobians_are_those_of_the_map(name: str) -> None:
    p = Constrained(ep.Energy(lambda x: 0.0 * x.sum(-1), (2,)), ODD[name])
    z = torch.randn(20, 2, dtype=torch.float64)
    expected = torch.stack([-torch.autograd.functional.jacobian(p.constrain, point).det().abs().log() for point in z])
    torch.testing.assert_close(p(z), expected)
    torch.testing.assert_close(p.unconstrain(p.constrain(z)), z)
    assert bool(contains(ep.EnergyDistribution(p.potential, support=ODD[name]).support, p.constrain(z)).all())


GRID = torch.linspace(-200.0, 200.0, 80_001, dtype=torch.float64)  # unconstrained


def mass(potential: Any) -> float:
    """Integrate exp(−U) over unconstrained numbers, by the trapezium rule; NaN, far out, is a rejection to kernels."""
    return float(torch.trapezoid((-potential(GRID[:, None])).exp().nan_to_num(0.0), GRID))


def test_densities_that_check_their_values_are_not_asked_off_their_support() -> None:
    """In float32 exp(±200) is zero or infinite, where torch's own densities raise."""
    for density in (
        dist.HalfCauchy(torch.ones(1)),
        dist.LogNormal(torch.zeros(1), 1.0),
        dist.InverseGamma(3.0 * torch.ones(1), 1.0),
        dist.Kumaraswamy(2.0 * torch.ones(1), 3.0),
    ):

        def energy(x: Tensor, density: Any = density) -> Tensor:
            return -torch.as_tensor(density.log_prob(x)).sum(-1)

        p = Constrained(ep.Energy(energy, (1,)), density.support)
        assert mass(p) == pytest.approx(1.0, abs=2e-3)
        ep.energy_and_grad(p, GRID[::1000, None].float())


AFFINE, EXP, SIGMOID = (
    dist.transforms.AffineTransform,
    torch.distributions.ExpTransform(),
    torch.distributions.SigmoidTransform(),
)
TRANSFORMED: dict[str, Callable[[], Any]] = {
    "above two": lambda: dist.TransformedDistribution(dist.Exponential(1.0), [AFFINE(2.0, 1.0)]),
    "below zero": lambda: dist.TransformedDistribution(dist.Exponential(1.0), [AFFINE(0.0, -1.0)]),
    "log-uniform": lambda: dist.TransformedDistribution(dist.Uniform(0.0, 2.0), [EXP]),
    "an interval": lambda: dist.TransformedDistribution(dist.Normal(0.0, 1.0), [SIGMOID, AFFINE(1.0, 3.0)]),
    "truncated": lambda: dist.TransformedDistribution(dist.Uniform(0.1, 0.4), [SIGMOID.inv]),
    "behind wrappers": lambda: (
        dist.TransformedDistribution(dist.Gamma(2.0, 1.0), [AFFINE(-1.0, 2.0)]).expand([1]).to_event(1).mask(True)
    ),
    "a mixture of one interval": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)),
        dist.TransformedDistribution(dist.Uniform(torch.zeros(2), torch.ones(2)), []),
    ),
    "log-normal": lambda: dist.LogNormal(0.0, 1.0),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_latents_lie_where_transforms_take_them(name: str) -> None:
    """Torch's own support is the last transform's codomain, where densities go on that are not normalized there."""
    potential = ep.sampling.ModelPotential.trace(lambda: pyro.sample("x", TRANSFORMED[name]()))
    assert mass(potential) == pytest.approx(1.0, abs=2e-3)


def test_a_support_inside_a_pyro_model() -> None:
    """Chains see all rows at once, by vmap, and stay on the support."""

    def model() -> None:
        x = pyro.sample("x", HALF)
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(1))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the chains disagree", UserWarning)  # five draws
        chains = ep.sample_chains(ep.HMC(), model, chains=4, draws=5, warmup=10, progress=False)
    assert chains.potential.vectorized
    assert bool((chains.samples["x"] > 0).all())


MIXED: dict[str, tuple[Callable[[], Any], str]] = {
    "distribution in Scaled": (lambda: ep.potentials.Scaled(HALF, 2.0), r"draws when it is called: pass its \.unconst"),
    "distribution in Sum": (lambda: ep.potentials.Sum(SQUARE, HALF), "term 1 of a Sum .* draws when it is called"),
    "torch distribution": (
        lambda: ep.EnergyDistribution(dist.Normal(0.0, 1.0)),
        "the energy must be a potential; got Normal, which draws .*DistributionBase",
    ),
    "distribution in a distribution": (lambda: ep.EnergyDistribution(HALF), "draws when it is called"),
    "distribution as a base": (lambda: ep.potentials.Bridge(HALF, NORMAL, 0.5), "base must be a potential"),
    "distribution as log Z's base": (
        lambda: ep.log_normalizer(SQUARE, base=dist.Normal(torch.zeros(2), 1.0).to_event(1)),  # type: ignore[arg-type]
        "base must be a potential; got .*DistributionBase",
    ),
    "potential as log Z's base": (
        lambda: ep.log_normalizer(SQUARE, base=SQUARE),  # type: ignore[arg-type]
        "base must be a potential with a sample method",
    ),
    "a model": (
        lambda: ep.potentials.Scaled(ep.EBM(ep.MLPEnergy((2,), hidden=8)), 1.0),
        r"the model EBM: pass ebm\.marginal\(\)\.potential",
    ),
    "a class": (lambda: ep.potentials.Scaled(ep.Energy, 1.0), "must be a potential"),  # type: ignore[arg-type]
    "integers": (lambda: HALF.energy(torch.ones(2, 1).long()), "must be floating point; got torch.int64"),
    "integer energies": (
        lambda: ep.EnergyDistribution(ep.Energy(lambda x: x.sum(-1).long(), (1,))).energy(torch.ones(2, 1)),
        r"one real number for each point, \(2,\); got torch.int64 \(2,\)",
    ),
    "energies of another shape": (
        lambda: ep.EnergyDistribution(ep.Energy(lambda x: x.abs().repeat(1, 3), (1,))).energy(torch.ones(2, 1)),
        r"one real number for each point, \(2,\); got torch.float32 \(2, 3\)",
    ),
    "integer energies to a kernel": (
        lambda: ep.energy_and_grad(ep.Energy(lambda x: x.sum(-1).long(), (1,)), torch.ones(2, 1)),
        "energies must be floating point; got torch.int64",
    ),
    "points of another width": (
        lambda: ep.energy_and_grad(SQUARE, torch.ones(4, 3)),
        r"x must end in event_shape \(2,",
    ),
    "integer points": (lambda: ep.energy_and_grad(SQUARE, torch.ones(4, 2).long()), "x must be floating point"),
    "a list of points": (lambda: ep.energy_and_grad(SQUARE, [[1.0, 2.0]]), "x must be a torch tensor; got list"),  # type: ignore[arg-type]
    "samples outside": (
        lambda: ep.log_normalizer(HALF, samples=torch.randn(600, 1)),
        r"samples must lie inside the support .*; got \d+ of 600",
    ),
    "samples on the edge": (
        lambda: ep.log_normalizer(HALF, samples=torch.arange(600.0)[:, None]),
        "got 1 of 600 outside of it or on its edge",
    ),
    "support of integers": (
        lambda: ep.EnergyDistribution(NORMAL, support=constraints.nonnegative_integer).unconstrained(),
        "no bijection from unconstrained numbers to",
    ),
    "support of a sphere": (lambda: bijection(dist.constraints.sphere), "no bijection"),
    "support of another shape": (
        lambda: ep.EnergyDistribution(ep.Energy(lambda x: x, ()), support=constraints.simplex),
        "give the energy the event_shape of the support's points",
    ),
    "support that says nothing": (
        lambda: ep.EnergyDistribution(NORMAL, support=constraints.dependent),
        "support must say where points lie",
    ),
    "ends in the wrong order": (
        lambda: Constrained(NORMAL, constraints.interval(3.0, 0.0)),
        r"ends of an interval must be two numbers, the lower first; got 3\.0 and 0\.0",
    ),
    "ends in the wrong order, of one coordinate": (
        lambda: ep.EnergyDistribution(PLANE, support=constraints.interval(torch.tensor([0.0, 3.0]), torch.ones(2))),
        "ends of an interval must be two numbers, the lower first",
    ),
    "an end that is NaN": (
        lambda: ep.EnergyDistribution(PLANE, support=constraints.interval(torch.tensor([0.0, math.nan]), 1.0)),
        "ends of an interval must be two numbers, the lower first",
    ),
    "ends of which one is infinite": (
        lambda: ep.EnergyDistribution(
            PLANE, support=constraints.interval(torch.zeros(2), torch.tensor([1.0, math.inf]))
        ),
        r"put a constraint for each coordinate together by constraints\.stack",
    ),
    "distribution in a quadrature": (
        lambda: ep.quadrature(HALF, ep.Grid((-1.0,), (9.0,), (64,))),
        r"draws when it is called: pass its \.unconstrained\(\)",
    ),
    "distribution in a long run": (
        lambda: ep.long_run(HALF, torch.ones(100, 1)),  # type: ignore[arg-type]
        "model must be a model such as RecoveryEBM; got",
    ),
    "a support of two parts, one a simplex": (
        lambda: ep.potentials.Constrained(
            ep.Energy(lambda x: x.sum(-1), (5,)),
            constraints.cat([constraints.independent(constraints.real, 1), constraints.simplex], -1, [2, 3]),
        ),
        "must have a map from unconstrained numbers whose Jacobian is known; torch's has none",
    ),
    "a base of positive numbers": (
        lambda: ep.log_normalizer(NORMAL, base=based(dist.Exponential(torch.ones(1)))),
        "base must have a density at all real points; that of a Independent has not",
    ),
    "a base of angles": (
        lambda: ep.log_normalizer(NORMAL, base=based(dist.VonMises(torch.ones(1), 1.0))),
        "base must have a density at all real points",
    ),
    "support that is a name": (
        lambda: ep.EnergyDistribution(NORMAL, support="positive"),  # type: ignore[arg-type]
        "support must be a constraint of torch.distributions.constraints; got 'positive'",
    ),
    "a mixture over several supports": (
        lambda: latent_transform(
            dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2)), dist.Uniform(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 6.0]))
            )
        ),
        "components of a mixture must have one support",
    ),
    "transformed angles": (
        lambda: latent_transform(
            dist.TransformedDistribution(dist.VonMises(0.0, 1.0), [dist.transforms.AffineTransform(0.0, 2.0)])
        ),
        "sample the angle itself, and transform it in the model",
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_wrong_kinds_are_named(name: str) -> None:
    make, message = MIXED[name]
    with pytest.raises(ep.InvalidInput, match=message):
        make()

"""The value that log Z comes as: arithmetic, words, ArviZ, tails of weights, bases, likelihoods, pictures."""

import dataclasses
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pytest
import torch

import energyppl as ep
from energyppl.integration.pareto import pareto_k
from energyppl.plots.base import save_figure
from energyppl.plots.normalizers import gap_plot, log_weight_histogram, temperature_plot

A = ep.LogNormalizer(1.0, 0.3, 0.4, 1.6, 100, "one way", lower_bound=0.5, upper_bound=2.0, seconds=1.0, pareto_k=0.2)
B = ep.LogNormalizer(5.0, 0.4, 4.2, 5.8, 50, "another", lower_bound=4.0, upper_bound=7.0, seconds=2.0, warning="no")


def test_sums_and_differences() -> None:
    total, ratio = A + B, B - A
    assert (total.estimate, ratio.estimate) == (6.0, 4.0)
    assert total.standard_error == ratio.standard_error == pytest.approx(0.5)
    assert (ratio.lower, ratio.upper) == (pytest.approx(3.0), pytest.approx(5.0))  # widths .6 and .8
    assert (ratio.lower_bound, ratio.upper_bound) == (2.0, 6.5)
    assert (total.evaluations, total.seconds, total.warning) == (150, 3.0, "no")
    assert (A + 2).lower == pytest.approx(2.4)
    assert (2 + A).estimate == 3.0
    assert (10 - A).upper == pytest.approx(9.6)
    assert (-A).lower_bound == -2.0
    with pytest.raises(ep.InvalidInput, match="intervals of one confidence"):
        A + dataclasses.replace(B, confidence=0.9)
    with pytest.raises(TypeError):
        A + "x"  # type: ignore[operator]


def test_it_prints_as_a_person_would_write_it() -> None:
    text = str(B)
    assert text.startswith("log Z = 5.0000 ± 0.4 nats (95%: 4.2000 to 5.8000), by another")
    assert "bounds on average: 4.000 to 7.000" in text
    assert "not to be trusted: no" in text


@pytest.mark.parametrize("shape", [-0.5, 0.0, 0.3, 0.7, 1.2])
def test_the_tails_shape_is_arvizs(shape: float) -> None:
    """Of 2,000 generalized Pareto weights, ours is ArviZ's to rounding."""
    uniform = torch.rand(2000, dtype=torch.float64)
    weights = (uniform.pow(-shape) - 1.0) / shape if shape else -uniform.log()
    log_weights = (weights + 1.0).log()
    if hasattr(az, "psislw"):  # ArviZ 0.x
        found = az.psislw(log_weights.numpy())
    else:  # 1.x, which takes minus log weights
        found = import_module("arviz_stats.base").array_stats.psislw(-log_weights.numpy())
    theirs = float(np.asarray(found[1]))
    assert pareto_k(log_weights) == pytest.approx(theirs, abs=0.02)
    assert math.isnan(pareto_k(log_weights[:10]))
    assert pareto_k(torch.zeros(100)) == -math.inf


def test_a_mixture_base_is_normalized_and_fits() -> None:
    """On a grid its mass is 1; fitted to eight Gaussians it is far closer than one Gaussian (entropy + KL = cross)."""
    toy = ep.toys.EightGaussians()
    x = toy.sample((2000,))
    mixture, single = (
        ep.potentials.MixtureBase.fitted(x, x.shape[1:]),
        ep.potentials.GaussianBase.fitted(x, x.shape[1:]),
    )
    found = ep.quadrature(mixture, ep.Grid.around(x, margin=2.0))
    assert abs(found.log_normalizer) < 1e-3
    fresh = toy.sample((4000,))
    assert float(mixture(fresh).mean()) < toy.entropy() + 0.3 < float(single(fresh).mean())
    draws = mixture.sample(20_000)
    assert float(mixture(draws).mean()) == pytest.approx(found.entropy, abs=0.05)


def test_a_mixture_base_has_tails_as_heavy_as_the_draws() -> None:
    """Its density is Pyro's, and fitted it is Student's where draws are and Gaussian where they are."""
    factor = torch.tensor([[2.0, 0.0], [0.7, 0.5]])
    base = ep.potentials.MixtureBase(torch.ones(1, 2), factor[None], torch.ones(1), freedom=4.0)
    known = pyro.distributions.MultivariateStudentT(torch.tensor(4.0), torch.ones(2), factor)
    x = known.sample((1000,))
    torch.testing.assert_close(-base(x), known.log_prob(x))
    # An energy has a standard deviation of 1.51: means of 4,000 and 16,000 differ by .027, and by five of these once in
    # a million. Gaussian draws are .5 off.
    entropy = -float(known.log_prob(known.sample((16_000,))).mean())
    assert float(base(base.sample(4000)).mean()) == pytest.approx(entropy, abs=0.135)
    rows = torch.randn(1500, 8)
    heavy = rows / (torch.distributions.Chi2(5.0).sample((1500, 1)) / 5.0).sqrt()
    shape = torch.Size((8,))
    assert ep.potentials.MixtureBase.fitted(rows, shape).freedom == math.inf
    assert ep.potentials.MixtureBase.fitted(heavy, shape).freedom <= 8.0


@pytest.mark.parametrize("event", [(), (1,), (3, 2)])
def test_bases_of_any_event_shape(event: tuple[int, ...]) -> None:
    shape = torch.Size(event)
    x = 2.0 + torch.randn(500, *shape)
    user = torch.distributions.Normal(torch.zeros(shape), torch.ones(shape)).expand(shape)
    bases: list[Any] = [
        ep.potentials.GaussianBase.fitted(x, shape),
        ep.potentials.MixtureBase.fitted(x, shape),
        ep.potentials.DistributionBase(torch.distributions.Independent(user, len(shape))),
    ]
    target = ep.Energy(lambda y: 0.5 * (y - 2.0).square().reshape(*y.shape[: y.dim() - len(shape)], -1).sum(-1), shape)
    for base in bases:
        assert base(base.sample(7)).shape == (7,)
        found = ep.log_normalizer(target, base=base, samples=x, method=ep.normalizing.BAR(256))
        exact = 0.5 * shape.numel() * math.log(2.0 * math.pi)
        assert abs(found.estimate - exact) < 5.0 * found.standard_error + 1e-4


def test_affine_coordinates_keep_the_normalizer() -> None:
    toy = ep.toys.Banana()
    factor = torch.tensor([[2.0, 0.0], [0.7, 0.5]])
    moved = ep.potentials.Affine(toy, torch.tensor([1.0, -1.0]), factor)
    x = toy.sample((50,))
    assert torch.allclose(moved.from_unit(moved.to_unit(x)), x, atol=1e-5)
    assert torch.allclose(moved(moved.to_unit(x)), toy(x) - factor.diagonal().log().sum(), atol=1e-4)


def test_likelihood_entropy_divergence_and_bits() -> None:
    """Gaussians of known log Z, so that every number has a closed form; 4.5 standard errors each."""
    shape, wide = torch.Size((2,)), 1.5
    p = ep.EnergyDistribution(ep.Energy(lambda x: 0.5 * (x * x).sum(-1), shape))
    q = ep.EnergyDistribution(ep.Energy(lambda x: 0.5 * (x * x).sum(-1) / wide**2, shape))
    log_z = math.log(2.0 * math.pi)
    known = ep.LogNormalizer(log_z, 0.01, log_z - 0.02, log_z + 0.02, 1, "hand")
    x = torch.randn(4000, 2)
    found = ep.evaluation.entropy(p, x, known)
    assert abs(found.value - (1.0 + log_z)) < 4.5 * found.standard_error
    assert found.from_log_z == 0.01
    assert found.standard_error > 0.01
    likelihood = ep.evaluation.mean_log_likelihood(p, x, known)
    assert likelihood.value == pytest.approx(-found.value)
    divergence = ep.evaluation.kl_by_samples(p, q, x, known, known + 2.0 * math.log(wide))
    exact = 2.0 * math.log(wide) + 1.0 / wide**2 - 1.0
    assert abs(divergence.value - exact) < 4.5 * divergence.standard_error
    assert divergence.from_log_z == pytest.approx(math.hypot(0.01, 0.01))
    bits = ep.evaluation.bits_per_dimension(likelihood, shape, gap=torch.tensor([0.5, 0.25]))
    assert bits.value == pytest.approx(-(likelihood.value + math.log(0.5) + math.log(0.25)) / (2.0 * math.log(2.0)))


def test_uniform_pixels_cost_eight_bits() -> None:
    """256 equally likely values, dequantized over [0, 256) / 255: log p = log (255/256) a pixel."""
    uniform = ep.Estimate(16 * math.log(255.0 / 256.0), 0.0)
    assert ep.evaluation.bits_per_dimension(uniform, (4, 4), gap=1.0 / 255.0).value == pytest.approx(8.0)


def test_pictures(tmp_path: Path) -> None:
    toy = ep.toys.Banana()
    found = ep.log_normalizer(toy, samples=toy.sample((600,)), method=ep.normalizing.BAR(128))
    figures = {
        "weights": log_weight_histogram(found, title="weights", log_z=0.0),
        "temperatures": temperature_plot(found, title="temperatures"),
        "gap": gap_plot({"bridge": [found, found]}, title="gap", log_z=0.0),
    }
    for name, figure in figures.items():
        assert save_figure(figure, tmp_path / f"{name}.png").stat().st_size > 5000
    assert float(log_weight_histogram(found + 100.0, title="moved").axes[0].get_xlim()[0]) > 50.0


@pytest.mark.parametrize("count", [2, 3])
def test_few_groups_of_draws_serve_a_mixture(count: int) -> None:
    x = torch.randn(300, 2)
    base = ep.potentials.MixtureBase.fitted(x, x.shape[1:], groups=torch.arange(300) % count)
    assert bool(base(x).isfinite().all())


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no runs to draw": (lambda: temperature_plot(A, title=""), "no runs to draw"),
    "no runs to export": (lambda: A.to_arviz(), "no runs to show"),
    "mixture of other shapes": (
        lambda: ep.potentials.MixtureBase(torch.zeros(2, 3), torch.eye(3)[None], torch.ones(2)),
        "must have factors",
    ),
    "one group of draws": (
        lambda: ep.potentials.MixtureBase.fitted(torch.randn(50, 2), torch.Size((2,)), groups=torch.zeros(50)),
        "draws must be of at least two groups",
    ),
    "base of no spread": (lambda: ep.potentials.GaussianBase(torch.zeros(2), torch.zeros(2)), "must be positive"),
    "base that is no distribution": (lambda: ep.potentials.DistributionBase("normal"), "sample and log_prob"),  # type: ignore[arg-type]
    "a batched base": (
        lambda: ep.potentials.DistributionBase(torch.distributions.Normal(torch.zeros(2), 1.0)),
        "must have no batch",
    ),
    "an infinite energy": (
        lambda: ep.evaluation.entropy(
            ep.EnergyDistribution(ep.Energy(lambda x: math.inf * x.abs().sum(-1), torch.Size((2,)))),
            torch.ones(4, 2),
            A,
        ),
        "energies must be finite",
    ),
    "gap": (lambda: ep.evaluation.bits_per_dimension(ep.Estimate(0.0, 0.0), (2,), gap=0.0), "gap must be positive"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ep.InvalidInput, match=message):
        make()

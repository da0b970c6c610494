"""Noise-contrastive estimation, contrastive divergence, exact likelihood; and what all baselines have in common."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor

import energyppl as ep
from energyppl.inference.objectives.held_out import conditional_contrast
from tests.support.gaussian import COVARIANCE, Gaussian, draws, small_ebm
from tests.support.objectives import OF_ONE_ENERGY, loss_of, measure_of

PRECISION = torch.linalg.inv(COVARIANCE)
LOG_Z = math.log(2.0 * math.pi) + 0.5 * float(torch.logdet(COVARIANCE))
NOISE = ep.potentials.GaussianBase(torch.zeros(2, dtype=torch.float64), torch.tensor([1.5, 1.2], dtype=torch.float64))
LIKELIHOODS: list[Any] = [
    ep.objectives.NoiseContrastive(NOISE),
    ep.objectives.NoiseContrastive(NOISE, ratio=4),
    ep.objectives.ContrastiveDivergence(ep.MALA(0.7), adapt=False),
    ep.objectives.ContrastiveDivergence(ep.HMC(0.5, 3), steps=2, adapt=False),
    ep.objectives.ExactLikelihood(points=48),
]


def gradients(objective: Any, precision: Tensor, log_z: float = LOG_Z, repeats: int = 100, size: int = 200) -> Tensor:
    """∂ loss / ∂P over fresh batches, its distinct entries, and ∂ loss / ∂ log Z where there is one."""
    ebm = ep.EBM(Gaussian(precision))
    state = objective.init(ebm)
    weights: list[Tensor] = [ebm.net.weights]
    if isinstance(objective, ep.objectives.NoiseContrastive):
        loss_of(objective, ebm, draws(size), state)  # it begins
        state.log_z.data.fill_(log_z)
        weights.append(state.log_z)
    rows = []
    for _ in range(repeats):
        grad, *rest = torch.autograd.grad(loss_of(objective, ebm, draws(size), state).value, weights)
        rows.append(torch.stack([grad[0, 0], grad[0, 1] + grad[1, 0], grad[1, 1], *rest]))
    return torch.stack(rows)


def z_scores(rows: Tensor) -> Tensor:
    return rows.mean(0) / (rows.std(0) / math.sqrt(len(rows)))


@pytest.mark.parametrize("objective", LIKELIHOODS, ids=lambda value: type(value).__name__)
def test_the_true_precision_is_the_minimizer(objective: Any) -> None:
    """17 gradients at 4.5 standard errors, t with 99 degrees: a false alarm in about 1 run of 3,000.

    Negative control: at a precision that is too small, they are not zero, and the first step goes the right way.
    """
    assert float(z_scores(gradients(objective, PRECISION)).abs().max()) < 4.5
    wide = gradients(objective, 0.7 * PRECISION)
    assert float(z_scores(wide)[:3].abs().max()) > 9.0
    towards = -wide.mean(0)[:3] @ torch.stack([PRECISION[0, 0], PRECISION[0, 1], PRECISION[1, 1]])
    assert float(towards) > 0.0


def test_a_wrong_log_z_shows() -> None:
    """Negative control: at the true precision and another constant, the gradient of noise contrast is not zero."""
    for log_z in (LOG_Z - 0.2, LOG_Z + 0.2):
        z = z_scores(gradients(ep.objectives.NoiseContrastive(NOISE), PRECISION, log_z))
        assert abs(float(z[3])) > 9.0
        assert (float(z[3]) < 0.0) == (log_z < LOG_Z), "the gradient must lead back"


def test_stuck_chains_have_no_gradient() -> None:
    """Negative control: chains that don't leave the data have no gradient, wherever the energy is."""
    rows = gradients(
        ep.objectives.ContrastiveDivergence(ep.MALA(1e-9), steps=1, adapt=False), 0.7 * PRECISION, repeats=2
    )
    assert float(rows.abs().max()) < 1e-6


@pytest.mark.parametrize("size", [1, 2])
def test_exact_likelihood_is_the_models_own_log_prob(size: int) -> None:
    """log Z by the model's adaptive quadrature, and the likelihood in data coordinates, to a thousandth of a nat."""
    ebm, data = small_ebm(size).double(), 3.0 + 2.0 * torch.randn(300, size, dtype=torch.float64)
    ebm.standardize(data)
    log_scale = float(ebm.scale.log().sum())
    objective = ep.objectives.ExactLikelihood(points=96)
    found = [loss_of(objective, ebm, data) for _ in range(3)]  # each on a grid of its own
    for loss in found:
        assert math.isclose(loss.record["log_z"] + log_scale, ebm.log_normalizer().estimate, abs_tol=1e-3)
        assert math.isclose(
            float(loss.value.detach()) + log_scale, -float(ebm.log_prob(data).detach().mean()), abs_tol=1e-3
        )
    assert math.isclose(measure_of(objective, ebm, data), float(found[0].value.detach()), abs_tol=1e-3)
    assert found[0].record["log_z"] != found[1].record["log_z"], "the grid must move"


def test_exact_likelihood_has_the_exact_gradient() -> None:
    """∂/∂P of −log N(x; 0, P⁻¹) is ½ (mean of x xᵀ − P⁻¹), in closed form."""
    ebm, data = ep.EBM(Gaussian(1.3 * PRECISION)), draws(500)
    grad = torch.autograd.grad(loss_of(ep.objectives.ExactLikelihood(points=64), ebm, data).value, ebm.net.weights)[0]
    torch.testing.assert_close(grad, 0.5 * (data.mT @ data / len(data) - COVARIANCE / 1.3), rtol=0.0, atol=1e-6)


def test_noise_contrast_finds_log_z() -> None:
    """Trained from a precision three times too large; log Z is off by 0.55 nats before and by less than 0.05 after."""
    data = torch.tensor([2.0, -1.0]) + 3.0 * draws(20_000).float()
    ebm, objective = ep.EBM(Gaussian(3.0 * torch.eye(2))), ep.objectives.NoiseContrastive(ratio=2)
    options = ep.TrainingOptions(steps=400, batch_size=1024, learning_rate=0.03, ema=0.98)
    training = ep.Training(ebm, data, objective, options=options)
    list(training)
    history = training.finish()
    truth = math.log(2.0 * math.pi) + 0.5 * float(torch.logdet(9.0 * COVARIANCE))
    found = objective.log_normalizer(ebm, training.state)
    first = history.records[0].values["log_z"] + float(ebm.scale.log().sum())
    assert abs(first - truth) > 0.5
    assert abs(found - truth) < 0.05
    assert abs(found - ebm.log_normalizer().estimate) < 0.05, "and so says the energy that was learned"
    assert 0.5 < history.records[-1].values["told_apart"] < 0.8


def test_log_z_begins_where_the_energy_is() -> None:
    """In 30 dimensions log Z is 27.6 nats; by importance sampling it begins within a tenth, not at zero."""
    ebm, objective = ep.EBM(Gaussian(torch.eye(30))), ep.objectives.NoiseContrastive()
    loss = loss_of(objective, ebm, torch.randn(5000, 30))
    assert abs(loss.record["log_z"] - 15.0 * math.log(2.0 * math.pi)) < 0.1


def test_noise_contrast_may_begin_with_one_row() -> None:
    ebm, objective = ep.EBM(Gaussian(torch.eye(3))), ep.objectives.NoiseContrastive()
    state = objective.init(ebm)
    for rows in (1, 30):
        assert math.isfinite(float(loss_of(objective, ebm, torch.randn(rows, 3), state).value.detach()))


def test_contrastive_divergence_adapts_its_step_size() -> None:
    """From a step far too long; half a hundred updates bring acceptance to MALA's 0.6, within 0.15."""
    ebm, objective = ep.EBM(Gaussian(PRECISION)), ep.objectives.ContrastiveDivergence(ep.MALA(9.0), steps=2)
    state = objective.init(ebm)
    records = [loss_of(objective, ebm, draws(100), state).record for _ in range(80)]
    assert records[0]["acceptance"] < 0.1
    assert abs(records[-1]["acceptance"] - ep.MALA.target_acceptance) < 0.15
    assert float(ebm.step_sizes) == pytest.approx(0.1), "the model's own stays as it is"
    assert float(objective.init(ebm).level_kernel.step_sizes) == 9.0, "and every state begins at the kernel's"


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_conditional_contrast_is_a_proper_score(factor: float) -> None:
    """Lower for the truth than for another precision, on data and noise that both share; a constant gets log 2."""
    data = draws(4000)
    true = conditional_contrast(ep.EBM(Gaussian(PRECISION)), data)
    assert true < conditional_contrast(ep.EBM(Gaussian(factor * PRECISION)), data) - 1e-3
    assert true < conditional_contrast(ep.EBM(Gaussian(PRECISION.diagonal().diag())), data) - 1e-3
    assert math.isclose(conditional_contrast(ep.EBM(Gaussian(0.0 * PRECISION)), data), math.log(2.0))


# --- What all have in common ---


@pytest.mark.parametrize("objective", OF_ONE_ENERGY, ids=lambda value: type(value).__name__)
def test_it_trains(objective: Any) -> None:
    """``fit`` betters the measure, which is the same at every call and takes no random numbers."""
    data = ep.toys.EightGaussians().sample((1000,)).float()
    ebm = small_ebm()
    options = ep.TrainingOptions(steps=60, batch_size=128, evaluate_every=30, learning_rate=0.01, ema=0.9)
    training = ep.Training(ebm, data, objective, options=options)
    before = measure_of(objective, ebm, data, training.state)
    for record in training:
        assert all(math.isfinite(value) for value in record.values.values())
    training.finish()
    state = torch.get_rng_state()
    after = measure_of(objective, ebm, data, training.state)
    assert after < before
    assert measure_of(objective, ebm, data, training.state) == after
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("objective", OF_ONE_ENERGY, ids=lambda value: type(value).__name__)
def test_it_goes_on_from_a_checkpoint(objective: Any) -> None:
    """A run that another process would continue at step 4 ends bit for bit as the one that was left alone."""
    data = ep.toys.EightGaussians().sample((200,)).float()
    options = ep.TrainingOptions(steps=8, batch_size=64, evaluate_every=3)
    alone = ep.Training(small_ebm(), data, objective, options=options)
    for _ in range(4):
        next(alone)
    kept = copy.deepcopy(alone.state_dict())
    list(alone)
    other = ep.Training(small_ebm(), data, objective, options=options)
    other.load_state_dict(kept)
    list(other)
    assert [r.loss for r in other.records] == [r.loss for r in alone.records]
    for part in ("model", "state"):
        theirs = getattr(other, part).state_dict()
        for name, value in getattr(alone, part).state_dict().items():
            assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(
    "objective",
    [
        ep.objectives.NoiseContrastive(level=1),
        ep.objectives.ExactLikelihood(points=32, level=1),
        ep.objectives.DenoisingScoreMatching(0.3, level=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_trains_a_level_of_a_model_of_levels(objective: Any) -> None:
    net = ep.MLPEnergy((2,), hidden=16, depth=2, frequencies=4, levels=3)
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(3))
    data = ep.toys.EightGaussians().sample((500,)).float()
    options = ep.TrainingOptions(steps=5, batch_size=64)
    ep.fit(ebm, data, objective, options=options, progress=False)
    assert bool(net.film[1].any())
    assert not bool(net.film[[0, 2]].any()), "the other levels' rows are as they were"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ep.objectives.NoiseContrastive(ratio=0), "ratio must be a whole number"),
        (lambda: ep.objectives.NoiseContrastive(Normal(0.0, 1.0)), "wrap a distribution"),
        (lambda: ep.objectives.NoiseContrastive(NOISE).init(small_ebm(3)), r"event_shape \(3,\); got \(2,\)"),
        (lambda: ep.objectives.ContrastiveDivergence(steps=0), "steps must be a whole number"),
        (lambda: ep.objectives.ContrastiveDivergence().init(levels()), "got 3 levels"),
        (lambda: ep.objectives.ExactLikelihood(points=4), "points must be a whole number of at least 8"),
        (lambda: ep.objectives.ExactLikelihood(half_width=-1.0), "half_width must be positive"),
        (
            lambda: ep.objectives.ExactLikelihood().init(small_ebm(3)),
            r"one or two dimensions; got event_shape \(3,\)",
        ),
        (lambda: ep.fit(small_ebm(3), torch.randn(20, 3), ep.objectives.ExactLikelihood()), "one or two dimensions"),
        (
            lambda: loss_of(ep.objectives.ExactLikelihood(), small_ebm(), torch.tensor([[0.0, 7.5]])),
            "within half_width = 6.*7.5 away",
        ),
    ],
)
def test_bad_input_is_said(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        make()


def levels() -> ep.RecoveryEBM:
    net = ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2, levels=3)
    return ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(3))

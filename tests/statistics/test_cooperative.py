"""Cooperative training: the initializer's Gaussian, its training, and corrections that keep the target as it is."""

import copy
import math
import warnings
from collections.abc import Callable

import pyro
import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.levels.initializers import initializer_width, recovery_proposal
from energyppl.models import MLPEnergy, MLPInitializer
from tests.support.objectives import loss_of

OPTIONS = ep.TrainingOptions(steps=400, batch_size=256)


class Bell(nn.Module):
    """The energy of N(0, I), which is right at every level."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.precision = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return 0.5 * self.precision * x.square().sum(-1) + 0.0 * level


def bell(**settings: bool) -> ep.RecoveryEBM:
    torch.manual_seed(0)
    initializer = MLPInitializer((2,), hidden=32, levels=6, **settings)  # type: ignore[arg-type]
    return ep.RecoveryEBM(Bell(), ep.NoiseSchedule.cosine(6), initializer=initializer)


def test_widths_are_the_papers() -> None:
    """The initializer's standard deviations in Zhu et al. 2024, for y = α x_t: β̃_t α_t, α being 1 at the last level."""
    schedule = ep.NoiseSchedule.cosine(6)
    alpha = schedule.alpha.clone()
    alpha[-1] = 1.0
    published = [0.0072, 0.201, 0.325, 0.404, 0.422, 0.922]
    assert (initializer_width(schedule) * alpha).tolist() == pytest.approx(published, abs=0.001)


def test_a_fresh_initializer_with_a_learned_scale_is_the_recovery_of_gaussian_data() -> None:
    ebm, level = bell(learn_scale=True), torch.tensor([0, 3])
    noisy = torch.tensor([[0.5, -1.0], [2.0, 0.3]])
    alpha, sigma = ebm.schedule.alpha[level].float(), ebm.schedule.sigma[level].float()
    q = recovery_proposal(ebm, noisy, level)
    # x_t ~ N(0, 1) and x_{t+1} = α x_t + σ ε: x_t | x_{t+1} is N(α x_{t+1}, σ²).
    assert torch.allclose(q.mean, alpha[:, None] * noisy, atol=1e-5)
    assert torch.allclose(q.variance.sqrt(), sigma[:, None].expand(2, 2), atol=1e-5)
    g = ebm.guide(noisy, level)
    assert torch.allclose(g.mean, alpha[:, None] * q.mean, atol=1e-5)


def test_independent_proposals_leave_the_target_whatever_they_are() -> None:
    """Mean and variance within 4.5 standard errors of 4,000 independent chains; false alarm 1 in 70,000."""
    torch.manual_seed(0)
    target = ep.Energy(lambda x: 0.5 * x.square().sum(-1), torch.Size((1,)))
    proposal = torch.distributions.Independent(
        torch.distributions.Normal(torch.full((4000, 1), 1.0), torch.full((4000, 1), 2.0)), 1
    )
    kernel = ep.kernels.IndependentMetropolis(proposal)  # type: ignore[arg-type]
    x = ep.sampling.run_chain(kernel, target, torch.zeros(4000, 1), 60).state.x
    assert abs(float(x.mean())) < 4.5 / math.sqrt(4000)
    assert abs(float(x.var()) - 1.0) < 4.5 * math.sqrt(2.0 / 4000)
    assert abs(float(proposal.sample().mean())) > 10 / math.sqrt(4000), "negative control: without correction"
    with pytest.raises(ep.InvalidInput, match="one point for each chain"):
        ep.sampling.run_chain(kernel, target, torch.zeros(5, 1), 1)


def test_a_trained_initializer_begins_chains_nearer_home() -> None:
    """Eight Gaussians, at level 0, where it matters most; an untrained one begins where chains begin without any."""
    torch.manual_seed(0)
    data = ep.toys.EightGaussians().sample((4000,))
    initializer = MLPInitializer((2,), hidden=64, levels=6, learn_scale=True)
    ebm = ep.RecoveryEBM(MLPEnergy((2,), hidden=64, depth=2), ep.NoiseSchedule.cosine(6), initializer=initializer)
    before = MLPInitializer((2,), hidden=64, levels=6, learn_scale=True)
    history = ep.fit(ebm, data, ep.CooperativeRecovery(), options=OPTIONS, progress=False)
    report = ep.evaluation.initializer_report(ebm, data[:500])
    assert float(report.drop[0]) < 0.7 * float(report.drop_without[0])
    assert report.problems == ()
    for name in ("initializer_loss", "initializer_drop", "initializer_moved"):
        assert math.isfinite(history.records[-1].values[name])
    ebm.initializer = before
    untrained = ep.evaluation.initializer_report(ebm, data[:500])
    assert float(untrained.drop[0]) > 0.8 * float(untrained.drop_without[0]), "negative control"


def test_a_useless_and_a_collapsed_initializer_are_named() -> None:
    ebm = bell(learn_scale=True)
    ebm.standardize(torch.randn(500, 2))
    ebm.step_sizes.fill_(0.5)
    with torch.no_grad():
        ebm.initializer.readout.bias[:2] = 5.0  # type: ignore[union-attr, index]
    assert "begin no better" in ep.evaluation.initializer_report(ebm, torch.randn(500, 2)).problems[0]
    with torch.no_grad():
        ebm.initializer.readout.bias[:2] = 0.0  # type: ignore[union-attr, index]
        ebm.initializer.readout.bias[2:] = -50.0  # type: ignore[union-attr, index]
    assert any(
        "collapsed" in problem for problem in ep.evaluation.initializer_report(ebm, torch.randn(500, 2)).problems
    )


def test_each_network_has_its_own_gradient_only() -> None:
    ebm = bell()
    data = torch.randn(300, 2)
    ebm.standardize(data)
    objective = ep.CooperativeRecovery()
    torch.manual_seed(1)
    with_weight = loss_of(objective, ebm, data).value
    (energy_grad,) = torch.autograd.grad(with_weight, [ebm.net.precision])  # type: ignore[list-item]
    torch.manual_seed(1)
    (alone,) = torch.autograd.grad(loss_of(ep.CooperativeRecovery(weight=0.0), ebm, data).value, [ebm.net.precision])  # type: ignore[list-item]
    assert float(energy_grad) == pytest.approx(float(alone))


@pytest.mark.parametrize(("fraction", "most"), [(0.1, 20), (1.0, 200)])
def test_the_initializer_learns_from_a_fraction_of_the_negatives(fraction: float, most: int) -> None:
    ebm, seen = bell(), []
    objective = ep.CooperativeRecovery(recipe=ep.RecoveryLikelihood(skip_fraction=0.0), initializer_fraction=fraction)
    ebm.standardize(torch.randn(200, 2))
    assert ebm.initializer is not None
    ebm.initializer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    loss_of(objective, ebm, torch.randn(200, 2))
    assert seen == [most]


@pytest.mark.parametrize("from_initializer", [True, False])
@pytest.mark.parametrize("extra", [0.0, 0.5])
def test_a_batch_without_a_row_for_the_initializer_teaches_it_nothing(from_initializer: bool, extra: float) -> None:
    """Three in five batches of one row go to a farther level than the next; that none of 20 does has odds of 2e-8."""
    ebm = bell()
    ebm.standardize(torch.randn(200, 2))
    recipe = ep.RecoveryLikelihood(skip_fraction=1.0, steps=2)
    objective = ep.CooperativeRecovery(recipe=recipe, from_initializer=from_initializer, extra_chain_fraction=extra)
    assert ebm.initializer is not None
    learned = []
    for _ in range(20):
        ebm.zero_grad()
        value = loss_of(objective, ebm, torch.randn(1, 2)).value
        assert bool(value.isfinite())
        value.backward()
        learned.append(any(p.grad is not None and bool(p.grad.any()) for p in ebm.initializer.parameters()))
    assert not all(learned)


def test_rows_of_another_dtype_are_taken() -> None:
    """As ``fit`` takes them."""
    from pyro.infer import SVI, Trace_ELBO

    ebm, rows = bell(), torch.randn(300, 2, dtype=torch.float64)
    ebm.standardize(torch.randn(300, 2))
    assert len(ep.evaluation.initializer_report(ebm, rows).drop) == ebm.schedule.levels
    pyro.clear_param_store()
    SVI(ebm, ep.objectives.CooperativeGuide(ebm), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(rows)


def test_an_initializer_follows_its_model() -> None:
    net = MLPEnergy((2,), hidden=8).double()
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(3), initializer=MLPInitializer((2,)))
    assert {p.dtype for p in ebm.parameters()} == {torch.float64}


def test_negatives_from_the_initializer_are_an_option() -> None:
    ebm = bell()
    data = torch.randn(1000, 2)
    objective = ep.CooperativeRecovery(from_initializer=True)
    history = ep.fit(ebm, data, objective, options=ep.TrainingOptions(steps=20, batch_size=128), progress=False)
    assert len(history.records) == 20


def test_the_guide_serves_pyro_and_its_elbo_improves() -> None:
    """The evidence bound of a recovery distribution with the initializer as its guide, in nats for each point."""
    from pyro.infer import SVI, Trace_ELBO

    torch.manual_seed(0)
    ebm = bell(learn_scale=True)
    ebm.standardize(torch.randn(500, 2))
    ebm.net.requires_grad_(False)
    with torch.no_grad():
        ebm.initializer.readout.bias[:2] = 1.0  # type: ignore[union-attr, index]
    noisy = torch.randn(200, 2)

    def model(noisy: Tensor) -> None:
        with pyro.plate("rows", len(noisy)):
            pyro.sample("clean", ebm.recovery(noisy, 2).unnormalized())

    def guide(noisy: Tensor) -> None:
        pyro.module("initializer", ebm.initializer)
        with pyro.plate("rows", len(noisy)):
            pyro.sample("clean", ebm.guide(noisy, 2))

    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=4, vectorize_particles=False))
    losses = [svi.step(noisy) / 200 for _ in range(60)]
    assert sum(losses[-10:]) / 10 < sum(losses[:5]) / 5 - 0.2


class Answers(nn.Module):
    """A user's initializer, which says nothing of the points it takes, nor has weights."""

    def __init__(self, answer: Callable[..., object], classes: int = 0) -> None:
        super().__init__()
        self.answer, self.classes = answer, classes

    def forward(self, *arguments: Tensor) -> object:
        return self.answer(*arguments)


MISFITS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "more classes": (lambda: MLPInitializer((2,), classes=5), "the 3 of the model's network; got 5: build .*=3"),
    "fewer classes": (lambda: MLPInitializer((2,), classes=2), "the 3 of the model's network; got 2"),
    "fewer levels": (lambda: MLPInitializer((2,), levels=3), "must take levels up to 69; .* build it with levels=70"),
    "the usual levels": (lambda: MLPInitializer((2,)), "must take levels up to 69"),
    "another shape": (lambda: Answers(lambda x, level: nn.Linear(3, 3)(x)), r"must take points \(3, 2\).*it raised"),
    "no level": (lambda: Answers(lambda x: (x, x)), "it raised: .*positional argument"),
    "no label": (lambda: Answers(lambda x, level: (x, x), classes=3), "it raised: .*positional argument"),
    "levels for each only": (lambda: Answers(lambda x, level: (x * len(level), x)), "whole levels, .* it raised"),
    "one answer": (lambda: Answers(lambda x, level: x), r"a shift \(3, 2\) and a log scale.*; got \(3, 2\): return"),
    "a number": (lambda: Answers(lambda x, level: (x, 0.0)), r"; got \(3, 2\) and float: return"),
    "another log scale": (lambda: Answers(lambda x, level: (x, x[..., 0])), r"; got \(3, 2\) and \(3,\): return"),
    "a flat shift": (lambda: Answers(lambda x, level: (x.sum(), x)), r"; got \(\) and \(3, 2\): return"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_an_initializer_that_does_not_fit_is_refused_when_it_is_attached(name: str) -> None:
    make, message = MISFITS[name]
    net, schedule = MLPEnergy((2,), hidden=8, classes=3, levels=70), ep.NoiseSchedule.cosine(70)
    with pytest.raises(ep.InvalidInput, match=message):
        ep.RecoveryEBM(net, schedule, initializer=make())


@pytest.mark.parametrize(
    "initializer",
    [
        MLPInitializer((2,), classes=3, levels=6),
        MLPInitializer((2,), levels=6, learn_scale=True).double(),
        Answers(lambda x, level: (0.0 * x, x.new_zeros(()))),
        Answers(lambda x, level: [0.0 * x, level.to(x)[..., None]]),
    ],
)
def test_an_initializer_that_fits_is_not_changed_by_being_tried(initializer: nn.Module) -> None:
    before = copy.deepcopy(initializer.state_dict())
    net = MLPEnergy((2,), hidden=8, classes=3)
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(6), initializer=initializer)
    assert ebm.sample((4,), steps=2).shape == (4, 2)
    assert all(p.grad is None for p in initializer.parameters())
    for name, value in initializer.state_dict().items():
        assert torch.equal(value, before[name].to(value)), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ep.CooperativeRecovery(extra_chain_fraction=-0.1), "extra_chain_fraction must lie in"),
        (lambda: ep.CooperativeRecovery(initializer_fraction=0.0), r"initializer_fraction must lie in \(0, 1\]"),
        (lambda: ep.CooperativeRecovery(weight=-1.0), "weight must not be negative"),
        (
            lambda: ep.Training(
                ep.RecoveryEBM(Bell(), ep.NoiseSchedule.cosine(2)), torch.randn(50, 2), ep.CooperativeRecovery()
            ),
            "needs an initializer",
        ),
        (
            lambda: ep.RecoveryEBM(Bell(), ep.NoiseSchedule.cosine(2), initializer=MLPInitializer((3,))),
            r"points of shape \(2,\); got \(3,\)",
        ),
        (lambda: ep.RecoveryEBM(Bell(), ep.NoiseSchedule.cosine(2)).guide(torch.randn(1, 2), 0), "has no initializer"),
        (lambda: bell().guide(torch.randn(3, 2), torch.tensor([0, 1])), "level must be one number or one for each"),
    ],
)
def test_bad_input_is_said(make: object, message: str) -> None:
    with warnings.catch_warnings(), pytest.raises(ep.InvalidInput, match=message):
        make()  # type: ignore[operator]


def test_svi_trains_both_networks_with_the_objectives_gradients() -> None:
    """Means over 400 calls, since model and guide draw levels and noise apart, agree within 4.5 standard errors.

    2 numbers: a false alarm in 70,000.
    """
    from pyro import poutine

    ebm = bell()
    data = torch.randn(200, 2)
    ebm.standardize(data)
    ebm.step_sizes.fill_(0.5)
    objective = ep.CooperativeRecovery(ep.kernels.CrankNicolson(0.5), recipe=ep.RecoveryLikelihood(adapt=False))
    guide = ep.objectives.CooperativeGuide(ebm, objective)
    watched: list[Tensor] = [ebm.net.precision, ebm.initializer.readout.bias]  # type: ignore[list-item, union-attr]
    found: dict[str, list[list[float]]] = {"loss": [], "svi": []}
    for _ in range(400):
        for name in found:
            pyro.clear_param_store()
            if name == "loss":
                loss = loss_of(objective, ebm, data).value
            else:
                learned = poutine.trace(guide).get_trace(data)
                observed = poutine.trace(poutine.replay(ebm, learned)).get_trace(data)
                loss = (learned.log_prob_sum() - observed.log_prob_sum()) / len(data)
            grads = torch.autograd.grad(loss, watched)
            found[name].append([float(grads[0]), float(grads[1].sum())])
    ours, svi = (torch.tensor(rows) for rows in found.values())
    error = ((ours.var(0) + svi.var(0)) / 400).sqrt()
    assert bool(((ours.mean(0) - svi.mean(0)).abs() < 4.5 * error).all())
    assert bool((ours.var(0) > 0).all())


def test_svi_moves_both_networks() -> None:
    from pyro.infer import SVI, Trace_ELBO

    ebm = bell(learn_scale=True)
    data = 0.1 * torch.randn(300, 2) + torch.tensor([1.0, 0.0]) * torch.randn(300, 2).sign()
    ebm.standardize(data)
    pyro.clear_param_store()
    svi = SVI(ebm, ep.objectives.CooperativeGuide(ebm), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = [p.detach().clone() for p in ebm.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [svi.step(data) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    moved = {name for (name, p), old in zip(ebm.named_parameters(), before, strict=True) if not torch.equal(p, old)}
    assert "net.precision" in moved
    assert "initializer.readout.bias" in moved
    with pytest.raises(ep.InvalidInput, match="shares chains"):
        ep.objectives.CooperativeGuide(ebm, ep.CooperativeRecovery(from_initializer=True))


def test_annealing_may_begin_at_the_initializer() -> None:
    """log Z of a recovery distribution of Gaussian data from q as the base, 4.5 standard errors: alarms 1 in 70,000."""
    ebm = bell(learn_scale=True)
    with torch.no_grad():
        ebm.initializer.readout.bias[:2] = 0.3  # type: ignore[union-attr, index]
    noisy = torch.tensor([0.7, -0.4])
    level = 2
    alpha, sigma = float(ebm.schedule.alpha[level]), float(ebm.schedule.sigma[level])
    found = ep.log_normalizer(
        ebm.recovery(noisy, level),
        base=ep.potentials.DistributionBase(ebm.guide(noisy, level)),
        method=ep.normalizing.AIS(256),
    )
    # ∫ exp(−½|y/α|² − ½|y − noisy|²/σ²) dy, coordinate by coordinate.
    precision = alpha**-2 + sigma**-2
    exact = math.log(2 * math.pi / precision) - 0.5 * float(noisy.square().sum()) / (alpha**2 + sigma**2)
    assert abs(found.estimate - exact) < 4.5 * found.standard_error
    assert found.standard_error < 0.1

"""Conditional models: shapes, distributions given contexts, files, and what is refused."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.integration.batched import likeliest_power
from energyppl.models import ConditionalEBM, MLPEnergy
from energyppl.models.recovery import ConditionView

SCHEDULE = ep.NoiseSchedule.cosine(3, log_snr_max=4.6, log_snr_min=-6.0)


def model(event: int = 1, context: int = 2, **options: object) -> ConditionalEBM:
    net = MLPEnergy(event, context_shape=context, hidden=16, depth=2, frequencies=4, **options)  # type: ignore[arg-type]
    for weight in net.parameters():  # fresh ones make every context alike
        nn.init.normal_(weight, std=0.3)
    return ConditionalEBM(net, SCHEDULE)


def pairs(rows: int = 60, event: int = 1, context: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, event), torch.rand(rows, context)


class OfTheUser(nn.Module):
    """A Gaussian around the first number of the context, without an energy for no context."""

    event_shape = torch.Size((1,))
    context_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, y: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        return 0.5 * (y[..., 0] - self.slope * condition[..., 0]) ** 2 + 0.0 * level


def test_a_batch_of_contexts_is_a_batch_of_distributions() -> None:
    for event in (1, 3):
        ebm = model(event)
        ebm.tied.fill_(True)  # as training by LevelScoreMatching does
        p = ebm.given(torch.rand(2, 5, 2))
        assert (p.batch_shape, p.event_shape) == ((2, 5), (event,))
        y = p.sample((4,))
        assert y.shape == (4, 2, 5, event)
        assert p.log_prob(y).shape == (4, 2, 5)
        assert p.is_far.shape == (2, 5)
        assert ebm.given(torch.rand(2)).log_prob(y).shape == (4, 2, 5)


def test_each_point_is_given_its_own_context() -> None:
    ebm, context, y = model(), torch.rand(6, 2), torch.randn(6, 1)
    each = ebm.given(context).log_prob(y)
    alone = torch.stack([ebm.given(c).log_prob(point) for c, point in zip(context, y, strict=True)])
    assert torch.allclose(each, alone, atol=1e-5)
    assert not torch.allclose(each, ebm.given(context.flip(0)).log_prob(y), atol=1e-3), "negative control"


def test_densities_of_one_dimension_are_normalized_for_each_context() -> None:
    ebm = model()
    ebm.standardize(3.0 + 2.0 * torch.randn(500, 1))
    p, grid = ebm.given(torch.rand(7, 2)), torch.linspace(-30.0, 36.0, 8001)
    with torch.no_grad():
        mass = p.log_prob(grid[:, None, None].expand(-1, 7, 1)).exp().sum(0) * float(grid[1] - grid[0])
    assert torch.allclose(mass, torch.ones(7), atol=1e-3)
    assert not torch.allclose(p.quadrature(), p.quadrature()[0].expand(7), atol=1e-4)
    low, high = p.interval(0.9)
    with torch.no_grad():
        inside = torch.where((grid[:, None] > low) & (grid[:, None] < high), p.log_prob(grid[:, None, None]).exp(), 0.0)
    assert torch.allclose(inside.sum(0) * float(grid[1] - grid[0]), torch.full((7,), 0.9), atol=5e-3)


def test_log_z_that_is_known_has_the_gradients_of_one_that_is_integrated() -> None:
    """Once and twice differentiated, with respect to a weight and the contexts."""
    ebm, contexts = model(), torch.rand(7, 2, requires_grad=True)
    p, inputs = ebm.given(contexts), (ebm.net.readout.weight, contexts)
    found = []
    for _ in range(2):  # integrated, then known
        log_z = p.quadrature()
        first = torch.autograd.grad((log_z * torch.arange(7.0)).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), inputs, retain_graph=True)
        found.append([log_z.detach(), *first, *second])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert float(one.detach().abs().max()) > 0.0


@pytest.mark.filterwarnings("ignore:log Z")  # of few particles; its estimate holds all the same
def test_quadrature_in_two_dimensions_and_annealing_agree() -> None:
    ebm = model(2)
    ebm.tied.fill_(True)
    p = ebm.given(torch.rand(2, 2))
    exact, found = p.quadrature(), p.anneal(method=ep.normalizing.BAR(64))
    for one, value in zip(found, exact.tolist(), strict=True):
        assert abs(one.estimate - value) < 5.0 * one.standard_error + 1e-3
    y = torch.randn(2, 2)
    assert torch.allclose(p.normalized(exact).log_prob(y), -p.energy(y) - exact, atol=1e-5)
    assert torch.allclose(p.log_prob(y), p.implied_log_prob(y), atol=1e-5)


@pytest.mark.parametrize("objective", [None, ep.RecoveryLikelihood(steps=1)])
def test_training_moves_the_weights_and_knows_the_contexts(objective: object) -> None:
    ebm, rows = model(), pairs()
    before = [p.detach().clone() for p in ebm.net.parameters()]
    options = ep.TrainingOptions(steps=3, batch_size=20, label_drop=0.5)
    ep.fit(ebm, rows, objective, options=options, progress=False)  # type: ignore[arg-type]
    assert any(not torch.equal(a, b) for a, b in zip(before, ebm.net.parameters(), strict=True))
    assert bool(ebm.trained_without)
    assert torch.allclose(ebm.contexts.loc, torch.full((2,), 0.5), atol=0.2)
    assert not bool(ebm.given(rows[1]).is_far.any())
    p = ebm.given(rows[1][:4], guidance=0.5)
    assert torch.isfinite(p.log_prob(rows[0][:4])).all()


def test_a_run_goes_on_from_a_checkpoint_and_not_with_other_contexts(tmp_path) -> None:  # type: ignore[no-untyped-def]
    y, context = pairs()
    options = ep.TrainingOptions(steps=6, batch_size=20, evaluate_every=2)
    torch.manual_seed(1)
    whole, part = model(), model()
    part.load_state_dict(whole.state_dict())
    torch.manual_seed(2)
    ep.fit(whole, (y, context), options=options, progress=False)
    torch.manual_seed(2)
    first = ep.Training(part, (y, context), options=options)
    for _ in range(3):
        next(first)
    state = first.state_dict()
    again = model()
    second = ep.Training(again, (y, context), options=options)
    second.load_state_dict(state)
    for _ in second:
        pass
    second.finish()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    with pytest.raises(ep.errors.CheckpointError, match="other data"):
        ep.Training(model(), (y, context.flip(0)), options=options).load_state_dict(state)


def test_files_keep_contexts_and_encoders(tmp_path) -> None:  # type: ignore[no-untyped-def]
    def encoder() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))

    images = torch.rand(40, 1, 4, 4)
    images[:, :, 0] = 0.0  # constant edges are no matter to an encoder
    net = MLPEnergy(3, context_shape=4, hidden=16, depth=2)
    ebm = ConditionalEBM(net, SCHEDULE, context_shape=(1, 4, 4), encoder=encoder())
    weights = [p.detach().clone() for p in ebm.contexts.parameters()]
    ep.fit(ebm, (torch.randn(40, 3), images), options=ep.TrainingOptions(steps=3, batch_size=20), progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(weights, ebm.contexts.parameters(), strict=True))
    y = torch.randn(5, 3)
    ep.save(ebm, tmp_path / "m.ebm")
    with pytest.raises(ep.InvalidInput, match="weights of its encoder"):
        ep.load(tmp_path / "m.ebm")
    same = ep.load(tmp_path / "m.ebm", encoder=encoder())
    assert torch.equal(same.given(images[:5]).log_prob(y), ebm.given(images[:5]).log_prob(y))
    plain = model()
    ep.save(plain, tmp_path / "p.ebm")
    with pytest.raises(ep.InvalidInput, match="no encoder; got one"):
        ep.load(tmp_path / "p.ebm", encoder=encoder())
    assert type(ep.load(tmp_path / "p.ebm")) is ConditionalEBM


def test_it_is_a_pyro_conditional_distribution_and_a_site() -> None:
    ebm, (y, context) = model(), pairs(8)
    assert isinstance(ebm, dist.ConditionalDistribution)

    def observed(context: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("rows", len(context)):
            site: Tensor = pyro.sample("y", ebm.condition(context), obs=y)
        return site

    total = pyro.poutine.trace(observed).get_trace(context, y).log_prob_sum()
    assert torch.allclose(total, ebm.given(context).log_prob(y).sum(), atol=1e-4)
    assert observed(context).shape == (8, 1)


def test_gradients_reach_contexts_through_energy_and_log_z() -> None:
    """Of log p(y | c) against finite differences in float64."""
    ebm = model().double()
    context, y = torch.rand(2, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    asked = context.clone().requires_grad_()
    (found,) = torch.autograd.grad(ebm.given_unchecked(asked).log_prob(y), asked)
    step = torch.tensor([1e-5, 0.0], dtype=torch.float64)
    with torch.no_grad():
        up, down = (ebm.given_unchecked(context + s * step).log_prob(y) for s in (1.0, -1.0))
    assert abs(float(found[0]) - float((up - down) / 2e-5)) < 1e-6


def test_a_context_far_from_all_that_were_trained_is_flagged() -> None:
    ebm = model()
    ep.fit(ebm, pairs(400), steps=1, progress=False)
    with pytest.warns(UserWarning, match="1 of 2 contexts lie nowhere near"):
        p = ebm.given(torch.tensor([[0.5, 0.5], [5.0, 0.5]]))
    assert p.is_far.tolist() == [False, True]


def test_a_users_network_needs_only_the_call() -> None:
    ebm = ConditionalEBM(OfTheUser(), SCHEDULE)
    ep.fit(ebm, pairs(), ep.RecoveryLikelihood(steps=1), steps=2, progress=False)
    assert ebm.given(torch.rand(3, 2)).sample().shape == (3, 1)


def test_a_learned_proposal_is_the_default_where_a_gaussian_comes_near() -> None:
    proposal, score = ep.objectives.ProposalContrastive, ep.objectives.LevelScoreMatching
    assert [model(event).default_objective for event in (1, 2, 16, 17)] == [score, proposal, proposal, score]
    assert ConditionalEBM(OfTheUser(), SCHEDULE).default_objective is ep.RecoveryLikelihood
    ebm = model(2)
    ep.fit(ebm, pairs(event=2), options=ep.TrainingOptions(steps=3, label_drop=0.5), progress=False)
    assert bool(ebm.tied)
    assert ebm.given(torch.rand(3, 2), guidance=1.0).sample().shape == (3, 2)


def test_the_gaussian_of_a_context_is_noised_exactly() -> None:
    """Beside torch's; a fresh network's energy is its negative log density, whatever the correlations are."""
    for event in (1, 3, 17):
        net = model(event).net.double()
        nn.init.zeros_(net.readout.weight), nn.init.zeros_(net.readout.bias)  # type: ignore[union-attr, arg-type]
        c, log_snr, x = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 2), (5,), (4, 5, event)))
        mean, log_sd, root = net.proposal(c)  # type: ignore[operator]
        assert (root is not None) == (1 < event <= 16)
        shares = torch.eye(event) if root is None else (1.0 - 1e-4) * root @ root.mT + 1e-4 * torch.eye(event)
        alpha2, sigma2 = log_snr.sigmoid()[:, None], (-log_snr).sigmoid()[:, None]
        sd = log_sd.exp()
        noised = alpha2[..., None] * sd[..., None] * shares * sd[:, None] + sigma2[..., None] * torch.eye(event)
        known = torch.distributions.MultivariateNormal(alpha2.sqrt() * mean, noised)
        assert torch.allclose(net(x, log_snr.expand(4, 5), c), -known.log_prob(x), atol=1e-6)
        assert root is None or not torch.allclose(shares, torch.eye(event).double(), atol=0.1), "negative control"


def test_one_number_gets_the_temperature_at_which_held_out_rows_are_likeliest() -> None:
    """Of Gaussians it is known, and an outlier does not move it; training begins without one, few rows give none."""
    mean, normal = torch.randn(400), torch.distributions.Normal(0.0, 1.0)
    apart = normal.icdf((torch.randperm(400) + 0.5) / 400)
    for sd in (0.7, 1.0, 1.5):

        def energy(points: Tensor, some: Tensor, sd: float = sd) -> Tensor:
            return 0.5 * ((points[..., 0] - mean[some]) / sd).square()

        assert likeliest_power(energy, (mean + apart)[:, None]) == pytest.approx(sd**2, rel=0.05)
        apart[0] = 9.0
        assert likeliest_power(energy, (mean + apart)[:, None]) == pytest.approx(sd**2, rel=0.1)
        apart[0] = 0.0
    narrow = mean + 0.01 * apart
    power = likeliest_power(
        lambda points, some: 0.5 * ((points[..., 0] - mean[some]) / 0.005).square(), narrow[:, None]
    )
    assert power == pytest.approx(0.25, rel=0.05)
    assert likeliest_power(lambda points, some: 1e9 * (points[..., 0] - mean[some]).square(), mean[:, None]) == 1.0
    ebm = ConditionalEBM(OfTheUser(), SCHEDULE)
    rows, c = pairs(400)
    options = ep.TrainingOptions(steps=1, learning_rate=1e-9)  # the energy stays N(c, 1)
    for _ in range(2):
        ep.fit(
            ebm, (rows + 3.0 * torch.randn(400, 1), c), ep.RecoveryLikelihood(steps=1), options=options, progress=False
        )
        found = float(ebm.inverse_temperature)
        assert found != 1.0
        p = ebm.given(c[:5])
        unit, own = ebm.to_unit(rows[:5]), ConditionView(ebm, ebm.contexts.features(c[:5]))
        assert torch.allclose(p.energy(rows[:5]), found * own.potential()(unit), rtol=1e-5)
    ep.fit(ebm, pairs(60), ep.RecoveryLikelihood(steps=1), options=options, progress=False)
    assert float(ebm.inverse_temperature) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ep.fit(ConditionalEBM(OfTheUser(), SCHEDULE), pairs(), ep.objectives.ProposalContrastive()),
            "has a Gaussian given the context; got OfTheUser",
        ),
        (lambda: ep.objectives.ProposalContrastive(ratio=0), "ratio must be"),
        (lambda: ep.objectives.ProposalContrastive(level0_fraction=1.5), "level0_fraction must lie in"),
        (lambda: MLPEnergy(2).proposal(None), "told no context"),
        (lambda: model().given(torch.rand(3)), r"end in the shape of one context, \(2,\); got \(3,\)"),
        (lambda: model().given(torch.zeros(3, 2).long()), "context must be floating point; got torch.int64"),
        (lambda: model().given(torch.full((3, 2), torch.nan)), "NaN or infinity in 3 of 3 contexts"),
        (lambda: model().given(torch.rand(0, 2)), r"context must hold one or more; got a batch of none, \(0, 2\)"),
        (lambda: model().given([0.1, 0.2]), "context must be a torch tensor; got list"),
        (lambda: model().given(torch.rand(3, 2), guidance=1.0), "never trained: hide some contexts"),
        (
            lambda: model().given(torch.rand(5, 2)).log_prob(torch.randn(4, 1)),
            r"the contexts' batch \(5,\); got a batch of \(4,\)",
        ),
        (lambda: model(3).given(torch.rand(2)).quadrature(), "one and two dimensions"),
        (lambda: model(3).given(torch.rand(2)).interval(), r"events of shape \(1,\)"),
        (lambda: model().given(torch.rand(2)).interval(1.5), "confidence must lie between 0 and 1"),
        (lambda: model().sample((3,)), "needs a context: ask the distribution"),
        (lambda: model().log_normalizer(), "log Z of a ConditionalEBM needs a context"),
        (lambda: ep.Training(model(), pairs()[0]), r"must be a pair \(y, context\); got rows alone"),
        (lambda: ep.Training(model(), (pairs()[0], pairs(5)[1])), "one context for each of 60 rows; got contexts"),
        (lambda: ep.Training(model(), (pairs()[0], torch.rand(60, 3))), "end in the shape of one context"),
        (lambda: ep.Training(model(), (pairs()[0], torch.ones(60, 2))), r"coordinate\(s\) \[0, 1\] are constant"),
        (lambda: ep.Training(ep.RecoveryEBM(MLPEnergy(1), SCHEDULE), pairs()), "that is for a ConditionalEBM"),
        (lambda: ep.RecoveryEBM(MLPEnergy(1, context_shape=2), SCHEDULE), r"build ConditionalEBM\(net, schedule\)"),
        (lambda: ConditionalEBM(MLPEnergy(1), SCHEDULE), "names no context_shape"),
        (lambda: ConditionalEBM(MLPEnergy(1, context_shape=2), SCHEDULE, context_shape=3), "must be the network's own"),
        (lambda: ConditionalEBM(MLPEnergy(1, context_shape=2), SCHEDULE, encoder=nn.Flatten()), "needs context_shape="),
        (
            lambda: ConditionalEBM(MLPEnergy(1, context_shape=2), SCHEDULE, context_shape=(1, 4), encoder=nn.Flatten()),
            r"return features of the network's context_shape \(2,\); got \(4,\)",
        ),
        (lambda: MLPEnergy(1, context_shape=2, classes=3), "told classes or contexts"),
        (
            lambda: MLPEnergy(1, context_shape=2)(torch.zeros(3, 1), torch.tensor(0.0), torch.zeros(4, 2)),
            r"broadcast to their batch \(3,\)",
        ),
    ],
)
def test_bad_input_is_said(make: object, message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        make()  # type: ignore[operator]


def test_without_a_level_tie_no_log_z_is_implied() -> None:
    """Of several numbers log Z is what the tie implies: an objective without one leaves it unknown."""
    untied = ep.RecoveryLikelihood(tie=0.0)
    for objective, known in ((untied, False), (ep.RecoveryLikelihood(), True), (untied, False)):
        ebm, rows = model(2), pairs(event=2)
        ep.fit(ebm, rows, objective, steps=2, progress=False)
        assert bool(ebm.tied) == known
    p = ebm.given(torch.rand(3, 2))
    with pytest.raises(ep.NotNormalized, match="implied by a level tie, without which the model was trained"):
        p.log_prob(torch.zeros(3, 2))
    prior = torch.distributions.Independent(torch.distributions.Uniform(torch.zeros(2), torch.ones(2)), 1)
    with pytest.raises(ep.InvalidInput, match="was not trained with a level tie"):
        ep.models.posterior(ebm, prior, torch.zeros(2))


def test_simulators_may_be_of_numpy_and_what_is_far_from_all_simulations_is_flagged() -> None:
    prior, wide = (
        torch.distributions.Independent(torch.distributions.Uniform(torch.zeros(2), ends * torch.ones(2)), 1)
        for ends in (1.0, 3.0)
    )
    rows = ep.models.simulate(lambda theta: theta.double().numpy() + 1.0, prior, 100)
    assert torch.allclose(rows.x, rows.parameters + 1.0)
    ebm = model(2)
    ep.fit(ebm, rows, steps=2, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ep.models.posterior(ebm, prior, rows.x[:3])
    with pytest.warns(UserWarning, match="1 of 2 observed rows lie outside of all simulations"):
        ep.models.posterior(ebm, prior, torch.tensor([[1.5, 1.5], [1.5, 4.0]]))
    with pytest.warns(UserWarning, match=r"\d\d% of the prior's draws lie nowhere near the parameters"):
        ep.models.posterior(ebm, wide, rows.x[:3])


@pytest.mark.filterwarnings("ignore:.*nowhere near", "ignore:.*outside of all simulations")
def test_parameters_whose_likelihood_cannot_be_integrated_are_turned_back_from() -> None:
    """One chain's proposal far out had ended the chains of all."""
    ebm = ConditionalEBM(OfTheUser(), SCHEDULE)
    ebm.standardize(torch.randn(50, 1))
    ebm.standardize_context(torch.randn(50, 2))
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
    theta = torch.tensor([[0.2, 0.0], [1e4, 0.0], [-0.3, 0.0]], requires_grad=True)
    with pytest.raises(ep.errors.QuadratureError, match="1 of 3 energies"):
        ebm.given_unchecked(theta).quadrature()
    energy = ep.models.posterior(ebm, prior, torch.tensor([0.5])).energy(theta)
    assert torch.isfinite(energy).tolist() == [True, False, True]
    assert energy[1] == math.inf
    (slope,) = torch.autograd.grad(energy[::2].sum(), theta)
    assert bool(torch.isfinite(slope[::2]).all())

"""LatentPrior, PosteriorGuide and marginal likelihoods: shapes, what moves when, and messages."""

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import Tensor, nn

import energyppl as ep
from energyppl.errors import InvalidInput
from energyppl.inference.sampling.plate_potential import PlatePotential


def a_prior(**options: Any) -> Any:
    return ep.models.LatentPrior(ep.MLPEnergy((2,), levels=1, hidden=8, depth=1), chains=64, **options)


class Decoded(nn.Module):
    """z ~ prior, x ~ N(decoder(z), 1/4), with a guide."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.decoder, self.encoder = a_prior(), nn.Linear(2, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> None:
        pyro.module("decoded", self)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", self.prior.marginal())
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("decoded", self)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.3).to_event(1))


@pytest.mark.parametrize("by_chains", [False, True])
def test_svi_trains_the_prior_and_the_decoder(by_chains: bool) -> None:
    model, x = Decoded(), torch.randn(12, 5)
    before = copy.deepcopy(model.state_dict())
    guide = ep.objectives.PosteriorGuide(model, steps=3, start=model.guide) if by_chains else model.guide
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert all(torch.isfinite(torch.tensor(svi.step(x))) for _ in range(2))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"prior.net.readout.weight", "decoder.weight", "prior.chain_points", "prior.log_weights"} <= changed
    assert ("encoder.weight" in changed) != by_chains


def test_chains_move_for_the_weights_gradient_alone() -> None:
    prior, z = a_prior(), torch.randn(6, 2)
    points = prior.chain_points.clone()
    with torch.no_grad():
        prior.marginal().log_prob(z)
    log_prob = prior.marginal().log_prob(z.requires_grad_())
    assert log_prob.shape == (6,)
    torch.autograd.grad(log_prob.sum(), z)
    assert torch.equal(prior.chain_points, points)
    prior.marginal().log_prob(z.detach()).sum().backward()
    assert not torch.equal(prior.chain_points, points)
    assert prior.marginal().sample((2, 4)).shape == (2, 4, 2)
    assert prior.negatives(0).shape == (64, 2)


def test_a_state_dict_holds_the_chains() -> None:
    prior, other = a_prior(), a_prior()
    prior.track()
    other.load_state_dict(prior.state_dict())
    assert other.tracked_log_z == prior.tracked_log_z
    assert torch.equal(other.chain_points, prior.chain_points)


def test_a_jump_of_the_network_is_said_and_restart_helps() -> None:
    prior = a_prior()
    with torch.no_grad():
        prior.net.readout.weight.mul_(200.0)
    with pytest.warns(UserWarning, match="changed too much for its chains to follow"):
        prior.track()
    prior.net.load_state_dict(a_prior().net.state_dict())
    prior.restart(steps=20)
    assert abs(prior.tracked_log_z - prior.log_normalizer().estimate) < 1e-6


def test_rows_are_moved_by_themselves_and_scales_of_minibatches_left_out() -> None:
    model, x = Decoded(), torch.randn(4, 5)
    potential, drawn = PlatePotential.trace(pyro.poutine.scale(model, 7.0), (x,), {})
    z = torch.randn(2, 4, 2)
    expected = model.prior.potential()(z) - dist.Normal(model.decoder(z), 0.5).log_prob(x).sum(-1)
    torch.testing.assert_close(potential(z), expected)
    assert drawn["z"].shape == (4, 2)
    values = ep.objectives.PosteriorGuide(model, steps=2).draw(x)
    assert values["z"].shape == (4, 2)


def test_draws_of_the_model() -> None:
    model = Decoded()
    drawn = Predictive(pyro.poutine.uncondition(model), num_samples=3)(torch.zeros(4, 5))
    assert drawn["x"].shape == (3, 4, 5)


def test_marginal_likelihood_with_and_without_a_guide() -> None:
    model, x = Decoded(), torch.randn(4, 5)
    for guide in (None, model.guide):
        found = ep.normalizing.marginal_log_likelihood(
            model, (x,), guide=guide, log_z=model.prior.log_normalizer(), particles=8, temperatures=4
        )
        assert found.log_likelihood.shape == found.standard_error.shape == (4,)
        assert found.mean.lower < found.mean.value < found.mean.upper
        assert "nats a row (4 rows" in str(found)


@pytest.mark.parametrize("by_handler", [True, False])
def test_masked_data_count_nothing(by_handler: bool) -> None:
    """Neither by a handler's mask nor by the distribution's own, and NaN in their place reaches no gradient."""
    x = torch.tensor([0.5, torch.nan, 2.0])
    seen = ~x.isnan()

    def model() -> None:
        with pyro.plate("rows", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.poutine.mask(mask=seen if by_handler else True):
                pyro.sample("x", dist.Normal(z, 1.0) if by_handler else dist.Normal(z, 1.0).mask(seen), obs=x)

    potential, _ = PlatePotential.trace(model, (), {})
    z = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    energy, standard = potential(z), dist.Normal(0.0, 1.0)
    z_, shown = z.detach()[:, 0], torch.where(seen, x, 0.0)
    expected = -standard.log_prob(z_) - torch.where(seen, standard.log_prob(shown - z_), 0.0)
    torch.testing.assert_close(energy, expected)
    (slope,) = torch.autograd.grad(energy.sum(), z)
    torch.testing.assert_close(slope[:, 0], torch.where(seen, 2.0 * z_ - shown, z_))


def outside_of_a_plate(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def subsampled(x: Tensor) -> None:
    with pyro.plate("rows", 100, subsample_size=len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def positive(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.LogNormal(0.0, 1.0))


def with_holes(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=torch.arange(len(x)) > 1)


def observed(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0), obs=x)


def normal(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def observed_for_no_row(x: Tensor) -> None:
    normal(x)
    pyro.sample("all", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


def observed_in_two_plates(x: Tensor) -> None:
    with pyro.plate("rows", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("features", 3, dim=-2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3, len(x)))


def drawn(model: Any, **options: Any) -> Callable[[], Any]:
    return lambda: ep.objectives.PosteriorGuide(model, **options).draw(torch.zeros(4))


def marginal(**options: Any) -> Callable[[], Any]:
    return lambda: ep.normalizing.marginal_log_likelihood(normal, (torch.zeros(4),), **options)


MESSAGES: dict[str, tuple[Callable[[], Any], str]] = {
    "no plate": (drawn(outside_of_a_plate), "'z' must lie in one plate of independent rows; got plates none"),
    "a plate that subsamples": (drawn(subsampled), "plate 'rows' subsamples its rows"),
    "a positive site": (drawn(positive), "latent site 'z' must be real"),
    "obs_mask": (drawn(with_holes), "'x_unobserved' is masked, .* in place of obs_mask"),
    "an observed site of no row": (
        drawn(observed_for_no_row),
        "observed site 'all' must lie in the plate 'rows' alone",
    ),
    "an observed site in two plates": (drawn(observed_in_two_plates), "an event by .to_event"),
    "no latent site": (drawn(observed), "must have latent sites in one plate"),
    "a guide without the site": (drawn(normal, start=lambda x: None), "the guide must give site 'z' values"),
    "a model's class": (drawn(Decoded), "model must be a Pyro program"),
    "Langevin, adapted": (drawn(normal, kernel=ep.Langevin(0.1)), "accepts every move"),
    "no steps": (drawn(normal, steps=0), "steps must be a whole number"),
    "a prior's Langevin": (lambda: a_prior(kernel=ep.Langevin(0.1)), "accepts every move"),
    "no moves": (lambda: a_prior(num_steps=0), "num_steps must be a whole number"),
    "level 1": (lambda: a_prior().marginal(1), "has level 0 only"),
    "two particles": (marginal(particles=2), "particles must be a whole number of at least 4"),
    "a guide that is no Normal": (marginal(guide=positive), "site 'z' a Normal; got LogNormal"),
    "a guide without sites": (marginal(guide=lambda x: None), "must have a site 'z'"),
}


@pytest.mark.parametrize("name", list(MESSAGES))
def test_bad_input_is_named(name: str) -> None:
    call, words = MESSAGES[name]
    with pytest.raises(InvalidInput, match=words):
        call()

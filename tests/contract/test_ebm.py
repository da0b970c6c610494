"""The model of one energy: coordinates, normalizers, and what it refuses."""

import math

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from tests.support.multiscale import Bell


def test_density_in_data_coordinates() -> None:
    """Standardized to mean 3 and sd 2: log N(x; 3, 2²), whose log Z is by quadrature."""
    ebm = ep.EBM(Bell())
    ebm.loc.fill_(3.0)
    ebm.scale.fill_(2.0)
    x = torch.tensor([[3.0, 3.0], [5.0, 1.0]])
    exact = torch.distributions.Normal(3.0, 2.0).log_prob(x).sum(-1)
    assert torch.allclose(ebm.log_prob(x), exact, atol=1e-3)
    found = ebm.log_normalizer()
    assert abs(found.estimate - math.log(2 * math.pi * 4.0)) < found.standard_error < 1e-3


def test_networks_with_and_without_a_level() -> None:
    plain, leveled = ep.EBM(Bell()), ep.EBM(ep.MLPEnergy((2,), levels=1))
    for ebm in (plain, leveled):
        assert ebm.potential()(torch.randn(4, 2)).shape == (4,)
        assert ebm.marginal().event_shape == (2,)
        assert [name for name, _ in ebm.named_parameters()] == [f"net.{name}" for name, _ in ebm.net.named_parameters()]


def test_fit_knows_what_trains_each_kind_of_model() -> None:
    options = ep.TrainingOptions(steps=2, batch_size=32)
    net, schedule = ep.MLPEnergy((2,), hidden=8, levels=4), ep.NoiseSchedule.cosine(3)
    for model in (
        ep.EBM(net),
        ep.JointEBM(net, schedule),
        ep.MultiscaleEBM(net, [1.0, 0.1]),
        ep.RecoveryEBM(net, schedule),
    ):
        assert len(ep.fit(model, torch.randn(100, 2), options=options, progress=False).records) == 2


def test_what_was_trained_is_loaded_into_a_fresh_model() -> None:
    """Weights, coordinates and step sizes are a model's state; the chains that trained it are not."""

    def fresh() -> ep.EBM:
        return ep.EBM(ep.MLPEnergy((2,), hidden=8, levels=1))

    trained, again = fresh(), fresh()
    options = ep.TrainingOptions(steps=2, batch_size=32)
    ep.fit(trained, torch.randn(100, 2), options=options, progress=False)
    state = trained.state_dict()
    again.load_state_dict(state)
    assert set(state) - {f"net.{name}" for name in trained.net.state_dict()} == {
        *("loc", "scale", "low", "high", "is_standardized", "level_kernel.step_sizes")
    }
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name]), name
    inside = nn.ModuleDict({"model": fresh()})
    inside.load_state_dict({f"model.{name}": value for name, value in state.items()})


class Broken(nn.Module):
    event_shape = torch.Size((2,))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ep.EBM(Broken()), "one energy for each point"),
        (lambda: ep.EBM(nn.Linear(2, 1)), "no event_shape"),
        (lambda: ep.EBM(nn.Linear(3, 1), event_shape=(2,)), "must take points"),
        (lambda: ep.EBM(Bell()).potential(1), "level 0 only"),
        (lambda: ep.EBM(lambda x: x), "must be a torch module"),
        (
            lambda: ep.EBM(Bell()).log_normalizer(samples=[[0.0, 0.0]]),
            "samples must be a torch tensor or a function or",
        ),
        (
            lambda: ep.EBM(Bell()).log_normalizer(method=ep.normalizing.BAR),
            "method must be an Annealing or None; got <cl",
        ),
        (lambda: ep.EBM(Bell()).log_normalizer(max_evaluations=0.5), "max_evaluations must be a whole number or None"),
        (lambda: ep.EBM(Bell()).log_normalizer(samples=torch.zeros(20, 3)), r"samples must end in event_shape \(2,\)"),
        (
            lambda: ep.EBM(Bell((3,))).log_normalizer(samples=lambda count: [0.0] * count),
            "samples must be a torch tensor; got list",
        ),
    ],
)
def test_bad_input_is_said(make: object, message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        make()  # type: ignore[operator]

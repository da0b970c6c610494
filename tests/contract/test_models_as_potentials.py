"""A model where an energy or a distribution is wanted: it is named, with what to pass instead."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch

import energyppl as ep

SCHEDULE = ep.NoiseSchedule.cosine(2)
MODELS: dict[str, Callable[[], Any]] = {
    "EBM": lambda: ep.EBM(ep.MLPEnergy((2,), hidden=8, depth=1, levels=1)),
    "RecoveryEBM": lambda: ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=8, depth=1, levels=2), SCHEDULE),
    "JointEBM": lambda: ep.JointEBM(ep.MLPEnergy((2,), hidden=8, depth=1, levels=3), SCHEDULE),
    "MultiscaleEBM": lambda: ep.MultiscaleEBM(
        ep.MLPEnergy((2,), hidden=8, depth=1, levels=1), torch.linspace(3.0, 0.1, 5)
    ),
}
USES: dict[str, Callable[[Any], object]] = {
    "energy_and_grad": lambda ebm: ep.energy_and_grad(ebm, torch.zeros(4, 2)),
    "a kernel": lambda ebm: ep.MALA(0.1).init(ebm, torch.zeros(4, 2)),
    "EnergyDistribution": ep.EnergyDistribution,
    "log_normalizer": ep.log_normalizer,
    "quadrature": lambda ebm: ep.quadrature(ebm, ep.Grid((-1.0, -1.0), (1.0, 1.0), (8, 8))),
    "sample_chains": lambda ebm: ep.sample_chains(ep.MALA(0.1), ebm, draws=2, progress=False),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_no_potential(name: str, use: Callable[[Any], object]) -> None:
    with pytest.raises(ep.InvalidInput, match=rf"got the model {name}: pass ebm\.marginal\(\)"):
        use(MODELS[name]())


@pytest.mark.parametrize("name", ["EBM", "RecoveryEBM", "MultiscaleEBM"])
def test_a_model_is_no_distribution(name: str) -> None:
    """JointEBM is not among them: called, it is a Pyro model that draws."""
    ebm = MODELS[name]()
    for sample in (
        lambda: pyro.sample("x", ebm),
        lambda: pyro.poutine.trace(lambda: pyro.sample("x", ebm)).get_trace(),
        lambda: ebm((3,)),
    ):
        with pytest.raises(ep.InvalidInput, match=rf"model {name} was called: pass ebm\.marginal\(\).*pyro\.sample"):
            sample()


def test_what_is_passed_instead_serves() -> None:
    ebm, x = MODELS["RecoveryEBM"](), torch.randn(4, 2)
    energy, grad = ep.energy_and_grad(ebm.marginal().potential, x)
    assert energy.shape == (4,)
    assert grad.shape == (4, 2)
    assert pyro.sample("x", ebm.marginal()).shape == (2,)


class Bell(torch.nn.Module):
    """A user's module, whose shape is a tuple."""

    event_shape: Any = (2,)

    def __init__(self, energy: Callable[[torch.Tensor], torch.Tensor] = lambda x: 0.5 * (x * x).sum(-1)) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.energy(x)


@pytest.mark.filterwarnings("ignore::energyppl.errors.ChainWarning")
def test_a_tuple_is_a_shape() -> None:
    bell, quick = Bell(), ep.normalizing.AIS(particles=64)
    base = ep.potentials.GaussianBase(torch.zeros(2), torch.ones(2))
    for found in (
        ep.log_normalizer(bell, method=quick),
        ep.log_normalizer(bell, method=quick, base=base),
        ep.log_normalizer(bell, method=quick, samples=torch.randn(200, 2)),
    ):
        assert abs(found.estimate - math.log(2.0 * math.pi)) < 1.0  # a shape that is misread raises
    assert ep.potentials.Affine(bell, torch.zeros(2), torch.eye(2))(torch.ones(2)) == 1.0
    assert ep.sample_chains(ep.HMC(), bell, chains=4, draws=9, warmup=50, progress=False).draws.shape == (4, 9, 2)


@pytest.mark.parametrize(
    "use", [ep.log_normalizer, ep.EnergyDistribution, lambda bell: ep.potentials.Scaled(bell, 0.5)]
)
def test_a_list_is_no_shape(use: Callable[[Any], object]) -> None:
    bell = Bell()
    bell.event_shape = [2]
    with pytest.raises(ep.InvalidInput, match=r"torch\.Size or tuple as its event_shape; got \[2\]: write event_shape"):
        use(bell)


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda x: -x.abs().sum(-1), "not normalizable"),
        (lambda x: 1e-3 * x.abs().sum(-1), "within 64 standard deviations of the data: .*add a confining term"),
    ],
    ids=["falls", "hardly rises"],
)
def test_a_plain_model_that_has_no_integral_says_what_to_add(energy: Any, message: str) -> None:
    ebm = ep.EBM(Bell(energy))
    with pytest.raises((ep.errors.NotNormalizable, ep.errors.QuadratureError), match=message):
        ebm.log_normalizer()

"""A model where an energy or a distribution is wanted: it is named, with what to pass instead."""

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

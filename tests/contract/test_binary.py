"""Binary targets: kernels that keep them, exact sums over all states as the oracle."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import energyppl as ep
from energyppl.integration.enumeration import binary_states

SITES = 16
LIMIT = 5.0  # standard errors; 6e-7 for one number


def ising() -> tuple[ep.Energy, Tensor]:
    """A Boltzmann machine of 16 sites with random couplings, and the probabilities of its 65,536 states."""
    generator = torch.Generator().manual_seed(0)
    coupling = 0.2 * torch.randn(SITES, SITES, generator=generator)
    coupling, field = coupling + coupling.T, 0.5 * torch.randn(SITES, generator=generator)
    potential = ep.Energy(lambda x: -((x @ coupling) * x).sum(-1) - x @ field, torch.Size((SITES,)))
    return potential, torch.softmax(-potential(binary_states(SITES, 0, 2**SITES)).double(), 0)


def restricted_boltzmann_machine(visible: int = 10, hidden: int = 4) -> tuple[ep.Energy, ep.Energy]:
    """An RBM with its hidden units, and with them summed out."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(visible, hidden, generator=generator)
    joint = ep.Energy(
        lambda x: -((x[..., :visible] @ weight) * x[..., visible:]).sum(-1), torch.Size((visible + hidden,))
    )
    marginal = ep.Energy(lambda v: -torch.nn.functional.softplus(v @ weight).sum(-1), torch.Size((visible,)))
    return joint, marginal


def test_enumeration_of_an_rbm_is_the_same_with_and_without_its_hidden_units() -> None:
    joint, marginal = (ep.integration.enumerated(potential) for potential in restricted_boltzmann_machine())
    assert joint.estimate == pytest.approx(marginal.estimate, abs=1e-5)
    assert joint.evaluations == 2**14
    free = ep.integration.enumerated(ep.Energy(lambda x: 0.0 * x.sum((-1, -2)), torch.Size((2, 3))))
    assert free.estimate == pytest.approx(6 * math.log(2.0))


@pytest.mark.parametrize(
    "kernel", [ep.kernels.BinaryGibbs(4), ep.kernels.DiscreteLangevin(0.5)], ids=["Gibbs", "Langevin"]
)
def test_kernels_leave_the_target_as_it_is(kernel: Any) -> None:
    """4,000 exact draws after 50 steps, and chains from coin flips after 300: means and neighbours' products."""
    potential, probability = ising()
    states = binary_states(SITES, 0, 2**SITES)

    def functions(x: Tensor) -> Tensor:
        return torch.cat([x, x * x.roll(1, -1)], -1)

    truth = (probability[:, None] * functions(states).double()).sum(0)
    exact = states[torch.multinomial(probability, 4000, replacement=True)]
    for start, steps in ((exact, 50), (torch.bernoulli(torch.full((4000, SITES), 0.5)), 300)):
        x = ep.sampling.run_chain(kernel, potential, start, steps).state.x
        assert bool(((x == 0) | (x == 1)).all())
        found = functions(x).double()
        assert bool(((found.mean(0) - truth).abs() < LIMIT * found.std(0) / math.sqrt(4000)).all())


def test_a_proposal_that_forgets_the_way_back_fails() -> None:
    """Negative control: discrete Langevin without its Hastings correction."""

    class Uncorrected(ep.kernels.DiscreteLangevin):
        def step(self, potential: Any, state: Any) -> Any:
            logit = self._logit(state.x, state.grad)
            x = torch.where(torch.rand_like(logit) < torch.sigmoid(logit), 1.0 - state.x, state.x)
            new = self.init(potential, x)
            accepted = torch.rand_like(new.energy) < (state.energy - new.energy).exp()
            from energyppl.inference.kernels.contract import Info, select

            return select(accepted, new, state), Info(accepted.float(), accepted, ~accepted)

    potential, probability = ising()
    truth = (probability[:, None] * binary_states(SITES, 0, 2**SITES).double()).sum(0)
    x = ep.sampling.run_chain(
        Uncorrected(1.0), potential, torch.bernoulli(torch.full((4000, SITES), 0.5)), 300
    ).state.x.double()
    assert bool(((x.mean(0) - truth).abs() > LIMIT * x.std(0) / math.sqrt(4000)).any())


@pytest.mark.parametrize(
    "kernel", [ep.kernels.BinaryGibbs(4), ep.kernels.DiscreteLangevin()], ids=["Gibbs", "Langevin"]
)
def test_annealing_agrees_with_enumeration(kernel: Any) -> None:
    potential, probability = ising()
    truth = ep.integration.enumerated(potential).estimate
    states = binary_states(SITES, 0, 2**SITES)
    samples = states[torch.multinomial(probability, 1024, replacement=True)]
    bridge = ep.log_normalizer(potential, samples=samples, method=ep.normalizing.BAR(512, kernel=kernel))
    assert abs(bridge.estimate - truth) < LIMIT * bridge.standard_error
    smc = ep.log_normalizer(potential, method=ep.normalizing.SMC(512, kernel=kernel))
    assert abs(smc.estimate - truth) < 8.0 * smc.standard_error  # t of 7 degrees: 1e-4
    assert max(bridge.standard_error, smc.standard_error) < 0.2


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "too many sites": (
        lambda: ep.integration.enumerated(ep.Energy(lambda x: x.sum(-1), torch.Size((30,)))),
        "at most 24 binary variables",
    ),
    "nowhere finite": (
        lambda: ep.integration.enumerated(ep.Energy(lambda x: x.sum(-1) + math.inf, torch.Size((3,)))),
        "finite somewhere",
    ),
    "not binary": (lambda: ep.kernels.BinaryGibbs().init(ising()[0], torch.randn(5, SITES)), "zeros and ones"),
    "no updates": (lambda: ep.kernels.BinaryGibbs(0), "updates must be"),
    "impossible states": (lambda: ep.potentials.BernoulliBase(torch.tensor([0.0, 0.5])), "inside"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ep.InvalidInput, match=message):
        make()

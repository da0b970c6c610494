"""Energies as Pyro distributions: one contract for all of them, and what they do inside Pyro programs."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Importance, Predictive
from torch import Tensor
from torch.distributions import constraints

import energyppl as ep
from energyppl.distributions import EnergyDistribution, RecoveryDistribution


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * (x * x).sum(-1)


NORMAL = ep.Energy(quadratic, torch.Size((2,)))
CHAINS = ep.sampling.MarkovSampler(ep.MALA(1.0), steps=30)


def energy(batch: tuple[int, ...] = ()) -> EnergyDistribution:
    """A standard normal in two dimensions, which every answer is known of."""
    return EnergyDistribution(NORMAL, sampler=CHAINS, log_normalizer=math.log(2 * math.pi), batch_shape=batch)


def recovery(batch: tuple[int, ...] = ()) -> RecoveryDistribution:
    """A normal prior tilted at 2 with width 1: N(1, ½)."""
    noisy = torch.full((*batch, 2), 2.0)
    # ∫ exp(−½x² − ½(x−2)²) = √π e^{−1} for each coordinate
    log_z = 2 * (0.5 * math.log(math.pi) - 1.0)
    return RecoveryDistribution(NORMAL, noisy, 1.0, sampler=CHAINS, log_normalizer=log_z)


def marginal(batch: tuple[int, ...] = ()) -> EnergyDistribution:
    return small_ebm().marginal().expand(batch)


def ebm_recovery(batch: tuple[int, ...] = ()) -> RecoveryDistribution:
    site = small_ebm().recovery(torch.zeros(*batch, 2), level=1, steps=5)
    return RecoveryDistribution(
        site.potential.potential, site.noisy, site.sigma, sampler=site.sampler, log_normalizer=0.0
    )


def small_ebm() -> ep.RecoveryEBM:
    return ep.RecoveryEBM(ep.MLPEnergy((2,), hidden=16, depth=2, frequencies=4, levels=3), ep.NoiseSchedule.cosine(3))


CASES = {"energy": energy, "recovery": recovery, "marginal": marginal, "recovery of an EBM": ebm_recovery}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_contract(case: str, batch: tuple[int, ...]) -> None:
    """Shapes, expand, to_event, mask, and the support, as every Pyro distribution has them."""
    d = CASES[case](batch)
    assert d.batch_shape == batch
    assert d.event_shape == (2,)
    assert d.event_dim == 1
    for sample_shape in ((), (4,), (4, 1)):
        x = d.sample(sample_shape)
        assert x.shape == (*sample_shape, *batch, 2)
        assert not x.requires_grad
        assert bool(d.support.check(x).all())
        log_prob = d.log_prob(x)
        assert log_prob.shape == (*sample_shape, *batch)
        assert bool(torch.isfinite(log_prob).all())
    x = d.sample()
    assert d(torch.Size((5,))).shape == (5, *batch, 2)
    wide = d.expand((6, *batch))
    assert type(wide) is type(d)
    assert wide.batch_shape == (6, *batch)
    assert wide.sample().shape == (6, *batch, 2)
    torch.testing.assert_close(wide.log_prob(x), d.log_prob(x).expand(6, *batch))
    event = d.expand((3, *batch)).to_event(1 + len(batch))
    assert event.batch_shape == ()
    assert event.log_prob(event.sample()).shape == ()
    masked = d.mask(False)
    assert float(masked.log_prob(x).abs().sum()) == 0.0
    assert d.unnormalized().batch_shape == batch
    with pytest.raises(ep.InvalidInput, match=r"event_shape \(2,\)"):
        d.log_prob(torch.zeros(*batch, 3))


@pytest.mark.parametrize("make", [energy, recovery])
def test_samples_agree_with_log_prob(make: object) -> None:
    """Independent chains: mean and variance within 4.5 standard errors (8 checks: 1 false alarm in 18,000 runs)."""
    d = make((4000,))  # type: ignore[operator]
    x = d.sample()
    mean, variance = (0.0, 1.0) if make is energy else (1.0, 0.5)
    assert float(((x.mean(0) - mean) / math.sqrt(variance / 4000)).abs().max()) < 4.5
    assert float(((x.var(0) - variance) / (variance * math.sqrt(2 / 4000))).abs().max()) < 4.5
    grid = torch.cartesian_prod(torch.linspace(-8, 8, 200), torch.linspace(-8, 8, 200))
    single = make()  # type: ignore[operator]
    assert abs(float(single.log_prob(grid).exp().sum()) * (16 / 199) ** 2 - 1.0) < 1e-4


def test_log_prob_without_a_normalizer_names_the_ways_out() -> None:
    bare = EnergyDistribution(NORMAL)
    with pytest.raises(ep.NotNormalized, match=r"estimate it.*unnormalized\(\).*contrastive"):
        bare.log_prob(torch.zeros(2))
    assert float(bare.unnormalized().log_prob(torch.ones(2))) == -1.0
    with pytest.raises(ep.InvalidInput, match="sampler="):
        bare.sample()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EnergyDistribution(quadratic), r"wrap a plain function in Energy"),
        (
            lambda: RecoveryDistribution(NORMAL, torch.zeros(3, 4), 1.0),
            r"noisy must end in event_shape \(2,\); got \(3, 4\)",
        ),
        (lambda: RecoveryDistribution(NORMAL, torch.zeros(3, 2), 0.0), "sigma must be positive"),
        (lambda: RecoveryDistribution(NORMAL, torch.zeros(3, 2), torch.ones(5)), "sigma must broadcast"),
        (lambda: energy((3,)).expand((4,)), "can.t expand"),
    ],
)
def test_bad_input_is_refused(build: object, message: str) -> None:
    with pytest.raises(Exception, match=message):
        build()  # type: ignore[operator]


def test_inside_pyro() -> None:
    """Plates, trace, condition, replay, Predictive and Importance see an ordinary distribution."""

    def model(noisy: Tensor) -> Tensor:
        with pyro.plate("batch", len(noisy)):
            clean = pyro.sample("clean", RecoveryDistribution(NORMAL, noisy, 1.0, sampler=CHAINS, log_normalizer=0.0))
            pyro.sample("seen", dist.Normal(clean, 0.1).to_event(1), obs=torch.zeros(len(noisy), 2))
        return clean

    noisy = torch.full((7, 2), 2.0)
    trace = pyro.poutine.trace(model).get_trace(noisy)
    assert trace.nodes["clean"]["value"].shape == (7, 2)
    assert trace.nodes["clean"]["fn"].batch_shape == (7,)
    assert bool(torch.isfinite(trace.log_prob_sum()))
    again = pyro.poutine.replay(model, trace)(noisy)
    assert torch.equal(again, trace.nodes["clean"]["value"])
    held = pyro.condition(model, {"clean": torch.ones(7, 2)})(noisy)
    assert torch.equal(held, torch.ones(7, 2))
    drawn = Predictive(model, num_samples=3)(noisy)
    assert drawn["clean"].shape == (3, 7, 2)
    weighed = Importance(model, num_samples=5).run(noisy)
    assert len(weighed.exec_traces) == 5


def test_an_ebm_recovers_inside_a_plate() -> None:
    ebm = small_ebm()

    def model(noisy: Tensor) -> Tensor:
        with pyro.plate("batch", len(noisy)):
            clean: Tensor = pyro.sample("clean", ebm.recovery(noisy, level=2))
        return clean

    assert model(torch.zeros(5, 2)).shape == (5, 2)


# --- A gradient along the weights wants that of log Z ---


class Rate(torch.nn.Module):
    """exp(−t x) for x > 0, of which log Z is −log t."""

    event_shape = torch.Size((1,))

    def __init__(self) -> None:
        super().__init__()
        self.t = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.t * x.sum(-1)


def rate(**options: Any) -> EnergyDistribution:
    return EnergyDistribution(Rate(), support=constraints.positive, **options)


FIXED: dict[str, Callable[[], EnergyDistribution]] = {
    "unnormalized": lambda: rate().unnormalized(),
    "a number": lambda: rate(log_normalizer=0.5),
    "a tensor": lambda: rate(log_normalizer=torch.zeros(4), batch_shape=(4,)),
    "a sum": lambda: EnergyDistribution(ep.potentials.Sum(Rate(), Rate()), log_normalizer=0.0),
    "a closure": lambda: EnergyDistribution(ep.Energy(Rate().forward, (1,)), log_normalizer=0.0),
    "a marginal": lambda: small_ebm().marginal().unnormalized(),
    "a recovery distribution": lambda: small_ebm().recovery(torch.zeros(4, 2), level=1).unnormalized(),
}


@pytest.mark.parametrize("name", FIXED)
def test_weights_that_follow_a_density_without_its_log_z_are_biased_and_it_says_so(name: str) -> None:
    site = FIXED[name]()
    x = torch.rand(4, *site.event_shape, requires_grad=True)
    total = site.log_prob(x).sum()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.autograd.grad(total, x, retain_graph=True)  # as chains ask
    with pytest.warns(UserWarning, match="along the weights of an energy lacks that of log Z.* biased: learn them by"):
        total.backward()


def test_it_is_svi_s_own_line_that_is_warned_of() -> None:
    site = rate().unnormalized()

    def model(x: Tensor) -> None:
        pyro.module("rate", site.potential)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", site, obs=x)

    svi = pyro.infer.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    with pytest.warns(UserWarning, match="lacks that of log Z") as caught:
        svi.step(torch.rand(8, 1))
    assert {warning.filename for warning in caught if "log Z" in str(warning.message)} == {__file__}


def test_svi_of_a_guide_alone_learns_no_weights_and_says_nothing() -> None:
    """A warning is an error in these tests.  Its backward pass comes by the energy's weights all the same."""
    site = rate().unnormalized()

    def model(x: Tensor) -> None:
        clean = pyro.sample("clean", site)
        pyro.sample("noisy", pyro.distributions.Normal(clean, 0.1).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        place = pyro.param("place", torch.ones(1))
        pyro.sample("clean", pyro.distributions.Normal(place, 0.1).to_event(1))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    svi.step(torch.ones(1))


def known_log_z(potential: Any, value: Tensor) -> Tensor:
    log_z: Tensor = -potential.potential.t.log()
    return log_z


RIGHT: dict[str, Callable[[], EnergyDistribution]] = {
    "frozen": lambda: EnergyDistribution(Rate().requires_grad_(False), log_normalizer=0.0),
    "a formula": lambda: energy(),
    "learned beside": lambda: rate(log_normalizer=torch.zeros((), requires_grad=True)),
    "with its gradient": lambda: rate(log_normalizer=known_log_z),
    "contrastive": lambda: rate(log_normalizer=ep.objectives.Contrastive(ep.MALA(0.3), 2)),
    "a model's own": lambda: small_ebm().marginal(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_nobody_is_warned_whose_gradient_is_right(name: str) -> None:
    site = RIGHT[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        site.log_prob(torch.rand(4, *site.event_shape, requires_grad=True)).sum().backward()

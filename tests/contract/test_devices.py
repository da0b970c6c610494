"""A model on a GPU is fit, sampled and queried there, wherever data and settings lie: on a device that is pretended.

Only devices are judged here; runs are as short as can be.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, SVI, Trace_ELBO
from torch import Tensor, nn
from torch.distributions import constraints

import energyppl as ep
from energyppl import plots
from energyppl.cli.runs import FittedTable
from energyppl.inference.evaluation.chains import level_acceptance
from energyppl.inference.normalizing.recovery import recovery_normalizers
from energyppl.integration.quadrature import expectation, kl_divergence, quadrature
from energyppl.metrics.two_sample import energy_distance_test
from tests.support.objectives import loss_of, measure_of
from tests.support.pretend_device import MixedDevices, pretend_device

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # chains this short earn every one
DEVICE = "cuda"
SHORT: dict[str, Any] = {"chains": 8, "draws": 3, "warmup": 4, "progress": False}
SCENARIOS: list[Callable[[], None]] = []


def scenario(steps: Callable[[], None]) -> Callable[[], None]:
    SCENARIOS.append(steps)
    return steps


def data(dimension: int = 2, rows: int = 64) -> Tensor:
    """On the CPU, as users have them."""
    return torch.randn(rows, dimension)


def there(x: Tensor) -> Tensor:
    assert x.device.type == DEVICE
    return x


def net(dimension: int = 2, levels: int = 4, **settings: Any) -> ep.MLPEnergy:
    return ep.MLPEnergy((dimension,), hidden=4, depth=1, frequencies=2, levels=levels, **settings)


def starter(classes: int = 0, **settings: Any) -> ep.MLPInitializer:
    return ep.MLPInitializer((2,), hidden=4, depth=1, frequencies=2, levels=4, classes=classes, **settings)


def recovery(dimension: int = 2, *, initializer: nn.Module | None = None, **settings: Any) -> ep.RecoveryEBM:
    """On the CPU, as a network was made."""
    model = ep.RecoveryEBM(net(dimension, **settings), ep.NoiseSchedule.cosine(4), initializer=initializer)
    model.standardize(data(dimension))
    model.step_sizes.fill_(0.5)
    return model


def on_device(dimension: int = 2, **settings: Any) -> ep.RecoveryEBM:
    return recovery(dimension, **settings).to(DEVICE)


def joint(dimension: int = 2) -> ep.JointEBM:
    model = ep.JointEBM(net(dimension, 3), ep.NoiseSchedule.sqrtcumlinear(2), slots=16)
    model.standardize(data(dimension))
    return model.to(DEVICE)


def fit(model: Any, x: Tensor, objective: Any = None, *, device: str = DEVICE, **more: Any) -> ep.History:
    options = ep.TrainingOptions(steps=2, batch_size=16, evaluate_every=1)
    return ep.fit(model, x, objective, options=options, device=device, progress=False, **more)


# --- Training ---


@scenario
def a_model_is_fit_sampled_and_normalized() -> None:
    model = recovery()
    fit(model, data())
    there(model.loc)
    there(model.sample((5,), steps=2, denoise=True, micro_batch=2))
    there(model.log_prob(data()))
    assert np.isfinite(float(model.log_normalizer()))
    model.marginal(1).log_prob(data().to(DEVICE)).sum().backward()


@scenario
def labels_go_along() -> None:
    model = recovery(classes=3)
    fit(model, data(), labels=torch.randint(3, (64,)))
    there(model.given(1, guidance=1.0).sample((4,), steps=2))
    there(model.given(torch.tensor([0, 1, 2])).sample((3,), steps=2, micro_batch=2))


@scenario
def training_continues_on_another_device() -> None:
    x = data()
    with tempfile.TemporaryDirectory() as folder:
        for device in (DEVICE, DEVICE, "cpu"):
            fit(joint(), x, device=device, checkpoint=Path(folder) / "run")


@scenario
def an_initializer_learns_with_its_model() -> None:
    for settings in ({}, {"extra_chain_fraction": 0.5}, {"from_initializer": True}):
        model = recovery(classes=2)
        objective = ep.CooperativeRecovery(initializer=starter(2, learn_scale=True), **settings)
        fit(model, data(), objective, labels=torch.randint(2, (64,)))
    there(model.sample((4,), steps=2))
    there(model.guide(data(), 1).sample())
    ep.evaluation.initializer_report(model, data(), steps=2)


@scenario
def a_joint_model_is_fit_and_sampled() -> None:
    model = joint()
    fit(model, data())
    there(model.sample((4,), visits=1, max_sweeps=5))
    there(model.level_probabilities(data()))
    there(model.draw_level(data()))
    model.forward(3)
    ep.evaluation.joint_scores(model, data())


@scenario
def every_objective_of_one_energy_trains() -> None:
    for objective in (
        ep.PersistentLikelihood(slots=16, num_steps=2),
        ep.objectives.ContrastiveDivergence(steps=1),
        ep.objectives.ExactScoreMatching(),
        ep.objectives.SlicedScoreMatching(),
        ep.objectives.DenoisingScoreMatching(0.3),
        ep.objectives.NoiseContrastive(),
        ep.objectives.ExactLikelihood(points=16, half_width=8.0),
    ):
        model = ep.EBM(net(levels=1))
        fit(model, data(), objective)
    there(model.sample((4,), steps=4))


@scenario
def steps_are_tuned() -> None:
    model = recovery()
    fit(model, data(), ep.objectives.LevelScoreMatching())
    for kernel in (None, ep.HMC(steps=2), ep.kernels.MALT(steps=2), ep.NUTS(max_depth=2)):
        model.tune(data(), *([] if kernel is None else [kernel]), steps=4)


@scenario
def one_energy_at_many_noise_levels_is_annealed() -> None:
    model = ep.MultiscaleEBM(net(levels=1), torch.linspace(2.0, 0.1, 4))
    fit(model, data())
    schedule, x, seen = ep.levels.TemperatureSchedule(4.0, 2, 2, 2), data(rows=3), torch.tensor([True, False])
    there(model.sample((3,), schedule=schedule))
    for rows, mask in ((x, seen), (x, seen.to(DEVICE)), (x.to(DEVICE), seen)):
        there(model.inpaint(rows, mask, schedule=schedule))
    ep.levels.anneal_temperature(model.potential(), x.to(DEVICE), schedule, seen=seen)


@scenario
def image_networks_are_fit() -> None:
    for settings in ({}, {"spectral_norm": True, "output_scale": [1.0] * 4}):
        images: dict[str, Any] = {"width": 2, "levels": 4, "classes": 2}
        energy = ep.ConvEnergy((1, 8, 8), **images, **settings)
        initializer = ep.UNetInitializer((1, 8, 8), **images, learn_scale=True)
        model = ep.RecoveryEBM(energy, ep.NoiseSchedule.cosine(4), initializer=initializer)
        fit(model, torch.randn(16, 1, 8, 8), ep.CooperativeRecovery(steps=1), labels=torch.randint(2, (16,)))
        there(model.given(1).sample((2,), steps=1))


@scenario
def objectives_take_rows_of_the_cpu() -> None:
    model = on_device()
    loss_of(ep.RecoveryLikelihood(), model, data())
    measure_of(ep.RecoveryLikelihood(), model, data())
    single = ep.EBM(net(levels=1)).to(DEVICE)
    objective = ep.PersistentLikelihood(slots=16, num_steps=2)
    objective.prepare(single)
    loss_of(objective, single, data())


@scenario
def double_precision_stays() -> None:
    model = recovery().double()
    fit(model, data().double())
    ep.evaluation.energy_scores(model, data().double())
    ep.sample_chains(ep.ChEES(0.1), model.potential(0), **SHORT)


# --- Normalizers ---


@scenario
def a_normalizer_takes_samples_of_the_cpu() -> None:
    model, method = on_device(3), ep.normalizing.BAR(particles=32)
    model.log_normalizer(method=method).trace.forward.numpy()
    model.log_normalizer(method=method, samples=data(3))
    model.log_normalizer(method=method, samples=lambda count: data(3, count))


@scenario
def a_potential_alone_is_normalized() -> None:
    model = on_device(3)
    ep.log_normalizer(model.potential(0), method=ep.normalizing.SMC(particles=32))
    ep.log_normalizer(model.potential(0), method=ep.normalizing.AIS(particles=32))
    ep.log_normalizer(model.potential(0), method=ep.normalizing.BAR(particles=32), samples=data(3))


@scenario
def a_process_has_a_likelihood() -> None:
    model = on_device()
    recoveries = model.recovery(data(rows=4), 2)
    recovery_normalizers(recoveries, particles=4, draws=recoveries.sample((4,)).cpu())
    ep.normalizing.process_log_likelihood(model, data(rows=6), particles=4, steps=2)


@scenario
def binary_states_are_enumerated_and_annealed() -> None:
    class Field(nn.Module):
        event_shape = torch.Size((4,))

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    field = Field().to(DEVICE)
    ep.integration.enumerated(field)
    ep.log_normalizer(field, method=ep.normalizing.SMC(particles=32, kernel=ep.kernels.BinaryGibbs()))


@scenario
def densities_are_compared() -> None:
    model = on_device()
    z, p = model.log_normalizer(), model.marginal()
    ep.evaluation.mean_log_likelihood(p, data(), z)
    ep.evaluation.entropy(p, data(), z)
    ep.evaluation.kl_by_samples(p, p, data(), z, z)
    grid = ep.Grid((-9.0,) * 2, (9.0,) * 2, (32,) * 2)
    quadrature(p.potential, grid)
    expectation(lambda x: x, p.potential, grid)
    kl_divergence(model.log_prob, model.marginal(1).log_prob, grid)


@scenario
def the_other_models_are_normalized() -> None:
    model, single = joint(), ep.EBM(net(3, levels=1)).to(DEVICE)
    model.log_normalizer(2)
    there(model.log_prob(data()))
    single.log_normalizer(method=ep.normalizing.ReverseAIS(particles=32), samples=lambda count: data(3, count))


# --- Queries ---


@scenario
def scores_come_back_to_where_the_rows_lie() -> None:
    model, x = on_device(classes=2), data()
    for scored in (model, model.marginal(), model.marginal().potential, model.given(1)):
        assert ep.evaluation.energy_scores(scored, x).device.type == "cpu"
        ep.evaluation.gradient_scores(scored, x)
    ep.evaluation.energy_scores(model.given(torch.randint(2, (64,))), x, batch=7)
    ep.evaluation.typicality_scores(model, x, data())
    ep.evaluation.ratio_scores(model, x, model.marginal(1))
    scores = there(ep.evaluation.energy_scores(model, x.to(DEVICE)))
    ep.evaluation.detection_report(scores, scores + 1.0, repeats=40)


@scenario
def long_runs_begin_from_rows_of_the_cpu() -> None:
    short: dict[str, Any] = {"steps": 20, "kept": 10, "chains": 4, "progress": False}
    ep.long_run(on_device(), data(), **short)
    ep.long_run(ep.EBM(net(levels=1)).to(DEVICE), data(), assign=lambda x: (x[..., 0] > 0).long(), modes=2, **short)


@scenario
def samples_of_two_devices_are_compared() -> None:
    x = data().to(DEVICE)
    energy_distance_test(data(), x, 10)
    ep.metrics.frechet_distance(data(), x)
    ep.metrics.kernel_distance(x, data())
    ep.metrics.nearest_neighbours(x, x, 2)
    ep.metrics.memorized(x, x, data(rows=100).to(DEVICE))


@scenario
def methods_take_rows_of_the_cpu() -> None:
    model = on_device()
    there(model.to_unit(data()))
    there(model.diffuse(data(), 1))
    there(model.recovery(data(rows=4), torch.tensor([0, 1, 2, 3])).sample())


@scenario
def fitted_bases_stay() -> None:
    x = data(3).to(DEVICE)
    for base, rows in (
        (ep.potentials.GaussianBase, x),
        (ep.potentials.MixtureBase, x),
        (ep.potentials.BernoulliBase, (x > 0).float()),
    ):
        fitted = base.fitted(rows, torch.Size((3,)))
        there(fitted(fitted.sample(5)))
    half = ep.potentials.GaussianBase(torch.zeros(3).to(DEVICE), torch.tensor(2.0))
    there(half(half.sample(3)))


@scenario
def toys_follow_their_points() -> None:
    for make in ep.toys.TWO_DIMENSIONAL.values():
        toy = make()
        x = toy.sample((8,)).to(DEVICE)
        there(toy.log_prob(x))
        there(toy.diffused(0.8, 0.6).log_prob(x))
        toy.modes(x)
        toy.on_support(x)


@scenario
def results_are_drawn_and_exported() -> None:
    model = on_device()
    z = ep.log_normalizer(model.potential(0), method=ep.normalizing.SMC(particles=32))
    z.to_arviz()
    plots.log_weight_histogram(z, title="")
    plots.temperature_plot(z, title="")
    plots.scatter_panels({"draws": model.sample((9,), steps=1)}, title="")
    plots.level_plot(level_acceptance(model, samples=4, steps=1).acceptance, title="")
    plots.score_histograms({"scores": ep.evaluation.energy_scores(model, data().to(DEVICE))})
    empty = (np.empty(0),) * 2
    FittedTable(model, ("a", "b"), np.zeros(2), np.ones(2), empty, np.eye(2), np.eye(2), {}).sample(5)


# --- Chains ---


@scenario
def every_kernel_runs() -> None:
    model = on_device()
    for kernel in (
        ep.Langevin(0.05),
        ep.MALA(0.1),
        ep.HMC(0.1, steps=2),
        ep.ChEES(0.1),
        ep.NUTS(0.1, max_depth=2),
        ep.kernels.MALT(0.1, steps=2),
        ep.kernels.Cycle(ep.MALA(0.1), ep.HMC(0.1, steps=2)),
        ep.kernels.Mixture(ep.MALA(0.1), ep.HMC(0.1, steps=2)),
        ep.kernels.Block(ep.MALA(0.1), torch.tensor([True, False])),
        ep.kernels.Tempered(ep.MALA(0.1), (1.0, 0.5)),
        ep.kernels.Tempered(
            ep.MALA(0.1), (1.0, 0.0), ep.potentials.GaussianBase(torch.zeros(2).to(DEVICE), torch.ones(2).to(DEVICE))
        ),
    ):
        chains = ep.sample_chains(kernel, model.potential(0), keep_warmup=True, **SHORT)
    chains.to_arviz()
    chains.flat(3)


@scenario
def every_kind_of_target_is_sampled() -> None:
    model, kernel, box = on_device(), ep.MALA(0.1), constraints.interval(-3.0, 3.0)
    energy = model.potential(0)
    for target in (
        ep.potentials.GaussianBase(torch.zeros(2).to(DEVICE), torch.ones(2).to(DEVICE)),
        ep.EnergyDistribution(energy),
        ep.EnergyDistribution(energy, support=box),
        ep.potentials.Conditioned(energy, torch.zeros(2), torch.tensor([True, False])),
        model.recovery(data(rows=5), 2),
    ):
        ep.sample_chains(kernel, target, **SHORT)
    for support in (None, box):
        own = ep.EnergyDistribution(energy, sampler=ep.sampling.MarkovSampler(kernel, 3), support=support)
        there(own.energy(there(own.sample((4,)))))


@scenario
def chains_begin_from_rows_of_the_cpu_and_go_on() -> None:
    model = on_device()
    with tempfile.TemporaryDirectory() as folder:
        options = {**SHORT, "file": Path(folder) / "draws.npy"}
        chains = ep.sample_chains(ep.MALA(0.1), model.marginal(), init=data(rows=8), **options)
        ep.sample_chains(chains.kernel, model.marginal(), init=chains.draws[:, -1], **{**SHORT, "warmup": 0})


@scenario
def settings_of_kernels_may_lie_on_the_cpu() -> None:
    target, x, each = on_device().potential(0), data(rows=8).to(DEVICE), torch.full((8,), 0.1)
    mass, moved = torch.ones(2), each.to(DEVICE)
    low_rank = ep.kernels.LowRankMass(torch.ones(2), torch.eye(2)[:, :1], torch.ones(1) * 2.0)
    for kernel in (
        ep.Langevin(each),
        ep.MALA(each),
        ep.HMC(each, steps=2, inverse_mass=mass),
        ep.NUTS(each, max_depth=2, inverse_mass=low_rank),
        ep.kernels.MALT(moved, steps=2, friction=each),
        ep.kernels.MALT(each, steps=2, friction=each).resized(moved, moved, moved),
    ):
        ep.sampling.run_chain(kernel, target, x, 1)
    for kernel in (
        ep.HMC(0.1, steps=2, inverse_mass=low_rank),
        ep.ChEES(0.1, inverse_mass=mass),
        ep.NUTS(0.1, max_depth=2, inverse_mass=mass),
        ep.kernels.MALT(0.1, steps=2, friction=each),
    ):
        ep.adapt(kernel, target, x, 25)
    ep.adapt(ep.HMC(0.1, steps=2), target, x, 25, groups=torch.arange(8) % 2)


# --- Models made of models ---


@scenario
def parts_may_be_composed_first_and_moved_then() -> None:
    labelled = recovery(classes=2)
    whole = ep.product(labelled.given(1), recovery()).to(DEVICE)
    there(whole.sample((3,), steps=2))
    whole.log_normalizer()


@scenario
def parts_may_be_moved_first_and_composed_then() -> None:
    a, b, one_seen = on_device(classes=2), on_device(), torch.tensor([True, False])
    for whole in (
        ep.product(a.given(1, guidance=0.5), b, weights=[1.0, 0.5]),
        ep.mixture(a.given(0), b),
        ep.measured(a.given(1), ep.LinearMeasurement(torch.eye(2)[:1], torch.ones(1), 0.1)),
        ep.measured(b, ep.LinearMeasurement.mask(torch.zeros(2), one_seen, 0.1)),
    ):
        there(whole.sample((3,), steps=2))
        whole.log_normalizer()


@scenario
def views_and_originals_move_together() -> None:
    model = recovery(initializer=starter(2), classes=2)
    rows = model.given(torch.tensor([0, 1, 1]))
    guided = model.given(1, guidance=0.5).to(DEVICE)
    for view in (guided, model, rows):
        there(view.sample((3,), steps=2))
    there(rows.sample((3,), steps=2, micro_batch=2))


@scenario
def parts_are_gathered_from_two_devices() -> None:
    plan = ep.NoiseSchedule.cosine(4)
    moved = ep.NoiseSchedule(plan.alpha_bar.to(DEVICE), plan.sigma_bar.to(DEVICE))
    model = ep.RecoveryEBM(net().to(DEVICE), moved, initializer=starter())
    fit(model, data())
    there(model.sample((3,), steps=2))
    ep.product(model, on_device())


# --- Pyro ---


@scenario
def pyro_trains_it() -> None:
    model = on_device(initializer=starter())
    for guide in (lambda rows: None, ep.objectives.CooperativeGuide(model)):
        pyro.clear_param_store()
        SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(data())


@scenario
def pyro_models_with_priors_of_plain_numbers_run() -> None:
    y, inputs = torch.randn(8).to(DEVICE), data(rows=8).to(DEVICE)

    def model() -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2).to(DEVICE), 1.0).to_event(1))
        shift, scale = pyro.sample("shift", dist.Normal(0.0, 1.0)), pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("rows", 8):
            pyro.sample("y", dist.Normal(inputs @ weights + shift, scale), obs=y)

    chains = ep.sample_chains(ep.HMC(0.05, steps=2), model, **SHORT)
    assert chains.potential.vectorized
    chains.to_arviz(log_likelihood=True)
    init = {"weights": torch.zeros(8, 2), "shift": torch.zeros(8), "scale": torch.ones(8)}
    ep.sample_chains(ep.HMC(0.05, steps=2), model, init=init, **SHORT)


@scenario
def an_energy_is_a_site_of_a_pyro_model() -> None:
    energy, y = on_device().marginal().unnormalized(), torch.randn(2).to(DEVICE)

    def model() -> None:
        x, shift = pyro.sample("x", energy), pyro.sample("shift", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x + shift, 0.5).to_event(1), obs=y)

    short: dict[str, Any] = {"num_samples": 2, "warmup_steps": 2, "disable_progbar": True}
    init = {"x": torch.zeros(2, 2), "shift": torch.zeros(2)}
    MCMC(ep.PyroKernel(ep.MALA(0.01), model, chains=2), initial_params=init, **short).run()
    alone = ep.PyroKernel(ep.MALA(0.01), on_device().marginal(), chains=2)
    MCMC(alone, initial_params={"x": torch.zeros(2, 2)}, **short).run()


@pytest.mark.parametrize("steps", SCENARIOS, ids=lambda steps: steps.__name__)
def test_everything_follows_the_model(steps: Callable[[], None]) -> None:
    with pretend_device():
        steps()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_is_fit_sampled_and_normalized_on_a_real_gpu() -> None:
    a_model_is_fit_sampled_and_normalized()


# --- The pretended device itself ---

MIXES: dict[str, Callable[[Tensor], object]] = {
    "a CPU arange": lambda x: x + torch.arange(3.0),
    "a CPU row": lambda x: torch.cat([x, torch.zeros(1)]),
    "CPU weights": lambda x: nn.functional.linear(x, torch.ones(2, 3)),
    "an index into a CPU tensor": lambda x: torch.zeros(3)[x.long()],
    "a value into a CPU tensor": lambda x: torch.tensor(0.0).add_(x[0]),
    "a scalar on a CPU vector": lambda x: torch.ones(3) * x[0],
    "a mix under vmap": lambda x: torch.vmap(lambda row: row + torch.ones(2))(x),
    "numpy": lambda x: np.asarray(x),
    "the CPU's generator": lambda x: torch.randn(2, generator=torch.Generator(), device=x.device),
}
LEGAL: dict[str, Callable[[Tensor], Tensor]] = {
    "a CPU scalar": lambda x: torch.tensor(2.0) * x,
    "a CPU scalar where another is not chosen": lambda x: torch.where(x > 0.0, x, torch.tensor(1.0)),
    "a CPU scalar written": lambda x: x.index_put_((torch.tensor([0]),), torch.tensor(1.0)),
    "a CPU index": lambda x: x[torch.tensor([2, 0])],
    "a CPU mask": lambda x: x[torch.tensor([True, False, True])],
    "a CPU tensor copied": lambda x: x.copy_(torch.arange(3.0)),
    "a CPU tensor moved": lambda x: x + torch.arange(3.0).to(x),
    "a factory like it": lambda x: x.new_tensor([1.0]) + torch.randn_like(x) + torch.zeros(3, device=x.device),
    "moved and back": lambda x: torch.as_tensor(x.cpu().numpy(), device=x.device),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_mix_is_refused(mix: Callable[[Tensor], object]) -> None:
    with pretend_device(), pytest.raises(MixedDevices):
        mix(torch.zeros(3, device=DEVICE))
    mix(torch.zeros(3))  # nothing else is wrong with it


@pytest.mark.parametrize("use", LEGAL.values(), ids=LEGAL)
def test_what_torch_allows_passes(use: Callable[[Tensor], Tensor]) -> None:
    with pretend_device():
        there(use(torch.zeros(3, device=DEVICE)))


def test_a_gradient_that_mixes_is_refused() -> None:
    """There the device is seen at operations alone."""

    class Mixing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * torch.ones(3)

    with pretend_device():
        x = torch.zeros(3, device=DEVICE).requires_grad_()
        value = Mixing.apply(x).sum()
        with pytest.raises(MixedDevices):
            value.backward()

"""Normalizers, scores and chains follow a model to a GPU that is pretended, wherever rows and settings lie.

Only devices are judged here; runs are as short as can be.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import energyppl as ep
from energyppl import plots
from energyppl.inference.evaluation.chains import level_acceptance
from energyppl.inference.normalizing import levels, mode_search
from energyppl.inference.normalizing.recovery import recovery_normalizers
from energyppl.integration.quadrature import expectation, kl_divergence, quadrature
from energyppl.metrics.two_sample import energy_distance_test
from energyppl.potentials import mixture_fit
from tests.support.devices import DEVICE, SHORT, data, joint, net, on_device, there
from tests.support.pretend_device import pretend_device

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # chains this short earn every one


@pytest.fixture(autouse=True)
def _short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search even less than other contract tests: every operation is checked, and so slow."""
    for module, name, small in (
        (levels, "_RELAXED", 2),
        (mode_search, "_FIRST_STEPS", 8),
        (mode_search, "_STEPS", 8),
        (mode_search, "_MOVES", 6),
        (mixture_fit, "_CANDIDATES", (1, 2)),
        (mixture_fit, "_ITERATIONS", 3),
    ):
        monkeypatch.setattr(module, name, small)


# --- Normalizers ---


@pretend_device()
def test_a_normalizer_takes_samples_of_the_cpu() -> None:
    model, method = on_device(3), ep.normalizing.BAR(particles=32, temperatures=(0.0, 0.5, 1.0))
    model.log_normalizer(method=method).trace.forward.numpy()
    model.log_normalizer(method=method, samples=data(3))
    backward = ep.normalizing.ReverseAIS(particles=32, temperatures=(0.0, 0.5, 1.0))
    model.log_normalizer(method=backward, samples=lambda count: data(3, count))


@pretend_device()
def test_a_potential_alone_is_normalized() -> None:
    """A base is found by a search for modes, fitted to samples, or given."""
    potential, base = (
        on_device(3).potential(0),
        ep.potentials.GaussianBase(torch.zeros(3).to(DEVICE), torch.tensor(2.0)),
    )
    ep.log_normalizer(potential, method=ep.normalizing.SMC(particles=32, temperatures=(0.0, 0.5, 1.0)))
    ep.log_normalizer(potential, method=ep.normalizing.AIS(particles=32, temperatures=4), base=base)
    ep.log_normalizer(potential, method=ep.normalizing.BAR(particles=32), samples=data(3))


@pretend_device()
def test_a_process_has_a_likelihood() -> None:
    model = on_device()
    recoveries = model.recovery(data(rows=4), 2)
    recovery_normalizers(recoveries, particles=4, draws=recoveries.sample((4,)).cpu())
    ep.normalizing.process_log_likelihood(model, data(rows=6), particles=4, steps=2)


@pretend_device()
def test_binary_states_are_enumerated_and_annealed() -> None:
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


@pretend_device()
def test_densities_are_compared() -> None:
    model = on_device()
    z, p = model.log_normalizer(), model.marginal()
    ep.evaluation.mean_log_likelihood(p, data(), z)
    ep.evaluation.entropy(p, data(), z)
    ep.evaluation.kl_by_samples(p, p, data(), z, z)
    grid = ep.Grid((-9.0,) * 2, (9.0,) * 2, (32,) * 2)
    quadrature(p.potential, grid)
    expectation(lambda x: x, p.potential, grid)
    kl_divergence(model.log_prob, model.marginal(1).log_prob, grid)


@pretend_device()
def test_the_other_models_are_normalized() -> None:
    model, single = joint(), ep.EBM(net(3, levels=1)).to(DEVICE)
    model.log_normalizer(2)
    there(model.log_prob(data()))
    single.log_normalizer(method=ep.normalizing.ReverseAIS(particles=32), samples=lambda count: data(3, count))


# --- Queries ---


@pretend_device()
def test_scores_come_back_to_where_the_rows_lie() -> None:
    model, x = on_device(classes=2), data()
    for scored in (model, model.marginal(), model.marginal().potential, model.given(1)):
        assert ep.evaluation.energy_scores(scored, x).device.type == "cpu"
        ep.evaluation.gradient_scores(scored, x)
    ep.evaluation.energy_scores(model.given(torch.randint(2, (64,))), x, batch=7)
    ep.evaluation.typicality_scores(model, x, data())
    ep.evaluation.ratio_scores(model, x, model.marginal(1))
    scores = there(ep.evaluation.energy_scores(model, x.to(DEVICE)))
    ep.evaluation.detection_report(scores, scores + 1.0, repeats=40)


@pretend_device()
def test_long_runs_begin_from_rows_of_the_cpu() -> None:
    short: dict[str, Any] = {"steps": 20, "kept": 10, "chains": 4, "progress": False}
    ep.long_run(on_device(), data(), **short)
    ep.long_run(ep.EBM(net(levels=1)).to(DEVICE), data(), assign=lambda x: (x[..., 0] > 0).long(), modes=2, **short)


@pretend_device()
def test_samples_of_two_devices_are_compared() -> None:
    x = data().to(DEVICE)
    energy_distance_test(data(), x, 10)
    ep.metrics.frechet_distance(data(), x)
    ep.metrics.kernel_distance(x, data())
    ep.metrics.nearest_neighbours(x, x, 2)
    ep.metrics.memorized(x, x, data(rows=100).to(DEVICE))


@pretend_device()
def test_methods_take_rows_of_the_cpu() -> None:
    model = on_device()
    there(model.to_unit(data()))
    there(model.diffuse(data(), 1))
    there(model.recovery(data(rows=4), torch.tensor([0, 1, 2, 3])).sample())


@pretend_device()
def test_fitted_bases_stay() -> None:
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


@pretend_device()
def test_toys_follow_their_points() -> None:
    for make in ep.toys.TWO_DIMENSIONAL.values():
        toy = make()
        x = toy.sample((8,)).to(DEVICE)
        there(toy.log_prob(x))
        there(toy.diffused(0.8, 0.6).log_prob(x))
        toy.modes(x)
        toy.on_support(x)


@pretend_device()
def test_results_are_drawn_and_exported() -> None:
    model = on_device()
    base = ep.potentials.GaussianBase(torch.zeros(2).to(DEVICE), torch.tensor(2.0))
    z = ep.log_normalizer(model.potential(0), method=ep.normalizing.SMC(particles=32, temperatures=4), base=base)
    z.to_arviz()
    plots.log_weight_histogram(z, title="")
    plots.temperature_plot(z, title="")
    plots.scatter_panels({"draws": model.sample((9,), steps=1)}, title="")
    plots.level_plot(level_acceptance(model, samples=4, steps=1).acceptance, title="")
    plots.score_histograms({"scores": ep.evaluation.energy_scores(model, data().to(DEVICE))})
    table = ep.data.table_from_array(np.random.default_rng(0).normal(size=(20, 2)))
    fitted = ep.tables.TableModel(model, ep.data.TableTransform.fit(table), table, table.values)
    fitted.sample(5)
    fitted.encode(table.values)


# --- Chains ---


@pretend_device()
def test_every_kernel_runs() -> None:
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


@pretend_device()
def test_every_kind_of_target_is_sampled() -> None:
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


@pretend_device()
def test_chains_begin_from_rows_of_the_cpu_and_go_on() -> None:
    model = on_device()
    with tempfile.TemporaryDirectory() as folder:
        options = {**SHORT, "file": Path(folder) / "draws.npy"}
        chains = ep.sample_chains(ep.MALA(0.1), model.marginal(), init=data(rows=8), **options)
        ep.sample_chains(chains.kernel, model.marginal(), init=chains.draws[:, -1], **{**SHORT, "warmup": 0})


@pretend_device()
def test_settings_of_kernels_may_lie_on_the_cpu() -> None:
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

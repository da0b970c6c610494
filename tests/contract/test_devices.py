"""A model is fit, composed and used in Pyro on a GPU that is pretended, wherever its data lie.

Only devices are judged here; runs are as short as can be.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, SVI, Trace_ELBO

import energyppl as ep
from tests.support.devices import DEVICE, SHORT, data, fit, joint, net, on_device, recovery, starter, there
from tests.support.objectives import OF_ONE_ENERGY, loss_of, measure_of
from tests.support.pretend_device import pretend_device

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # chains this short earn every one


# --- Training ---


def everyday_use() -> None:
    model = recovery()
    fit(model, data())
    there(model.loc)
    there(model.sample((5,), steps=2, denoise=True, micro_batch=2))
    there(model.log_prob(data()))
    assert np.isfinite(float(model.log_normalizer()))
    model.marginal(1).log_prob(data().to(DEVICE)).sum().backward()


@pretend_device()
def test_a_model_is_fit_sampled_and_normalized() -> None:
    everyday_use()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_is_fit_sampled_and_normalized_on_a_real_gpu() -> None:
    everyday_use()


@pretend_device()
def test_labels_go_along() -> None:
    model = recovery(classes=3)
    fit(model, data(), labels=torch.randint(3, (64,)))
    there(model.given(1, guidance=1.0).sample((4,), steps=2))
    there(model.given(torch.tensor([0, 1, 2])).sample((3,), steps=2, micro_batch=2))


@pretend_device()
def test_training_continues_on_another_device() -> None:
    x = data()
    with tempfile.TemporaryDirectory() as folder:
        for device in (DEVICE, DEVICE, "cpu"):
            fit(joint(), x, device=device, checkpoint=Path(folder) / "run")


@pretend_device()
def test_an_initializer_learns_with_its_model() -> None:
    for settings in ({}, {"extra_chain_fraction": 0.5}, {"from_initializer": True}):
        model = recovery(classes=2, initializer=starter(2, learn_scale=True))
        objective = ep.CooperativeRecovery(**settings)
        fit(model, data(), objective, labels=torch.randint(2, (64,)))
    there(model.sample((4,), steps=2))
    there(model.guide(data(), 1).sample())
    ep.evaluation.initializer_report(model, data(), steps=2)


@pretend_device()
def test_a_joint_model_is_fit_and_sampled() -> None:
    model = joint()
    fit(model, data())
    there(model.sample((4,), visits=1, max_sweeps=5))
    there(model.level_probabilities(data()))
    there(model.draw_level(data()))
    model.forward(3)
    ep.evaluation.joint_scores(model, data())


@pretend_device()
def test_every_objective_of_one_energy_trains() -> None:
    own = ep.objectives.NoiseContrastive  # given a distribution, it takes it as it lies
    others = [objective for objective in OF_ONE_ENERGY if not (isinstance(objective, own) and objective.base)]
    for objective in (ep.PersistentLikelihood(slots=16, num_steps=2), *others):
        model = ep.EBM(net(levels=1))
        fit(model, data(), objective)
    there(model.sample((4,), steps=4))


@pretend_device()
def test_steps_are_tuned() -> None:
    model = recovery()
    fit(model, data(), ep.objectives.LevelScoreMatching())
    for kernel in (None, ep.HMC(steps=2), ep.kernels.MALT(steps=2), ep.NUTS(max_depth=2)):
        model.tune(data(), *([] if kernel is None else [kernel]), steps=4)


@pretend_device()
def test_one_energy_at_many_noise_levels_is_annealed() -> None:
    model = ep.MultiscaleEBM(net(levels=1), torch.linspace(2.0, 0.1, 4))
    fit(model, data())
    schedule, x, seen = ep.levels.TemperatureSchedule(4.0, 2, 2, 2), data(rows=3), torch.tensor([True, False])
    there(model.sample((3,), schedule=schedule))
    for rows, mask in ((x, seen), (x, seen.to(DEVICE)), (x.to(DEVICE), seen)):
        there(model.inpaint(rows, mask, schedule=schedule))
    ep.levels.anneal_temperature(model.potential(), x.to(DEVICE), schedule, seen=seen)


@pretend_device()
def test_image_networks_are_fit() -> None:
    for settings in ({}, {"spectral_norm": True, "output_scale": [1.0] * 4}):
        images: dict[str, Any] = {"width": 2, "levels": 4, "classes": 2}
        energy = ep.ConvEnergy((1, 8, 8), **images, **settings)
        initializer = ep.UNetInitializer((1, 8, 8), **images, learn_scale=True)
        model = ep.RecoveryEBM(energy, ep.NoiseSchedule.cosine(4), initializer=initializer)
        fit(model, torch.randn(16, 1, 8, 8), ep.CooperativeRecovery(steps=1), labels=torch.randint(2, (16,)))
        there(model.given(1).sample((2,), steps=1))


@pretend_device()
def test_objectives_take_rows_of_the_cpu() -> None:
    model = on_device()
    loss_of(ep.RecoveryLikelihood(), model, data())
    measure_of(ep.RecoveryLikelihood(), model, data())
    single = ep.EBM(net(levels=1)).to(DEVICE)
    objective = ep.PersistentLikelihood(slots=16, num_steps=2)
    loss_of(objective, single, data())


@pretend_device()
def test_double_precision_stays() -> None:
    model = recovery().double()
    fit(model, data().double())
    ep.evaluation.energy_scores(model, data().double())
    ep.sample_chains(ep.ChEES(0.1), model.potential(0), **SHORT)


# --- Models made of models ---


@pretend_device()
def test_parts_may_be_composed_first_and_moved_then() -> None:
    labelled = recovery(classes=2)
    whole = ep.product(labelled.given(1), recovery()).to(DEVICE)
    there(whole.sample((3,), steps=2))
    whole.log_normalizer()


@pretend_device()
def test_parts_may_be_moved_first_and_composed_then() -> None:
    a, b, one_seen = on_device(classes=2), on_device(), torch.tensor([True, False])
    for whole in (
        ep.product(a.given(1, guidance=0.5), b, weights=[1.0, 0.5]),
        ep.mixture(a.given(0), b),
        ep.measured(a.given(1), ep.LinearMeasurement(torch.eye(2)[:1], torch.ones(1), 0.1)),
        ep.measured(b, ep.LinearMeasurement.mask(torch.zeros(2), one_seen, 0.1)),
    ):
        there(whole.sample((3,), steps=2))
        whole.log_normalizer()


@pretend_device()
def test_views_and_originals_move_together() -> None:
    model = recovery(initializer=starter(2), classes=2)
    rows = model.given(torch.tensor([0, 1, 1]))
    guided = model.given(1, guidance=0.5).to(DEVICE)
    for view in (guided, model, rows):
        there(view.sample((3,), steps=2))
    there(rows.sample((3,), steps=2, micro_batch=2))


@pretend_device()
def test_parts_are_gathered_from_two_devices() -> None:
    plan = ep.NoiseSchedule.cosine(4)
    moved = ep.NoiseSchedule(plan.alpha_bar.to(DEVICE), plan.sigma_bar.to(DEVICE))
    model = ep.RecoveryEBM(net().to(DEVICE), moved, initializer=starter())
    fit(model, data())
    there(model.sample((3,), steps=2))
    ep.product(model, on_device())


# --- Pyro ---


@pretend_device()
def test_pyro_trains_it() -> None:
    model = on_device(initializer=starter())
    for guide in (lambda rows: None, ep.objectives.CooperativeGuide(model)):
        pyro.clear_param_store()
        SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(data())


@pretend_device()
def test_pyro_models_with_priors_of_plain_numbers_run() -> None:
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


@pretend_device()
def test_an_energy_is_a_site_of_a_pyro_model() -> None:
    energy, y = on_device().marginal().unnormalized(), torch.randn(2).to(DEVICE)

    def model() -> None:
        x, shift = pyro.sample("x", energy), pyro.sample("shift", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x + shift, 0.5).to_event(1), obs=y)

    short: dict[str, Any] = {"num_samples": 2, "warmup_steps": 2, "disable_progbar": True}
    init = {"x": torch.zeros(2, 2), "shift": torch.zeros(2)}
    MCMC(ep.PyroKernel(ep.MALA(0.01), model, chains=2), initial_params=init, **short).run()
    alone = ep.PyroKernel(ep.MALA(0.01), on_device().marginal(), chains=2)
    MCMC(alone, initial_params={"x": torch.zeros(2, 2)}, **short).run()

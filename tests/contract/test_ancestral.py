"""Sampling by the model's own denoiser: shapes, costs, options."""

import copy
from typing import Any

import pytest
import torch

import energyppl as ep
from energyppl.models import UNetEnergy, UNetInitializer

SHAPE = (1, 6, 6)


def model(**options: Any) -> ep.RecoveryEBM:
    torch.manual_seed(0)
    ebm = ep.RecoveryEBM(
        UNetEnergy(SHAPE, width=4, classes=2), ep.NoiseSchedule.cosine(5, log_snr_max=4.0, log_snr_min=-6.0), **options
    )
    ebm.standardize(torch.rand(50, *SHAPE), isotropic=True)
    return ebm


def test_one_gradient_a_level_by_default_and_moves_if_asked_for() -> None:
    ebm = model()
    plain, finished = ebm.generate((3,)), ebm.generate((3,), denoise=True)
    assert (plain.evaluations, finished.evaluations) == (4, 5), "the top level begins at white noise"
    assert [stage.shape for stage in plain.path] == [(3, *SHAPE)] * 6
    assert not plain.acceptance.any()
    moved = ebm.generate((3,), steps=2)
    assert moved.evaluations == 4 + 5 * 3
    assert bool((moved.acceptance > 0).all())
    assert len(ebm.generate((3,), level=2).path) == 4


def test_clean_images_lie_in_the_range_of_the_data() -> None:
    ebm = model()
    assert 0.0 <= float(ebm.low) < float(ebm.high) <= 1.0
    for images in (ebm.sample((20,), denoise=True), ebm.denoised(ebm.diffuse(torch.rand(20, *SHAPE), 3), 3)):
        assert float(images.min()) >= float(ebm.low) - 1e-6
        assert float(images.max()) <= float(ebm.high) + 1e-6
    assert float(ebm.sample((20,)).max()) > 1.0, "level 0 has noise of its own"


def test_classes_guidance_and_micro_batches() -> None:
    ebm = model()
    asked = torch.tensor([0, 1, 1, 0, 1])
    assert ebm.given(asked, guidance=1.0).sample((5,), micro_batch=2).shape == (5, *SHAPE)
    assert ebm.given(1).sample((2, 3), denoise=True).shape == (2, 3, *SHAPE)


def test_who_denoises() -> None:
    """A continuous network of images, and its classes; no initializer, no combination of energies."""
    ebm = model()
    start = UNetInitializer(SHAPE, width=4, levels=5, classes=2)
    assert ebm.denoises
    assert ebm.given(1, guidance=2.0).denoises
    assert not model(initializer=start).denoises
    assert not ep.mixture(ebm, ebm).denoises
    table = ep.RecoveryEBM(ep.MLPEnergy((3,)), ep.NoiseSchedule.cosine(5))
    assert not table.denoises


def test_bad_input_is_said() -> None:
    ebm = model()
    with pytest.raises(ep.InvalidInput, match="steps must be a whole number of at least 0"):
        ebm.sample((2,), steps=-1)
    with pytest.raises(ep.InvalidInput, match="must end in event_shape"):
        ebm.denoised(torch.rand(2, 5, 5), 1)
    one, table = torch.rand(*SHAPE), ep.RecoveryEBM(ep.MLPEnergy((3,)), ep.NoiseSchedule.cosine(5))
    for act, message in (
        (lambda: ep.models.interpolate(ebm, one, torch.rand(2, *SHAPE)), "must have one shape"),
        (lambda: ep.models.interpolate(ebm, one, one, count=1), "count must be a whole number of at least 2"),
        (lambda: ep.models.interpolate(ebm, one, one, level=5), "level must"),
        (lambda: ep.models.interpolate(table, torch.rand(3), torch.rand(3)), "build it on UNetEnergy"),
    ):
        with pytest.raises(ep.InvalidInput, match=message):
            act()


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_a_level_without_noise_is_reached(levels: int) -> None:
    """Its log-SNR is infinite, and so is the step to it."""
    schedule = ep.NoiseSchedule.sqrtcumlinear(levels, end=0.2)
    assert float(schedule.sigma_bar[0]) == 0.0
    ebm = ep.RecoveryEBM(UNetEnergy(SHAPE, width=4), schedule)
    ebm.standardize(torch.rand(50, *SHAPE), isotropic=True)
    assert bool(ebm.sample((3,)).isfinite().all())
    assert bool(ebm.sample((3,), denoise=True).isfinite().all())


def test_micro_batches_of_combined_models_have_their_own_labels() -> None:
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), levels=3, classes=3, hidden=8), ep.NoiseSchedule.cosine(levels=3))
    own = ebm.given((torch.arange(12) % 3).reshape(3, 4))
    seen = ep.LinearMeasurement(torch.ones(1, 2), torch.tensor([0.5]), 0.1)
    for model in (own, ep.measured(own, seen), ep.product(own, ebm.given(0)), ep.mixture(own, ebm)):
        assert model.sample((3, 4), micro_batch=5).shape == (3, 4, 2)


def test_log_z_of_labels_for_each_point_is_refused() -> None:
    ebm = ep.RecoveryEBM(ep.MLPEnergy((2,), levels=3, classes=3, hidden=8), ep.NoiseSchedule.cosine(levels=3))
    own = ebm.given(torch.arange(4) % 3)
    for act in (
        own.log_normalizer,
        lambda: own.log_prob(torch.randn(4, 2)),
        lambda: own.marginal().log_prob(torch.randn(4, 2)),
    ):
        with pytest.raises(ep.InvalidInput, match="log Z is of one class or context"):
            act()
    with pytest.raises(ep.InvalidInput, match="got another dtype in model 1"):
        ep.mixture(ebm, copy.deepcopy(ebm).double())

"""What makes sampling images affordable: half precision where nothing is decided, and a few samples at a time."""

import pytest
import torch

import energyppl as ep
from energyppl.models import ConvEnergy, UNetInitializer
from tests.support.image_sampling import SHAPE, model
from tests.support.objectives import loss_of


def test_weights_lie_in_channels_last_order() -> None:
    for parameter in ConvEnergy(SHAPE, width=8).parameters():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)


def test_autocast_energies_and_gradients_are_near_and_of_the_points_dtype() -> None:
    """Bfloat16 has 8 bits: errors of about a percent, and none of exactly zero."""
    potential, x = model().potential(0), torch.randn(16, *SHAPE)
    energy, grad = ep.energy_and_grad(potential, x)
    cheap, cheap_grad = ep.energy_and_grad(potential, x, torch.bfloat16)
    assert cheap.dtype == cheap_grad.dtype == torch.float32
    for own, near in ((energy, cheap), (grad, cheap_grad)):
        assert 0.0 < float((own - near).norm() / own.norm()) < 0.02


def test_accepting_kernels_judge_by_float32() -> None:
    """The states' energies are exactly the float32 ones; an unadjusted kernel's carry the rounding."""
    ebm, x = model(), torch.randn(64, *SHAPE)
    for kernel, exact in (
        (ep.kernels.CrankNicolsonLangevin(0.3, force_dtype=torch.bfloat16), True),
        (ep.MALA(0.1, force_dtype=torch.bfloat16), True),
        (ep.Langevin(0.1, force_dtype=torch.bfloat16), False),
    ):
        potential = ep.potentials.RecoveryPotential(ebm.potential(1), x, 1.0)
        state = ep.sampling.run_chain(kernel, potential, x, 5).state
        assert torch.equal(state.energy, ep.autodiff.energy_only(potential, state.x)) == exact


def test_micro_batches_have_the_shape_of_all() -> None:
    ebm = model()
    assert ebm.sample((3, 4), steps=2, micro_batch=5).shape == (3, 4, *SHAPE)
    path = ebm.generate((5,), steps=2, micro_batch=2).path
    assert [stage.shape for stage in path] == [(5, *SHAPE)] * 4


def test_each_sample_of_a_micro_batch_has_its_own_class() -> None:
    """A class that is pushed to bright pixels shows which rows were asked for it."""
    ebm = model(classes=2)

    class Pushed(torch.nn.Module):
        event_shape, classes = torch.Size(SHAPE), 2

        def forward(self, x: torch.Tensor, level: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
            center = 0.0 if label is None else (4.0 * label - 2.0)[..., None, None, None]
            return 0.5 * (x - center).square().sum((-3, -2, -1)) + 0.0 * level

    ebm = ep.RecoveryEBM(Pushed(), ebm.schedule)
    ebm.step_sizes.fill_(0.9)
    asked = torch.tensor([0, 1, 1, 0, 1])
    drawn = ebm.given(asked).sample((5,), steps=20, micro_batch=2)
    assert torch.equal(drawn.mean((1, 2, 3)) > 0.0, asked == 1)


def test_training_in_bfloat16_keeps_float32_weights_and_about_the_same_gradient() -> None:
    ebm = model(ep.kernels.CrankNicolsonLangevin(force_dtype=torch.bfloat16))
    ebm.initializer = UNetInitializer(SHAPE, width=4, levels=3)
    batch = torch.randn(400, *SHAPE)
    ebm.standardize(batch, isotropic=True)
    gradients = []
    for dtype in (None, torch.bfloat16):
        objective = ep.CooperativeRecovery(recipe=ep.RecoveryLikelihood(autocast=dtype))
        torch.manual_seed(2)
        loss = loss_of(objective, ebm, batch).value
        assert loss.dtype == torch.float32
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(ebm.parameters()))]))
        assert gradients[-1].dtype == torch.float32
    assert 0.0 < float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.1


def test_images_with_constant_edges_are_standardized_by_one_scale() -> None:
    images = torch.rand(50, *SHAPE)
    images[:, :, 0] = 0.0
    ebm = model()
    with pytest.raises(ep.InvalidInput, match="isotropic=True"):
        ebm.standardize(images)
    ebm.standardize(images, isotropic=True)
    assert bool(torch.isfinite(ebm.to_unit(images)).all())
    with pytest.raises(ep.InvalidInput, match="are constant"):
        ebm.standardize(torch.zeros(50, *SHAPE), isotropic=True)


def test_pixels_of_a_channel_share_one_mean_and_all_have_unit_variance_about_it() -> None:
    shape = (2, 6, 5)
    ebm = ep.RecoveryEBM(ConvEnergy(shape, width=4, levels=3), ep.NoiseSchedule.cosine(3))
    images = torch.rand(50, *shape) * torch.linspace(0.0, 1.0, 5)  # darker on the left
    images[:, 1] += 3.0
    ebm.standardize(images, isotropic=True)
    unit = ebm.to_unit(images)
    assert torch.allclose(unit.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert abs(float(unit.square().mean()) - 1.0) < 1e-4
    assert torch.equal(ebm.loc, ebm.loc[:, :1, :1].expand(shape))  # black is the same everywhere
    assert not torch.allclose(unit.mean(0), torch.zeros(shape), atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ep.Langevin(0.1, force_dtype=torch.float64), "force_dtype must be None"),
        (lambda: ep.kernels.CrankNicolsonLangevin(0.1, force_dtype=torch.int8), "force_dtype must be None"),
        (lambda: ep.RecoveryLikelihood(autocast=torch.float64), "autocast must be None"),
        (lambda: model().sample((4,), micro_batch=0), "micro_batch must be"),
    ],
)
def test_bad_input_is_said(make: object, message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        make()  # type: ignore[operator]

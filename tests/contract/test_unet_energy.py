"""The small U-Net of image patches: sizes, conditioning, growth, files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import energyppl as ep
from energyppl.models import UNetEnergy
from tests.support.image_networks import CLOSE, stirred

SHAPE = (1, 12, 12)
LOG_SNR = torch.tensor([-5.0, 0.0, 4.0])


def net(shape: tuple[int, ...] = SHAPE, **options: int) -> UNetEnergy:
    torch.manual_seed(0)
    built: UNetEnergy = stirred(UNetEnergy(shape, width=8, classes=3, **options))
    return built


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 5, 7), (1, 1, 1), (1, 40, 9)])
def test_images_of_any_size_and_points_apart(shape: tuple[int, ...]) -> None:
    """A batch gives the numbers of its points, whatever is padded; every pixel has a slope."""
    energy, x = net(shape), torch.randn(3, *shape)
    together = energy(x, LOG_SNR)
    apart = torch.stack([energy(x[i], LOG_SNR[i]) for i in range(3)])
    torch.testing.assert_close(together, apart, **CLOSE)
    x.requires_grad_()
    (grad,) = torch.autograd.grad((energy(x, torch.tensor(1.0)) - 0.5 * x.square().sum((1, 2, 3))).sum(), x)
    assert bool((grad != 0).all())


def test_no_label_is_the_last_class_and_labels_make_a_difference() -> None:
    energy, x = net(), torch.randn(3, *SHAPE)
    torch.testing.assert_close(energy(x, LOG_SNR), energy(x, LOG_SNR, 3))
    assert not torch.allclose(energy(x, LOG_SNR, 0), energy(x, LOG_SNR, 1))


def test_a_fresh_network_is_the_gaussian() -> None:
    x = torch.randn(2, *SHAPE)
    normal = -torch.distributions.Normal(0.0, 1.0).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(UNetEnergy(SHAPE)(x, torch.tensor(3.0)), normal)


def test_energies_far_out_are_the_quadratic_term() -> None:
    """f grows at most linearly: at 10⁴ standard deviations it is below 5 % of ½ |x|²."""
    x = torch.randn(5, *SHAPE) * 1e4
    ratio = net()(x, torch.tensor(0.0)) / (0.5 * x.square().sum((1, 2, 3)))
    assert float((ratio - 1.0).abs().max().detach()) < 0.05


def test_sizes_at_28_by_28() -> None:
    """About 200,000 weights, two resolutions of patches, 14 × 14 and 7 × 7."""
    built = UNetEnergy((1, 28, 28))
    assert 190_000 < sum(p.numel() for p in built.parameters()) < 230_000
    assert built.mixing.positions.in_features == 49


def test_every_weight_has_a_part_in_the_energy() -> None:
    for built in (net(blocks=2), net((1, 20, 20))):
        x = torch.randn(3, *built.event_shape)
        energy = built(x, LOG_SNR, torch.tensor([0, 1, 3])) + built(x, LOG_SNR, torch.tensor([2, 0, 1]))
        grads = torch.autograd.grad(energy.sum(), list(built.parameters()))
        assert all(bool(grad.any()) for grad in grads)


def test_a_file_holds_its_recipe(tmp_path: Path) -> None:
    ebm = ep.RecoveryEBM(net(blocks=2), ep.NoiseSchedule.cosine(4, log_snr_min=-6.0))
    ep.save(ebm, tmp_path / "x.ebm")
    again, x = ep.load(tmp_path / "x.ebm"), torch.randn(2, *SHAPE)
    assert torch.equal(again.potential(1)(x), ebm.potential(1)(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNetEnergy((28, 28)), r"\(channels, height, width\); got \(28, 28\)"),
        (lambda: UNetEnergy(SHAPE, width=0), "width must be a whole number"),
        (lambda: UNetEnergy(SHAPE, blocks=0), "blocks must be a whole number"),
        (lambda: UNetEnergy(SHAPE, classes=-1), "classes must be a whole number of at least 0"),
        (lambda: UNetEnergy(SHAPE)(torch.zeros(2, *SHAPE), torch.tensor(1)), "takes log-SNRs"),
        (lambda: UNetEnergy(SHAPE)(torch.zeros(2, *SHAPE), LOG_SNR[0], 1), "no classes, but got a label"),
        (lambda: UNetEnergy(SHAPE)(torch.zeros(2, 12, 12), LOG_SNR[0]), "must end in event_shape"),
    ],
)
def test_bad_input_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        make()

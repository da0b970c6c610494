"""Networks of images and of where chains begin: shapes, conditioning, and the papers' sizes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.autodiff import bound
from energyppl.autodiff.gradient import eager_energy_and_grad, energy_and_grad
from energyppl.models.networks.conv import ConvEnergy
from energyppl.models.networks.mlp_initializer import MLPInitializer
from energyppl.models.networks.unet import UNetInitializer
from tests.support.image_networks import CLOSE, CONV, NETWORKS, SHAPE, stirred, tiny_drl


def call(net: nn.Module, x: Tensor, level: Tensor, label: Any = None) -> Tensor:
    """The energies ``(*batch,)``, or shifts and log scales ``(*batch, *event, 2)``."""
    out = net(x, level, label)
    return out if isinstance(out, Tensor) else torch.stack([out[0], out[1].expand(x.shape)], -1)


@pytest.mark.parametrize("name", NETWORKS)
def test_batches_levels_and_labels_of_any_broadcastable_shape(name: str) -> None:
    """Every way to say the same thing gives the same numbers, and points don't influence each other."""
    net, event = NETWORKS[name]()
    stirred(net)
    x = torch.randn(2, 3, *event)
    level, label = torch.randint(5, (2, 3)), torch.randint(4, (2, 3))
    whole = call(net, x, level, label)
    assert whole.shape[:2] == (2, 3)
    flat = call(net, x.flatten(0, 1), level.flatten(), label.flatten())
    torch.testing.assert_close(flat, whole.flatten(0, 1), **CLOSE)
    one = call(net, x[1, 2], level[1, 2], label[1, 2])
    torch.testing.assert_close(one, whole[1, 2], **CLOSE)
    torch.testing.assert_close(call(net, x[1, 2], level[1, 2], int(label[1, 2])), one, **CLOSE)
    # Broadcast: one level for a row, one label for all.
    wide = call(net, x, level[:, :1].expand(2, 3), torch.full((2, 3), 2))
    torch.testing.assert_close(call(net, x, level[:, :1], torch.tensor(2)), wide, **CLOSE)
    # No label is the last row of the table.
    torch.testing.assert_close(call(net, x, level), call(net, x, level, torch.full((2, 3), 3)), **CLOSE)
    assert call(net, x[:0], torch.tensor(1)).numel() == 0


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "mlp initializer of numbers"])
def test_levels_and_labels_make_a_difference(name: str) -> None:
    net, event = NETWORKS[name]()
    stirred(net)
    x = torch.randn(event)
    by_level = {tuple(call(net, x, torch.tensor(t)).flatten()[:4].tolist()) for t in range(5)}
    by_label = {tuple(call(net, x, torch.tensor(1), c).flatten()[:4].tolist()) for c in (0, 1, 2, None)}
    assert (len(by_level), len(by_label)) == (5, 4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 5, 7)])
def test_defaults_fit_the_image(shape: tuple[int, ...]) -> None:
    net, start = ConvEnergy(shape), UNetInitializer(shape)
    x = torch.randn(2, *shape)
    assert net(x, torch.tensor(0)).shape == (2,)
    assert start(x, torch.tensor(0))[0].shape == x.shape
    ebm = ep.RecoveryEBM(ConvEnergy(shape), ep.NoiseSchedule.cosine(4))
    assert torch.isfinite(ebm.sample((2,), steps=1)).all()
    # The network begins near the quadratic term, the answer for much noise.
    quadratic = 0.5 * (x * x).flatten(1).sum(1)
    assert float((net(x, torch.tensor(0)) - quadratic).detach().abs().max()) < 3.0


@pytest.mark.parametrize("level", [2, torch.tensor([0, 3, 1, 2, 2])], ids=["one level", "a level each"])
@pytest.mark.parametrize("name", CONV)
def test_a_trace_in_train_mode_gives_the_numbers_of_eager_autograd(name: str, level: Any) -> None:
    ebm = ep.RecoveryEBM(stirred(CONV[name]()), ep.NoiseSchedule.cosine(4)).train()
    potential = ebm.potential(level)
    for _ in range(2):
        x = torch.randn(5, *ebm.event_shape)
        energy, grad = energy_and_grad(potential, x)
        expected, expected_grad = eager_energy_and_grad(potential, x)
        torch.testing.assert_close(energy, expected, **CLOSE)
        torch.testing.assert_close(grad, expected_grad, **CLOSE)
        serving = bound._serving(potential, eager_energy_and_grad, x)
        assert isinstance(serving, bound._Traced), serving.reason


def test_forces_in_half_precision() -> None:
    ebm = ep.RecoveryEBM(stirred(ConvEnergy(SHAPE, width=8, spectral_norm=True)), ep.NoiseSchedule.cosine(4))
    x = torch.randn(5, *SHAPE)
    expected = ep.autodiff.gradient_only(ebm.potential(1), x)
    force = ep.autodiff.gradient_only(ebm.potential(1), x, torch.bfloat16)
    assert force.dtype == torch.float32
    assert float((force - expected).norm() / expected.norm()) < 0.03


def test_channels_last_gives_the_same_numbers() -> None:
    for net in (stirred(ConvEnergy((3, 16, 16))), stirred(UNetInitializer((3, 16, 16), attention=(4,)))):
        x = torch.randn(4, 3, 16, 16)
        expected = call(net, x, torch.tensor(1))
        last = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(call(net, last, torch.tensor(1)), expected, **CLOSE)
        net.to(memory_format=torch.channels_last)
        torch.testing.assert_close(call(net, last, torch.tensor(1)), expected, **CLOSE)
        torch.testing.assert_close(call(net, x, torch.tensor(1)), expected, **CLOSE)


def test_the_output_scale_weighs_everything_but_the_confinement() -> None:
    net = stirred(ConvEnergy(SHAPE, levels=3))
    scaled = ConvEnergy(SHAPE, levels=3, output_scale=[1.0, 2.0, 5.0])
    scaled.load_state_dict(net.state_dict() | {"output_scale": scaled.output_scale})
    x, level = torch.randn(3, *SHAPE), torch.arange(3)
    quadratic = 0.5 * (x * x).flatten(1).sum(1)
    expected = (net(x, level) - quadratic) * torch.tensor([1.0, 2.0, 5.0]) + quadratic
    torch.testing.assert_close(scaled(x, level), expected, **CLOSE)


# --- The papers' networks ---


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("make", "expected"), [(ConvEnergy.drl_cifar10, 34_833_408), (ConvEnergy.cdrl_cifar10, 34_833_152)]
)
def test_published_energies(make: Callable[[], ConvEnergy], expected: int) -> None:
    net = make()
    assert count(net) == expected
    assert abs(count(net) - 34.8e6) < 0.05e6
    with torch.no_grad():
        assert torch.isfinite(net(torch.randn(1, 3, 32, 32), torch.tensor(5))).all()
    with pytest.raises(IndexError):
        net(torch.zeros(1, 3, 32, 32), torch.tensor(6))


def test_published_initializer() -> None:
    net = UNetInitializer.cdrl_cifar10(learn_scale=True).eval()
    assert count(net) == 3_769_795 + 6
    with torch.no_grad():
        shift, log_scale = net(torch.randn(2, 3, 32, 32), torch.tensor([0, 5]))
    assert shift.shape == (2, 3, 32, 32)
    assert log_scale.shape == (2, 1, 1, 1)
    assert not shift.any()
    heights = [block.first.out_channels for block in net.down]
    assert heights == [64] * 11
    # Attention after every block at 16 and 8, and in the middle.
    attending = [type(b.attention).__name__ == "_Attention" for b in (*net.down, *net.middle, *net.up)]
    assert sum(attending) == 3 + 3 + 1 + 4 + 4


def test_positions_of_levels_as_published() -> None:
    """DRL's are whole numbers; CDRL's grow from clean to noisy within (0, 1000)."""
    sines = tiny_drl().conditioning.sinusoids[:, 0]
    torch.testing.assert_close(sines, torch.arange(6.0).sin())
    from energyppl.models.networks.conv import log_snr_positions

    positions = log_snr_positions(6)
    assert 0 < float(positions[0]) < 10
    assert bool((positions.diff() > 0).all())
    assert float(positions[-1]) < 1000


# --- Initializers ---

STARTS: dict[str, Callable[..., tuple[nn.Module, tuple[int, ...]]]] = {
    "mlp": lambda **o: (MLPInitializer((2,), levels=5, classes=2, **o), (2,)),
    "mlp, no features": lambda **o: (MLPInitializer((4, 2), levels=5, frequencies=0, **o), (4, 2)),
    "u-net 8": lambda **o: (UNetInitializer(SHAPE, levels=5, **o), SHAPE),
    "u-net 28": lambda **o: (UNetInitializer((1, 28, 28), width=8, levels=5, attention=(7, 14), **o), (1, 28, 28)),
}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", STARTS)
def test_initializers_begin_at_the_reference_and_can_leave_it(name: str, learned: bool) -> None:
    net, event = STARTS[name](learn_scale=learned)
    x, level = torch.randn(3, *event), torch.tensor([0, 2, 4])
    shift, log_scale = net(x, level)
    assert shift.shape == x.shape
    assert not shift.any()
    assert not log_scale.any()
    assert torch.broadcast_shapes(log_scale.shape, shift.shape) == shift.shape
    assert (log_scale.dim() > 0) == learned
    # A few updates move both.
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(3):
        shift, log_scale = net(x, level)
        optimizer.zero_grad()
        ((shift - 1.0).square().mean() + (log_scale + 1.0).square().mean()).backward()
        optimizer.step()
    shift, log_scale = net(x, level)
    assert float((shift - 1.0).detach().square().mean()) < 1.0
    assert bool((log_scale < 0).all()) == learned


def test_learned_scales_stay_between_their_bounds() -> None:
    from energyppl.models.networks.mlp_initializer import soft_log_scale

    values = soft_log_scale(torch.tensor([-1e6, -0.01, 0.0, 0.01, 1e6]))
    torch.testing.assert_close(values, torch.tensor([-6.0, -0.01, 0.0, 0.01, 2.0]), rtol=1e-2, atol=0)
    assert float(values[2]) == 0.0


def test_dropout_acts_in_training_only() -> None:
    net, x = stirred(UNetInitializer(SHAPE, dropout=0.5)), torch.randn(2, *SHAPE)
    level = torch.tensor(0)
    assert not torch.equal(net(x, level)[0], net(x, level)[0])
    net.eval()
    assert torch.equal(net(x, level)[0], net(x, level)[0])


# --- Refusals ---


def refused_call(x: Tensor, level: Any = 0, label: Any = None, **options: Any) -> Callable[[], object]:
    level = torch.tensor(level) if isinstance(level, int) else level
    return lambda: ConvEnergy(SHAPE, width=4, levels=2, **options)(x, level, label)


IMAGES = torch.zeros(3, *SHAPE)

REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "not an image": (lambda: ConvEnergy((2,)), r"\(channels, height, width\); got \(2,\)"),
    "no pixels": (lambda: UNetInitializer((1, 0, 8)), r"without empty sizes; got \(1, 0, 8\)"),
    "no width": (lambda: ConvEnergy(SHAPE, width=0), "width must be a whole number"),
    "no blocks": (lambda: UNetInitializer(SHAPE, blocks=0), "blocks must be a whole number"),
    "no levels": (lambda: MLPInitializer((2,), levels=0), "levels must be a whole number"),
    "negative classes": (lambda: ConvEnergy(SHAPE, classes=-1), "classes must be a whole number of at least 0"),
    "confinement": (lambda: ConvEnergy(SHAPE, confinement=-1.0), "confinement must be 0 or positive"),
    "even shortcut": (lambda: ConvEnergy(SHAPE, shortcut_size=2), "shortcut_size must be odd"),
    "too many halvings": (lambda: ConvEnergy((1, 28, 28), multipliers=(1, 2, 2, 2)), "sides that 8 divides; got 28×28"),
    "no multipliers": (lambda: UNetInitializer(SHAPE, multipliers=()), "at least one resolution"),
    "bad multiplier": (lambda: UNetInitializer(SHAPE, multipliers=(1, 0)), "every multiplier"),
    "attention nowhere": (lambda: UNetInitializer(SHAPE, attention=(16,)), r"of \[8, 4\]; got \[16\]"),
    "dropout": (lambda: UNetInitializer(SHAPE, dropout=1.0), r"dropout must lie in \[0, 1\)"),
    "frequencies": (lambda: MLPInitializer((2,), frequency_range=(2.0, 1.0)), "frequency_range"),
    "odd sinusoids": (lambda: ConvEnergy.drl_cifar10(width=7, blocks=1), "width must be even"),
    "scales": (lambda: ConvEnergy(SHAPE, levels=3, output_scale=[1.0]), r"each of 3 levels; got \(1,\)"),
    "negative scales": (lambda: ConvEnergy(SHAPE, levels=1, output_scale=[-1.0]), "output_scale must be positive"),
    "shape": (refused_call(torch.zeros(3, 8, 8, 1)), r"must end in event_shape \(1, 8, 8\); got \(3, 8, 8, 1\)"),
    "whole pixels": (refused_call(IMAGES.long()), "floating point"),
    "no classes": (refused_call(IMAGES, label=0), "no classes, but got a label: build it with classes="),
    "label above": (refused_call(IMAGES, label=3, classes=2), "between 0 and 2; got 3: 2 means no class"),
    "label below": (refused_call(IMAGES, label=torch.tensor([0, 1, -1]), classes=2), r"got \[0, 1, -1\]"),
    "fractional label": (refused_call(IMAGES, label=torch.ones(3), classes=2), "label must be whole numbers"),
    "label that is true": (refused_call(IMAGES, label=True, classes=2), "label must be whole numbers; got torch.bool"),
    "label of a word": (
        refused_call(IMAGES, label="cat", classes=2),
        "label must be a tensor of whole numbers; got str",
    ),
    "too many labels": (refused_call(IMAGES, label=torch.zeros(4).long(), classes=2), r"batch \(3,\); got \(4,\)"),
    "label for no batch": (refused_call(IMAGES[0], label=torch.zeros(1).long(), classes=2), r"batch \(\); got \(1,\)"),
    "too many levels": (refused_call(IMAGES, level=torch.zeros(2).long()), r"level must broadcast to the batch \(3,\)"),
    "fractional level": (refused_call(IMAGES, level=torch.tensor(0.5)), "level must be whole numbers"),
    "mlp, no classes": (
        lambda: MLPInitializer((2,))(torch.zeros(3, 2), torch.tensor(0), 1),
        "this network has no classes",
    ),
    "u-net, label": (
        lambda: UNetInitializer(SHAPE, width=4, classes=2)(IMAGES, torch.tensor(0), 5),
        "between 0 and 2; got 5",
    ),
    "few levels": (
        lambda: ep.RecoveryEBM(ConvEnergy(SHAPE, levels=3), ep.NoiseSchedule.cosine(4)),
        "levels=4 or more",
    ),
    "few published levels": (lambda: ep.RecoveryEBM(tiny_drl(), ep.NoiseSchedule.cosine(8)), "levels=8 or more"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_refused(name: str) -> None:
    act, message = REFUSALS[name]
    with pytest.raises(ep.InvalidInput, match=message):
        act()


@pytest.mark.parametrize("build", [partial(ep.ConvEnergy, continuous=True), ep.models.UNetEnergy])
def test_a_continuous_network_is_the_standard_gaussian_at_its_noisiest_and_takes_any_log_snr(build: Any) -> None:
    """Energies of N(0, I) at λ_min whatever the weights, a slope in λ elsewhere, the same values by the table."""
    torch.manual_seed(0)
    net = stirred(build((1, 8, 8), width=8, classes=2))
    x = torch.randn(3, 1, 8, 8)
    normal = -torch.distributions.Normal(0.0, 1.0).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(net(x, torch.tensor(-6.0)), normal)
    log_snr = torch.tensor([-3.0, 0.0, 4.0], requires_grad=True)
    energy = net(x, log_snr, torch.tensor([0, 1, 2]))
    (slope,) = torch.autograd.grad(energy.sum(), log_snr)
    assert bool((slope != 0).all())
    table = torch.tensor([4.0, 0.0, -3.0])
    by_table = net.at_levels(x, torch.tensor([2, 1, 0]), table, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(by_table, energy)
    with pytest.raises(ep.errors.InvalidInput, match="takes log-SNRs"):
        net(x, torch.tensor(1))


def test_a_continuous_convolution_has_confinement_1() -> None:
    with pytest.raises(ep.errors.InvalidInput, match="confinement 1"):
        ep.ConvEnergy((1, 8, 8), continuous=True, confinement=0.5)

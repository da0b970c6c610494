"""The reach of corrections to the base of a continuous network, where narrow directions have heavy tails."""

import copy

import torch

import energyppl as ep
from energyppl.models.networks.scale_mixture import ScaleMixture

SHARP = torch.tensor(6.0)


def narrow_rows(count: int = 4000, *, tails: int = 2) -> torch.Tensor:
    """Three columns that are one but for .05 and .02 of its spread in two directions, and a fourth.

    So many of the two directions have Student's tails, of 3 degrees of freedom, cut at 12; their widths differ, for the
    eigenvectors of equal ones may be any mixtures of both.
    """
    common, apart = torch.randn(count, 1), torch.randn(count, 2)
    for j in range(tails):
        apart[:, j] = torch.distributions.StudentT(3.0).sample((count,)) / 3.0**0.5
        apart[:, j].clamp_(-12.0, 12.0)
        apart[j, j] = 12.0
    across = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]) / torch.tensor([[2.0], [6.0]]).sqrt()
    rows = torch.cat([common + apart * torch.tensor([0.05, 0.02]) @ across, torch.randn(count, 1)], 1)
    return rows / rows.std(0)


def fitted(rows: torch.Tensor) -> tuple[ep.MLPEnergy, ScaleMixture]:
    net = ep.MLPEnergy((4,), hidden=16)
    net.fit_base(rows)
    assert net.base is not None
    return net, net.base


def test_a_correction_counts_among_the_rows_and_not_far_from_them() -> None:
    """98 % of 4,000 rows are within reach, with a standard error of .2 %: noise moves few across."""
    rows = narrow_rows()
    _, base = fitted(rows)
    assert base.bounded
    noisy = rows + 0.05 * torch.randn_like(rows)
    assert float((base.weight(base(noisy, SHARP), SHARP) == 1.0).float().mean()) > 0.96
    across = torch.tensor([1.0, -1.0, 0.0, 0.0]) * torch.tensor([0.0, 1.0, 3.0, 9.0])[:, None]
    weight = base.weight(base(across, SHARP), SHARP)
    assert bool((weight.diff() < 0.0).all())
    assert float(weight[0]) == 1.0
    assert float(weight[-1]) < 0.01


def test_no_hole_is_dug_far_from_the_rows() -> None:
    """Whatever the network says there, the energy is nearly that of the base."""
    net, base = fitted(narrow_rows())
    far = torch.tensor([[9.0, -9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 15.0], [15.0, 15.0, 15.0, 0.0]])
    with torch.no_grad():
        net.readout.bias.fill_(-100.0)
        assert float(net(torch.zeros(1, 4), SHARP)) < -90.0
        assert bool((net(far, SHARP) > base(far, SHARP) - 2.0).all())


def test_without_several_narrow_tails_corrections_count_alike_everywhere() -> None:
    net, base = fitted(narrow_rows(tails=1))
    assert base.heavy
    assert not base.bounded
    net.fit_base(narrow_rows())
    assert base.bounded
    net.fit_base(narrow_rows(tails=0))
    assert not base.bounded, "another fit forgets the one before"
    assert float(base.inverse_reach) == 0.0


def test_energies_have_a_derivative_in_the_noise_level_beyond_the_reach() -> None:
    """The one by automatic differentiation is that of differences, among the rows and far from them."""
    rows = narrow_rows().double()
    net = ep.MLPEnergy((4,), hidden=16).double()
    net.fit_base(rows)
    torch.nn.init.normal_(net.readout.weight)
    assert net.base is not None
    points, step = torch.cat([rows[::100], rows[::100] * 8.0]), 1e-5
    level = torch.full((len(points),), 3.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(net(points, level).sum(), level)
    with torch.no_grad():
        difference = (net(points, level + step) - net(points, level - step)) / (2.0 * step)
        assert float(net.base.weight(net.base(points, level), level).min()) < 0.5
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-5)


def test_a_reach_is_loaded_and_older_weights_have_none() -> None:
    net, _ = fitted(narrow_rows())
    torch.nn.init.normal_(net.readout.weight)
    again, unbounded = ep.MLPEnergy((4,), hidden=16), copy.deepcopy(net)
    state = net.state_dict()
    again.load_state_dict(state)
    points = 5.0 * torch.randn(100, 4)
    assert torch.equal(again(points, SHARP), net(points, SHARP))
    assert unbounded.base is not None
    unbounded.base.inverse_reach.zero_()
    unbounded.base.buffers_changed()
    again.load_state_dict({name: value for name, value in state.items() if name != "base.inverse_reach"})
    assert torch.equal(again(points, SHARP), unbounded(points, SHARP))
    assert not torch.equal(again(points, SHARP), net(points, SHARP))

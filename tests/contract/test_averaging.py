"""Averages of models: the mean energy at every level, files, and what does not fit together."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.models.networks.recipe import rebuilt


class Bell(nn.Module):
    """A Gaussian of a mean and a width, the same at every level: log Z is known."""

    event_shape = torch.Size((2,))

    def __init__(self, mean: float, width: float) -> None:
        super().__init__()
        self.mean, self.width = nn.Parameter(torch.tensor(mean)), width

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return (0.5 * ((x - self.mean) / self.width).square().sum(-1)).expand(x.shape[:-1])


def planar(net: nn.Module, levels: int = 3) -> ep.RecoveryEBM:
    return ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(levels))


def shaken(net: nn.Module, seed: int) -> nn.Module:
    """Weights as after a training: continuous networks begin without any contribution of their own."""
    generator = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return net


@pytest.mark.parametrize("size", [2, 3])  # whole levels, and log-SNRs
def test_the_energy_is_the_mean_at_every_level(size: int) -> None:
    schedule = ep.NoiseSchedule.cosine(3, log_snr_min=-6.0)
    ebms = [ep.RecoveryEBM(shaken(ep.MLPEnergy((size,)), seed), schedule) for seed in range(3)]
    pool, x = ep.models.averaged(*ebms), torch.randn(7, size)
    for level in (0, 2, torch.tensor([0, 1, 2, 0, 1, 2, 0])):
        apart = torch.stack([ebm.potential(level)(x) for ebm in ebms])
        assert float(apart.detach().std(0).min()) > 1e-3  # else the mean would be no news
        torch.testing.assert_close(pool.potential(level)(x), apart.mean(0))
    grad = ep.energy_and_grad(pool.potential(0), x)[1]
    torch.testing.assert_close(grad, torch.stack([ep.energy_and_grad(e.potential(0), x)[1] for e in ebms]).mean(0))


def test_the_average_gains_the_same_everywhere() -> None:
    """The gain is the mean of their log Z's less its own at every point: of bells at ±1, ½ nat for each coordinate."""
    ebms = [planar(Bell(-1.0, 1.0)), planar(Bell(1.0, 1.0))]
    pool, x = ep.models.averaged(*ebms), 3.0 * torch.randn(50, 2)
    mean = torch.stack([ebm.log_prob(x) for ebm in ebms]).mean(0)
    torch.testing.assert_close(pool.log_prob(x) - mean, torch.ones(50), atol=2e-3, rtol=0.0)


def test_weights_are_copies() -> None:
    one, other = planar(Bell(-1.0, 1.0)), planar(Bell(1.0, 1.0))
    pool, x = ep.models.averaged(one, other), torch.randn(5, 2)
    before = pool.potential(0)(x).detach()
    one.net.mean.data += 5.0  # type: ignore[union-attr, operator]
    torch.testing.assert_close(pool.potential(0)(x), before)


def test_an_average_is_saved_and_loaded(tmp_path: Path) -> None:
    rows = torch.randn(60, 3)
    schedule = ep.NoiseSchedule.cosine(3, log_snr_min=-6.0)
    ebms = [ep.RecoveryEBM(ep.MLPEnergy((3,), hidden=8), schedule) for _ in range(2)]
    for ebm in ebms:
        ebm.standardize(rows)
        ep.fit(ebm, rows, steps=2, progress=False)
    pool = ep.models.averaged(*ebms)
    for file in (tmp_path / "pool.ebm", tmp_path / "pool.safetensors"):
        ep.save(pool, file)
        torch.testing.assert_close(ep.load(file).marginal().energy(rows), pool.marginal().energy(rows), rtol=0, atol=0)
    ep.fit(pool, rows, steps=2, progress=False)  # a network like any other
    next(value for name, value in pool.named_buffers() if name.endswith("base.variances")).neg_()
    with pytest.raises(ep.InvalidInput, match=r"base\.variances must be positive"):
        ep.save(pool, tmp_path / "negative.ebm")


def test_a_subclass_of_the_users_own_is_not_rebuilt_as_its_base(tmp_path: Path) -> None:
    class MLPEnergy(ep.MLPEnergy):
        def forward(self, x: Tensor, level: Tensor, condition: Tensor | int | None = None) -> Tensor:
            return super().forward(x, level, condition) + 1.0

    ebm = planar(MLPEnergy((2,), levels=3))
    ep.save(ep.models.averaged(ebm, planar(ep.MLPEnergy((2,), levels=3))), tmp_path / "pool.ebm")
    with pytest.raises(ep.InvalidInput, match="build it as it was"):
        ep.load(tmp_path / "pool.ebm")


def test_forged_recipes_are_refused() -> None:
    recipe = json.loads(ep.models.AveragedEnergy([ep.MLPEnergy((2,), levels=3)]).recipe or "")
    for name in ("Rebuildable", "Module", "os.system"):
        recipe["arguments"]["networks"][0]["network"] = name
        with pytest.raises(ValueError, match="there is no network"):
            rebuilt(ep.models.AveragedEnergy, json.dumps(recipe))


def test_classes_are_passed_on() -> None:
    nets = [shaken(ep.MLPEnergy((2,), levels=3, classes=2), seed) for seed in range(2)]
    ebms = [planar(net) for net in nets]
    pool, x = ep.models.averaged(*ebms), torch.randn(5, 2)
    for label in (0, torch.tensor([0, 1, 2, 0, 1])):
        mean = torch.stack([ebm.given(label).potential(0)(x) for ebm in ebms]).mean(0)
        torch.testing.assert_close(pool.given(label).potential(0)(x), mean)


def test_the_dtype_is_kept_without_weights() -> None:
    class Fixed(nn.Module):
        event_shape = torch.Size((2,))

        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            return (0.5 * x.square().sum(-1)).expand(x.shape[:-1])

    ebms = [planar(Fixed()).double() for _ in range(2)]
    assert ep.models.averaged(*ebms).loc.dtype == torch.float64


def test_networks_of_the_users_own_are_passed_to_load(tmp_path: Path) -> None:
    pool = ep.models.averaged(planar(Bell(-1.0, 1.0)), planar(Bell(1.0, 1.0)))
    ep.save(pool, tmp_path / "pool.ebm")
    with pytest.raises(ep.InvalidInput, match="build it as it was"):
        ep.load(tmp_path / "pool.ebm")
    net = ep.models.AveragedEnergy([Bell(0.0, 1.0), Bell(0.0, 1.0)])
    x = torch.randn(5, 2)
    torch.testing.assert_close(ep.load(tmp_path / "pool.ebm", net).potential(0)(x), pool.potential(0)(x))


def test_the_noisier_of_two_level_0s_is_taken() -> None:
    nets = [shaken(ep.MLPEnergy((3,)), seed) for seed in range(2)]
    sharp, blunt = (ep.NoiseSchedule.cosine(4, log_snr_max=top, log_snr_min=-6.0) for top in (6.6, 4.6))
    pool = ep.models.averaged(ep.RecoveryEBM(nets[0], sharp), ep.RecoveryEBM(nets[1], blunt))
    assert float(pool.schedule.log_snr[0]) == pytest.approx(4.6)


def _moved(loc: float) -> ep.RecoveryEBM:
    ebm = planar(Bell(0.0, 1.0))
    ebm.standardize(loc + torch.randn(50, 2))
    return ebm


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: 3, "type of model 1 is int"),
        (lambda: ep.product(planar(Bell(0.0, 1.0))), "type of model 1 is Product"),
        (lambda: planar(ep.MLPEnergy((3,), levels=3)), "another event_shape"),
        (lambda: _moved(5.0), "loc or scale of model 1 differs"),
        (lambda: planar(Bell(0.0, 1.0), levels=4), "that of model 1 differs"),
        (lambda: planar(Bell(0.0, 1.0)).double(), "another dtype"),
        (
            lambda: ep.RecoveryEBM(
                ep.MLPEnergy((2,), levels=3), ep.NoiseSchedule.cosine(3), initializer=ep.MLPInitializer((2,))
            ),
            "model 1 has an initializer",
        ),
        (
            lambda: ep.RecoveryEBM(ep.MLPEnergy((2,), continuous=True), ep.NoiseSchedule.cosine(3, log_snr_min=-5.1)),
            "all take log-SNRs or all whole levels",
        ),
    ],
)
def test_models_that_do_not_fit_together(other: object, says: str) -> None:
    with pytest.raises(ep.InvalidInput, match=says):
        ep.models.averaged(planar(Bell(0.0, 1.0)), other())  # type: ignore[operator]


def test_other_noisiest_levels_and_contexts() -> None:
    ebms = [
        ep.RecoveryEBM(ep.MLPEnergy((3,), log_snr_min=low), ep.NoiseSchedule.cosine(3, log_snr_min=low))
        for low in (-6.0, -5.0)
    ]
    with pytest.raises(ep.InvalidInput, match="the same noisiest level"):
        ep.models.averaged(*ebms)
    with pytest.raises(ep.InvalidInput, match="network 0 is told contexts"):
        ep.models.AveragedEnergy([ep.MLPEnergy((3,), context_shape=2)])


def test_networks_that_are_none() -> None:
    for networks in ([], 3, [ep.MLPEnergy((2,)), 3]):
        with pytest.raises(ep.InvalidInput, match="a list of one torch module or more"):
            ep.models.AveragedEnergy(networks)  # type: ignore[arg-type]
    with pytest.raises(ep.InvalidInput, match="at least one model; got none"):
        ep.models.averaged()


# --- Tables ---


def test_tables_are_averaged_and_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 3))
    models = [ep.tables.fit(rows, steps=4, seed=seed, progress=False) for seed in range(2)]
    pool = ep.tables.average(models)
    assert pool.record["steps"] == 8
    assert pool.record["stopped"] == "the average of 2 models"
    z = torch.randn(6, 3)
    mean = torch.stack([model.ebm.potential(0)(z) for model in models]).mean(0)
    torch.testing.assert_close(pool.ebm.potential(0)(z), mean)
    ep.tables.save(pool, tmp_path / "pool.ckpt")
    assert ep.tables.load(tmp_path / "pool.ckpt").sample(3, seed=0).equals(pool.sample(3, seed=0))  # type: ignore[union-attr]

    cell = models[1].held_out.copy()
    cell[0, 0] += 1.0
    others = {
        "columns": ep.tables.fit(rows, columns=["c0", "c1"], steps=1, progress=False),
        "transforms": ep.tables.fit(rows, transforms={"c0": "quantile"}, steps=1, progress=False),
        "rows": replace(models[1], held_out=cell),
    }
    for what, model in others.items():
        with pytest.raises(ep.InvalidInput, match=f"has other {what} than model 0"):
            ep.tables.average([models[0], model])
    with pytest.raises(ep.InvalidInput, match="models 0 and 2 are the same"):
        ep.tables.average([*models, models[0]])
    conditional = ep.tables.fit_conditional(rows, "c0", steps=1, progress=False)
    with pytest.raises(ep.InvalidInput, match="model 1 is a ConditionalTableModel"):
        ep.tables.average([models[0], conditional])  # type: ignore[list-item]
    with pytest.raises(ep.InvalidInput, match="at least two models"):
        ep.tables.average(models[:1])

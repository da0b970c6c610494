"""Saved models: what is loaded gives the same energies and samples bit for bit, and nothing else is loaded."""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

import energyppl as ep
from energyppl.errors import CheckpointError, InvalidInput
from energyppl.inference.kernels import HMC, MALA, NUTS, CrankNicolson, LowRankMass
from energyppl.inference.objectives.score_matching import DenoisingScoreMatching
from energyppl.models import load, save
from energyppl.models.base import EnergyModel

SCHEDULE = ep.NoiseSchedule.cosine(3)
SMALL: dict[str, Any] = {"hidden": 8, "depth": 2, "frequencies": 4, "levels": 4}
IMAGE: dict[str, Any] = {"width": 4, "levels": 4}


class Own(nn.Module):
    """A user's network."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        energy: Tensor = self.layers(x)[..., 0] + 0.5 * x.square().sum(-1)
        return energy


def labelled() -> EnergyModel:
    return ep.RecoveryEBM(ep.MLPEnergy((3,), classes=4, confinement=2.0, **SMALL), SCHEDULE)


def image() -> EnergyModel:
    net = ep.ConvEnergy((1, 8, 8), spectral_norm=True, output_scale=[1.0, 2.0, 3.0, 0.1], activation=relu, **IMAGE)
    start = ep.UNetInitializer((1, 8, 8), learn_scale=True, attention=(4,), **IMAGE)
    return ep.RecoveryEBM(net, SCHEDULE, initializer=start)


def mass() -> LowRankMass:
    return LowRankMass(torch.tensor([1.0, 4.0]), torch.eye(2)[:, :1], torch.tensor([3.0]))


MODELS: dict[str, Callable[[], EnergyModel]] = {
    "recovery": lambda: ep.RecoveryEBM(ep.MLPEnergy((2,), **SMALL), SCHEDULE),
    "recovery with an initializer": lambda: ep.RecoveryEBM(
        ep.MLPEnergy((2,), **SMALL), SCHEDULE, initializer=ep.MLPInitializer((2,), learn_scale=True, **SMALL)
    ),
    "classes": labelled,
    "images": image,
    "published": lambda: ep.RecoveryEBM(ep.ConvEnergy.cdrl_cifar10(3, width=4, blocks=1), SCHEDULE),
    "published, with an initializer": lambda: ep.RecoveryEBM(
        ep.ConvEnergy.drl_cifar10(3, width=4, blocks=1, output_scale=torch.tensor([0.1, 1.0, 2.0])),
        SCHEDULE,
        initializer=ep.UNetInitializer.cdrl_cifar10(3, width=8, blocks=1),
    ),
    "float64": lambda: ep.RecoveryEBM(ep.MLPEnergy((2,), **SMALL).double(), SCHEDULE),
    "another schedule and kernel": lambda: ep.RecoveryEBM(
        ep.MLPEnergy((2,), **SMALL), ep.NoiseSchedule.geometric_sigmas(3, low=0.1, high=3.0), kernel=CrankNicolson(0.7)
    ),
    "joint": lambda: ep.JointEBM(ep.MLPEnergy((2,), **SMALL), SCHEDULE),
    "ebm": lambda: ep.EBM(ep.MLPEnergy((2,), **SMALL), kernel=MALA(0.2, force_dtype=torch.bfloat16)),
    "ebm by a Hamiltonian kernel": lambda: ep.EBM(ep.MLPEnergy((2,), **SMALL), kernel=HMC(0.1, 3, inverse_mass=mass())),
    "multiscale": lambda: ep.MultiscaleEBM(ep.MLPEnergy((2,), **SMALL), [2.0, 1.0, 0.3], base_sigma=0.5),
    "the prior of latents": lambda: ep.models.LatentPrior(
        ep.MLPEnergy((2,), **{**SMALL, "levels": 1}), chains=9, num_steps=3, adaptation_rate=0.2
    ),
    "a scalar": lambda: ep.EBM(ep.MLPEnergy((), **SMALL)),
}


def sampled(model: Any) -> Tensor:
    """Few samples under one seed, by few moves."""
    torch.manual_seed(3)
    options: dict[str, Any] = {"steps": 5}
    if isinstance(model, ep.JointEBM):
        options = {"visits": 1, "num_steps": 2, "max_sweeps": 200}
    if isinstance(model, ep.MultiscaleEBM):
        options = {}
    found: Tensor = model.sample((4,), **options)
    return found


def disturbed(model: EnergyModel) -> EnergyModel:
    """Weights and buffers unlike those of a fresh model."""
    for value in model.state_dict().values():
        if value.dtype.is_floating_point and value.dim():
            value.add_(0.01 * torch.rand_like(value))
    return model


def require_equal(ours: EnergyModel, theirs: EnergyModel) -> None:
    assert type(ours) is type(theirs)
    one, other = ours.state_dict(), theirs.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    assert [m.training for m in ours.modules()] == [m.training for m in theirs.modules()]
    x = torch.randn(6, *ours.event_shape, dtype=ours.loc.dtype)
    with torch.no_grad():
        assert torch.equal(ours.marginal().energy(x), theirs.marginal().energy(x))
    assert torch.equal(sampled(ours), sampled(theirs))


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.filterwarnings("ignore:.*chains visited level")  # untrained joint models
def test_a_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = disturbed(MODELS[name]()).eval()
    model.net.train()  # a part in another mode than the whole
    save(model, tmp_path / "m")
    state = torch.get_rng_state()
    back = load(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), state)  # building it draws no numbers of the caller's
    save(back, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()
    require_equal(model, back)


def test_a_trained_model_keeps_standardization_steps_and_chains(tmp_path: Path) -> None:
    data = ep.toys.TwoMoons().sample((300,)) * 5.0 + 3.0
    options = ep.TrainingOptions(steps=10, evaluate_every=10)
    models: list[Any] = [ep.RecoveryEBM(ep.MLPEnergy((2,), **SMALL), SCHEDULE), ep.EBM(ep.MLPEnergy((2,), **SMALL))]
    for model in models:
        ep.fit(model, data, options=options, progress=False)
        save(model, tmp_path / "m")
        back = load(tmp_path / "m")
        assert bool(back.is_standardized)
        assert float(back.loc.mean()) > 2.0
        require_equal(model, back)


def test_log_z_by_annealing_is_kept_until_the_weights_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annealed by few particles, since only what becomes of the result is looked at."""
    ebm = ep.EBM(ep.MLPEnergy((3,), **SMALL))
    method, base = ep.normalizing.AIS(particles=32), ep.potentials.GaussianBase(torch.zeros(3), torch.ones(3))
    one = ep.Estimate(1.0, 0.1)
    annealed = replace(
        ep.log_normalizer(ebm.potential(), method=method, base=base), forward=one, bridge=one, unvisited=0.1
    )
    with monkeypatch.context() as patch:
        patch.setattr(type(ebm), "_anneal", lambda *_, **__: annealed)
        found = ebm.log_normalizer()
    assert found is annealed
    save(ebm, tmp_path / "m")
    back = load(tmp_path / "m")
    with monkeypatch.context() as patch:
        patch.setattr(type(back), "_anneal", None)  # whoever calls it fails
        assert back.log_normalizer() == found
        with torch.no_grad():
            next(back.net.parameters()).add_(0.1)
        with pytest.raises(TypeError):
            back.log_normalizer()


def test_a_model_built_under_another_default_dtype_and_from_numpy_s_numbers_comes_back(tmp_path: Path) -> None:
    """Frequencies and amplitudes that are worked out, and not kept, are rounded as they were."""
    x, context = torch.randn(6, 9), torch.randn(6, 9)
    for built in (torch.float32, torch.float64):
        for read in (torch.float32, torch.float64):
            torch.set_default_dtype(built)
            try:
                table = ep.RecoveryEBM(ep.MLPEnergy((np.int64(9),), hidden=np.int64(8), depth=1), SCHEDULE)
                given = ep.models.ConditionalEBM(ep.MLPEnergy(9, hidden=8, context_shape=9), SCHEDULE)
                for net in (table.net, given.net):
                    for value in net.parameters():
                        nn.init.normal_(value, std=0.1)
                save(table, tmp_path / "table")
                save(given, tmp_path / "given")
                torch.set_default_dtype(read)
                same, again = load(tmp_path / "table"), load(tmp_path / "given")
            finally:
                torch.set_default_dtype(torch.float32)
            points, told = x.to(built), context.to(built)
            assert torch.equal(same.marginal().energy(points), table.marginal().energy(points))
            assert torch.equal(again.given(told).energy(points), given.given(told).energy(points))


@pytest.mark.parametrize("name", ["recovery with an initializer", "joint", "multiscale", "the prior of latents"])
def test_numbers_that_no_model_has_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path, model = tmp_path / "m", MODELS[name]()
    save(model, path)
    tree = ep.load_checkpoint(path)
    wrong = {(each, math.nan) for each, value in tree["weights"].items() if value.is_floating_point()}
    wrong -= {("sigmas", math.nan)}  # which the model itself refuses
    wrong |= {(each, math.inf) for each, _ in model.named_parameters()} | {("scale", 0.0), ("scale", -1.0)}
    wrong |= {("base_sigma", 0.0)} if name == "multiscale" else set()
    for each, number in sorted(wrong, key=str):
        weights = {**tree["weights"], each: torch.full_like(tree["weights"][each], number)}
        ep.save_checkpoint(path, {**tree, "weights": weights})
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} .*{re.escape(each)} (has NaN|is not|must)"):
            load(path)


# --- Networks of one's own ---


def test_a_network_of_ones_own_is_passed_in(tmp_path: Path) -> None:
    model = ep.RecoveryEBM(Own(), SCHEDULE, event_shape=(2,))
    save(model, tmp_path / "m")
    require_equal(model, load(tmp_path / "m", Own()))
    with pytest.raises(InvalidInput, match=r"weights of its net and not how.*Own.*pass it as net="):
        load(tmp_path / "m")
    with pytest.raises(InvalidInput, match=r"net must have the weights.*layers.0.weight is float32 \(9, 2\) here and"):
        load(tmp_path / "m", Own(9))
    with pytest.raises(InvalidInput, match=r"layers.0.weight is float64 \(8, 2\) here and float32 \(8, 2\) there"):
        load(tmp_path / "m", Own().double())
    with pytest.raises(InvalidInput, match=r"is missing here"):
        load(tmp_path / "m", nn.Identity())
    with pytest.raises(InvalidInput, match="net must be a torch module; got str"):
        load(tmp_path / "m", "net")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="has no initializer; got one: leave it out"):
        load(tmp_path / "m", Own(), initializer=Own())


def test_a_network_of_ours_that_numbers_do_not_describe_is_passed_in(tmp_path: Path) -> None:
    def net() -> ep.ConvEnergy:
        return ep.ConvEnergy((1, 8, 8), activation=nn.LeakyReLU(0.3), **IMAGE)

    model = ep.EBM(net())
    save(model, tmp_path / "m")
    with pytest.raises(InvalidInput, match="pass it as net="):
        load(tmp_path / "m")
    require_equal(model, load(tmp_path / "m", net()))


# --- What is refused ---


class OwnKernel(MALA):
    """A user's kernel."""


def test_what_can_not_be_saved_is_refused_in_words(tmp_path: Path) -> None:
    refused: dict[str, tuple[Any, str]] = {
        "network": (Own(), "model must be one of ConditionalEBM, .*; got Own: save the model that it is made of"),
        "class": (labelled().given(1), "save the model"),  # type: ignore[attr-defined]
        "kernel": (
            ep.EBM(Own(), event_shape=(2,), kernel=OwnKernel(0.1)),
            "must be one of energyppl.kernels.*OwnKernel",
        ),
    }
    for model, message in refused.values():
        with pytest.raises(InvalidInput, match=message):
            save(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    """Nor does the file that was there change; infinite numbers that a network holds as a mask are its own affair."""
    model = MODELS["recovery"]()
    save(model, tmp_path / "m")
    before = (tmp_path / "m").read_bytes()
    for name, number in (("net.film", math.nan), ("net.film", math.inf), ("scale", 0.0), ("loc", math.nan)):
        broken = copy.deepcopy(model)
        with torch.no_grad():
            broken.get_parameter(name).fill_(number) if "net" in name else broken.get_buffer(name).fill_(number)
        with pytest.raises(
            InvalidInput, match=f"must have finite weights to be saved, but {re.escape(name)} (has|is|must)"
        ):
            save(broken, tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == before
    own = Own()
    own.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    save(ep.RecoveryEBM(own, SCHEDULE, event_shape=(2,)), tmp_path / "m")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(path)
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="not a whole energyppl checkpoint"):
        load(path)
    for tree, found in (([1], "list"), ({"weights": {}}, "a training run"), ({"format": "energyppl-table-3"}, "table")):
        ep.save_checkpoint(path, tree)
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} must hold a model.*it holds .*{found}"):
            load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "Module"},
        {"net": {"class": "Linear", "recipe": '{"constructor": "", "arguments": {}}'}},
        {"net": {"class": "MLPEnergy", "recipe": "{"}},
        {"net": {"class": "MLPEnergy", "recipe": '{"constructor": "load_state_dict", "arguments": {}}'}},
        {"net": {"class": "MLPEnergy", "recipe": '{"constructor": "", "arguments": {"x": {"activation": "system"}}}'}},
        {"kernels": [{"class": "Popen"}] * 2},
        {"kernels": None, "schedule": {"alpha_bar": 3}},
        {"weights": {}},
        {"in_training": None},
    ],
    ids=str,
)
def test_a_forged_file_builds_nothing_else(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "m"
    save(MODELS["recovery"](), path)
    ep.save_checkpoint(path, {**ep.load_checkpoint(path), **change})
    with pytest.raises((CheckpointError, InvalidInput), match=re.escape(str(path))):
        load(path)


def test_other_kernels_come_back(tmp_path: Path) -> None:
    for kernel in (
        NUTS(0.2, max_depth=3),
        CrankNicolson(0.2),
        HMC(torch.tensor(0.3), inverse_mass=torch.tensor([1.0, 2.0])),
    ):
        save(ep.EBM(Own(), event_shape=(2,), kernel=kernel), tmp_path / "m")  # type: ignore[arg-type]
        back = load(tmp_path / "m", Own()).kernel
        assert type(back) is type(kernel)
        assert float(back.step_size) == float(kernel.step_size)
    assert torch.equal(back.inverse_mass, torch.tensor([1.0, 2.0]))


def test_denoising_score_matching_models_too(tmp_path: Path) -> None:
    """An objective that needs no chains leaves none behind."""
    ebm = ep.EBM(ep.MLPEnergy((2,), **SMALL))
    options = ep.TrainingOptions(steps=3, evaluate_every=3)
    ep.fit(ebm, torch.randn(50, 2), DenoisingScoreMatching(0.1), options=options, progress=False)
    save(ebm, tmp_path / "m")
    require_equal(ebm, load(tmp_path / "m"))

"""Slips that a person makes in the first hour: those that mean one thing work, the others are named with the remedy."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import energyppl as ep
from energyppl.errors import CheckpointError

SCHEDULE = ep.NoiseSchedule.cosine(levels=3)


def net(**settings: Any) -> ep.MLPEnergy:
    return ep.MLPEnergy((2,), hidden=4, depth=1, frequencies=2, levels=4, **settings)


def recovery(**settings: Any) -> ep.RecoveryEBM:
    return ep.RecoveryEBM(net(**settings), SCHEDULE)


MODELS: dict[str, Callable[[], Any]] = {
    "RecoveryEBM": recovery,
    "JointEBM": lambda: ep.JointEBM(net(), SCHEDULE),
    "EBM": lambda: ep.EBM(net()),
    "MultiscaleEBM": lambda: ep.MultiscaleEBM(net(), [1.0, 0.5, 0.1]),
    "one class": lambda: recovery(classes=2).given(1),
    "product": lambda: ep.product(recovery(), recovery()),
}
SHORT: dict[str, dict[str, Any]] = {
    "JointEBM": {"max_sweeps": 2, "visits": 1},
    "MultiscaleEBM": {"schedule": ep.levels.TemperatureSchedule(hot=1, cooling=1, quench=1)},
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:.*chains visited level")
def test_a_number_is_a_shape_of_one_dimension(kind: str) -> None:
    options = SHORT.get(kind, {"steps": 2})
    assert MODELS[kind]().sample(5, **options).shape == (5, 2)
    assert MODELS[kind]().sample((5, 1), **options).shape == (5, 1, 2)


def test_a_network_of_points_takes_their_dimension() -> None:
    assert ep.MLPEnergy(2).event_shape == (2,)
    assert ep.MLPInitializer(3).event_shape == (3,)
    assert ep.Energy(lambda x: (x * x).sum(-1), 2).event_shape == (2,)


def test_fit_takes_its_steps_alone() -> None:
    data = torch.randn(40, 2)
    assert len(ep.fit(recovery(), data, steps=2, progress=False).records) == 2
    with pytest.raises(ep.InvalidInput, match="pass steps or options; got both"):
        ep.fit(recovery(), data, steps=2, options=ep.TrainingOptions(), progress=False)


def test_svi_wants_coordinates_first() -> None:
    ebm, data = recovery(), 100.0 + torch.randn(20, 2)
    with pytest.raises(ep.InvalidInput, match=r"call ebm.standardize\(data\) once"):
        ebm(data)
    ebm.standardize(data)
    ebm(data)


DATA = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no model": (lambda: ep.fit(None, DATA), "model must be a torch module .* got NoneType"),  # type: ignore[arg-type]
    "a model's class": (lambda: ep.fit(ep.EBM, DATA), "model must be a torch module"),  # type: ignore[arg-type]
    "an objective's class": (
        lambda: ep.fit(recovery(), DATA, ep.RecoveryLikelihood),  # type: ignore[arg-type]
        r"got the class RecoveryLikelihood: call it",
    ),
    "options a dict": (
        lambda: ep.fit(recovery(), DATA, options={"steps": 3}),  # type: ignore[arg-type]
        "options must be TrainingOptions; got dict",
    ),
    "classes without labels": (lambda: ep.fit(recovery(classes=3), DATA), "3 classes, and the rows came without label"),
    "half precision": (lambda: ep.fit(recovery().half(), DATA), "got torch.float16, which rounds small steps away"),
    "bfloat16": (lambda: ep.fit(recovery().bfloat16(), DATA), "got torch.bfloat16"),
    "all frozen": (lambda: ep.fit(recovery().requires_grad_(False), DATA), "parameters are frozen"),
    "two rows": (lambda: ep.fit(recovery(), DATA[:2]), "at least 3 row"),
    "a kernel's name": (lambda: ep.RecoveryEBM(net(), SCHEDULE, kernel="x"), "kernel must have one step size"),  # type: ignore[arg-type]
    "a kernel's class": (lambda: ep.JointEBM(net(), SCHEDULE, kernel=ep.MALA), "got the class MALA"),  # type: ignore[arg-type]
    "kernel of an EBM": (lambda: ep.EBM(net(), kernel=0.1), "kernel must have one step size"),  # type: ignore[arg-type]
    "kernel set later": (lambda: setattr(recovery(), "kernel", "MALA"), "kernel must have one step size"),
    "a network's class": (lambda: ep.EBM(ep.MLPEnergy), "net must be a torch module"),  # type: ignore[arg-type]
    "event_shape in words": (lambda: ep.MLPEnergy("2"), "event_shape must be a whole number or a sequence"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_slip_is_named(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ep.InvalidInput, match=message):
        make()


def test_training_without_autograd_is_refused() -> None:
    with torch.no_grad(), pytest.raises(ep.InvalidInput, match="autograd is off"):
        ep.fit(recovery(), DATA, progress=False)


# --- A state dict says which noise levels its weights are for ---


@pytest.mark.parametrize("model", [ep.RecoveryEBM, ep.JointEBM])
def test_weights_of_another_schedule_are_refused(model: Any) -> None:
    state = model(net(), SCHEDULE).state_dict()
    same = model(net(), ep.NoiseSchedule.cosine(levels=3)).half()
    same.load_state_dict(state)
    other = model(net(), ep.NoiseSchedule.cosine(levels=3, log_snr_max=5.0))
    before = other.checksum()
    with pytest.raises(CheckpointError, match=r"another noise schedule .at level 0 alpha_bar"):
        other.load_state_dict(state)
    assert other.checksum() == before, "nothing is taken over from weights that are refused"
    with pytest.raises(CheckpointError, match="3 levels, not 2"):
        model(net(), ep.NoiseSchedule.cosine(levels=2)).load_state_dict(state)
    with pytest.raises(RuntimeError, match=re.escape('"schedule"')):
        same.load_state_dict({name: value for name, value in state.items() if name != "schedule"})


# --- A model's network may be replaced ---


class Wrapped(nn.Module):
    """A network in a wrapper, as ``torch.compile`` and ``DataParallel`` leave it: forward only."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        energy: torch.Tensor = self.inner(x, level)
        return energy


@pytest.mark.filterwarnings("ignore")  # torch.compile warns of what it itself does to gradients
@pytest.mark.parametrize("wrap", [Wrapped, lambda inner: torch.compile(inner, backend="eager")], ids=["own", "compile"])
@pytest.mark.parametrize("kind", ["RecoveryEBM", "EBM", "MultiscaleEBM"])
def test_a_wrapped_network_is_the_model_s_network(kind: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    ebm, x = MODELS[kind](), torch.randn(6, 2)
    nn.init.normal_(ebm.net.readout.weight)
    before = ebm.potential()(x)
    ebm.net = wrap(ebm.net)
    torch.testing.assert_close(ebm.potential()(x), before)
    weights = [p.detach().clone() for p in ebm.parameters()]
    ep.fit(ebm, torch.randn(40, 2), steps=2, progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(weights, ebm.parameters(), strict=True))
    assert not torch.equal(ebm.potential()(x), before)


@pytest.mark.parametrize("wrong", ["x", None, lambda x, level: x.sum(-1)])
def test_what_is_no_network_does_not_become_one(wrong: object) -> None:
    ebm = MODELS["RecoveryEBM"]()
    with pytest.raises(ep.InvalidInput, match="net must be a torch module"):
        ebm.net = wrong


@pytest.mark.parametrize("unit", [1e-7, 1e-3, 1e6])
def test_units_don_t_make_a_column_constant(unit: float) -> None:
    """A spread of a fifth of the mean is found in every unit, and one within rounding is refused in every unit."""
    rows = unit * (5.0 + torch.randn(300, 2))
    ebm = recovery()
    ebm.standardize(rows)
    torch.testing.assert_close(ebm.scale, rows.std(0))
    rows[:, 1] = 5.0 * unit
    with pytest.raises(ep.InvalidInput, match=r"coordinate\(s\) \[1\] are constant"):
        ebm.standardize(rows)


def test_values_beyond_the_weights_dtype_are_refused() -> None:
    with pytest.raises(ep.InvalidInput, match=r"finite in torch.float32, the weights' dtype; got values up to 4e\+39"):
        recovery().standardize(torch.tensor([[1.0, 2.0], [4e39, 1.0], [2.0, 3.0]], dtype=torch.float64))


class Square(nn.Module):
    """½ w |x|², for points of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        energy: torch.Tensor = 0.5 * self.weight * x.square().flatten(1).sum(-1)
        return energy


NARROW: dict[str, Callable[[torch.Tensor], None]] = {
    "one value, and few far away": lambda column: column[30:].fill_(5.0),
    "one value for more than half": lambda column: column[400:].fill_(0.0),
    "nearly one value": lambda column: column[50:].mul_(1e-9),
    "a tenth far away": lambda column: column[:100].add_(1e3),
}


@pytest.mark.parametrize("model", ["RecoveryEBM", "EBM"])
@pytest.mark.parametrize("name", NARROW)
def test_a_column_of_mostly_one_value_is_named(name: str, model: str) -> None:
    rows = torch.randn(1000, 2)
    MODELS[model]().standardize(rows)  # of which nothing is to be said: warnings are errors here
    NARROW[name](rows[:, 1])
    with pytest.warns(UserWarning, match=r"coordinate\(s\) 1 is more than 10 times what the central half"):
        MODELS[model]().standardize(rows)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
def test_one_cell_does_not_ruin_a_scale_that_all_coordinates_share(shape: tuple[int, ...]) -> None:
    rows = 3.0 + torch.randn(500, *shape)
    ebm = ep.EBM(Square(), event_shape=shape)
    ebm.standardize(rows, isotropic=True)
    loc, scale = ebm.loc.clone(), ebm.scale.clone()
    rows[0].view(-1)[0] = 1e8
    with pytest.warns(UserWarning, match="a few cells rule the standard deviation of all coordinates"):
        ebm.standardize(rows, isotropic=True)
    torch.testing.assert_close(ebm.loc, loc, atol=0.2, rtol=0.0)
    torch.testing.assert_close(ebm.scale, scale, atol=0.0, rtol=0.2)


def test_columns_that_determine_each_other_are_refused() -> None:
    """In other units, as sums, or twice: the rows lie in a plane, where no density is."""
    a, b = torch.randn(2, 300)
    nearly = a + 1e-3 * torch.randn(300)
    for rows, which in (
        ((a, a), "[0, 1]"),
        ((a, b, 3.0 * a + 1.0), "[0, 2]"),
        ((a, b, a + b), "[0, 1, 2]"),
    ):
        with pytest.raises(ep.InvalidInput, match=f"coordinates {re.escape(which)} determine each other"):
            ep.RecoveryEBM(ep.MLPEnergy(len(rows), hidden=4), SCHEDULE).standardize(torch.stack(rows, 1))
    with pytest.warns(UserWarning, match="coordinates nearly determine each other"):
        recovery().standardize(torch.stack([a, nearly], 1))


def cut(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.detach().square().sum(-1)


@pytest.mark.parametrize("kernel", [ep.Langevin(0.3), ep.ChEES()])
def test_an_energy_without_a_gradient_is_warned_of(kernel: Any) -> None:
    energies = {
        "cut": cut,
        "whole": lambda x: 0.5 * x.square().sum(-1),
        "constant": lambda x: torch.zeros(x.shape[:-1]),
    }
    for name, energy in energies.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ep.sample_chains(kernel, ep.Energy(energy, (3,)), chains=4, draws=3, warmup=0, progress=False)
        assert any("the energy has no gradient" in str(w.message) for w in caught) == (name == "cut")
    with torch.inference_mode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ep.sample_chains(kernel, ep.Energy(energies["whole"], (3,)), chains=4, draws=3, warmup=0, progress=False)
    assert not any("the energy has no gradient" in str(w.message) for w in caught)


@pytest.mark.parametrize(
    ("energy", "came"),
    [
        (lambda x: 0.5 * x.square().sum(), r"got \(\)"),
        (lambda x: x.square(), r"got \(4, 3\)"),
        (lambda x: x.detach().numpy().sum(-1), "got ndarray"),
    ],
)
def test_energies_of_another_shape_are_named_where_chains_begin(energy: Any, came: str) -> None:
    with pytest.raises(ep.InvalidInput, match="the energy must return one number for each point.*" + came):
        ep.sample_chains(ep.HMC(), ep.Energy(energy, (3,)), chains=4, draws=5, progress=False)


def test_a_misspelt_argument_is_named_with_its_function() -> None:
    with pytest.raises(TypeError, match=r"log_normalizer\(\) got an unexpected keyword argument 'tolerence'"):
        ep.log_normalizer(ep.Energy(cut, (3,)), tolerence=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"quadrature\(\) missing 1 required positional argument: 'grid'"):
        ep.quadrature(ep.Energy(cut, (3,)))  # type: ignore[call-arg]

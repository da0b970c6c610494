"""An objective meets a model, a kernel, chains or labels that it can't use: one sentence, before training."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import energyppl as ep
from tests.support.objectives import loss_of

DATA = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3
QUICK = ep.TrainingOptions(steps=2, batch_size=32)
SCHEDULE = ep.NoiseSchedule.cosine(3)


def net(**settings: int) -> ep.MLPEnergy:
    return ep.MLPEnergy((2,), hidden=8, depth=1, frequencies=2, levels=4, **settings)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "EBM": lambda **settings: ep.EBM(net(**settings)),
    "JointEBM": lambda **settings: ep.JointEBM(net(**settings), SCHEDULE),
    "RecoveryEBM": lambda **settings: ep.RecoveryEBM(
        net(**settings), SCHEDULE, initializer=ep.MLPInitializer((2,), hidden=8)
    ),
    "MultiscaleEBM": lambda **settings: ep.MultiscaleEBM(net(**settings), [1.0, 0.1]),
}
USUAL = {
    "EBM": "PersistentLikelihood",
    "JointEBM": "PersistentLikelihood",
    "RecoveryEBM": "RecoveryLikelihood",
    "MultiscaleEBM": "MultiscaleScoreMatching",
}
OBJECTIVES: dict[str, Callable[[], Any]] = {
    "recovery": ep.RecoveryLikelihood,
    "cooperative": ep.CooperativeRecovery,
    "persistent": lambda: ep.PersistentLikelihood(slots=32, num_steps=2),
    "contrastive divergence": lambda: ep.objectives.ContrastiveDivergence(steps=2),
    "levels": ep.objectives.LevelScoreMatching,
}
FITTING = {
    "recovery": {"RecoveryEBM"},
    "cooperative": {"RecoveryEBM"},
    "persistent": {"EBM", "JointEBM"},
    "contrastive divergence": {"EBM"},
    "levels": {"RecoveryEBM"},
}
SENTENCE = {
    "recovery": "recovery likelihood needs .*, as a RecoveryEBM",
    "cooperative": "cooperative training needs .*, as a RecoveryEBM",
    "persistent": "persistent likelihood needs .*, as an EBM or a JointEBM",
    "contrastive divergence": "contrastive divergence .* one energy",
    "levels": "score matching at every level",
}


def quick_fit(model: nn.Module, objective: Any = None, labels: Any = None) -> ep.History:
    return ep.fit(model, DATA, objective, labels=labels, options=QUICK, progress=False)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_says_which_model_it_needs_and_what_trains_this_one(objective: str, model: str) -> None:
    ebm = MODELS[model]()
    if model in FITTING[objective]:
        assert len(quick_fit(ebm, OBJECTIVES[objective]()).records) == 2
        return
    before = [name for name, _ in ebm.named_buffers()]
    # For one energy there is score matching too, with its own advice.
    advice = f"train it by {USUAL[model]}" if objective != "levels" or model == "JointEBM" else "DenoisingScoreMatching"
    with pytest.raises(ep.InvalidInput, match=rf"{SENTENCE[objective]}.*got .*{model}.*{advice}"):
        quick_fit(ebm, OBJECTIVES[objective]())
    assert [name for name, _ in ebm.named_buffers()] == before


class Quadratic(nn.Module):
    """A user's own model of one energy: no more than persistent likelihood asks for."""

    levels, schedule, initial_kernel = 1, None, ep.MALA(0.1)
    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.register_buffer("loc", torch.zeros(2))

    def potential(self, level: int | Tensor = 0) -> ep.Energy:
        return ep.Energy(lambda x: 0.5 * x.square().sum(-1) + self.net(x)[..., 0], self.event_shape)

    def to_unit(self, data: Tensor) -> Tensor:
        return data


class Noised(Quadratic):
    """A user's own model of levels: no more than recovery likelihood asks for."""

    levels, schedule, initializer = SCHEDULE.levels, SCHEDULE, None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        (Quadratic, ep.PersistentLikelihood(slots=16, num_steps=2)),
        (Quadratic, ep.objectives.ContrastiveDivergence(steps=2)),
        (Noised, ep.RecoveryLikelihood()),
        (Noised, ep.objectives.LevelScoreMatching()),
    ],
)
def test_a_users_own_model_still_serves(model: Callable[[], nn.Module], objective: Any) -> None:
    assert len(quick_fit(model(), objective).records) == 2


def test_a_users_own_model_is_told_what_it_lacks() -> None:
    with pytest.raises(ep.InvalidInput, match="got Quadratic, without initializer"):
        quick_fit(Quadratic(), ep.RecoveryLikelihood())


# --- Kernels and chains ---

ADAPTED: list[Callable[..., Any]] = [
    ep.RecoveryLikelihood,
    ep.PersistentLikelihood,
    ep.objectives.ContrastiveDivergence,
    ep.CooperativeRecovery,
]


@pytest.mark.parametrize("objective", ADAPTED)
@pytest.mark.parametrize(
    ("kernel", "came"),
    [
        (ep.MALA, "the class MALA"),
        (ep.kernels.Cycle(ep.MALA(0.1), ep.HMC()), "Cycle"),
        (ep.ChEES(), "ChEES"),
        (0.1, "float"),
    ],
)
def test_a_kernel_must_have_one_step_size_to_adapt(objective: Callable[..., Any], kernel: Any, came: str) -> None:
    with pytest.raises(ep.InvalidInput, match=rf"kernel must have one step size .*; got {came}: pass"):
        objective(kernel=kernel)


def test_kernels_that_can_be_adapted_pass() -> None:
    for objective in ADAPTED:
        for kernel in (ep.MALA(0.1), ep.HMC(), ep.kernels.MALT(), ep.kernels.CrankNicolson()):
            objective(kernel=kernel)
    ep.objectives.ContrastiveDivergence(ep.Langevin(0.1))
    assert replace(ep.RecoveryLikelihood(adapt=False), kernel=ep.Langevin(0.1)).kernel is not None


def test_chains_must_be_a_buffer() -> None:
    with pytest.raises(ep.InvalidInput, match=r"buffer must be a ChainBuffer; got Tensor: "):
        ep.PersistentLikelihood(buffer=torch.zeros(10, 2))  # type: ignore[arg-type]


# --- Labels ---


@pytest.mark.parametrize("model", ["EBM", "JointEBM", "MultiscaleEBM"])
def test_labels_for_a_model_that_takes_none(model: str) -> None:
    """Its network has classes, so building another would not help."""
    with pytest.raises(ep.InvalidInput, match=f"labels need a model that .*, as RecoveryEBM; got {model}: leave"):
        quick_fit(MODELS[model](classes=3), labels=LABELS)


def test_labels_for_a_network_without_classes() -> None:
    with pytest.raises(ep.InvalidInput, match="whose network has classes; got MLPEnergy without: build it"):
        quick_fit(MODELS["RecoveryEBM"](), labels=LABELS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.tolist(), "labels must be a torch tensor; got list: wrap it in torch.as_tensor"),
        (LABELS.float(), "one whole number for each of 60 rows; got torch.float32"),
        (LABELS.to(torch.complex64), "one whole number for each of 60 rows; got torch.complex64"),
    ],
)
def test_labels_must_be_a_tensor_of_whole_numbers(labels: Any, message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        quick_fit(MODELS["RecoveryEBM"](classes=3), labels=labels)


def test_exact_likelihood_refuses_labels_but_trains_one_class() -> None:
    ebm = MODELS["RecoveryEBM"](classes=3)
    with pytest.raises(ep.InvalidInput, match=r"exact likelihood is of one density.*got one for each of 32 rows: "):
        quick_fit(ebm, ep.objectives.ExactLikelihood(points=16), labels=LABELS)
    objective = ep.objectives.ExactLikelihood(points=16)
    assert bool(torch.isfinite(loss_of(objective, ebm.given(1), 0.1 * DATA).value))  # type: ignore[operator]


class Drawn(ep.potentials.GaussianBase):
    """A standard normal whose draws are given."""

    def __init__(self, draws: Tensor) -> None:
        super().__init__(torch.zeros(2), torch.ones(2))
        self.__dict__["draws"] = draws

    def sample(self, count: int) -> Tensor:
        assert count == len(self.draws)
        return self.draws


@pytest.mark.parametrize("ratio", [1, 3])
def test_noise_contrast_gives_noise_the_labels_of_its_rows(ratio: int) -> None:
    """A batch with labels has the mean loss of each class's own rows and noise."""
    ebm = ep.RecoveryEBM(net(classes=3), ep.NoiseSchedule.sqrtcumlinear(3))  # level 0 is clean
    assert len(quick_fit(ebm, ep.objectives.NoiseContrastive(ratio=ratio), labels=LABELS).records) == 2
    nn.init.normal_(ebm.net.class_film, std=3.0)  # so that the labels matter  # type: ignore[arg-type]
    noise = torch.randn(ratio, 60, 2)

    def of_class(rows: Tensor, label: int | Tensor) -> Tensor:
        objective = ep.objectives.NoiseContrastive(Drawn(noise[:, rows].flatten(0, 1)), ratio)
        state = objective.init(ebm)
        state.noise.fill_(1.0)  # as if it had begun
        return loss_of(objective, ebm.given(label), DATA[rows], state).value.detach()

    alone = torch.stack([of_class((label == LABELS).nonzero()[:, 0], label) for label in range(3)])
    torch.testing.assert_close(of_class(torch.arange(60), LABELS), alone.mean(), rtol=1e-5, atol=1e-6)
    assert abs(float(of_class(torch.arange(60), LABELS.roll(1)) - alone.mean())) > 1e-3, "negative control"

"""The checks of numbers, and the sentences that wrong arguments of the language's classes get."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import energyppl as ep
from energyppl._checks import (
    check_count,
    check_flag,
    check_kind,
    check_number,
    check_positive,
    check_shape,
    check_whole,
)
from energyppl.inference.kernels.contract import middle_step
from energyppl.potentials.network import AtLevel

WRONG_NUMBERS: dict[str, Any] = {
    "none": None,
    "text": "1.0",
    "list": [1.0],
    "nan": math.nan,
    "infinity": math.inf,
    "true": True,
    "complex": 1j,
    "truths": torch.tensor([True]),
    "nan inside": torch.tensor([1.0, math.nan]),
    "zero": 0.0,
    "negative": torch.tensor([1.0, -1.0]),
}


@pytest.mark.parametrize("name", WRONG_NUMBERS)
def test_check_positive_names_what_came(name: str) -> None:
    with pytest.raises(ep.InvalidInput, match=r"^gap must be positive and finite; got "):
        check_positive("gap", WRONG_NUMBERS[name])


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), torch.ones(3), torch.ones(3).long()])
def test_check_positive_takes_numbers(value: Any) -> None:
    check_positive("gap", value)
    check_positive("sigma", math.inf, or_infinite=True)


def test_a_long_value_is_named_by_its_shape() -> None:
    with pytest.raises(ep.InvalidInput, match=r"got a tensor of shape \(100,\)$"):
        check_positive("gap", torch.zeros(100))


@pytest.mark.parametrize("value", [1, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_numpy_are_numbers(value: Any) -> None:
    check_count("steps", value)
    check_kind("steps", value, int | None)
    assert check_shape("event_shape", value) == check_shape("event_shape", (value,)) == (int(value),)


def test_numbers_of_numpy_are_kept_in_files(tmp_path: Path) -> None:
    options = ep.TrainingOptions(steps=np.int64(2), learning_rate=np.float32(0.5))
    ebm = ep.EBM(ep.MLPEnergy((2,), hidden=4, levels=1), kernel=ep.HMC(0.1, steps=np.int64(5)))
    ep.save(ebm, tmp_path / "model.ckpt")
    assert ep.load(tmp_path / "model.ckpt").kernel.steps == 5
    training = ep.Training(ebm, torch.randn(40, 2), ep.objectives.NoiseContrastive(ratio=np.int64(2)), options=options)
    ep.save_checkpoint(tmp_path / "run.ckpt", training.state_dict())
    kept = ep.load_checkpoint(tmp_path / "run.ckpt")
    assert kept["options"]["steps"] == 2
    assert "ratio=2" in kept["objective"]


def test_a_step_size_of_numpy_is_a_step_size() -> None:
    assert middle_step(ep.MALA(np.float32(0.5))) == 0.5  # type: ignore[arg-type]


def test_an_estimate_has_the_confidence_that_was_asked_for() -> None:
    rows = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    wide, narrow = (
        ep.evaluation.mean_log_likelihood(ep.EnergyDistribution(NORMAL), rows, EXACT, confidence=confidence)
        for confidence in (None, 0.5)
    )
    assert (wide.confidence, narrow.confidence) == (0.95, 0.5)
    assert wide.lower < narrow.lower < narrow.upper < wide.upper


def test_the_length_of_a_tuple_is_said() -> None:
    with pytest.raises(ep.InvalidInput, match=r"limits must be a tuple of a number, a number or None; got \(1.0,\)"):
        check_kind("limits", (1.0,), tuple[float, float] | None)
    with pytest.raises(ep.InvalidInput, match=r"limits must be a sequence, each a number; got 1\.0"):
        check_kind("limits", 1.0, tuple[float, ...])


@pytest.mark.parametrize("value", [True, np.bool_(True), 2.0, "2", None, 0, math.nan, torch.tensor(2)])
def test_check_count_takes_whole_numbers_only(value: Any) -> None:
    with pytest.raises(ep.InvalidInput, match=r"^steps must be a whole number of at least 1; got "):
        check_count("steps", value)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (check_number, math.inf, "must be a finite number; got inf"),
        (check_number, "1", "must be a finite number; got '1'"),
        (check_flag, 1, "must be True or False; got 1"),
        (check_shape, 2.5, r"must be a tuple such as \(2,\); got 2.5"),
        (check_shape, True, r"must be a tuple such as \(2,\); got True"),
        (check_shape, -1, r"without negative sizes; got -1"),
        (check_shape, "ab", r"must be a tuple such as \(2,\)"),
        (check_shape, (2, -1), r"without negative sizes; got \(2, -1\)"),
        (check_shape, (2.5,), r"must be a tuple such as \(2,\); got \(2.5,\)"),
        (check_whole, 3, "must be a tensor of whole numbers; got int"),
        (check_whole, torch.ones(2), "must be whole numbers; got torch.float32"),
    ],
)
def test_other_checks(check: Callable[[str, Any], Any], value: Any, message: str) -> None:
    with pytest.raises(ep.InvalidInput, match=message):
        check("it", value)


NORMAL = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
CONTRASTIVE = ep.objectives.Contrastive
EXACT = ep.LogNormalizer(0.0, 0.0, 0.0, 0.0, 1, "exact")
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "energy of nothing": (lambda: ep.Energy(None, (2,)), "function must map points .* got None"),  # type: ignore[arg-type]
    "energy of a float": (lambda: ep.Energy(lambda x: x, 2.0), r"event_shape must be a tuple such as \(2,\); got 2.0"),  # type: ignore[arg-type]
    "factor in words": (lambda: ep.potentials.Scaled(NORMAL, "half"), "factor must be a number .* got 'half'"),  # type: ignore[arg-type]
    "factor true": (lambda: ep.potentials.Scaled(NORMAL, True), "factor must be a number .* got True"),
    "sigma in words": (lambda: ep.potentials.RecoveryPotential(NORMAL, torch.zeros(2), "1"), "sigma must be positive"),  # type: ignore[arg-type]
    "beta none": (lambda: ep.potentials.Bridge(NORMAL, NORMAL, None), "beta must be a number"),  # type: ignore[arg-type]
    "mask a list": (lambda: ep.potentials.Conditioned(NORMAL, torch.zeros(2), [True, False]), "free must be a boolean"),  # type: ignore[arg-type]
    "affine factor": (
        lambda: ep.potentials.Affine(NORMAL, torch.zeros(2), torch.zeros(2, 2)),
        "diagonal of factor must be positive",
    ),
    "affine shapes": (
        lambda: ep.potentials.Affine(NORMAL, torch.zeros(2), torch.eye(3)),
        r"factor must end in .*\(2, 2",
    ),
    "network none": (lambda: AtLevel(None, torch.tensor(0), (2,)), "net must map .* got NoneType"),  # type: ignore[arg-type]
    "level a number": (
        lambda: AtLevel(NORMAL, 0, torch.Size((2,))),
        "level must be a tensor of whole numbers; got int",
    ),  # type: ignore[arg-type]
    "condition of truth values": (
        lambda: AtLevel(NORMAL, torch.tensor(0), torch.Size((2,)), condition=torch.ones(3) > 0),
        "condition must be whole numbers; got torch.bool",
    ),
    "sampler": (lambda: ep.EnergyDistribution(NORMAL, sampler=3), "sampler must map .* got int"),  # type: ignore[arg-type]
    "log Z in words": (lambda: ep.EnergyDistribution(NORMAL, log_normalizer="0"), "log_normalizer must be a number"),  # type: ignore[arg-type]
    "log Z nan": (lambda: ep.EnergyDistribution(NORMAL, log_normalizer=math.nan), "must be a number; got NaN"),
    "a class of log Z": (lambda: ep.EnergyDistribution(NORMAL, log_normalizer=CONTRASTIVE), "log_normalizer must be"),  # type: ignore[arg-type]
    "like a dtype": (lambda: ep.EnergyDistribution(NORMAL, like=torch.float64), "like must be a tensor; got dtype"),  # type: ignore[arg-type]
    "batch a float": (lambda: ep.EnergyDistribution(NORMAL, batch_shape=3.0), "batch_shape must be a tuple"),  # type: ignore[arg-type]
    "sample of a float": (
        lambda: ep.EnergyDistribution(NORMAL, sampler=ep.sampling.MarkovSampler(ep.MALA(1.0), 1)).sample(5.0),  # type: ignore[arg-type]
        r"sample_shape must be a tuple such as \(2,\); got 5.0",
    ),
    "kernel": (lambda: CONTRASTIVE(ep.MALA), "kernel must have init and step"),  # type: ignore[arg-type]
    "steps": (lambda: CONTRASTIVE(ep.MALA(0.1), steps=0), "steps must be a whole number of at least 1"),
    "start": (lambda: CONTRASTIVE(ep.MALA(0.1), start="data"), "start must map .* got 'data'"),  # type: ignore[arg-type]
    "particles": (lambda: CONTRASTIVE(ep.MALA(0.1), particles=2.0), "particles must be a whole number"),  # type: ignore[arg-type]
    "negatives": (lambda: ep.objectives.FromNegatives([1.0]), "negatives must be a torch tensor; got list"),  # type: ignore[arg-type]
    "likelihood of a potential": (
        lambda: ep.evaluation.mean_log_likelihood(NORMAL, torch.ones(3, 2), EXACT),  # type: ignore[arg-type]
        "p must be an EnergyDistribution; got Energy",
    ),
    "confidence in percent": (
        lambda: ep.evaluation.mean_log_likelihood(
            ep.EnergyDistribution(NORMAL), torch.ones(3, 2), EXACT, confidence=95
        ),
        "confidence must lie between 0 and 1; got 9",
    ),
    "entropy with a number": (
        lambda: ep.evaluation.entropy(ep.EnergyDistribution(NORMAL), torch.ones(3, 2), 0.0),  # type: ignore[arg-type]
        "log_z must be a LogNormalizer; got float",
    ),
    "gaps of another shape": (
        lambda: ep.evaluation.bits_per_dimension(ep.Estimate(0.0, 0.0), (2,), gap=torch.ones(3)),
        r"one for each coordinate of \(2,\); got \(3,\)",
    ),
    "radii": (lambda: ep.toys.Rings(radii=3.0), "radii must be a tuple of positive numbers; got 3.0"),  # type: ignore[arg-type]
    "means": (lambda: ep.toys.IsotropicMixture("means", 1.0), "means must be numbers; got str"),  # type: ignore[arg-type]
    "centers": (lambda: ep.toys.OneDimensionalMixture(centers=None), "centers must be numbers; got NoneType"),  # type: ignore[arg-type]
    "toy": (lambda: ep.toys.Diffused(NORMAL, 1.0, 1.0), "toy must be one of energyppl.toys; got Energy"),  # type: ignore[arg-type]
    "sample of a toy": (lambda: ep.toys.Banana().sample(5.0), "sample_shape must be a tuple"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(ep.InvalidInput, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)

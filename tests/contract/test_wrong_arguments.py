"""Every argument of the public callables with every wrong value: refused by the library's own error, at once.

No random numbers decide here: every case is run, about 7,000 in some fifteen seconds.
"""

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import energyppl as ep
from tests.support.fuzz import TABLES as FIRST
from tests.support.fuzz_later import contexts_and_latents, tables
from tests.support.fuzz_rest import files_and_chains, pictures
from tests.support.fuzz_results import results_and_runs
from tests.support.wrong_values import WRONG, Case, cases

TABLES = {
    **FIRST,
    "contexts and latents": contexts_and_latents,
    "tables": tables,
    "pictures": pictures,
    "files and chains": files_and_chains,
    "results and runs": results_and_runs,
}
_SECONDS = 10.0  # for one call, which takes milliseconds

TRAINED_BY_DEFAULT = ("batch_size", "columns", "learning_rate", "levels", "missing", "steps", "transforms")

# What is no mistake, and why.
LEGITIMATE: dict[str, tuple[str, ...]] = {
    "-1": (
        *("Estimate.value", "Estimate.from_log_z", "LogNormalizer.estimate", "LogNormalizer.lower", "gather.dim"),
        # A sign that means something.
        *(
            "AtLevel.guidance",
            "AtLevel.loc",
            "Banana.curvature",
            "DoubleWell.tilt",
            "MLPEnergy.log_snr_min",
            "Pinwheel.rate",
        ),
        *("EnergyDistribution.log_normalizer", "RecoveryDistribution.log_normalizer", "Scaled.factor"),
        *("cosine.log_snr_max", "cosine.log_snr_min", "UNetEnergy.log_snr_min", "marginal_log_likelihood.log_z"),
        # Torch takes negative seeds.
        "prediction_quality.seed",
        *(f"tables.{name}.seed" for name in ("fit", "fit_conditional", "compare", "score", "surprises", "impute")),
        *(f"{name}.seed" for name in ("table.sample", "table.log_prob", "predict")),
        *(f"conditional.table.{name}.seed" for name in ("sample", "log_prob")),
    ),
    "inf": (
        *("Estimate.value", "Estimate.standard_error", "Estimate.from_log_z"),
        *("LogNormalizer.estimate", "LogNormalizer.standard_error", "LogNormalizer.upper"),
        # Documented: no limit, no tilt.
        *("MLPEnergy.saturation_radius", "MixtureBase.freedom", "PersistentLikelihood.room"),
        *("RecoveryDistribution.sigma", "RecoveryPotential.sigma"),
        *("problems.disagreement", "gap_plot.log_z", "log_weight_histogram.log_z"),
    ),
    "list": (
        *("NoisyToy.sample.sample_shape", "broadcast.tensors", "average_gradients.parameters", "Chains.notes"),
        # An empty shape is a scalar's; an empty sequence is none of what there may be.
        *("AIS.waypoints", "SMC.waypoints", "BAR.waypoints", "ReverseAIS.waypoints", "UNetInitializer.attention"),
        "AtLogSNR.event_shape",
        *("AtLevel.event_shape", "ChainBuffer.event_shape", "Energy.event_shape", "GaussianBase.event_shape"),
        *("MLPEnergy.event_shape", "MLPInitializer.event_shape", "bits_per_dimension.event_shape"),
        *("EnergyDistribution.batch_shape", "Banana.sample.sample_shape", "EBM.sample.sample_shape"),
        *(
            "conditional.sample.sample_shape",
            "quantiles.probabilities",
            "images_from_array.classes",
            "requantize.grids",
        ),
        *(f"{name}.drop" for name in ("table_from_frame", "table_from_rows", "tables.compare")),
        *("tables.fit.drop", "tables.fit_conditional.drop"),
        *("JointEBM.sample.sample_shape", "MultiscaleEBM.sample.sample_shape", "RecoveryEBM.sample.sample_shape"),
    ),
    "other shape": (
        *("gather.value", "Measured.gain", "Chains.draws"),  # diagnostics may be of fewer draws
        # Batches of any shape are taken; what they must fit is known at a call only.
        *("AtLevel.loc", "AtLevel.scale", "Bridge.beta", "MALT.friction", "Scaled.factor", "FromNegatives.negatives"),
        *("EnergyDistribution.like", "EnergyDistribution.log_normalizer", "RecoveryDistribution.log_normalizer"),
        *("quantiles.probabilities", "mode_occupancy.points", "schedule.diffuse.x0", "schedule.pairs.x0"),
        *("AtLogSNR.log_snr", "image_grid.images"),
        *("diagonal_mass.draws", "identity_mass.draws", "low_rank_mass.draws"),
    ),
    "nan tensor": (
        *("gather.value", "NoisyToy.log_prob.x", "Chains.draws"),
        # Values are not looked at where chains or gradients pass at every step: NaN comes out, and chains flag it.
        *("Affine.loc", "AtLevel.loc", "AtLevel.scale", "Conditioned.observed", "FromNegatives.negatives"),
        *("EnergyDistribution.like", "EnergyDistribution.log_normalizer", "RecoveryDistribution.log_normalizer"),
        *("RecoveryDistribution.noisy", "RecoveryPotential.center", "RecoveryEBM.recovery.noisy"),
        *("Banana.log_prob.x", "EBM.log_prob.x", "EnergyDistribution.log_prob.value", "JointEBM.level_energies.x"),
        *("RecoveryEBM.log_prob.x", "RecoveryEBM.diffuse.x0", "schedule.diffuse.x0", "schedule.pairs.x0"),
        *("anneal_temperature.x", "denoising_jump.x", "energy_and_grad.x", "run_chain.x"),
        "tables.impute.rows",  # all cells are missing
        *("AtLogSNR.log_snr", "gradient_only.x", "draw_levels.x"),
        *("diagonal_mass.draws", "identity_mass.draws", "low_rank_mass.draws"),
        # A picture of them is empty.
        *("energy_landscape.data", "energy_landscape.energy", "energy_plot.total_energy", "pair_plot.samples"),
    ),
    "text": ("tables.fit_conditional.predict", "LogNormalizer.method"),  # "x" is a column, or a method
    "nan": (
        # What is not known.
        *("Estimate.value", "Estimate.standard_error", "Estimate.from_log_z"),
        *("LogNormalizer.estimate", "LogNormalizer.standard_error", "LogNormalizer.lower", "LogNormalizer.upper"),
    ),
    "complex": ("gather.value",),
    "dict": (
        *("mean.numbers", "Chains.attributes", "calibrate.kwargs"),
        # Nothing is given, or no column has a transform of its own.
        *("marginal_log_likelihood.kwargs", "table.sample.given"),
        *("tables.fit.transforms", "tables.fit_conditional.transforms", "TableTransform.fit.kinds"),
    ),
    "None": (
        *("anneal.islands", "anneal.before", "Chains.total_energy", "Chains.tree_depth", "Chains.warmup"),
        *(f"calibrate.{name}" for name in ("prior", "kwargs", "quantities", "simulator")),
        # None is the default, or a value of its own.
        *(f"{name}.event_shape" for name in ("EBM", "JointEBM", "MultiscaleEBM", "RecoveryEBM", "GaussianBase")),
        *(f"{name}.kernel" for name in ("EBM", "JointEBM", "RecoveryEBM", "RecoveryEBM.tune", "RecoveryLikelihood")),
        *(f"{name}.kernel" for name in ("ContrastiveDivergence", "CooperativeRecovery", "PersistentLikelihood")),
        *(f"{name}.inverse_mass" for name in ("HMC", "NUTS", "ChEES", "MALT")),
        *(f"{name}.force_dtype" for name in ("HMC", "MALA", "ChEES", "Langevin", "MALT", "CrankNicolsonLangevin")),
        *(f"MLPEnergy.{name}" for name in ("axis_features", "frequencies", "levels", "saturation_radius")),
        *(f"{name}.frequency_range" for name in ("MLPEnergy", "MLPInitializer")),
        *(f"{name}.multipliers" for name in ("ConvEnergy", "UNetInitializer")),
        *(f"{name}.autocast" for name in ("RecoveryLikelihood", "PersistentLikelihood")),
        *(f"{name}.base" for name in ("NoiseContrastive", "Tempered", "log_normalizer")),
        *(f"{name}.temperatures" for name in ("AIS", "SMC", "BAR", "ReverseAIS", "recovery_normalizers")),
        *("TableTransform.fit.kinds", "flat.count", "load.initializer", "load.net", "pilot_run.betas"),
        *("read_images.levels", "gap_plot.log_z", "log_weight_histogram.log_z"),
        *("ConvEnergy.levels", "RecoveryEBM.sample.steps"),
        *(f"fit.{name}" for name in ("device", "held_out", "labels", "objective", "options")),
        *(f"Training.{name}" for name in ("objective", "options")),
        *(f"TrainingOptions.{name}" for name in ("learning_rate", "clip", "max_gap", "label_drop")),
        *(f"EnergyDistribution.{name}" for name in ("like", "log_normalizer", "sampler", "support")),
        *(f"RecoveryDistribution.{name}" for name in ("log_normalizer", "sampler")),
        *(f"{name}.dtype" for name in ("GridOptions", "energy_and_grad")),
        *(f"{name}.weights" for name in ("GaussianMixture", "IsotropicMixture", "Mixture", "mixture", "product")),
        *(f"log_normalizer.{name}" for name in ("max_evaluations", "method", "samples", "tolerance")),
        *(f"MultiscaleEBM.sample.{name}" for name in ("schedule", "step_size")),
        *(f"anneal_temperature.{name}" for name in ("schedule", "seen")),
        *(f"sample_chains.{name}" for name in ("init", "target_acceptance")),
        *("CooperativeRecovery.steps", "IsotropicMixture.labels", "LevelScoreMatching.tie"),
        *("PersistentLikelihood.buffer", "RecoveryEBM.initializer", "RecoveryEBM.sample.micro_batch"),
        *("adapt.target_acceptance", "label_balance.expected", "schedule.pairs.upper"),
        *(f"ConditionalEBM.{name}" for name in ("context_shape", "encoder", "event_shape", "kernel")),
        *(f"marginal_log_likelihood.{name}" for name in ("guide", "kwargs", "temperatures")),
        *("LatentPrior.event_shape", "LatentPrior.kernel", "PosteriorGuide.kernel", "PosteriorGuide.start"),
        *("Resampled.tried", "chi_square_test.bins", "coverage.groups", "rank_coverage.groups", "interpolate.level"),
        *("model_of_columns.levels", "process_log_likelihood.temperatures", "region_masses.samples"),
        *("conditional.table.sample.seed", "table.sample.seed", "table.sample.given", "table.log_prob.log_z"),
        *(f"images_from_array.{name}" for name in ("labels", "levels", "value_range")),
        *(f"{name}.columns" for name in ("table_from_array", "table_from_frame", "table_from_rows", "tables.compare")),
        *(f"{name}.missing" for name in ("table_from_frame", "table_from_rows", "tables.compare")),
        *("table_from_frame.like", "table_from_rows.like", "tables.score.log_z"),
        *(f"tables.fit.{name}" for name in TRAINED_BY_DEFAULT),
        *(f"tables.fit_conditional.{name}" for name in TRAINED_BY_DEFAULT),
    ),
}


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where what is inside takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _outcome(function: Any, arguments: dict[str, Any]) -> str:
    try:
        with _within(_SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**arguments)
    except ep.EnergyPPLError as error:
        return "" if "\n" not in str(error) else "refused in more than one line"
    except Exception as error:  # the finding itself
        return f"{type(error).__name__}: {str(error)[:80]}"
    return "accepted"


def _is_legitimate(case: Case) -> bool:
    return f"{case.call}.{case.argument}" in LEGITIMATE.get(case.wrong, ())


@pytest.mark.parametrize("table", TABLES)
def test_wrong_arguments_are_refused_by_our_own_errors(table: str) -> None:
    calls = TABLES[table]()
    for name, (function, arguments) in calls.items():
        assert _outcome(function, arguments) == "accepted", f"{name} with arguments that work"
    tried = [case for case in cases(calls) if not _is_legitimate(case)]
    found = {c: _outcome(calls[c.call][0], {**calls[c.call][1], c.argument: WRONG[c.wrong]}) for c in tried}
    faults = {case: outcome for case, outcome in found.items() if outcome}
    accepted = [case for case, outcome in faults.items() if outcome == "accepted" or "Timeout" in outcome]
    assert not accepted, "accepted, though it can't work"
    assert len(faults) <= 0.03 * len(tried), faults


def test_the_table_is_large_and_its_exceptions_exist() -> None:
    every = [case for make in TABLES.values() for case in cases(make())]
    legitimate = [case for case in every if _is_legitimate(case)]
    assert len(every) - len(legitimate) >= 900
    assert len(legitimate) == sum(len(names) for names in LEGITIMATE.values()), "an exception names no case"


EBM = ep.EBM(ep.MLPEnergy((2,), hidden=4, levels=1))
LATE: dict[str, tuple[Callable[[], Any], str]] = {
    "no path to save at": (lambda: ep.save(EBM, None), "a path must be a text or a pathlib.Path; got None"),  # type: ignore[arg-type]
    "no path to load": (lambda: ep.load(3), "a path must be a text"),  # type: ignore[arg-type]
    "tree and path swapped": (lambda: ep.save_checkpoint({}, "x"), "a path must be a text"),  # type: ignore[arg-type]
    "no table": (lambda: ep.data.read_table(None), "a path must be a text"),  # type: ignore[arg-type]
    "no images": (lambda: ep.data.read_images(None), "a path must be a text"),  # type: ignore[arg-type]
    "no coordinates": (lambda: ep.MLPEnergy(0), "without empty sizes; got 0"),
    "a grid beyond memory": (
        lambda: ep.quadrature(ep.Energy(lambda x: x.sum(-1), (2,)), ep.Grid((0.0, 0.0), (1.0, 1.0), (10**6, 10**6))),
        "at most 67,108,864 nodes; got 1,000,000,000,000",
    ),
    "a text for a value": (lambda: ep.Estimate("a", 1.0), "value must be a number; got 'a'"),  # type: ignore[arg-type]
    "a negative error": (lambda: ep.Estimate(1.0, -1.0), "standard_error must not be negative; got -1.0"),
    "ends swapped": (
        lambda: ep.LogNormalizer(1.0, 0.0, 2.0, 0.0, 1, "x"),
        "lower must be below upper; got 2.0 and 0.0",
    ),
    "a list for a log Z that was kept": (
        lambda: ep.LogNormalizer.from_dict([]),  # type: ignore[arg-type]
        r"log Z must be a Mapping; got \[\]",
    ),
    "a text for a count that was kept": (
        lambda: ep.LogNormalizer.from_dict(
            {**ep.LogNormalizer(1.0, 0.1, 0.8, 1.2, 1, "x").to_dict(), "evaluations": "x"}
        ),
        "evaluations must be a whole number of at least 0; got 'x'",
    ),
    "log Z of another batch": (
        lambda: ep.EnergyDistribution(ep.Energy(lambda x: x.sum(-1), (2,)), log_normalizer=torch.zeros(3)),
        r"log_normalizer must broadcast to batch_shape \(\); got \(3,\)",
    ),
    "no measurement": (
        lambda: ep.measured(ep.RecoveryEBM(ep.MLPEnergy(2), ep.NoiseSchedule.cosine(levels=2)), None),  # type: ignore[arg-type]
        "measurement must be a LinearMeasurement; got NoneType",
    ),
}


@pytest.mark.parametrize("name", LATE)
def test_what_used_to_fail_later_is_refused_at_once(name: str) -> None:
    call, message = LATE[name]
    with pytest.raises(ep.EnergyPPLError, match=message):
        call()

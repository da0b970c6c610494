"""Public callables with arguments that work."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributions import constraints

import energyppl as ep

Calls = dict[str, tuple[Callable[..., Any], dict[str, Any]]]

NORMAL = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
SCHEDULE = ep.NoiseSchedule.cosine(levels=3)
ROWS = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
LOG_Z = ep.LogNormalizer(0.0, 0.1, -0.2, 0.2, 10, "exact")
LEVEL = torch.zeros((), dtype=torch.long)


def network() -> nn.Module:
    return ep.MLPEnergy((2,), hidden=4, depth=1, frequencies=2, levels=4)


def recovery() -> ep.RecoveryEBM:
    return ep.RecoveryEBM(network(), SCHEDULE)


def models_and_networks() -> Calls:
    """Return the callables of models, networks and schedules."""
    net, ebm, state = network(), recovery(), torch.get_rng_state()
    torch.set_rng_state(state)
    small = {"hidden": 4, "depth": 1, "frequencies": 2, "frequency_range": (1.0, 4.0), "levels": 4, "classes": 0}
    images = {"event_shape": (1, 8, 8), "width": 4, "multipliers": (1, 2), "blocks": 1, "levels": 3, "classes": 0}
    joint, one, many = ep.JointEBM(network(), SCHEDULE), ep.EBM(network()), ep.MultiscaleEBM(network(), [1.0, 0.5, 0.1])
    short = ep.levels.TemperatureSchedule(hot=1, cooling=1, quench=1)
    return {
        "EBM": (ep.EBM, {"net": net, "event_shape": (2,), "kernel": ep.MALA(0.1)}),
        "EBM.sample": (one.sample, {"sample_shape": (3,), "level": 0, "steps": 2}),
        "EBM.standardize": (one.standardize, {"data": ROWS, "isotropic": False}),
        "EBM.log_prob": (one.log_prob, {"x": ROWS}),
        "EBM.potential": (one.potential, {"level": 0}),
        "JointEBM": (ep.JointEBM, {"net": net, "schedule": SCHEDULE, "event_shape": (2,), "kernel": ep.MALA(0.1)}),
        "JointEBM.level_energies": (joint.level_energies, {"x": ROWS}),
        "JointEBM.sample": (
            joint.sample,
            {"sample_shape": (3,), "level": 0, "visits": 1, "num_steps": 1, "max_sweeps": 2},
        ),
        "MultiscaleEBM": (
            ep.MultiscaleEBM,
            {"net": net, "sigmas": [1.0, 0.5, 0.1], "base_sigma": 0.1, "event_shape": (2,)},
        ),
        "MultiscaleEBM.sample": (
            many.sample,
            {"sample_shape": (3,), "level": 0, "schedule": short, "step_size": 0.1, "denoise": True},
        ),
        "RecoveryEBM": (
            ep.RecoveryEBM,
            {"net": net, "schedule": SCHEDULE, "event_shape": (2,), "kernel": ep.MALA(0.1), "initializer": None},
        ),
        "RecoveryEBM.sample": (
            ebm.sample,
            {"sample_shape": (3,), "level": 0, "steps": 1, "denoise": False, "micro_batch": 2},
        ),
        "RecoveryEBM.standardize": (ebm.standardize, {"data": ROWS, "isotropic": False}),
        "RecoveryEBM.diffuse": (ebm.diffuse, {"x0": ROWS, "level": 0}),
        "RecoveryEBM.potential": (ebm.potential, {"level": 0}),
        "RecoveryEBM.marginal": (ebm.marginal, {"level": 0}),
        "RecoveryEBM.recovery": (ebm.recovery, {"noisy": ROWS, "level": 0, "steps": 1, "contrastive": False}),
        "RecoveryEBM.tune": (ebm.tune, {"data": ROWS, "kernel": ep.MALA(0.1), "steps": 2}),
        "RecoveryEBM.log_prob": (ebm.log_prob, {"x": ROWS}),
        "MLPEnergy": (
            ep.MLPEnergy,
            {
                "event_shape": (2,),
                **small,
                "axis_features": 0,
                "log_snr_min": -6.0,
                "confinement": 1.0,
                "saturation_radius": 2.0,
            },
        ),
        "MLPInitializer": (ep.MLPInitializer, {"event_shape": (2,), **small, "learn_scale": False}),
        "ConvEnergy": (ep.ConvEnergy, {**images, "spectral_norm": False, "confinement": 1.0, "shortcut_size": 1}),
        "UNetInitializer": (ep.UNetInitializer, {**images, "attention": (), "dropout": 0.0, "learn_scale": False}),
        "NoiseSchedule": (
            ep.NoiseSchedule,
            {"alpha_bar": [1.0, 0.6], "sigma_bar": [0.0, 0.8], "tilted_top": False},
        ),
        "cosine": (ep.NoiseSchedule.cosine, {"levels": 3, "log_snr_max": 9.0, "log_snr_min": -5.0}),
        "sqrtcumlinear": (ep.NoiseSchedule.sqrtcumlinear, {"levels": 3, "start": 1e-4, "end": 1e-2}),
        "linear_sigmas": (ep.NoiseSchedule.linear_sigmas, {"levels": 3, "low": 0.1, "high": 1.0}),
        "geometric_sigmas": (ep.NoiseSchedule.geometric_sigmas, {"levels": 3, "low": 0.1, "high": 1.0}),
        "schedule.diffuse": (SCHEDULE.diffuse, {"x0": ROWS, "level": 0}),
        "schedule.pairs": (SCHEDULE.pairs, {"x0": ROWS, "level": 0, "upper": 1, "shared_noise": False}),
        "product": (
            lambda first, weights: ep.product(first, ebm, weights=weights),
            {"first": ebm, "weights": (1.0, 1.0)},
        ),
        "mixture": (
            lambda first, weights: ep.mixture(first, ebm, weights=weights),
            {"first": ebm, "weights": (1.0, 1.0)},
        ),
        "measured": (
            ep.measured,
            {"ebm": ebm, "measurement": ep.LinearMeasurement(torch.eye(2), torch.zeros(2), 0.1)},
        ),
        "LinearMeasurement": (
            ep.LinearMeasurement,
            {"matrix": torch.eye(2), "observed": torch.zeros(2), "noise": 0.1},
        ),
    }


def training_and_objectives() -> Calls:
    """Return the callables of training and of objectives."""
    options = ep.TrainingOptions(steps=1)
    o = ep.objectives
    start = o.from_data
    adapting = {"adapt": True, "adaptation_rate": 0.1}
    return {
        "fit": (
            lambda **given: ep.fit(**{"model": recovery(), **given}),
            {
                "model": recovery(),
                "data": ROWS,
                "objective": ep.RecoveryLikelihood(),
                "labels": None,
                "held_out": ROWS,
                "options": options,
                "device": "cpu",
                "progress": False,
            },
        ),
        "Training": (ep.Training, {"model": recovery(), "data": ROWS, "objective": None, "options": options}),
        "TrainingOptions": (
            ep.TrainingOptions,
            {
                "steps": 5,
                "batch_size": 5,
                "learning_rate": 1e-3,
                "ema": 0.9,
                "clip": 10.0,
                "evaluate_every": 5,
                "patience": 5,
                "tolerance": 0.02,
                "max_gap": 100.0,
                "label_drop": 0.1,
            },
        ),
        "RecoveryLikelihood": (
            ep.RecoveryLikelihood,
            {
                "kernel": ep.MALA(0.1),
                "steps": 2,
                "start": start,
                **adapting,
                "level0_fraction": 0.2,
                "skip_fraction": 0.2,
                "shared_noise": False,
                "autocast": None,
            },
        ),
        "CooperativeRecovery": (
            ep.CooperativeRecovery,
            {
                "kernel": ep.MALA(0.1),
                "steps": 2,
                "recipe": ep.RecoveryLikelihood(),
                "from_initializer": False,
                "extra_chain_fraction": 0.0,
                "initializer_fraction": 0.2,
                "weight": 1.0,
            },
        ),
        "PersistentLikelihood": (
            ep.PersistentLikelihood,
            {
                "kernel": ep.MALA(0.1),
                "buffer": None,
                "slots": 16,
                "num_steps": 1,
                "sweeps": 1,
                "rejuvenate": 0.0,
                **adapting,
                "room": 4.6,
                "autocast": None,
            },
        ),
        "ChainBuffer": (o.ChainBuffer, {"event_shape": (2,), "slots": 8, "levels": 1}),
        "Contrastive": (o.Contrastive, {"kernel": ep.MALA(0.1), "steps": 1, "start": start, "particles": 4}),
        "ContrastiveDivergence": (o.ContrastiveDivergence, {"kernel": ep.MALA(0.1), "steps": 1, **adapting}),
        "DenoisingScoreMatching": (o.DenoisingScoreMatching, {"sigma": 0.3, "level": 0}),
        "ExactLikelihood": (o.ExactLikelihood, {"points": 16, "half_width": 6.0, "level": 0}),
        "ExactScoreMatching": (o.ExactScoreMatching, {"level": 0}),
        "FromNegatives": (o.FromNegatives, {"negatives": ROWS, "particles": 4}),
        "LevelScoreMatching": (o.LevelScoreMatching, {"tie": 0.1, "level0_fraction": 0.2}),
        "NoiseContrastive": (o.NoiseContrastive, {"base": None, "ratio": 1, "level": 0}),
        "SlicedScoreMatching": (o.SlicedScoreMatching, {"projections": 1, "level": 0}),
        "CooperativeGuide": (
            o.CooperativeGuide,
            {
                "model": ep.RecoveryEBM(network(), SCHEDULE, initializer=ep.MLPInitializer(2, hidden=4, levels=3)),
                "objective": ep.CooperativeRecovery(),
            },
        ),
    }


def kernels_and_energies() -> Calls:
    """Return the callables of kernels, potentials, distributions and toys."""
    k, p, t = ep.kernels, ep.potentials, ep.toys
    mass, step = {"inverse_mass": torch.ones(2)}, {"step_size": 0.1}
    free, one_d = torch.tensor([True, False]), ep.Energy(lambda x: (x * x).sum(-1), (1,))
    half = {"potential": one_d, "sampler": None, "log_normalizer": 0.0, "support": constraints.positive}
    return {
        "HMC": (ep.HMC, {**step, "steps": 2, "jitter": 0.2, **mass, "force_dtype": None}),
        "MALA": (ep.MALA, {**step, "force_dtype": None}),
        "NUTS": (ep.NUTS, {**step, "max_depth": 3, **mass}),
        "ChEES": (ep.ChEES, {**step, "length": 1.0, **mass, "force_dtype": None, "max_steps": 8}),
        "Langevin": (ep.Langevin, {**step, "force_dtype": None}),
        "MALT": (k.MALT, {**step, "steps": 2, "friction": 1.0, **mass, "force_dtype": None}),
        "BinaryGibbs": (k.BinaryGibbs, {"updates": 1}),
        "Block": (k.Block, {"kernel": ep.MALA(0.1), "free": free}),
        "CrankNicolson": (k.CrankNicolson, {**step, "reference_scale": 1.0}),
        "CrankNicolsonLangevin": (k.CrankNicolsonLangevin, {**step, "reference_scale": 1.0, "force_dtype": None}),
        "Cycle": (lambda kernel: k.Cycle(kernel), {"kernel": ep.MALA(0.1)}),
        "DiscreteLangevin": (k.DiscreteLangevin, step),
        "IndependentMetropolis": (k.IndependentMetropolis, {"proposal": torch.distributions.Normal(0.0, 1.0)}),
        "Mixture": (
            lambda kernel, weights: k.Mixture(kernel, weights=weights),
            {"kernel": ep.MALA(0.1), "weights": (1.0,)},
        ),
        "Tempered": (k.Tempered, {"kernel": ep.MALA(0.1), "betas": (1.0, 0.5), "base": None}),
        "Affine": (p.Affine, {"potential": NORMAL, "loc": torch.zeros(2), "factor": torch.eye(2)}),
        "AtLevel": (
            p.AtLevel,
            {"net": network(), "level": LEVEL, "event_shape": (2,), "loc": 0.0, "scale": 1.0, "guidance": 0.0},
        ),
        "BernoulliBase": (p.BernoulliBase, {"probs": torch.full((3,), 0.4)}),
        "Bridge": (p.Bridge, {"base": NORMAL, "target": NORMAL, "beta": 0.5}),
        "Conditioned": (p.Conditioned, {"potential": NORMAL, "observed": torch.zeros(2), "free": free}),
        "Constrained": (p.Constrained, {"potential": one_d, "support": constraints.positive}),
        "DistributionBase": (p.DistributionBase, {"distribution": torch.distributions.Normal(0.0, 1.0)}),
        "GaussianBase": (p.GaussianBase, {"loc": torch.zeros(2), "scale": torch.ones(2), "event_shape": (2,)}),
        "MixtureBase": (
            p.MixtureBase,
            {
                "means": torch.zeros(2, 2),
                "factors": torch.eye(2).repeat(2, 1, 1),
                "weights": torch.ones(2) / 2,
                "freedom": 5.0,
            },
        ),
        "RecoveryPotential": (p.RecoveryPotential, {"potential": NORMAL, "center": torch.zeros(2), "sigma": 1.0}),
        "Scaled": (p.Scaled, {"potential": NORMAL, "factor": 2.0}),
        "Sum": (lambda term: p.Sum(NORMAL, term), {"term": NORMAL}),
        "Energy": (ep.Energy, {"function": lambda x: x.sum(-1), "event_shape": (2,)}),
        "EnergyDistribution": (ep.EnergyDistribution, {**half, "batch_shape": (), "like": torch.zeros(())}),
        "EnergyDistribution.log_prob": (ep.EnergyDistribution(NORMAL, log_normalizer=0.0).log_prob, {"value": ROWS}),
        "RecoveryDistribution": (
            ep.RecoveryDistribution,
            {"potential": NORMAL, "noisy": ROWS, "sigma": 1.0, "sampler": None, "log_normalizer": 0.0},
        ),
        "energy_and_grad": (ep.energy_and_grad, {"potential": NORMAL, "x": ROWS, "dtype": None}),
        "Banana": (t.Banana, {"curvature": 0.5, "scale": 2.0}),
        "Checkerboard": (t.Checkerboard, {"half_width": 4.0}),
        "Diffused": (t.Diffused, {"toy": t.Banana(), "alpha": 0.9, "sigma": 0.4}),
        "DoubleWell": (t.DoubleWell, {"dim": 2, "wells": 1, "quartic": 1.0, "quadratic": 6.0, "tilt": 0.0}),
        "EightGaussians": (t.EightGaussians, {"radius": 4.0, "scale": 0.5}),
        "Funnel": (t.Funnel, {"dim": 2, "scale": 3.0}),
        "GaussianMixture": (
            t.GaussianMixture,
            {"means": torch.eye(2), "covariances": torch.eye(2).repeat(2, 1, 1), "weights": torch.ones(2) / 2},
        ),
        "IsotropicMixture": (
            t.IsotropicMixture,
            {"means": torch.eye(2), "scale": 1.0, "weights": None, "labels": None},
        ),
        "OneDimensionalMixture": (
            t.OneDimensionalMixture,
            {"centers": (-2.0, 2.0), "scale": 0.1, "weights": (0.75, 0.25)},
        ),
        "Pinwheel": (
            t.Pinwheel,
            {"arms": 5, "radial_sd": 0.3, "tangential_sd": 0.1, "rate": 0.25, "scale": 2.0},
        ),
        "Rings": (t.Rings, {"radii": (1.0, 2.0), "sd": 0.15}),
        "Spirals": (t.Spirals, {"turns": 1.5, "radius": 3.14, "scale": 0.1}),
        "SwissRoll": (t.SwissRoll, {"scale": 0.2}),
        "TwoMoons": (t.TwoMoons, {"scale": 0.1}),
        "Banana.sample": (t.Banana().sample, {"sample_shape": (3,)}),
        "Banana.log_prob": (t.Banana().log_prob, {"x": ROWS}),
    }


def chains_and_numbers() -> Calls:
    """Return the callables of sampling, log Z, evaluation and metrics."""
    n, e, m = ep.normalizing, ep.evaluation, ep.metrics
    normal = ep.EnergyDistribution(NORMAL)
    grid = ep.Grid((-6.0, -6.0), (6.0, 6.0), (32, 32))
    annealing = {
        "particles": 32,
        "temperatures": 3,
        "kernel": ep.MALA(0.5),
        "waypoints": (),
        "refit": True,
        "starts": 4,
    }
    chains = {"chains": 2, "draws": 4, "warmup": 0, "thin": 1, "init": None, "target_acceptance": 0.8}
    kernel = {"kernel": ep.MALA(0.5)}
    groups = {"inliers": torch.randn(20), "outliers": torch.randn(20)}
    return {
        "sample_chains": (ep.sample_chains, {**kernel, "model": NORMAL, **chains, "progress": False}),
        "adapt": (ep.adapt, {**kernel, "potential": NORMAL, "x": ROWS, "steps": 2, "target_acceptance": 0.8}),
        "run_chain": (ep.sampling.run_chain, {**kernel, "potential": NORMAL, "x": ROWS, "steps": 1}),
        "MarkovSampler": (ep.sampling.MarkovSampler, {**kernel, "steps": 1, "start_scale": 1.0}),
        "PyroKernel": (ep.PyroKernel, {**kernel, "model": NORMAL, "chains": 2}),
        "TemperatureSchedule": (ep.levels.TemperatureSchedule, {"start": 9.0, "hot": 1, "cooling": 1, "quench": 1}),
        "anneal_temperature": (
            ep.levels.anneal_temperature,
            {
                "potential": NORMAL,
                "x": ROWS,
                "schedule": ep.levels.TemperatureSchedule(hot=1, cooling=1, quench=1),
                "step_size": 0.1,
                "seen": None,
                "base_sigma": 0.1,
            },
        ),
        "denoising_jump": (ep.levels.denoising_jump, {"potential": NORMAL, "x": ROWS, "base_sigma": 0.1}),
        "AIS": (n.AIS, annealing),
        "SMC": (n.SMC, annealing),
        "log_normalizer": (
            ep.log_normalizer,
            {
                "target": NORMAL,
                "samples": torch.randn(40, 2),
                "base": ep.potentials.GaussianBase(torch.zeros(2), torch.ones(2)),
                "method": n.AIS(32, 3, starts=0),
                "tolerance": None,
                "max_evaluations": 1,
                "progress": False,
            },
        ),
        "bennett": (n.bennett, {"forward": torch.randn(20), "reverse": torch.randn(20)}),
        "Grid": (ep.Grid, {"low": (-6.0, -6.0), "high": (6.0, 6.0), "points": (32, 32)}),
        "quadrature": (ep.quadrature, {"potential": NORMAL, "grid": grid, "options": ep.integration.GridOptions()}),
        "GridOptions": (ep.integration.GridOptions, {"tolerance": 1e-3, "max_points": 64, "dtype": None, "chunk": 999}),
        "expectation": (ep.integration.expectation, {"function": lambda x: x, "potential": NORMAL, "grid": grid}),
        "enumerated": (ep.integration.enumerated, {"potential": NORMAL}),
        "pareto_k": (ep.integration.pareto_k, {"log_weights": torch.randn(50)}),
        "auroc": (e.auroc, groups),
        "fpr_at_95": (e.fpr_at_95, groups),
        "detection_report": (e.detection_report, {**groups, "repeats": 100}),
        "bits_per_dimension": (
            e.bits_per_dimension,
            {"log_likelihood": ep.Estimate(1.0, 0.1), "event_shape": (2,), "gap": 1.0},
        ),
        "energy_scores": (e.energy_scores, {"model": NORMAL, "x": ROWS, "level": 0, "batch": 10}),
        "gradient_scores": (e.gradient_scores, {"model": NORMAL, "x": ROWS, "level": 0, "batch": 10}),
        "mean_log_likelihood": (e.mean_log_likelihood, {"p": normal, "x": ROWS, "log_z": LOG_Z}),
        "entropy": (e.entropy, {"p": normal, "samples": ROWS, "log_z": LOG_Z}),
        "kl_by_samples": (
            e.kl_by_samples,
            {"p": normal, "q": normal, "samples": ROWS, "log_z_p": LOG_Z, "log_z_q": LOG_Z},
        ),
        "mode_occupancy": (
            e.mode_occupancy,
            {"points": torch.randn(4, 3, 2), "assign": lambda x: (x[..., 0] > 0).long(), "number_of_modes": 2},
        ),
        "energy_distance_test": (m.energy_distance_test, {"x": ROWS, "y": ROWS + 1.0, "permutations": 5}),
        "frechet_distance": (m.frechet_distance, {"a": ROWS, "b": ROWS + 1.0}),
        "kernel_distance": (m.kernel_distance, {"a": ROWS, "b": ROWS + 1.0, "degree": 3}),
        "label_balance": (m.label_balance, {"labels": torch.arange(6) % 3, "classes": 3, "expected": None}),
        "memorized": (m.memorized, {"samples": ROWS, "training": ROWS + 1.0, "held_out": torch.randn(100, 2)}),
        "nearest_neighbours": (m.nearest_neighbours, {"samples": ROWS, "training": ROWS + 1.0, "k": 1, "batch": 8}),
    }


TABLES: dict[str, Callable[[], Calls]] = {
    "models and networks": models_and_networks,
    "training and objectives": training_and_objectives,
    "kernels and energies": kernels_and_energies,
    "chains and numbers": chains_and_numbers,
}

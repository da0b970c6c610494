"""Denoising score matching at every noise level, tied across levels (Guth, Kadkhodaie & Simoncelli 2025)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from energyppl._checks import append_dims, check_number
from energyppl.autodiff.gradient import energy_only, gradient_only
from energyppl.errors import InvalidInput, QuadratureError
from energyppl.inference.kernels.contract import casting, check_force_dtype
from energyppl.inference.levels.contract import Conditional, LevelModel
from energyppl.inference.levels.generation import tune_levels
from energyppl.inference.levels.initializers import model_of_rows
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.inference.objectives.contract import (
    KernelState,
    Loss,
    OptimizerSettings,
    check_fraction,
    check_model,
    check_noisy_end,
    check_noisy_start,
    check_weight,
)
from energyppl.inference.objectives.held_out import denoising_error, fixed_noise, row_weights, weighted_mean
from energyppl.inference.objectives.level_allocation import allocate_levels
from energyppl.inference.objectives.mass_contrast import MassContrast, can_rank
from energyppl.inference.objectives.second_order import check_second_order, differentiable_score
from energyppl.integration.batched import log_integrals
from energyppl.potentials.network import AtLogSNR

__all__ = ["LevelScoreMatching"]

_EACH_COLUMN = 0.25  # weight of the mass contrast
_PLANE = 2  # columns, above which larger batches fit validation rows better
_REPEATS = 4  # noises for each held-out row
_DECAYED_ROWS = 3000  # of a table, beyond which weights decay less: a prior counts as so many rows
_TUNED_ROWS = 1024
_INTEGRATED_ROWS, _TOLERANCE = 256, 1e-2  # whose log Z is integrated at each evaluation
_TUNED_IMAGES = 4  # at each level
_MEASURED_IMAGES = 1024
_LABEL_DROP = 0.5  # images of no class are the harder ones, and get half of the training
_IMAGES_AT_A_TIME = 128


@dataclass(frozen=True)
class LevelScoreMatching:
    """Denoising score matching at every level of a model of levels, without any sampling.

    For a network that is continuous in the log-SNR λ the loss is in nats for each row, at a λ drawn evenly (and
    stratified) from the schedule's range of length R, x = α x_0 + σ ε::

        R/2 |ε − σ ∇U(x, λ)|²  +  tie · R (∂U/∂λ − τ)² / d,   τ = −[α² (d − |ε|²) + α σ ε·x_0] / 2

    The first term is the evidence bound of a diffusion model (Kingma et al. 2021; Song et al. 2021), the second matches
    scores in λ (Guth, Kadkhodaie & Simoncelli 2025): it ties the levels' normalizers to that of the noisiest, which is
    known, so that exp(−U) is about normalized at every level, and sees what slopes can't: how much mass separated
    regions have.

    Rows of numbers have a third term, the :class:`~energyppl.inference.objectives.mass_contrast.MassContrast`: minus
    the log probability of picking the data point among points of which one column is drawn from a known density
    (ranking noise-contrastive estimation, Ma & Collins 2018). Without it how much mass lies far from the data is hardly
    constrained.

    For a network with whole levels it is ``mean |σ̄_t ∇U(x_t, t) − ε|²`` (Song & Ermon 2019), 1 for a constant energy,
    and each level's U(x, t) is −log p(x_t) up to a constant of its own; the relative weights of regions that no data
    connect stay unknown.

    The likelihood hardly asks for the noisy levels, where pictures get their outlines.  For images, points of three
    dimensions, λ is therefore drawn as densely as the schedule lays its levels, of which the cosine has most in the
    middle (Nichol & Dhariwal 2021), the first term is weighted by 1/α², which makes it the loss of the velocity
    (Salimans & Ho 2022), and levels are not tied: their normalizers say nothing about pictures.

    When training ends, the model's chains are given step sizes that suit the energies.

    Args:
        tie: weight of the level tie; if None 1 for a continuous network, but 0 for images.  Networks with whole levels
            have none: tie them by classifying noise levels, :class:`RecoveryLikelihood`'s ``tie``.
        masses: weight of the mass contrast of a continuous network; if None a quarter for each column, at least 1, but
            0 for images and where there are contexts.
        level0_fraction: share of each batch that goes to level 0 on top of its equal share, for whole levels.
        max_noise_weight: the most that a continuous level's scores count, as min(1/α², max_noise_weight); 1 is the
            likelihood's weighting.  If None 1, but 50 for images.
        autocast: arithmetic of the loss, ``torch.bfloat16`` for networks of images on processors that multiply it
            themselves (AVX-512 BF16, AMX, GPUs); on others a convolution took 12 times as long with it.

    Raises:
        InvalidInput: for a share outside [0, 1), a negative weight, or a noise weight below 1.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> options = ep.TrainingOptions(steps=2, batch_size=32)
        >>> objective = ep.objectives.LevelScoreMatching()
        >>> history = ep.fit(ebm, torch.randn(100, 2), objective, options=options, progress=False)
        >>> len(history.records)
        2
    """

    keeps_best: ClassVar[bool] = True  # the weights that are best on held-out rows are those that training ends with
    tie: float | None = None
    masses: float | None = None
    level0_fraction: float = 0.25
    max_noise_weight: float | None = None
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_fraction("level0_fraction", self.level0_fraction)
        check_force_dtype(self.autocast, "autocast")
        if self.tie is not None:
            check_weight("tie", self.tie)
        if self.masses is not None:
            check_weight("masses", self.masses)
        if self.max_noise_weight is not None:
            check_number("max_noise_weight", self.max_noise_weight)
            if self.max_noise_weight < 1.0:
                raise InvalidInput(
                    f"max_noise_weight must be at least 1, as the likelihood has it; got {self.max_noise_weight}: "
                    "50 suits images"
                )

    def init(self, model: Any) -> KernelState:
        """Require a model of levels which all have noise, each with a normalizer of its own.

        Raises:
            InvalidInput: for any other, and for a tie where the network's level can't vary continuously or the schedule
                has no noisy end, and if the network can't be differentiated twice.
        """
        schedule = getattr(model, "schedule", None)
        if schedule is None:
            raise InvalidInput(
                f"score matching at every level needs a model with a schedule, as RecoveryEBM; got "
                f"{type(model).__name__}: for one energy use DenoisingScoreMatching"
            )
        check_model(model, "score matching at every level needs a model of levels, as RecoveryEBM", "initial_kernel")
        levels = getattr(model, "levels", schedule.levels)
        if levels != schedule.levels:
            raise InvalidInput(
                f"score matching at every level trains {schedule.levels} levels, each up to a constant of its own; got "
                f"{type(model).__name__}, whose {levels} levels share one: train it by PersistentLikelihood"
            )
        check_noisy_start(schedule)
        continuous = is_continuous(model)
        if self.tie and not continuous:
            raise InvalidInput(
                f"a level tie needs a network whose noise level varies continuously; {type(model.net).__name__} has "
                "whole levels: build MLPEnergy without levels=…, or train by RecoveryLikelihood, whose tie classifies "
                "noise levels"
            )
        if continuous:
            check_noisy_end(schedule)
        check_second_order(model, lambda model: model.potential(0))
        check_second_order(model, lambda model: model.potential(levels - 1))
        return KernelState(LevelKernel(model.initial_kernel, schedule.levels, model.loc))

    def loss(self, model: LevelModel, state: KernelState, batch: Tensor) -> Loss:
        """Return the loss of ``batch``, ``(n, *event)``."""
        return self._continuous(model, batch) if is_continuous(model) else self._whole(model, batch)

    def _continuous(self, model: LevelModel, batch: Tensor) -> Loss:
        clean = model.to_unit(batch)
        low, high = log_snr_range(model)
        # Stratified: one draw in each of n equal parts of the range, in random order.
        parts = (torch.randperm(len(clean)) + torch.rand(len(clean))) / len(clean)
        log_snr = spread_log_snr(model, parts).to(clean).requires_grad_()
        noise = torch.randn_like(clean)
        x, sigma = noised(clean, noise, log_snr.detach())
        tie = self._tie(model)
        with casting(clean, self.autocast):
            energy = at_log_snr(model, log_snr)(x.requires_grad_())
            grad, *slopes = torch.autograd.grad(energy.sum(), (x, log_snr) if tie else (x,), create_graph=True)
        denoising = (noise - sigma * grad).reshape(len(x), -1).square().sum(1)
        weight = row_weights(clean)
        value = 0.5 * (high - low) * (weight * self._noise_weight(model, log_snr.detach()) * denoising).mean()
        record = {"denoising": float((weight * denoising.detach()).mean()) / max(1, clean[0].numel())}
        if tie:
            errors = (slopes[0] - _time_score(clean, noise, log_snr.detach())).square()
            error = (weight**2 * errors).mean() / clean[0].numel()  # an energy far out is a square, its square a fourth
            value = value + tie * (high - low) * error
            record["tie"] = float((high - low) * error.detach())
        masses = self._masses(model)
        if masses and len(batch) > 1:
            contrast = self._mass_contrast(model, clean)
            value = value + masses * contrast
            record["masses"] = float(contrast.detach())
        return Loss(value, record)

    def ties_levels(self, model: LevelModel) -> bool:
        """Tell whether the loss ties the levels of a model, so that log Z is known from the noisiest one."""
        return is_continuous(model) and self._tie(model) > 0.0

    def _tie(self, model: LevelModel) -> float:
        return float(not is_image(model)) if self.tie is None else self.tie

    def _masses(self, model: LevelModel) -> float:
        if not can_rank(model):
            return 0.0
        return max(1.0, _EACH_COLUMN * model.event_shape[0]) if self.masses is None else self.masses

    def _mass_contrast(self, model: LevelModel, clean: Tensor) -> Tensor:
        """Return the mass contrast of standardized rows at one noise level, level 0 at every other call."""
        low, high = log_snr_range(model)
        sharpest = float(torch.rand(())) < 0.5
        log_snr = torch.tensor(high if sharpest else low + (high - low) * float(torch.rand(()))).to(clean)
        x, _ = noised(clean, torch.randn_like(clean), log_snr)
        contrast = MassContrast.of(x)
        losses = contrast.losses(at_log_snr(model, log_snr)(contrast.points))
        return (row_weights(clean)[: len(losses)] * losses).mean()

    def _noise_weight(self, model: LevelModel, log_snr: Tensor) -> Tensor:
        """Return how much levels count beside the likelihood's weighting, ``(*levels,)``."""
        most = (50.0 if is_image(model) else 1.0) if self.max_noise_weight is None else self.max_noise_weight
        return (1.0 + (-log_snr).exp()).clamp(max=most)

    def _whole(self, model: LevelModel, batch: Tensor) -> Loss:
        schedule = model.schedule
        clean = model.to_unit(batch)
        level = allocate_levels(len(clean), schedule.levels, self.level0_fraction).to(clean.device)
        alpha, sigma = (append_dims(v.to(clean)[level], clean) for v in (schedule.alpha_bar, schedule.sigma_bar))
        noise = torch.randn_like(clean)
        score = differentiable_score(model.potential(level), alpha * clean + sigma * noise)
        error = (sigma * score - noise).square().reshape(len(clean), -1).mean(1)
        value = (row_weights(clean) * error).mean()
        return Loss(value, {"denoising": float(value.detach())})

    def measure(self, model: LevelModel, state: KernelState, data: Tensor) -> float:
        """Return what is known of minus the log likelihood of held-out data, in nats for each row.

        For a continuous network it is the larger of two: minus the implied log likelihood (log Z = 0), and the
        evidence bound of the scores; where an event is one number and each row has a context, minus the log likelihood
        itself, log Z integrated; for whole levels the denoising error.  For images it is the loss itself in each
        dimension, of some rows.  The noise is the same at every call, and far rows count as in the loss,
        :func:`row_weights`.
        """
        if not is_continuous(model):
            return denoising_error(model, data)
        if is_image(model):
            return self._weighted_error(model, data[:_MEASURED_IMAGES])
        with fixed_noise():
            if model.event_shape == (1,) and getattr(model, "conditions", None) is not None:
                return integrated_error(cast(Conditional, model), data) + _log_scale(model)
            return max(-implied_log_likelihood(model, data), evidence_bound(model, data)) + _log_scale(model)

    def _weighted_error(self, model: LevelModel, data: Tensor) -> float:
        """Return the weighted denoising error of held-out images, evenly over the log-SNRs."""
        with fixed_noise():
            clean = model.to_unit(data)
            log_snr = spread_log_snr(model, (torch.randperm(len(clean)) + 0.5) / len(clean)).to(clean)
            noise = torch.randn_like(clean)
        x, sigma = noised(clean, noise, log_snr)
        rows = torch.arange(len(x), device=x.device).split(_IMAGES_AT_A_TIME)
        grad = torch.cat([gradient_only(at_log_snr(model, log_snr[part]), x[part]) for part in rows])
        error = self._noise_weight(model, log_snr) * (noise - sigma * grad).reshape(len(x), -1).square().mean(1)
        return weighted_mean(error, clean)

    def default_options(self, model: LevelModel) -> dict[str, Any]:
        """Return training options that suit continuous networks, by name; whole levels take the usual ones."""
        if not is_continuous(model):
            return {}
        if is_image(model):  # of which the average remembers a ninth of the run
            dropped = {"label_drop": _LABEL_DROP} if getattr(model.net, "classes", 0) else {}
            return {"steps": 10_000, "batch_size": 64, "ema": 0.9999, "evaluate_every": 500} | dropped
        size, given = model.event_shape.numel(), bool(getattr(model, "condition_dims", 0))
        options = {"steps": 2000, "batch_size": 256, "ema": 0.995, "evaluate_every": 50}
        if given:  # a measure in nats that may lie near 0, of which 2 % is next to nothing
            options["patience"] = 20
        elif size > _PLANE:
            options |= {"steps": 1000, "batch_size": 512}
        return options

    def default_optimizer(self, model: LevelModel, rows: int) -> OptimizerSettings:
        """Return SOAP at .01 for continuous networks, AdamW at 2e-3 with contexts; whole levels take what is usual.

        Above two dimensions, but for images, weights decay: by 1, and by SOAP less the more rows beyond 3,000.
        """
        if not is_continuous(model):
            return OptimizerSettings()
        soap = not getattr(model, "condition_dims", 0)
        decays = not is_image(model) and model.event_shape.numel() > _PLANE
        decay = float(decays) * (min(1.0, _DECAYED_ROWS / rows) if soap else 1.0)
        return OptimizerSettings(0.01 if soap else 2e-3, decay, soap)

    def settle(self, model: LevelModel, state: KernelState, data: Tensor) -> None:
        """Give the chains step sizes that suit the trained energies, from some rows of the training data."""
        rows = data[: _TUNED_IMAGES * model.schedule.levels if is_image(model) else _TUNED_ROWS]
        model = model_of_rows(cast(Conditional, model), torch.arange(len(rows), device=rows.device))
        if len(rows) >= model.schedule.levels:
            found = tune_levels(model, state.level_kernel.kernel, rows)
            state.level_kernel.step_sizes.copy_(found.step_sizes)


def is_continuous(model: LevelModel) -> bool:
    """Tell whether a model's network is continuous in the noise level."""
    return bool(getattr(model.net, "continuous", False))


def is_image(model: LevelModel) -> bool:
    """Tell whether a model's points are images, ``(channels, height, width)``."""
    return len(model.event_shape) == 3


def log_snr_range(model: LevelModel) -> tuple[float, float]:
    """Return the least and the largest log-SNR of a model's levels, the noisiest marginal's included."""
    return float(model.schedule.log_snr[-1]), float(model.schedule.log_snr[0])


def spread_log_snr(model: LevelModel, parts: Tensor) -> Tensor:
    """Return log-SNRs for numbers in (0, 1): evenly over the schedule's range, for images as densely as its levels."""
    if not is_image(model):
        low, high = log_snr_range(model)
        return low + (high - low) * parts
    table = model.schedule.log_snr.to(parts)
    place = parts * model.schedule.levels
    below = place.long().clamp(max=model.schedule.levels - 1)
    return torch.lerp(table[below], table[below + 1], place - below)


def implied_log_likelihood(model: LevelModel, data: Tensor) -> float:
    """Return the log likelihood if log Z were 0: the mean of −U of standardized data with level 0's noise, in nats.

    Far rows count for less, :func:`row_weights`.
    """
    rows = model.to_unit(data)
    return -weighted_mean(energy_only(model.potential(0), model.schedule.diffuse(rows, 0)), rows)


def integrated_error(model: Conditional, data: Tensor) -> float:
    """Return minus the mean log likelihood of some rows given their contexts, log Z integrated for each, in nats."""
    rows = model.to_unit(data[:_INTEGRATED_ROWS])
    each = torch.arange(len(rows), device=rows.device)
    energy = energy_only(model_of_rows(model, each).potential(0), model.schedule.diffuse(rows, 0))
    try:
        with torch.no_grad():
            log_z, _ = log_integrals(
                lambda points, some: model_of_rows(model, some).potential(0)(points), len(rows), 1, rows, _TOLERANCE
            )
    except QuadratureError:  # of an energy that can't be good yet
        return math.inf
    return weighted_mean(energy + log_z, rows)


def evidence_bound(model: LevelModel, data: Tensor) -> float:
    """Bound minus the mean log likelihood of data with level 0's noise from above by the scores alone, in nats.

    E[|x_T|²]/2 + (d/2) log 2π + ½ ∫ (E|ε − σ ∇U|² − d sigmoid λ) dλ over the schedule's range (Kingma et al. 2021,
    eq. 15), of the process that the scores define and in standardized coordinates; far rows count for less.
    """
    clean = model.to_unit(data).repeat(_REPEATS, *[1] * (data.dim() - 1))
    model = model_of_rows(cast(Conditional, model), torch.arange(len(data), device=data.device).repeat(_REPEATS))
    low, high = log_snr_range(model)
    log_snr = (low + (high - low) * (torch.randperm(len(clean)) + 0.5) / len(clean)).to(clean)
    noise = torch.randn_like(clean)
    x, sigma = noised(clean, noise, log_snr)
    grad = gradient_only(at_log_snr(model, log_snr), x)
    denoising = weighted_mean((noise - sigma * grad).reshape(len(clean), -1).square().sum(1), clean)
    d = clean[0].numel()
    last, _ = noised(clean, noise, torch.full_like(log_snr, low))
    prior = 0.5 * (weighted_mean(last.reshape(len(clean), -1).square().sum(1), clean) + d * math.log(2.0 * math.pi))
    softplus = float(np.logaddexp(0.0, high) - np.logaddexp(0.0, low))
    return prior + 0.5 * (high - low) * denoising - 0.5 * d * softplus


def at_log_snr(model: LevelModel, log_snr: Tensor) -> AtLogSNR:
    """Return a continuous model's energy at log-SNRs ``()`` or ``(*batch,)``, of points of unit variance."""
    return AtLogSNR(model.net, log_snr, model.event_shape, getattr(model, "conditions", None))


def noised(clean: Tensor, noise: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Return α x_0 + σ ε with α² = sigmoid λ, σ² = sigmoid −λ, and σ beside the points."""
    alpha, sigma = (append_dims(value.sqrt(), clean) for value in (log_snr.sigmoid(), (-log_snr).sigmoid()))
    return alpha * clean + sigma * noise, sigma


def _time_score(clean: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    """Return τ = −∂ log p(x | x_0, λ)/∂λ at fixed x, ``(n,)``."""
    alpha2, both = log_snr.sigmoid(), (log_snr.sigmoid() * (-log_snr).sigmoid()).sqrt()
    clean, noise = clean.reshape(len(clean), -1), noise.reshape(len(noise), -1)
    return -0.5 * (alpha2 * (clean.shape[1] - noise.square().sum(1)) + both * (clean * noise).sum(1))


def _log_scale(model: LevelModel) -> float:
    return float(model.scale.log().expand(model.event_shape).sum())

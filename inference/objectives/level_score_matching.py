"""Denoising score matching at every noise level, tied across levels (Guth, Kadkhodaie & Simoncelli 2025)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from energyppl._checks import append_dims
from energyppl.autodiff.gradient import energy_only, gradient_only
from energyppl.errors import InvalidInput, QuadratureError
from energyppl.inference.levels.contract import Conditional, LevelModel
from energyppl.inference.levels.generation import tune_levels
from energyppl.inference.levels.initializers import model_of_rows
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.inference.objectives.contract import KernelState, Loss, check_fraction, check_model, check_tie
from energyppl.inference.objectives.held_out import denoising_error, fixed_noise, row_weights, weighted_mean
from energyppl.inference.objectives.level_allocation import allocate_levels
from energyppl.inference.objectives.second_order import check_second_order, differentiable_score
from energyppl.integration.batched import log_integrals
from energyppl.potentials.network import AtLogSNR
from energyppl.schedule import NoiseSchedule

__all__ = ["LevelScoreMatching"]

_NOISY = -4.0
_REPEATS = 4  # noises for each held-out row
_TUNED_ROWS = 1024
_INTEGRATED_ROWS, _TOLERANCE = 256, 1e-2  # whose log Z is integrated at each evaluation


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

    For a network with whole levels it is ``mean |σ̄_t ∇U(x_t, t) − ε|²`` (Song & Ermon 2019), 1 for a constant energy,
    and each level's U(x, t) is −log p(x_t) up to a constant of its own; the relative weights of regions that no data
    connect stay unknown.

    When training ends, the model's chains are given step sizes that suit the energies.

    Args:
        tie: weight of the level tie; 1 for a continuous network if None.  Networks with whole levels have none: tie
            them by classifying noise levels, :class:`RecoveryLikelihood`'s ``tie``.
        level0_fraction: share of each batch that goes to level 0 on top of its equal share, for whole levels.

    Raises:
        InvalidInput: for a share outside [0, 1) or a negative tie.

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
    level0_fraction: float = 0.25

    def __post_init__(self) -> None:
        check_fraction("level0_fraction", self.level0_fraction)
        if self.tie is not None:
            check_tie(self.tie)

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
        if float(schedule.sigma_bar[0]) <= 0.0:
            raise InvalidInput(
                "denoising score matching needs noise at every level, and this schedule's level 0 has none: pass one "
                "such as NoiseSchedule.cosine"
            )
        continuous = is_continuous(model)
        if self.tie and not continuous:
            raise InvalidInput(
                f"a level tie needs a network whose noise level varies continuously; {type(model.net).__name__} has "
                "whole levels: build MLPEnergy without levels=…, or train by RecoveryLikelihood, whose tie classifies "
                "noise levels"
            )
        if continuous:
            _check_schedule(schedule)
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
        log_snr = (low + (high - low) * parts).to(clean).requires_grad_()
        noise = torch.randn_like(clean)
        x, sigma = _diffuse(clean, noise, log_snr.detach())
        energy = at_log_snr(model, log_snr)(x.requires_grad_())
        grad, slope = torch.autograd.grad(energy.sum(), (x, log_snr), create_graph=True)
        denoising = (noise - sigma * grad).reshape(len(x), -1).square().sum(1)
        weight = row_weights(clean)
        value = 0.5 * (high - low) * (weight * denoising).mean()
        record = {"denoising": float((weight * denoising.detach()).mean()) / max(1, clean[0].numel())}
        tie = 1.0 if self.tie is None else self.tie
        if tie:
            errors = (slope - _time_score(clean, noise, log_snr.detach())).square()
            error = (weight**2 * errors).mean() / clean[0].numel()  # an energy far out is a square, its square a fourth
            value = value + tie * (high - low) * error
            record["tie"] = float((high - low) * error.detach())
        return Loss(value, record)

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
        itself, log Z integrated; for whole levels the denoising error.  The noise is the same at every call, and
        far rows count as in the loss, :func:`row_weights`.
        """
        if not is_continuous(model):
            return denoising_error(model, data)
        with fixed_noise(data):
            if model.event_shape == (1,) and getattr(model, "conditions", None) is not None:
                return _normalized(cast(Conditional, model), data) + _log_scale(model)
            return max(-implied_log_likelihood(model, data), evidence_bound(model, data)) + _log_scale(model)

    def default_options(self, model: LevelModel) -> dict[str, Any]:
        """Return training options that suit continuous networks, by name; whole levels take the usual ones."""
        if not is_continuous(model):
            return {}
        decay = 0.0 if model.event_shape.numel() <= 2 else 1.0  # a table's rows are few for its columns
        options = {"steps": 2000, "batch_size": 256, "ema": 0.995, "evaluate_every": 50, "weight_decay": decay}
        if getattr(
            model, "condition_dims", 0
        ):  # a measure in nats that may lie near 0, of which 2 % is next to nothing
            options |= {"patience": 20}
        return options

    def default_learning_rate(self, model: LevelModel) -> float | None:
        """Return 2e-3 for continuous networks; None for what others usually take."""
        return 2e-3 if is_continuous(model) else None

    def settle(self, model: LevelModel, state: KernelState, data: Tensor) -> None:
        """Give the chains step sizes that suit the trained energies, from some rows of the training data."""
        rows = data[:_TUNED_ROWS]
        model = model_of_rows(cast(Conditional, model), torch.arange(len(rows), device=rows.device))
        if len(rows) >= model.schedule.levels:
            found = tune_levels(model, state.level_kernel.kernel, rows)
            state.level_kernel.step_sizes.copy_(found.step_sizes)


def is_continuous(model: LevelModel) -> bool:
    """Tell whether a model's network is continuous in the noise level."""
    return bool(getattr(model.net, "continuous", False))


def log_snr_range(model: LevelModel) -> tuple[float, float]:
    """Return the least and the largest log-SNR of a model's levels, the noisiest marginal's included."""
    return float(model.schedule.log_snr[-1]), float(model.schedule.log_snr[0])


def implied_log_likelihood(model: LevelModel, data: Tensor) -> float:
    """Return the log likelihood if log Z were 0: the mean of −U of standardized data with level 0's noise, in nats.

    Far rows count for less, :func:`row_weights`.
    """
    rows = model.to_unit(data)
    return -weighted_mean(energy_only(model.potential(0), model.schedule.diffuse(rows, 0)), rows)


def _normalized(model: Conditional, data: Tensor) -> float:
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
    x, sigma = _diffuse(clean, noise, log_snr)
    grad = gradient_only(at_log_snr(model, log_snr), x)
    denoising = weighted_mean((noise - sigma * grad).reshape(len(clean), -1).square().sum(1), clean)
    d = clean[0].numel()
    last, _ = _diffuse(clean, noise, torch.full_like(log_snr, low))
    prior = 0.5 * (weighted_mean(last.reshape(len(clean), -1).square().sum(1), clean) + d * math.log(2.0 * math.pi))
    softplus = math.log1p(math.exp(high)) - math.log1p(math.exp(low))
    return prior + 0.5 * (high - low) * denoising - 0.5 * d * softplus


def at_log_snr(model: LevelModel, log_snr: Tensor) -> AtLogSNR:
    """Return a continuous model's energy at log-SNRs ``()`` or ``(*batch,)``, of points of unit variance."""
    return AtLogSNR(model.net, log_snr, model.event_shape, getattr(model, "conditions", None))


def _diffuse(clean: Tensor, noise: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
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


def _check_schedule(schedule: NoiseSchedule) -> None:
    if not float(schedule.log_snr[-1]) <= _NOISY:
        raise InvalidInput(
            f"score matching of a continuous network needs a schedule with a noisy end, of a log-SNR of {_NOISY:g} at "
            f"most, where the density is known to be Gaussian; got {float(schedule.log_snr[-1]):.3g}: pass one such as "
            "NoiseSchedule.cosine"
        )

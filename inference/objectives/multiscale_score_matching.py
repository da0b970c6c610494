"""Multi-scale denoising score matching: one energy for many noise levels, and annealed Langevin by temperature.

MDSM (Li, Chen & Sommer, "Learning energy-based models in high-dimensional spaces with multi-scale denoising score
matching", arXiv:1910.07762; Entropy 25, 2023) trains an energy that is not told how noisy a point is.  The field that
minimises its loss over noise levels q(σ) is ``∇U = −∇A / (σ0² B)``, with ``A = Σ q(σ) p_σ`` and
``B = Σ q(σ) p_σ / σ²``.  In high dimension a point shows its own σ, and then ``∇U = (σ²/σ0²) (−∇ log p_σ)``: at the
temperature T = σ²/σ0² the samples of U are the noised data p_σ.  In low dimension it doesn't; the field is in general
no gradient, and U not −log p.  The numbers called the paper's are those of its released code (zengyi-li/MDSM).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_event, check_positive, shape_text
from energyppl.autodiff.gradient import gradient_only
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import check_force_dtype
from energyppl.inference.objectives.recovery import MEASURE_SEED, Loss, RecoveryLikelihood, RecoveryModel, share_levels
from energyppl.inference.objectives.second_order import differentiable_score
from energyppl.potentials.algebra import Potential, as_potential, sum_event

__all__ = [
    "AnnealedPoints",
    "LevelScoreMatching",
    "MultiscaleModel",
    "MultiscaleScoreMatching",
    "TemperatureLadder",
    "anneal_temperature",
    "check_seen",
    "denoising_jump",
    "share_ladder",
]


# --- Sampling ---


@dataclass(frozen=True)
class TemperatureLadder:
    """Temperatures to go through, one for each step: hot, exponentially down to 1, linearly on to 0 (Li et al. 2019).

    Args:
        start: the first temperature, at least 1.  T = σ²/σ0² stands for the noise σ, so the paper's 100 for σ = 10 σ0.
        hot: steps at it.
        cooling: steps from it down to 1.
        quench: steps from 1 down to 0.

    Raises:
        InvalidInput: for a temperature below 1, or no step at all.
    """

    start: float = 100.0
    hot: int = 500
    cooling: int = 2000
    quench: int = 200

    def __post_init__(self) -> None:
        check_positive("start", self.start)
        if self.start < 1.0:
            raise InvalidInput(f"start must be at least 1, the temperature of the base noise; got {self.start}")
        for name in ("hot", "cooling", "quench"):
            check_count(name, getattr(self, name), at_least=0)
        if not self.hot + self.cooling + self.quench:
            raise InvalidInput("a ladder needs at least one step; got none: set hot, cooling or quench")

    def temperatures(self) -> Tensor:
        """The temperature of each step, ``(hot + cooling + quench,)``, float64."""
        down = self.start ** torch.linspace(1.0, 0.0, self.cooling, dtype=torch.float64)
        hot = torch.full((self.hot,), float(self.start), dtype=torch.float64)
        return torch.cat([hot, down, torch.linspace(1.0, 0.0, self.quench, dtype=torch.float64)])


class AnnealedPoints(NamedTuple):
    """Where annealing ended."""

    x: Tensor  # (*batch, *event)
    diverging: Tensor  # (*batch,), bool: a move to a point that is not finite was asked for, and not made
    evaluations: int  # of the gradient, for each point


def anneal_temperature(
    potential: Potential,
    x: Tensor,
    ladder: TemperatureLadder | None = None,
    *,
    step_size: float = 0.02,
    seen: Tensor | None = None,
    base_sigma: float = 0.1,
    force_dtype: torch.dtype | None = None,
) -> AnnealedPoints:
    """Annealed Langevin, ``x ← x − ½ ε² ∇U(x) + ε √T ξ``, down a ladder of temperatures (Li et al. 2019).

    Nothing accepts or rejects: each temperature is met up to the bias of its step.  With ``seen`` it inpaints: only the
    other coordinates move, and before each gradient the seen ones are given the noise σ0 √T of the temperature, so that
    the energy is asked about points whose noise is the same everywhere.

    Args:
        potential: the energy U, in nats at temperature 1.
        x: where to begin, ``(*batch, *event)``; with ``seen``, the known values there.
        ladder: the temperatures; the paper's if None.
        step_size: ε, the standard deviation of a step's noise at temperature 1, in units of x; the paper's 0.02 is a
            fifth of its σ0 = 0.1.
        seen: boolean mask ``(*event)`` or ``(*batch, *event)``, True where x is known; these come back as they were.
        base_sigma: σ0, the noise of temperature 1, in units of x; only seen coordinates need it.
        force_dtype: arithmetic of the network, ``torch.bfloat16`` for large ones; nothing corrects its rounding.

    Raises:
        InvalidInput: for points of another shape, numbers that are not positive, or a mask that leaves nothing to do.
    """
    as_potential("potential", potential)
    check_event("x", x, potential.event_shape)
    check_positive("step_size", step_size)
    check_positive("base_sigma", base_sigma)
    check_force_dtype(force_dtype)
    event_shape, given = potential.event_shape, x.detach()
    if seen is not None:
        check_seen(seen, given, event_shape)
        seen = seen.to(given.device)
    x, temperatures = given, (TemperatureLadder() if ladder is None else ladder).temperatures().tolist()
    diverging = torch.zeros(x.shape[: x.dim() - len(event_shape)], dtype=torch.bool, device=x.device)
    for temperature in temperatures:
        root = temperature**0.5
        if seen is not None:
            x = torch.where(seen, given + base_sigma * root * torch.randn_like(x), x)
        grad = gradient_only(potential, x, force_dtype)
        moved = x.add(grad, alpha=-0.5 * step_size * step_size).add_(torch.randn_like(x), alpha=step_size * root)
        bad = ~torch.isfinite(sum_event(moved, event_shape))
        x = torch.where(bad.reshape(bad.shape + (1,) * len(event_shape)), x, moved)
        diverging |= bad
    return AnnealedPoints(x if seen is None else torch.where(seen, given, x), diverging, len(temperatures))


def denoising_jump(
    potential: Potential, x: Tensor, base_sigma: float, force_dtype: torch.dtype | None = None
) -> Tensor:
    """``x − σ0² ∇U(x)``: from a point with noise σ0 to the mean of what it was without (Li et al. 2019).

    Args:
        potential: the energy U.
        x: points, ``(*batch, *event)``.
        base_sigma: σ0, in units of x.
        force_dtype: as in :func:`anneal_temperature`.
    """
    check_positive("base_sigma", base_sigma)
    return x - base_sigma**2 * gradient_only(potential, x, force_dtype)


def check_seen(seen: Tensor, x: Tensor, event_shape: torch.Size) -> None:
    """Require a mask of some but not all coordinates of ``x``, ``(*batch, *event)``, which must be finite there.

    Raises:
        InvalidInput: for anything else.
    """
    if not isinstance(seen, Tensor) or seen.dtype != torch.bool or seen.shape not in (event_shape, x.shape):
        came = f"{seen.dtype} {shape_text(seen.shape)}" if isinstance(seen, Tensor) else type(seen).__name__
        raise InvalidInput(
            f"seen must be a boolean mask of shape {shape_text(event_shape)}, or {shape_text(x.shape)} for one of each "
            f"point; got {came}"
        )
    if not bool(seen.any()):
        raise InvalidInput("seen must be True somewhere; got all False: without seen coordinates, sample instead")
    if bool(seen.all()):
        raise InvalidInput("seen must be False somewhere; got all True: there is nothing to fill in")
    if not bool(torch.isfinite(x[seen.expand(x.shape).to(x.device)]).all()):
        raise InvalidInput("what is seen must be finite; got NaN or infinity: mark those coordinates as not seen")


# --- Training ---


class MultiscaleModel(Protocol):
    """What multi-scale score matching needs of a model; ``energyppl.models.MultiscaleEBM`` is one."""

    event_shape: torch.Size
    net: nn.Module
    sigmas: Tensor  # (levels,), decreasing, in standardised coordinates
    base_sigma: float  # σ0

    def standardized(self, data: Tensor) -> Tensor:
        """Data in the coordinates in which noise is counted."""
        ...

    def potential(self, level: int = 0) -> Potential:
        """The energy in those coordinates."""
        ...


def share_ladder(rows: int, levels: int, offset: float) -> Tensor:
    """The level of each of ``rows`` rows, ``(rows,)``: row i gets level ⌊(i + offset) levels / rows⌋.

    One row for each level gets row i level i, the paper's stratified ladder; k of them get each level exactly k rows;
    fewer rows than levels are spread evenly over them, and an offset drawn from [0, 1) gives every level its turn.
    """
    exact = (torch.arange(rows, dtype=torch.float64) + offset) * levels / rows
    return exact.long().clamp(max=levels - 1)


@dataclass(frozen=True)
class MultiscaleScoreMatching:
    """Multi-scale denoising score matching (MDSM, Li et al. 2019): no sampling, one double backward an update.

    The loss is ``mean |x − x̃ + σ0² ∇U(x̃)|² / σ²`` over coordinates and rows, x̃ = x + σ ε, each row at its own level of
    the model's ladder: the paper's, times σ0⁴ and per coordinate.  It is 1 for a constant energy.  It has no share of
    log-likelihood: see :class:`~energyppl.MultiscaleEBM` for what its energy is and what it isn't.
    """

    def prepare(self, model: Any) -> None:
        """Require a model with a ladder of noise levels.

        Raises:
            InvalidInput: for any other.
        """
        if not isinstance(getattr(model, "sigmas", None), Tensor):
            raise InvalidInput(
                f"multi-scale score matching needs a ladder of noise levels, as a MultiscaleEBM has; got "
                f"{type(model).__name__}: for one energy use DenoisingScoreMatching, for a schedule LevelScoreMatching"
            )

    def loss(self, model: MultiscaleModel, batch: Tensor) -> Loss:
        """The loss of ``batch``, ``(n, *event)``.

        Raises:
            InvalidInput: if the network can't be differentiated twice; the message names the layer.
        """
        clean = model.standardized(batch)
        sigma = _row_sigmas(model, clean, float(torch.rand(())))
        noisy = clean + sigma * torch.randn_like(clean)
        score = differentiable_score(model.potential(), noisy, model.net)
        value = _denoising_error(model, clean, noisy, sigma, score)
        return Loss(value, {"denoising": float(value.detach())})

    def measure(self, model: MultiscaleModel, data: Tensor) -> float:
        """The loss of ``data``, ``(n, *event)``, with noise that is the same at every call."""
        clean = model.standardized(data)
        sigma = _row_sigmas(model, clean, 0.5)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(MEASURE_SEED)).to(clean)
        noisy = clean + sigma * noise
        score = gradient_only(model.potential(), noisy)
        return float(_denoising_error(model, clean, noisy, sigma, score))


def _row_sigmas(model: MultiscaleModel, rows: Tensor, offset: float) -> Tensor:
    sigma = model.sigmas.to(rows)[share_ladder(len(rows), len(model.sigmas), offset).to(rows.device)]
    return sigma.reshape(-1, *[1] * (rows.dim() - 1))


def _denoising_error(model: MultiscaleModel, clean: Tensor, noisy: Tensor, sigma: Tensor, score: Tensor) -> Tensor:
    return ((clean - noisy + model.base_sigma**2 * score) / sigma).square().mean()


class _LevelModel(RecoveryModel, Protocol):
    """What score matching at every level needs of a model; ``energyppl.models.RecoveryEBM`` is one."""

    net: nn.Module


@dataclass(frozen=True)
class LevelScoreMatching:
    """Denoising score matching at every level of a model of levels (Vincent 2011; Song & Ermon 2019): no sampling.

    The noise-conditional relative of MDSM for those who need a density: each level's U(x, t) is −log p(x_t) plus a
    constant, so that level 0 of a :class:`~energyppl.RecoveryEBM` can be normalised and sampled level by level.  The
    loss is ``mean |σ̄_t ∇U(x_t, t) − ε|²``, 1 for a constant energy.  A score is a slope: level 0 knows
    nothing of the relative weights of regions that no data connect (samples, which come down the levels, have them
    right), and no level of what lies where it has no data.  Nothing tunes the model's chains on the way: call
    ``ebm.tune(data)`` afterwards.

    Args:
        extra: share of each batch that goes to level 0 on top of its equal share.

    Raises:
        InvalidInput: for a share outside [0, 1).
    """

    extra: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 <= self.extra < 1.0:
            raise InvalidInput(f"extra must lie in [0, 1); got {self.extra}")

    def prepare(self, model: Any) -> None:
        """Require a model of levels which all have noise, each with a normaliser of its own.

        Raises:
            InvalidInput: for any other.
        """
        schedule = getattr(model, "schedule", None)
        if schedule is None:
            raise InvalidInput(
                f"score matching at every level needs a model with a schedule, as RecoveryEBM; got "
                f"{type(model).__name__}: for one energy use DenoisingScoreMatching"
            )
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

    def loss(self, model: _LevelModel, batch: Tensor) -> Loss:
        """The loss of ``batch``, ``(n, *event)``.

        Raises:
            InvalidInput: if level 0 has no noise, or the network can't be differentiated twice.
        """
        self.prepare(model)
        schedule = model.schedule
        clean = model.standardized(batch)
        level = share_levels(len(clean), schedule.levels, self.extra).to(clean.device)
        wide = (-1, *[1] * (clean.dim() - 1))
        alpha, sigma = (v.to(clean)[level].reshape(wide) for v in (schedule.alpha_bar, schedule.sigma_bar))
        noise = torch.randn_like(clean)
        score = differentiable_score(model.potential(level), alpha * clean + sigma * noise, model.net)
        value = (sigma * score - noise).square().mean()
        return Loss(value, {"denoising": float(value.detach())})

    def measure(self, model: _LevelModel, data: Tensor) -> float:
        """As :meth:`RecoveryLikelihood.measure`: the same loss with fixed noise, level 0 left out if there are more."""
        return RecoveryLikelihood().measure(model, data)

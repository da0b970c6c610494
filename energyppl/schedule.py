"""Noise schedules: how much noise each level of an energy-based model sees.

A schedule has ``levels`` energies, numbered from 0 (least noise) to ``levels − 1``, and ``levels + 1`` marginals
``x_t = alpha_bar[t] x0 + sigma_bar[t] ε``; the last one, ``t = levels``, is where generation starts.  One step of noise
is ``x_{t+1} = alpha[t] x_t + sigma[t] ε``.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import (
    append_dims,
    check_count,
    check_event,
    check_flag,
    check_number,
    check_positive,
    checked,
    shape_text,
)
from energyppl.errors import InvalidInput

__all__ = ["NoiseSchedule", "NoisyPair", "whole_levels"]

_MAX_LOG_SNR = 1000.0  # beyond, alpha_bar or sigma_bar is zero in float64


class NoisyPair(NamedTuple):
    """Neighbouring levels of the same data.

    Example:
        >>> pair = ep.NoiseSchedule.cosine(levels=3).pairs(torch.randn(5, 2), torch.zeros(5, dtype=torch.long))
        >>> pair.clean.shape, pair.noisy.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    clean: Tensor  # x_t, (*batch, *event)
    noisy: Tensor  # x_{t+1}, (*batch, *event)


def whole_levels(level: object) -> Tensor:
    """Require levels to be whole numbers, and return them as a tensor.

    Raises:
        InvalidInput: for anything else.
    """
    try:
        value = torch.as_tensor(level)
    except (TypeError, ValueError, RuntimeError) as error:
        came = type(level).__name__ if "\n" in repr(level) else repr(level)
        raise InvalidInput(f"level must be a whole number or a tensor of them; got {came}") from error
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise InvalidInput(f"level must be a whole number; got {value.dtype}: use an int, or .long()")
    return value


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels, given by their marginals; an immutable value.

    Args:
        alpha_bar: what is left of the data at each marginal, ``(levels + 1,)``, positive, never growing.
        sigma_bar: standard deviation of the noise at each marginal, ``(levels + 1,)``, growing; 0 at level 0 means
            clean data.
        tilted_top: whether the top level's recovery distribution keeps its tilt.  In DRL and CDRL it does not: the
            top level is sampled from white noise.

    Raises:
        InvalidInput: for fewer than one level, unsorted or non-positive entries.

    Example:
        >>> schedule = ep.NoiseSchedule.cosine(levels=6)
        >>> schedule
        NoiseSchedule(levels=6, alpha_bar=1 to 0.0778, sigma_bar=0.00745 to 0.997)
        >>> schedule.diffuse(torch.zeros(1000, 2), level=6).shape
        torch.Size([1000, 2])
        >>> ep.NoiseSchedule(alpha_bar=[1.0, 0.6], sigma_bar=[0.0, 0.8]).levels
        1
    """

    alpha_bar: Tensor
    sigma_bar: Tensor
    tilted_top: bool = False

    def __post_init__(self) -> None:
        check_flag("tilted_top", self.tilted_top)
        for name in ("alpha_bar", "sigma_bar"):
            object.__setattr__(self, name, _marginals(name, getattr(self, name)))
        if len(self.alpha_bar) != len(self.sigma_bar):
            raise InvalidInput(
                f"alpha_bar and sigma_bar must have one length; got {len(self.alpha_bar)} and {len(self.sigma_bar)}"
            )
        check_positive("alpha_bar", self.alpha_bar)
        check_positive("sigma_bar above level 0", self.sigma_bar[1:])
        # Negated, so that NaN is refused too.
        sorted_up = bool(self.sigma_bar[0] >= 0) and bool((self.sigma_bar.diff() > 0).all())
        if not sorted_up or bool((self.alpha_bar.diff() > 0).any()):
            raise InvalidInput(
                "levels must be sorted from least to most noise: sigma_bar must grow and alpha_bar must not; "
                f"got sigma_bar {_ends(self.sigma_bar)} and alpha_bar {_ends(self.alpha_bar)}"
            )
        check_positive("the noise added between neighbouring levels", self._step_variance())

    def __repr__(self) -> str:
        tilted = ", tilted_top=True" if self.tilted_top else ""
        alpha, sigma = _ends(self.alpha_bar), _ends(self.sigma_bar)
        return f"NoiseSchedule(levels={self.levels}, alpha_bar={alpha}, sigma_bar={sigma}{tilted})"

    # --- The papers' schedules ---

    @classmethod
    def recovery(cls) -> "NoiseSchedule":
        """Build the six levels of DRL (Gao et al. 2021, section 4 and appendix B).

        1,000 diffusion steps with linear β from 1e-4 to 0.02 and ``alpha_bar_k = Π_{i ≤ k} √(1 − β_i)``, of which
        every hundredth up to 500 and the last are kept; ``sigma_bar² = 1 − alpha_bar²``.
        """
        kept = torch.cumprod((1.0 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).sqrt(), 0)
        alpha_bar = kept[[0, 100, 200, 300, 400, 500, 999]]
        return cls(alpha_bar, (1.0 - alpha_bar**2).sqrt())

    @classmethod
    def cosine(cls, levels: int = 6, *, log_snr_max: float = 9.8, log_snr_min: float = -5.1) -> "NoiseSchedule":
        """Build CDRL's schedule, a cosine in the log signal-to-noise ratio λ (Zhu et al. 2024).

        ``λ(u) = −2 log tan(a u + b)`` for u from 0 to 1, with a and b such that λ goes from ``log_snr_max`` to
        ``log_snr_min``; ``alpha_bar² = sigmoid(λ)``, ``sigma_bar² = sigmoid(−λ)``.

        Args:
            levels: number of energies.
            log_snr_max: log-SNR λ (natural logarithm) of the least noise.
            log_snr_min: λ of the most noise, below ``log_snr_max``.

        Raises:
            InvalidInput: for numbers out of range.
        """
        check_count("levels", levels)
        for name, value in (("log_snr_max", log_snr_max), ("log_snr_min", log_snr_min)):
            check_number(name, value)
            if abs(value) > _MAX_LOG_SNR:
                raise InvalidInput(f"{name} must lie within ±{_MAX_LOG_SNR:.0f}; got {value}: no noise is that small")
        if not log_snr_max > log_snr_min:
            raise InvalidInput(
                f"log_snr_max must exceed log_snr_min; got {log_snr_max} and {log_snr_min}: the first is that of the "
                "least noise"
            )
        first, last = math.atan(math.exp(-0.5 * log_snr_max)), math.atan(math.exp(-0.5 * log_snr_min))
        angle = torch.linspace(first, last, levels + 1, dtype=torch.float64)
        return cls(angle.cos(), angle.sin())

    @classmethod
    def sqrtcumlinear(cls, levels: int = 50, *, start: float = 2e-4, end: float = 2e-2) -> "NoiseSchedule":
        """Build DA-EBM's schedule, with clean data at level 0 (Zhang et al. 2023).

        ``β_t = (Σ_{k ≤ t} b_k)²`` with b linear from ``start`` to ``end``, ``alpha_bar_t = Π_{k ≤ t} √(1 − β_k)`` and
        ``sigma_bar² = 1 − alpha_bar²``.

        Args:
            levels: number of energies below white noise.
            start: b of the first step, positive.
            end: b of the last step, positive.

        Raises:
            InvalidInput: for numbers out of range, or if some β_t is not below one.
        """
        check_count("levels", levels)
        check_positive("start", start)
        check_positive("end", end)
        beta = torch.linspace(start, end, levels, dtype=torch.float64).cumsum(0) ** 2
        if not bool(((beta > 0) & (beta < 1)).all()):
            raise InvalidInput(f"every beta must lie in (0, 1); got {_ends(beta)}: lower end or levels")
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod((1.0 - beta).sqrt(), 0)])
        return cls(alpha_bar, (1.0 - alpha_bar**2).sqrt())

    @classmethod
    def linear_sigmas(cls, levels: int = 128, *, low: float = 0.05, high: float = 1.2) -> "NoiseSchedule":
        """Build MDSM's noise levels for CIFAR-10: σ linear from low to high, ``alpha_bar = 1`` (Li et al. 2019).

        Args:
            levels: number of energies.
            low: σ of level 0, positive.
            high: σ of the last marginal, above ``low``.

        Raises:
            InvalidInput: for numbers out of range.
        """
        _check_sigmas(levels, low, high)
        sigma_bar = torch.linspace(low, high, levels + 1, dtype=torch.float64)
        return cls(torch.ones_like(sigma_bar), sigma_bar)

    @classmethod
    def geometric_sigmas(cls, levels: int = 128, *, low: float = 0.1, high: float = 3.0) -> "NoiseSchedule":
        """Build MDSM's noise levels for (Fashion-)MNIST: σ geometric from low to high, as :meth:`linear_sigmas`."""
        _check_sigmas(levels, low, high)
        sigma_bar = torch.logspace(math.log10(low), math.log10(high), levels + 1, dtype=torch.float64)
        return cls(torch.ones_like(sigma_bar), sigma_bar)

    # --- Its numbers ---

    @property
    def levels(self) -> int:
        """Number of energies."""
        return len(self.alpha_bar) - 1

    @property
    def alpha(self) -> Tensor:
        """Share of x_t that one step of noise leaves, ``alpha_bar[t + 1] / alpha_bar[t]``, ``(levels,)``."""
        return self.alpha_bar[1:] / self.alpha_bar[:-1]

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of the noise added from level t to t + 1, of the Gaussian tilt, ``(levels,)``."""
        return self._step_variance().sqrt()

    @property
    def marginal_std(self) -> Tensor:
        """Standard deviation of each marginal for data of unit variance, ``(levels + 1,)``."""
        return (self.alpha_bar**2 + self.sigma_bar**2).sqrt()

    @property
    def log_snr(self) -> Tensor:
        """Log signal-to-noise ratio of each marginal, ``2 log(alpha_bar / sigma_bar)``, ``(levels + 1,)``."""
        return 2.0 * (self.alpha_bar.log() - self.sigma_bar.log())

    def _step_variance(self) -> Tensor:
        return self.sigma_bar[1:] ** 2 - (self.alpha * self.sigma_bar[:-1]) ** 2

    # --- Noising data ---

    def check_level(self, level: int | Tensor, *, marginal: bool = False) -> None:
        """Require whole levels from 0 to ``levels − 1``, or to ``levels`` for a marginal.

        Raises:
            InvalidInput: for others.
        """
        value = whole_levels(level)
        top = self.levels if marginal else self.levels - 1
        if value.numel() and not (int(value.min()) >= 0 and int(value.max()) <= top):
            came = int(value) if value.numel() == 1 else f"{int(value.min())} to {int(value.max())}"
            raise InvalidInput(f"level must be between 0 and {top}; got {came}")

    def diffuse(self, x0: Tensor, level: int | Tensor) -> Tensor:
        """Draw data at a marginal, ``alpha_bar x0 + sigma_bar ε``, shaped like ``x0``.

        Args:
            x0: clean data, ``(*batch, *event)``.
            level: 0 to ``levels``, one number, or one for each row of ``x0``.

        Raises:
            InvalidInput: for levels out of range, or of another shape.
        """
        check_event("x0", x0, ())
        self.check_level(level, marginal=True)
        return _at(self.alpha_bar, level, x0) * x0 + _at(self.sigma_bar, level, x0) * torch.randn_like(x0)

    def step(self, level: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Work out α and σ of the noise from ``level`` to a noisier marginal, ``x_u = α x_t + σ ε``; float64.

        Args:
            level: t, whole numbers.
            upper: u, above ``level``, of the same shape.
        """
        alpha = self.alpha_bar[upper] / self.alpha_bar[level]
        return alpha, (self.sigma_bar[upper] ** 2 - (alpha * self.sigma_bar[level]) ** 2).sqrt()

    @checked
    def pairs(
        self, x0: Tensor, level: int | Tensor, *, upper: int | Tensor | None = None, shared_noise: bool = False
    ) -> NoisyPair:
        """Draw ``(x_t, x_{t+1})`` from data ``x0``: the positive and the noisy observation that recovery starts from.

        Args:
            x0: clean data, ``(*batch, *event)``.
            level: t, one number, or one for each row of ``x0``.
            upper: the noisier marginal to go to, above ``level``; t + 1 if None.
            shared_noise: use one ε for both, as CDRL does: each has the right marginal and the expected gradient of
                the *marginal* energies is unchanged at lower variance, but x_{t+1} is then no longer x_t plus fresh
                noise, so x_t is not a draw of the recovery distribution.

        Returns:
            The pair, both shaped like ``x0``.

        Raises:
            InvalidInput: for levels out of range, or of another shape.
        """
        check_event("x0", x0, ())
        self.check_level(level)
        t = torch.as_tensor(level)
        u = t + 1
        if upper is not None:
            self.check_level(upper, marginal=True)
            u = torch.as_tensor(upper, device=t.device)
            if t.dim() and u.dim() and t.shape != u.shape:
                raise InvalidInput(
                    f"upper must be one number or one for each level; got {shape_text(u.shape)} for levels "
                    f"{shape_text(t.shape)}"
                )
            t, u = torch.broadcast_tensors(t, u)
            if not bool((u > t).all()):
                raise InvalidInput(
                    "upper must be above level everywhere; got one that is not: noise can't be taken off"
                )
        noise = torch.randn_like(x0)
        clean = _at(self.alpha_bar, t, x0) * x0 + _at(self.sigma_bar, t, x0) * noise
        if shared_noise:
            return NoisyPair(clean, _at(self.alpha_bar, u, x0) * x0 + _at(self.sigma_bar, u, x0) * noise)
        noise = torch.randn_like(x0)
        alpha, sigma = self.step(t.cpu(), u.cpu())
        whole = torch.arange(t.numel()).reshape(t.shape)
        return NoisyPair(clean, _at(alpha.flatten(), whole, x0) * clean + _at(sigma.flatten(), whole, x0) * noise)


def _marginals(name: str, value: object) -> Tensor:
    """Turn numbers into a float64 vector of at least two marginals, a copy."""
    try:
        vector = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise InvalidInput(f"{name} must be a vector of numbers; got {type(value).__name__}: pass a tensor") from None
    if vector.dim() != 1 or len(vector) < 2:
        raise InvalidInput(
            f"{name} must be a vector of at least 2 marginals (one level); got shape {shape_text(vector.shape)}"
        )
    return vector


def _check_sigmas(levels: int, low: float, high: float) -> None:
    check_count("levels", levels)
    check_positive("low", low)
    check_positive("high", high)
    if not high > low:
        raise InvalidInput(f"high must be above low; got {high} and {low}: levels are sorted from least to most noise")


def _ends(values: Tensor) -> str:
    return f"{float(values[0]):.3g} to {float(values[-1]):.3g}"


def _at(table: Tensor, level: int | Tensor, x: Tensor) -> Tensor:
    """Look up the level's number in x's dtype and device, broadcastable against x."""
    value = table.to(x)[torch.as_tensor(level, device=x.device)]
    if value.shape != x.shape[: value.dim()]:
        raise InvalidInput(
            f"level must be one number or one for each row; got {shape_text(value.shape)} for points "
            f"{shape_text(x.shape)}"
        )
    return append_dims(value, x)

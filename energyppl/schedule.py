"""Noise schedules: how much noise each level of an energy-based model sees.

A schedule has ``levels`` energies, numbered from 0 (least noise) to ``levels − 1``, and ``levels + 1`` marginals
``x_t = alpha_bar[t] x0 + sigma_bar[t] ε``; the last one, ``t = levels``, is where generation starts.  One step of noise
is ``x_{t+1} = alpha[t+1] x_t + sigma[t+1] ε``.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_count, check_positive
from energyppl.errors import InvalidInput

__all__ = ["NoiseSchedule", "NoisyPair"]


class NoisyPair(NamedTuple):
    """Neighbouring levels of the same data."""

    clean: Tensor  # x_t, (*batch, *event)
    noisy: Tensor  # x_{t+1}, (*batch, *event)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """An immutable schedule, given by its marginals.

    Args:
        alpha_bar: what is left of the data at each marginal, ``(levels + 1,)``, positive, never growing.
        sigma_bar: standard deviation of the noise at each marginal, ``(levels + 1,)``, growing; 0 at level 0 means
            clean data.
        tilted_top: whether the top level's recovery distribution keeps its tilt.  In DRL and CDRL it does not: the
            top level is sampled from white noise.

    Raises:
        InvalidInput: for fewer than one level, unsorted or non-positive entries.
    """

    alpha_bar: Tensor
    sigma_bar: Tensor
    tilted_top: bool = False

    def __post_init__(self) -> None:
        for name in ("alpha_bar", "sigma_bar"):
            value = torch.as_tensor(getattr(self, name), dtype=torch.float64, device="cpu").clone()
            if value.dim() != 1 or len(value) < 2:
                raise InvalidInput(
                    f"{name} must be a vector of at least 2 marginals (one level); got shape {tuple(value.shape)}"
                )
            object.__setattr__(self, name, value)
        if len(self.alpha_bar) != len(self.sigma_bar):
            raise InvalidInput(
                f"alpha_bar and sigma_bar must have one length; got {len(self.alpha_bar)} and {len(self.sigma_bar)}"
            )
        check_positive("alpha_bar", self.alpha_bar)
        check_positive("sigma_bar above level 0", self.sigma_bar[1:])
        if (
            bool(self.sigma_bar[0] < 0)
            or bool((self.sigma_bar.diff() <= 0).any())
            or bool((self.alpha_bar.diff() > 0).any())
        ):
            raise InvalidInput(
                "levels must be sorted from least to most noise: sigma_bar must grow and alpha_bar must not; "
                f"got sigma_bar {self.sigma_bar.tolist()} and alpha_bar {self.alpha_bar.tolist()}"
            )
        check_positive("the noise added between neighbouring levels", self._step_variance())

    # --- The papers' schedules ---

    @classmethod
    def recovery(cls) -> "NoiseSchedule":
        """DRL's six levels: 1000 linear betas, 1e-4 to 0.02, sub-sampled (Gao et al. 2021, T6)."""
        kept = torch.cumprod((1.0 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).sqrt(), 0)
        alpha_bar = kept[[0, 100, 200, 300, 400, 500, 999]]
        return cls(alpha_bar, (1.0 - alpha_bar**2).sqrt())

    @classmethod
    def cosine(cls, levels: int = 6, *, log_snr_max: float = 9.8, log_snr_min: float = -5.1) -> "NoiseSchedule":
        """CDRL's schedule, a cosine in log-SNR: λ(u) = −2 log tan(a u + b) (Zhu et al. 2024)."""
        check_count("levels", levels)
        if not log_snr_max > log_snr_min:
            raise InvalidInput(f"log_snr_max must exceed log_snr_min; got {log_snr_max} and {log_snr_min}")
        first, last = math.atan(math.exp(-0.5 * log_snr_max)), math.atan(math.exp(-0.5 * log_snr_min))
        angle = torch.linspace(first, last, levels + 1, dtype=torch.float64)
        return cls(angle.cos(), angle.sin())

    @classmethod
    def sqrtcumlinear(cls, levels: int = 50, *, start: float = 2e-4, end: float = 2e-2) -> "NoiseSchedule":
        """DA-EBM's schedule: β_t = (Σ_{k≤t} linspace(start, end)_k)², level 0 clean (Zhang et al. 2023)."""
        check_count("levels", levels)
        beta = torch.linspace(start, end, levels, dtype=torch.float64).cumsum(0) ** 2
        if not bool(((beta > 0) & (beta < 1)).all()):
            raise InvalidInput(f"every beta must lie in (0, 1); got {beta.tolist()}: lower end or levels")
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod((1.0 - beta).sqrt(), 0)])
        return cls(alpha_bar, (1.0 - alpha_bar**2).sqrt())

    @classmethod
    def linear_sigmas(cls, levels: int = 128, *, low: float = 0.05, high: float = 1.2) -> "NoiseSchedule":
        """MDSM's noise levels for CIFAR-10: σ linear from low to high, the data left as they are (Li et al. 2019)."""
        check_count("levels", levels)
        sigma_bar = torch.linspace(low, high, levels + 1, dtype=torch.float64)
        return cls(torch.ones_like(sigma_bar), sigma_bar)

    @classmethod
    def geometric_sigmas(cls, levels: int = 128, *, low: float = 0.1, high: float = 3.0) -> "NoiseSchedule":
        """MDSM's noise levels for (Fashion-)MNIST: σ geometric from low to high (Li et al. 2019)."""
        check_count("levels", levels)
        check_positive("low", low)
        check_positive("high", high)
        sigma_bar = torch.logspace(math.log10(low), math.log10(high), levels + 1, dtype=torch.float64)
        return cls(torch.ones_like(sigma_bar), sigma_bar)

    # --- Its numbers ---

    @property
    def levels(self) -> int:
        """How many energies there are."""
        return len(self.alpha_bar) - 1

    @property
    def alpha(self) -> Tensor:
        """``alpha[t] = alpha_bar[t + 1] / alpha_bar[t]``: what one step of noise leaves of x_t, ``(levels,)``."""
        return self.alpha_bar[1:] / self.alpha_bar[:-1]

    @property
    def sigma(self) -> Tensor:
        """``sigma[t]``, the noise added from level t to t + 1: the tilt's width, ``(levels,)``."""
        return self._step_variance().sqrt()

    @property
    def marginal_std(self) -> Tensor:
        """Standard deviation of each marginal for data of unit variance, ``(levels + 1,)``."""
        return (self.alpha_bar**2 + self.sigma_bar**2).sqrt()

    @property
    def log_snr(self) -> Tensor:
        """``2 log(alpha_bar / sigma_bar)``, ``(levels + 1,)``."""
        return 2.0 * (self.alpha_bar.log() - self.sigma_bar.log())

    def _step_variance(self) -> Tensor:
        return self.sigma_bar[1:] ** 2 - (self.alpha * self.sigma_bar[:-1]) ** 2

    # --- Noising data ---

    def check_level(self, level: int | Tensor, *, marginal: bool = False) -> None:
        """Require a level in ``0 … levels − 1`` (or ``… levels`` for a marginal)."""
        try:
            value = torch.as_tensor(level)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInput(f"level must be a whole number or a tensor of them; got {level!r}") from error
        top = self.levels if marginal else self.levels - 1
        if value.dtype.is_floating_point or value.dtype == torch.bool:
            raise InvalidInput(f"level must be a whole number; got {value.dtype}")
        if value.numel() and not (int(value.min()) >= 0 and int(value.max()) <= top):
            came = int(value) if value.numel() == 1 else f"{int(value.min())} to {int(value.max())}"
            raise InvalidInput(f"level must be between 0 and {top}; got {came}")

    def diffuse(self, x0: Tensor, level: int | Tensor) -> Tensor:
        """Data at a marginal: ``alpha_bar x0 + sigma_bar ε``.

        Args:
            x0: clean data, ``(*batch, *event)``.
            level: 0 to ``levels``, one number, or one for each row of ``x0``.
        """
        self.check_level(level, marginal=True)
        return _at(self.alpha_bar, level, x0) * x0 + _at(self.sigma_bar, level, x0) * torch.randn_like(x0)

    def step(self, level: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ of the noise from ``level`` to a noisier marginal ``upper``: x_u = α x_t + σ ε; float64."""
        alpha = self.alpha_bar[upper] / self.alpha_bar[level]
        return alpha, (self.sigma_bar[upper] ** 2 - (alpha * self.sigma_bar[level]) ** 2).sqrt()

    def pairs(
        self, x0: Tensor, level: int | Tensor, *, upper: Tensor | None = None, shared_noise: bool = False
    ) -> NoisyPair:
        """``(x_t, x_{t+1})`` for data ``x0``: the positive and the noisy observation that recovery starts from.

        Args:
            x0: clean data, ``(*batch, *event)``.
            level: t, one number, or one for each row of ``x0``.
            upper: the noisier marginal to go to, above ``level``; t + 1 if None.
            shared_noise: use one ε for both, as CDRL does: each has the right marginal and the expected gradient of
                the *marginal* energies is unchanged at lower variance, but x_{t+1} is then no longer x_t plus fresh
                noise, so x_t is not a draw of the recovery distribution.

        Returns:
            The pair, both shaped like ``x0``.
        """
        self.check_level(level)
        level = torch.as_tensor(level)
        upper = level + 1 if upper is None else upper
        self.check_level(upper, marginal=True)
        noise = torch.randn_like(x0)
        clean = _at(self.alpha_bar, level, x0) * x0 + _at(self.sigma_bar, level, x0) * noise
        if shared_noise:
            return NoisyPair(clean, _at(self.alpha_bar, upper, x0) * x0 + _at(self.sigma_bar, upper, x0) * noise)
        noise = torch.randn_like(x0)
        alpha, sigma = self.step(level.cpu(), upper.cpu())
        whole = torch.arange(level.numel()).reshape(level.shape)
        return NoisyPair(clean, _at(alpha.flatten(), whole, x0) * clean + _at(sigma.flatten(), whole, x0) * noise)


def _at(table: Tensor, level: int | Tensor, x: Tensor) -> Tensor:
    """The level's number in x's dtype and device, broadcastable against x."""
    value = table.to(x)[torch.as_tensor(level, device=x.device)]
    if value.shape != x.shape[: value.dim()]:
        raise InvalidInput(
            f"level must be one number or one for each row; got {tuple(value.shape)} for points {tuple(x.shape)}"
        )
    return value.reshape(value.shape + (1,) * (x.dim() - value.dim())) if value.dim() else value

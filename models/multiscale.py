"""MultiscaleEBM: one energy that is not told how noisy a point is, sampled by temperature (MDSM)."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from energyppl._checks import check_event, check_kind, check_positive, check_shape, checked
from energyppl.distributions import EnergyDistribution
from energyppl.errors import ChainWarning, InvalidInput, NotNormalized, warn_user
from energyppl.inference.levels.annealed_langevin import (
    AnnealedPoints,
    TemperatureSchedule,
    anneal_temperature,
    check_seen,
    denoising_jump,
)
from energyppl.inference.objectives.multiscale_score_matching import MultiscaleScoreMatching
from energyppl.integration.estimates import LogNormalizer
from energyppl.models._network_checks import OneEnergy, event_shape_of
from energyppl.models.base import EnergyModel
from energyppl.potentials.algebra import Potential, Scaled

__all__ = ["MultiscaleEBM"]

_BASE = "base_sigma"  # in a state dict
_STEP = 0.2  # of σ0: the paper's 0.02 for σ0 = 0.1
_NO_DENSITY = (
    "a MultiscaleEBM has no density to normalize: one energy serves all noise levels. In high dimension a point shows "
    "its own noise σ, and at the temperature σ²/σ0² the energy's samples are data with that noise; in low dimension "
    "the field that training aims at is in general no gradient, and the energy is not −log p. For a density train a "
    "RecoveryEBM, by LevelScoreMatching() or by recovery likelihood; if you know why you want the integral of exp(−U) "
    "all the same, energyppl.log_normalizer(ebm.potential()) estimates it"
)


class MultiscaleEBM(OneEnergy, EnergyModel):
    """``U(x) = net(x) / σ0²``, trained over a sequence of noise levels that it isn't told (Li, Chen & Sommer 2019).

    Train it by :class:`~energyppl.objectives.MultiscaleScoreMatching`.  The network's gradient is then the way from a
    noisy point back to the mean of its clean ones, ``∇net(x̃) = x̃ − E[x | x̃]``, whatever σ0 is, and ½|x|² is the
    answer for more noise than data.  ``sample`` is annealed Langevin; at temperature T = σ²/σ0² it gives data with
    noise σ *if the dimension is high*.  For N(0, I) and the paper's noise levels for CIFAR-10 the variance at T = 1, 25
    and 100, which should be 1.01, 1.25 and 2, is .98, 1.27 and 2.01 in 784 dimensions, and .29, 2.75 and 4.99 in two,
    for the best possible energy.  So nothing here is normalized: ``log_prob`` and ``log_normalizer`` refuse.

    Noise counts in standard deviations of the data: ``fit`` standardizes them with one scale for all coordinates.  The
    paper's numbers are for pixels in [0, 1], whose standard deviation is about 1/4: its CIFAR-10 schedule, 1.2 to 0.05
    with σ0 = 0.1, is 4.8 to 0.2 with σ0 = 0.4 here.

    Args:
        net: any module ``net(x)``, or ``net(x, level)`` which then is asked for level 0, from points
            ``(*batch, *event)``, of the spread of the noised data, to ``(*batch,)``.
        sigmas: the noise levels, decreasing, two or more; the paper has 128.
        base_sigma: σ0, the noise of temperature 1, which the last step of sampling removes; within the range of noise
            levels.
        event_shape: shape of one point; taken from ``net.event_shape`` if it has one.

    Raises:
        InvalidInput: for noise levels that do not decrease, or a network that returns another shape or non-finite
            values.

    Example:
        >>> ebm = ep.MultiscaleEBM(ep.MLPEnergy((2,), levels=1), sigmas=[4.0, 2.0, 1.0, 0.5], base_sigma=1.0)
        >>> ebm.marginal().energy(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    default_objective = MultiscaleScoreMatching
    sigmas: Tensor

    def __init__(
        self,
        net: nn.Module,
        sigmas: Sequence[float] | Tensor,
        *,
        base_sigma: float = 0.1,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(event_shape_of(net, event_shape), net)
        self.register_buffer("sigmas", _checked_sigmas(sigmas, base_sigma).to(self.loc))
        self._base_sigma = float(base_sigma)
        self._factor = torch.tensor(self._base_sigma**-2, dtype=torch.float64)  # also in potentials made before loading
        self._network()  # tries it

    @property
    def base_sigma(self) -> float:
        """σ0, the noise of temperature 1; part of the state dict, since the same network with another is another U."""
        return self._base_sigma

    @checked
    def standardize(self, data: Tensor, *, isotropic: bool = True) -> None:
        """Standardize as :meth:`EnergyModel.standardize`, by default with one scale for all, as the noise's.

        Args:
            data: rows ``(n, *event)``.
            isotropic: one scale.
        """
        super().standardize(data, isotropic=isotropic)

    def potential(self, level: int | Tensor = 0) -> Potential:
        """Return the energy in standardized coordinates, unnormalized; there is only level 0.

        Its samples at temperature σ²/σ0² are data with noise σ in high dimension.  It is not −log p in low dimension,
        and nowhere the density of clean data: don't compare likelihoods by it.
        """
        return Scaled(self._at_level_0(level, "a MultiscaleEBM is not told the noise and"), self._factor)

    @checked
    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        *,
        level: int = 0,
        schedule: TemperatureSchedule | None = None,
        step_size: float | None = None,
        denoise: bool = True,
        force_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw samples, ``(*sample_shape, *event)``, by annealed Langevin from white noise, in data coordinates.

        Args:
            sample_shape: shape of the batch.
            level: the only one there is, 0.
            schedule: the temperatures; if None the paper's 2,700 steps, from the temperature of the noisiest level (the
                paper's 100 stands for 10 σ0, its noisiest level being 12 σ0).
            step_size: ε, in standardized units; the paper's, a fifth of σ0, if None.
            denoise: finish with the jump ``x − σ0² ∇U(x)``.
            force_dtype: arithmetic of the network, ``torch.bfloat16`` for large ones.
        """
        self.potential(level)  # which checks the level
        shape, schedule = check_shape("sample_shape", sample_shape), self._schedule(schedule)
        start = self.base_sigma * schedule.start**0.5 * torch.randn(*shape, *self.event_shape).to(self.loc)
        return self._anneal_from(start, schedule, step_size, denoise, force_dtype)

    def inpaint(
        self,
        image: Tensor,
        seen: Tensor,
        *,
        schedule: TemperatureSchedule | None = None,
        step_size: float | None = None,
        denoise: bool = True,
        force_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Fill in what is not seen, by the same chain (Li et al. 2019): one completion of each point.

        The seen coordinates keep their values, and are given the noise σ0 √T of the temperature before each gradient.
        (The released code takes the root of T twice there.)

        Args:
            image: points ``(*batch, *event)`` in data coordinates; expand one for several completions.  Values that are
                not seen don't matter.
            seen: boolean mask, ``(*event)`` or of the shape of ``image``: True where it is known.
            schedule: as for :meth:`sample`, like all that follows.
            step_size: likewise.
            denoise: likewise, for what was not seen.
            force_dtype: likewise.

        Returns:
            Completed points, ``(*batch, *event)``.

        Raises:
            InvalidInput: for points of another shape, a mask that is not boolean, all False or all True, or seen values
                that are not finite.
        """
        check_event("image", image, self.event_shape)
        check_seen(seen, image, self.event_shape)
        image, seen, schedule = image.to(self.loc), seen.to(self.loc.device), self._schedule(schedule)
        noise = self.base_sigma * schedule.start**0.5 * torch.randn_like(image)
        start = torch.where(seen, self.to_unit(image), noise)
        return torch.where(seen, image, self._anneal_from(start, schedule, step_size, denoise, force_dtype, seen))

    def marginal(self, level: int = 0) -> EnergyDistribution:
        """Return ``exp(−U(x))`` in data coordinates, whose ``log_prob`` refuses and whose ``sample`` is :meth:`sample`.

        Chains on its potential, at temperature 1, draw data with noise σ0 in high dimension.
        """
        inner = super().marginal(level)
        return EnergyDistribution(inner.potential, sampler=inner.sampler, log_normalizer=_refuse, like=self.loc)

    def log_normalizer(self, level: int = 0, **options: Any) -> LogNormalizer:
        """Refuse, since there is no density to normalize.

        Raises:
            NotNormalized: always; the message says why, and what to do instead.
        """
        raise NotNormalized(_NO_DENSITY)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A number and not a buffer, which .half() would round: steps and temperatures are worked out from it.
        destination[prefix + _BASE] = torch.tensor(self.base_sigma, dtype=torch.float64)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *lists: list[str],
    ) -> None:
        value = state_dict.pop(prefix + _BASE, None)  # of torch's own copy of the caller's
        if value is not None:
            self._base_sigma = float(value)
            self._factor.fill_(self._base_sigma**-2)
        elif strict:
            missing_keys.append(prefix + _BASE)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *lists)

    def _schedule(self, schedule: TemperatureSchedule | None) -> TemperatureSchedule:
        if schedule is not None:
            return schedule
        return TemperatureSchedule(start=max(1.0, (float(self.sigmas[0]) / self.base_sigma) ** 2))

    def _anneal_from(
        self,
        start: Tensor,
        schedule: TemperatureSchedule,
        step_size: float | None,
        denoise: bool,
        force_dtype: torch.dtype | None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Anneal from standardized points, and return the ends in data coordinates."""
        potential = self.potential()
        found: AnnealedPoints = anneal_temperature(
            potential,
            start,
            schedule,
            step_size=_STEP * self.base_sigma if step_size is None else step_size,
            seen=seen,
            base_sigma=self.base_sigma,
            force_dtype=force_dtype,
        )
        if bool(found.diverging.any()):
            warn_user(
                f"{int(found.diverging.sum())} of {found.diverging.numel()} chains were asked to move to where nothing "
                "is finite, and stayed: pass a smaller step_size, or train longer",
                ChainWarning,
            )
        x = denoising_jump(potential, found.x, self.base_sigma, force_dtype) if denoise else found.x
        return self.loc + self.scale * x


def _refuse(*_: object) -> NoReturn:
    raise NotNormalized(_NO_DENSITY)


def _checked_sigmas(sigmas: Sequence[float] | Tensor, base_sigma: float) -> Tensor:
    """Check the noise levels and return them as a tensor."""
    check_kind("sigmas", sigmas, Sequence[float] | Tensor)
    levels = torch.as_tensor(sigmas, dtype=torch.float64)
    if levels.dim() != 1 or len(levels) < 2:
        raise InvalidInput(
            f"sigmas must be a vector of two noise levels or more; got shape {tuple(levels.shape)}: for a single level "
            "train an EBM by DenoisingScoreMatching"
        )
    check_positive("every sigma", levels)
    if bool((levels.diff() >= 0).any()):
        raise InvalidInput(f"sigmas must decrease, the most noise first; got {levels.tolist()}: sort or flip them")
    check_positive("base_sigma", base_sigma)
    low, high = float(levels[-1]), float(levels[0])
    if not low * (1 - 1e-6) <= base_sigma <= high * (1 + 1e-6):
        raise InvalidInput(
            f"base_sigma must lie within the range of noise levels, where the energy has seen it; got "
            f"{base_sigma} for sigmas from {high:.4g} to {low:.4g}"
        )
    return levels

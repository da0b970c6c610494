"""Models of several noise levels: energies at every level, their densities and normalizers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from energyppl._checks import check_event, checked, shape_text
from energyppl.errors import CheckpointError
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.kernels.crank_nicolson import CrankNicolson, CrankNicolsonLangevin
from energyppl.inference.levels.generation import clean_mean
from energyppl.inference.normalizing.levels import anneal_through_levels
from energyppl.integration.estimates import LogNormalizer
from energyppl.models._network_checks import check_parts, event_shape_of, needs_level_for_each
from energyppl.models._scaling import warn_of_hidden_direction
from energyppl.models.base import KernelModel
from energyppl.potentials.algebra import Potential
from energyppl.potentials.composed import Standardized
from energyppl.potentials.network import AtLevel
from energyppl.schedule import NoiseSchedule

_SCHEDULE = "schedule"  # in a state dict: alpha_bar and sigma_bar
_FEW_DIMENSIONS = 4  # up to here proposals from the tilt are accepted so often that a gradient doesn't pay
_MAX_LOG_SNR = 20.0  # of a level without noise, for networks that are told the log-SNR


class _Trial(NamedTuple):
    """Findings of a network's trial; a tuple, so that the network does not become a second module of its model."""

    net: nn.Module
    each: bool
    log_snr: Tensor | None


class LevelEnergies(KernelModel):
    """Energies U(x, t) at the levels of a noise schedule; a subclass says how they are sampled.

    Args:
        net: any module ``net(x, level)``.
        schedule: the noise levels.
        event_shape: shape of one point; taken from ``net.event_shape`` if it has one.
        levels: how many have an energy; those below white noise if None.
    """

    conditions: Tensor | None = None  # the class or classes, context or contexts asked of it
    condition_dims: int = 0  # dimensions of one: none for a class
    guidance: float = 0.0
    initializer: nn.Module | None

    def __init__(
        self,
        net: nn.Module,
        schedule: NoiseSchedule,
        event_shape: Sequence[int] | None,
        kernel: TunableKernel,
        levels: int | None = None,
    ) -> None:
        super().__init__(check_parts(net, schedule, event_shape), net)
        self.schedule = schedule
        self.levels = schedule.levels if levels is None else levels
        spread = schedule.marginal_std
        self._marginal_std = None if bool(torch.allclose(spread, torch.ones_like(spread))) else spread
        self._trial: _Trial | None = None
        self._network()  # tries it
        self.initial_kernel = self.kernel = kernel

    def _summary(self) -> dict[str, str]:
        sigma = self.schedule.sigma_bar.tolist()
        schedule = f"{self.levels}, noise {sigma[0]:.3g} to {sigma[self.levels - 1]:.3g}"
        rows = super()._summary() | {"levels": schedule, "kernel": type(self.kernel).__name__}
        if (initializer := getattr(self, "initializer", None)) is not None:
            rows["initializer"] = type(initializer).__name__
        return rows

    @checked
    def standardize(self, data: Tensor, *, isotropic: bool = False) -> None:
        """Standardize as :meth:`EnergyModel.standardize`.

        A warning says where level 0's noise is wider than rows in the direction in which they vary least.
        """
        super().standardize(data, isotropic=isotropic)
        if len(self.event_shape) == 1 and not isotropic:
            noise = float(self.schedule.sigma_bar[0] / self.schedule.alpha_bar[0])
            warn_of_hidden_direction(self.to_unit(data.to(self.loc)), noise)

    def diffuse(self, x0: Tensor, level: int | Tensor) -> Tensor:
        """Return clean data, ``(*batch, *event)``, at a marginal of the schedule, in data coordinates."""
        check_event("x0", x0, self.event_shape)
        return self.from_unit(self.schedule.diffuse(self.to_unit(x0), level))

    def potential(self, level: int | Tensor = 0) -> Potential:
        """Return the energy at one level, or at each point's own level ``(*batch,)``, in standardized coordinates."""
        return self._energies.get(self, level, lambda: self._at_level(level, None, 0.0))

    def denoised(self, noisy: Tensor, level: int) -> Tensor:
        """Return the mean of the clean data given noisy ones, ``(*batch, *event)``, in data coordinates (Tweedie).

        It is clamped to the range of the data that the model was standardized to.

        Args:
            noisy: points of ``level``, as :meth:`diffuse` makes them.
            level: t.
        """
        check_event("noisy", noisy, self.event_shape)
        return self.from_unit(self.denoised_unit(self.to_unit(noisy), level))

    def denoised_unit(self, noisy: Tensor, level: int | Tensor) -> Tensor:
        """Return :meth:`denoised` in standardized coordinates."""
        low, high = ((end - self.loc) / self.scale for end in (self.low, self.high))
        return clean_mean(self, noisy, torch.as_tensor(level, device=self.loc.device)).clamp(low, high)

    def _at_level(self, level: int | Tensor, condition: Tensor | None, guidance: float) -> AtLevel:
        self.schedule.check_level(level, marginal=self.levels > self.schedule.levels)
        level = torch.as_tensor(level, device=self.loc.device)
        scale: float | Tensor = 1.0
        if self._marginal_std is not None:
            value = self._marginal_std.to(self.loc)[level]
            scale = value.reshape(*value.shape, *[1] * len(self.event_shape))
        net, each, log_snr = self._network()
        return AtLevel(net, level, self.event_shape, 0.0, scale, each, condition, guidance, log_snr)

    def _network(self) -> tuple[nn.Module, bool, Tensor | None]:
        """Return the network, whether it wants a level for each point, and its log-SNRs if it is continuous.

        It is tried anew when it was replaced.
        """
        if self._trial is None or self._trial.net is not self.net:
            log_snr = None
            if getattr(self.net, "continuous", False):
                log_snr = self.schedule.log_snr[: self.levels].clamp(-_MAX_LOG_SNR, _MAX_LOG_SNR).to(self.loc)
            each = needs_level_for_each(self.net, self.levels, self.loc, log_snr, self._trial_condition())
            self._trial = _Trial(self.net, each, log_snr)
        log_snr = self._trial.log_snr
        return self.net, self._trial.each, None if log_snr is None else log_snr.to(self.loc)

    def _trial_condition(self) -> tuple[Tensor, ...]:
        """Return what the network is told of three points beside their levels: nothing."""
        return ()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Numbers in float64 and no buffer, which .half() would round.
        destination[prefix + _SCHEDULE] = _marginals(self.schedule)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *lists: list[str],
    ) -> None:
        theirs = state_dict.pop(prefix + _SCHEDULE, None)  # of torch's own copy of the caller's
        if theirs is not None:
            _require_same_schedule(theirs, self.schedule)
        elif strict:
            missing_keys.append(prefix + _SCHEDULE)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *lists)

    def _anneal(self, level: int, **options: Any) -> LogNormalizer:
        # Annealing runs in coordinates of unit variance at every level.
        std = [float(s) for s in self.schedule.marginal_std]
        stops = [Standardized(self.potential(t), 0.0, 1.0 / std[t]) for t in range(level, self.levels)]
        known = getattr(self.net, "noisiest_base", None)
        base = None if known is None else known()
        return anneal_through_levels(self, level, stops, std[level], base=base, **options)


def _marginals(schedule: NoiseSchedule) -> Tensor:
    """Return a schedule's ``alpha_bar`` and ``sigma_bar``, ``(2, levels + 1)``, float64."""
    return torch.stack([schedule.alpha_bar, schedule.sigma_bar]).double()


def _require_same_schedule(theirs: object, schedule: NoiseSchedule) -> None:
    """Require the schedule that weights were trained with: with another one they answer about other noise levels.

    Raises:
        CheckpointError: for another one.
    """
    ours = _marginals(schedule)
    if not isinstance(theirs, Tensor):
        raise CheckpointError(f"the state dict's schedule must be a tensor; got {type(theirs).__name__}: save it again")
    their = theirs.detach().cpu().double()
    if their.shape == ours.shape and torch.allclose(their, ours, rtol=1e-6, atol=1e-12):
        return
    if their.shape != ours.shape:
        what = f"{their.shape[-1] - 1} levels, not {schedule.levels}" if their.dim() == 2 else shape_text(their.shape)
    else:
        place = int((their - ours).abs().amax(0).argmax())
        was, now = (f"alpha_bar {m[0, place]:.6g}, sigma_bar {m[1, place]:.6g}" for m in (their, ours))
        what = f"at level {place} {was}, not {now}"
    raise CheckpointError(
        f"these weights were trained with another noise schedule ({what}): build the model with that schedule, or load "
        "the network alone by ebm.net.load_state_dict(…)"
    )


def default_kernel(net: nn.Module, event_shape: Sequence[int] | None) -> TunableKernel:
    """Return the kernel that moves recovery chains where none is chosen: with the gradient in many dimensions."""
    few = math.prod(event_shape_of(net, event_shape)) <= _FEW_DIMENSIONS
    return CrankNicolson() if few else CrankNicolsonLangevin()

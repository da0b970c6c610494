"""The base of all models: the coordinates of the data, and the densities and normalizers of the energies."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from energyppl._checks import (
    as_points,
    check_between,
    check_data,
    check_event,
    check_positive,
    check_spanning,
    checked,
    shape_text,
)
from energyppl._html import summary_table
from energyppl.distributed import agreed
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.inference.normalizing.methods import Annealing
from energyppl.inference.normalizing.paths import Draws
from energyppl.integration.estimates import LogNormalizer
from energyppl.models._cache import KnownEnergies, LevelIntegrals, WeightKeyedCache, lazy_log_z
from energyppl.models._scaling import one_scale, robust_scaling, warn_of_narrow_halves
from energyppl.potentials.algebra import Potential
from energyppl.potentials.composed import Standardized

_FARTHEST = 10.0  # widths: rows beyond count as at it where columns are compared, so that one wild row is no copy
_NEGATIVES = 512  # samples that stand for the model in the gradient of log Z, above two dimensions


class EnergyModel(nn.Module):
    """A network's energies of points that are standardized once, to the data: ``(x − loc) / scale``.

    A subclass says what its energies are, how they are sampled, and by which path they are annealed.

    Args:
        event_shape: shape of one point.
        net: the network.
    """

    loc: Tensor
    scale: Tensor
    is_standardized: Tensor
    low: Tensor
    high: Tensor
    event_shape: torch.Size

    def __init__(self, event_shape: Sequence[int], net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.event_shape = torch.Size(event_shape)
        like = next((p for p in net.parameters() if p.dtype.is_floating_point), torch.empty(()))
        self.register_buffer("loc", torch.zeros(self.event_shape, dtype=like.dtype, device=like.device))
        self.register_buffer("scale", torch.ones_like(self.loc))
        self.register_buffer("is_standardized", torch.zeros((), dtype=torch.bool, device=like.device))
        widest = torch.finfo(like.dtype).max  # finite, as all that a checkpoint holds
        self.register_buffer("low", torch.full_like(self.is_standardized, -widest, dtype=like.dtype))
        self.register_buffer("high", torch.full_like(self.low, widest))
        self._kept: WeightKeyedCache[Any] = WeightKeyedCache()
        self._integrals = LevelIntegrals(self._kept)
        self._energies = KnownEnergies()
        self._has_grid = len(self.event_shape) == 1 and self.event_shape[0] <= 2

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "net" and not isinstance(value, nn.Module):
            raise InvalidInput(f"net must be a torch module net(x, level); got {type(value).__name__}")
        super().__setattr__(name, value)

    @checked
    def standardize(self, data: Tensor, *, isotropic: bool = False) -> None:
        """Set ``loc`` and ``scale`` to the mean and standard deviation of each coordinate of ``data``, ``(n, *event)``.

        Their range is kept too, ``low`` and ``high``: to it images are clamped when they are denoised.

        Where a few rows rule a coordinate, so that its standard deviation is beyond ten times what the central 95 %
        of rows say, the median and their width take its place, with a warning that names it.  Another warning names
        coordinates of which at least half of the rows have nearly one value.

        ``fit`` does so once, unless you have; with ``isotropic`` all coordinates share one scale, so that some may be
        constant, as the edges of images are: level 0 has noise of its own.  The pixels of an image's channel then share
        one mean as well: less a mean of its own, a pixel's background would differ from place to place, and a
        convolution does not know where it is.

        Raises:
            InvalidInput: if a coordinate is constant, which no density can describe (with ``isotropic``: all of them),
                or the copy or a sum of others.
        """
        check_data("data", data, self.event_shape, at_least=2)
        rows = data.to(self.loc).double()
        if not bool(torch.isfinite(rows).all()):
            raise InvalidInput(
                f"data must be finite in {self.loc.dtype}, the weights' dtype; got values up to "
                f"{float(data.abs().max()):.3g}: rescale them, say by a power of ten"
            )
        scale = rows.std(0)
        # Constant is what varies no more than its own rounding, in whatever unit.
        rounding = 2.0 * torch.finfo(self.loc.dtype).eps * rows.abs().amax(0)
        constant = (scale <= rounding).flatten().nonzero()[:, 0].tolist()
        if len(constant) > (scale.numel() - 1 if isotropic else 0):
            raise InvalidInput(
                f"data must vary in every coordinate; coordinate(s) {constant[:20]} are constant in {self.loc.dtype}: "
                "drop them, subtract a large offset, or give all one scale by ebm.standardize(data, isotropic=True)"
            )
        image = isotropic and len(self.event_shape) == 3
        loc = rows.mean((0, 2, 3))[:, None, None].expand(self.event_shape) if image else rows.mean(0)
        if isotropic:
            loc, scale = one_scale(rows, loc)
        else:
            loc, robust = robust_scaling(rows, loc, scale)
            warn_of_narrow_halves(rows, scale.where(robust == scale, 0.0))  # of the others it has warned
            scale = robust
            if len(self.event_shape) == 1:
                check_spanning("data", ((rows - loc) / scale).clamp(-_FARTHEST, _FARTHEST))
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        self.low.copy_(rows.min())
        self.high.copy_(rows.max())
        fit_base = getattr(self.net, "fit_base", None)
        if fit_base is not None:
            fit_base(self.to_unit(data.to(self.loc)))
        self.is_standardized.fill_(True)

    def _require_one_condition(self) -> None:
        conditions = getattr(self, "conditions", None)
        if conditions is not None and conditions.dim() > self.condition_dims:
            raise InvalidInput(
                "log Z is of one class or context, and this model was given one for each point: ask ebm.given(label) "
                "for each of them"
            )

    def to_unit(self, data: Tensor) -> Tensor:
        """Return data in the coordinates in which noise is counted, ``(x − loc) / scale``, on the model's device."""
        return (data.to(self.loc.device) - self.loc) / self.scale

    def from_unit(self, z: Tensor) -> Tensor:
        """Return points of the energies' coordinates in data coordinates, ``loc + scale z``."""
        return self.loc + self.scale * z

    def diffuse(self, x0: Tensor, level: int | Tensor) -> Tensor:
        """Return clean data, ``(*batch, *event)``, at a level's noise, in data coordinates; without levels none."""
        return check_event("x0", x0, self.event_shape)

    def potential(self, level: int | Tensor = 0) -> Potential:
        """Return the energy at a level, in standardized coordinates."""
        raise NotImplementedError

    def sample(self, sample_shape: int | Sequence[int] = (), *, level: int = 0) -> Tensor:
        """Return samples of a level, ``(*sample_shape, *event)``, in data coordinates."""
        raise NotImplementedError

    def marginal(self, level: int = 0) -> EnergyDistribution:
        """Return p(x_t) in data coordinates: at level 0 the data themselves, up to that level's noise.

        ``sample`` is the model's own; ``log_prob`` is normalized where :meth:`log_normalizer` can be.
        """
        return EnergyDistribution(
            Standardized(self.potential(level), self.loc, self.scale),
            sampler=_MarginalSampler(self, level),
            log_normalizer=_MarginalLogZ(self, level),
            like=self.loc,
        )

    @checked
    def log_normalizer(
        self,
        level: int = 0,
        *,
        method: Annealing | None = None,
        samples: Draws | None = None,
        tolerance: float | None = None,
        max_evaluations: int | None = None,
        confidence: float = 0.95,
        progress: bool = False,
    ) -> LogNormalizer:
        """Estimate log Z of :meth:`marginal`: by quadrature in one and two dimensions, else by annealing.

        Annealing goes from white noise, through the noisier levels if there are any, to this one, and back from the
        model's own samples relaxed by MALA; :class:`~energyppl.normalizing.BAR` bridges both.  Independent forward runs
        go beside it and count mass that the samples never visit.  What was found is kept until the weights change,
        unless anything below is given.

        Args:
            level: t; 0 is the data.
            method: how to anneal; without one and without what follows, quadrature is used where it can be.
            samples: draws of the level's own density in data coordinates, in place of the model's own.
            tolerance: as in :func:`~energyppl.log_normalizer`, like all that follows.
            max_evaluations: at most.
            confidence: of the interval.
            progress: show a bar.

        Returns:
            log Z in data coordinates, nats.  By annealing, ``forward`` and ``bridge`` say what either found, and
            ``unvisited`` which share of the mass no sample visits.

        Raises:
            InvalidInput: for a confidence outside (0, 1) or a tolerance that is not positive.
            QuadratureError: if the integral does not come to an end within 64 standard deviations of the data.
            NotNormalizable: if the energy does not rise far away as it must.
        """
        self.potential(level)  # which checks the level
        self._require_one_condition()
        check_between("confidence", confidence, 0.0, 1.0)
        if tolerance is not None:
            check_positive("tolerance", tolerance)
        plain = method is None and samples is None and tolerance is None and max_evaluations is None
        if plain and self._has_grid:
            found = self._integrals.quadrature(self, level)
            estimate = found.log_normalizer + float(self.scale.log().sum())
            error = found.error + found.leak  # what lies outside of the grid is missing
            return LogNormalizer(
                estimate=estimate,
                standard_error=error,
                lower=estimate - error,
                upper=estimate + error,
                evaluations=found.evaluations,
                confidence=confidence,
                method="quadrature",
            )

        def anneal() -> LogNormalizer:
            found = self._anneal(
                level,
                method=method,
                samples=samples,
                tolerance=tolerance,
                max_evaluations=max_evaluations,
                confidence=confidence,
                progress=progress,
            )
            return agreed(found)  # among processes that share the particles

        if not plain:
            return anneal()
        known: LogNormalizer = self._kept.get(self, (level, confidence), anneal)
        return known

    def __repr__(self) -> str:
        """Summarize in one line; print ``ebm.net`` for the network's layers."""
        rows = self._summary()
        return f"{type(self).__name__.lstrip('_')}({', '.join(f'{name}: {text}' for name, text in rows.items())})"

    def _repr_html_(self) -> str:
        return summary_table(type(self).__name__.lstrip("_"), self._summary())

    def _summary(self) -> dict[str, str]:
        """Describe the model: its points, its network, and whether it knows the data's coordinates."""
        weights = sum(p.numel() for p in self.net.parameters())
        return {
            "points": shape_text(self.event_shape),
            "network": f"{type(self.net).__name__.lstrip('_')} with {weights:,} weights",
            "standardized": "to the data" if bool(self.is_standardized) else "not yet",
        }

    def checksum(self) -> str:
        """Return a digest of the weights and buffers, which tells a model from others and from its own past."""
        digest = blake2b()
        for tensor in (*self.parameters(), *self.buffers()):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def grid_points(self, level: int = 0) -> Tensor | None:
        """Return standardized points that stand for equal shares of a level's mass, ``(16384, *event)``, without noise.

        They come from a grid, in one and two dimensions; None above.
        """
        return self._integrals.quantiles(self, level) if self._has_grid else None

    def negatives(self, level: int) -> Tensor:
        """Return standardized points of a level's own density: from a grid up to two dimensions, else samples."""
        points = self.grid_points(level)
        return self.to_unit(self.sample((_NEGATIVES,), level=level)) if points is None else points

    def _log_z(self, level: int) -> float:
        """Return the estimate of :meth:`log_normalizer`, which a density needs at every call."""
        known: float = self._kept.get(self, ("log Z", level), lambda: self.log_normalizer(level).estimate)
        return known

    def _anneal(self, level: int, **options: Any) -> LogNormalizer:
        """Estimate log Z of a level by annealing; see :meth:`log_normalizer`."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the normalized log density of the level-0 marginal in nats, ``(*batch, *event)`` to ``(*batch,)``.

        Points may be a numpy array or a pandas frame of numbers too.
        """
        x = check_event("x", as_points("x", x), self.event_shape).to(self.loc)
        energy: Tensor = self.potential()(self.to_unit(x))
        if energy.shape != x.shape[: x.dim() - len(self.event_shape)]:
            log_prob: Tensor = self.marginal().log_prob(x)  # which says what is wrong
            return log_prob
        return -energy - _MarginalLogZ(self, 0)(self, energy)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to be called, as ``pyro.sample("x", ebm)`` does: a model is no function of points and no distribution.

        Raises:
            InvalidInput: always; the message says what to pass instead.
        """
        raise InvalidInput(called_sentence(self))


class KernelModel(EnergyModel):
    """A model whose chains a kernel moves, with a step size of its own at each level."""

    levels: int
    initial_kernel: TunableKernel  # that the model was declared with
    level_kernel: LevelKernel

    @property
    def kernel(self) -> TunableKernel:
        """The kernel that moves the model's chains; setting it begins with its own step size at every level."""
        return self.level_kernel.kernel

    @kernel.setter
    def kernel(self, kernel: TunableKernel) -> None:
        self.level_kernel = LevelKernel(kernel, self.levels, self.loc)

    @property
    def step_sizes(self) -> Tensor:
        """The kernel's step size at each level, ``(levels,)``, relative to the width of what is sampled there."""
        return self.level_kernel.step_sizes

    def set_kernel(self, kernel: TunableKernel, step_sizes: Tensor) -> None:
        """Give the model's chains a kernel, with its step size at each level, ``(levels,)``."""
        self.kernel = kernel
        self.step_sizes.copy_(step_sizes)


def called_sentence(model: nn.Module) -> str:
    """Say what to use in place of a call of a model."""
    return (
        f"expected a distribution or an energy where the model {type(model).__name__} was called: pass ebm.marginal(), "
        "as in pyro.sample(name, ebm.marginal()), or ebm.potential() for energies"
    )


@dataclass(frozen=True, eq=False)
class _MarginalSampler:
    model: EnergyModel
    level: int

    def __call__(self, potential: Potential, shape: torch.Size, like: Tensor) -> Tensor:
        return self.model.sample(shape, level=self.level).to(like)


@dataclass(frozen=True, eq=False)
class _MarginalLogZ:
    """log Z of a model's marginal: an estimate, with the gradient −E_model[∂U/∂θ] for whoever asks for it."""

    model: EnergyModel
    level: int

    def __call__(self, potential: object, value: Tensor) -> Tensor:
        self.model._require_one_condition()
        estimate = value.new_tensor(self.model._log_z(self.level))
        if not torch.is_grad_enabled():
            return estimate
        return lazy_log_z(estimate, self._minus_mean_energy, list(self.model.parameters()))

    def _minus_mean_energy(self) -> Tensor:
        """Return minus the mean energy of the model's own samples, ``()``, whose gradient is that of log Z."""
        return -self.model.potential(self.level)(self.model.negatives(self.level)).mean()

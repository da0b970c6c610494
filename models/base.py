"""What every model shares: the coordinates of its data, and the densities and normalizers of its energies."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from energyppl._checks import check_data, check_event
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput
from energyppl.inference.normalizing.log_normalizer import Annealing
from energyppl.inference.normalizing.paths import Draws
from energyppl.integration.estimates import LogNormalizer
from energyppl.models._cache import LevelIntegrals, WeightKeyedCache
from energyppl.potentials.algebra import Potential
from energyppl.potentials.network import AtLevel


class EnergyModel(nn.Module):
    """Energies of points that are standardized once, to the data: ``(x − loc) / scale``.

    A model says what its energies are, how they are sampled, and how a path leads to them.

    Args:
        event_shape: shape of one point.
        net: the network.
    """

    loc: Tensor
    scale: Tensor
    is_standardized: Tensor
    event_shape: torch.Size

    def __init__(self, event_shape: Sequence[int], net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.event_shape = torch.Size(event_shape)
        like = next((p for p in net.parameters() if p.dtype.is_floating_point), torch.empty(()))
        self.register_buffer("loc", torch.zeros(self.event_shape, dtype=like.dtype, device=like.device))
        self.register_buffer("scale", torch.ones_like(self.loc))
        self.register_buffer("is_standardized", torch.zeros((), dtype=torch.bool, device=like.device))
        self._integrals = LevelIntegrals()
        self._has_grid = len(self.event_shape) == 1 and self.event_shape[0] <= 2
        self._annealed: WeightKeyedCache[LogNormalizer] = WeightKeyedCache()

    def standardize(self, data: Tensor, *, isotropic: bool = False) -> None:
        """Set ``loc`` and ``scale`` to the mean and standard deviation of each coordinate of ``data``, ``(n, *event)``.

        ``fit`` does so once, unless you have; with ``isotropic`` all coordinates share one scale, so that some may be
        constant, as the edges of images are: level 0 has noise of its own.

        Raises:
            InvalidInput: if a coordinate is constant, which no density can describe (with ``isotropic``: all of them).
        """
        check_data("data", data, self.event_shape, at_least=2)
        data = data.to(self.loc)
        scale = data.std(0)
        constant = (scale <= 1e-6 * (1.0 + data.abs().amax(0))).flatten().nonzero()[:, 0].tolist()
        if len(constant) > (scale.numel() - 1 if isotropic else 0):
            raise InvalidInput(
                f"data must vary in every coordinate; coordinate(s) {constant[:20]} are constant: drop them, or give "
                "all one scale by ebm.standardize(data, isotropic=True)"
            )
        self.loc.copy_(data.mean(0))
        self.scale.copy_(scale.square().mean().sqrt() if isotropic else scale)
        self.is_standardized.fill_(True)

    def to_unit(self, data: Tensor) -> Tensor:
        """Data in the coordinates in which noise is counted, ``(x − loc) / scale``, on the model's device."""
        return (data.to(self.loc.device) - self.loc) / self.scale

    def diffuse(self, x0: Tensor, level: int | Tensor) -> Tensor:
        """Clean data, ``(*batch, *event)``, at a level's noise, in data coordinates; without levels none."""
        return check_event("x0", x0, self.event_shape)

    def potential(self, level: int | Tensor = 0) -> AtLevel:
        """The energy at a level, in standardized coordinates."""
        raise NotImplementedError

    def sample(self, sample_shape: Sequence[int] = (), *, level: int = 0) -> Tensor:
        """Samples of a level, ``(*sample_shape, *event)``, in data coordinates."""
        raise NotImplementedError

    def marginal(self, level: int = 0) -> EnergyDistribution:
        """p(x_t) in data coordinates: the data themselves, up to the noise of level 0, at level 0.

        ``sample`` is the model's own; ``log_prob`` is normalized where :meth:`log_normalizer` can be.
        """
        inner = self.potential(level)
        potential = replace(inner, loc=self.loc, scale=self.scale * inner.scale)

        def sampler(_: Potential, shape: torch.Size, like: Tensor) -> Tensor:
            return self.sample(shape, level=level).to(like)

        def log_z(_: Potential, value: Tensor) -> Tensor:
            estimate = value.new_tensor(self.log_normalizer(level).estimate)
            if not torch.is_grad_enabled():
                return estimate
            # A constant would lose half of the likelihood's gradient: ∂ log Z/∂θ is −E_model[∂U/∂θ].
            model = (
                self._integrals.quantiles(self, level)
                if self._has_grid
                else self.to_unit(self.sample((512,), level=level))
            )
            energy = self.potential(level)(model).mean()
            return estimate + energy.detach() - energy

        return EnergyDistribution(potential, sampler=sampler, log_normalizer=log_z, like=self.loc)

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
        """Log Z of :meth:`marginal`: by quadrature in one and two dimensions, else by annealing.

        Annealing goes from white noise, through the noisier levels if there are any, to this one, and back from the
        model's own samples relaxed by MALA; :class:`~energyppl.normalizing.BAR` bridges both.  What was found is kept
        until the weights change, unless anything below is given.

        Args:
            level: t; 0 is the data.
            method: how to anneal; without one and without what follows, quadrature is used where it can be.
            samples: draws of the level's own density in data coordinates, in place of the model's own.
            tolerance: as in :func:`~energyppl.log_normalizer`, like all that follows.
            max_evaluations: at most.
            confidence: level of the interval.
            progress: show a bar.

        Raises:
            QuadratureError: if the energy is not normalizable within 64 standard deviations of the data.
            NotNormalizable: if annealing finds that it is not.
        """
        self.potential(level)  # which checks the level
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
                method="quadrature",
            )

        def anneal() -> LogNormalizer:
            return self._anneal(
                level,
                method=method,
                samples=samples,
                tolerance=tolerance,
                max_evaluations=max_evaluations,
                confidence=confidence,
                progress=progress,
            )

        return self._annealed.get(self, (level, confidence), anneal) if plain else anneal()

    def checksum(self) -> str:
        """Changes with the weights; torch's own version counters don't, under its fused optimizers."""
        digest = blake2b()
        for tensor in (*self.parameters(), *self.buffers()):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _anneal(self, level: int, **options: Any) -> LogNormalizer:
        """Log Z of a level by annealing; see :meth:`log_normalizer`."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalized log density of the level-0 marginal in nats, ``(*batch, *event)`` to ``(*batch,)``."""
        log_prob: Tensor = self.marginal().log_prob(check_event("x", x, self.event_shape).to(self.loc))
        return log_prob

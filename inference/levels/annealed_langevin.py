"""Annealed Langevin dynamics by temperature (Li, Chen & Sommer 2019)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_count, check_event, check_positive, checked, shape_text
from energyppl.autodiff.bound import bind
from energyppl.autodiff.gradient import gradient_only
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import check_force_dtype
from energyppl.potentials.algebra import Potential, as_potential, sum_event

__all__ = ["AnnealedPoints", "TemperatureSchedule", "anneal_temperature", "check_seen", "denoising_jump"]


@dataclass(frozen=True)
class TemperatureSchedule:
    """Temperatures to go through, one for each step: hot, exponentially down to 1, linearly on to 0 (Li et al. 2019).

    Args:
        start: the first temperature, at least 1.  T = σ²/σ0² stands for the noise σ, so the paper's 100 for σ = 10 σ0.
        hot: steps at it.
        cooling: steps from it down to 1.
        quench: steps from 1 down to 0.

    Raises:
        InvalidInput: for a temperature below 1, or no step at all.

    Example:
        >>> schedule = ep.levels.TemperatureSchedule(start=100.0, hot=1, cooling=2, quench=2)
        >>> [round(t, 3) for t in schedule.temperatures().tolist()]
        [100.0, 100.0, 1.0, 1.0, 0.0]
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
            raise InvalidInput("a schedule needs at least one step; got none: set hot, cooling or quench")

    def temperatures(self) -> Tensor:
        """Return the temperature of each step, ``(hot + cooling + quench,)``, float64."""
        down = self.start ** torch.linspace(1.0, 0.0, self.cooling, dtype=torch.float64)
        hot = torch.full((self.hot,), float(self.start), dtype=torch.float64)
        return torch.cat([hot, down, torch.linspace(1.0, 0.0, self.quench, dtype=torch.float64)])


class AnnealedPoints(NamedTuple):
    """Points at the end of annealing, with their divergences and cost.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> schedule = ep.levels.TemperatureSchedule(start=4.0, hot=2, cooling=5, quench=2)
        >>> found = ep.levels.anneal_temperature(normal, torch.randn(8, 2), schedule, step_size=0.1)
        >>> found.x.shape, int(found.diverging.sum()), found.evaluations
        (torch.Size([8, 2]), 0, 9)
    """

    x: Tensor  # (*batch, *event)
    diverging: Tensor  # (*batch,), bool: a move to a point that is not finite was asked for, and not made
    evaluations: int  # of the gradient, for each point


@checked
def anneal_temperature(
    potential: Potential,
    x: Tensor,
    schedule: TemperatureSchedule | None = None,
    *,
    step_size: float = 0.02,
    seen: Tensor | None = None,
    base_sigma: float = 0.1,
    force_dtype: torch.dtype | None = None,
) -> AnnealedPoints:
    """Run annealed Langevin, ``x ← x − ½ ε² ∇U(x) + ε √T ξ``, down a schedule of temperatures (Li et al. 2019).

    Nothing accepts or rejects: each temperature is met up to the bias of its step.  With ``seen`` it inpaints: only the
    other coordinates move, and before each gradient the seen ones are given the noise σ0 √T of the temperature, so that
    the energy is asked about points whose noise is the same everywhere.

    Args:
        potential: the energy U, in nats at temperature 1.
        x: where to begin, ``(*batch, *event)``; with ``seen``, the known values there.
        schedule: the temperatures; the paper's if None.
        step_size: ε, the standard deviation of a step's noise at temperature 1, in units of x; the paper's 0.02 is a
            fifth of its σ0 = 0.1.
        seen: boolean mask ``(*event)`` or ``(*batch, *event)``, True where x is known; these come back as they were.
        base_sigma: σ0, the noise of temperature 1, in units of x; only seen coordinates need it.
        force_dtype: arithmetic of the network, ``torch.bfloat16`` for large ones; nothing corrects its rounding.

    Raises:
        InvalidInput: for points of another shape, numbers that are not positive, or a mask that leaves nothing to do.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> schedule = ep.levels.TemperatureSchedule(start=4.0, hot=2, cooling=5, quench=2)
        >>> ep.levels.anneal_temperature(normal, torch.randn(8, 2), schedule, step_size=0.1).x.shape
        torch.Size([8, 2])
    """
    as_potential("potential", potential)
    check_event("x", x, potential.event_shape)
    check_positive("step_size", step_size)
    check_positive("base_sigma", base_sigma)
    check_force_dtype(force_dtype)
    potential, event_shape, given = bind(potential), potential.event_shape, x.detach()
    if seen is not None:
        check_seen(seen, given, event_shape)
        seen = seen.to(given.device)
    x, temperatures = given, (TemperatureSchedule() if schedule is None else schedule).temperatures().tolist()
    diverging = torch.zeros(x.shape[: x.dim() - len(event_shape)], dtype=torch.bool, device=x.device)
    for temperature in temperatures:
        root = temperature**0.5
        if seen is not None:
            x = torch.where(seen, given + base_sigma * root * torch.randn_like(x), x)
        grad = gradient_only(potential, x, force_dtype)
        moved = x.add(grad, alpha=-0.5 * step_size * step_size).add_(torch.randn_like(x), alpha=step_size * root)
        bad = ~torch.isfinite(sum_event(moved, event_shape))
        x = torch.where(append_dims(bad, moved), x, moved)
        diverging |= bad
    return AnnealedPoints(x if seen is None else torch.where(seen, given, x), diverging, len(temperatures))


@checked
def denoising_jump(
    potential: Potential, x: Tensor, base_sigma: float, force_dtype: torch.dtype | None = None
) -> Tensor:
    """Estimate clean points from points with noise σ0 by the mean ``x − σ0² ∇U(x)`` (Li et al. 2019).

    Args:
        potential: the energy U.
        x: points, ``(*batch, *event)``.
        base_sigma: σ0, in units of x.
        force_dtype: as in :func:`anneal_temperature`.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> ep.levels.denoising_jump(normal, torch.ones(3, 2), base_sigma=0.5)[0]
        tensor([0.7500, 0.7500])
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

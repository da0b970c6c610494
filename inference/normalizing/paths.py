"""Where annealing begins and how fine its path is: bases fitted to draws, pilot runs, coordinates, stretches."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_data, shape_text
from energyppl.autodiff.devices import beside, device_of
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.binary import BinaryGibbs, DiscreteLangevin
from energyppl.inference.kernels.contract import Kernel
from energyppl.inference.normalizing.annealing import AnnealingSchedule, Weights, anneal, effective_size, pilot_run
from energyppl.inference.normalizing.tails import require_normalizable
from energyppl.potentials.algebra import Affine, Potential
from energyppl.potentials.bases import Base, BernoulliBase, GaussianBase, MixtureBase

__all__ = ["AnnealingPath", "Draws", "DrawsOnce", "annealed", "find_path"]

_FEWEST = 16  # draws of the target
_PILOT = 256  # particles of pilot runs
_REST = 10  # moves of a pilot's particles at the target, before a base is fitted to them
_SPREAD = 1.0  # variance of log weights at which a path's cost is least (Neal 2001)

Draws = Tensor | Callable[[int], Tensor]
"""Independent draws of a target ``(n, *event)``, or a function that makes as many as it is told to."""


class DrawsOnce:
    """Draws of the target, each handed out once: runs that begin at the same point are not independent."""

    def __init__(self, source: Draws, target: Potential) -> None:
        self._source, self._target = source, target
        self._rows: Tensor | None = None
        if isinstance(source, Tensor):
            source = beside(target, check_data("samples", source, target.event_shape, at_least=_FEWEST))
            self._rows = source[torch.randperm(len(source), device=source.device)]
        elif not callable(source):
            raise InvalidInput(
                f"samples must be a tensor of draws, or a function of how many; got {type(source).__name__}"
            )

    @property
    def left(self) -> int:
        """How many there still are; as good as infinitely many if they are made when they are asked for."""
        return sys.maxsize if self._rows is None else len(self._rows)

    def take(self, count: int) -> Tensor:
        """At most as many, ``(count, *event)``."""
        if self._rows is not None:
            taken, self._rows = self._rows[:count], self._rows[count:]
            return taken
        assert callable(self._source)
        drawn = check_data("samples", self._source(count), self._target.event_shape, at_least=_FEWEST)
        return beside(self._target, drawn)


class AnnealingPath(NamedTuple):
    """A base, the potentials that runs go to one after another, and the temperatures between each and the next."""

    base: Base
    stops: tuple[Potential, ...]  # the last one is the target, in the coordinates of the runs
    schedules: tuple[AnnealingSchedule, ...]  # one for each stretch
    evaluations: int  # that it took to find

    @property
    def temperatures(self) -> int:
        """Temperatures of all stretches together, the first one left out."""
        return sum(len(schedule.betas) - 1 for schedule in self.schedules)

    def to_unit(self, x: Tensor) -> Tensor:
        """Points of the target in the coordinates of the runs."""
        target = self.stops[-1]
        return target.to_unit(x) if isinstance(target, Affine) else x

    def stretched(self, temperatures: float) -> "AnnealingPath":
        """The same path with about as many temperatures."""
        share = temperatures / self.temperatures
        finer = (schedule.resampled(max(1, round(share * (len(schedule.betas) - 1)))) for schedule in self.schedules)
        return self._replace(schedules=tuple(finer))


def annealed(
    path: AnnealingPath, x: Tensor, kernel: Kernel, *, reverse: bool = False, islands: int | None = None
) -> list[Weights]:
    """A run over all stretches of a path, from ``x`` at its beginning, or at its end if ``reverse``.

    The last stretch's log weights are those of the whole run.
    """
    ends = list(zip((path.base, *path.stops[:-1]), path.stops, path.schedules, strict=True))
    found: list[Weights] = []
    for lower, upper, schedule in reversed(ends) if reverse else ends:
        before, goes_on = found[-1].log_weights if found else None, len(found) < len(ends) - 1
        run = anneal(
            lower, upper, schedule, x, kernel, reverse=reverse, islands=islands, before=before, goes_on=goes_on
        )
        x = run.x
        found.append(run)
    return found


def find_path(
    stops: tuple[Potential, ...],
    base: Base | None,
    draws: DrawsOnce | None,
    kernel: Kernel,
    *,
    temperatures: int | Sequence[float] | None,
    refit: bool,
    sparing: bool,
) -> AnnealingPath:
    """Find a base, coordinates in which the target is about round, and temperatures, all by runs that are thrown away.

    Args:
        stops: potentials on the way, the target last.
        base: as the user gave it.
        draws: of the target; up to half of them are taken to fit a base if none is given.
        kernel: moves the particles.
        temperatures: how many, which ones, or as many as are worth their cost if None.
        refit: without draws, fit a base to where a pilot run ends, and take it if that shortens the path.
        sparing: take fewer temperatures than the pilot run had where its log weights hardly spread.
    """
    target = stops[-1]
    shape = target.event_shape
    origin = torch.zeros(shape, device=device_of(target))
    if base is not None and base.event_shape != shape:
        raise InvalidInput(f"base must have event_shape {shape_text(shape)}; got {shape_text(base.event_shape)}")
    betas = None if temperatures is None or isinstance(temperatures, int) else temperatures
    binary = isinstance(kernel, (BinaryGibbs, DiscreteLangevin))
    if base is None and binary:
        rows = origin.new_full((2, *shape), 0.5) if draws is None else draws.take(min(draws.left // 2, 4 * _PILOT))
        base = BernoulliBase.fitted(rows, shape)
    if binary != isinstance(base, BernoulliBase):
        raise InvalidInput(
            "binary targets need both a BernoulliBase and a kernel that keeps points binary, BinaryGibbs() or "
            f"DiscreteLangevin(); got {type(base).__name__} and {type(kernel).__name__}"
        )
    if base is None and draws is not None:
        # Runs must not begin at the very samples that the base was fitted to: in d dimensions that would bias log Z by
        # about d / (2 n).
        rows = draws.take(min(draws.left // 2, 4 * max(_PILOT, 4 * shape.numel())))
        require_normalizable(target, rows[:_PILOT])
        framed = _framed(stops, rows)
        path, _ = _pilot(MixtureBase.fitted(framed[-1].to_unit(rows), shape), framed, kernel, betas)
    else:
        first = GaussianBase(origin, torch.ones_like(origin)) if base is None else base
        if not binary:
            require_normalizable(target, first.sample(_PILOT))
        path, x = _pilot(first, stops, kernel, betas, rest=_REST)
        if not binary and draws is None and refit and len(stops) == 1 and _is_fit(x):
            path = _shorter(path, x, kernel, betas)
    if betas is not None:
        return path
    if isinstance(temperatures, int):
        return path.stretched(temperatures)
    trial = annealed(path, path.base.sample(_PILOT // 2), kernel)
    size = len(trial[-1].log_weights)
    # log (n / ESS) is the variance of Gaussian log weights, and unlike it deaf to those that hardly count.
    spread = math.log(size / max(1.0, float(effective_size(trial[-1].log_weights))))
    wanted = path.temperatures * max(spread / _SPREAD, 0.0 if sparing else 1.0)
    cost = path.evaluations + sum(run.evaluations for run in trial)
    return path.stretched(wanted)._replace(evaluations=cost)


def _shorter(path: AnnealingPath, x: Tensor, kernel: Kernel, betas: Sequence[float] | None) -> AnnealingPath:
    """Choose between a path and one from a base fitted to a pilot run's last particles ``x``: the shorter one."""
    framed = _framed(path.stops, x)
    other, _ = _pilot(MixtureBase.fitted(framed[-1].to_unit(x), framed[-1].event_shape), framed, kernel, betas)
    cost = path.evaluations + other.evaluations
    return (other if other.temperatures <= path.temperatures else path)._replace(evaluations=cost)


def _pilot(
    base: Base, stops: Sequence[Potential], kernel: Kernel, betas: Sequence[float] | None, *, rest: int = 0
) -> tuple[AnnealingPath, Tensor]:
    """The path that a pilot run of 256 particles finds, and where they end."""
    x, schedules, evaluations = base.sample(_PILOT), [], 0
    lower: Potential = base
    for upper in stops:
        found = pilot_run(lower, upper, x, kernel, betas=betas, rest=rest if upper is stops[-1] else 0)
        x, evaluations, lower = found.x, evaluations + found.evaluations, upper
        schedules.append(found.schedule)
    return AnnealingPath(base, tuple(stops), tuple(schedules), evaluations), x


def _is_fit(x: Tensor) -> bool:
    """Whether particles are many enough, and moving enough, to fit a base to."""
    rows = x.reshape(len(x), -1)
    return len(rows) >= 4 * rows.shape[1] and bool((rows.std(0) > 0).all())


def _framed(stops: tuple[Potential, ...], rows: Tensor) -> tuple[Affine, ...]:
    """The potentials in coordinates in which draws ``(n, *event)`` are about round."""
    flat = rows.reshape(len(rows), -1).double()
    loc, centred = flat.mean(0), flat - flat.mean(0)
    size, keep = flat.shape[1], len(flat) / (len(flat) + flat.shape[1])  # few rows say little of the correlations
    covariance = centred.T @ centred / len(flat)
    diagonal = covariance.diagonal()
    scale = diagonal.clamp(min=1e-12 * float(diagonal.max()) + 1e-30).sqrt()
    eye = torch.eye(size, dtype=torch.float64, device=flat.device)
    correlation = keep * covariance / scale / scale[:, None] + (1.0 - keep + 1e-6) * eye
    factor = (scale[:, None] * torch.linalg.cholesky(correlation)).to(rows)
    return tuple(Affine(stop, loc.reshape(rows.shape[1:]).to(rows), factor) for stop in stops)

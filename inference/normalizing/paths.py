"""Annealing paths: a base, coordinates, and temperatures, found by a mode search and pilot runs."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_data, check_spanning, shape_text
from energyppl.autodiff.devices import beside
from energyppl.autodiff.gradient import energy_only
from energyppl.errors import EnergyPPLError, InvalidInput, NotNormalizable
from energyppl.inference.kernels.binary import BinaryGibbs, DiscreteLangevin
from energyppl.inference.kernels.contract import Kernel
from energyppl.inference.normalizing.annealing import AnnealingSchedule, Weights, anneal, effective_size, pilot_run
from energyppl.inference.normalizing.mode_search import ModeSearch, search_modes
from energyppl.inference.normalizing.particles import Ends
from energyppl.inference.normalizing.tails import require_normalizable, tail_doubt
from energyppl.potentials.algebra import Affine, Potential
from energyppl.potentials.bases import Base, BernoulliBase, GaussianBase, MixtureBase
from energyppl.potentials.points import dtype_of, origin_of

__all__ = ["AnnealingPath", "Draws", "DrawsOnce", "annealed", "find_path"]

_FEWEST = 16  # draws of the target
_PILOT = 256  # particles of pilot runs
_STEEP = 0.99  # conditional effective sample size that a pilot run aims at, as a share
_ROUGH, _ROUGHER = 0.96, 0.9  # the same where runs tell how many there shall be, and where none are kept
_FITTED = 2048  # states of chains in basins that a base is fitted to, at most
_REST = 10  # moves of a pilot's particles at the target, before a base is fitted to them
_SPAN = 1.5  # width of the base of a pilot run, in standard deviations of the chains in all basins
_NEW = 0.03  # share of the last descents in new places above which it is said
_WALLED = 0.33  # share of the base's draws at infinite energy above which it is said
_SPREAD = 1.0  # variance of log weights at which a path's cost is least (Neal 2001)

Draws = Tensor | Callable[[int], Tensor]
"""Independent draws of a target ``(n, *event)``, or a function that makes as many as it is told to."""


class DrawsOnce:
    """Draws of the target, each handed out once: runs that begin at the same point are not independent.

    Args:
        source: the draws, or a function that makes them.
        target: the energy that they are draws of.
        binary: they are vectors of zeros and ones, of which some may be constant.
    """

    def __init__(self, source: Draws, target: Potential, *, binary: bool = False) -> None:
        self._source, self._target, self._binary = source, target, binary
        self._rows: Tensor | None = None
        if isinstance(source, Tensor):
            source = self._checked(source)
            self._rows = source[torch.randperm(len(source), device=source.device)]
        elif not callable(source):
            raise InvalidInput(
                f"samples must be a tensor of draws, or a function of how many; got {type(source).__name__}"
            )

    def _checked(self, rows: Tensor) -> Tensor:
        """Check draws, and bring them to the target's device and dtype."""
        rows = beside(self._target, check_data("samples", rows, self._target.event_shape, at_least=_FEWEST))
        if not self._binary:
            _require_density(rows)
        return rows.to(dtype_of(self._target) or rows.dtype)

    @property
    def left(self) -> int:
        """Number of draws still there; as good as infinite if they are made when they are asked for."""
        return sys.maxsize if self._rows is None else len(self._rows)

    def take(self, count: int) -> Tensor:
        """Take at most as many, ``(count, *event)``."""
        if self._rows is not None:
            taken, self._rows = self._rows[:count], self._rows[count:]
            return taken
        assert callable(self._source)
        return self._checked(self._source(count))


def _require_density(rows: Tensor) -> None:
    """Refuse draws that lie in a plane: a density has none there.

    Raises:
        InvalidInput: if a coordinate is constant, or a copy or a sum of others.
    """
    flat = rows.reshape(len(rows), -1).double()
    constant = (flat.amax(0) == flat.amin(0)).nonzero()[:, 0].tolist()
    if constant:
        raise InvalidInput(
            f"samples must vary in every coordinate; coordinate(s) {constant[:20]} are constant: no density has such "
            "draws, so drop those coordinates"
        )
    check_spanning("samples", flat)


class AnnealingPath(NamedTuple):
    """A base, the potentials that runs go to one after another, and the temperatures between each and the next."""

    base: Base
    stops: tuple[Potential, ...]  # the last one is the target, in the coordinates of the runs
    schedules: tuple[AnnealingSchedule, ...]  # one for each stretch
    evaluations: int  # that it took to find
    searched: str | None = None  # where a search for modes looked
    warning: str | None = None  # what that search leaves open

    @property
    def temperatures(self) -> int:
        """Number of temperatures of all stretches together, the first one left out."""
        return sum(len(schedule.betas) - 1 for schedule in self.schedules)

    def to_unit(self, x: Tensor) -> Tensor:
        """Bring points of the target to the coordinates of the runs."""
        target = self.stops[-1]
        return target.to_unit(x) if isinstance(target, Affine) else x

    def from_unit(self, x: Tensor) -> Tensor:
        """Return points of the coordinates of the runs in those of the target."""
        target = self.stops[-1]
        return target.from_unit(x) if isinstance(target, Affine) else x

    def stretched(self, temperatures: float) -> "AnnealingPath":
        """Return the same path with about as many temperatures."""
        share = temperatures / self.temperatures
        finer = (schedule.resampled(max(1, round(share * (len(schedule.betas) - 1)))) for schedule in self.schedules)
        return self._replace(schedules=tuple(finer))


def annealed(
    path: AnnealingPath, x: Tensor, kernel: Kernel, *, reverse: bool = False, islands: int | None = None
) -> list[Weights]:
    """Run over all stretches of a path, from ``x`` at its beginning, or at its end if ``reverse``.

    The last stretch's log weights and roots are those of the whole run.
    """
    ends = list(zip((path.base, *path.stops[:-1]), path.stops, path.schedules, strict=True))
    found: list[Weights] = []
    for lower, upper, schedule in reversed(ends) if reverse else ends:
        before, begin = (found[-1].log_weights, found[-1].end) if found else (None, None)
        run = anneal(
            lower,
            upper,
            schedule,
            x,
            kernel,
            reverse=reverse,
            islands=islands,
            before=before,
            begin=begin,
            goes_on=len(found) < len(ends) - 1,
        )
        x = run.x
        if found:  # from the particles of the stretch before on to those of the first
            run = run._replace(roots=torch.take_along_dim(found[-1].roots, run.roots, 0))
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
    sparing: bool | None,
    starts: int = 128,
) -> AnnealingPath:
    """Find a base, coordinates in which the target is about round, and temperatures, all by runs that are thrown away.

    Args:
        stops: potentials on the way, the target last.
        base: as the user gave it.
        draws: of the target; up to half of them are taken to fit a base if none is given.
        kernel: moves the particles.
        temperatures: how many, which ones, or as many as are worth their cost if None.
        refit: without draws, fit a base to where a pilot run ends, and take it if that shortens the path.
        sparing: take fewer temperatures than the pilot run had where log weights hardly spread, and more where they
            spread widely; only more if False; as many as the pilot run had if None, which suits resampled runs.
        starts: descents that search for modes where there is neither a base nor draws; 0 for N(0, I) as the base.
    """
    target = stops[-1]
    if base is not None and base.event_shape != target.event_shape:
        raise InvalidInput(
            f"base must have event_shape {shape_text(target.event_shape)}; got {shape_text(base.event_shape)}"
        )
    betas, count = (temperatures, None) if isinstance(temperatures, Sequence) else (None, temperatures)
    if is_binary(kernel) or isinstance(base, BernoulliBase):
        path, _ = _pilot(_binary_base(target, base, draws, kernel), stops, kernel, betas)
    elif base is None and draws is not None:
        path = _path_from_draws(stops, draws, kernel, betas)
    elif base is None and starts and len(stops) == 1:
        path = _path_from_search(stops, kernel, betas, starts, refit)
    else:
        path = _path_from_base(stops, base, kernel, betas, refit and draws is None)
    if betas is not None or (count is None and sparing is None):
        return path
    if count is not None:
        return path.stretched(count)
    return _worth_its_cost(path, kernel, bool(sparing))


def is_binary(kernel: Kernel) -> bool:
    """Tell whether a kernel keeps points binary."""
    return isinstance(kernel, (BinaryGibbs, DiscreteLangevin))


def _binary_base(target: Potential, base: Base | None, draws: DrawsOnce | None, kernel: Kernel) -> BernoulliBase:
    """Return the base of a binary target: as given, fitted to draws, or even."""
    if base is None:
        even = torch.full((2, *target.event_shape), 0.5).to(origin_of(target, target.event_shape))
        rows = even if draws is None else draws.take(min(draws.left // 2, 4 * _PILOT))
        return BernoulliBase.fitted(rows, target.event_shape)
    if not isinstance(base, BernoulliBase) or not is_binary(kernel):
        raise InvalidInput(
            "binary targets need both a BernoulliBase and a kernel that keeps points binary, BinaryGibbs() or "
            f"DiscreteLangevin(); got {type(base).__name__} and {type(kernel).__name__}"
        )
    return base


def _path_from_draws(
    stops: tuple[Potential, ...], draws: DrawsOnce, kernel: Kernel, betas: Sequence[float] | None
) -> AnnealingPath:
    """Find a path from a base fitted to draws of the target.

    Runs must not begin at the very draws that the base was fitted to: in d dimensions that would bias log Z by about
    d / (2 n).
    """
    shape = stops[-1].event_shape
    rows = draws.take(min(draws.left // 2, 4 * max(_PILOT, 4 * math.prod(shape))))
    require_normalizable(stops[-1], rows[:_PILOT])
    framed = _framed(stops, rows)
    path, _ = _pilot(MixtureBase.fitted(framed[-1].to_unit(rows), shape), framed, kernel, betas)
    return path


def _path_from_base(
    stops: tuple[Potential, ...], base: Base | None, kernel: Kernel, betas: Sequence[float] | None, refit: bool
) -> AnnealingPath:
    """Find a path from a base that was given, or from N(0, I)."""
    if base is None:
        origin = origin_of(stops[-1], stops[-1].event_shape)
        base = GaussianBase(origin, torch.ones_like(origin))
    require_normalizable(stops[-1], base.sample(_PILOT))
    path, x = _pilot(base, stops, kernel, betas, rest=_REST)
    if not refit or len(stops) > 1 or not _is_fit(x):
        return path
    framed = _framed(path.stops, x)
    return _shorter(path, MixtureBase.fitted(framed[-1].to_unit(x), x.shape[1:]), framed, kernel, betas)


def _path_from_search(
    stops: tuple[Potential, ...], kernel: Kernel, betas: Sequence[float] | None, starts: int, refit: bool
) -> AnnealingPath:
    """Find a path from a base fitted to chains in the basins that a search finds, and to a pilot run's ends.

    The pilot run begins at a Gaussian that spans the basins: at intermediate temperatures it finds modes that descents
    don't, where they find modes that its particles lose.
    """
    target, shape = stops[-1], stops[-1].event_shape
    origin = origin_of(target, shape)
    found = _searched(target, origin + torch.randn(_PILOT, *shape).to(origin), starts)
    framed = _framed(stops, found.x)
    wide = GaussianBase(origin, torch.full_like(origin, _SPAN))
    refit = refit and 4 * math.prod(shape) <= _PILOT  # fewer particles are too few to fit a base to
    first = (_PILOT // 2, _ROUGHER) if refit else (_PILOT, _STEEP)
    path, x = _pilot(wide, framed, kernel, betas, *first, rest=_REST)
    if refit:
        some = torch.multinomial(found.weight, min(len(found.x), _FITTED), replacement=False)
        rows = torch.cat([framed[-1].to_unit(found.x[some]), x])
        spent = path.evaluations  # the longer path is taken too: the shorter one may be so by having lost a mode
        base = MixtureBase.fitted(rows, shape)
        path, x = _pilot(base, framed, kernel, betas, _PILOT, _ROUGH)
        # Of the modes that the search finds it does not know the masses; where these particles end tells of them.
        path = path._replace(base=base.reweighted(x), evaluations=path.evaluations + spent)
    searched = (
        f"{found.starts} descents from up to {found.radius:.3g} widths of a first basin and from between their ends; a "
        "mode that neither they nor the runs ended in is missing from log Z"
    )
    cost = path.evaluations + found.evaluations
    return path._replace(evaluations=cost, searched=searched, warning=_doubts(target, path, found))


def _doubts(target: Potential, path: AnnealingPath, found: ModeSearch) -> str | None:
    """Say what a search, the tails and the walls of a target leave open; None if nothing."""
    doubt = tail_doubt(target, found.x[:_PILOT])
    warning = [doubt] if doubt else []
    if found.new > _NEW:
        warning.append(
            f"{found.new:.0%} of the last descents ended where none before had: there may be more modes that nothing "
            "found, so pass samples, or more starts"
        )
    outside = _share_outside(path)
    if outside > _WALLED:
        warning.append(
            f"the energy is infinite at {outside:.0%} of the draws of the base, and chains do not spread well between "
            "walls: log Z may be far too low, so pass samples, or a distribution that has these walls as its support"
        )
    return "; ".join(warning) or None


def _share_outside(path: AnnealingPath) -> float:
    """Return the share of a base's draws at which the target's energy is infinite, by random numbers of its own."""
    with torch.random.fork_rng(devices=[]):
        x = path.base.sample(_PILOT)
    return float((energy_only(path.stops[-1], x) == math.inf).double().mean())


def _searched(target: Potential, x: Tensor, starts: int) -> ModeSearch:
    """Search for modes, and refuse an energy that does not rise as it must far from them, nor far from ``x``."""
    doubt: NotNormalizable | None = None
    try:
        require_normalizable(target, x)
    except NotNormalizable as error:  # or the mass is far away, or on another scale: look where it is
        doubt = error
    inside = x[torch.isfinite(energy_only(target, x))]
    if not len(inside):
        raise doubt or InvalidInput(
            "the target's energy is finite at no draw of the base N(0, I): pass a base that overlaps the support"
        )
    try:
        found = search_modes(target, inside, starts)
    except EnergyPPLError as error:
        raise doubt or EnergyPPLError(
            f"the search for modes failed ({error}), and whether exp(−U) has a finite integral could not be told: pass "
            "samples or a base"
        ) from None
    if doubt is not None:
        require_normalizable(target, found.x)
    return found._replace(evaluations=found.evaluations + len(x))


def _worth_its_cost(path: AnnealingPath, kernel: Kernel, sparing: bool) -> AnnealingPath:
    """Return a path with as many temperatures as keep the variance of log weights at one (Neal 2001)."""
    trial = annealed(path, path.base.sample(_PILOT // 2), kernel)
    size = len(trial[-1].log_weights)
    # log (n / ESS) is the variance of Gaussian log weights, and unlike it deaf to those that hardly count.
    spread = math.log(size / max(1.0, float(effective_size(trial[-1].log_weights))))
    wanted = path.temperatures * max(spread / _SPREAD, 0.0 if sparing else 1.0)
    cost = path.evaluations + sum(run.evaluations for run in trial)
    return path.stretched(wanted)._replace(evaluations=cost)


def _shorter(
    path: AnnealingPath, base: Base, stops: Sequence[Potential], kernel: Kernel, betas: Sequence[float] | None
) -> AnnealingPath:
    """Choose between a path and the one from another base: the shorter one."""
    other, _ = _pilot(base, stops, kernel, betas)
    cost = path.evaluations + other.evaluations
    return (other if other.temperatures <= path.temperatures else path)._replace(evaluations=cost)


def _pilot(
    base: Base,
    stops: Sequence[Potential],
    kernel: Kernel,
    betas: Sequence[float] | None,
    particles: int | None = None,
    steepness: float = _STEEP,
    *,
    rest: int = 0,
) -> tuple[AnnealingPath, Tensor]:
    """Find a path by a pilot run, of 256 particles if not said; returns it and where they end."""
    x, schedules, evaluations = base.sample(particles or _PILOT), [], 0
    lower: Potential = base
    end: Ends | None = None
    for upper in stops:
        more = rest if upper is stops[-1] else 0
        found = pilot_run(lower, upper, x, kernel, betas=betas, steepness=steepness, rest=more, begin=end)
        x, evaluations, lower, end = found.x, evaluations + found.evaluations, upper, found.end
        schedules.append(found.schedule)
        if len(schedules) > 1:  # where stretches meet, runs in both directions must make the same moves
            found.schedule.step_sizes[0] = schedules[-2].step_sizes[-1]
    return AnnealingPath(base, tuple(stops), tuple(schedules), evaluations), x


def _is_fit(x: Tensor) -> bool:
    """Tell whether particles are many enough, and moving enough, to fit a base to."""
    rows = x.reshape(len(x), -1)
    return len(rows) >= 4 * rows.shape[1] and bool((rows.std(0) > 0).all())


def _framed(stops: tuple[Potential, ...], rows: Tensor) -> tuple[Affine, ...]:
    """Bring potentials to coordinates in which draws ``(n, *event)`` are about round."""
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

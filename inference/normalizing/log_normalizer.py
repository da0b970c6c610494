"""log Z of any potential by annealing (AIS, SMC, BAR), with an interval, and a warning where it may not hold."""

import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from energyppl._checks import check_between, check_count, check_positive, checked, shape_text
from energyppl._progress import progress_bar
from energyppl.distributed import agreed, everyone, gather, own_numbers, rank
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput, warn_user
from energyppl.inference.normalizing.annealing import Weights, effective_size
from energyppl.inference.normalizing.intervals import bridge_interval, island_means, one_sided_interval
from energyppl.inference.normalizing.methods import BAR, SMC, Annealing
from energyppl.inference.normalizing.paths import AnnealingPath, Draws, DrawsOnce, annealed, find_path, is_binary
from energyppl.inference.normalizing.planning import batches_wanted, finer_by
from energyppl.inference.normalizing.shared_particles import own_share
from energyppl.inference.normalizing.tails import out_of_reach, tail_missed
from energyppl.integration.estimates import AnnealingTrace, LogNormalizer
from energyppl.integration.pareto import pareto_k
from energyppl.potentials.algebra import Potential, RecoveryPotential, as_potential
from energyppl.potentials.bases import Base, GaussianBase, require_base
from energyppl.potentials.constrained import Constrained
from energyppl.potentials.points import dtype_of, require_digits

__all__ = ["log_normalizer"]

_STUCK = 0.05  # acceptance below which particles hardly move
_MAX_RUNS = 64  # batches that a tolerance is pursued with


@dataclass
class _Runs:
    """Log weights so far, their cost, and the last batch."""

    evaluations: int
    forward: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    reverse: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    last: list[Weights] = field(default_factory=list)

    def add(self, run: list[Weights], *, reverse: bool = False) -> None:
        """Put the weights of what a run began with, here and in other processes, with those of other runs."""
        new = gather(run[-1].of_roots())
        if reverse:
            self.reverse = torch.cat([self.reverse.to(new), new])
        else:
            self.forward = torch.cat([self.forward.to(new), new])
        self.evaluations += sum(everyone(sum(stretch.evaluations for stretch in run)))


@checked
def log_normalizer(
    target: Potential | EnergyDistribution,
    *,
    samples: Draws | None = None,
    base: Base | None = None,
    method: Annealing | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    confidence: float = 0.95,
    progress: bool = False,
) -> LogNormalizer:
    """Estimate log ∫ exp(−U) by annealing from a base whose log Z is known.

    With ``samples`` the estimate is Bennett's acceptance ratio of forward and reverse runs (:class:`BAR`), its interval
    uses the asymptotic variance, and a mode that runs from the base don't find shows as the two disagreeing.  Without
    them it is sequential Monte Carlo (:class:`SMC`), with an interval by Student's t over its islands: a mode that no
    particle visits can't be seen by anything in it, so descents from scattered starts and a pilot run search for modes
    first, and the result's ``searched`` says where they looked.  If nothing else is given either, the first batch of
    runs tells whether more temperatures are worth their cost, and how many more batches, up to five, bring the
    interval to ± .075 nats or so.

    Processes of ``torchrun`` share the particles and samples, and all return the same, see
    :mod:`energyppl.distributed`.

    The base is a mixture of Gaussians fitted to half of the samples, or to what the search finds; particles then move
    in coordinates in which the target is about round.

    >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), torch.Size((2,)))  # log Z = log 2π = 1.838
    >>> found = ep.log_normalizer(bell, samples=torch.randn(2000, 2))
    >>> abs(found.estimate - 1.838) < 0.1
    True

    Args:
        target: the energy U, or a distribution of one: log Z is the integral over its support.
        samples: independent draws of exp(−U) / Z, ``(n, *event)``, twice as many as particles since half of them only
            fit the base if none is given; or a function of a count that draws them.
        base: where the path begins, or without samples the pilot run, and then no modes are searched for; if None,
            fitted to the samples or to a search, or a recovery distribution's own tilt.  Of a target with a support
            it draws unconstrained points.
        method: :class:`AIS`, :class:`SMC`, :class:`ReverseAIS` or :class:`BAR`, with particles, temperatures, kernel.
        tolerance: go on in batches of runs until half the interval's width is at most this, in nats.
        max_evaluations: start no batch after the first that would go beyond as many; with or without a tolerance.
        confidence: that the interval is to cover log Z with.
        progress: show a bar.

    Raises:
        InvalidInput: for numbers out of range, shapes or dtypes that don't fit, a base that doesn't overlap the target,
            or a method that needs samples and has none.
        NotNormalizable: if the energy does not rise far away as it must for Z to be finite.
        EnergyPPLError: if the path from base to target doesn't arrive.
    """
    plan = all(given is None for given in (samples, base, method, tolerance, max_evaluations))
    target, samples, base, method = _problem(target, samples, base, method)
    samples, method = own_share(samples, method)
    check_between("confidence", confidence, 0.0, 1.0)
    if tolerance is not None:
        check_positive("tolerance", tolerance)
    if max_evaluations is not None:
        check_count("max_evaluations", max_evaluations)
    with own_numbers():
        result = _estimate(target, samples, base, method, tolerance, max_evaluations, confidence, progress, plan)
    if result.warning and rank() == 0:
        warn_user(f"log Z: {result.warning}")
    return result


def _estimate(
    target: Potential,
    samples: Draws | None,
    base: Base | None,
    method: Annealing,
    tolerance: float | None,
    max_evaluations: int | None,
    confidence: float,
    progress: bool,
    plan: bool,
) -> LogNormalizer:
    """Run batches until there is a reason to stop; as many as the first one says are worth it if ``plan``."""
    began = time.perf_counter()
    draws = None if samples is None else DrawsOnce(samples, target, binary=is_binary(method.kernel))
    path = _path(target, base, draws, method)
    runs, stopped = _Runs(sum(everyone(path.evaluations))), None
    bar = progress_bar(desc="log Z", unit=" evaluations", disable=not (progress and rank() == 0))
    with bar:
        while True:
            before = runs.evaluations
            _batch(path, runs, method, draws)
            bar.update(runs.evaluations - before)
            found = _conclude(target, path, runs, method, confidence)
            bar.set_postfix_str(f"{found.estimate:.4f} ± {found.standard_error:.2g}")
            if plan:
                path, runs, found = _as_planned(target, path, runs, method, confidence, found)
            stopped = agreed(
                _why_stop(found, runs, method, tolerance, max_evaluations, runs.evaluations - before, draws)
            )
            if stopped is not None:
                break
    asked = tolerance is not None or max_evaluations is not None
    return agreed(replace(found, seconds=time.perf_counter() - began, stopped=stopped if asked else None))


def _as_planned(
    target: Potential, path: AnnealingPath, runs: _Runs, method: Annealing, confidence: float, first: LogNormalizer
) -> tuple[AnnealingPath, _Runs, LogNormalizer]:
    """Run over more temperatures and in more batches, as the first batch says; no draws of the target are known."""
    spent = sum(everyone(path.evaluations))
    before, found = spent, first
    if (finer := agreed(finer_by(first, runs.evaluations - before, spent))) > 1.0:
        before = runs.evaluations
        path, runs = path.stretched(finer * path.temperatures), _Runs(before)
        _batch(path, runs, method, None)
        found = _conclude(target, path, runs, method, confidence)
    batches = agreed(batches_wanted(found, runs.evaluations - before, spent))
    if batches > 1:
        for _ in range(batches - 1):
            _batch(path, runs, method, None)
        found = _conclude(target, path, runs, method, confidence, batches)
    return path, runs, found


def _problem(
    target: Potential | EnergyDistribution, samples: Draws | None, base: Base | None, method: Annealing | None
) -> tuple[Potential, Draws | None, Base | None, Annealing]:
    """Return target, samples, base and method in unconstrained coordinates, with defaults for what was left out."""
    if isinstance(target, EnergyDistribution):
        if target.batch_shape:
            raise InvalidInput(
                f"log_normalizer takes one distribution; got a batch of shape {shape_text(target.batch_shape)}: "
                "energyppl.normalizing.recovery_normalizers does whole batches of recovery distributions"
            )
        if not target.is_unconstrained:
            samples = _unconstrained(target, samples)
            if method is not None:
                method = replace(method, waypoints=tuple(Constrained(w, target.support) for w in method.waypoints))
        target = target.unconstrained()
    as_potential("the target", target)
    require_digits("log Z", dtype_of(target))
    if base is not None:
        require_base(base)
    if base is None and samples is None and isinstance(target, RecoveryPotential):
        base = GaussianBase.of_tilt(target)
    method = method if method is not None else (SMC() if samples is None else BAR())
    if method.reverse and samples is None:
        raise InvalidInput(
            f"{type(method).__name__} begins at draws of the target: pass samples, or use SMC() or AIS()"
        )
    return target, samples, base, method


def _unconstrained(target: EnergyDistribution, samples: Draws | None) -> Draws | None:
    """Bring draws from the support of a distribution to the points of its unconstrained potential."""
    if isinstance(samples, Tensor):
        return target.unconstrain(samples, "samples")
    if not callable(samples):
        return samples
    return lambda count: target.unconstrain(samples(count), "samples")


# --- The runs ---


def _path(target: Potential, base: Base | None, draws: DrawsOnce | None, method: Annealing) -> AnnealingPath:
    """Find the path that a method's runs take."""
    return find_path(
        (*method.waypoints, target),
        base,
        draws,
        method.kernel,
        temperatures=method.temperatures,
        refit=method.refit,
        sparing=method.reverse,
        starts=method.starts,
    )


def _batch(path: AnnealingPath, runs: _Runs, method: Annealing, draws: DrawsOnce | None) -> None:
    """Run a batch from the base, from draws of the target, or both."""
    if method.forward:
        runs.last = annealed(path, path.base.sample(method.particles), method.kernel, islands=method.islands)
        runs.add(runs.last)
    if method.reverse:
        assert draws is not None
        back = annealed(path, path.to_unit(draws.take(method.particles)), method.kernel, reverse=True)
        runs.add(back, reverse=True)
        runs.last = runs.last if method.forward else back


def _why_stop(
    found: LogNormalizer,
    runs: _Runs,
    method: Annealing,
    tolerance: float | None,
    most: int | None,
    cost: int,
    draws: DrawsOnce | None,
) -> str | None:
    """Say why no further batch is run; None to go on."""
    if tolerance is None and most is None:
        return "one batch of runs was asked for"
    batches = max(len(runs.forward), len(runs.reverse)) // method.particles
    half = 0.5 * (found.upper - found.lower)
    if tolerance is not None and half <= tolerance:
        return f"the interval's half-width is {half:.2g} nats, within the tolerance"
    if math.isinf(found.upper):
        return "the samples are no draws of this energy, and more runs would not mend it"
    if most is not None and runs.evaluations + cost > most:
        return f"another batch would go beyond {most:,} evaluations"
    if method.reverse and draws is not None and draws.left < method.particles:
        return "the samples are used up: pass more, or a function that draws them"
    if most is None and batches >= _MAX_RUNS:
        return f"{batches} batches were run: use more temperatures, a closer base, or more particles"
    return None


# --- What they say ---


def _conclude(
    target: Potential, path: AnnealingPath, runs: _Runs, method: Annealing, confidence: float, batches: int = 1
) -> LogNormalizer:
    """Put together what the runs so far say, in ``batches`` of which the first one told how many."""
    forward, reverse = runs.forward, runs.reverse
    if method.forward and not bool(torch.isfinite(forward).any()):
        raise InvalidInput(
            "no particle arrived where the target's energy is finite: pass a base that overlaps the target's support"
        )
    if method.forward and method.reverse:
        found = bridge_interval(forward, reverse, method.particles, confidence)
    else:
        found = one_sided_interval(forward if method.forward else reverse, method, confidence, batches)
    trouble = list(found.trouble)
    slowest = min((float(w.acceptance.min()) for w in runs.last if len(w.acceptance)), default=1.0)
    if slowest < _STUCK:
        trouble.append(f"particles hardly move at some temperature (acceptance {slowest:.2f}): use another kernel")
    if path.warning is not None:
        trouble.append(path.warning)
    ends = path.from_unit(runs.last[-1].x.flatten(0, -1 - len(target.event_shape)))
    missed = tail_missed(target, ends) if not method.reverse else None
    trouble += [words for words in (out_of_reach(target, ends), missed) if words is not None]
    weights = forward if method.forward else reverse
    return LogNormalizer(
        estimate=found.estimate,
        standard_error=found.standard_error,
        lower=found.lower,
        upper=found.upper,
        evaluations=runs.evaluations,
        method=method.words,
        confidence=confidence,
        lower_bound=float(island_means(forward, method.particles).mean()) if method.forward else None,
        upper_bound=-float(island_means(reverse, method.particles).mean()) if method.reverse else None,
        effective_samples=float(effective_size(weights)),
        pareto_k=pareto_k(weights),
        warning="; ".join(trouble) or None,
        searched=path.searched,
        trace=_trace(path, runs),
    )


def _trace(path: AnnealingPath, runs: _Runs) -> AnnealingTrace:
    """Collect the runs for the result."""
    betas, offset = [torch.zeros(1, dtype=torch.float64)], 0.0
    for schedule in path.schedules:
        betas.append(schedule.betas[1:] + offset)
        offset += 1.0

    def joined(name: str) -> Tensor:
        steps = torch.cat([getattr(run, name).float() for run in runs.last])
        return steps if len(runs.forward) else steps.flip(0)  # runs from the target alone come down the temperatures

    together = torch.cat(betas) / offset
    return AnnealingTrace(
        together,
        runs.forward.cpu(),
        runs.reverse.cpu(),
        joined("acceptance"),
        joined("conditional_size"),
        joined("effective_size"),
    )

"""Forward runs beside a bridge: sequential Monte Carlo from the base, and the mass that no sample of a model visits.

A bridge from a model's own samples (Bennett's acceptance ratio) knows the mass of the regions that the samples come
from.  Where the energy has holes far from all of them it is too low, and nothing in its own runs shows it.  Forward
runs estimate Z without bias wherever the mass lies, at a larger variance.  So the bridge gives the mass near the
samples, forward runs the mass far from them, and the two must agree on the first.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl.inference.normalizing.annealing import log_mean_exp
from energyppl.inference.normalizing.bennett import bennett
from energyppl.inference.normalizing.methods import ISLANDS, Annealing
from energyppl.inference.normalizing.paths import annealed, find_path
from energyppl.integration.estimates import Estimate, LogNormalizer
from energyppl.potentials.algebra import Potential
from energyppl.potentials.bases import Base

__all__ = ["ForwardRuns", "believed", "combined", "forward_runs", "independent_runs"]

_FEW = 64  # dimensions up to which modes are searched for
_SEARCHES = 3  # where there are no levels
_STARTS = 256  # descents in a round of a search
_MORE = 4  # particles of eight forward runs, for each particle of the bridge in one direction
_CHEAP = 2  # times as many through the levels in few dimensions, which cost a tenth of the search beside them
_OUTLYING = 0.02  # of the samples, farther from the others than what counts as near a sample
_REFERENCES = 2048  # samples that particles are compared with, at most
_UNVISITED = 0.03  # of the mass, far from all samples: below, it may be chance, and the bridge's value stands
_EXACT = "donot_use_mm_for_euclid_dist"  # of torch.cdist, so that copies are at distance 0
_APART = 3.0  # standard errors between bridge and forward runs
_MATTERS = 0.1  # nats between them that are worth a warning, however small their errors
_WIDENED = 0.3  # nats that the forward runs widen the interval by, above which it is said


@dataclass(frozen=True, eq=False)
class ForwardRuns:
    """Independent forward runs of one kind and their particles.

    Attributes:
        log_weights: float64, nats, ``(runs, particles)``; each run's mean weight estimates Z without bias.
        x: where the particles ended, ``(runs, particles, *event)``.
        evaluations: of the energy, those that found the paths included.
        words: what kind of runs they are.
    """

    log_weights: Tensor
    x: Tensor
    evaluations: int
    words: str = ""

    @property
    def log_z(self) -> Tensor:
        """Estimate of log Z from each run, nats, ``(runs,)``."""
        return log_mean_exp(self.log_weights.T)

    def estimate(self) -> Estimate:
        """Return the logarithm of the mean of Z over runs, with its error.

        The error is the larger one of the delta method's, from the spread of Z, and that from the spread of log Z: few
        runs of heavy-tailed weights make either one too small.
        """
        log_z = self.log_z
        value = float(log_mean_exp(log_z))
        if not math.isfinite(value):
            return Estimate(value, math.inf)
        relative = torch.exp(log_z - value)
        spread = float(log_z.std()) if bool(torch.isfinite(log_z).all()) else 0.0
        return Estimate(value, max(float(relative.std()), spread) / math.sqrt(len(log_z)))


def forward_runs(target: Potential, base: Base, method: Annealing) -> ForwardRuns:
    """Run sequential Monte Carlo several times, independently, from a base to a target.

    Eight runs go from the base through the noise levels.  In few dimensions eight more begin at the basins that a
    search for modes finds in the target itself: a hole that only the sharpest levels have is met by runs through the
    levels by rare luck.  :func:`believed` says which are returned.  Without noise levels there are three searches, each
    a run.

    Args:
        target: the energy.
        base: where the path through the levels begins.
        method: whose particles, temperatures, kernel and waypoints to take.

    Returns:
        The kind of runs that is believed, and the evaluations of both.
    """
    few, searched = math.prod(target.event_shape) <= _FEW, "from the modes that a search finds"
    if few and not method.waypoints:
        searches = [independent_runs((target,), None, method, method.particles // 2) for _ in range(_SEARCHES)]
        return ForwardRuns(
            torch.stack([run.log_weights.flatten() for run in searches]),
            torch.stack([run.x.flatten(0, 1) for run in searches]),
            sum(run.evaluations for run in searches),
            searched,
        )
    words = "through the levels" if method.waypoints else "from the base"
    particles = (_CHEAP if few else 1) * _MORE * method.particles
    runs = independent_runs((*method.waypoints, target), base, method, particles, words)
    if not few:
        return runs
    return believed(runs, independent_runs((target,), None, method, _MORE * method.particles, searched))


def believed(runs: ForwardRuns, others: ForwardRuns) -> ForwardRuns:
    """Return runs through the levels, or others if those find more by three standard errors; evaluations are of both.

    Both estimate Z without bias, so the larger of two that agree would be too large on average.
    """
    one, other = runs.estimate(), others.estimate()
    evaluations = runs.evaluations + others.evaluations
    more = other.value - one.value > _APART * math.hypot(one.standard_error, other.standard_error)
    return replace(others if more or one.value == -math.inf else runs, evaluations=evaluations)


def independent_runs(
    stops: tuple[Potential, ...], base: Base | None, method: Annealing, particles: int, words: str = ""
) -> ForwardRuns:
    """Make eight independent runs on one path, which is found by a pilot run; modes are searched for without a base.

    Args:
        stops: potentials on the way, the target last.
        base: where runs begin.
        method: whose temperatures and kernel to take.
        particles: of all runs together.
        words: what kind of runs they are.
    """
    particles = max(8 * ISLANDS, ISLANDS * (particles // ISLANDS))
    path = find_path(
        stops,
        base,
        None,
        method.kernel,
        temperatures=method.temperatures,
        refit=base is None,
        sparing=False if base is None else None,
        starts=_STARTS,
    )
    stretches = annealed(path, path.base.sample(particles), method.kernel, islands=ISLANDS)
    x = path.from_unit(stretches[-1].x)
    evaluations = path.evaluations + sum(stretch.evaluations for stretch in stretches)
    return ForwardRuns(
        stretches[-1].log_weights.reshape(ISLANDS, -1), x.reshape(ISLANDS, -1, *x.shape[1:]), evaluations, words
    )


class _Visited(NamedTuple):
    """The points near a sample: no farther from the nearest one than nearly all samples are from another."""

    samples: Tensor  # (n, dimensions)
    radius: float
    outside: float  # share of the samples' own distribution that lies farther away

    @classmethod
    def by(cls, samples: Tensor) -> "_Visited":
        """Find the radius from samples ``(n, *event)``; copies of a sample are not its neighbours."""
        rows = samples[:_REFERENCES].flatten(1)
        distance = torch.cdist(rows, rows, compute_mode=_EXACT)
        nearest = torch.where(distance > 0, distance, math.inf).amin(1)
        radius = float(nearest.quantile(1.0 - _OUTLYING))
        return cls(rows, radius, float((nearest > radius).double().mean()))

    def distance(self, x: Tensor) -> Tensor:
        """Return the distance to the nearest sample, ``(n, *event)`` to ``(n,)``."""
        return torch.cdist(x.flatten(1), self.samples, compute_mode=_EXACT).amin(1)


def combined(found: LogNormalizer, forward: ForwardRuns, samples: Tensor) -> LogNormalizer:
    """Put a bridge and forward runs together: Z = Z_bridge · P(near a sample) + Z_forward(far from all samples).

    P is the share of the samples that have a near neighbour among the others; where hardly any mass lies far from them,
    Z is the bridge's.  Where the two differ by more than three standard errors, and by a tenth of a nat, on the mass
    near the samples, the larger one is believed.  The interval contains what the forward runs alone say where that is
    more, and their upper end where it is more by more than their own error.

    Args:
        found: by :class:`BAR` from the samples.
        forward: runs from a base.
        samples: that the bridge came from, ``(n, *event)``, in the coordinates of the energy.

    Returns:
        The bridge's result with another value, interval and warning, ``forward``, ``bridge`` and ``unvisited``.
    """
    from scipy.special import ndtri, stdtrit  # here, since importing energyppl should not wait for scipy

    assert found.trace is not None
    bridge, ahead = Estimate(*bennett(found.trace.forward, found.trace.reverse)), forward.estimate()
    visited, runs = _Visited.by(samples), len(forward.log_weights)
    distance = visited.distance(forward.x.flatten(0, 1)).reshape(forward.log_weights.shape)
    far = distance > visited.radius
    half_bridge = float(ndtri(0.5 + 0.5 * found.confidence)) * bridge.standard_error
    width = float(stdtrit(runs - 1, 0.5 + 0.5 * found.confidence))
    said = [found.warning] if found.warning and math.isfinite(found.standard_error) else []

    value = _Value.around(bridge, half_bridge)
    near_samples = bridge.value + math.log1p(-visited.outside)
    mass = _FarMass.of(forward, far, near_samples)
    share = mass.share() - visited.outside
    if share > _UNVISITED:
        value = mass.with_bridge(bridge.standard_error, half_bridge, width)
        said.append(_where(forward, mass.weights, distance, share))
    near = replace(forward, log_weights=forward.log_weights.masked_fill(far, -math.inf)).estimate()
    apart = near.value - near_samples
    if abs(apart) > max(_MATTERS, _APART * math.hypot(near.standard_error, bridge.standard_error)):
        said.append(_apart(apart))
        if apart > 0:
            value = _Value.around(ahead, width * ahead.standard_error)
    upper = _upper_end(value, ahead, width, found)
    if said or upper > value.upper + _WIDENED:
        said.insert(0, _compared(ahead, bridge))
    return replace(
        found,
        estimate=value.estimate,
        standard_error=value.standard_error,
        lower=value.lower,
        upper=upper,
        evaluations=found.evaluations + forward.evaluations,
        method=f"{found.method}, and {runs} forward runs {forward.words}",
        warning="; ".join(said) or None,
        forward=ahead,
        bridge=bridge,
        unvisited=max(0.0, share),
    )


class _Value(NamedTuple):
    """An estimate of log Z with its interval, nats."""

    estimate: float
    standard_error: float
    lower: float
    upper: float

    @classmethod
    def around(cls, found: Estimate, half: float) -> "_Value":
        """Return an estimate with an interval of half the width ``half`` around it."""
        return cls(found.value, found.standard_error, found.value - half, found.value + half)


class _FarMass(NamedTuple):
    """Weights of forward runs far from all samples, beside the bridge's Z near the samples.

    All are in units of the larger of that Z and the largest weight, so that neither overflows.
    """

    near_samples: float  # log of the bridge's Z near the samples, nats
    unit: float  # nats above it
    weights: Tensor  # (runs, particles), 0 near the samples

    @classmethod
    def of(cls, forward: ForwardRuns, far: Tensor, near_samples: float) -> "_FarMass":
        """Take the weights of the particles that are ``far``, ``(runs, particles)``."""
        log_weights = (forward.log_weights - near_samples).masked_fill(~far, -math.inf)
        unit = max(0.0, float(log_weights.max()))
        return cls(near_samples, unit, torch.exp(log_weights - unit))

    def total(self) -> float:
        """Return Z, both parts together."""
        return math.exp(-self.unit) + float(self.weights.mean())

    def share(self) -> float:
        """Return the share of Z that lies far from all samples."""
        return float(self.weights.mean()) / self.total()

    def with_bridge(self, bridge_error: float, half_bridge: float, width: float) -> _Value:
        """Return log of both parts of Z together.

        Args:
            bridge_error: standard error of the bridge, nats.
            half_bridge: half its interval's width.
            width: Student's quantile for the spread over runs.
        """
        one, total, nats = math.exp(-self.unit), self.total(), self.near_samples + self.unit
        error = float(self.weights.mean(1).std()) / math.sqrt(len(self.weights))
        half = math.hypot(one * half_bridge, width * error)
        lower = self.near_samples - half_bridge
        if total > half:
            lower = max(lower, nats + math.log(total - half))
        standard_error = math.hypot(one * bridge_error, error) / total
        return _Value(nats + math.log(total), standard_error, lower, nats + math.log(total + half))


def _upper_end(value: _Value, ahead: Estimate, width: float, found: LogNormalizer) -> float:
    """Return the interval's upper end, raised to what the forward runs say where that is more."""
    upper = max(value.upper, ahead.value)
    if ahead.value > value.estimate + ahead.standard_error:
        upper = max(upper, ahead.value + width * ahead.standard_error)
    if not math.isfinite(found.standard_error):  # the bridge's own forward runs refute the samples
        upper = max(upper, found.estimate)
    return upper


def _compared(ahead: Estimate, bridge: Estimate) -> str:
    """Say how far forward runs and bridge are apart."""
    gap, error = ahead.value - bridge.value, math.hypot(ahead.standard_error, bridge.standard_error)
    return (
        f"forward runs find {abs(gap):.2f} nats {'more' if gap > 0 else 'less'} (± {error:.2g}) than the bridge from "
        "the model's own samples"
    )


def _where(forward: ForwardRuns, weights: Tensor, distance: Tensor, share: float) -> str:
    """Say where the mass lies that no sample visits."""
    shares = (weights / weights.sum()).flatten()
    norms = forward.x.flatten(0, 1).flatten(1).norm(dim=1).to(shares)
    nearest, radius = float(shares @ distance.flatten().to(shares)), float(shares @ norms)
    return (
        f"{share:.0%} of the mass lies where no sample of the model comes, on average {nearest:.1f} standard "
        f"deviations from the nearest one and {radius:.1f} from the centre (found by particles worth "
        f"{1.0 / float(shares.square().sum()):.0f}): log Z counts it, and may be larger still"
    )


def _apart(gap: float) -> str:
    """Say how bridge and forward runs differ on the mass near the samples."""
    if gap > 0:
        return (
            f"{gap:.2f} nats of it lie near the samples, which are not spread as the energy says: the forward runs "
            "are believed"
        )
    return "the bridge is believed: near the samples the runs miss a mode, or the samples are not draws of this energy"

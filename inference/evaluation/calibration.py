"""Simulation-based calibration (Talts et al. 2018): is what samples a posterior right, whatever the data?

Draw parameters from the prior, data given them, and sample the posterior given these data: the rank of the true value
among the draws is uniform if model, sampler and warm-up are all right.  Ranks of parameters can't tell a posterior from
a sampler that forgets the data and draws from the prior; that of the log joint density can (Modrák et al. 2023), and is
tested beside them.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from energyppl._checks import check_between, check_count, check_flag, check_kind, checked, shape_text
from energyppl.errors import InvalidInput
from energyppl.inference.evaluation.coverage import Coverage, rank_coverage, ranked
from energyppl.inference.evaluation.replicate_chains import ReplicateChains, ReplicateDraws
from energyppl.inference.evaluation.uniformity import EcdfBands, chi_square_test, ecdf_bands, ecdf_test
from energyppl.inference.kernels.contract import Kernel, check_kernel
from energyppl.inference.kernels.mass import MassEstimate, low_rank_mass
from energyppl.inference.sampling.replicates import ReplicatedModel, simulate_replicates

__all__ = ["Calibration", "Quantities", "calibrate", "calibrate_sampler"]

_LOG_JOINT = "log joint density"

Values = Mapping[str, Tensor]
Quantities = Callable[[Values], Values]
"""Turns variables by name, ``(*batch, *shape)`` each, into test quantities, likewise; batches have one or two sizes."""


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Ranks of the truth among posterior draws, one of each replicate, and whether they are uniform.

    Example:
        >>> def posterior(y, draws):  # of y ~ N(mu, 1) and mu ~ N(0, 1): N(y / 2, 1 / 2)
        ...     return y[:, None] / 2 + 0.5**0.5 * torch.randn(len(y), draws)
        >>> found = ep.evaluation.calibrate_sampler(torch.randn, lambda mu: mu + torch.randn(len(mu)), posterior)
        >>> found.passed, found.draws
        (True, 63)
    """

    ranks: Mapping[str, Tensor]  # (replicates,) from 0 to draws, by quantity; entries of a site are told apart
    draws: int  # L, of each posterior
    false_alarm: (
        float  # probability that ``passed`` is False where all is well, at most: Bonferroni over the quantities
    )
    thin: int = 1  # steps between draws of a chain
    notes: tuple[str, ...] = ()  # what to know of the chains, a sentence each
    seconds: float = 0.0
    _tested: dict[str, float] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        replicates = len(next(iter(self.ranks.values())))
        shown = sorted(self.p_values.items(), key=lambda item: item[1])
        lines = [
            f"Calibration: {replicates} replicates of {self.draws} draws, {len(shown)} quantities, smallest p-value "
            f"{shown[0][1]:.3g} of {shown[0][0]!r} ({self.threshold:.2g} is the limit)"
        ]
        return "\n".join([*lines, *(f"  {remark}" for remark in self.problems() or ["no problem noticed"])])

    @property
    def p_values(self) -> dict[str, float]:
        """p-values by quantity, of the largest deviation of the ranks' distribution function (:func:`ecdf_test`)."""
        if not self._tested:
            self._tested.update({name: ecdf_test(ranks, self.draws) for name, ranks in self.ranks.items()})
        return dict(self._tested)

    @property
    def threshold(self) -> float:
        """The p-value below which a quantity's ranks are not taken for uniform."""
        return self.false_alarm / len(self.ranks)

    @property
    def passed(self) -> bool:
        """True if the ranks of all quantities may be uniform."""
        return min(self.p_values.values()) >= self.threshold

    def chi_square(self, bins: int | None = None) -> dict[str, float]:
        """Return p-values by quantity of a chi-square test, as Talts et al. (2018) propose; ``passed`` uses no such."""
        return {name: chi_square_test(ranks, self.draws, bins) for name, ranks in self.ranks.items()}

    def bands(self, confidence: float | None = None) -> EcdfBands:
        """Work out simultaneous bands of the ranks' distribution function, for ``plots.rank_ecdf``.

        Args:
            confidence: of the whole function of one quantity; that of the test if None.
        """
        count = len(next(iter(self.ranks.values())))
        return ecdf_bands(count, self.draws, 1.0 - self.threshold if confidence is None else confidence)

    def coverage(
        self, *, nominal: Sequence[float] = (0.5, 0.8, 0.9, 0.95), confidence: float = 0.95
    ) -> dict[str, Coverage]:
        """Count how many truths lie in central posterior intervals, by quantity; see :func:`coverage`."""
        return {
            name: rank_coverage(ranks, self.draws, nominal=nominal, confidence=confidence)
            for name, ranks in self.ranks.items()
        }

    def problems(self) -> list[str]:
        """Say which quantities are off and how, and what to know of the chains, in words; empty if all seems well."""
        found = [
            f"the ranks of {name!r} are not uniform (p = {p:.2g}): {_shape(self.ranks[name], self.draws)}"
            for name, p in self.p_values.items()
            if p < self.threshold
        ]
        return [*found, *self.notes]


def calibrate(
    model: Callable[..., Any],
    prior: Callable[[int], Values] | None,
    kernel: Kernel,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    observed: Sequence[str] | None = None,
    simulator: Callable[..., Any] | None = None,
    quantities: Quantities | None = None,
    replicates: int = 200,
    at_once: int = 100,
    chains: int = 16,
    draws: int = 63,
    warmup: int = 300,
    max_thin: int = 50,
    false_alarm: float = 0.01,
    mass: MassEstimate = low_rank_mass,
    progress: bool = True,
) -> Calibration:
    """Check by simulation that a kernel's chains sample the posteriors of a Pyro model (Talts et al. 2018).

    ``replicates`` times latent values are drawn from the prior and data from the model; then the posteriors of all data
    sets are sampled together, many chains each, begun uniformly within ±2 of unconstrained zero and never at the truth.
    The kernel sees points ``(chains, data sets, D)`` and, where it can be tuned, has a step size for each data set, in
    coordinates in which that one's posterior has unit variances.  A pilot run tells how far apart draws of a chain must
    lie for their effective sample size to be their number, at 95 of 100 data sets.

    Args:
        model: a Pyro model; at each replicate its data are replaced by simulated ones.
        prior: draws latent sites, ``(n, *shape)`` by name, for n replicates; the model's own sites if None.
        kernel: moves the chains.
        args: the model's positional arguments; data among them only say which sites are observed, and their shapes.
        kwargs: its named arguments.
        observed: names of the sites that are data, for a model that observes nothing with these arguments.
        simulator: a Pyro model that draws the data in place of ``model``, with the same sites and arguments: is the
            posterior calibrated for data of another model?
        quantities: what is ranked: a function of the latent and deterministic sites, for batches of one or two
            dimensions; all entries of latent sites if None.  The log joint density is ranked in any case.
        replicates: n; 50 find a posterior half as wide as it should be 39 times of 40, 400 one that is a fifth too
            narrow and 2,000 one that is a tenth too narrow 37 times of 40.
        at_once: replicates sampled together.
        chains: of each replicate.
        draws: L, of each replicate, from all its chains.
        warmup: steps of tuning for each batch of replicates; below 2 the kernel is taken as it is, and a pilot run of
            100 steps is all that leads to the posteriors.
        max_thin: steps between kept draws of a chain, at most; ``notes`` say if they are still autocorrelated.
        false_alarm: probability that ``passed`` of the result is False where all is well, at most.
        mass: as in :func:`~energyppl.adapt`; it is estimated from all data sets of a batch.
        progress: show bars.

    Raises:
        InvalidInput: for numbers out of range, a model without data, priors and simulators that return other shapes or
            NaN, and as :func:`~energyppl.sample_chains`.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(rows):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", rows):
        ...         pyro.sample("y", dist.Normal(mu, 1.0))
        >>> options = {"replicates": 20, "chains": 4, "draws": 15, "warmup": 50, "progress": False}
        >>> found = ep.evaluation.calibrate(model, None, ep.HMC(), (5,), observed=["y"], **options)
        >>> found.ranks["mu"].shape, found.draws
        (torch.Size([20]), 15)
    """
    check_kernel(kernel)  # before the kinds of the others, since it says what a kernel has
    for name, value, kind in (
        ("prior", prior, Callable | None),
        ("args", args, Sequence),
        ("kwargs", kwargs, Mapping | None),
        ("observed", observed, Sequence | None),
        ("simulator", simulator, Callable | None),
        ("quantities", quantities, Callable | None),
        ("mass", mass, Callable),
    ):
        check_kind(name, value, kind)
    _check_counts(replicates=replicates, at_once=at_once, chains=chains, draws=draws, warmup=warmup, max_thin=max_thin)
    check_between("false_alarm", false_alarm, 0.0, 1.0)
    check_flag("progress", progress)
    began, kwargs = time.perf_counter(), kwargs or {}
    run = ReplicateChains(kernel, chains, draws, warmup, max_thin, mass, progress)
    parts: list[dict[str, Tensor]] = []
    for first in range(0, replicates, at_once):
        count = min(at_once, replicates - first)
        posteriors, truth = simulate_replicates(
            model, args, kwargs, count, prior=prior, simulator=simulator, observed=observed
        )
        sample = run.sample(posteriors)
        parts.append(_ranks(posteriors, truth, sample, quantities))
    ranks = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Calibration(
        ranks, draws, false_alarm, max(run.thin), tuple(run.notes()), seconds=time.perf_counter() - began
    )


@checked
def calibrate_sampler(
    prior: Callable[[int], Tensor | Values],
    simulate: Callable[[Any], Any],
    posterior: Callable[[Any, int], Tensor | Values],
    *,
    quantities: Quantities | None = None,
    replicates: int = 200,
    draws: int = 63,
    false_alarm: float = 0.01,
) -> Calibration:
    """Check any sampler of posteriors by simulation: a flow, a guide, an amortized sampler, chains of your own.

    Args:
        prior: draws parameters, ``(n, *shape)`` for n replicates, a tensor or several by name.
        simulate: maps them to data of n data sets, of any kind.
        posterior: maps these data and L to draws, ``(n, L, *shape)``, independent or thinned until they nearly are.
        quantities: as in :func:`calibrate`; all entries of the parameters if None.  Add one that depends on the data,
            such as a log likelihood: a sampler that forgets the data and draws from the prior passes without.
        replicates: n.
        draws: L.
        false_alarm: as in :func:`calibrate`.

    Raises:
        InvalidInput: for numbers out of range, other shapes, or NaN.

    Example:
        >>> def posterior(y, draws):  # of y ~ N(mu, 1) and mu ~ N(0, 1): N(y / 2, 1 / 2)
        ...     return y[:, None] / 2 + 0.5**0.5 * torch.randn(len(y), draws)
        >>> ep.evaluation.calibrate_sampler(torch.randn, lambda mu: mu + torch.randn(len(mu)), posterior).passed
        True
    """
    _check_counts(replicates=replicates, draws=draws)
    check_between("false_alarm", false_alarm, 0.0, 1.0)
    began = time.perf_counter()
    with torch.no_grad():
        truth = prior(replicates)
        drawn = posterior(simulate(truth), draws)
    true_values, values = _named(truth), _named(drawn)
    if quantities is not None:
        true_values, values = quantities(true_values), quantities(values)
    ranks = _rank_all(true_values, values, replicates, draws)
    return Calibration(ranks, draws, false_alarm, seconds=time.perf_counter() - began)


def _ranks(
    posteriors: ReplicatedModel, truth: Tensor, sample: ReplicateDraws, quantities: Quantities | None
) -> dict[str, Tensor]:
    """Rank the true values of all quantities."""
    potential = posteriors.potential
    with torch.no_grad():
        true_energy = torch.stack([posteriors.given(i)(z) for i, z in enumerate(truth)])
        true_values, values = potential.constrain(truth), potential.constrain(sample.z)
    if quantities is None:
        names = [site.name for site in potential.sites]
        true_values, values = ({name: v[name] for name in names} for v in (true_values, values))
    else:
        true_values, values = quantities(true_values), quantities(values)
    found = _rank_all(true_values, values, len(truth), sample.z.shape[1])
    return {**found, _LOG_JOINT: ranked(-true_energy, -sample.energy)}


def _rank_all(truth: Values, drawn: Values, replicates: int, draws: int) -> dict[str, Tensor]:
    """Rank every entry of every quantity, ``(n,)`` each."""
    if truth.keys() != drawn.keys() or not truth:
        raise InvalidInput(
            f"prior and posterior must give values of the same names; got {', '.join(truth) or 'none'} and "
            f"{', '.join(drawn) or 'none'}"
        )
    found: dict[str, Tensor] = {}
    for name, true_value in truth.items():
        value = drawn[name]
        shape = true_value.shape[1:]
        if len(true_value) != replicates or value.shape != (replicates, draws, *shape):
            raise InvalidInput(
                f"{name} must have shape (n, *shape) = ({replicates}, …) and its draws (n, L, *shape) = ({replicates}, "
                f"{draws}, …); got {shape_text(true_value.shape)} and {shape_text(value.shape)}"
            )
        if bool(torch.isnan(true_value).any()) or bool(torch.isnan(value).any()):
            raise InvalidInput(f"{name} must be numbers; got NaN: the prior or the posterior's sampler fails")
        ranks = ranked(true_value, value).reshape(replicates, -1)
        names = [f"{name}[{', '.join(map(str, place))}]" if shape else name for place in _places(shape)]
        found.update(zip(names, ranks.unbind(1), strict=True))
    return found


def _places(shape: torch.Size) -> list[tuple[int, ...]]:
    return [tuple(int(i) for i in place) for place in torch.ones(shape).nonzero()]


def _named(values: Tensor | Values) -> Values:
    return {"parameters": values} if isinstance(values, Tensor) else values


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        check_count(name, value, at_least={"replicates": 2, "chains": 2, "warmup": 0}.get(name, 1))


def _shape(ranks: Tensor, draws: int) -> str:
    """Say in words how ranks differ from uniform ones."""
    u = (ranks.double() + 0.5) / (draws + 1.0) - 0.5
    mean = float(u.mean()) * math.sqrt(12.0 * len(u))  # standard errors
    spread = (float(u.square().mean()) - 1.0 / 12.0) * math.sqrt(180.0 * len(u))
    if abs(mean) > abs(spread):
        return f"the draws are too {'low' if mean > 0 else 'high'}"
    return "the draws are too close together (overconfident)" if spread > 0 else "the draws are too far apart"

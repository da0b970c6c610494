"""Marginal likelihoods of latent-variable models by annealing: log p(x_i) of each row, with an interval of the mean."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from energyppl._checks import check_between, check_count, check_number, checked
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.normalizing.annealing import anneal, log_mean_exp, pilot_run
from energyppl.inference.sampling.plate_potential import PlatePotential
from energyppl.integration.estimates import Estimate, LogNormalizer
from energyppl.potentials.bases import GaussianBase

__all__ = ["MarginalLikelihood", "marginal_log_likelihood"]

_PILOT = 32  # particles


@dataclass(frozen=True, eq=False)
class MarginalLikelihood:
    """Estimates of log p(x_i) in nats.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("rows", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> found = ep.normalizing.marginal_log_likelihood(model, (torch.zeros(5),))
        >>> found.log_likelihood.shape, found.standard_error.shape
        (torch.Size([5]), torch.Size([5]))
    """

    log_likelihood: Tensor  # (n,), float64: logarithms of unbiased estimates, below log p(x_i) on average
    standard_error: Tensor  # (n,), of annealing, by the delta method
    mean: Estimate  # over the rows; its error counts the rows, the annealing and log Z of the prior
    annealing_error: float  # standard error of the mean by annealing and log Z alone: for these very rows
    evaluations: int

    def __str__(self) -> str:
        return f"{self.mean} nats a row ({len(self.log_likelihood)} rows; ± {self.annealing_error:.2g} by annealing)"


@checked
def marginal_log_likelihood(
    model: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    guide: Callable[..., Any] | None = None,
    log_z: LogNormalizer | float = 0.0,
    particles: int = 128,
    temperatures: int | None = None,
    confidence: float = 0.95,
) -> MarginalLikelihood:
    """Estimate log p(x_i) = log ∫ p(z) p(x_i | z) dz of every row of a Pyro model by annealing over its latent values.

    Each row's runs go from a Gaussian, the guide's if there is one, to exp(−U(z)) p(x_i | z) (Neal 2001; Wu et al.
    2017 for decoders).  Temperatures and step sizes are the same for all rows, found by a pilot run.

    Args:
        model: a Pyro model whose latent sites lie in one plate of rows.
        args: its positional arguments.
        kwargs: its named ones.
        guide: gives each latent site a Normal, called with the same arguments; N(0, I) if None.
        log_z: of the energies that are the model's priors, as ``prior.log_normalizer()``; it is taken off each row.
        particles: for each row.
        temperatures: as many as a pilot run finds if None.
        confidence: of the mean's interval.

    Raises:
        InvalidInput: for a model of another kind, a guide that gives no Normal, or numbers out of range.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("rows", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> found = ep.normalizing.marginal_log_likelihood(model, (torch.zeros(5),))
        >>> bool((found.log_likelihood + 1.266).abs().max() < 0.3)  # log N(0; 0, 2)
        True
    """
    check_count("particles", particles, at_least=4)
    check_between("confidence", confidence, 0.0, 1.0)
    if temperatures is not None:
        check_count("temperatures", temperatures)
    if not isinstance(log_z, LogNormalizer):
        check_number("log_z", log_z)
    kwargs = kwargs or {}
    potential, drawn = PlatePotential.trace(model, tuple(args), kwargs)
    base = _base(potential, drawn, guide, args, kwargs)
    kernel = MALA(float(base.scale.mean()))
    pilot = pilot_run(base, potential, base.sample(min(particles, _PILOT)), kernel, steepness=0.95)
    schedule = pilot.schedule if temperatures is None else pilot.schedule.resampled(temperatures)
    run = anneal(base, potential, schedule, base.sample(particles), kernel)
    ratio = log_mean_exp(run.log_weights)
    error = torch.exp(run.log_weights - ratio).std(0) / math.sqrt(particles)
    known, its_error = (log_z.estimate, log_z.standard_error) if isinstance(log_z, LogNormalizer) else (log_z, 0.0)
    found = (ratio - known).cpu()
    n = len(found)
    over_rows = float(found.std()) / math.sqrt(n) if n > 1 else 0.0
    # The logarithm of an unbiased estimate with error s is s² / 2 too low: a bias, which counts as an error.
    too_low = 0.5 * float(error.square().mean())
    by_annealing = math.hypot(float(error.square().sum().sqrt()) / n, its_error, too_low)
    mean = Estimate(
        float(found.mean()), math.hypot(over_rows, by_annealing) if n > 1 else by_annealing, its_error, confidence
    )
    return MarginalLikelihood(found, error.cpu(), mean, by_annealing, pilot.evaluations + run.evaluations)


def _base(
    potential: PlatePotential,
    drawn: Mapping[str, Tensor],
    guide: Callable[..., Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> GaussianBase:
    """Return the Gaussian of each row that annealing begins with."""
    z = potential.join(drawn)
    if guide is None:
        return GaussianBase(torch.zeros_like(z), torch.ones_like(z), potential.event_shape)
    with torch.no_grad():
        nodes = poutine.trace(guide).get_trace(*args, **kwargs).nodes
    means: dict[str, Tensor] = {}
    widths: dict[str, Tensor] = {}
    for name, value in drawn.items():
        if name not in nodes:
            raise InvalidInput(f"the guide must have a site {name!r}; got {', '.join(nodes)}")
        fn = nodes[name]["fn"]
        while isinstance(fn, torch.distributions.Independent):
            fn = fn.base_dist
        if not isinstance(fn, torch.distributions.Normal):
            raise InvalidInput(f"the guide must give site {name!r} a Normal; got {type(fn).__name__}: leave it out")
        means[name], widths[name] = fn.loc.detach().expand(value.shape), fn.scale.detach().expand(value.shape)
    return GaussianBase(potential.join(means), potential.join(widths), potential.event_shape)

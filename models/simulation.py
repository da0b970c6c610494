"""Simulation-based inference: unnormalized neural likelihoods and the posteriors that they give (Glaser et al. 2022).

A :class:`~energyppl.models.ConditionalEBM` of data x given parameters θ is trained on simulations, which normalizes it
for every θ: ``prior(θ) exp(−U(x; θ)) / Z(θ)`` is a posterior for chains, without any simulation more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from energyppl._checks import check_count, check_event, check_fields, check_flag, shape_text
from energyppl._seeds import seeded
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput, warn_user
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.normalizing.annealing import effective_size, pilot_run
from energyppl.models.conditional import ConditionalEBM
from energyppl.potentials.algebra import Potential
from energyppl.potentials.bases import DistributionBase
from energyppl.potentials.constrained import Constrained, unconstrain

__all__ = ["Resampled", "Simulations", "posterior", "simulate"]

_NAMED = 5  # rows in a message
_EFFECTIVE, _FEW = 100, 10  # draws of the prior that resampled ones should be worth; below, they are moved instead
_STEEPNESS, _PARTICLES, _LAST = 0.9, 4096, 10  # of such a move: conditional effective size, particles, last steps
_FARTHEST = 10.0  # standard deviations of simulations
_LOOKED_AT, _OUTSIDE = 1024, 0.05  # draws of the prior; share of them that may be far from all that was simulated
_TRIALS, _AT_LEAST, _AT_MOST, _AT_ONCE = 100, 10_000, 1_000_000, 16_384  # draws of the prior that chains begin from


class Simulations(NamedTuple):
    """Simulated data and their parameters, row by row: the pair that ``fit`` takes.

    Example:
        >>> rows = ep.models.Simulations(torch.randn(100, 2), torch.rand(100, 1))
        >>> rows.x.shape, rows.parameters.shape
        (torch.Size([100, 2]), torch.Size([100, 1]))
    """

    x: Tensor  # (n, *event)
    parameters: Tensor  # (n, *parameters)


def simulate(
    simulator: Callable[[Tensor], Any], prior: Distribution, count: int, *, drop_failed: bool = False
) -> Simulations:
    """Draw parameters from a prior and simulate data for each.

    Args:
        simulator: maps parameters ``(n, *parameters)``, a tensor, to data ``(n, *event)``, a tensor or a numpy array.
        prior: of the parameters, without a batch.
        count: how many.
        drop_failed: leave out rows whose data are not finite; what is learned then is given that a simulation succeeds.

    Raises:
        InvalidInput: for parameters that are constant, and data that are not finite or of another shape.

    Example:
        >>> prior = torch.distributions.Independent(torch.distributions.Uniform(-torch.ones(2), torch.ones(2)), 1)
        >>> rows = ep.models.simulate(lambda theta: theta + 0.1 * torch.randn_like(theta), prior, 200)
        >>> rows.x.shape, rows.parameters.shape
        (torch.Size([200, 2]), torch.Size([200, 2]))
    """
    _check_prior(prior)
    check_count("count", count, at_least=2)
    check_flag("drop_failed", drop_failed)
    if not callable(simulator):
        raise InvalidInput(f"simulator must map parameters to data; got {type(simulator).__name__}: pass a function")
    with torch.no_grad():
        parameters: Tensor = prior.sample((count,))
        constant = (parameters == parameters[:1]).all(0).flatten().nonzero()[:, 0].tolist()
        if constant:
            raise InvalidInput(
                f"parameters must vary under the prior; parameter(s) {constant[:20]} are constant, and nothing can be "
                "learned of what they do: fix them inside the simulator, and leave them out of the prior"
            )
        x = simulator(parameters)
        if isinstance(x, np.ndarray) and x.dtype.kind == "f":
            x = torch.as_tensor(x).to(parameters)
    if not isinstance(x, Tensor) or x.dim() < 2 or len(x) != count:
        came = shape_text(x.shape) if isinstance(x, Tensor) else type(x).__name__
        came = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else came
        raise InvalidInput(
            f"the simulator must return floating-point data ({count}, *event) for {count} parameters; got {came}: "
            "return one row for each row of parameters"
        )
    check_event("simulated data", x, x.shape[1:])
    good = torch.isfinite(x).flatten(1).all(1)
    failed = (~good).nonzero()[:, 0]
    if len(failed) and not drop_failed:
        rows = ", ".join(str(int(row)) for row in failed[:_NAMED])
        first = [round(value, 4) for value in parameters[failed[0]].flatten().tolist()[:8]]
        raise InvalidInput(
            f"simulated data must be finite; got NaN or infinity in {len(failed)} of {count} rows ({rows}"
            f"{', …' if len(failed) > _NAMED else ''}), the first for parameters {first}: mend the simulator, narrow "
            "the prior, or pass drop_failed=True and read the posterior as given that a simulation succeeds"
        )
    if int(good.sum()) < 2:
        raise InvalidInput(f"of {count} simulations {int(good.sum())} gave finite data: mend the simulator")
    return Simulations(x[good], parameters[good])


def posterior(ebm: ConditionalEBM, prior: Distribution, observed: Tensor) -> EnergyDistribution:
    """Return the posterior of parameters θ given observed data, for ``sample_chains`` with many chains.

    Its energy is ``−log prior(θ) + Σ_i [U(x_i; θ) + log Z(θ)]`` over the rows of ``observed``, which are independent
    given θ.  log Z(θ) is integrated if an x is one number, and what training implies above.
    ``sample`` begins at draws of the prior, as :class:`Resampled` says: chains begin there, in every mode by about its
    mass.  Warnings say where what was observed is far from everything simulated, or the prior goes beyond it.

    Args:
        ebm: trained on ``simulate(...)``: its contexts are the parameters.
        prior: of the parameters, the one that they were simulated from or another inside of it.
        observed: one x, ``(*event)``, or several, ``(m, *event)``.

    Raises:
        InvalidInput: for another model, a prior of another shape, or data that are not finite; for data of more than
            one number if training did not normalize the model, since log Z(θ) is not known then.

    Example:
        >>> prior = torch.distributions.Independent(torch.distributions.Uniform(-torch.ones(2), torch.ones(2)), 1)
        >>> rows = ep.models.simulate(lambda theta: theta + 0.1 * torch.randn_like(theta), prior, 200)
        >>> schedule = ep.NoiseSchedule.cosine(levels=3, log_snr_min=-6.0)
        >>> ebm = ep.models.ConditionalEBM(ep.MLPEnergy(2, context_shape=2), schedule)
        >>> history = ep.fit(ebm, rows, steps=2, progress=False)
        >>> given_x = ep.models.posterior(ebm, prior, torch.zeros(2))
        >>> chains = ep.sample_chains(ep.HMC(), given_x, chains=8, draws=10, warmup=20, progress=False)
        >>> chains.samples["x"].shape
        torch.Size([8, 10, 2])
    """
    if not isinstance(ebm, ConditionalEBM):
        raise InvalidInput(
            f"ebm must be a ConditionalEBM of data given parameters; got {type(ebm).__name__}: train one"
        )
    if ebm.event_shape != (1,) and not bool(ebm.tied):
        raise InvalidInput(
            "the model was not trained with a level tie, so its log Z for each parameter is not known: train it by "
            "ProposalContrastive, by LevelScoreMatching on a continuous network, or by RecoveryLikelihood with its tie"
        )
    _check_prior(prior)
    if prior.event_shape != ebm.context_shape:
        raise InvalidInput(
            f"the prior must be of parameters {shape_text(ebm.context_shape)}, the model's contexts; got "
            f"{shape_text(prior.event_shape)}"
        )
    check_event("observed", observed, ebm.event_shape)
    rows = observed.unsqueeze(0) if observed.dim() == len(ebm.event_shape) else observed
    if rows.dim() != len(ebm.event_shape) + 1 or not bool(torch.isfinite(rows).all()):
        raise InvalidInput(
            f"observed must be finite, {shape_text(ebm.event_shape)} or one such in each row; got "
            f"{shape_text(observed.shape)}"
        )
    rows = rows.to(ebm.loc)
    _tell_what_is_unseen(ebm, prior, rows)
    support: Any = prior.support
    likelihood = _Likelihood(ebm, rows)
    return EnergyDistribution(
        _Posterior(DistributionBase(prior), likelihood),
        sampler=Resampled(prior, likelihood, at_once=max(1, _AT_ONCE // len(rows))),
        like=ebm.loc,
        support=None if _is_real(support) else support,
    )


def _tell_what_is_unseen(ebm: ConditionalEBM, prior: Distribution, rows: Tensor) -> None:
    """Warn of observed rows that are far from all simulations, and of a prior that goes beyond them."""
    outside = (rows < ebm.low) | (rows > ebm.high) | (ebm.to_unit(rows).abs() > _FARTHEST)
    if bool(outside.any()):
        warn_user(
            f"{int(outside.flatten(1).any(1).sum())} of {len(rows)} observed rows lie outside of all simulations, or "
            f"more than {_FARTHEST:g} standard deviations from their mean: the posterior is a guess; widen the prior, "
            "or mend the simulator"
        )
    with seeded(0):
        beyond = float(ebm.contexts.far(prior.sample((_LOOKED_AT,))).double().mean())
    if beyond > _OUTSIDE:
        warn_user(
            f"{beyond:.0%} of the prior's draws lie nowhere near the parameters that the model was trained with: the "
            "likelihood there is a guess; simulate from this prior, or pass a narrower one"
        )


def _is_real(support: Any) -> bool:
    return type(getattr(support, "base_constraint", support)).__name__ == "_Real"


def _check_prior(prior: object) -> None:
    """Require a distribution of one parameter vector."""
    if not isinstance(prior, Distribution):
        raise InvalidInput(f"prior must be a torch or Pyro distribution; got {type(prior).__name__}: pass one")
    if prior.batch_shape or not prior.event_shape:
        raise InvalidInput(
            "the prior must be of one vector, with an event_shape and no batch_shape; got "
            f"{shape_text(prior.event_shape)} and {shape_text(prior.batch_shape)}: make the "
            "batch events by Independent(prior, 1) or prior.to_event(1)"
        )


@dataclass(frozen=True, eq=False)
class _Likelihood:
    """Minus log p(observed | θ) as a function of parameters ``(*batch, *parameters)``."""

    model: ConditionalEBM
    observed: Tensor  # (m, *event)

    def __call__(self, parameters: Tensor) -> Tensor:
        model = self.model
        batch = parameters.shape[: parameters.dim() - len(model.context_shape)]
        rows = self.observed.reshape(len(self.observed), *[1] * len(batch), *model.event_shape)
        points = model.to_unit(rows).expand(-1, *batch, *model.event_shape)
        view = model.conditioned(parameters)
        energy: Tensor = view.potential()(points).sum(0)
        if model.event_shape != (1,):
            return energy  # log Z is 0 but for a constant
        # Parameters so far out that the likelihood there can't be integrated have none, and chains turn back from them.
        log_z = model.given_unchecked(parameters).quadrature(strict=False)
        return energy + len(self.observed) * log_z


@dataclass(frozen=True, eq=False)
class _Posterior:
    """Energy of parameters given data."""

    prior: Potential
    likelihood: _Likelihood

    @property
    def event_shape(self) -> torch.Size:
        """Shape of the parameters."""
        return self.likelihood.model.context_shape

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the energies of parameters ``(*batch, *parameters)``."""
        return self.prior(x) + self.likelihood(x)


@dataclass(frozen=True, eq=False)
class Resampled:
    """Draws of a prior, brought to a posterior of several modes by their masses: where chains begin.

    They are resampled by the likelihood (sampling importance resampling, Rubin 1988), and more are drawn while few of
    them count; a warning says so if few still do.  Where fewer than ten do, they are moved there by a growing power of
    the likelihood, and resampled on the way (sequential Monte Carlo, Del Moral, Doucet & Jasra 2006): modes then have
    their masses only roughly.

    A sampler of :class:`~energyppl.EnergyDistribution`, for the posterior of any likelihood.

    Args:
        prior: of one vector.
        likelihood: minus a log likelihood, of parameters ``(n, *parameters)``.
        tried: draws of the prior; if None 100 for each wanted and at least 10,000, and up to a million while few count.
        at_once: parameters that the likelihood is asked for at once.

    Example:
        >>> prior = torch.distributions.Independent(torch.distributions.Uniform(-torch.ones(2), torch.ones(2)), 1)
        >>> begin = ep.models.Resampled(prior, lambda theta: 50.0 * theta.square().sum(-1))
        >>> begin(ep.potentials.DistributionBase(prior), torch.Size((3,)), torch.zeros(())).shape
        torch.Size([3, 2])
    """

    prior: Distribution
    likelihood: Callable[[Tensor], Tensor]
    tried: int | None = None
    at_once: int = _AT_ONCE

    def __post_init__(self) -> None:
        check_fields(self)
        _check_prior(self.prior)
        if self.tried is not None:
            check_count("tried", self.tried)
        check_count("at_once", self.at_once)

    def __call__(self, potential: Potential, shape: torch.Size, like: Tensor) -> Tensor:
        """Draw unconstrained parameters, ``(*shape, *parameters)``."""
        needed = min(_EFFECTIVE, shape.numel())
        tried, energies = self._tried(shape.numel(), needed, like)
        effective = float(effective_size(-energies))
        if effective < min(_FEW, needed):
            some = tried[: max(_PARTICLES, shape.numel())]
            if len(some) < shape.numel():
                some = some[torch.randint(len(some), (shape.numel(),), device=some.device)]
            x = self._moved(potential, unconstrain(potential, some))
            chosen = x[torch.randperm(len(x), device=x.device)[: shape.numel()]]
            return chosen.reshape(*shape, *chosen.shape[1:])
        if effective < needed:
            warn_user(
                f"the effective sample size of {len(tried):,} draws of the prior is {effective:.0f}: draws by "
                "resampling are copies of a few, so run chains from them with a warm-up, or pass a narrower prior"
            )
        index = torch.multinomial(torch.softmax(-energies, 0), max(1, shape.numel()), replacement=True)
        chosen = tried[index[: shape.numel()]].reshape(*shape, *self.prior.event_shape)
        return unconstrain(potential, chosen)

    @torch.no_grad()
    def _tried(self, count: int, needed: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Draw from the prior until enough draws count; return them and their energies, float64."""
        size = min(_AT_MOST, max(_AT_LEAST, _TRIALS * count)) if self.tried is None else self.tried
        most = _AT_MOST if self.tried is None else self.tried
        draws: list[Tensor] = []
        energies: list[Tensor] = []
        while not draws or (float(effective_size(-torch.cat(energies))) < needed and (len(draws) + 1) * size <= most):
            draws.append(self.prior.sample((size,)).to(like))
            energies += [self.likelihood(part).double() for part in draws[-1].split(self.at_once)]
        return torch.cat(draws), torch.cat(energies)

    def _moved(self, potential: Potential, x: Tensor) -> Tensor:
        """Move unconstrained draws of the prior to the posterior."""
        base: Potential = DistributionBase(self.prior)
        if isinstance(potential, Constrained):
            base = Constrained(base, potential.support)
        return pilot_run(base, potential, x, MALA(1.0), steepness=_STEEPNESS, rest=_LAST).x

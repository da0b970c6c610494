"""Normalizers of whole batches of recovery distributions, and the likelihood of the sampling process they make up.

Samples come from a chain of conditionals, p(x_{T−1}) Π p(x_t | x_{t+1}), not from level 0's own density.  The chain's
likelihood has the bound of diffusion models, with q the noising: log p(x_0) ≥ E_q[log p(x_{T−1}) +
Σ (log p(x_t | x_{t+1}) − log q(x_{t+1} | x_t))] (Sohl-Dickstein et al. 2015), every conditional normalized by annealing
from its own tilt.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from energyppl._checks import check_count, check_data
from energyppl.distributions import RecoveryDistribution
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.levels.contract import LevelModel
from energyppl.inference.levels.recovery import recovery_kernel, recovery_potential, tilt
from energyppl.inference.normalizing.annealing import anneal, log_mean_exp, pilot_run
from energyppl.inference.sampling.run_chain import run_chain
from energyppl.integration.estimates import Estimate, LogNormalizer
from energyppl.potentials.algebra import RecoveryPotential, sum_event
from energyppl.potentials.bases import GaussianBase

__all__ = ["ProcessLikelihood", "ProcessModel", "RecoveryNormalizers", "process_log_likelihood", "recovery_normalizers"]

_PILOT = 64  # particles


class RecoveryNormalizers(NamedTuple):
    """log Z of a batch of recovery distributions, in nats, ``(*batch,)`` each."""

    estimate: Tensor  # logarithm of an unbiased estimate of Z: below log Z on average
    standard_error: Tensor  # by the delta method
    upper_bound: Tensor | None  # above log Z on average, if draws were given
    evaluations: int


def recovery_normalizers(
    target: RecoveryDistribution | RecoveryPotential,
    *,
    particles: int = 64,
    temperatures: int | None = None,
    draws: Tensor | None = None,
) -> RecoveryNormalizers:
    """Estimate log Z of every recovery distribution of a batch by annealing from its own Gaussian tilt.

    Temperatures and step sizes are the same for all of the batch, found by a pilot run.

    Args:
        target: tilted everywhere.
        particles: for each distribution.
        temperatures: temperatures; as many as a pilot run finds if None.
        draws: of the distributions, ``(m, *batch, *event)``, for reverse runs and an upper bound.

    Raises:
        InvalidInput: if a tilt is infinitely wide: such a level has no base of its own.
    """
    check_count("particles", particles, at_least=4)
    potential = target.potential if isinstance(target, RecoveryDistribution) else target
    assert isinstance(potential, RecoveryPotential)
    base = GaussianBase.of_tilt(potential)
    kernel = MALA(float(base.scale.mean()))
    pilot = pilot_run(base, potential, base.sample(min(particles, _PILOT)), kernel, steepness=0.9)
    schedule = pilot.schedule if temperatures is None else pilot.schedule.resampled(temperatures)
    ahead = anneal(base, potential, schedule, base.sample(particles), kernel)
    log_weights, evaluations = ahead.log_weights, pilot.evaluations + ahead.evaluations
    estimate = log_mean_exp(log_weights)
    relative = torch.exp(log_weights - estimate)
    upper = None
    if draws is not None:
        back = anneal(base, potential, schedule, draws.to(base.loc.device), kernel, reverse=True)
        upper, evaluations = -log_mean_exp(back.log_weights), evaluations + back.evaluations
    return RecoveryNormalizers(
        estimate,
        relative.std(0) / math.sqrt(particles),
        upper,
        evaluations,
    )


class ProcessModel(LevelModel, Protocol):
    """Protocol of a model whose sampling process has a likelihood; ``energyppl.models.RecoveryEBM`` follows it."""

    scale: Tensor

    def log_normalizer(self, level: int = 0) -> LogNormalizer:
        """Return log Z of a level's marginal in data coordinates."""
        ...


class ProcessLikelihood(NamedTuple):
    """The bound on the mean log-likelihood of the sampling process, from two sides."""

    lower: Estimate
    """With reverse runs: not above the process's log-likelihood on average, if the chains are draws of the model."""
    upper: Estimate
    """With forward runs: above the bound on average, so it may exceed the likelihood itself."""
    evaluations: int


def process_log_likelihood(
    model: ProcessModel, x: Tensor, *, particles: int = 64, temperatures: int | None = None, steps: int = 40
) -> ProcessLikelihood:
    """Bound the mean log density, in nats and data coordinates, that the sampling process gives to points.

    Args:
        model: trained, its step sizes tuned.
        x: points of level 0, ``(n, *event)``: data with that level's noise, ``ebm.diffuse(data, 0)``.
        particles: of the runs that normalize each conditional.
        temperatures: as in :func:`recovery_normalizers`.
        steps: moves of the chains, begun at the data, from whose ends reverse runs go.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> x = ebm.diffuse(torch.randn(20, 2), level=0)
        >>> found = ep.normalizing.process_log_likelihood(ebm, x, particles=8, temperatures=4, steps=2)
        >>> found._fields
        ('lower', 'upper', 'evaluations')
    """
    check_data("x", x, model.event_shape, at_least=2)
    schedule, shape, top = model.schedule, model.event_shape, model.schedule.levels - 1
    z, evaluations = model.to_unit(x), 0
    lower, upper = (torch.zeros(len(x), dtype=torch.float64, device=z.device) for _ in range(2))
    alphas, sigmas = tilt(schedule)
    for t in range(top + schedule.tilted_top):
        alpha, sigma = float(alphas[t]), float(sigmas[t])
        noisy = alpha * z + sigma * torch.randn_like(z)
        level = torch.full((len(z),), t, device=z.device)
        potential = recovery_potential(model, noisy, level)
        wide = z.expand(particles, *z.shape)
        moved = run_chain(
            recovery_kernel(model.level_kernel, schedule, level.expand(particles, -1)),
            _widened(potential, wide),
            wide,
            steps,
        )
        found = recovery_normalizers(potential, particles=particles, temperatures=temperatures, draws=moved.state.x)
        evaluations += found.evaluations + round(moved.evaluations * len(z) * particles)
        assert found.upper_bound is not None
        with torch.no_grad():
            recovered = -potential(z).double()
        noised = -_gaussian_energy(noisy, alpha * z, sigma, shape)
        lower += recovered - found.upper_bound - noised
        upper += recovered - found.estimate - noised
        z = noisy
    if schedule.tilted_top:
        spread = float(schedule.marginal_std[-1])
        last, error = -_gaussian_energy(z, torch.zeros_like(z), spread, shape), 0.0
    else:
        found_z = model.log_normalizer(top)
        with torch.no_grad():
            last = -model.potential(torch.tensor(top, device=z.device))(z).double()
        last, error = last - (found_z.estimate - float(model.scale.log().sum())), found_z.standard_error
    jacobian = float(model.scale.log().sum())
    sides = []
    for side in (lower, upper):
        values = side + last - jacobian
        sides.append(
            Estimate(float(values.mean()), math.hypot(float(values.std()) / math.sqrt(len(values)), error), error)
        )
    return ProcessLikelihood(sides[0], sides[1], evaluations)


def _widened(potential: RecoveryPotential, x: Tensor) -> RecoveryPotential:
    """Return the same Gaussian tilts for several chains each."""
    sigma = torch.as_tensor(potential.sigma).to(x).expand(potential.center.shape)
    return RecoveryPotential(potential.potential, potential.center.expand(x.shape), sigma.expand(x.shape))


def _gaussian_energy(x: Tensor, mean: Tensor, sigma: float, event_shape: torch.Size) -> Tensor:
    z = ((x - mean) / sigma).double()
    return sum_event(0.5 * z * z + math.log(sigma) + 0.5 * math.log(2.0 * math.pi), event_shape)

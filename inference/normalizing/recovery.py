"""Normalizers of whole batches of recovery distributions, and the likelihood of the sampling process they make up.

Samples come from a chain of conditionals, p(x_{T−1}) Π p(x_t | x_{t+1}), not from level 0's own density.  The chain's
likelihood has the bound of diffusion models, with q the noising: log p(x_0) ≥ E_q[log p(x_{T−1}) +
Σ (log p(x_t | x_{t+1}) − log q(x_{t+1} | x_t))] (Sohl-Dickstein et al. 2015), every conditional normalized by annealing
from its own tilt.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_count, check_data, checked
from energyppl.distributions import RecoveryDistribution
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.levels.contract import LevelModel
from energyppl.inference.levels.recovery import recovery_kernel, recovery_potential, tilt
from energyppl.inference.normalizing.annealing import anneal, log_mean_exp, pilot_run
from energyppl.inference.sampling.run_chain import run_chain
from energyppl.integration.estimates import Estimate
from energyppl.potentials.algebra import RecoveryPotential, sum_event
from energyppl.potentials.bases import GaussianBase

__all__ = ["ProcessLikelihood", "RecoveryNormalizers", "process_log_likelihood", "recovery_normalizers"]

_PILOT = 64  # particles


class RecoveryNormalizers(NamedTuple):
    """log Z of a batch of recovery distributions, in nats, ``(*batch,)`` each.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> target = ebm.recovery(torch.randn(4, 2), 0)
        >>> found = ep.normalizing.recovery_normalizers(target, particles=16, temperatures=4)
        >>> found.standard_error.shape, found.upper_bound  # which takes draws of the distributions
        (torch.Size([4]), None)
    """

    estimate: Tensor  # logarithm of an unbiased estimate of Z: below log Z on average
    standard_error: Tensor  # by the delta method
    upper_bound: Tensor | None  # above log Z on average, if draws were given
    evaluations: int


@checked
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

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> target = ebm.recovery(torch.randn(4, 2), 0)
        >>> ep.normalizing.recovery_normalizers(target, particles=16, temperatures=4).estimate.shape
        torch.Size([4])
    """
    check_count("particles", particles, at_least=4)
    if temperatures is not None:
        check_count("temperatures", temperatures)
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


class ProcessLikelihood(NamedTuple):
    """The bound on the mean log-likelihood of the sampling process, from two sides.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> x = ebm.diffuse(torch.randn(20, 2), level=0)
        >>> found = ep.normalizing.process_log_likelihood(ebm, x, particles=8, temperatures=4, steps=2)
        >>> found.evaluations > 0
        True
    """

    lower: Estimate
    """With reverse runs: not above the process's log-likelihood on average, if the chains are draws of the model."""
    upper: Estimate
    """With forward runs: above the bound on average, so it may exceed the likelihood itself."""
    evaluations: int


@checked
def process_log_likelihood(
    model: LevelModel, x: Tensor, *, particles: int = 64, temperatures: int | None = None, steps: int = 40
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
    check_count("particles", particles, at_least=2)
    check_count("steps", steps)
    if temperatures is not None:
        check_count("temperatures", temperatures)
    z, evaluations = model.to_unit(x.to(model.loc)), 0
    lower, upper = (torch.zeros(len(x), dtype=torch.float64, device=z.device) for _ in range(2))
    for t in range(model.schedule.levels - 1 + model.schedule.tilted_top):
        z, below, above, cost = _step_bounds(model, z, t, particles, temperatures, steps)
        lower, upper, evaluations = lower + below, upper + above, evaluations + cost
    last, error = _noisiest(model, z)
    jacobian = float(model.scale.log().sum())
    sides = []
    for side in (lower, upper):
        values = side + last - jacobian
        sides.append(
            Estimate(float(values.mean()), math.hypot(float(values.std()) / math.sqrt(len(values)), error), error)
        )
    return ProcessLikelihood(sides[0], sides[1], evaluations)


class _StepBounds(NamedTuple):
    """One step of noising, and the bounds on what it adds to the log density of the process, nats, ``(n,)`` each."""

    noisy: Tensor  # (n, *event)
    lower: Tensor
    upper: Tensor
    evaluations: int


def _step_bounds(
    model: LevelModel, z: Tensor, t: int, particles: int, temperatures: int | None, steps: int
) -> _StepBounds:
    """Add noise to points of level ``t``, and bound log p(x_t | x_{t+1}) − log q(x_{t+1} | x_t)."""
    schedule, alphas, sigmas = model.schedule, *tilt(model.schedule)
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
    assert found.upper_bound is not None
    with torch.no_grad():
        recovered = -potential(z).double()
    noised = -_gaussian_energy(noisy, alpha * z, sigma, model.event_shape)
    return _StepBounds(
        noisy,
        recovered - found.upper_bound - noised,
        recovered - found.estimate - noised,
        found.evaluations + round(moved.evaluations * len(z) * particles),
    )


def _noisiest(model: LevelModel, z: Tensor) -> tuple[Tensor, float]:
    """Return the log density that the process begins with at points of the noisiest level, and log Z's error."""
    schedule, top = model.schedule, model.schedule.levels - 1
    if schedule.tilted_top:
        spread = float(schedule.marginal_std[-1])
        return -_gaussian_energy(z, torch.zeros_like(z), spread, model.event_shape), 0.0
    found = model.log_normalizer(top)
    with torch.no_grad():
        energy = model.potential(torch.tensor(top, device=z.device))(z).double()
    return -energy - (found.estimate - float(model.scale.log().sum())), found.standard_error


def _widened(potential: RecoveryPotential, x: Tensor) -> RecoveryPotential:
    """Return the same Gaussian tilts for several chains each."""
    sigma = torch.as_tensor(potential.sigma).to(x).expand(potential.center.shape)
    return RecoveryPotential(potential.potential, potential.center.expand(x.shape), sigma.expand(x.shape))


def _gaussian_energy(x: Tensor, mean: Tensor, sigma: float, event_shape: torch.Size) -> Tensor:
    z = ((x - mean) / sigma).double()
    return sum_event(0.5 * z * z + math.log(sigma) + 0.5 * math.log(2.0 * math.pi), event_shape)

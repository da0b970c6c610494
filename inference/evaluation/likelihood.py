"""Likelihoods, entropies and divergences of a density whose log Z is known with an uncertainty."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from energyppl._checks import check_between, check_data, check_positive, check_shape, checked, shape_text
from energyppl.autodiff.devices import beside
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput
from energyppl.integration.estimates import Estimate, LogNormalizer
from energyppl.potentials.points import can_expand

__all__ = ["bits_per_dimension", "entropy", "kl_by_samples", "mean_log_likelihood"]


def mean_log_likelihood(
    p: EnergyDistribution, x: Tensor, log_z: LogNormalizer, *, confidence: float | None = None
) -> Estimate:
    """Estimate the mean log density of rows, ``(n, *event)``, in nats, with the uncertainty of rows and log Z.

    It is −∞, without an error, if a row lies outside of the support of p.

    Args:
        p: the density, such as ``ebm.marginal()``.
        x: independent rows, held out from training.
        log_z: its log Z, such as ``ebm.log_normalizer()``.
        confidence: of the interval; that of ``log_z`` if None.

    Raises:
        InvalidInput: for fewer than two rows, rows of another shape, or energies that are NaN or −∞.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> log_z = ep.log_normalizer(normal, samples=torch.randn(2000, 2))
        >>> found = ep.evaluation.mean_log_likelihood(ep.EnergyDistribution(normal), torch.randn(2000, 2), log_z)
        >>> abs(found.value + 2.838) < 0.2  # minus the entropy, log(2 π e)
        True
    """
    return _mean(-_energies("p", p, x), _log_z("log_z", log_z), -1.0, confidence)


def entropy(
    p: EnergyDistribution, samples: Tensor, log_z: LogNormalizer, *, confidence: float | None = None
) -> Estimate:
    """Estimate the entropy in nats, E_p[U] + log Z, from independent samples of p, ``(n, *event)``.

    Raises:
        InvalidInput: as :func:`mean_log_likelihood`, and if a sample lies outside of the support of p.

    Example:
        >>> bell = ep.EnergyDistribution(ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (1,)))
        >>> log_z = ep.log_normalizer(bell, samples=torch.randn(1_000, 1))
        >>> abs(ep.evaluation.entropy(bell, torch.randn(1_000, 1), log_z).value - 1.419) < 0.2
        True
    """
    return _mean(_own_energies(p, samples), _log_z("log_z", log_z), 1.0, confidence)


def kl_by_samples(
    p: EnergyDistribution,
    q: EnergyDistribution,
    samples: Tensor,
    log_z_p: LogNormalizer,
    log_z_q: LogNormalizer,
) -> Estimate:
    """Estimate KL(p ‖ q) in nats, E_p[U_q − U_p] + log Z_q − log Z_p, from independent samples of p, ``(n, *event)``.

    It is ∞, without an error, if a sample lies outside of the support of q.  In one and two dimensions
    :func:`energyppl.integration.kl_divergence` integrates it.

    Raises:
        InvalidInput: as :func:`mean_log_likelihood`, and if a sample lies outside of the support of p.

    Example:
        >>> p = ep.EnergyDistribution(ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (1,)))
        >>> log_z = ep.log_normalizer(p, samples=torch.randn(1_000, 1))
        >>> ep.evaluation.kl_by_samples(p, p, torch.randn(1_000, 1), log_z, log_z).value
        0.0
    """
    ratio = _energies("q", q, samples) - _own_energies(p, samples)
    return _mean(ratio, _log_z("log_z_q", log_z_q) - _log_z("log_z_p", log_z_p), 1.0, None)


@checked
def bits_per_dimension(log_likelihood: Estimate, event_shape: Sequence[int], *, gap: float | Tensor = 1.0) -> Estimate:
    """Convert to bits for each dimension of discrete data that were spread uniformly over their gaps (dequantized).

    The density of dequantized data bounds the discrete probability: log P(x) ≥ E_u[log p(x + u)] + Σ log gap (Theis et
    al. 2016), so this is an upper bound on the bits, up to the uncertainty of log Z.

    Args:
        log_likelihood: mean log density of the dequantized data, in nats.
        event_shape: of one point.
        gap: between neighbouring values, in the units of the density's points: one number, or one for each coordinate,
            ``(*event)``.  Pixels of ``Images.dequantized`` have 1 / levels, so 1 / 256 for bytes; those of
            ``x + u / 255`` have 1 / 255.

    Raises:
        InvalidInput: if ``gap`` is not positive, or does not fit the event shape.

    Example:
        >>> import math
        >>> nats = ep.Estimate(-4.0 * math.log(2.0), 0.0)  # of two coordinates
        >>> round(ep.evaluation.bits_per_dimension(nats, (2,)).value, 3)
        2.0
    """
    check_positive("gap", gap)
    event_shape = check_shape("event_shape", event_shape)
    gaps = torch.as_tensor(gap, dtype=torch.float64)
    if not can_expand(gaps.shape, event_shape):
        raise InvalidInput(
            f"gap must be one number, or one for each coordinate of {shape_text(event_shape)}; got "
            f"{shape_text(gaps.shape)}"
        )
    total = float(gaps.log().expand(event_shape).sum())
    unit = math.prod(event_shape) * math.log(2.0)
    return Estimate(
        -(log_likelihood.value + total) / unit,
        log_likelihood.standard_error / unit,
        log_likelihood.from_log_z / unit,
        log_likelihood.confidence,
    )


def _energies(name: str, p: EnergyDistribution, x: Tensor) -> Tensor:
    """Evaluate the energies of rows in float64; infinite outside of the support."""
    if not isinstance(p, EnergyDistribution):
        raise InvalidInput(
            f"{name} must be an EnergyDistribution; got {type(p).__name__}: pass ebm.marginal(), or "
            "EnergyDistribution(potential)"
        )
    check_data("x", x, p.event_shape, at_least=2)
    with torch.no_grad():
        return p.energy(beside(p, x)).double()


def _own_energies(p: EnergyDistribution, samples: Tensor) -> Tensor:
    """Evaluate the energies of a density's own samples, which its support must contain."""
    energies = _energies("p", p, samples)
    outside = int(torch.isposinf(energies).sum())
    if outside:
        raise InvalidInput(
            f"energies must be finite at samples of p; got {outside} of {len(energies)} where p is zero: pass samples "
            "of p itself"
        )
    return energies


def _log_z(name: str, value: LogNormalizer) -> LogNormalizer:
    if not isinstance(value, LogNormalizer):
        raise InvalidInput(
            f"{name} must be a LogNormalizer; got {type(value).__name__}: pass what log_normalizer(…) returned, of a "
            "model or an energy"
        )
    return value


def _mean(values: Tensor, log_z: LogNormalizer, sign: float, confidence: float | None) -> Estimate:
    """Average values of one sign of infinity at most, and add log Z."""
    confidence = log_z.confidence if confidence is None else confidence
    check_between("confidence", confidence, 0.0, 1.0)
    infinite = math.copysign(math.inf, sign)
    bad = ~torch.isfinite(values) & (values != infinite)
    if bool(bad.any()):
        raise InvalidInput(f"energies must not be NaN or −∞; got {int(bad.sum())} of {len(values)}: drop those rows")
    if bool(torch.isinf(values).any()):  # one row says so, whatever log Z is
        return Estimate(infinite, 0.0, 0.0, confidence)
    spread = float(values.std()) / math.sqrt(len(values))
    return Estimate(
        float(values.mean()) + sign * log_z.estimate,
        math.hypot(spread, log_z.standard_error),
        log_z.standard_error,
        confidence,
    )

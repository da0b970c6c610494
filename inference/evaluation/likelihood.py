"""What a density with a log Z of known uncertainty says of data: likelihoods, bits, entropies, divergences."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from energyppl._checks import check_data, check_positive
from energyppl.autodiff.devices import beside
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput
from energyppl.integration.estimates import Estimate, LogNormalizer

__all__ = ["bits_per_dimension", "entropy", "kl_by_samples", "mean_log_likelihood"]


def mean_log_likelihood(
    p: EnergyDistribution, x: Tensor, log_z: LogNormalizer, *, level: float | None = None
) -> Estimate:
    """Mean log density of rows, ``(n, *event)``, in nats, with the uncertainty of the rows and of log Z.

    Args:
        p: the density, such as ``ebm.marginal()``.
        x: independent rows, held out from training.
        log_z: its log Z, such as ``ebm.log_normalizer()``.
        level: of the interval; that of ``log_z`` if None.
    """
    return _mean(-_energies(p, x), log_z, -1.0, level)


def entropy(p: EnergyDistribution, samples: Tensor, log_z: LogNormalizer, *, level: float | None = None) -> Estimate:
    """Entropy in nats, E_p[U] + log Z, from independent samples of p, ``(n, *event)``."""
    return _mean(_energies(p, samples), log_z, 1.0, level)


def kl_by_samples(
    p: EnergyDistribution,
    q: EnergyDistribution,
    samples: Tensor,
    log_z_p: LogNormalizer,
    log_z_q: LogNormalizer,
) -> Estimate:
    """KL(p ‖ q) in nats, E_p[U_q − U_p] + log Z_q − log Z_p, from independent samples of p, ``(n, *event)``.

    In one and two dimensions :func:`energyppl.kl_divergence` integrates it.
    """
    return _mean(_energies(q, samples) - _energies(p, samples), log_z_q - log_z_p, 1.0, None)


def bits_per_dimension(log_likelihood: Estimate, event_shape: Sequence[int], *, gap: float | Tensor = 1.0) -> Estimate:
    """Bits for each dimension of discrete data that were spread uniformly over their gaps (dequantized).

    The density of dequantized data bounds the discrete probability: log P(x) ≥ E_u[log p(x + u)] + Σ log gap (Theis et
    al. 2016), so this is an upper bound on the bits, up to the uncertainty of log Z.

    Args:
        log_likelihood: mean log density of the dequantized data, in nats.
        event_shape: of one point.
        gap: between neighbouring values, in the units of the density's points: one number, or one for each coordinate,
            ``(*event)``.  Pixels of ``Images.dequantized`` have 1 / levels, so 1 / 256 for bytes; those of
            ``x + u / 255`` have 1 / 255.
    """
    check_positive("gap", gap)
    size = math.prod(event_shape)
    total = float(torch.as_tensor(gap, dtype=torch.float64).log().expand(torch.Size(event_shape)).sum())
    unit = size * math.log(2.0)
    return Estimate(
        -(log_likelihood.value + total) / unit,
        log_likelihood.standard_error / unit,
        log_likelihood.from_log_z / unit,
        log_likelihood.level,
    )


def _energies(p: EnergyDistribution, x: Tensor) -> Tensor:
    check_data("x", x, p.event_shape, at_least=2)
    with torch.no_grad():
        return p.energy(beside(p, x)).double()


def _mean(values: Tensor, log_z: LogNormalizer, sign: float, level: float | None) -> Estimate:
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise InvalidInput(f"energies must be finite; got {bad} of {len(values)} that are not: drop those")
    spread = float(values.std()) / math.sqrt(len(values))
    return Estimate(
        float(values.mean()) + sign * log_z.estimate,
        math.hypot(spread, log_z.standard_error),
        log_z.standard_error,
        log_z.level if level is None else level,
    )

"""Models made of models: products, mixtures, and posteriors given a measurement.

Each is a view: it holds the models that it is made of, combines their potentials at every level, and takes coordinates,
schedule and step sizes of the first one; so it samples, recovers, normalizes and goes into Pyro as any other does.
Models that were standardized to other data have their noise in other units: each is asked at the level of its own that
is about as noisy.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from energyppl._checks import append_dims, check_positive, checked, shape_text
from energyppl.errors import InvalidInput, warn_user
from energyppl.models.recovery import RecoveryEBM, RecoveryView
from energyppl.potentials.algebra import Potential, Scaled, Sum
from energyppl.potentials.composed import LogSumExp, Measured, Standardized

__all__ = ["LinearMeasurement", "differences", "measured", "mixture", "product"]


@checked
def product(*ebms: RecoveryEBM, weights: Sequence[float] | None = None) -> RecoveryEBM:
    """Multiply experts, ``Π p_i^{w_i}`` at every level; a negative weight is a negation (Du, Li & Mordatch 2020).

    The product of noised densities is not the noised product, so the levels above 0 are a path towards level 0 and no
    more; at level 0 the energy is the weighted sum.

    Args:
        ebms: models on the same schedule, device and of the same points; the first one's coordinates are kept.
        weights: one for each; 1 if None.

    Raises:
        InvalidInput: if they don't fit together, or for weights that are not finite or not as many.

    Example:
        >>> schedule = ep.NoiseSchedule.cosine(levels=3)
        >>> one, other = (ep.RecoveryEBM(ep.MLPEnergy((2,)), schedule) for _ in range(2))
        >>> both, x = ep.product(one, other).potential(), torch.randn(5, 2)
        >>> torch.allclose(both(x), one.potential()(x) + other.potential()(x), atol=1e-5)
        True
    """
    factors = [1.0] * len(ebms) if weights is None else [float(w) for w in weights]
    _check_parts(ebms, factors)
    return _Product(ebms, factors)


@checked
def mixture(*ebms: RecoveryEBM, weights: Sequence[float] | None = None) -> RecoveryEBM:
    """Unite densities, ``Σ w_i exp(−U_i)`` at every level.

    The energies have normalizers of their own: a density's share is ``w_i Z_i``, so for shares s_i pass
    ``w_i = s_i exp(−log_normalizer_i)``.  Samples have about these shares if training tied the levels and the
    models' scales are equal, since the noised mixture is then the mixture of the noised; else the levels above 0 are a
    path towards level 0, on which shares may shift (draw from the models themselves where that matters).

    Args:
        ebms: models on the same schedule, device and of the same points; the first one's coordinates are kept.
        weights: one positive number for each; 1 if None.

    Raises:
        InvalidInput: if they don't fit together, or for weights that are not positive or not as many.

    Example:
        >>> schedule = ep.NoiseSchedule.cosine(levels=3)
        >>> one, other = (ep.RecoveryEBM(ep.MLPEnergy((2,)), schedule) for _ in range(2))
        >>> either, x = ep.mixture(one, other).potential(), torch.randn(5, 2)
        >>> torch.allclose(-either(x), torch.logaddexp(-one.potential()(x), -other.potential()(x)), atol=1e-5)
        True
    """
    factors = [1.0] * len(ebms) if weights is None else [float(w) for w in weights]
    _check_parts(ebms, factors)
    for weight in factors:
        check_positive("weights of a mixture", weight)
    _warn_of_far(ebms)
    return _Mixture(ebms, factors)


class LinearMeasurement(nn.Module):
    """``b = A x + noise`` of a clean point: inpainting, blur, down-sampling, or any matrix.

    Args:
        matrix: A, ``(m, d)`` over the flattened event.
        observed: b, ``(m,)``.
        noise: standard deviation of the measurement, in data units; may be 0 for a model whose level 0 has noise of its
            own.

    Raises:
        InvalidInput: for shapes that don't fit, a matrix that measures nothing, or negative noise.

    Example:
        >>> image, seen = torch.zeros(2, 2), torch.tensor([[True, False], [True, True]])
        >>> ep.LinearMeasurement.mask(image, seen).matrix.shape
        torch.Size([3, 4])
    """

    matrix: Tensor
    observed: Tensor

    @checked
    def __init__(self, matrix: Tensor, observed: Tensor, noise: float = 0.0) -> None:
        super().__init__()
        if matrix.dim() != 2 or observed.shape != matrix.shape[:1]:
            raise InvalidInput(
                f"matrix must be (m, d) and observed (m,); got {shape_text(matrix.shape)} and "
                f"{shape_text(observed.shape)}"
            )
        if not bool((matrix != 0).any(1).all()) or not len(matrix):
            raise InvalidInput("every row of the matrix must measure something; got a row of zeros, or no row")
        if not (math.isfinite(noise) and noise >= 0.0):
            raise InvalidInput(f"noise must be 0 or positive, and finite; got {noise}")
        if not bool(torch.isfinite(observed).all()):
            raise InvalidInput("observed must be finite: leave out what was not measured")
        self.register_buffer("matrix", matrix)
        self.register_buffer("observed", observed)
        self.noise = noise

    @classmethod
    def mask(cls, image: Tensor, seen: Tensor, noise: float = 0.0) -> "LinearMeasurement":
        """Measure (for inpainting) the values of ``image``, ``(*event)``, where ``seen``, a boolean mask, is True.

        Raises:
            InvalidInput: for a mask of another shape or dtype, or one that is False everywhere.
        """
        if seen.dtype != torch.bool or seen.shape != image.shape:
            raise InvalidInput(
                f"seen must be a boolean mask of shape {shape_text(image.shape)}; got {seen.dtype} "
                f"{shape_text(seen.shape)}"
            )
        if not bool(seen.any()):
            raise InvalidInput(
                "seen must be True somewhere; got all False: nothing was measured, sample the model itself"
            )
        rows = torch.eye(image.numel(), dtype=image.dtype, device=image.device)[seen.flatten()]
        return cls(rows, image[seen], noise)


def measured(ebm: RecoveryEBM, measurement: LinearMeasurement) -> RecoveryEBM:
    """Condition a model on a linear measurement; at level 0 the posterior is exact.

    To the energy of level t it adds ``½ |A x_t / ᾱ_t − b|² / (noise² + A Aᵀ σ̄_t² / ᾱ_t²)``, row by row: what a
    measurement of the clean point says of x_t if noise is all that x_t adds (the pseudo-likelihood of Jalal et al.
    2021, with the noise's own variance).  Above level 0 it only leads the way.  At level 0 the clean point is x_0 / ᾱ₀
    up to noise σ̄₀, whose variance counts only where ``noise`` is less than it.  Samples come down the levels; follow
    them by chains of :meth:`RecoveryEBM.marginal` for draws that are the posterior's own.  Where the model denoises (a
    continuous network of images), each level's mean of the clean image is corrected by the measurement on the way.

    Raises:
        InvalidInput: if the matrix is for points of another size, or the model is no RecoveryEBM.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> sum_seen = ep.LinearMeasurement(torch.ones(1, 2), observed=torch.tensor([0.5]), noise=0.1)
        >>> ep.measured(ebm, sum_seen).sample((5,)).shape
        torch.Size([5, 2])
    """
    _check_kind("a measurement", ebm)
    if not isinstance(measurement, LinearMeasurement):
        raise InvalidInput(f"measurement must be a LinearMeasurement; got {type(measurement).__name__}: make one")
    size = math.prod(ebm.event_shape)
    if measurement.matrix.shape[1] != size:
        raise InvalidInput(
            f"matrix must have a column for each of the {size} coordinates of {shape_text(ebm.event_shape)}; got "
            f"{measurement.matrix.shape[1]}"
        )
    return _Measurement(ebm, measurement)


class _Composition(RecoveryView):
    """Several models, in the coordinates of the first."""

    def __init__(self, ebms: Sequence[RecoveryEBM], weights: Sequence[float]) -> None:
        super().__init__(ebms[0], None)
        self.others = nn.ModuleList(ebms[1:])
        self.weights = tuple(weights)

    def of_parts(self, change: Callable[[RecoveryEBM], RecoveryEBM]) -> "_Composition":
        """Return the same of other models; itself if none is another."""
        ebms = [self.base, *cast("list[RecoveryEBM]", list(self.others))]
        changed = [change(ebm) for ebm in ebms]
        return self if all(map(operator.is_, changed, ebms)) else type(self)(changed, self.weights)

    def _parts(self, level: int | Tensor) -> list["_Part"]:
        """Return each model's energy at a level, asked in the first one's standardized coordinates."""
        first, others = self.base, cast("list[RecoveryEBM]", list(self.others))
        return [_Part(first.potential(level), 0.0), *(_seen_from(first, ebm, level) for ebm in others)]


class _Product(_Composition):
    def potential(self, level: int | Tensor = 0) -> Potential:
        return Sum(*map(Scaled, (part.potential for part in self._parts(level)), self.weights))


class _Mixture(_Composition):
    def potential(self, level: int | Tensor = 0) -> Potential:
        parts = self._parts(level)
        weights = [math.log(weight) + part.log_weight for weight, part in zip(self.weights, parts, strict=True)]
        return LogSumExp(tuple(part.potential for part in parts), tuple(weights))


class _Part(NamedTuple):
    """A model's energy in another one's coordinates."""

    potential: Potential
    log_weight: float | Tensor  # by which the mass of the other level, in these coordinates, is that of level 0


def _seen_from(first: RecoveryEBM, ebm: RecoveryEBM, level: int | Tensor) -> _Part:
    """Return the energy of a model at a level of another one, in whose standardized coordinates points come.

    There x_t = ᾱ_t z + σ̄_t ε.  Of the model's own clean points, z' = (loc − loc' + scale z) / scale', noise of as many
    units has the log-SNR λ_t + 2 log(scale' / scale): the nearest of its levels is taken, t', and its points stretched
    to the standard deviation that unit data of its own have at level t.  Level 0 counts as clean: there the model's
    own level 0 is asked, so that the densities of the data are combined as they are.
    """
    like, own, theirs = first.loc, first.schedule, ebm.schedule
    shift, ratio = ((ebm.loc - first.loc) / first.scale).to(like), (ebm.scale / first.scale).to(like)
    if not bool((ratio != 1.0).any()) and not bool((shift != 0.0).any()):
        return _Part(ebm.potential(level), 0.0)
    stretch = ratio.expand(ebm.event_shape)
    wanted = own.log_snr[: own.levels].to(like) + 2.0 * stretch.log().mean()
    nearest = (wanted[:, None] - theirs.log_snr[: theirs.levels].to(like)).abs().argmin(1)
    nearest[0] = 0
    alpha, sigma = (values[: own.levels].to(like).clone() for values in (own.alpha_bar, own.sigma_bar))
    std = theirs.marginal_std.to(like)[nearest]
    # Energies of a level are normalized in coordinates of unit variance, so that exp(−U) has a mass of std^d.
    growth = (own.marginal_std[: own.levels].to(like) / own.marginal_std[0]).log() - (std / std[0]).log()
    alpha[0], sigma[0], std[0] = 1.0, 0.0, 1.0
    at = torch.as_tensor(level, device=like.device)
    like = like.new_empty((*at.shape, *ebm.event_shape))
    alpha, sigma, std, growth = (append_dims(values[at], like) for values in (alpha, sigma, std, growth))
    scale = (alpha.square() * stretch.square() + sigma.square()).sqrt() / std
    log_weight = (stretch.log() - scale.log() + growth).expand_as(like).reshape(*at.shape, -1).sum(-1)
    potential = ebm.potential(int(nearest[level]) if isinstance(level, int) else nearest[at])
    return _Part(Standardized(potential, alpha * shift, scale), log_weight)


class _Measurement(RecoveryView):
    """A model given a linear measurement of the clean point."""

    def __init__(self, base: RecoveryEBM, measurement: LinearMeasurement) -> None:
        super().__init__(base, base.initializer)
        self.measurement = measurement

    def of_parts(self, change: Callable[[RecoveryEBM], RecoveryEBM]) -> "_Measurement":
        """Return the same measurement of another model; itself if it is no other."""
        changed = change(self.base)
        return self if changed is self.base else _Measurement(changed, self.measurement)

    @property
    def denoises(self) -> bool:
        """True if samples come by the prior's own denoiser, corrected by the measurement."""
        return self.base.denoises

    def denoised_unit(self, noisy: Tensor, level: int | Tensor) -> Tensor:
        """Return about E[x_0 | x_t, b], standardized: the prior's mean, its error taken to be Gaussian, given b.

        The error's variance is that of a unit Gaussian's posterior, σ̄² / (ᾱ² + σ̄²), in every direction (as Song et al.
        2023, section 3.2); with no noise of the measurement it is the projection of Wang et al. (2023, eq. 13).
        """
        mean = self.base.denoised_unit(noisy, level)
        matrix, noise = self.measurement.matrix.to(mean), self.measurement.noise
        rows = matrix * self.scale.flatten()
        level = torch.as_tensor(level)
        alpha, sigma = (float(value[level]) for value in (self.schedule.alpha_bar, self.schedule.sigma_bar))
        variance = sigma**2 / (alpha**2 + sigma**2)
        ridge = max(noise**2, 1e-6 * variance) * torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        misfit = self.measurement.observed.to(mean) - matrix @ self.loc.flatten() - mean.flatten(-3) @ rows.mT
        solved = torch.linalg.solve(variance * rows @ rows.mT + ridge, misfit.mT).mT
        corrected: Tensor = mean + variance * (solved @ rows).reshape(mean.shape)
        return corrected

    def potential(self, level: int | Tensor = 0) -> Potential:
        base, like = self.base, self.loc
        level = torch.as_tensor(level, device=like.device)
        alpha, sigma = (value[:-1].to(like) for value in (self.schedule.alpha_bar, self.schedule.sigma_bar))
        matrix, noise = self.measurement.matrix.to(like), self.measurement.noise
        # Of standardized clean points z: b − A loc = (A scale) z, and z is x_t / ᾱ_t up to σ̄_t / ᾱ_t.
        rows = matrix * self.scale.flatten()
        variance = rows.square().sum(1) * (sigma / alpha).square()[:, None]  # (levels, m)
        # Level 0 is what the posterior is of: its own noise counts only where it is more than the measurement's.
        variance[0] = torch.where(variance[0] < noise**2, 0.0, variance[0])
        precision = 1.0 / (noise**2 + variance).clamp(min=1e-12)
        observed = self.measurement.observed.to(like) - matrix @ self.loc.flatten()
        return Measured(base.potential(level), rows, observed, (1.0 / alpha)[level], precision[level])


def _check_kind(what: str, ebm: object) -> None:
    if not isinstance(ebm, RecoveryEBM):
        raise InvalidInput(
            f"{what} needs energies at every level of a schedule, as a RecoveryEBM has; got {type(ebm).__name__}: "
            "train the network in RecoveryEBM(net, schedule)"
        )


def _check_parts(ebms: Sequence[RecoveryEBM], weights: Sequence[float]) -> None:
    if not ebms:
        raise InvalidInput("a composition needs at least one model; got none")
    if len(weights) != len(ebms) or not all(math.isfinite(weight) for weight in weights):
        raise InvalidInput(f"weights must be {len(ebms)} finite numbers, one for each model; got {list(weights)}")
    for index, ebm in enumerate(ebms):
        _check_kind("a composition", ebm)
        odd = differences(ebm, ebms[0])
        if odd:
            raise InvalidInput(
                f"the models of a composition must share event_shape, schedule, dtype and device; got another "
                f"{', '.join(odd)} in model {index} than in model 0: train both with one schedule, or convert one"
            )


def _warn_of_far(ebms: Sequence[RecoveryEBM]) -> None:
    """Warn of models that chains from the first one's white noise don't reach."""
    first = ebms[0]
    signal = float(first.schedule.alpha_bar[-1] / first.schedule.marginal_std[-1])
    for index, ebm in enumerate(ebms):
        apart, wider = ((ebm.loc - first.loc) / first.scale).abs(), ebm.scale / first.scale
        if signal * float(torch.maximum(apart, wider).max()) > 1.0:
            warn_user(
                f"model {index} of the mixture lies {float(apart.max()):.3g} standard deviations of model 0 away and "
                f"is {float(wider.max()):.3g} times as wide: too few of the samples, which begin at white noise, are "
                "its own; pass the widest model first, draw from the models themselves, or train with noisier levels"
            )


def differences(ebm: RecoveryEBM, other: RecoveryEBM) -> list[str]:
    """Name what two models should have in common and don't."""
    ours, theirs = ebm.schedule, other.schedule
    same = {
        "event_shape": ebm.event_shape == other.event_shape,
        "alpha_bar": torch.equal(ours.alpha_bar, theirs.alpha_bar),
        "sigma_bar": torch.equal(ours.sigma_bar, theirs.sigma_bar),
        "tilted_top": ours.tilted_top == theirs.tilted_top,
        "dtype": ebm.loc.dtype == other.loc.dtype,
        "device": ebm.loc.device == other.loc.device,
    }
    return [name for name, holds in same.items() if not holds]

"""Models made of models: composed, or given a measurement (``RecoveryEBM.given`` makes those of a class).

Each is again a :class:`RecoveryEBM` that shares the weights, coordinates and step sizes of the one it is made of, with
another energy at every level; so it samples, recovers, normalizes and goes into Pyro as any other does.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from energyppl._checks import check_positive, shape_text
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import append_dims
from energyppl.models.recovery import RecoveryEBM
from energyppl.potentials.network import AtLevel

__all__ = ["LinearMeasurement", "measured", "mixture", "product"]


def product(*ebms: RecoveryEBM, weights: Sequence[float] | None = None) -> RecoveryEBM:
    """The product of experts ``Π p_i^{w_i}`` at every level; a negative weight is a negation (Du, Li & Mordatch 2020).

    The product of noised densities is not the noised product, so the levels above 0 are a path towards level 0 and no
    more; at level 0 the energy is the weighted sum.

    Args:
        ebms: models on the same schedule, device and of the same points; the first one's coordinates are kept.
            Compose again after moving or standardizing one of them anew; moving the whole moves all.
        weights: one for each; 1 if None.

    Raises:
        InvalidInput: if they don't fit together, or for weights that are not finite or not as many.
    """
    factors = [1.0] * len(ebms) if weights is None else [float(w) for w in weights]
    _check_parts(ebms, factors)
    return ebms[0].with_net(_Composed(ebms, factors, soft=False), None)


def mixture(*ebms: RecoveryEBM, weights: Sequence[float] | None = None) -> RecoveryEBM:
    """The union ``Σ w_i exp(−U_i)`` at every level.

    The energies have normalizers of their own: a density's share is ``w_i Z_i``, so for shares s_i pass
    ``w_i = s_i exp(−log_normalizer_i)``.

    Args:
        ebms: models on the same schedule, device and of the same points; the first one's coordinates are kept.
            Compose again after moving or standardizing one of them anew; moving the whole moves all.
        weights: one positive number for each; 1 if None.

    Raises:
        InvalidInput: if they don't fit together, or for weights that are not positive or not as many.
    """
    factors = [1.0] * len(ebms) if weights is None else [float(w) for w in weights]
    _check_parts(ebms, factors)
    for weight in factors:
        check_positive("weights of a mixture", weight)
    return ebms[0].with_net(_Composed(ebms, factors, soft=True), None)


class LinearMeasurement(nn.Module):
    """``b = A x + noise`` of a clean point: inpainting, blur, down-sampling, or any matrix.

    Args:
        matrix: A, ``(m, d)`` over the flattened event.
        observed: b, ``(m,)``.
        noise: standard deviation of the measurement, in data units; may be 0 for a model whose level 0 has noise of its
            own.

    Raises:
        InvalidInput: for shapes that don't fit, a matrix that measures nothing, or negative noise.
    """

    matrix: Tensor
    observed: Tensor

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
        """Inpainting: the values of ``image``, ``(*event)``, where ``seen``, a boolean mask of its shape, is True.

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
    """The posterior of a model's points given a linear measurement; at level 0 it is exact.

    To the energy of level t it adds ``½ |A x_t / ᾱ_t − b|² / (noise² + A Aᵀ σ̄_t² / ᾱ_t²)``, row by row: what a
    measurement of the clean point says of x_t if noise is all that x_t adds (the pseudo-likelihood of Jalal et al.
    2021, with the noise's own variance).  Above level 0 it only leads the way.  At level 0 the clean point is x_0 / ᾱ₀
    up to noise σ̄₀, whose variance counts only where ``noise`` is less than it.  Samples come down the levels; follow
    them by chains of :meth:`RecoveryEBM.marginal` for draws that are the posterior's own.

    Raises:
        InvalidInput: if the matrix is for points of another size, or the model is no RecoveryEBM.
    """
    _check_kind("a measurement", ebm)
    size = math.prod(ebm.event_shape)
    if measurement.matrix.shape[1] != size:
        raise InvalidInput(
            f"matrix must have a column for each of the {size} coordinates of {shape_text(ebm.event_shape)}; got "
            f"{measurement.matrix.shape[1]}"
        )
    return ebm.with_net(_Measured(ebm, measurement), ebm.initializer)


# --- Their networks: (points of unit variance, level) to energies ---


class _Composed(nn.Module):
    def __init__(self, ebms: Sequence[RecoveryEBM], weights: Sequence[float], soft: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList(ebm.net for ebm in ebms)
        self.asked = [_asked(ebm) for ebm in ebms]
        self.weights, self.soft = tuple(weights), soft
        first = ebms[0]
        marginal_std = first.schedule.marginal_std[:-1].to(first.loc)
        self.register_buffer("marginal_std", marginal_std)
        # From the first one's unit points to each one's own: x = loc + scale · marginal_std · z.
        self.register_buffer("ratio", torch.stack([first.scale / ebm.scale for ebm in ebms]))
        self.register_buffer("offset", torch.stack([(first.loc - ebm.loc) / ebm.scale for ebm in ebms]))

    marginal_std: Tensor
    ratio: Tensor
    offset: Tensor

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        marginal_std = append_dims(self.marginal_std[level], x)
        energies = [
            AtLevel(net, level, **asked)(x * ratio + offset / marginal_std)
            for net, ratio, offset, asked in zip(self.nets, self.ratio, self.offset, self.asked, strict=True)
        ]
        if self.soft:
            logs = [math.log(weight) - energy for weight, energy in zip(self.weights, energies, strict=True)]
            return -torch.logsumexp(torch.stack(logs), 0)
        total: Tensor = self.weights[0] * energies[0]
        for weight, energy in zip(self.weights[1:], energies[1:], strict=True):
            total = total + weight * energy
        return total


class _Measured(nn.Module):
    def __init__(self, ebm: RecoveryEBM, measurement: LinearMeasurement) -> None:
        super().__init__()
        self.net, self.asked = ebm.net, _asked(ebm)
        schedule, like = ebm.schedule, ebm.loc
        scale, matrix = ebm.scale.flatten(), measurement.matrix.to(like)
        alpha, sigma = schedule.alpha_bar[:-1].to(like), schedule.sigma_bar[:-1].to(like)
        marginal_std = schedule.marginal_std[:-1].to(like)
        # Of standardized clean points z: b − A loc = (A scale) z, and z is x_t / ᾱ_t up to σ̄_t / ᾱ_t.
        rows = matrix * scale
        self.register_buffer("rows", rows)
        self.register_buffer("target", measurement.observed.to(like) - matrix @ ebm.loc.flatten())
        self.register_buffer("to_clean", marginal_std / alpha)
        own = rows.square().sum(1) * (sigma / alpha).square()[:, None]  # (levels, m)
        own[0] = torch.where(own[0] < measurement.noise**2, 0.0, own[0])  # level 0 is what the posterior is of
        self.register_buffer("precision", 1.0 / (measurement.noise**2 + own).clamp(min=1e-12))

    rows: Tensor
    target: Tensor
    to_clean: Tensor
    precision: Tensor

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        energy = AtLevel(self.net, level, **self.asked)(x)
        batch = energy.shape
        clean = x.reshape(*batch, -1) * self.to_clean[level].unsqueeze(-1)
        misfit = clean @ self.rows.mT - self.target
        return energy + 0.5 * (misfit.square() * self.precision[level]).sum(-1)


def _asked(ebm: RecoveryEBM) -> dict[str, Any]:
    """What a model asks of its network: all of its potential but the level and the coordinates."""
    own = ebm.potential(0)
    return {"event_shape": own.event_shape, "each": own.each, "label": own.label, "guidance": own.guidance}


def _check_kind(what: str, ebm: object) -> None:
    if not hasattr(ebm, "with_net"):
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
        odd = _differences(ebm, ebms[0])
        if odd:
            raise InvalidInput(
                f"the models of a composition must share event_shape and schedule; got another {', '.join(odd)} in "
                f"model {index} than in model 0: train both with one schedule"
            )


def _differences(ebm: RecoveryEBM, other: RecoveryEBM) -> list[str]:
    """What two models should have in common and don't."""
    ours, theirs = ebm.schedule, other.schedule
    same = {
        "event_shape": ebm.event_shape == other.event_shape,
        "alpha_bar": torch.equal(ours.alpha_bar, theirs.alpha_bar),
        "sigma_bar": torch.equal(ours.sigma_bar, theirs.sigma_bar),
        "tilted_top": ours.tilted_top == theirs.tilted_top,
    }
    return [name for name, holds in same.items() if not holds]

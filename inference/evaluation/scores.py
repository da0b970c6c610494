"""Out-of-distribution detection: how strange rows look to an energy, and how well a score tells outliers from inliers.

Every score is higher for stranger rows, in nats or in the gradient's units, and needs no log Z: a constant changes no
order.  No score is best everywhere.  An energy alone ranks an outlier as ordinary if it lies where the density is high
but hardly any of the mass is (Nalisnick et al. 2019); typicality, the gradient and a ratio are the known remedies.
"""

from collections.abc import Iterator
from typing import TypeGuard, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from energyppl._checks import as_points, check_count, check_data
from energyppl.autodiff.devices import beside
from energyppl.autodiff.gradient import energy_only, gradient_only
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import Conditional, EnergyModel
from energyppl.inference.levels.initializers import model_of_batch, model_of_rows
from energyppl.potentials.algebra import Potential, as_potential
from energyppl.potentials.bases import DistributionBase

__all__ = ["energy_scores", "gradient_scores", "joint_scores", "ratio_scores", "typicality_scores"]

Scored = EnergyModel | Potential | Distribution
"""What gives scores: a model; a potential, which takes rows as they are; or a distribution, as −log p."""


# --- Scores ----------------------------------------------------------------------------------------------------------


def energy_scores(model: Scored, x: Tensor, *, level: int = 0, batch: int = 1000) -> Tensor:
    """Score rows by their energy, −log p up to a constant, in nats.

    Args:
        model: a model, a potential, or a distribution.
        x: rows in data coordinates, ``(n, *event)``: a tensor, an array or a frame of numbers.
        level: of a model of noise levels; the rows are taken as they are and no noise is added.
        batch: rows at a time; memory grows with it.

    Returns:
        Scores ``(n,)``, float64, where ``x`` is.  Non-finite energies are handed on as they are.

    Raises:
        InvalidInput: for rows of another shape or that are not finite, or a level that the model has not.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> ep.evaluation.energy_scores(normal, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        tensor([0., 1.], dtype=torch.float64)
    """
    return _energies("x", x, model, level, batch)


def joint_scores(model: EnergyModel, x: Tensor, *, batch: int = 1000) -> Tensor:
    """Score rows by the free energy over all levels, ``−log Σ_t exp(−U(x, t))``, in nats (Zhang, Tan & Ou 2023).

    It is −log p(x) up to a constant under a joint density of points and levels, as a ``JointEBM`` has: one normalizer
    for all levels.  In a ``RecoveryEBM`` each level has its own log Z, and the sum weighs levels by what these happen
    to be.

    Args:
        model: of two levels or more.
        x: rows in data coordinates, ``(n, *event)``; each is taken as it is at every level.
        batch: rows at a time.

    Returns:
        Scores ``(n,)``, float64, where ``x`` is.

    Raises:
        InvalidInput: for a model of one level, and as :func:`energy_scores`.

    Example:
        >>> ebm = ep.JointEBM(ep.MLPEnergy((2,), levels=4), ep.NoiseSchedule.cosine(levels=3))
        >>> ep.evaluation.joint_scores(ebm, torch.randn(5, 2)).shape
        torch.Size([5])
    """
    levels = getattr(model, "levels", 1) if _has_coordinates(model) else 1
    if levels < 2:
        raise InvalidInput(
            f"a joint score needs a model of at least two noise levels; got {type(model).__name__} with one: "
            "energy_scores has the energy of one level"
        )
    energies = torch.stack([_energies("x", x, model, level, batch) for level in range(levels)])
    return -torch.logsumexp(-energies, 0)


def gradient_scores(model: Scored, x: Tensor, *, level: int = 0, batch: int = 1000) -> Tensor:
    """Score rows by the norm of the energy's gradient, ``|∂U/∂x|₂`` (Grathwohl et al. 2020, section 5.3).

    Around a mode or a flat region that holds mass the density hardly changes; beside a narrow peak it does.  The
    gradient is taken in the model's standardized coordinates, so that the data's units don't count.

    Args:
        model: a model, a potential, or a distribution.
        x: rows in data coordinates, ``(n, *event)``.
        level: of a model of noise levels.
        batch: rows at a time.

    Returns:
        Scores ``(n,)``, float64, where ``x`` is, in nats per unit of the coordinates.

    Raises:
        InvalidInput: as :func:`energy_scores`.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> ep.evaluation.gradient_scores(normal, torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([0., 5.], dtype=torch.float64)
    """
    x = as_points("x", x)
    grads = [gradient_only(potential, points) for potential, points in _pieces("x", x, model, level, batch)]
    return torch.cat([grad.double().reshape(len(grad), -1).norm(dim=1).to(x.device) for grad in grads])


def typicality_scores(model: Scored, x: Tensor, training: Tensor, *, level: int = 0, batch: int = 1000) -> Tensor:
    """Score rows by the distance of their energy from the training data's mean, ``|U(x) − mean U|``, in nats.

    The typicality test of single rows (Nalisnick et al. 2019, batches of M = 1), its entropy estimated by the mean over
    training rows; log Z cancels.  A row may be too likely as well as too unlikely.

    Args:
        model: a model, a potential, or a distribution.
        x: rows in data coordinates, ``(n, *event)``.
        training: rows that the model was trained on, or others of the same source, ``(m, *event)``; some thousands will
            do, since only their mean energy counts.
        level: of a model of noise levels.
        batch: rows at a time.

    Returns:
        Scores ``(n,)``, float64, where ``x`` is.

    Raises:
        InvalidInput: for training rows that are missing or whose energies are not finite, and as :func:`energy_scores`.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> training = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # mean energy 1
        >>> ep.evaluation.typicality_scores(normal, torch.tensor([[0.0, 0.0], [2.0, 2.0]]), training)
        tensor([1., 3.], dtype=torch.float64)
    """
    x = as_points("x", x)
    known = _energies("training", training, model, level, batch)
    bad = ~torch.isfinite(known)
    if bool(bad.any()):
        raise InvalidInput(
            f"training rows must have finite energies; got {int(bad.sum())} of {len(known)} that have not, first in "
            f"row {int(bad.nonzero()[0])}: drop those rows, or train the model further"
        )
    return (_energies("x", x, model, level, batch) - known.mean().to(x.device)).abs()


def ratio_scores(model: Scored, x: Tensor, base: Scored, *, level: int = 0, batch: int = 1000) -> Tensor:
    """Score rows by the log likelihood ratio of a base to the model, ``U(x) − U_base(x)`` up to a constant, in nats.

    What both find strange cancels: the base stands for what rows of any kind share, such as backgrounds (Ren et al.
    2019, the LLR) or plain complexity (Serrà et al. 2020, the score S).

    Args:
        model: a model, a potential, or a distribution.
        x: rows in data coordinates, ``(n, *event)``.
        base: a base fitted to data (``energyppl.potentials.bases``), a distribution, another model at its level 0, or
            an :class:`~energyppl.Energy` of any function, such as the bits that a compressor needs times log 2.
        level: of a model of noise levels.
        batch: rows at a time.

    Returns:
        Scores ``(n,)``, float64, where ``x`` is.

    Raises:
        InvalidInput: as :func:`energy_scores`, for the model or the base.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> base = ep.potentials.Scaled(normal, 0.5)
        >>> ep.evaluation.ratio_scores(normal, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), base)
        tensor([0.0000, 0.5000], dtype=torch.float64)
    """
    return _energies("x", x, model, level, batch) - _energies("x", x, base, 0, batch)


def _energies(name: str, x: Tensor, model: Scored, level: int, batch: int) -> Tensor:
    """Evaluate energies of rows, ``(n,)``, float64, on the rows' device."""
    x = as_points(name, x)
    pieces = _pieces(name, x, model, level, batch)
    return torch.cat([energy_only(potential, points).double().to(x.device) for potential, points in pieces])


def _pieces(name: str, x: Tensor, model: Scored, level: int, batch: int) -> Iterator[tuple[Potential, Tensor]]:
    """Yield the energy of a level and the points that it takes, one micro-batch of rows after the other."""
    check_count("batch", batch)
    check_count("level", level, at_least=0)
    potential = _potential(model, level)
    check_data(name, x, potential.event_shape)
    flat = model_of_batch(cast(Conditional, model), torch.Size((len(x),)))
    for rows in torch.arange(len(x)).split(batch):
        points = x[rows].detach()
        points = model.to_unit(points.to(model.loc)) if _has_coordinates(model) else beside(model, points)
        yield potential if flat is model else _potential(model_of_rows(flat, rows), level), points


def _potential(model: Scored, level: int) -> Potential:
    if _has_coordinates(model):
        return model.potential(level)
    if level != 0:
        raise InvalidInput(
            f"level must be 0 for {type(model).__name__}, which has no noise levels; got {level}: pass a model"
        )
    if isinstance(model, EnergyDistribution):
        model = model.unnormalized()  # its log Z may cost much, and changes no order
    return DistributionBase(model) if isinstance(model, Distribution) else as_potential("model", model)


def _has_coordinates(model: object) -> TypeGuard[EnergyModel]:
    # Not isinstance: from Python 3.12 on a protocol's does not see a module's buffers, such as loc.
    return all(hasattr(model, name) for name in ("potential", "to_unit", "loc"))

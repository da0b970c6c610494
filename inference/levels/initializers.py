"""Where recovery chains begin: at draws of a learned q(x_t | x_{t+1}) (CDRL, Zhu et al. 2024), or of simple Gaussians.

An initializer network says how far q's mean lies from that of the recovery distribution of Gaussian data, in standard
deviations of the latter; a fresh one, which answers zero, begins where chains of many dimensions begin without any.
"""

from collections.abc import Callable
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from energyppl._checks import append_dims, broadcast_shapes, check_whole, checked, shape_text
from energyppl.autodiff.bound import bind
from energyppl.autodiff.gradient import energy_only
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.crank_nicolson import reference
from energyppl.inference.levels.contract import Conditional, LevelModel
from energyppl.inference.levels.recovery import recovery_potential, tilt_widths
from energyppl.potentials.algebra import RecoveryPotential, sum_event
from energyppl.schedule import NoiseSchedule

__all__ = [
    "InitializerNetwork",
    "check_initializer",
    "gaussian_start",
    "initializer_width",
    "model_of_batch",
    "model_of_rows",
    "recovery_proposal",
    "recovery_start",
    "resampled_start",
    "start_evaluations",
]

_FEW_DIMENSIONS, _CANDIDATES = 4, 16  # up to which chains begin at one of so many draws
_WIDE = 0.5  # standard deviations of a level, from which on what a noisy point allows may hold several regions
_WIDER = 4.0  # the second Gaussian that they are drawn from, in standard deviations of the first one's

InitializerNetwork = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From noisy points of unit variance, ``(*batch, *event)``, and levels to (shift, log scale), zero at first."""


def model_of_rows(model: Conditional, rows: Tensor) -> Conditional:
    """Return the model of some rows of a batch: another one only where each row has a condition of its own."""
    return _changed(model, lambda conditions, _: conditions.to(rows.device)[rows])


def model_of_batch(model: Conditional, shape: torch.Size) -> Conditional:
    """Return the model of a batch of points ``(*shape)`` with one dimension for the batch, and a condition for each.

    It is the model itself where points have none of their own.
    """

    def flat(conditions: Tensor, dims: int) -> Tensor:
        own = conditions.shape[conditions.dim() - dims :]
        return conditions.expand(*shape, *own).reshape(shape.numel(), *own)

    return _changed(model, flat)


def _changed(model: Conditional, change: Callable[[Tensor, int], Tensor]) -> Conditional:
    """Return a model with other conditions of its points; of models that are made of others, these are changed."""
    of_parts = getattr(type(model), "of_parts", None)  # of its own, not of what it is a view of
    if of_parts is not None:
        return cast(Conditional, of_parts(model, lambda part: _changed(part, change)))
    conditions: Tensor | None = getattr(model, "conditions", None)
    if conditions is None or conditions.dim() == model.condition_dims:
        return model
    return model.view(change(conditions, model.condition_dims), guidance=model.guidance)


def check_initializer(initializer: object, model: LevelModel) -> None:
    """Require an initializer network for a model's points, levels and classes, or None; it is tried on three points.

    Raises:
        InvalidInput: for points of another shape, other classes or fewer levels, or if it fails or returns something
            else than a shift and a log scale.
    """
    if initializer is None:
        return
    own = getattr(initializer, "event_shape", model.event_shape)
    if not isinstance(initializer, nn.Module) or torch.Size(own) != model.event_shape:
        came = shape_text(own) if isinstance(initializer, nn.Module) else type(initializer).__name__
        raise InvalidInput(
            f"the initializer must be a network for points of shape {shape_text(model.event_shape)}; got {came}: "
            f"build MLPInitializer({shape_text(model.event_shape)}) or another"
        )
    classes, theirs = (int(getattr(net, "classes", 0)) for net in (initializer, getattr(model, "net", None)))
    if classes not in (0, theirs):
        raise InvalidInput(
            f"the initializer must have no classes, or the {theirs} of the model's network; got {classes}: build it "
            f"with classes={theirs}"
        )
    # It may not have been moved to the model yet.
    like = next((p for p in initializer.parameters() if p.dtype.is_floating_point), model.loc)
    points = torch.zeros(3, *model.event_shape, dtype=like.dtype, device=like.device)
    for answer in _tried(initializer, points, model.schedule.levels - 1, classes):
        _check_answer(answer, points)


def _tried(initializer: nn.Module, points: Tensor, top: int, classes: int) -> list[object]:
    """Return its answers at the top level: given for each point, for all at once, and with no class."""
    level = torch.full((len(points),), top, device=points.device)
    try:
        with torch.no_grad():
            answers = [initializer(points, level), initializer(points, level[0])]
            return [*answers, initializer(points, level, torch.full_like(level, classes))] if classes else answers
    except IndexError as error:
        raise InvalidInput(
            f"the initializer must take levels up to {top}; it raised: {error}: build it with levels={top + 1} or more"
        ) from error
    except (TypeError, RuntimeError, ValueError) as error:
        raise InvalidInput(
            f"the initializer must take points {shape_text(points.shape)} and whole levels, (3,) or one for all; it "
            f"raised: {error}"
        ) from error


def _check_answer(answer: object, points: Tensor) -> None:
    """Require a shift for each point, and a log scale that broadcasts to it."""
    parts = answer if isinstance(answer, (tuple, list)) else [answer]
    shapes = [part.shape for part in parts if isinstance(part, Tensor)]
    try:
        fits = len(shapes) == len(parts) == 2 and shapes[0] == points.shape == broadcast_shapes(*shapes)
    except RuntimeError:
        fits = False
    if not fits:
        kinds = (shape_text(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts)
        raise InvalidInput(
            f"the initializer must return a shift {shape_text(points.shape)} and a log scale, of that shape or (), for "
            f"points {shape_text(points.shape)}; got {' and '.join(kinds)}: return both, as MLPInitializer does"
        )


def initializer_width(schedule: NoiseSchedule) -> Tensor:
    """Return CDRL's standard deviation of q at each level, ``(levels,)``, in units of x_t: σ̄_t σ_{t+1} / σ̄_{t+1}.

    It is that of x_t given x_{t+1} and the clean data.
    """
    return schedule.sigma_bar[:-1].clamp(min=1e-6) * schedule.sigma / schedule.sigma_bar[1:]


@checked
def recovery_proposal(
    model: Conditional, noisy: Tensor, level: Tensor, potential: RecoveryPotential | None = None
) -> dist.TorchDistribution:
    """Return q(x_t | x_{t+1} = noisy), standardized, over ``(*batch, *event)``, differentiable in its weights.

    Args:
        model: has an initializer.
        noisy: standardized x_{t+1}, ``(*batch, *event)``.
        level: t, ``()`` or ``(*batch,)``.
        potential: the recovery potential given ``noisy``, where it is there already.

    Raises:
        InvalidInput: if the model has none.

    Example:
        >>> schedule = ep.NoiseSchedule.cosine(levels=3)
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), schedule, initializer=ep.MLPInitializer((2,)))
        >>> ep.levels.recovery_proposal(ebm, torch.randn(5, 2), torch.tensor(0)).sample().shape
        torch.Size([5, 2])
    """
    if model.initializer is None:
        raise InvalidInput(
            "this model has no initializer: build it with RecoveryEBM(net, schedule, initializer=MLPInitializer(…))"
        )
    check_whole("level", level)
    marginal_std = model.schedule.marginal_std.to(noisy)
    potential = recovery_potential(model, noisy, level) if potential is None else potential
    mean, deviation = reference(potential, marginal_std[level], noisy)
    shift, log_scale = _initialize(model, model.initializer, noisy / append_dims(marginal_std[level + 1], noisy), level)
    if log_scale.dim():  # learned: relative to the recovery of Gaussian data, as the shift is
        scale = deviation * log_scale.exp()
    else:
        scale = append_dims(initializer_width(model.schedule).to(noisy)[level], noisy)
    normal = dist.Normal(mean + deviation * shift, scale.expand_as(mean), validate_args=False)
    proposal: dist.TorchDistribution = normal.to_event(len(model.event_shape))
    return proposal


def _initialize(model: Conditional, net: nn.Module, points: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Ask the initializer, guided as the energy is; one without classes serves them all."""
    if model.conditions is None or not getattr(net, "classes", 0):
        shift, log_scale = net(points, level)
        return shift, log_scale
    shift, log_scale = net(points, level, model.conditions.to(points.device))
    if model.guidance:
        shift = (1.0 + model.guidance) * shift - model.guidance * net(points, level)[0]
    return shift, log_scale


def gaussian_start(potential: RecoveryPotential, marginal_std: Tensor) -> Tensor:
    """Draw starts for chains of a recovery distribution from what it would be for Gaussian data.

    The noisy point itself lies too wide, by the noise.  Without a tilt, at the top level, it is where chains begin.

    Args:
        potential: tilted to the noisy points ``(*batch, *event)``.
        marginal_std: standard deviation of the level's marginal, ``()`` or ``(*batch,)``.
    """
    center = potential.center
    mean, deviation = reference(potential, marginal_std, center)
    tilted = torch.isfinite(torch.as_tensor(potential.sigma))
    return torch.where(tilted, mean + deviation * torch.randn_like(center), center)


def resampled_start(potential: RecoveryPotential, marginal_std: Tensor) -> Tensor:
    """Draw starts from some candidates, by sampling and importance resampling (SIR, Rubin 1988).

    Local moves seldom cross from one region to another: after 80 of them at each of 6 levels a far mode of 1 % had .7
    of its mass.  One of 16 draws from Gaussians, chosen by weight, is in each region nearly as often as it should be,
    unless that is both far and narrow; where noise nearly joins regions, it has made them wide.

    Args:
        potential: tilted to the noisy points ``(*batch, *event)``.
        marginal_std: standard deviation of the level's marginal, ``()`` or ``(*batch,)``.
    """
    bound, x = bind(potential), gaussian_start(potential, marginal_std)
    references = [reference(potential, scale * marginal_std, x) for scale in (1.0, _WIDER)]
    best = x.new_full(x.shape[: x.dim() - len(potential.event_shape)], -torch.inf)
    for turn in range(_CANDIDATES):
        mean, deviation = references[turn % len(references)]
        drawn = mean + deviation * torch.randn_like(x)
        energy = energy_only(bound, drawn)
        # Each of the Gaussians makes half of the draws; a constant in their log densities changes no choice.
        of_each = [-sum_event(0.5 * ((drawn - m) / s).square() + s.log(), potential.event_shape) for m, s in references]
        log_weight = -energy - torch.logaddexp(*of_each)
        # The largest sum of log weight and Gumbel noise is a draw by the weights (Yellott 1977).
        gumbel = -torch.empty_like(energy).exponential_().log()
        score = torch.where(torch.isfinite(log_weight), log_weight + gumbel, -torch.inf)
        x = torch.where(append_dims(score > best, x), drawn, x)
        best = torch.maximum(score, best)
    return x


def start_evaluations(model: Conditional, level: Tensor) -> int:
    """Return how many evaluations of the energy :func:`recovery_start` takes for each chain at these levels."""
    if model.initializer is not None or model.event_shape.numel() > _FEW_DIMENSIONS:
        return 0
    widths = tilt_widths(model.schedule) / model.schedule.marginal_std[:-1]
    return _CANDIDATES if bool((widths.to(level.device)[level] > _WIDE).any()) else 0


def recovery_start(model: Conditional, potential: RecoveryPotential, noisy: Tensor, level: Tensor) -> Tensor:
    """Draw starts for a model's recovery chains, ``(*batch, *event)``.

    They come from its initializer, or by :func:`resampled_start` where in few dimensions a noisy point says little,
    else by :func:`gaussian_start`.

    Args:
        model: the model.
        potential: its recovery potential given ``noisy``.
        noisy: standardized x_{t+1}, ``(*batch, *event)``.
        level: t, ``()`` or ``(*batch,)``.
    """
    if model.initializer is None:
        draw = resampled_start if start_evaluations(model, level) else gaussian_start
        return draw(potential, model.schedule.marginal_std.to(noisy)[level])
    with torch.no_grad():
        drawn: Tensor = recovery_proposal(model, noisy, level, potential).sample()
    return drawn

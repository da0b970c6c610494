"""Progressive sampling: from white noise to data, level by level (Gao et al. 2021, Algorithm 2)."""

from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_count
from energyppl.gradient import energy_and_grad
from energyppl.inference.chains import run_chain
from energyppl.inference.crank_nicolson import reference
from energyppl.inference.objectives import RecoveryModel, level_kernel, recovery_potential
from energyppl.potential import Tethered

__all__ = ["Generation", "gaussian_start", "generate"]


class Generation(NamedTuple):
    """Samples and how they came about, in the coordinates of ``model.standardized``."""

    x: Tensor  # (*shape, *event), data at level 0 (or without noise, after the Tweedie step)
    path: tuple[Tensor, ...]  # white noise, then x_t at the end of each level, from the top level down to 0
    acceptance: Tensor  # (levels,), mean of each level's kernel
    evaluations: int  # of the energy (with its gradient, if the kernel needs one) for each sample


def gaussian_start(potential: Tethered, spread: Tensor) -> Tensor:
    """Where chains of a recovery distribution begin: at draws of what it would be for Gaussian data.

    The noisy point itself lies too wide, by the noise.  Without a tether, at the top level, it is where chains begin.

    Args:
        potential: tethered to the noisy points ``(*batch, *event)``.
        spread: standard deviation of the level's marginal, ``()`` or ``(*batch,)``.
    """
    center = potential.center
    mean, deviation = reference(potential, spread, center)
    tethered = torch.isfinite(torch.as_tensor(potential.sigma))
    return torch.where(tethered, mean + deviation * torch.randn_like(center), center)


def generate(
    model: RecoveryModel,
    shape: torch.Size,
    *,
    steps: int,
    last: int = 0,
    denoise: bool = False,
) -> Generation:
    """Draw from every level's recovery distribution in turn, the top level's from white noise.

    Args:
        model: the trained model.
        shape: shape of the batch of samples.
        steps: moves at each level.
        last: the level to stop at.
        denoise: at level 0, finish with the mean of the clean data given level 0, ``(x + σ̄₀² ∇log p) / ᾱ₀``
            (Tweedie; Zhu et al. 2024, appendix A.2).

    Raises:
        InvalidInput: for steps below one.
    """
    check_count("steps", steps)
    schedule = model.schedule
    like = model.step_sizes
    spreads = schedule.spread.to(like)
    x = spreads[-1] * torch.randn(*shape, *model.event_shape, dtype=like.dtype, device=like.device)
    path, acceptance = [x], torch.zeros_like(like)
    for t in reversed(range(last, schedule.levels)):
        level = torch.tensor(t, device=like.device)
        potential = recovery_potential(model, x, level)
        chain = run_chain(
            level_kernel(model, level.expand(shape)), potential, gaussian_start(potential, spreads[t]), steps
        )
        x = chain.state.x
        acceptance[t] = chain.accept_prob.mean()
        path.append(x)
    evaluations = (schedule.levels - last) * (steps + 1)
    if denoise and last == 0:
        # Tweedie: E[x0 | x_0] with the score −∇U of level 0.
        _, grad = energy_and_grad(model.potential(torch.tensor(0, device=like.device)), x)
        alpha, sigma = schedule.alpha_bar[0].to(like), schedule.sigma_bar[0].to(like)
        x, evaluations = (x - sigma**2 * grad) / alpha, evaluations + 1
    return Generation(x, tuple(path), acceptance, evaluations)

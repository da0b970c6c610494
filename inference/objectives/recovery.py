"""What an energy-based model is trained by: values that turn a batch of data into a loss.

Recovery likelihood (Gao et al. 2021, Algorithm 1): noise a data point to level t, once more to level t + 1, and raise
the likelihood of the first given the second.  The gradient is ∇U(x_t) − E[∇U(x)] over the recovery distribution, whose
draws come from a few steps of a kernel.  *Where those chains start decides whether training is stable*: from the noisy
point, chains that stop moving leave an unbounded objective; from the data, which is already an exact draw of the true
recovery distribution, they leave a zero gradient.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import check_count
from energyppl.autodiff.gradient import energy_and_grad
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import TunableKernel, casting, check_force_dtype
from energyppl.inference.levels.recovery import RecoveryModel, level_kernel, recovery_potential, tilt_widths
from energyppl.inference.levels.step_sizes import adapt_step_sizes, hand_kernel
from energyppl.inference.objectives.contract import Loss, check_model, check_tunable
from energyppl.inference.objectives.contrastive import Start, from_data
from energyppl.inference.objectives.held_out import MEASURE_SEED
from energyppl.inference.objectives.level_allocation import allocate_levels, draw_upper_levels
from energyppl.inference.objectives.persistent_chains import Contrast, persistent_contrast
from energyppl.inference.sampling.run_chain import Trajectory, run_chain
from energyppl.potentials.algebra import RecoveryPotential

__all__ = ["RecoveryLikelihood", "RecoveryPairs"]

_PERSISTENT = 0.25


class RecoveryPairs(NamedTuple):
    """Data at their levels, and what they are to be recovered from."""

    clean: Tensor  # x_t, (n, *event), standardized
    noisy: Tensor  # the noisier marginal, likewise
    level: Tensor  # (n,), t
    upper: Tensor  # (n,), of the noisier marginal: t + 1, or further
    potential: RecoveryPotential  # the recovery potential


@dataclass(frozen=True)
class RecoveryLikelihood:
    """Diffusion recovery likelihood (Gao et al. 2021, Algorithm 1), with one adapted step size for each noise level.

    Args:
        kernel: moves the negatives, and the model's chains from then on; the model's own kernel if None.  Its step size
            counts in widths of a level's tilt and is where adaptation begins.
        steps: moves from the start to the negative.
        start: where the negatives' chains begin, ``from_data`` or ``from_noisy``, or any function of (data, noisy).
        adapt: steer each level's step size towards the kernel's target acceptance.
        adaptation_rate: how fast: log step size moves by ``adaptation_rate * (acceptance − target)`` at each update.
        level0_fraction: share of each batch that goes to level 0 on top of its equal share: it is the sharpest level
            and the one whose density is asked for.
        skip_fraction: share of each batch that is recovered from a noisier marginal than the next, any above: its wider
            tilt lets chains see, and the training flatten, what the energy does far from the data.
        shared_noise: noise both levels with one ε (CDRL's variance reduction).
        persistent: share of each batch that is also contrasted with persistent chains of the marginals, which find and
            fill what the energy digs far from the data; if None, a quarter above two dimensions and nothing below: in
            the plane tilts skip_fraction everywhere, and chains that lag behind a sharp density only disturb.
        autocast: arithmetic of the loss, ``torch.bfloat16`` for networks of images; that of the chains is the kernel's
            ``force_dtype``, and energies that accept or reject keep the weights' own.

    Raises:
        InvalidInput: for steps below one, a share outside [0, 1), a kernel without one step size, or adaptation of one
            that never rejects.
    """

    kernel: TunableKernel | None = None
    steps: int = 5
    start: Start = from_data
    adapt: bool = True
    adaptation_rate: float = 0.1
    level0_fraction: float = 0.25
    skip_fraction: float = 0.25
    shared_noise: bool = False
    persistent: float | None = None
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_force_dtype(self.autocast, "autocast")
        for name, share in (("level0_fraction", self.level0_fraction), ("persistent", self.persistent or 0.0)):
            if not 0.0 <= share < 1.0:
                raise InvalidInput(f"{name} must lie in [0, 1); got {share}")
        if self.shared_noise and self.start is from_data:
            raise InvalidInput(
                "with shared_noise the data are no draws of their recovery distributions, so chains must not start "
                "there: pass start=from_noisy or an initializer"
            )
        check_tunable(self.kernel, adapt=self.adapt)

    def prepare(self, model: RecoveryModel) -> None:
        """Give the model the kernel whose step sizes are about to be learned.

        Raises:
            InvalidInput: for another kind of model.
        """
        needs = "recovery likelihood needs a model of levels that are recovered from each other, as a RecoveryEBM"
        check_model(model, needs, "schedule", "kernel", "step_sizes", "persistent_chains", "persistent_steps")
        hand_kernel(model, self.kernel)

    def loss(self, model: RecoveryModel, batch: Tensor) -> Loss:
        """The contrastive loss of ``batch``, ``(n, *event)``; steers ``model.step_sizes`` on the way."""
        pairs = self.pairs(model, batch)
        return self.contrast(model, pairs, self.move(model, pairs), batch)

    def pairs(self, model: RecoveryModel, batch: Tensor) -> RecoveryPairs:
        """Noise a batch ``(n, *event)`` twice, each row to levels of its own."""
        schedule, data = model.schedule, model.to_unit(batch)
        level = allocate_levels(len(data), schedule.levels, self.level0_fraction).to(data.device)
        upper = draw_upper_levels(level, schedule.levels, self.skip_fraction)
        clean, noisy = schedule.pairs(data, level, upper=upper, shared_noise=self.shared_noise)
        return RecoveryPairs(clean, noisy, level, upper, recovery_potential(model, noisy, level, upper))

    def move(
        self, model: RecoveryModel, pairs: RecoveryPairs, start: Tensor | None = None, *, steer: bool = True
    ) -> Trajectory:
        """Run the model's chains to the negatives, and steer its step sizes if ``steer``.

        They begin at ``start``, ``(n, *event)``, or where :attr:`start` says if None.
        """
        self.prepare(model)
        level = pairs.level
        start = self.start(pairs.clean, pairs.potential.center) if start is None else start
        chain = run_chain(level_kernel(model, level), pairs.potential, start, self.steps)
        if self.adapt and steer:
            near = pairs.upper == level + 1
            kernel = model.kernel
            adapt_step_sizes(
                model.step_sizes,
                chain.accept_prob[near],
                level[near],
                self.adaptation_rate,
                kernel.target_acceptance,
                largest=kernel.max_step_size,
            )
        return chain

    def contrast(self, model: RecoveryModel, pairs: RecoveryPairs, chain: Trajectory, batch: Tensor) -> Loss:
        """Energy of the data less that of the negatives, and the persistent chains' part."""
        moved, level = chain.state.x, pairs.level
        with casting(moved, self.autocast):
            energies = model.potential(level)(torch.stack([pairs.clean, moved]))
        positive, negative = energies.to(moved.dtype).mean(1)
        gap = positive - negative
        width = tilt_widths(model.schedule).to(moved)[level]
        record = {
            "energy_gap": float(gap.detach()),
            "acceptance": float(chain.accept_prob.mean()),
            "moved": float(((moved - pairs.clean).flatten(1).norm(dim=1) / width).mean()),
            "smallest_step": float(model.step_sizes.min()),
            "diverging": float(chain.diverging.float().mean()),
        }
        far = self.persistent_term(model, batch)
        if far is None:
            return Loss(gap, record)
        record |= {"persistent_gap": far.gap, "persistent_weight": far.weight}
        return Loss(gap + far.value, record)

    def persistent_term(self, model: RecoveryModel, batch: Tensor) -> Contrast | None:
        """The persistent chains' part of the loss of ``batch``, ``(n, *event)``; None if it has none."""
        share = self.persistent
        if share is None:
            share = _PERSISTENT if math.prod(model.event_shape) > 2 else 0.0
        count = min(int(share * len(batch)), len(model.persistent_chains))
        if not count:
            return None
        far = persistent_contrast(model.unconditional, batch[:count], self.steps, self.autocast)
        return far._replace(value=far.value * (count / len(batch)))

    def measure(self, model: RecoveryModel, data: Tensor) -> float:
        """Denoising score matching, ``mean |σ̄ ∇U(x_t) − ε|² / dimensions`` over the levels above 0 (Vincent 2011).

        A proper score that needs no normalizer; the noise is the same at every call.  Level 0 is left out if there are
        others: at the edges of a sharp density its score is dominated by where exactly an edge lies, and gets worse
        while the density gets better.
        """
        total = 0.0
        clean, generator = model.to_unit(data), torch.Generator().manual_seed(MEASURE_SEED)
        judged = range(min(1, model.schedule.levels - 1), model.schedule.levels)
        for t in judged:
            alpha, sigma = model.schedule.alpha_bar[t].to(clean), model.schedule.sigma_bar[t].to(clean)
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            level = torch.tensor(t, device=clean.device)
            _, grad = energy_and_grad(model.potential(level), alpha * clean + sigma * noise)
            total += float(((sigma * grad - noise) ** 2).mean())
        return total / len(judged)

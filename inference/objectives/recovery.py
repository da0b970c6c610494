"""Recovery likelihood: the likelihood of points given the same points with more noise (Gao et al. 2021).

Noise a data point to level t, once more to level t + 1, and raise the likelihood of the first given the second.  The
gradient is ∇U(x_t) − E[∇U(x)] over the recovery distribution, whose draws come from a few steps of a kernel.  *Where
those chains start decides whether training is stable*: from the noisy point, chains that stop moving leave an unbounded
objective; from the data, which is already an exact draw of the true recovery distribution, they leave a zero gradient.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from energyppl._checks import check_count, check_fields, check_positive
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import TunableKernel, casting, check_force_dtype
from energyppl.inference.levels.contract import Conditional, LevelModel
from energyppl.inference.levels.initializers import model_of_rows
from energyppl.inference.levels.recovery import recovery_kernel, recovery_potential, tilt_widths
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.inference.objectives.contract import (
    KernelState,
    Loss,
    OptimizerSettings,
    check_fraction,
    check_model,
    check_tunable,
    check_weight,
)
from energyppl.inference.objectives.contrastive import Start, from_data
from energyppl.inference.objectives.held_out import denoising_error
from energyppl.inference.objectives.level_allocation import allocate_levels, draw_upper_levels
from energyppl.inference.objectives.level_tie import LevelTie, level_tie
from energyppl.inference.objectives.mass_contrast import MassContrast, can_rank
from energyppl.inference.sampling.run_chain import Trajectory, run_chain
from energyppl.potentials.algebra import RecoveryPotential

__all__ = ["RecoveryLikelihood", "RecoveryPairs"]

_MASSES = 0.3  # weight of the mass contrast in the plane


class RecoveryPairs(NamedTuple):
    """Data at their levels, and what they are to be recovered from.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> pairs = ep.RecoveryLikelihood().pairs(ebm, torch.randn(8, 2))
        >>> pairs.noisy.shape, bool((pairs.upper > pairs.level).all())
        (torch.Size([8, 2]), True)
    """

    clean: Tensor  # x_t, (n, *event), standardized
    noisy: Tensor  # the noisier marginal, likewise
    level: Tensor  # (n,), t
    upper: Tensor  # (n,), of the noisier marginal: t + 1, or further
    potential: RecoveryPotential  # the recovery potential


@dataclass(frozen=True)
class RecoveryLikelihood:
    """Diffusion recovery likelihood (Gao et al. 2021, Algorithm 1), with one adapted step size for each noise level.

    Args:
        kernel: moves the negatives, and the model's chains once training has ended; the kernel that the model was
            declared with if None.  Its step size counts in widths of a level's recovery distribution and is where
            adaptation begins.
        steps: steps of the kernel from the start to the negative.
        start: where the negatives' chains begin, ``from_data`` or ``from_noisy``, or any function of (data, noisy).
        adapt: adapt each level's step size to the kernel's target acceptance.
        adaptation_rate: log step size moves by ``adaptation_rate * (acceptance − target)`` at each update.
        level0_fraction: share of each batch that goes to level 0 on top of its equal share: it is the sharpest level
            and the one whose density is asked for.
        skip_fraction: share of each batch that is recovered from a noisier marginal than the next, any above: its wider
            tilt lets chains see, and the training flatten, what the energy does farther from the data.
        tie: weight of :func:`~energyppl.inference.objectives.level_tie.level_tie`, the log loss of telling each pair's
            noise levels apart: it ties the levels' normalizers to that of white noise, and the masses of separated
            regions to those at noisy levels, where the regions touch. 0 for none.
        tie_fraction: share of each batch whose pairs are classified.
        masses: weight of the :class:`~energyppl.inference.objectives.mass_contrast.MassContrast`, which sees the mass
            of a far region directly; if None .3 for points of one or two numbers without conditions, else 0.  With a
            weight of 1 for it, or 5 for the tie, their noise increases KL(truth ‖ model) on 2-D toys by a tenth.
        shared_noise: noise both levels with one ε (CDRL's variance reduction).
        autocast: arithmetic of the loss, ``torch.bfloat16`` for networks of images; that of the chains is the kernel's
            ``force_dtype``, and energies that accept or reject keep the weights' own.

    Raises:
        InvalidInput: for steps below one, a share outside [0, 1), a negative weight, a kernel without one step size, or
            adaptation of one that never rejects.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), ep.NoiseSchedule.cosine(levels=3))
        >>> options = ep.TrainingOptions(steps=2, batch_size=32)
        >>> objective = ep.RecoveryLikelihood(steps=2)
        >>> history = ep.fit(ebm, torch.randn(100, 2), objective, options=options, progress=False)
        >>> len(history.records)
        2

        A warm start: score matching tied across continuous levels finds the masses of separated regions, and recovery
        likelihood then sharpens edges.

        >>> net = ep.MLPEnergy((2,), continuous=True)
        >>> ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(levels=3, log_snr_min=-6.0))
        >>> data = torch.randn(100, 2)
        >>> _ = ep.fit(ebm, data, ep.objectives.LevelScoreMatching(), options=options, progress=False)
        >>> _ = ep.fit(ebm, data, objective, options=options, progress=False)
    """

    kernel: TunableKernel | None = None
    steps: int = 5
    start: Start = from_data
    adapt: bool = True
    adaptation_rate: float = 0.1
    level0_fraction: float = 0.25
    skip_fraction: float = 0.25
    tie: float = 1.0
    tie_fraction: float = 0.5
    masses: float | None = None
    shared_noise: bool = False
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_tunable(self.kernel, adapt=self.adapt is True)
        check_weight("tie", self.tie)
        if self.masses is not None:
            check_weight("masses", self.masses)
        if not callable(self.start):
            raise InvalidInput(
                f"start must be from_data, from_noisy or a function of (data, noisy); got {self.start!r}"
            )
        check_fields(self)
        check_positive("adaptation_rate", self.adaptation_rate)
        check_count("steps", self.steps)
        check_force_dtype(self.autocast, "autocast")
        check_fraction("level0_fraction", self.level0_fraction)
        check_fraction("skip_fraction", self.skip_fraction, closed=True)
        check_fraction("tie_fraction", self.tie_fraction, closed=True)
        if self.shared_noise and self.start is from_data:
            raise InvalidInput(
                "with shared_noise the data are no draws of their recovery distributions, so chains must not start "
                "there: pass start=from_noisy or an initializer"
            )

    def init(self, model: LevelModel) -> KernelState:
        """Make the state: the kernel's step size at each level, none of them adapted yet.

        Raises:
            InvalidInput: for another kind of model.
        """
        needs = "recovery likelihood needs a model of levels that are recovered from each other, as a RecoveryEBM"
        check_model(model, needs, "schedule", "initial_kernel", "initializer")
        kernel = model.initial_kernel if self.kernel is None else self.kernel
        return KernelState(LevelKernel(kernel, model.schedule.levels, model.loc))

    def loss(self, model: LevelModel, state: KernelState, batch: Tensor) -> Loss:
        """Return the contrastive loss of ``batch``, ``(n, *event)``, and adapt the state's step sizes."""
        pairs = self.pairs(model, batch)
        return self.contrast(model, state, pairs, self.negatives(state, model, pairs))

    def pairs(self, model: LevelModel, batch: Tensor) -> RecoveryPairs:
        """Noise a batch ``(n, *event)`` twice, each row to levels of its own."""
        schedule, data = model.schedule, model.to_unit(batch)
        level = allocate_levels(len(data), schedule.levels, self.level0_fraction).to(data.device)
        upper = draw_upper_levels(level, schedule.levels, self.skip_fraction)
        clean, noisy = schedule.pairs(data, level, upper=upper, shared_noise=self.shared_noise)
        return RecoveryPairs(clean, noisy, level, upper, recovery_potential(model, noisy, level, upper))

    def negatives(
        self, state: KernelState, model: LevelModel, pairs: RecoveryPairs, start: Tensor | None = None
    ) -> Trajectory:
        """Run chains to the negatives, and adapt the state's step sizes.

        They begin at ``start``, ``(n, *event)``, or where :attr:`start` says if None.
        """
        level = pairs.level
        start = self.start(pairs.clean, pairs.potential.center) if start is None else start
        kernel = recovery_kernel(state.level_kernel, model.schedule, level)
        chain = run_chain(kernel, pairs.potential, start, self.steps)
        if self.adapt:
            near = pairs.upper == level + 1
            state.level_kernel.adapt(chain.accept_prob[near], level[near], self.adaptation_rate)
        return chain

    def contrast(self, model: LevelModel, state: KernelState, pairs: RecoveryPairs, chain: Trajectory) -> Loss:
        """Return the energy of the data less that of the negatives, plus the weighted level tie."""
        moved, level, count = chain.state.x, pairs.level, len(pairs.level)
        points, levels, rows = [pairs.clean, moved], [level, level], torch.arange(count, device=level.device).repeat(2)
        tied, tie, masses = self._tied(pairs), None, None
        if self.ties:
            parts = (pairs.clean, pairs.noisy, level, pairs.upper)
            tie = LevelTie.of(model.schedule, *(part[:tied] for part in parts))
            points, levels, rows = [*points, tie.points], [*levels, tie.levels], torch.cat([rows, tie.rows])
        weight = self.mass_weight(model)
        if weight and count > 1:
            masses = MassContrast.of(pairs.clean)
            drawn = masses.points[:, 1:]
            of = torch.arange(count, device=level.device)[: len(drawn), None].expand(drawn.shape[:2]).flatten()
            points, levels, rows = [*points, drawn.flatten(0, 1)], [*levels, level[of]], torch.cat([rows, of])
        with casting(moved, self.autocast):  # one pass for all, which costs less than one for each
            own = model_of_rows(cast(Conditional, model), rows)
            energies = own.potential(torch.cat(levels))(torch.cat(points)).to(moved.dtype)
        clean, negative, *more = energies.split([len(part) for part in points])
        gap = clean.mean() - negative.mean()
        value, record = gap, _about(chain, pairs, tilt_widths(model.schedule).to(moved))
        if tie is not None:
            loss = tie.loss(clean[:tied], more[0])
            value = value + self.tie * loss
            record["level_tie"] = float(loss.detach())
        if masses is not None:
            ranked = torch.cat([clean[: len(drawn), None], more[-1].reshape(drawn.shape[:2])], 1)
            loss = masses.losses(ranked).mean()
            value = value + weight * loss
            record["masses"] = float(loss.detach())
        return Loss(value, record, float(gap.detach()), float(state.level_kernel.step_sizes.min()))

    def ties_levels(self, model: LevelModel) -> bool:
        """Tell whether the loss ties the levels of a model, so that log Z is known from the noisiest one."""
        return self.ties

    @property
    def ties(self) -> bool:
        """Presence of a level tie in the loss."""
        return self.tie > 0.0 and self.tie_fraction > 0.0

    def level_tie(self, model: LevelModel, pairs: RecoveryPairs) -> Tensor:
        """Return the log loss of telling apart the levels of :attr:`tie_fraction` of the pairs, ``()``, in nats."""
        parts = (pairs.clean, pairs.noisy, pairs.level, pairs.upper)
        with casting(pairs.clean, self.autocast):
            return level_tie(model, *(part[: self._tied(pairs)] for part in parts))

    def _tied(self, pairs: RecoveryPairs) -> int:
        """Count the pairs whose levels are told apart."""
        return max(1, int(self.tie_fraction * len(pairs.level)))

    def mass_weight(self, model: LevelModel) -> float:
        """Return the weight of the mass contrast for a model."""
        if not can_rank(model):
            return 0.0
        return _MASSES * (model.event_shape[0] <= 2) if self.masses is None else self.masses

    def mass_contrast(self, model: LevelModel, pairs: RecoveryPairs) -> Tensor:
        """Return the mass contrast of some of the pairs, each at its own level, ``()``, in nats."""
        contrast = MassContrast.of(pairs.clean)
        level = pairs.level[: len(contrast.points), None].expand(contrast.points.shape[:2])
        return contrast.losses(model.potential(level)(contrast.points)).mean()

    def default_optimizer(self, model: LevelModel, rows: int) -> OptimizerSettings:
        """Return SOAP at .01 for points of one or two numbers, of which it was measured; what is usual for others."""
        return OptimizerSettings(0.01, soap=True) if model.event_shape.numel() <= 2 else OptimizerSettings()

    def measure(self, model: LevelModel, state: KernelState, data: Tensor) -> float:
        """Return the denoising error of held-out data, :func:`denoising_error`: a proper score without log Z."""
        return denoising_error(model, data)


def _about(chain: Trajectory, pairs: RecoveryPairs, widths: Tensor) -> dict[str, float]:
    """Return what a record says of chains: how often they accepted, how far they came, and whether they diverged."""
    far = (chain.state.x - pairs.clean).flatten(1).norm(dim=1) / widths[pairs.level]
    return {
        "acceptance": float(chain.accept_prob.mean()),
        "moved": float(far.mean()),
        "diverging": float(chain.diverging.float().mean()),
    }

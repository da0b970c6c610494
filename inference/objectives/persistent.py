"""Maximum likelihood with chains that outlive an update: DA-EBM over points and levels, and its relatives without.

The gradient of −log p(x, t) is ∇U at data less the mean of ∇U under the model, from chains in a buffer (Tieleman 2008).
With several levels these are joint chains (Zhang, Tan & Ou 2023).  Beginning a share of them anew at each update gives
hybrid training (Du & Mordatch 2019: a twentieth), all of them noise-initialized short runs (Nijkamp et al. 2019).
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from energyppl._checks import check_count, check_fields, check_positive
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import TunableKernel, casting, check_force_dtype
from energyppl.inference.levels.contract import LevelModel
from energyppl.inference.levels.joint import move_jointly
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.inference.objectives.contract import (
    KernelState,
    Loss,
    OptimizerSettings,
    check_fraction,
    check_model,
    check_tunable,
    check_weight,
    diffuse,
    training_hint,
)
from energyppl.inference.objectives.held_out import conditional_contrast
from energyppl.inference.objectives.level_allocation import allocate_levels
from energyppl.inference.objectives.level_tie import level_classification, neighbour_classification
from energyppl.inference.objectives.persistent_chains import ChainBuffer, chain_contrast

__all__ = ["PersistentLikelihood", "PersistentState"]


class PersistentState(KernelState):
    """The state of persistent likelihood: a step size for each level, and the chains.

    Args:
        level_kernel: moves the chains.
        chains: those that last from update to update.
        from_data: keep where each began, as for many levels.

    Example:
        >>> state = ep.PersistentLikelihood(slots=64).init(ep.EBM(ep.MLPEnergy((2,), levels=1)))
        >>> len(state.chains)
        64
    """

    first: Tensor  # (slots, *event), standardized rows where chains began, without noise
    begun: Tensor  # (slots,)

    def __init__(self, level_kernel: LevelKernel, chains: ChainBuffer, *, from_data: bool = False) -> None:
        super().__init__(level_kernel)
        self.chains = chains
        if from_data:
            self.register_buffer("first", torch.zeros_like(chains.x))
            self.register_buffer("begun", torch.zeros_like(chains.level, dtype=torch.bool))

    def begin_at(self, slots: Tensor, clean: Tensor, noisy: Tensor, level: Tensor) -> None:
        """Begin the chains of ``slots`` anew, at standardized rows that are noised to their levels."""
        chains = self.chains
        self.first[slots], chains.x[slots], chains.level[slots] = clean, noisy, level
        chains.age[slots], self.begun[slots] = 0, True


@dataclass(frozen=True)
class PersistentLikelihood:
    """Persistent contrastive divergence, over levels too if the model has them (Zhang, Tan & Ou 2023, Algorithm 1).

    Args:
        kernel: moves the chains, and the model's once training has ended; the kernel that the model was declared with,
            MALA, if None.
        buffer: chains to begin with; new ones if None.
        slots: how many chains to make if none are given.
        num_steps: of the kernel at each update.
        sweeps: draws of the level at each update; the moves are shared among them.
        rejuvenate: share of the visited chains that begin anew from noise: 0 is persistent, 1 short runs from noise.
        adapt: adapt each visited level's step size to the kernel's target acceptance.
        room: nats for each dimension by which a chain's energy may exceed the mean energy of the data at its level; a
            chain beyond that counts as if it were at the limit.  Without one the energy of a chain that is stuck is
            raised for ever, and training diverges; infinity removes it.
        tie: weight of :func:`~energyppl.inference.objectives.level_tie.level_classification`, the log loss of telling
            the level of noisy data, which is exact for a joint model (Yadin et al. 2024): it sees the masses of
            separated regions, which chains that don't cross between them don't. 0 leaves it out.
        tie_fraction: share of each batch whose levels are told.
        many_levels: for tens of levels in hundreds of dimensions, as of images, where an energy at every level costs
            more than the moves, and one image's energy differs from another's by hundreds of nats.  Chains move to
            neighbouring levels only, and the tie tells only these apart.  They begin at rows of a batch with a level's
            noise, and so do those that begin anew; each is compared with its own first row, noised afresh to the level
            where the chain is, as in :class:`~energyppl.objectives.Level0Likelihood`, so that neither rows' nor levels'
            differences are noise of the gradient; where a chain's level depends on its row, that is biased, unmeasured.
            The levels' masses are then learned by the tie alone.
        adaptation_rate: how fast: log step size moves by ``adaptation_rate * (acceptance − target)`` at each update.
        autocast: arithmetic of the loss, as in :class:`RecoveryLikelihood`.

    Raises:
        InvalidInput: for fewer moves than sweeps, a share outside [0, 1], a negative tie, many levels without a tie, a
            kernel without one step size, adaptation of one that never rejects, or chains that are no buffer.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> options = ep.TrainingOptions(steps=2, batch_size=32)
        >>> objective = ep.PersistentLikelihood(slots=64)
        >>> history = ep.fit(ebm, torch.randn(100, 2), objective, options=options, progress=False)
        >>> len(history.records)
        2
    """

    kernel: TunableKernel | None = None
    buffer: ChainBuffer | None = None
    slots: int = 4096
    num_steps: int = 20
    sweeps: int = 2
    rejuvenate: float = 0.0
    adapt: bool = True
    room: float = 4.6
    tie: float = 0.0
    tie_fraction: float = 0.25
    many_levels: bool = False
    adaptation_rate: float = 0.1
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_tunable(self.kernel, adapt=self.adapt is True)
        if self.buffer is not None and not isinstance(self.buffer, ChainBuffer):
            raise InvalidInput(
                f"buffer must be a ChainBuffer; got {type(self.buffer).__name__}: pass none to have chains made"
            )
        check_fields(self)
        check_positive("adaptation_rate", self.adaptation_rate)
        check_weight("tie", self.tie)
        check_fraction("tie_fraction", self.tie_fraction, closed=True)
        if self.many_levels and not self.tie:
            raise InvalidInput("many_levels=True needs a tie, which alone learns the levels' masses: pass tie=1.0 too")
        check_count("slots", self.slots)
        check_count("sweeps", self.sweeps)
        check_count("num_steps", self.num_steps, at_least=self.sweeps)
        check_force_dtype(self.autocast, "autocast")
        if not self.room > 0.0:
            raise InvalidInput(f"room must be positive; got {self.room}: infinity lets every chain count")
        if not 0.0 <= self.rejuvenate <= 1.0:
            raise InvalidInput(f"rejuvenate must lie in [0, 1]; got {self.rejuvenate}")

    def init(self, model: LevelModel) -> PersistentState:
        """Make the state: the kernel's step size at each level, and chains, which begin as noise unless given.

        Raises:
            InvalidInput: for another kind of model, or chains of another model or device.
        """
        needs = "persistent likelihood needs a model of levels that share a normalizer, as an EBM or a JointEBM"
        check_model(model, needs, "initial_kernel", "levels")
        if model.schedule is not None and model.levels == model.schedule.levels:
            raise InvalidInput(
                f"{needs}; got the levels of a {type(model).__name__}, with a normalizer each: {training_hint(model)}"
            )
        if self.many_levels and model.levels == 1:
            raise InvalidInput(f"many_levels=True needs a model of levels, as a JointEBM; got {type(model).__name__}")
        kernel = model.initial_kernel if self.kernel is None else self.kernel
        chains = copy.deepcopy(self.buffer)  # an objective is a value: its own chains stay as they are
        if chains is None:
            chains = ChainBuffer(model.event_shape, max(self.slots, model.levels), model.levels).to(model.loc)
        chains.check(model.event_shape, model.levels, model.loc)
        return PersistentState(LevelKernel(kernel, model.levels, model.loc), chains, from_data=self.many_levels)

    def default_optimizer(self, model: LevelModel, rows: int) -> OptimizerSettings:
        """Return a rate of 1e-3 without noise levels, where chains fall behind a density that sharpens too fast."""
        return OptimizerSettings(1e-3 if model.levels == 1 else None)

    def loss(self, model: LevelModel, state: PersistentState, batch: Tensor) -> Loss:
        """Return the mean energy of ``batch``, ``(n, *event)``, at its levels, less that of as many chains."""
        chains = state.chains
        level = allocate_levels(len(batch), model.levels, 0.0).to(model.loc.device)
        data = diffuse(model, batch, level)
        some = max(1, int(self.tie_fraction * len(data)))  # levels are allotted in random order
        told = data[:some], level[:some]
        slots = chains.draw(len(batch))
        anew = torch.rand(len(slots), device=slots.device) < self.rejuvenate
        if self.many_levels:
            anew |= ~state.begun[slots]
            rows = anew.nonzero()[:, 0]
            state.begin_at(slots[rows], model.to_unit(batch)[rows], data[rows], level[rows])
        else:
            chains.begin_anew(slots[anew])

        num_steps = self.num_steps // self.sweeps
        run = move_jointly(
            model,
            chains.x[slots],
            chains.level[slots],
            sweeps=self.sweeps,
            num_steps=num_steps,
            level_kernel=state.level_kernel,
            neighbours=self.many_levels,
        )
        if self.many_levels:
            level, data = run.level, model.schedule.diffuse(state.first[slots], run.level)
        chains.store(slots, run.x, run.level, num_steps * self.sweeps)
        if self.adapt:
            state.level_kernel.adapt(run.accept_prob.flatten(), run.path.flatten(), self.adaptation_rate)
        with casting(data, self.autocast):
            energy = model.potential(torch.cat([level, run.level]))(torch.cat([data, run.x]))
        own, theirs = energy.to(data.dtype).split([len(data), len(slots)])
        room = self.room * math.prod(model.event_shape)
        gap, weight = chain_contrast(own, level, theirs, run.level, model.levels, room)
        share = torch.bincount(chains.level, minlength=model.levels).double() / len(chains)
        record = {
            "chain_weight": float(weight.mean()),
            "acceptance": float(run.accept_prob.mean()),
            "diverging": float(run.diverging.float().mean()),
            "level_least": float(share.min()) * model.levels,  # 1 where all levels have equal shares of the chains
            "level_most": float(share.max()) * model.levels,
            "level_changed": float((run.level != run.path[-1]).float().mean()),  # near 0 if levels lie too far apart
            "chain_age": float(chains.age.double().mean()),
        }
        value = gap
        if self.tie and model.levels > 1:
            tie = (neighbour_classification if self.many_levels else level_classification)(model, *told)
            value, record["level_tie"] = gap + self.tie * tie, float(tie.detach())
        return Loss(value, record, float(gap.detach()), float(state.level_kernel.step_sizes.min()))

    def measure(self, model: LevelModel, state: PersistentState, data: Tensor) -> float:
        """Return the conditional noise contrast of held-out data at level 0: lower is better."""
        return conditional_contrast(model, data)

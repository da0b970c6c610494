"""Maximum likelihood with chains that outlive an update: DA-EBM over points and levels, and its relatives without.

The gradient of −log p(x, t) is ∇U at data less the mean of ∇U under the model, from chains in a buffer (Tieleman 2008).
With several levels these are joint chains (Zhang, Tan & Ou 2023).  Beginning a share of them anew at each update gives
hybrid training (Du & Mordatch 2019: a twentieth), all of them noise-initialized short runs (Nijkamp et al. 2019).
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from energyppl._checks import check_count
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import TunableKernel, casting, check_force_dtype
from energyppl.inference.levels.joint import JointModel, move_jointly
from energyppl.inference.levels.step_sizes import adapt_step_sizes, hand_kernel
from energyppl.inference.objectives.contract import Loss, check_model, check_tunable
from energyppl.inference.objectives.held_out import conditional_contrast
from energyppl.inference.objectives.level_allocation import allocate_levels
from energyppl.inference.objectives.persistent_chains import ChainBuffer, chain_contrast
from energyppl.schedule import NoiseSchedule

__all__ = ["PersistentLikelihood", "PersistentModel"]


class PersistentModel(JointModel, Protocol):
    """A model that keeps chains; ``energyppl.models.JointEBM`` and ``EBM`` are."""

    chains: ChainBuffer | None
    net: nn.Module
    schedule: NoiseSchedule | None
    loc: Tensor

    def to_unit(self, data: Tensor) -> Tensor:
        """Data in the coordinates of the energies."""
        ...

    def at_level(self, data: Tensor, level: Tensor) -> Tensor:
        """Rows of data ``(n, *event)`` at their levels ``(n,)``, standardized."""
        ...


@dataclass(frozen=True)
class PersistentLikelihood:
    """Persistent contrastive divergence, over levels too if the model has them (Zhang, Tan & Ou 2023, Algorithm 1).

    Args:
        kernel: moves the chains, and the model's from then on; the model's own, MALA, if None.
        buffer: the chains; the model's own if None.
        slots: chains to make if the model has none.
        num_steps: of the kernel at each update.
        sweeps: draws of the level at each update; the moves are shared among them.
        rejuvenate: share of the visited chains that begin anew from noise: 0 is persistent, 1 short runs from noise.
        adapt: steer each visited level's step size towards the kernel's target acceptance.
        room: nats for each dimension by which a chain's energy may exceed the data's of its level, until it counts as
            one of these: no place is e^room times as large, in every direction, as where the data are.  Without a limit
            a chain that is stuck is pushed up for ever, and training runs away; infinity takes it off.
        adaptation_rate: how fast: log step size moves by ``adaptation_rate * (acceptance − target)`` at each update.
        autocast: arithmetic of the loss, as in :class:`RecoveryLikelihood`.

    Raises:
        InvalidInput: for fewer moves than sweeps, a share outside [0, 1], a kernel without one step size, adaptation of
            one that never rejects, or chains that are no buffer.
    """

    kernel: TunableKernel | None = None
    buffer: ChainBuffer | None = None
    slots: int = 4096
    num_steps: int = 20
    sweeps: int = 2
    rejuvenate: float = 0.0
    adapt: bool = True
    room: float = 4.6
    adaptation_rate: float = 0.1
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_count("slots", self.slots)
        check_count("sweeps", self.sweeps)
        check_count("num_steps", self.num_steps, at_least=self.sweeps)
        check_force_dtype(self.autocast, "autocast")
        if not self.room > 0.0:
            raise InvalidInput(f"room must be positive; got {self.room}: infinity lets every chain count")
        if not 0.0 <= self.rejuvenate <= 1.0:
            raise InvalidInput(f"rejuvenate must lie in [0, 1]; got {self.rejuvenate}")
        check_tunable(self.kernel, adapt=self.adapt)
        if self.buffer is not None and not isinstance(self.buffer, ChainBuffer):
            raise InvalidInput(
                f"buffer must be a ChainBuffer; got {type(self.buffer).__name__}: pass none to have chains made"
            )

    def prepare(self, model: Any) -> None:
        """Give the model its kernel and its chains, before the optimizer and checkpoints look at it.

        Raises:
            InvalidInput: for another kind of model, or chains of another model or device.
        """
        needs = "persistent likelihood needs a model that keeps chains, as an EBM or a JointEBM"
        check_model(model, needs, "kernel", "step_sizes", "levels", "chains", "at_level")
        hand_kernel(model, self.kernel)
        if self.buffer is not None:
            self.buffer.check(model.event_shape, model.levels, model.loc)
            model.chains = self.buffer
        elif model.chains is None:
            model.chains = ChainBuffer(model.event_shape, max(self.slots, model.levels), model.levels).to(model.loc)

    def default_learning_rate(self, model: PersistentModel) -> float | None:
        """Without noise levels chains fall behind a density that sharpens as fast as recovery likelihood may."""
        return 1e-3 if model.levels == 1 else None

    def loss(self, model: PersistentModel, batch: Tensor) -> Loss:
        """Mean energy of ``batch``, ``(n, *event)``, at levels of equal shares, less that of as many chains."""
        self.prepare(model)
        chains = model.chains
        assert chains is not None
        level = allocate_levels(len(batch), model.levels, 0.0).to(model.loc.device)
        data = model.at_level(batch, level)
        slots = chains.draw(len(batch))
        chains.begin_anew(slots[torch.rand(len(slots), device=slots.device) < self.rejuvenate])

        num_steps = self.num_steps // self.sweeps
        run = move_jointly(model, chains.x[slots], chains.level[slots], sweeps=self.sweeps, num_steps=num_steps)
        chains.store(slots, run.x, run.level, num_steps * self.sweeps)
        if self.adapt:
            adapt_step_sizes(
                model.step_sizes,
                run.accept_prob.flatten(),
                run.path.flatten(),
                self.adaptation_rate,
                model.kernel.target_acceptance,
                largest=model.kernel.max_step_size,
            )
        with casting(data, self.autocast):
            energy = model.potential(torch.cat([level, run.level]))(torch.cat([data, run.x]))
        own, theirs = energy.to(data.dtype).split([len(data), len(slots)])
        room = self.room * math.prod(model.event_shape)
        gap, weight = chain_contrast(own, level, theirs, run.level, model.levels, room)
        share = torch.bincount(chains.level, minlength=model.levels).double() / len(chains)
        record = {
            "energy_gap": float(gap.detach()),
            "chain_weight": float(weight.mean()),
            "acceptance": float(run.accept_prob.mean()),
            "smallest_step": float(model.step_sizes.min()),
            "diverging": float(run.diverging.float().mean()),
            "level_least": float(share.min()) * model.levels,  # 1 where all levels have equal shares of the chains
            "level_most": float(share.max()) * model.levels,
            "level_changed": float((run.level != run.path[-1]).float().mean()),  # near 0 if levels lie too far apart
            "chain_age": float(chains.age.double().mean()),
        }
        return Loss(gap, record)

    def measure(self, model: PersistentModel, data: Tensor) -> float:
        """Conditional noise contrast of held-out data at level 0, which follows the likelihood: lower is better."""
        return conditional_contrast(model, data)

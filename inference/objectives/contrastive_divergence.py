"""Contrastive divergence: chains of a few steps from the data, and away from where they go."""

from dataclasses import dataclass

import torch
from torch import Tensor

from energyppl._checks import check_count, check_fields, check_positive
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.levels.contract import LevelModel
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.inference.objectives.contract import KernelState, Loss, check_model, check_tunable, training_hint
from energyppl.inference.objectives.held_out import conditional_contrast
from energyppl.inference.sampling.run_chain import run_chain

__all__ = ["ContrastiveDivergence"]


@dataclass(frozen=True)
class ContrastiveDivergence:
    """Contrastive divergence, CD-k (Hinton 2002): ∇U(data) − ∇U(chains), k steps after they started at the data.

    It is not maximum likelihood: what k steps can't reach from the data is never seen, so holes of the energy far away
    and the weights of separate modes stay as they are.  Longer chains bias less.  The energy also learns to make up for
    the bias of a kernel that never rejects, and training runs away unless its step is far below the finest feature.

    Args:
        kernel: moves the chains, and the model's from then on; the model's own kernel if None.
        steps: k.
        adapt: adapt the step size to the kernel's target acceptance, if it has one.
        adaptation_rate: how fast: log step size moves by ``adaptation_rate * (acceptance − target)`` at each update.

    Raises:
        InvalidInput: for steps below one, or a kernel without one step size.

    Example:
        >>> ebm = ep.EBM(ep.MLPEnergy((2,), levels=1))
        >>> history = ep.fit(ebm, torch.randn(200, 2), ep.objectives.ContrastiveDivergence(), steps=3, progress=False)
        >>> len(history.records)
        3
    """

    kernel: TunableKernel | None = None
    steps: int = 10
    adapt: bool = True
    adaptation_rate: float = 0.1

    def __post_init__(self) -> None:
        check_tunable(self.kernel)
        check_fields(self)
        check_positive("adaptation_rate", self.adaptation_rate)
        check_count("steps", self.steps)

    def init(self, model: LevelModel) -> KernelState:
        """Make the state: the kernel and its one step size.

        Raises:
            InvalidInput: for a model of several levels, or of another kind.
        """
        needs = "contrastive divergence needs a model of one energy with a kernel, as an EBM"
        check_model(model, needs, "initial_kernel", "levels")
        if model.levels != 1:
            raise InvalidInput(
                f"contrastive divergence is for a model of one energy; got {model.levels} levels of a "
                f"{type(model).__name__}: {training_hint(model)}"
            )
        return KernelState(LevelKernel(model.initial_kernel if self.kernel is None else self.kernel, 1, model.loc))

    def loss(self, model: LevelModel, state: KernelState, batch: Tensor) -> Loss:
        """Return the mean energy of ``batch``, ``(n, *event)``, less that of its chains; adapt the step size."""
        x, potential = model.to_unit(batch), model.potential()
        level = torch.zeros(len(x), dtype=torch.long, device=x.device)
        chain = run_chain(state.level_kernel.at(level), potential, x, self.steps)
        if self.adapt:
            state.level_kernel.adapt(chain.accept_prob, level, self.adaptation_rate)
        own, theirs = potential(torch.cat([x, chain.state.x])).split(len(x))
        gap = own.mean() - theirs.mean()
        record = {
            "acceptance": float(chain.accept_prob.mean()),
            "moved": float((chain.state.x - x).reshape(len(x), -1).norm(dim=1).mean()),
            "diverging": float(chain.diverging.float().mean()),
        }
        return Loss(gap, record, float(gap.detach()), float(state.level_kernel.step_sizes.min()))

    def measure(self, model: LevelModel, state: KernelState, data: Tensor) -> float:
        """Return the conditional noise contrast of held-out ``data``, ``(n, *event)``: a proper score without log Z."""
        return conditional_contrast(model, data)

"""Contrastive divergence: chains of a few steps from the data, and away from where they go."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from energyppl._checks import check_count
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.levels.step_sizes import Stepping, adapt_step_sizes, hand_kernel, kernel_at
from energyppl.inference.objectives.contract import Loss, ScoredModel, check_model, check_tunable, training_hint
from energyppl.inference.objectives.held_out import conditional_contrast
from energyppl.inference.sampling.run_chain import run_chain

__all__ = ["ContrastedChains", "ContrastiveDivergence"]


class ContrastedChains(ScoredModel, Stepping, Protocol):
    """What contrastive divergence needs of a model of one energy; :class:`~energyppl.EBM` is one."""


@dataclass(frozen=True)
class ContrastiveDivergence:
    """Contrastive divergence, CD-k (Hinton 2002): ∇U(data) − ∇U(chains), k steps after they started at the data.

    It is not maximum likelihood: what k steps can't reach from the data is never seen, so holes of the energy far away
    and the weights of separate modes stay as they are.  Longer chains bias less.  The energy also learns to make up for
    the bias of a kernel that never rejects, and training runs away unless its step is far below the finest feature.

    Args:
        kernel: moves the chains, and the model's from then on; the model's own kernel if None.
        steps: k.
        adapt: steer the step size, ``model.step_sizes``, towards the kernel's target acceptance, if it has one.
        adaptation_rate: how fast: log step size moves by ``adaptation_rate * (acceptance − target)`` at each update.

    Raises:
        InvalidInput: for steps below one, or a kernel without one step size.
    """

    kernel: TunableKernel | None = None
    steps: int = 10
    adapt: bool = True
    adaptation_rate: float = 0.1

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_tunable(self.kernel)

    def prepare(self, model: Any) -> None:
        """Give the model the kernel, and a place to keep its step size.

        Raises:
            InvalidInput: for a model of several levels, or of another kind.
        """
        check_model(model, "contrastive divergence needs a model of one energy with a kernel, as an EBM", "kernel")
        if getattr(model, "step_sizes", None) is None:
            model.register_buffer("step_sizes", next(model.parameters()).detach().new_zeros(1))
        if len(model.step_sizes) != 1:
            raise InvalidInput(
                f"contrastive divergence is for a model of one energy; got {len(model.step_sizes)} levels of a "
                f"{type(model).__name__}: {training_hint(model)}"
            )
        hand_kernel(model, self.kernel)

    def loss(self, model: ContrastedChains, batch: Tensor) -> Loss:
        """Mean energy of ``batch``, ``(n, *event)``, less that of its chains; steers ``model.step_sizes``."""
        self.prepare(model)
        x, potential = model.to_unit(batch), model.potential()
        level = torch.zeros(len(x), dtype=torch.long, device=x.device)
        chain = run_chain(kernel_at(model, level), potential, x, self.steps)
        if self.adapt:
            target, largest = model.kernel.target_acceptance, model.kernel.max_step_size
            adapt_step_sizes(model.step_sizes, chain.accept_prob, level, self.adaptation_rate, target, largest=largest)
        own, theirs = potential(torch.cat([x, chain.state.x])).split(len(x))
        gap = own.mean() - theirs.mean()
        record = {
            "energy_gap": float(gap.detach()),
            "acceptance": float(chain.accept_prob.mean()),
            "moved": float((chain.state.x - x).reshape(len(x), -1).norm(dim=1).mean()),
            "smallest_step": float(model.step_sizes.min()),
            "diverging": float(chain.diverging.float().mean()),
        }
        return Loss(gap, record)

    def measure(self, model: ContrastedChains, data: Tensor) -> float:
        """Conditional noise contrast of held-out ``data``, ``(n, *event)``: a proper score that needs no normalizer."""
        return conditional_contrast(model, data)

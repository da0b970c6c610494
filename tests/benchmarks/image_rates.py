"""Speed of image chains and updates, of ebmkit and of ours, on one network and batch, taking turns in one run."""

import functools
import time

import torch
from torch import Tensor, nn

import energyppl as ep
from tests.support.objectives import loss_of

LEVELS = 6


def rates(count: int) -> None:
    """Chains alone, and updates of ``count`` images with 10 moves, in CPU time of one thread.

    Other processes don't count.
    """
    from ebm.losses import DiffusionRecoveryLikelihood

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape, moves = (1, 28, 28), 10
    net, x = ep.ConvEnergy(shape, width=24, levels=LEVELS), torch.randn(count, *shape)

    class Told(nn.Module):
        """The network as ebmkit calls it; its noise levels make no difference to the cost."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.net(x, torch.zeros(len(x), dtype=torch.long))

    told, theirs = Told(), DiffusionRecoveryLikelihood(torch.linspace(1.0, 0.1, LEVELS + 1), mcmc_steps=moves)
    cases = {"ebmkit": lambda: theirs(told, x).loss}
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(LEVELS))
    for name, dtype in (("ours, float32", None), ("ours, bfloat16 chains and loss", torch.bfloat16)):
        for kernel in (ep.Langevin(0.1, force_dtype=dtype), ep.kernels.CrankNicolsonLangevin(0.1, force_dtype=dtype)):
            adapt = kernel.target_acceptance is not None
            recipe = ep.RecoveryLikelihood(kernel, steps=moves, autocast=dtype, adapt=adapt)
            cases[f"{name}, {type(kernel).__name__}"] = functools.partial(lambda r: loss_of(r, ebm, x).value, recipe)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for turn in range(6):
        for name, loss in cases.items():
            began = time.process_time()
            value = loss()
            middle = time.process_time()
            value.backward()
            if turn:  # the first is a warm-up
                spent[name].append((middle - began, time.process_time() - began))
    base = [sorted(times)[len(times) // 2] for times in zip(*spent["ebmkit"], strict=True)]
    for name, times in spent.items():
        chain, whole = (sorted(column)[len(column) // 2] for column in zip(*times, strict=True))
        print(
            f"{name}: {moves * len(x) / chain:.0f} moves of a chain a second ({base[0] / chain:.2f} of ebmkit's), an "
            f"update takes {whole:.2f} s ({whole / base[1]:.2f})",
            flush=True,
        )

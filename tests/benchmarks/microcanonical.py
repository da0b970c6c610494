"""Why the underdamped kernel is MALT: against a microcanonical one (MAMS, Robnik et al. 2025), each at its best length.

``python -m tests.benchmarks microcanonical [--warmup N] [--draws N] [TARGET …]``

Effective samples of the worst coordinate or square per 1,000 gradients, 64 chains after a tuned warm-up, for
trajectories of 1 to 16 steps; the best is printed with its length (ChEES finds its own).  Both are exact: MALT renews
its momenta on the way, MAMS moves at unit speed and renews its direction at the start of each trajectory.  The
microcanonical step is not defined in one dimension.
"""

import argparse
import math
from dataclasses import dataclass, replace
from typing import Any

import arviz as az
import torch
from torch import Tensor

import energyppl as ep
from energyppl.autodiff.gradient import energy_and_grad, gradient_only
from energyppl.inference.kernels.contract import Info, State, dot, evaluate, metropolis

CHAINS = 64


@dataclass(frozen=True, eq=False)
class MAMS:
    """Metropolis-adjusted microcanonical dynamics with full renewal of the direction."""

    step_size: float
    steps: int
    scale: Tensor

    def init(self, potential: Any, x: Tensor) -> State:
        return evaluate(potential, x)

    def step(self, potential: Any, state: State) -> tuple[State, Info]:
        length = max(1, round(self.steps * (1.0 + 0.2 * (2.0 * float(torch.rand(())) - 1.0))))
        x, grad, size = state.x, state.grad, state.x[0].numel()
        u = torch.randn_like(x)
        u = u / dot(u, u, state.energy).sqrt()[:, None]
        work = torch.zeros_like(state.energy)
        for i in range(length):
            u, gained = self._turn(u, grad, size)
            work = work + gained
            x = x + self.step_size * self.scale * u
            if i < length - 1:
                grad = gradient_only(potential, x)
            else:
                energy, grad = energy_and_grad(potential, x)
            u, gained = self._turn(u, grad, size)
            work = work + gained
        new, info = metropolis(state.energy - energy - work, State(x, energy, grad), state)
        return new, info._replace(gradients=length)

    def _turn(self, u: Tensor, grad: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Half a step of the direction, and the kinetic energy it gained (Robnik et al. 2023, eq. 15 and 17)."""
        force = -self.scale * grad
        norm = force.norm(dim=-1, keepdim=True).clamp(min=1e-20)
        e, delta = force / norm, 0.5 * self.step_size * norm / (size - 1)
        along = (e * u).sum(-1, keepdim=True)
        fade = torch.exp(-delta)
        new = u * fade + e * (0.5 * (1.0 - fade) * (1.0 + fade + along * (1.0 - fade)))
        growth = delta - math.log(2.0) + torch.log1p(along + (1.0 - along) * fade * fade)
        return new / new.norm(dim=-1, keepdim=True), (size - 1) * growth[:, 0]


def tuned(kernel: MAMS, potential: Any, x: Tensor, target: float, warmup: int) -> tuple[MAMS, Tensor]:
    """Adapt the step to an acceptance, and the scale to the chains' spread at a third and two thirds of the way."""
    state = kernel.init(potential, x)
    for i in range(warmup):
        state, info = kernel.step(potential, state)
        rate = 0.2 / math.sqrt(1 + i % (warmup // 3))
        size = kernel.step_size * math.exp(rate * (float(info.accept_prob.mean()) - target))
        kernel = replace(kernel, step_size=size)
        if i in (warmup // 3, 2 * warmup // 3):
            kernel = replace(kernel, scale=state.x.std(0))
    return kernel, state.x


def efficiency(kernel: Any, potential: Any, x: Tensor, draws: int) -> float:
    """Effective samples per 1,000 gradients of one chain."""
    chains = ep.sample_chains(kernel, potential, chains=CHAINS, draws=draws, warmup=0, init=x, progress=False)
    values = torch.cat([chains.draws, chains.draws**2], -1).numpy()
    worst = min(float(az.ess(values[..., j])) for j in range(values.shape[-1]))
    return 1000.0 * worst / CHAINS / chains.gradients


def targets() -> dict[str, Any]:
    """Analytic energies of 2 to 100 dimensions."""
    widths = torch.logspace(-1, 0.5, 10)
    basis = torch.linalg.qr(torch.randn(100, 100))[0]
    precision = basis @ torch.diag(torch.logspace(0, 2, 100)) @ basis.T
    return {
        "banana, 2-D": ep.toys.Banana(curvature=0.5, scale=1.0),
        "Gaussian, 10-D": ep.Energy(lambda x: 0.5 * ((x / widths) ** 2).sum(-1), torch.Size((10,))),
        "logistic, 50-D": ep.Energy(lambda x: torch.logaddexp(x, -x).sum(-1), torch.Size((50,))),
        "rotated, 100-D": ep.Energy(lambda x: 0.5 * ((x @ precision) * x).sum(-1), torch.Size((100,))),
    }


def main(arguments: list[str]) -> None:
    """One line for each target."""
    parser = argparse.ArgumentParser(prog="microcanonical", description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(targets()))
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--draws", type=int, default=400)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    for name, potential in targets().items():
        if name not in args.targets:
            continue
        start, found = torch.randn(CHAINS, *potential.event_shape), {}
        for steps in (1, 2, 4, 8, 16):
            for target in (0.65, 0.8):
                first = MAMS(0.3, steps, torch.ones(potential.event_shape))
                kernel, x = tuned(first, potential, start, target, args.warmup)
                found["MAMS", steps, target] = efficiency(kernel, potential, x, args.draws)
            for label, untuned in (("MALT", ep.kernels.MALT(steps=steps)), ("HMC", ep.HMC(steps=steps))):
                tuning = ep.adapt(untuned, potential, start, args.warmup, mass=ep.kernels.diagonal_mass)
                found[label, steps, 0.0] = efficiency(tuning.kernel, potential, tuning.state.x, args.draws)
        chees = ep.adapt(ep.ChEES(), potential, start, args.warmup, mass=ep.kernels.diagonal_mass)
        found["ChEES", 0, 0.0] = efficiency(chees.kernel, potential, chees.state.x, args.draws)
        best = {
            k: max((v, n) for (label, n, _), v in found.items() if label == k) for k in ("MALT", "MAMS", "HMC", "ChEES")
        }
        print(f"{name:16} " + ", ".join(f"{k} {v:.0f} ({n} steps)" for k, (v, n) in best.items()), flush=True)

"""Figure 4: does MDSM's energy at temperature σ²/σ0² have the variance of data with noise σ? By dimension.

``python -m tests.benchmarks temperature [--scale N]``

Data are N(0, I), the schedule is the paper's for CIFAR-10 (128 levels, 1.2 to 0.05, σ0 = 0.1), and the field is the
exact optimum of the loss, so nothing is due to a network.  Printed is E|x|²/d: what the law asks for, 1 + σ0² T; the
energy's own value, an integral over the radius; and that of unadjusted Langevin chains (ε = 0.02) with its standard
error. ``--scale`` multiplies the number of steps.
"""

import argparse
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

import energyppl as ep

CIFAR = torch.linspace(1.2, 0.05, 128, dtype=torch.float64)  # the paper's schedule for CIFAR-10
BASE = 0.1  # and its σ0


@dataclass(frozen=True, eq=False)
class ExactField:
    """The field that MDSM aims at where the data are N(0, I): ∇U = −∇A / (σ0² B), which is radial.

    Its value is no energy: only its gradient is right, all that annealing asks for.
    """

    event_shape: torch.Size
    sigmas: Tensor  # (levels,)

    @classmethod
    def cifar(cls, dimensions: int, dtype: torch.dtype = torch.float32) -> "ExactField":
        return cls(torch.Size((dimensions,)), CIFAR.to(dtype))

    def slope(self, square: Tensor) -> Tensor:
        """∇U = slope · x, at |x|² = square."""
        variance = 1.0 + self.sigmas**2
        log_p = -0.5 * (square[..., None] / variance + self.event_shape.numel() * variance.log())
        p = torch.softmax(log_p, -1)
        return (p @ (1.0 / variance)) / (p @ self.sigmas**-2) / BASE**2

    def __call__(self, x: Tensor) -> Tensor:
        square = (x * x).sum(-1)
        return 0.5 * self.slope(square).detach() * square

    def stationary(self, temperature: float) -> float:
        """E|x|²/d at a temperature, as the step size goes to 0: the radial energy by quadrature."""
        field = ExactField.cifar(d := self.event_shape.numel(), torch.float64)
        r = torch.linspace(1e-6, 2.2 * math.sqrt(d) + 6.0, 100_001, dtype=torch.float64)
        energy = torch.cumulative_trapezoid(field.slope(r * r) * r, r)
        log_p = (d - 1) * r[1:].log() - energy / temperature
        return float((torch.softmax(log_p, 0) * r[1:] ** 2).sum() / d)


def second_moment(
    potential: ExactField, temperature: float, chains: int, burn: int, kept: int
) -> tuple[float, float, float]:
    """E|x|²/d of chains at one temperature, its standard error, and the most that the step size may shift it by.

    Chains begin at p_σ, where the law says that they should stay.
    """
    d, step = potential.event_shape.numel(), 0.02
    variance = 1.0 + BASE**2 * temperature
    x = math.sqrt(variance) * torch.randn(chains, d)

    def run(x: Tensor, steps: int) -> Tensor:
        schedule = ep.levels.TemperatureSchedule(temperature, hot=steps, cooling=0, quench=0)
        return ep.levels.anneal_temperature(potential, x, schedule, step_size=step).x

    x, found = run(x, burn), []
    for _ in range(kept // 20):
        x = run(x, 20)
        found.append(x.square().mean(-1))
    each = torch.stack(found).mean(0)
    mean = float(each.mean())
    # Of a linear force: a step that takes x to (1 − b) x leaves the variance too large by 1 / (1 − b/2).
    bias = mean * 0.5 * (0.5 * step**2 * temperature / variance)
    return mean, float(each.std()) / math.sqrt(chains), bias


LAW = [  # dimensions, temperature, exact, chains, burn-in, kept
    (784, 1.0, 0.981, 64, 1000, 1000),
    (784, 25.0, 1.269, 64, 300, 300),
    (784, 100.0, 2.005, 64, 300, 300),
    (200, 1.0, 0.878, 64, 2500, 2000),
    (200, 25.0, 1.350, 64, 500, 500),
    (200, 100.0, 2.031, 64, 500, 500),
    (2, 1.0, 0.288, 500, 4000, 2000),
    (2, 25.0, 2.753, 500, 2000, 2000),
    (2, 100.0, 4.994, 500, 2000, 2000),
]

CHAINS = {784: 128, 200: 256, 2: 2000}


def main(arguments: list[str]) -> None:
    """One line for each dimension and temperature."""
    parser = argparse.ArgumentParser(prog="temperature", description=__doc__)
    parser.add_argument("--scale", type=float, default=2.0)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    print("  d     T     law   integral   chains ± standard error")
    for d, temperature, _, _, burn, kept in LAW:
        begin, field = time.perf_counter(), ExactField.cifar(d)
        mean, error, _ = second_moment(field, temperature, CHAINS[d], int(args.scale * burn), int(args.scale * kept))
        law, integral = 1.0 + BASE**2 * temperature, field.stationary(temperature)
        seconds = time.perf_counter() - begin
        line = f"{d:3} {temperature:5.0f}   {law:5.2f}   {integral:8.4f}   {mean:.4f} ± {error:.4f}"
        print(f"{line}   ({mean / law - 1.0:+.1%} of the law, {seconds:.0f} s)", flush=True)

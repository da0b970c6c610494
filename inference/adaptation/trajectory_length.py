"""Learn how long Hamiltonian trajectories should be, by comparing chains."""

import math

import torch
from torch import Tensor

from energyppl.inference.kernels.contract import Info, middle_step
from energyppl.inference.kernels.hamiltonian import ChEES, spread_share
from energyppl.inference.kernels.mass import MAX_DIMENSIONS, stepper

__all__ = ["TrajectoryLength"]

_RATE = 0.07  # of Adam on the log length
_MEMORY = 25.0  # steps that averages reach back
_PRICE = 0.75  # of gradients: below 1, because slow modes that one draw's autocorrelation hardly shows gain from length
_DIRECTIONS = 4
_STEEPEST = 2.0  # of log efficiency in log length, which grows as the length squared at most: beyond it is noise
_WORST = 4.0  # how much more the slowest functions count than the others


class TrajectoryLength:
    """Stochastic ascent of the log trajectory length, by Adam, on the effective samples that a gradient gives.

    ChEES (Hoffman, Radul & Sountsov 2021) follows the change of |x − E x|² over a trajectory, across chains.  That sum
    over coordinates is soon content when most coordinates are, and knows no cost.  Here each coordinate and its square
    is a function f of its own, and so are the directions in which draws spread most (as in SNAPER, Sountsov & Hoffman
    2022).  Its autocorrelation over one trajectory is ρ = 1 − s with s = ½ E[(f' − f)²] / Var f, so it gives
    (1 − ρ) / (1 + ρ) = s / (2 − s) effective samples a draw, and what is climbed is the logarithm of that, mostly of
    the slowest functions', over a power of the gradients spent.
    """

    def __init__(self, length: float) -> None:
        self.value = self.average = length
        self._seen = 0.0
        self._mean = self._square = self._fourth = self._jump = torch.empty(0)
        self._second, self._count, self._shares = 0.0, 0, 0
        self._directions: Tensor | None = None  # (event elements, k)

    def update(self, x: Tensor, end: Tensor, u: Tensor, info: Info, kernel: ChEES, share: float) -> None:
        """PilotRun by one step's proposals.

        Args:
            x: where the chains began, ``(*chains, *event)``.
            end: the ends of their trajectories.
            u: whitened momenta there.
            info: of the accept step.
            kernel: that made it.
            share: the trajectory's length as a share of the longest.
        """
        chains, step = info.accept_prob.dim(), middle_step(kernel)
        velocity = torch.zeros_like(u)
        stepper(1.0, kernel.inverse_mass, u, u.shape[chains:]).drift(velocity, u)
        x, end, velocity = (v.reshape(info.accept_prob.numel(), -1) for v in (x, end, velocity))
        accept = info.accept_prob.reshape(-1, 1)
        fine = torch.isfinite(end.sum(1) + velocity.sum(1) + x.sum(1)) & (accept[:, 0] > 0)
        if int(fine.sum()) < 2:
            return
        x, end, velocity, accept = x[fine], end[fine], velocity[fine], accept[fine]
        if self._directions is not None:
            x, end, velocity = (torch.cat([v, v @ self._directions], 1) for v in (x, end, velocity))
        self._remember(x)
        x, end = x - self._mean, end - self._mean
        change = torch.cat([end - x, end * end - x * x], 1)
        rate = torch.cat([velocity, 2.0 * end * velocity], 1)
        share_kept = len(x) / info.accept_prob.numel()
        jump = 0.5 * share_kept * (accept * change * change).mean(0)
        pilot_run = share_kept * (accept * change * rate).mean(0) * (share * self.value)
        self._jump = self._blend(self._jump, jump)
        variance = torch.cat([self._square, (self._fourth - self._square**2).clamp(min=0.0)])
        s = (self._jump / variance.clamp(min=1e-30)).clamp(1e-6, 1.9)
        weight = torch.softmax(-_WORST * torch.log(s / (2.0 - s)), 0)
        adaptation_rate = pilot_run / self._jump.clamp(min=1e-30) * 2.0 / (2.0 - s)
        # A trajectory costs about .65 T/ε + ½ gradients: of that, this is the share that grows with T.
        relative = float((weight * adaptation_rate).sum()) - _PRICE * self.value / (self.value + 0.77 * step)
        if math.isfinite(relative):
            self._move(relative, step, kernel.max_steps)

    def next_share(self) -> float:
        """The next trajectory's length as a share of the longest: van der Corput's sequence, which covers evenly."""
        self._shares += 1
        digits = f"{self._shares:b}"[::-1]
        return spread_share(int(digits, 2) / 2 ** len(digits))

    def look_along(self, draws: Tensor) -> None:
        """Follow the widest directions of standardized draws, ``(n, *event)``, from now on."""
        flat = draws.reshape(len(draws), -1)
        if 2 <= flat.shape[1] <= MAX_DIMENSIONS:
            scale = flat.std(0).clamp(min=1e-30)
            covariance = torch.cov(((flat - flat.mean(0)) / scale).T)
            self._directions = torch.linalg.eigh(covariance).eigenvectors[:, -_DIRECTIONS:] / scale[:, None]
            self._seen = 0.0

    def rescale(self, ratio: float) -> None:
        """The whitened coordinates' unit has become ``ratio`` times as long."""
        self.value /= ratio
        self.average /= ratio

    def _remember(self, x: Tensor) -> None:
        """Moments of the coordinates over chains and recent steps."""
        self._seen += 1.0
        if self._seen == 1.0:
            self._mean, self._square, self._fourth = x.mean(0), x.var(0), 3.0 * x.var(0) ** 2
            self._jump = torch.zeros(2 * x.shape[1], dtype=x.dtype, device=x.device)
        self._mean = self._blend(self._mean, x.mean(0))
        centred = (x - self._mean) ** 2
        self._square = self._blend(self._square, centred.mean(0))
        self._fourth = self._blend(self._fourth, (centred * centred).mean(0))

    def _blend(self, old: Tensor, new: Tensor) -> Tensor:
        return torch.lerp(old, new, 1.0 / min(self._seen, _MEMORY))

    def _move(self, relative: float, step: float, max_steps: int) -> None:
        relative = max(-_STEEPEST, min(_STEEPEST, relative))
        self._count += 1
        self._second += (relative**2 - self._second) * 0.05
        pilot_run = _RATE * relative / math.sqrt(self._second / (1 - 0.95**self._count) + 1e-12)
        longer = self.value * math.exp(max(-0.35, min(0.35, pilot_run)))
        self.value = min(max_steps * step, max(step, longer))
        weight = self._count**-0.5
        self.average = math.exp(weight * math.log(self.value) + (1 - weight) * math.log(self.average))

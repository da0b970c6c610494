"""Learn how long Hamiltonian trajectories should be, by comparing chains."""

import math

import torch
from torch import Tensor

from energyppl.inference.hamiltonian import ChEES
from energyppl.inference.mass import LowRankMass
from energyppl.inference.transition import Info, dot

__all__ = ["TrajectoryLength"]


_RATE = 0.05  # of Adam on the log length
# What is maximised is ChEES over the root of the gradients it costs.  Measured on seven targets at 16 to 1,000 chains,
# ChEES alone makes trajectories too long for the effective samples a gradient gives, ChEES over gradients too short.
_COST = 0.5


class TrajectoryLength:
    """Stochastic ascent of the log trajectory length on ChEES, with a price on gradients."""

    def __init__(self, length: float) -> None:
        self.value = self.average = length
        self._criterion = self._second = 0.0
        self._count = 0

    def update(self, x: Tensor, proposed: Tensor, u: Tensor, info: Info, kernel: ChEES, share: float) -> None:
        """Climb by one step's proposals: d/dlog T of ¼ E[(|x' − E x'|² − |x − E x|²)²] (eq. 13 of the paper).

        Args:
            x: where the chains began, ``(*chains, *event)``.
            proposed: the ends of their trajectories.
            u: whitened momenta there.
            info: of the accept step.
            kernel: that made it.
            share: the trajectory's length as a share of the longest.
        """
        chains, step = info.accept_prob.dim(), float(torch.as_tensor(kernel.step_size).median())
        variance = kernel.inverse_mass.variance if isinstance(kernel.inverse_mass, LowRankMass) else kernel.inverse_mass
        if variance is not None:
            x, proposed = x / variance.sqrt(), proposed / variance.sqrt()
        over = tuple(range(chains))
        fine = torch.isfinite(proposed.flatten(chains).sum(-1)) & torch.isfinite(u.flatten(chains).sum(-1))
        weight = torch.where(fine, info.accept_prob, 0.0)
        total = float(weight.sum())
        if total <= 0.0:
            return
        wide = weight.reshape(weight.shape + (1,) * (x.dim() - chains))
        proposed, u = torch.where(wide > 0, proposed, 0.0), torch.where(wide > 0, u, 0.0)
        before = x - x.mean(over)
        after = proposed - (wide * proposed).sum(over) / total
        change = dot(after, after, weight) - dot(before, before, weight)
        gradient = float((weight * change * dot(after, u, weight)).sum() / total) * share * self.value
        criterion = float((weight * change * change).sum() / total) * 0.25
        if not (math.isfinite(gradient) and math.isfinite(criterion)):
            return
        self._count += 1
        self._criterion += (criterion - self._criterion) * max(0.05, 1 / self._count)
        # A trajectory costs about ½ (T/ε + 1) gradients: of that, this is the share that grows with T.
        cost = self.value / (self.value + step)
        relative = gradient / max(self._criterion, 1e-30) - _COST * cost
        self._second += (relative**2 - self._second) * 0.05
        climb = _RATE * relative / math.sqrt(self._second / (1 - 0.95**self._count) + 1e-12)
        longer = self.value * math.exp(max(-0.35, min(0.35, climb)))
        self.value = min(kernel.most_steps * step, max(step, longer))
        weight_now = self._count**-0.5
        self.average = math.exp(weight_now * math.log(self.value) + (1 - weight_now) * math.log(self.average))

"""Chains of many posteriors at once, thinned until their draws are nearly independent."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from energyppl.distributions import EnergyDistribution
from energyppl.errors import ChainWarning
from energyppl.inference.adaptation.warmup import adapt
from energyppl.inference.kernels.composite import Block, Cycle, Mixture, Tempered
from energyppl.inference.kernels.contract import Kernel, StepSizeTunable
from energyppl.inference.kernels.mass import MassEstimate
from energyppl.inference.sampling.chains import Chains
from energyppl.inference.sampling.replicates import ReplicatedModel
from energyppl.inference.sampling.sample_chains import sample_chains
from energyppl.inference.sampling.targets import Target
from energyppl.potentials.algebra import Potential
from energyppl.potentials.composed import Standardized

__all__ = ["ReplicateChains", "ReplicateDraws"]

_SCALING = 50  # draws of each chain that say how wide a posterior is
_PILOT = 100  # draws of each chain that tell how far apart kept ones must lie
_SLOWEST = 0.95  # of the data sets are thinned until their draws are nearly independent
_DISAGREE = 1.1  # split R̂ of a pilot run


class ReplicateDraws(NamedTuple):
    """Draws of each replicate's posterior."""

    z: Tensor  # (n, L, D), unconstrained
    energy: Tensor  # (n, L), nats


@dataclass(frozen=True, eq=False)
class _OneOfOne:
    """The potential of one data set, which takes the points of a batch of one."""

    potential: Any

    @property
    def event_shape(self) -> torch.Size:
        shape: torch.Size = self.potential.event_shape
        return shape

    def __call__(self, x: Tensor) -> Tensor:
        energy: Tensor = self.potential(x)
        return energy


class ReplicateChains:
    """Chains of the posteriors of replicates, and what is to be said of them.

    Args:
        kernel: moves the chains.
        chains: of each posterior.
        draws: L, kept of each posterior, all chains together.
        warmup: steps.
        max_thin: steps between kept draws of a chain, at most.
        mass: how masses are estimated.
        progress: show bars.
    """

    def __init__(
        self, kernel: Kernel, chains: int, draws: int, warmup: int, max_thin: int, mass: MassEstimate, progress: bool
    ) -> None:
        self._kernel, self._chains, self._draws, self._warmup = kernel, chains, draws, warmup
        self._max_thin, self._mass, self._progress = max_thin, mass, progress
        self._disagreeing = self._stuck = self._correlated = self._total = 0
        self.thin: list[int] = []

    def sample(self, posteriors: ReplicatedModel) -> ReplicateDraws:
        """Sample all posteriors: at once, or one after another if the model can't be batched."""
        if posteriors.vectorized():
            return self._sampled(posteriors, len(posteriors), posteriors)
        one_by_one = [self._sampled(_OneOfOne(posteriors.given(i)), 1, posteriors) for i in range(len(posteriors))]
        return ReplicateDraws(*(torch.cat(parts) for parts in zip(*one_by_one, strict=True)))

    def _sampled(self, potential: Potential, sets: int, posteriors: ReplicatedModel) -> ReplicateDraws:
        start = Target.of(_batch(potential, sets)).start(self._chains, posteriors.potential.initial)
        with _quietly():  # what sample_chains would warn of is said in the notes
            kernel, x, loc, scale = self._warmed_up(potential, start)
            target = _batch(Standardized(potential, -loc / scale, 1.0 / scale), sets)
            pilot = sample_chains(kernel, target, draws=_PILOT, init=(x - loc) / scale, **self._fixed)
            kept = -(-self._draws // self._chains)
            run = sample_chains(
                kernel, target, draws=kept, thin=self._judge(pilot), init=pilot.draws[:, -1].to(x), **self._fixed
            )
        # (chains, kept, n, …) to (n, chains · kept, …)
        u, energy = (part.flatten(0, 1).transpose(0, 1)[:, : self._draws] for part in (run.draws, run.energy))
        return ReplicateDraws((loc.cpu() + scale.cpu() * u.transpose(0, 1)).transpose(0, 1), energy)

    @property
    def _fixed(self) -> dict[str, Any]:
        return {"chains": self._chains, "warmup": 0, "progress": self._progress}

    def _warmed_up(self, potential: Potential, x: Tensor) -> tuple[Kernel, Tensor, Tensor, Tensor]:
        """Return the tuned kernel, where its chains are, and each posterior's location and scale, ``(n, D)``."""
        kernel, n = self._kernel, x.shape[1]
        zero = torch.zeros_like(x[0])
        if self._warmup < 2:
            return kernel, x, zero, zero + 1.0
        if isinstance(kernel, Cycle | Mixture | Block | Tempered) or not isinstance(kernel, StepSizeTunable):
            found = adapt(kernel, potential, x, self._warmup, mass=self._mass)
            return found.kernel, found.state.x, zero, zero + 1.0
        groups = torch.arange(n, device=x.device).expand(x.shape[:2])
        first = adapt(kernel, potential, x, self._warmup // 2, groups=groups, mass=self._mass)
        seen = sample_chains(first.kernel, _batch(potential, n), draws=_SCALING, init=first.state.x, **self._fixed)
        spread, loc = (part.to(x) for part in torch.std_mean(seen.draws.flatten(0, 1).double(), 0))
        scale = torch.where(spread > 0, spread, 1.0)
        x = seen.draws[:, -1].to(x)
        unit = Standardized(potential, -loc / scale, 1.0 / scale)
        more = self._warmup - self._warmup // 2
        tuned = adapt(kernel, unit, (x - loc) / scale, more, groups=groups, mass=self._mass)
        return tuned.kernel, loc + scale * tuned.state.x, loc, scale

    def _judge(self, pilot: Chains) -> int:
        """Say how many steps must lie between draws, and take note of what goes wrong."""
        values = torch.cat([pilot.draws, pilot.energy.unsqueeze(-1)], -1).double()
        length = values.shape[0] * values.shape[1] / effective_sample_size(values, chain_dim=0, sample_dim=1)
        length = length.nan_to_num(math.inf).amax(-1)  # (n,), steps that one independent draw takes
        slow = float(torch.quantile(length, _SLOWEST, interpolation="lower"))
        thin = self._max_thin if slow > self._max_thin else max(1, math.ceil(slow))
        r_hat = pilot.r_hat().nan_to_num(math.inf).amax(-1)
        self._total += len(length)
        self._correlated += int((length > 2.0 * self._max_thin).sum())
        self._disagreeing += int((r_hat > _DISAGREE).sum())
        self._stuck += int(pilot.stuck.any(0).sum())
        self.thin.append(thin)
        return thin

    def notes(self) -> list[str]:
        """Say what went wrong with the chains."""
        said = {
            "chains disagree (split R̂ above 1.1): a longer warm-up or another kernel is needed": self._disagreeing,
            "a chain hardly moved": self._stuck,
            f"draws {self._max_thin} steps apart are still autocorrelated: raise max_thin": self._correlated,
        }
        return [f"at {count} of {self._total} data sets {words}" for words, count in said.items() if count]


def _batch(potential: Potential, sets: int) -> EnergyDistribution:
    return EnergyDistribution(potential, batch_shape=(sets,))


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChainWarning)
        yield

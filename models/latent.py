"""LatentPrior: a learned energy as the prior of latent variables, whose chains and log Z follow its weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_positive
from energyppl.autodiff.gradient import energy_only
from energyppl.distributions import EnergyDistribution
from energyppl.errors import warn_user
from energyppl.inference.kernels.contract import TunableKernel
from energyppl.inference.normalizing.annealing import effective_size, log_mean_exp
from energyppl.inference.objectives.contract import check_tunable
from energyppl.inference.sampling.run_chain import run_chain
from energyppl.models._cache import lazy_log_z
from energyppl.models.ebm import EBM
from energyppl.potentials.algebra import Potential

__all__ = ["LatentPrior"]

_RESAMPLED_BELOW = 0.5  # of the chains, effective
_LOST = 0.05  # of the chains: below, one change of the weights was too large for them to follow
_SAMPLED_STEPS = 10  # of a chain, before it is handed out as a draw, so that draws of one chain differ


class LatentPrior(EBM):
    """A prior of latents ``p(z) ∝ exp(−U(z))``, such as ``U = f(z) + ½|z|²``, learned inside Pyro models.

    ``pyro.sample("z", prior.marginal())`` is an ordinary site (Pang et al. 2020).  Its ``log_prob`` is normalized by a
    log Z that costs a few moves of persistent chains for each gradient: chains begin at N(0, I) and carry weights, by
    Jarzynski's equality, for each change of the network (Carbone et al. 2023).  There are two groups.  One gives the
    gradient of log Z, −Σ w_i ∂U(z_i): it would be right up to O(1 / chains), however few the moves, if the network did
    not learn from these very chains, and as it is chains that miss a mode teach it wrongly, as in all persistent
    contrastive divergence.  The other gives log Z's value: the mean of its weights is an unbiased estimate of Z but for
    what the adaptation of the step size adds, since the network never sees it.  Chains move in the backward pass only:
    an evaluation of the density costs none, and its log Z is that of the last backward pass.

    Args:
        net: U, as a network ``net(z)`` or ``net(z, level)`` from ``(*batch, *event)`` to ``(*batch,)`` that rises about
            as ½|z|², as ``MLPEnergy((16,), levels=1)`` does.
        event_shape: shape of one latent point; taken from ``net.event_shape`` if it has one.
        kernel: moves the chains; it must accept and reject; MALA if None.
        chains: how many last, in each group.
        num_steps: moves of each at each backward pass.
        adaptation_rate: log step size moves by ``adaptation_rate * (acceptance − target)``.

    Raises:
        InvalidInput: if the network returns another shape or non-finite values, or for a kernel that never rejects.

    Example:
        >>> import pyro.distributions as dist
        >>> prior, decoder = ep.models.LatentPrior(ep.MLPEnergy((4,), levels=1)), torch.nn.Linear(4, 10)
        >>> def model(x):
        ...     pyro.module("prior", prior), pyro.module("decoder", decoder)
        ...     with pyro.plate("rows", len(x)):
        ...         z = pyro.sample("z", prior.marginal())
        ...         pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)
        >>> guide = ep.objectives.PosteriorGuide(model, steps=5)
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
        >>> svi.step(torch.randn(32, 10)) > 0
        True
    """

    chain_points: Tensor
    chain_energy: Tensor
    log_weights: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        event_shape: Sequence[int] | None = None,
        kernel: TunableKernel | None = None,
        chains: int = 512,
        num_steps: int = 5,
        adaptation_rate: float = 0.1,
    ) -> None:
        check_tunable(kernel, adapt=True)
        check_count("chains", chains, at_least=8)
        check_count("num_steps", num_steps)
        check_positive("adaptation_rate", adaptation_rate)
        super().__init__(net, event_shape=event_shape, kernel=kernel)
        self.num_steps, self.adaptation_rate = num_steps, adaptation_rate
        points = torch.randn(2, chains, *self.event_shape).to(self.loc)
        self.register_buffer("chain_points", points)  # of the gradient's group, then of the value's
        square = points.flatten(2).square().sum(2)
        base_energy = 0.5 * square + 0.5 * self.event_shape.numel() * math.log(2.0 * math.pi)
        self.register_buffer("chain_energy", base_energy)
        self.register_buffer("log_weights", torch.zeros(2, chains, dtype=torch.float64, device=self.loc.device))

    @property
    def tracked_log_z(self) -> float:
        """Log Z as the second group's weights tell it, in nats, of the network at the last backward pass."""
        return float(log_mean_exp(self.log_weights[1]))

    def marginal(self, level: int = 0) -> EnergyDistribution:
        """Return p(z) as a Pyro distribution, whose log Z and draws come from the persistent chains."""
        return EnergyDistribution(
            self.potential(level), sampler=_ChainSampler(self), log_normalizer=_TrackedLogZ(self), like=self.loc
        )

    def track(self) -> None:
        """Let the chains follow the network as it is now: weigh the change of energies, then move.

        A backward pass through ``log_prob`` does so; call it to bring log Z up to date after the last update.
        """
        potential = self.potential()
        with torch.no_grad():
            change = self.chain_energy - energy_only(potential, self.chain_points)
            log_weights = self.log_weights + torch.nan_to_num(change.double(), nan=-math.inf, posinf=-math.inf)
            sizes, points = effective_size(log_weights.mT), self.chain_points.clone()
            count = points.shape[1]
            if float(sizes.min()) < _LOST * count:
                warn_user(
                    "the network of the prior changed too much for its chains to follow: the effective sample size of "
                    f"their weights is {float(sizes.min()):.0f} of {count}, and log Z is uncertain; take a smaller "
                    "learning rate, or call restart()"
                )
            for group in (sizes < _RESAMPLED_BELOW * count).nonzero()[:, 0].tolist():
                index = torch.multinomial(torch.softmax(log_weights[group], 0), count, replacement=True)
                points[group] = points[group, index]
                log_weights[group] = log_mean_exp(log_weights[group])
            self._move(potential, points)
            self.log_weights.copy_(log_weights)

    def restart(self, steps: int = 1000) -> None:
        """Begin the chains anew at the network as it is now, with log Z by annealing.

        Args:
            steps: of the chains, from N(0, I).
        """
        self.log_weights.fill_(self.log_normalizer().estimate)
        self._move(self.potential(), self.sample(self.chain_points.shape[:2], steps=steps))

    def negatives(self, level: int) -> Tensor:
        """Return the gradient's persistent chains, drawn by their weights, ``(chains, *event)``."""
        return self._drawn(self.chain_points.shape[1])

    def _drawn(self, count: int) -> Tensor:
        index = torch.multinomial(torch.softmax(self.log_weights[0], 0), count, replacement=True)
        return self.chain_points[0, index]

    def _move(self, potential: Potential, points: Tensor) -> None:
        level = torch.zeros(points.shape[:2], dtype=torch.long, device=points.device)
        end = run_chain(self.level_kernel.at(level), potential, points, self.num_steps)
        self.level_kernel.adapt(end.accept_prob.flatten(), level.flatten(), self.adaptation_rate)
        self.chain_points.copy_(end.state.x)
        self.chain_energy.copy_(end.state.energy)


@dataclass(frozen=True, eq=False)
class _ChainSampler:
    """Draws of persistent chains, moved on for a while."""

    prior: LatentPrior

    def __call__(self, potential: Potential, shape: torch.Size, like: Tensor) -> Tensor:
        prior, count = self.prior, max(1, shape.numel())
        level = torch.zeros(count, dtype=torch.long, device=prior.loc.device)
        end = run_chain(prior.level_kernel.at(level), prior.potential(), prior._drawn(count), _SAMPLED_STEPS)
        return end.state.x[: shape.numel()].reshape(*shape, *prior.event_shape).to(like)


@dataclass(frozen=True, eq=False)
class _TrackedLogZ:
    """log Z by weighted chains, which move when its gradient is asked for."""

    prior: LatentPrior

    def __call__(self, potential: Potential, value: Tensor) -> Tensor:
        estimate = value.new_tensor(self.prior.tracked_log_z)
        if not torch.is_grad_enabled():
            return estimate
        return lazy_log_z(estimate, self._minus_mean_energy, list(self.prior.parameters()))

    def _minus_mean_energy(self) -> Tensor:
        prior = self.prior
        prior.track()
        shares = torch.softmax(prior.log_weights[0], 0).to(prior.loc)
        mean: Tensor = (shares * prior.potential()(prior.chain_points[0])).sum()
        return -mean

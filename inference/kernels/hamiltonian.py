"""Hamiltonian kernels: trajectories of leapfrog steps whose lengths are fixed, jittered, or learned across chains."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_between, check_count, check_positive, is_number
from energyppl.autodiff.gradient import energy_and_grad, energy_only, gradient_only, gradients_along
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import (
    Info,
    State,
    StepSizeTunable,
    check_force_dtype,
    dot,
    evaluate,
    metropolis,
    middle_step,
)
from energyppl.inference.kernels.mass import InverseMass, Stepper, check_inverse_mass, stepper
from energyppl.potentials.algebra import Potential

__all__ = [
    "HMC",
    "MALT",
    "ChEES",
    "LengthTunable",
    "LongProposal",
    "Proposal",
    "leapfrog",
    "spread_share",
    "trajectory",
]

LARGEST_ERROR = 1000.0  # nats, as in Stan: a trajectory that gains this much has left the level set it should follow


class Proposal(NamedTuple):
    """One trajectory: the next state and its record, and the end that was proposed."""

    state: State
    info: Info
    end: State
    momenta: Tensor  # (*chains, *event), whitened, at the end


class LongProposal(NamedTuple):
    """One trajectory as the adaptation of its length needs it.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> kernel = ep.ChEES()
        >>> proposal = kernel.propose(normal, kernel.init(normal, torch.ones(4, 2)), 0.5)
        >>> proposal.velocity.shape
        torch.Size([4, 2])
    """

    state: State
    info: Info
    end: State
    velocity: Tensor  # (*chains, *event), dx / dt at the end


@runtime_checkable
class LengthTunable(StepSizeTunable, Protocol):
    """A kernel of trajectories, all of one length, which :func:`~energyppl.adapt` learns by comparing chains.

    Example:
        >>> isinstance(ep.ChEES(), ep.kernels.LengthTunable), isinstance(ep.HMC(), ep.kernels.LengthTunable)
        (True, False)
    """

    @property
    def length(self) -> float:
        """Length of the longest trajectory, in units of the step size times leapfrog steps."""
        ...

    @property
    def max_steps(self) -> int:
        """Leapfrog steps of a trajectory at most."""
        ...

    def with_length(self, length: float) -> "LengthTunable":
        """Return the same kernel with another trajectory length."""
        ...

    def propose(self, potential: Potential, state: State, share: float) -> LongProposal:
        """Move every chain by one trajectory of ``share`` times the length, and tell where it ended."""
        ...


def leapfrog(
    potential: Potential,
    state: State,
    u: Tensor,
    by: Stepper,
    steps: int,
    force_dtype: torch.dtype | None = None,
) -> tuple[State, Tensor]:
    """Make ``steps`` leapfrog steps from ``state`` with whitened momenta ``u``, ``(*chains, *event)``.

    The energy is worked out only at the end.  With a ``force_dtype`` the forces come from cheaper arithmetic: any
    deterministic force keeps the map reversible and volume-preserving, so the accept step makes it exact.
    """
    x, u, grad = state.x.clone(), u.clone(), state.grad
    by.kick(u, grad, 0.5)
    gradient = gradients_along(potential, x, force_dtype)
    for _ in range(steps - 1):
        by.drift(x, u)
        by.kick(u, gradient(x)[0], 1.0)
    by.drift(x, u)
    if force_dtype is None:
        energy, grad = energy_and_grad(potential, x)
    else:
        energy, grad = energy_only(potential, x), gradient_only(potential, x, force_dtype)
    by.kick(u, grad, 0.5)
    return State(x, energy, grad), u


def trajectory(kernel: "HMC | ChEES", potential: Potential, state: State, steps: int) -> Proposal:
    """Draw momenta, follow a trajectory of ``steps`` steps and accept or reject its end."""
    by = stepper(kernel.step_size, kernel.inverse_mass, state.x, potential.event_shape)
    start = torch.randn_like(state.x)
    end, u = leapfrog(potential, state, start, by, steps, kernel.force_dtype)
    before, after = (s.energy.add(dot(v, v, s.energy), alpha=0.5) for s, v in ((state, start), (end, u)))
    error = after - before
    new, info = metropolis(-error, end, state)
    return Proposal(new, judged(info, error, steps, torch.where(info.accepted, after, before)), end, u)


def judged(info: Info, error: Tensor, gradients: int, total_energy: Tensor) -> Info:
    """Add what a trajectory knows to what an accept step does; too large an energy error counts as diverging."""
    diverging = info.diverging | (error > LARGEST_ERROR)
    return Info(info.accept_prob, info.accepted, diverging, gradients, total_energy)


def spread_share(uniform: float) -> float:
    """Turn a uniform number in [0, 1) into a ``ChEES`` trajectory's length as a share of the longest.

    Shorter ones than .3 hardly move; equal ones fall in step with the target's periods.  Measured on six targets, from
    0 on costs a tenth of the effective samples, and from .5 on one run in three on rings learns far too long a length.
    """
    return 0.3 + 0.7 * uniform


@dataclass(frozen=True, eq=False)
class HMC:
    """Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011) with a given number of leapfrog steps.

    Args:
        step_size: ε of a leapfrog step, a number or one for each chain, ``(*chains,)``.
        steps: leapfrog steps of a trajectory.
        jitter: each trajectory has between ``1 − jitter`` and ``1 + jitter`` times as many, drawn anew for all chains
            together: a fixed length can fall in step with the target's own periods.
        inverse_mass: None for the identity, variances ``(*event)``, or a :class:`LowRankMass`.
        force_dtype: arithmetic of the forces along the trajectory, ``torch.bfloat16`` for large networks; its end is
            judged by the energy's own dtype, so the target stays exact.

    Raises:
        InvalidInput: for a step size that is not positive and finite, fewer than one step, a jitter outside [0, 1], or
            an inverse mass of another kind.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> kernel = ep.HMC(step_size=0.3, steps=5)
        >>> state, info = kernel.step(normal, kernel.init(normal, torch.randn(8, 2)))
        >>> state.x.shape, info.accept_prob.shape
        (torch.Size([8, 2]), torch.Size([8]))
    """

    step_size: float | Tensor = 0.1
    steps: int = 10
    jitter: float = 0.2
    inverse_mass: InverseMass = None
    force_dtype: torch.dtype | None = None
    target_acceptance: ClassVar[float | None] = 0.8
    max_step_size: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_count("steps", self.steps)
        check_between("jitter", self.jitter, 0.0, 1.0, closed=True)
        check_inverse_mass(self.inverse_mass)
        check_force_dtype(self.force_dtype)

    def with_step_size(self, step_size: float | Tensor) -> "HMC":
        """Return the same kernel with another step size."""
        return replace(self, step_size=step_size)

    def resized(self, step: Tensor, width: Tensor, marginal_std: Tensor) -> "HMC":
        """Return the same kernel with steps of ``step`` widths."""
        return replace(self, step_size=step * width)

    def with_inverse_mass(self, inverse_mass: InverseMass) -> "HMC":
        """Return the same kernel with another inverse mass."""
        return replace(self, inverse_mass=inverse_mass)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return evaluate(potential, x, self.force_dtype)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Move every chain by one trajectory."""
        stretch = 1.0 + self.jitter * (2.0 * float(torch.rand(())) - 1.0) if self.jitter else 1.0
        proposal = trajectory(self, potential, state, max(1, round(stretch * self.steps)))
        return proposal.state, proposal.info


@dataclass(frozen=True, eq=False)
class ChEES:
    """HMC whose trajectory length is learned across chains (Hoffman, Radul & Sountsov 2021): the many-chain default.

    Each trajectory's length is uniform between .3 and 1 times ``length``, the same for all chains, so none waits for
    another.  :func:`~energyppl.adapt` tunes step size, mass and length; it needs several chains to compare,
    16 or more to do it well.

    Args:
        step_size: ε of a leapfrog step, a number or one for each chain, ``(*chains,)``.
        length: of the longest trajectory, in units of the whitened coordinates.
        inverse_mass: as in :class:`HMC`.
        force_dtype: as in :class:`HMC`.
        max_steps: leapfrog steps of a trajectory at most.

    Raises:
        InvalidInput: for a step size or a length that is not positive and finite, fewer than one step, or an inverse
            mass of another kind.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> chains = ep.sample_chains(ep.ChEES(), normal, chains=64, draws=60, warmup=50, progress=False)
        >>> chains.samples["x"].shape
        torch.Size([64, 60, 2])
    """

    step_size: float | Tensor = 0.1
    length: float = 1.0
    inverse_mass: InverseMass = None
    force_dtype: torch.dtype | None = None
    max_steps: int = 512
    target_acceptance: ClassVar[float | None] = 0.8

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_positive("length", self.length)
        check_count("max_steps", self.max_steps)
        check_inverse_mass(self.inverse_mass)
        check_force_dtype(self.force_dtype)

    def steps_for(self, share: float) -> int:
        """Count the leapfrog steps of a trajectory of ``share`` times the longest."""
        return min(self.max_steps, max(1, math.ceil(share * self.length / middle_step(self))))

    def with_step_size(self, step_size: float | Tensor) -> "ChEES":
        """Return the same kernel with another step size."""
        return replace(self, step_size=step_size)

    def with_inverse_mass(self, inverse_mass: InverseMass) -> "ChEES":
        """Return the same kernel with another inverse mass."""
        return replace(self, inverse_mass=inverse_mass)

    def with_length(self, length: float) -> "ChEES":
        """Return the same kernel with another trajectory length."""
        return replace(self, length=length)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return evaluate(potential, x, self.force_dtype)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Move every chain by one trajectory."""
        proposal = trajectory(self, potential, state, self.steps_for(spread_share(float(torch.rand(())))))
        return proposal.state, proposal.info

    def propose(self, potential: Potential, state: State, share: float) -> LongProposal:
        """Move every chain by one trajectory of ``share`` times the length, and tell where it ended."""
        new, info, end, u = trajectory(self, potential, state, self.steps_for(share))
        velocity = torch.zeros_like(u)
        stepper(1.0, self.inverse_mass, u, potential.event_shape).drift(velocity, u)
        return LongProposal(new, info, end, velocity)


@dataclass(frozen=True, eq=False)
class MALT:
    """Metropolis-adjusted Langevin trajectories (Riou-Durand & Vogrinc 2022): HMC whose momenta are renewed on the way.

    Underdamped Langevin by the splitting O-B-A-B-O; the partial renewals O leave N(0, I) as it is, so only the energy
    errors of the leapfrog parts are put to the test, at the trajectory's end.  No length is far too long: with
    friction, a trajectory forgets instead of turning back.

    Args:
        step_size: as in :class:`HMC`.
        steps: leapfrog steps of a trajectory.
        friction: γ, per unit of the whitened coordinates, a number or one for each chain; 0 is HMC.
        inverse_mass: as in :class:`HMC`.
        force_dtype: as in :class:`HMC`.

    Raises:
        InvalidInput: for a step size that is not positive and finite, fewer than one step, a negative friction, or an
            inverse mass of another kind.

    Example:
        >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> chains = ep.sample_chains(ep.kernels.MALT(), bell, chains=8, draws=10, warmup=20, progress=False)
        >>> chains.draws.shape
        torch.Size([8, 10, 2])
    """

    step_size: float | Tensor = 0.1
    steps: int = 10
    friction: float | Tensor = 1.0
    inverse_mass: InverseMass = None
    force_dtype: torch.dtype | None = None
    target_acceptance: ClassVar[float | None] = 0.7
    max_step_size: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_count("steps", self.steps)
        friction = torch.as_tensor(self.friction) if is_number(self.friction) else self.friction
        if (
            not isinstance(friction, Tensor)
            or friction.is_complex()
            or not bool(((friction >= 0.0) & torch.isfinite(friction)).all())
        ):
            raise InvalidInput(f"friction must be zero or above and finite; got {self.friction!r}")
        check_inverse_mass(self.inverse_mass)
        check_force_dtype(self.force_dtype)

    def with_step_size(self, step_size: float | Tensor) -> "MALT":
        """Return the same kernel with another step size."""
        return replace(self, step_size=step_size)

    def resized(self, step: Tensor, width: Tensor, marginal_std: Tensor) -> "MALT":
        """Return the same kernel with steps of ``step`` widths, and as much friction for each width."""
        return replace(self, step_size=step * width, friction=torch.as_tensor(self.friction).to(width.device) / width)

    def with_inverse_mass(self, inverse_mass: InverseMass) -> "MALT":
        """Return the same kernel with another inverse mass."""
        return replace(self, inverse_mass=inverse_mass)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return evaluate(potential, x, self.force_dtype)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Move every chain by one trajectory."""
        by = stepper(self.step_size, self.inverse_mass, state.x, potential.event_shape)
        x, u, grad = state.x.clone(), torch.randn_like(state.x), state.grad
        # The two half renewals between leapfrog steps are one; the first and the last change nothing that is kept.
        friction, size = (torch.as_tensor(value).to(x.device) for value in (self.friction, self.step_size))
        kept = append_dims(torch.exp(-friction * size).to(x), x)
        fresh = (1.0 - kept * kept).sqrt()
        start = state.energy + 0.5 * dot(u, u, state.energy)
        gained = -0.5 * dot(u, u, start)  # kinetic energy gained in leapfrog steps, not in renewals
        for i in range(self.steps):
            by.kick(u, grad, 0.5)
            by.drift(x, u)
            if i < self.steps - 1 or self.force_dtype is not None:
                grad = gradient_only(potential, x, self.force_dtype)
            else:
                energy, grad = energy_and_grad(potential, x)
            by.kick(u, grad, 0.5)
            gained += 0.5 * dot(u, u, gained)
            if i < self.steps - 1:
                u = kept * u + fresh * torch.randn_like(u)
                gained -= 0.5 * dot(u, u, gained)
        if self.force_dtype is not None:
            energy = energy_only(potential, x)
        error = energy - state.energy + gained
        new, info = metropolis(-error, State(x, energy, grad), state)
        total = torch.where(info.accepted, energy + 0.5 * dot(u, u, energy), start)
        return new, judged(info, error, self.steps, total)

"""Tune kernels: step sizes to an acceptance, masses to the chains' own spread, trajectory lengths across chains."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from energyppl._checks import check_count
from energyppl.autodiff.bound import bind
from energyppl.errors import EnergyPPLError, InvalidInput
from energyppl.inference.adaptation.step_size import DualAveraging, Rescue, first_steps, group_means
from energyppl.inference.adaptation.trajectory_length import TrajectoryLength
from energyppl.inference.kernels.composite import Block, Cycle, Mixture, Tempered, coldest
from energyppl.inference.kernels.contract import Info, Kernel, State, middle_step
from energyppl.inference.kernels.crank_nicolson import CrankNicolson, CrankNicolsonLangevin
from energyppl.inference.kernels.hamiltonian import HMC, MALT, ChEES, trajectory
from energyppl.inference.kernels.langevin import MALA, Langevin
from energyppl.inference.kernels.mass import InverseMass, LowRankMass, MassEstimate, low_rank_mass
from energyppl.inference.kernels.nuts import NUTS
from energyppl.potentials.algebra import Conditioned, Potential

__all__ = ["Adaptation", "Tuned", "adapt", "warm_up"]

_WINDOW_DRAWS = 20_000  # that a mass is estimated from at most
_DIVERGENCE = 5.0  # rejections that one counts as
_FIRST_STEPS = 32  # leapfrog steps of a trajectory at most, before the first mass
_LANGEVIN_TARGET = 0.95  # where the unadjusted kernel's bias is small
_Simple = (MALA, Langevin, CrankNicolson, CrankNicolsonLangevin)
_Hamiltonian = (HMC, ChEES, NUTS, MALT)
_K = TypeVar("_K", bound=Kernel)


class Tuned(NamedTuple):
    """Where a warm-up stands after a step."""

    kernel: Kernel  # as far as it is tuned
    state: State
    info: Info


@dataclass(frozen=True, eq=False)
class Adaptation(Generic[_K]):
    """A tuned kernel, and what the tuning did."""

    kernel: _K
    state: State  # where the chains are now, for the kernel to go on from
    step_sizes: Tensor  # (steps,), the middle one of the chains'
    acceptance: Tensor  # (steps,), mean over the chains
    diverging: Tensor  # (steps,), how many chains
    gradients: float  # evaluations that its steps cost each chain, the search for the first step left out


def adapt(
    kernel: _K,
    potential: Potential,
    x: Tensor,
    steps: int = 200,
    *,
    target_acceptance: float | None = None,
    groups: Tensor | None = None,
    mass: MassEstimate = low_rank_mass,
) -> Adaptation[_K]:
    """Run chains and tune a kernel on the way; the result is again a frozen kernel, with what was done.

    Step sizes follow dual averaging of the mean acceptance over chains (Hoffman & Gelman 2014, section 3.2).  For
    Hamiltonian kernels a first step size is searched for, masses are estimated from all chains' draws over windows that
    double, and :class:`ChEES` learns its trajectory length (Hoffman, Radul & Sountsov 2021).  The unadjusted kernel is
    tuned by the acceptance that the same proposal *would* have: near 1, its bias is small.

    Args:
        kernel: where to begin.
        potential: the target.
        x: positions of the chains, ``(*chains, *event)``.
        steps: how many steps to tune over.
        target_acceptance: acceptance aimed at; the kernel's own if None, .95 for Langevin, which has none.
        groups: ``(*chains,)``, whole numbers from 0: chains of a group share a step size.
        mass: estimates the inverse mass of a Hamiltonian kernel: ``low_rank_mass``, ``diagonal_mass``, or
            ``identity_mass``.

    Returns:
        The same kind of kernel with a float as its step size, or a tensor ``(*chains,)`` if ``groups`` is given.

    Raises:
        InvalidInput: for a kernel that can't be tuned, an acceptance outside (0, 1), groups that are not whole numbers
            of the chains' shape, a start whose energy is not finite anywhere, or one chain for a cross-chain method.
    """
    step_sizes, acceptance, diverging, gradients = [], [], [], 0.0
    tuned = None
    for tuned in warm_up(kernel, potential, x, steps, target_acceptance=target_acceptance, groups=groups, mass=mass):
        step_sizes.append(middle_step(tuned.kernel))
        acceptance.append(float(tuned.info.accept_prob.mean()))
        diverging.append(int(tuned.info.diverging.sum()))
        gradients += tuned.info.cost()
    assert tuned is not None  # steps >= 1
    return Adaptation(
        tuned.kernel,  # type: ignore[arg-type]  # warm_up keeps the kind
        tuned.state,
        torch.tensor(step_sizes),
        torch.tensor(acceptance),
        torch.tensor(diverging),
        gradients,
    )


def warm_up(
    kernel: Kernel,
    potential: Potential,
    x: Tensor,
    steps: int,
    *,
    target_acceptance: float | None = None,
    groups: Tensor | None = None,
    mass: MassEstimate = low_rank_mass,
) -> Iterator[Tuned]:
    """:func:`adapt` step by step: the last kernel it yields is the tuned one."""
    check_count("steps", steps)
    if target_acceptance is not None and not 0.0 < target_acceptance < 1.0:
        raise InvalidInput(f"target_acceptance must lie between 0 and 1; got {target_acceptance}")
    potential = bind(potential)
    if isinstance(kernel, (Cycle, Mixture, Block, Tempered)):
        if groups is not None:
            raise InvalidInput(f"groups can't be given for a {type(kernel).__name__}: tune its kernels one by one")
        if isinstance(kernel, Block):
            return _block(kernel, potential, x, steps, target_acceptance, mass)
        if isinstance(kernel, Tempered):
            return _tempered(kernel, potential, x, steps, target_acceptance, mass)
        return _composite(kernel, potential, x, steps, target_acceptance, mass)
    if not isinstance(kernel, (*_Simple, *_Hamiltonian)):
        raise InvalidInput(
            f"adapt tunes the kernels of energyppl; got {type(kernel).__name__}: pass warmup=0 to run it as it is"
        )
    if target_acceptance is None:
        target_acceptance = _LANGEVIN_TARGET if kernel.target_acceptance is None else kernel.target_acceptance
    state = kernel.init(potential, x)
    if not bool(torch.isfinite(state.energy).any()):
        raise InvalidInput("no chain starts at a finite energy: start them inside the support")
    index = torch.zeros(state.energy.shape, dtype=torch.long) if groups is None else groups
    if index.shape != state.energy.shape:
        raise InvalidInput(f"groups must have the chains' shape {tuple(state.energy.shape)}; got {tuple(index.shape)}")
    if index.dtype.is_floating_point or index.dtype == torch.bool or bool((index < 0).any()):
        raise InvalidInput("groups must be whole numbers from 0: pass a tensor of dtype torch.long")
    index = index.to(x.device)
    if isinstance(kernel, ChEES) and state.energy.numel() < 2:
        raise InvalidInput("ChEES learns its length by comparing chains; got one chain: run 16 or more, or use NUTS")
    if isinstance(kernel, _Simple):
        return _simple(kernel, potential, state, steps, target_acceptance, index, groups is not None)
    return _hamiltonian(kernel, potential, state, steps, target_acceptance, index, groups is not None, mass)


def _simple(
    kernel: MALA | Langevin | CrankNicolson | CrankNicolsonLangevin,
    potential: Potential,
    state: State,
    steps: int,
    target_acceptance: float,
    index: Tensor,
    grouped: bool,
) -> Iterator[Tuned]:
    probe = MALA(kernel.step_size) if isinstance(kernel, Langevin) else kernel
    high = 0.0 if isinstance(kernel, (CrankNicolson, CrankNicolsonLangevin)) else math.inf  # β is at most 1
    averaging = DualAveraging(_log_steps(kernel.step_size, index, state.x), target_acceptance, high)
    rescue = Rescue(state.energy.shape, state.x)
    for i in range(1, steps + 1):
        trial = replace(probe, step_size=rescue.steps(averaging.step(index, grouped)))
        state, info = trial.step(potential, state)
        averaging.update(group_means(info.accept_prob, index, len(averaging.log_step), rescue.well()))
        rescue.update(info.accept_prob)
        size = averaging.step(index, grouped, averaged=i == steps)
        yield Tuned(replace(kernel, step_size=size), state, info)


def _log_steps(step_size: float | Tensor, index: Tensor, x: Tensor) -> Tensor:
    first = torch.as_tensor(step_size, dtype=x.dtype, device=x.device).expand(index.shape)
    return group_means(first.log(), index, int(index.max()) + 1)


def _hamiltonian(
    kernel: HMC | ChEES | NUTS | MALT,
    potential: Potential,
    state: State,
    steps: int,
    target_acceptance: float,
    index: Tensor,
    grouped: bool,
    mass: MassEstimate,
) -> Iterator[Tuned]:
    chains = state.energy.dim()
    averaging = DualAveraging(_log_steps(kernel.step_size, index, state.x), target_acceptance, math.inf)
    averaging.restart(first_steps(potential, state, kernel.inverse_mass, averaging.log_step, index), searched=True)
    length = TrajectoryLength(kernel.length) if isinstance(kernel, ChEES) else None
    ends = _window_ends(steps, state.energy.numel())
    draws: list[Tensor] = []
    most = max(1, 2 * _WINDOW_DRAWS // steps)
    rescue = Rescue(state.energy.shape, state.x)
    for i in range(1, steps + 1):
        kernel = replace(kernel, step_size=rescue.steps(averaging.step(index, grouped)))
        if length is not None and isinstance(kernel, ChEES):
            share = length.next_share()
            # Before a mass is known, long trajectories only pay for its being wrong.
            longest = kernel.max_steps if ends and i > ends[0] else min(kernel.max_steps, _FIRST_STEPS)
            length.value = min(length.value, longest * middle_step(kernel))
            kernel = replace(kernel, length=length.value)
            before = state
            state, info, end, u = trajectory(kernel, potential, state, kernel.steps_for(share))
            length.update(before.x, end.x, u, info, kernel, share)
        else:
            state, info = kernel.step(potential, state)
        # A divergence tells of a place that longer steps would leave unseen: it counts as several rejections.
        # But shorter steps don't lead past a wall of infinite energy, so it takes half of the acceptance at most.
        well, groups = rescue.well(), len(averaging.log_step)
        accepted = group_means(info.accept_prob, index, groups, well)
        penalty = _DIVERGENCE * group_means(info.diverging.to(accepted), index, groups, well)
        averaging.update(torch.maximum(accepted - penalty, 0.5 * accepted))
        rescue.update(info.accept_prob)
        if ends and i <= ends[-1]:
            healthy = rescue.well() & torch.isfinite(state.energy)
            draws.append(_some(state.x[healthy] if chains else state.x[None], most))
        if i in ends:
            stood = torch.cat(draws)
            stood, draws = stood[torch.isfinite(stood).reshape(len(stood), -1).all(1)], []
            if _spread_out(stood):
                estimate = mass(stood)
                if length is not None:
                    length.rescale(_stretch(kernel.inverse_mass, estimate, state.x))
                    length.look_along(stood)
                kernel = replace(kernel, inverse_mass=estimate)
                averaging.restart(first_steps(potential, state, estimate, averaging.log_step, index), searched=True)
        if i == steps:
            kernel = replace(kernel, step_size=averaging.step(index, grouped, averaged=True))
            if length is not None and isinstance(kernel, ChEES):
                kernel = replace(kernel, length=length.average)
        yield Tuned(kernel, state, info)


def _stretch(old: InverseMass, new: InverseMass, x: Tensor) -> float:
    """How much longer the widest coordinate's unit has become, as far as the diagonals tell."""
    before, after = (m.variance if isinstance(m, LowRankMass) else m for m in (old, new))
    after = torch.ones(()).to(x) if after is None else after
    ratio = after if before is None else after / before.to(after.device)
    return float(ratio.amax().sqrt())


def _some(points: Tensor, most: int) -> Tensor:
    """``most`` of the points ``(n, *event)`` at most, other ones each time."""
    if len(points) <= most:
        return points
    return points[torch.randint(len(points), (most,), device=points.device)]


def _spread_out(draws: Tensor) -> bool:
    """Whether there are a few draws, and not all in one place.

    Raises:
        EnergyPPLError: if they are so far apart that they have no variance.
    """
    if len(draws) < 3:
        return False
    if not bool(torch.isfinite(draws.var(0)).all()):
        raise EnergyPPLError("the chains run away: the energy seems to fall without end (is its sign right?)")
    return bool((draws.amax(0) > draws.amin(0)).all())


def _window_ends(steps: int, chains: int) -> tuple[int, ...]:
    """When masses are estimated: after a first sixth, then in windows that double, with the last tenth left to steps.

    Many chains together fill a window sooner than one does.
    """
    first, last = max(5, steps // 6), steps - max(10, steps // 10)
    width, ends = max(10, 50 // max(1, chains)), [first]
    while ends[-1] + 3 * width <= last:
        ends.append(ends[-1] + width)
        width *= 2
    if last > ends[-1]:
        ends.append(last)
    return tuple(e for e in ends if e < steps)


def _composite(
    kernel: Cycle | Mixture,
    potential: Potential,
    x: Tensor,
    steps: int,
    target_acceptance: float | None,
    mass: MassEstimate,
) -> Iterator[Tuned]:
    """Tune the kernels one after another, each over its share of the steps."""
    parts = list(kernel.kernels)
    for i in range(len(parts)):
        share = steps * (i + 1) // len(parts) - steps * i // len(parts)
        if share == 0:
            continue
        for tuned in warm_up(parts[i], potential, x, share, target_acceptance=target_acceptance, mass=mass):
            parts[i] = tuned.kernel
            x = tuned.state.x
            whole = Cycle(*parts) if isinstance(kernel, Cycle) else Mixture(*parts, weights=kernel.weights)
            yield Tuned(whole, tuned.state, tuned.info)


def _block(
    kernel: Block, potential: Potential, x: Tensor, steps: int, target_acceptance: float | None, mass: MassEstimate
) -> Iterator[Tuned]:
    conditional = Conditioned(potential, x, kernel.free)
    for tuned in warm_up(
        kernel.kernel, conditional, x[..., kernel.free], steps, target_acceptance=target_acceptance, mass=mass
    ):
        whole = replace(kernel, kernel=tuned.kernel)
        yield Tuned(whole, whole.init(potential, conditional.complete(tuned.state.x)), tuned.info)


def _tempered(
    kernel: Tempered, potential: Potential, x: Tensor, steps: int, target_acceptance: float | None, mass: MassEstimate
) -> Iterator[Tuned]:
    """Tune the replicas' kernel, one step size for each temperature, without swaps."""
    if not isinstance(kernel.kernel, (*_Simple, *_Hamiltonian)):
        raise InvalidInput(
            f"adapt tunes a Tempered around one of energyppl's own kernels; got {type(kernel.kernel).__name__}: tune "
            "that first, or pass warmup=0"
        )
    replicas, tempered = kernel.replicas(x), kernel.tempered(potential, x)
    chains = replicas.shape[: replicas.dim() - len(potential.event_shape)]
    temperature = torch.arange(chains[0], device=x.device).reshape(-1, *[1] * (len(chains) - 1)).expand(chains)
    for tuned in warm_up(
        kernel.kernel, tempered, replicas, steps, target_acceptance=target_acceptance, groups=temperature, mass=mass
    ):
        inner = tuned.kernel
        assert isinstance(inner, (*_Simple, *_Hamiltonian))
        assert isinstance(inner.step_size, Tensor)
        size = inner.step_size.reshape(chains[0], -1)[:, 0].reshape(-1, *[1] * (len(chains) - 1))
        whole = replace(kernel, kernel=replace(inner, step_size=size))
        state, info = tuned.state, tuned.info
        cold = Info(info.accept_prob[0], info.accepted[0], info.diverging[0], info.gradients)
        yield Tuned(whole, coldest(state, 0), cold)

"""Warm-up: step sizes to an acceptance, masses to the chains' own spread, trajectory lengths across chains."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from energyppl._checks import check_between, check_count
from energyppl.autodiff.bound import bind
from energyppl.errors import InvalidInput
from energyppl.inference.adaptation.mass import MassAdapter, unit_ratio
from energyppl.inference.adaptation.step_size import StepSizeAdapter
from energyppl.inference.adaptation.trajectory_length import LengthAdapter
from energyppl.inference.kernels.composite import Block, Cycle, Mixture, Tempered, coldest
from energyppl.inference.kernels.contract import (
    Info,
    Kernel,
    State,
    StepSizeTunable,
    Unadjusted,
    check_kernel,
    middle_step,
)
from energyppl.inference.kernels.hamiltonian import LengthTunable
from energyppl.inference.kernels.mass import MassEstimate, MassTunable, low_rank_mass
from energyppl.potentials.algebra import Conditioned, Potential, as_potential
from energyppl.potentials.points import require_digits

__all__ = ["Adaptation", "Tuned", "adapt", "untuned", "warm_up"]

_FIRST_STEPS = 32  # leapfrog steps of a trajectory at most, before the first mass
_UNADJUSTED_ACCEPTANCE = 0.95  # where the bias of a kernel that never rejects is small
_K = TypeVar("_K", bound=Kernel)


class Tuned(NamedTuple):
    """Warm-up after a step: the kernel as far as it is tuned, and the chains."""

    kernel: Kernel
    state: State
    info: Info


@dataclass(frozen=True, eq=False)
class Adaptation(Generic[_K]):
    """A tuned kernel, and what the tuning did.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> found = ep.adapt(ep.HMC(), normal, torch.randn(8, 2), 50)
        >>> found.state.x.shape, len(found.step_sizes), float(found.kernel.step_size) > 0.0
        (torch.Size([8, 2]), 50, True)
    """

    kernel: _K
    state: State  # where the chains are now, for the kernel to go on from
    step_sizes: Tensor  # (steps,), the middle one of the chains'; NaN for a kernel that has none
    acceptance: Tensor  # (steps,), mean over the chains
    diverging: Tensor  # (steps,), how many chains
    gradients: float  # evaluations that its steps cost each chain, the search for the first step left out
    notes: tuple[str, ...] = ()  # what could not be tuned, a sentence each


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

    A kernel with a step size (:class:`StepSizeTunable`) is tuned by dual averaging of the mean acceptance over chains
    (Hoffman & Gelman 2014, section 3.2).  If it has a mass too (:class:`MassTunable`), a first step size is searched
    for, and masses are estimated from all chains' draws over windows that double; if it has a length
    (:class:`LengthTunable`, as :class:`ChEES`), that is learned across chains (Hoffman, Radul & Sountsov 2021).  A
    kernel that never rejects is tuned by the acceptance that its proposals *would* have: near 1, its bias is small.
    Kernels made of others are tuned part by part.  A kernel without a step size runs as it is, and ``notes`` says so.

    Args:
        kernel: where to begin.
        potential: the target.
        x: positions of the chains, ``(*chains, *event)``.
        steps: how many steps to tune over.
        target_acceptance: acceptance aimed at; the kernel's own if None, .95 for one that never rejects.
        groups: ``(*chains,)``, whole numbers from 0: chains of a group share a step size.
        mass: estimates the inverse mass: ``low_rank_mass``, ``diagonal_mass``, or ``identity_mass``.

    Returns:
        The same kind of kernel with a float as its step size, or a tensor ``(*chains,)`` if ``groups`` is given.

    Raises:
        InvalidInput: for an acceptance outside (0, 1), groups that are not whole numbers of the chains' shape, a start
            whose energy is not finite anywhere, or one chain for a cross-chain method.
        EnergyPPLError: if the chains run away, as they do when the energy falls without end.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> found = ep.adapt(ep.HMC(steps=3), normal, torch.randn(64, 2), steps=50)
        >>> found.state.x.shape, found.step_sizes.shape, found.notes
        (torch.Size([64, 2]), torch.Size([50]), ())
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
        untuned(kernel),
    )


def untuned(kernel: Kernel) -> tuple[str, ...]:
    """Say, in a sentence each, which kernels :func:`adapt` runs as they are: those without a step size."""
    if isinstance(kernel, Cycle | Mixture):
        return tuple(dict.fromkeys(note for part in kernel.kernels for note in untuned(part)))
    if isinstance(kernel, Block):
        return untuned(kernel.kernel)
    if isinstance(kernel, Tempered) and not _steps(kernel.kernel):
        inner = type(kernel.kernel).__name__
        return (f"a Tempered around a {inner}, which has no one step size, was not tuned: it ran as it is",)
    if isinstance(kernel, Tempered) or _steps(kernel):
        return ()
    return (f"a {type(kernel).__name__} has no step size to tune: it ran as it is",)


def _steps(kernel: Kernel) -> bool:
    """Tell whether a kernel has a step size that can be tuned."""
    if not isinstance(kernel, StepSizeTunable):
        return False
    return kernel.target_acceptance is not None or isinstance(kernel, Unadjusted)


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
    """Tune step by step, as :func:`adapt` does: the last kernel it yields is the tuned one.

    Raises:
        InvalidInput: as :func:`adapt`.
    """
    _check_arguments(kernel, potential, steps, target_acceptance, mass)
    require_digits("a warm-up", getattr(x, "dtype", None))
    potential = bind(potential)
    if isinstance(kernel, Cycle | Mixture | Block | Tempered):
        if groups is not None:
            raise InvalidInput(f"groups can't be given for a {type(kernel).__name__}: tune its kernels one by one")
        if isinstance(kernel, Block):
            return _block(kernel, potential, x, steps, target_acceptance, mass)
        if not isinstance(kernel, Tempered):
            return _composite(kernel, potential, x, steps, target_acceptance, mass)
        if _steps(kernel.kernel):
            return _tempered(kernel, potential, x, steps, target_acceptance, mass)
    state = kernel.init(potential, x)
    if not bool(torch.isfinite(state.energy).any()):
        raise InvalidInput("no chain starts at a finite energy: start them inside the support")
    _check_groups(groups, state)
    if not _steps(kernel):
        return _as_it_is(kernel, potential, state, steps)
    assert isinstance(kernel, StepSizeTunable)
    if isinstance(kernel, LengthTunable) and state.energy.numel() < 2:
        raise InvalidInput(
            f"{type(kernel).__name__} learns its length by comparing chains; got one chain: run 16 or more, or use NUTS"
        )
    if target_acceptance is None:
        target_acceptance = _UNADJUSTED_ACCEPTANCE if kernel.target_acceptance is None else kernel.target_acceptance
    return _tune(kernel, potential, state, steps, StepSizeAdapter(kernel, target_acceptance, state, groups), mass)


def _check_arguments(
    kernel: Kernel, potential: Potential, steps: int, target_acceptance: float | None, mass: MassEstimate
) -> None:
    check_kernel(kernel)
    as_potential("the target", potential)
    check_count("steps", steps)
    if target_acceptance is not None:
        check_between("target_acceptance", target_acceptance, 0.0, 1.0)
    if not callable(mass):
        raise InvalidInput(f"mass must be low_rank_mass, diagonal_mass, identity_mass or a function; got {mass!r}")


def _check_groups(groups: Tensor | None, state: State) -> None:
    if groups is None:
        return
    if not isinstance(groups, Tensor) or groups.dtype.is_floating_point or groups.dtype == torch.bool:
        raise InvalidInput("groups must be whole numbers from 0: pass a tensor of dtype torch.long")
    if groups.shape != state.energy.shape:
        raise InvalidInput(f"groups must have the chains' shape {tuple(state.energy.shape)}; got {tuple(groups.shape)}")
    if bool((groups < 0).any()):
        raise InvalidInput("groups must be whole numbers from 0: pass a tensor of dtype torch.long")


def _as_it_is(kernel: Kernel, potential: Potential, state: State, steps: int) -> Iterator[Tuned]:
    for _ in range(steps):
        state, info = kernel.step(potential, state)
        yield Tuned(kernel, state, info)


def _tune(
    kernel: StepSizeTunable,
    potential: Potential,
    state: State,
    steps: int,
    step_sizes: StepSizeAdapter,
    mass: MassEstimate,
) -> Iterator[Tuned]:
    """Tune whatever the kernel's protocols offer: the step size, then the mass, then the length."""
    masses = MassAdapter(mass, steps, state.energy.numel()) if isinstance(kernel, MassTunable) else None
    lengths = LengthAdapter(kernel.length) if isinstance(kernel, LengthTunable) else None
    if isinstance(kernel, MassTunable):
        step_sizes.search(potential, state, kernel.inverse_mass)
    never_rejects = isinstance(kernel, Unadjusted)
    tuned: Any = kernel  # its protocols, asked above, stay what they are
    for i in range(1, steps + 1):
        tuned = tuned.with_step_size(step_sizes.step_size())
        if lengths is not None:
            # Before a mass is known, long trajectories only pay for its being wrong.
            known = masses is None or masses.known(i)
            most = tuned.max_steps if known else min(tuned.max_steps, _FIRST_STEPS)
            tuned, before = tuned.with_length(lengths.length(most * middle_step(tuned))), state
            share = lengths.next_share()
            proposal = tuned.propose(potential, state, share)
            state, info = proposal.state, proposal.info
            lengths.update(before.x, proposal, tuned, share)
        else:
            state, info = (tuned.adjusted() if never_rejects else tuned).step(potential, state)
        step_sizes.update(info, penalize=masses is not None)
        if masses is not None and masses.update(i, state, step_sizes.well()):
            old, new = tuned.inverse_mass, masses.result()
            if lengths is not None:
                lengths.rescale(unit_ratio(old, new, state.x), masses.window)
            tuned = tuned.with_inverse_mass(new)
            step_sizes.search(potential, state, new)
        if i == steps:
            tuned = tuned.with_step_size(step_sizes.result())
            if lengths is not None:
                tuned = tuned.with_length(lengths.result())
        yield Tuned(tuned, state, info)


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
    replicas, tempered = kernel.replicas(x), kernel.tempered(potential, x)
    chains = replicas.shape[: replicas.dim() - len(potential.event_shape)]
    temperature = torch.arange(chains[0], device=x.device).reshape(-1, *[1] * (len(chains) - 1)).expand(chains)
    for tuned in warm_up(
        kernel.kernel, tempered, replicas, steps, target_acceptance=target_acceptance, groups=temperature, mass=mass
    ):
        inner = tuned.kernel
        assert isinstance(inner, StepSizeTunable)
        assert isinstance(inner.step_size, Tensor)
        size = inner.step_size.reshape(chains[0], -1)[:, 0].reshape(-1, *[1] * (len(chains) - 1))
        whole = replace(kernel, kernel=inner.with_step_size(size))
        state, info = tuned.state, tuned.info
        spent = chains[0] * info.gradients if isinstance(info.gradients, int) else info.gradients.sum(0)
        cold = Info(info.accept_prob[0], info.accepted[0], info.diverging[0], spent)
        yield Tuned(whole, coldest(state, 0), cold)

"""Composite kernels: systematic and random scans, Metropolis within Gibbs, parallel tempering."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_positive, is_number
from energyppl.autodiff.bound import bind
from energyppl.autodiff.gradient import energy_only
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import Info, Kernel, State, check_kernel, combined, evaluate
from energyppl.potentials.algebra import Bridge, Conditioned, Potential, Scaled, as_potential

__all__ = ["Block", "Cycle", "Mixture", "Tempered", "coldest"]


def _check_kernels(name: str, kernels: Sequence[Kernel]) -> None:
    if not kernels:
        raise InvalidInput(f"{name} needs at least one kernel; got none")
    for kernel in kernels:
        check_kernel(kernel, f"a kernel of {name}")
    if any(isinstance(kernel, Tempered) for kernel in kernels):
        # Each part begins from the chain alone, and a Tempered would lose its replicas at every turn.
        raise InvalidInput(f"a Tempered can't be a part of {name}: temper the whole, Tempered({name}(…), betas)")


@dataclass(frozen=True, eq=False)
class Cycle:
    """Systematic scan: kernels one after another.  Exact if each of them is.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> scan = ep.kernels.Cycle(ep.MALA(0.5), ep.HMC(0.3, steps=3))
        >>> ep.sampling.run_chain(scan, normal, torch.randn(8, 2), 5).state.x.shape
        torch.Size([8, 2])
    """

    kernels: tuple[Kernel, ...]

    def __init__(self, *kernels: Kernel) -> None:
        _check_kernels("Cycle", kernels)
        object.__setattr__(self, "kernels", kernels)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return self.kernels[0].init(potential, x)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Let every kernel move every chain once."""
        infos = []
        for kernel in self.kernels:
            if len(self.kernels) > 1:  # each keeps in a state what it needs itself
                state = kernel.init(potential, state.x)
            state, info = kernel.step(potential, state)
            infos.append(info)
        together = combined(infos)
        return state, together._replace(gradients=together.gradients + (len(infos) if len(infos) > 1 else 0))


@dataclass(frozen=True, eq=False)
class Mixture:
    """Random scan: one of several kernels at each step, drawn for all chains together.  Exact if each of them is.

    Args:
        kernels: the kernels.
        weights: how often each is drawn; equally often if None.

    Raises:
        InvalidInput: without a kernel, or for weights that are not positive or not as many.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> either = ep.kernels.Mixture(ep.MALA(0.5), ep.HMC(0.3, steps=3), weights=(0.8, 0.2))
        >>> ep.sampling.run_chain(either, normal, torch.randn(8, 2), 5).state.x.shape
        torch.Size([8, 2])
    """

    kernels: tuple[Kernel, ...]
    weights: tuple[float, ...]

    def __init__(self, *kernels: Kernel, weights: Sequence[float] | None = None) -> None:
        _check_kernels("Mixture", kernels)
        given = (1.0,) * len(kernels) if weights is None else weights
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise InvalidInput(f"weights must be numbers, one for each kernel; got {given!r}: pass a tuple")
        if len(given) != len(kernels):
            raise InvalidInput(f"weights must be as many as kernels, {len(kernels)}; got {len(given)}")
        for weight in given:
            check_positive("a weight of a Mixture", weight)
        object.__setattr__(self, "kernels", kernels)
        object.__setattr__(self, "weights", tuple(float(weight) for weight in given))

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return self.kernels[0].init(potential, x)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Let one kernel move every chain once."""
        kernel = self.kernels[int(torch.multinomial(torch.tensor(self.weights), 1))]
        state, info = kernel.step(potential, kernel.init(potential, state.x))
        return state, info._replace(gradients=info.gradients + 1)


@dataclass(frozen=True, eq=False)
class Block:
    """Metropolis within Gibbs: a kernel on some coordinates, the others held where they are; in a :class:`Cycle`.

    Args:
        kernel: moves the free coordinates, as a vector.
        free: boolean mask, ``(*event)``: True where the kernel moves.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> first = ep.kernels.Block(ep.MALA(0.5), free=torch.tensor([True, False]))
        >>> end = ep.sampling.run_chain(first, normal, torch.zeros(8, 2), 5).state.x
        >>> end[:, 1].abs().max()
        tensor(0.)
    """

    kernel: Kernel
    free: Tensor

    def __post_init__(self) -> None:
        _check_kernels("Block", [self.kernel])
        if not isinstance(self.free, Tensor) or self.free.dtype != torch.bool or not bool(self.free.any()):
            raise InvalidInput(f"free must be a boolean tensor of the event's shape, True somewhere; got {self.free!r}")

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return evaluate(potential, x)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Move the free coordinates of every chain once, given the others."""
        conditional = Conditioned(potential, state.x, self.free)
        bound = bind(conditional)
        inner = self.kernel.init(bound, state.x[..., self.free])
        inner, info = self.kernel.step(bound, inner)
        whole = evaluate(potential, conditional.complete(inner.x))
        return whole, info._replace(gradients=info.gradients + 2)


@dataclass(frozen=True, eq=False)
class Tempered:
    """Parallel tempering around any kernel (Geyer 1991), with the non-reversible scheme of Syed et al. (2022).

    Each chain has a replica at every inverse temperature β; after each move, neighbouring replicas propose to swap, at
    odd and even places in turn, so that states travel straight through the temperatures.  The chain itself is the
    replica at β = 1.

    Args:
        kernel: moves the replicas.  A step size ``(replicas, 1)`` gives each temperature its own.
        betas: inverse temperatures from 1 downwards, at least two.
        base: what the target melts into, ``β U + (1 − β) U_base``; plain ``β U`` if None, for targets that stay
            normalizable when flattened.

    Raises:
        InvalidInput: if ``betas`` don't begin at 1 and fall, or reach 0 without a base.

    Example:
        >>> kernel = ep.kernels.Tempered(ep.MALA(0.1), betas=(1.0, 0.3, 0.1))
        >>> ep.sampling.run_chain(kernel, ep.toys.EightGaussians(), torch.randn(8, 2), 5).state.x.shape
        torch.Size([8, 2])
    """

    kernel: Kernel
    betas: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    base: Potential | None = None

    def __post_init__(self) -> None:
        check_kernel(self.kernel, "the kernel of a Tempered")
        if self.base is not None:
            as_potential("the base of a Tempered", self.base)
        numbers = isinstance(self.betas, Sequence) and all(is_number(beta) for beta in self.betas)
        betas = tuple(float(beta) for beta in self.betas) if numbers else ()
        falling = all(a > b for a, b in itertools.pairwise(betas))
        if len(betas) < 2 or betas[0] != 1.0 or not falling or betas[-1] < 0.0:
            raise InvalidInput(
                f"betas must begin at 1 and fall, at least two of them, none negative; got {self.betas!r}: pass "
                "numbers such as (1.0, 0.5, 0.25)"
            )
        if betas[-1] == 0.0 and self.base is None:
            raise InvalidInput("betas that reach 0 need a base, the density there: pass base=…, or end above 0")
        object.__setattr__(self, "betas", betas)

    def replicas(self, x: Tensor) -> Tensor:
        """Copy each chain, ``(*chains, *event)``, for every temperature, ``(replicas, *chains, *event)``."""
        return x.detach().expand(len(self.betas), *x.shape).contiguous()

    def tempered(self, potential: Potential, x: Tensor) -> "Scaled | Bridge":
        """Temper the target for replicas of chains like ``x``, ``(*chains, *event)``."""
        beta = torch.tensor(self.betas, dtype=x.dtype, device=x.device)
        beta = beta.reshape(-1, *[1] * (x.dim() - len(potential.event_shape)))
        return Scaled(potential, beta) if self.base is None else Bridge(self.base, potential, beta)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Put a replica of each chain at every temperature, ``(replicas, *chains, *event)`` in ``inner``."""
        return coldest(self.kernel.init(self.tempered(potential, x), self.replicas(x)), 0)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Move all replicas once, then let neighbours swap."""
        replicas, parity = state.inner
        tempered = self.tempered(potential, state.x)
        bound = bind(tempered)
        replicas, info = self.kernel.step(bound, replicas)
        # U − U_base at each replica: what a swap of neighbours exchanges (β_i − β_j) times of.
        if isinstance(tempered, Scaled):
            work = replicas.energy / tempered.factor
        else:
            work = energy_only(tempered.target, replicas.x) - energy_only(tempered.base, replicas.x)
        order = torch.arange(len(self.betas), device=replicas.x.device)
        order = append_dims(order, replicas.energy).expand(replicas.energy.shape).clone()
        for i in range(parity, len(self.betas) - 1, 2):
            log_ratio = (self.betas[i] - self.betas[i + 1]) * (work[i] - work[i + 1])
            swap = torch.rand_like(log_ratio) < log_ratio.clamp(max=0.0).exp()
            order[i], order[i + 1] = torch.where(swap, i + 1, i), torch.where(swap, i, i + 1)
        x = torch.gather(replicas.x, 0, append_dims(order, replicas.x).expand(replicas.x.shape))
        outer = coldest(self.kernel.init(bound, x), 1 - parity)
        cold = Info(
            info.accept_prob[0],
            info.accepted[0] | (order[0] != 0),
            info.diverging[0],
            len(self.betas) * (info.gradients + 1) if isinstance(info.gradients, int) else info.gradients.sum(0),
        )
        return outer, cold


def coldest(replicas: State, parity: int) -> State:
    """Take the chains at β = 1, which keep all replicas beside, with the places that swap next, even or odd."""
    return State(replicas.x[0], replicas.energy[0], replicas.grad[0], (replicas, parity))

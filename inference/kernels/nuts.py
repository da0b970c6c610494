"""The No-U-Turn Sampler, iterative and in lock-step over chains."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from energyppl._checks import append_dims, check_count, check_positive
from energyppl.autodiff.gradient import energy_and_grad
from energyppl.inference.kernels.contract import Info, State, dot, evaluate, select
from energyppl.inference.kernels.hamiltonian import LARGEST_ERROR
from energyppl.inference.kernels.mass import InverseMass, Stepper, check_inverse_mass, stepper
from energyppl.potentials.algebra import Potential

__all__ = ["NUTS"]


_CERTAIN = 1e4  # nats by which a finite leaf outweighs a start of infinite energy


class _Tree(NamedTuple):
    """Half a trajectory that has just been grown, for every chain."""

    first: Tensor  # (*chains, *event), whitened momenta at its first leaf
    end: tuple[State, Tensor]  # where it stopped, with its momenta
    proposal: State
    proposal_total: Tensor  # (*chains,), H there
    log_weight: Tensor  # (*chains,), log Σ exp(H0 − H)
    momentum: Tensor  # (*chains, *event), summed
    complete: Tensor  # (*chains,), bool: neither turned nor diverged
    diverging: Tensor
    accept_sum: Tensor
    leaves: Tensor


class _Checkpoint(NamedTuple):
    """Checkpoint: the begin of a sub-tree that a later leaf may end."""

    first: Tensor  # (*chains, *event), momenta at its first leaf
    before: Tensor  # (*chains, *event), momenta at the leaf before that, the last of the sub-tree on its left
    sum_before: Tensor  # (*chains, *event), sum of the momenta of all leaves before its first


@dataclass(frozen=True, eq=False)
class NUTS:
    """Multinomial NUTS (Hoffman & Gelman 2014; Betancourt 2017), its tree grown without recursion (Phan et al. 2019).

    All chains double together, so a batch costs as many gradients as its longest trajectory: for few chains, or where
    trajectories must differ from place to place.  For many chains take :class:`ChEES`, whose trajectories are equally
    long: where 10 leapfrog steps were the mean of NUTS, the slowest of 1,000 chains took 37 and of 10,000 chains 54.

    Args:
        step_size: ε of a leapfrog step, a number or one for each chain, ``(*chains,)``.
        max_depth: doublings at most.
        inverse_mass: None for the identity, variances ``(*event)``, or a :class:`LowRankMass`.

    Raises:
        InvalidInput: for a step size that is not positive and finite, no doublings, or an inverse mass of another kind.

    Example:
        >>> normal = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (2,))
        >>> kernel = ep.NUTS(step_size=0.5)
        >>> state, info = kernel.step(normal, kernel.init(normal, torch.randn(4, 2)))
        >>> state.x.shape, info.tree_depth.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """

    step_size: float | Tensor = 0.1
    max_depth: int = 10
    inverse_mass: InverseMass = None
    target_acceptance: ClassVar[float | None] = 0.8
    max_step_size: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_count("max_depth", self.max_depth)
        check_inverse_mass(self.inverse_mass)

    def with_step_size(self, step_size: float | Tensor) -> "NUTS":
        """Return the same kernel with another step size."""
        return replace(self, step_size=step_size)

    def resized(self, step: Tensor, width: Tensor, marginal_std: Tensor) -> "NUTS":
        """Return the same kernel with steps of ``step`` widths."""
        return replace(self, step_size=step * width)

    def with_inverse_mass(self, inverse_mass: InverseMass) -> "NUTS":
        """Return the same kernel with another inverse mass."""
        return replace(self, inverse_mass=inverse_mass)

    def init(self, potential: Potential, x: Tensor) -> State:
        """Evaluate the potential at ``x``, ``(*chains, *event)``."""
        return evaluate(potential, x)

    def step(self, potential: Potential, state: State) -> tuple[State, Info]:
        """Double every chain's trajectory until it turns, and draw one of its points."""
        u = torch.randn_like(state.x)
        total = state.energy + 0.5 * dot(u, u, state.energy)
        left = right = (state, u)
        proposal, proposal_total, momentum = state, total, u
        log_weight = torch.zeros_like(total)
        growing = torch.ones_like(total, dtype=torch.bool)
        diverging, depth = ~growing, torch.zeros_like(total, dtype=torch.long)
        accept_sum, leaves = torch.zeros_like(total), torch.zeros_like(total)
        gradients, size = 0, self.step_size
        size = size.to(total.device) if isinstance(size, Tensor) else size
        while gradients < 2**self.max_depth - 1 and bool(growing.any()):
            forward = torch.rand_like(total) < 0.5
            sign = torch.where(forward, 1.0, -1.0).to(total)
            by = stepper(sign * size, self.inverse_mass, state.x, potential.event_shape)
            tree = _grow(potential, _choose(forward, right, left), by, total, growing, gradients + 1)
            gradients += gradients + 1
            accept_sum, leaves = accept_sum + tree.accept_sum, leaves + tree.leaves
            diverging, depth = diverging | tree.diverging, depth + growing.long()
            far, near = _choose(forward, left, right)[1], _choose(forward, right, left)[1]
            across = _turning_across(far, near, momentum, tree.first, tree.end[1], tree.momentum, total)
            # Biased towards the new half, which lies farther away (Betancourt 2017, appendix A.3.2).
            taken = tree.complete & (torch.rand_like(total) < torch.exp(tree.log_weight - log_weight))
            proposal = select(taken, tree.proposal, proposal)
            proposal_total = torch.where(taken, tree.proposal_total, proposal_total)
            right = _choose(tree.complete & forward, tree.end, right)
            left = _choose(tree.complete & ~forward, tree.end, left)
            momentum = torch.where(append_dims(tree.complete, momentum), momentum + tree.momentum, momentum)
            log_weight = torch.logaddexp(log_weight, tree.log_weight)
            growing = tree.complete & ~_turning(left[1], right[1], momentum, total) & ~across
        accept_prob = accept_sum / leaves.clamp(min=1.0)
        moved = (proposal.x != state.x).reshape(*total.shape, -1).any(-1)
        return proposal, Info(accept_prob, moved, diverging, gradients, proposal_total, depth)


# The tree over the leaves of one half is never built.  Leaf n ends as many sub-trees as n has trailing ones in binary,
# and of each the first leaf must still be known: those wait as checkpoints, in the place that counts the ones of n ÷ 2.
#
#       leaf (binary)        0      1     10     11    100    101    110    111
#                            |______|      |______|      |______|      |______|
#                               |_____________|             |_____________|
#                                      |____________________________|
#       kept at place        0             1             1             2
#       ends sub-trees              1             2             1             3
#       that began at leaf          0            10, 0         100       110, 100, 0
#
# Leaf 101 = 5 ends the pair that began at leaf 100, kept at place 1, which has overwritten leaf 10: no sub-tree that
# begins there is still open.  So log₂(leaves) checkpoints are enough (Phan et al. 2019).
def _grow(
    potential: Potential, end: tuple[State, Tensor], by: Stepper, total: Tensor, growing: Tensor, leaves: int
) -> _Tree:
    """Make ``leaves`` steps from one end until the new half turns or diverges; ``total`` is H where the chain began."""
    (x, _, grad), u = end[0][:3], end[1].clone()
    x = x.clone()
    nothing = torch.full_like(total, -torch.inf)
    proposal, proposal_total, log_weight, momentum = end[0], total, nothing, torch.zeros_like(u)
    diverging, accept_sum, count = growing & False, torch.zeros_like(total), torch.zeros_like(total)
    kept: dict[int, _Checkpoint] = {}
    last = first = u
    for n in range(leaves):
        by.kick(u, grad, 0.5)
        by.drift(x, u)
        energy, grad = energy_and_grad(potential, x)
        by.kick(u, grad, 0.5)
        error = torch.add(energy - total, dot(u, u, total), alpha=0.5)
        fine = (error < LARGEST_ERROR) & (energy > -torch.inf)  # NaN is neither
        # A chain that began where the energy is infinite may leave: any finite leaf is as good as certain.
        weight = torch.where(fine, -error, nothing).clamp_(max=_CERTAIN)
        accept_sum = accept_sum + torch.where(growing, weight.clamp(max=0.0).exp_(), 0.0)
        count, diverging = count + growing, diverging | (growing > fine)
        growing = growing & fine
        log_weight = torch.where(growing, torch.logaddexp(log_weight, weight), log_weight)
        taken = growing & (torch.rand_like(total) < torch.exp(weight - log_weight))
        proposal = select(taken, State(x, energy, grad), proposal)
        proposal_total = torch.where(taken, total + error, proposal_total)
        here = u.clone()
        if n == 0:
            first = here
        if n % 2 == 0:
            kept[(n >> 1).bit_count()] = _Checkpoint(here, last, momentum)
        momentum = momentum + here
        if n % 2:
            growing = growing & ~_sub_trees_turn(kept, n, here, momentum, total)
        if not bool(growing.any()):
            break
        last = here
    end = State(x, energy, grad), u
    return _Tree(first, end, proposal, proposal_total, log_weight, momentum, growing, diverging, accept_sum, count)


def _sub_trees_turn(kept: dict[int, _Checkpoint], n: int, here: Tensor, momentum: Tensor, like: Tensor) -> Tensor:
    """Tell whether any sub-tree turns that ends at leaf ``n``, with momenta ``here`` and their sum ``momentum``."""
    turning = torch.zeros_like(like, dtype=torch.bool)
    place, ending = (n >> 1).bit_count(), (~n & (n + 1)).bit_length() - 1  # trailing ones of n
    for i in range(place, place - ending, -1):
        tree = kept[i]
        turning = turning | _turning(tree.first, here, momentum - tree.sum_before, like)
        if i < place:  # the smaller sub-tree is the second half of this one
            second = kept[i + 1]
            in_first, in_second = second.sum_before - tree.sum_before, momentum - second.sum_before
            turning = turning | _turning_across(
                tree.first, second.before, in_first, second.first, here, in_second, like
            )
    return turning


def _choose(first: Tensor, a: tuple[State, Tensor], b: tuple[State, Tensor]) -> tuple[State, Tensor]:
    return select(first, a[0], b[0]), torch.where(append_dims(first, a[1]), a[1], b[1])


def _turning(left: Tensor, right: Tensor, momentum: Tensor, like: Tensor) -> Tensor:
    """Tell whether a trajectory between two whitened momenta with this sum turns (Betancourt 2017, appendix A.4.2)."""
    return torch.minimum(dot(left, momentum, like), dot(right, momentum, like)) <= 0


def _turning_across(
    start: Tensor, before: Tensor, sum_before: Tensor, after: Tensor, end: Tensor, sum_after: Tensor, like: Tensor
) -> Tensor:
    """Tell whether one half and the nearest point of the other turn.

    On a sphere, a doubled trajectory may miss the turn.  As in Stan since 2.21: the first half runs from ``start`` to
    ``before``, the second from ``after`` to ``end``.
    """
    return _turning(start, after, sum_before + after, like) | _turning(before, end, sum_after + before, like)

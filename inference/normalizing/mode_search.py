"""Multi-start mode search: scattered descents, and short chains at their ends, for a base that covers what they find.

Annealing from a single Gaussian sees the modes that its particles flow to.  Here descents begin at many distances from
the first minimum, so that each ends in a basin of its own, and chains at the ends tell how wide the basins are.  How
many draws end in a basin says nothing of its mass: annealing weighs them afterwards.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from energyppl._checks import append_dims
from energyppl.autodiff.bound import bind
from energyppl.autodiff.gradient import eager_energy_and_grad, energy_and_grad, energy_only
from energyppl.errors import EnergyPPLError
from energyppl.inference.kernels.contract import State
from energyppl.inference.kernels.langevin import MALA
from energyppl.potentials.algebra import Affine, Potential
from energyppl.potentials.bases import MixtureBase
from energyppl.potentials.mixture_fit import fit_mixture

__all__ = ["ModeSearch", "search_modes"]

_NOTHING_FOUND = "the search for modes found no point of finite energy: pass samples= or base="

_FIRST, _FIRST_STEPS = 8, 80  # descents that find the first minimum, and their steps: 2^40 is in reach
_STEPS, _CLOSE = 40, 0.1  # of the other descents, at most; they end when all steps are smaller, in widths
_SHAPES = 32  # descents go on in multiples of so many, so that few shapes are traced
_MOVES, _KEPT = 36, 3  # of the chains, and how many of their states are kept, evenly over the last half
_LONGEST = 72  # moves of the last stretch of chains that have not settled yet
_RISES = 2.0  # standard errors by which the energies of chains rise that have not
_REACH = 64.0  # the farthest starts, in widths of the first basin, if the energy rises by then
_FARTHEST = 2.0**20  # where it does not
_NEGLIGIBLE = 30.0  # nats below the best basin's mass, about
_MATTERS = 5.0  # nats below the best basin's mass: what is new there changes log Z
_FASTER, _SLOWER = 2.0, 0.4  # factors of a step of a descent while the slope keeps its sign, and where it turns
_FEWEST_ROUNDS, _ROUNDS = 2, 16  # of starts
_FITTED, _FITTED_EACH = 64, (8, 16, 3)  # chains that a base is fitted to at least, for each dimension, basin, and both
_AGAIN = 4  # one in so many starts of later rounds is scattered as in the first
_EACH = 4  # chains from ends at the same place
_SAME = 0.3  # width of such a place, in those of the first basin, for each root of the dimension
_SELDOM = 20  # descents that end in a basin at least, if none like it is to have been missed
_BY_CHANCE = 5  # of them begin anywhere: those between known ends say nothing of the chance to meet an unknown one
_OVERLOOKED = 1e-3  # chance that starts around known ends meet none in another basin, above which there are more
_QUIET = 2  # rounds one after another that end in no new place, after which no more are made
_LOST = 1e12  # widths from which no descent comes back
_MAX_CURVED = 64  # dimensions up to which all second derivatives are worth their cost


class ModeSearch(NamedTuple):
    """Basins of a target, as far as descents from scattered starts tell."""

    x: Tensor  # (n, *event), states of chains in the basins
    weight: Tensor  # (n,), such that basins count alike, however many descents ended in each
    starts: int  # how many there were
    new: float  # share of the last two rounds' starts, the larger one, that ended where none before had
    radius: float  # the farthest starts, in widths
    evaluations: int


class _Chains(NamedTuple):
    """Chains from ends of descents, in the coordinates of the search."""

    begin: Tensor  # (n,), the ends' numbers
    states: Tensor  # (kept, n, *event)
    mass: Tensor  # (n,), logarithm of about the mass of each chain's basin
    log_step: Tensor  # (n,), as tuned on the way
    rise: Tensor  # (n,), of the mean energy over the last half of the kept states' moves, from that over the first

    def held(self) -> Tensor:
        """Tell which chains, ``(n,)``, are in basins that hold more than next to nothing; masses are rough."""
        return self.mass >= self.mass.max() - _NEGLIGIBLE - self.states[0, 0].numel()

    def that_matter(self, mass: Tensor) -> Tensor:
        """Tell which of some masses would change log Z."""
        return mass > self.mass.max() - _MATTERS - 0.5 * self.states[0, 0].numel()


def _joined(chains: list[_Chains]) -> _Chains:
    """Join chains of several rounds."""
    begin, states, *rest = zip(*chains, strict=True)
    return _Chains(torch.cat(begin), torch.cat(states, 1), *(torch.cat(part) for part in rest))


def search_modes(target: Potential, x: Tensor, starts: int) -> ModeSearch:
    """Search for basins of an energy by descents from many distances.

    From the second round of descents on most begin between and around the ends of those before; the others are
    scattered as in the first, since what lies beside all ends is not between. Rounds follow each other while they end
    in new places, and while there is a basin that only a few descents have found: there may be more of its like.

    Args:
        target: the energy U.
        x: where the first descents begin, ``(n, *event)``, and a quarter of the first round's.
        starts: descents in a round.

    Raises:
        EnergyPPLError: if no descent ends at a finite energy.
    """
    framed, cost = _first_basin(target, x)
    radius, tried = _reach(framed, x)
    cost += tried
    begin, step = _scattered(x, starts, radius)
    again = starts // _AGAIN
    own = min(len(x), again)  # about the target's own origin, where the first basin may hide a narrow one
    begin[:own] = framed.to_unit(x[:own])
    step[:own] = (0.1 / framed.factor.diagonal()).clamp(min=_CLOSE).reshape(x.shape[1:])
    ends, rounds = x[:0], list[_Chains]()
    anywhere = by_chance = torch.ones(starts, dtype=torch.bool, device=x.device)
    while True:
        low, energy, tried = _descend(framed, begin, step, _STEPS, _CLOSE)
        back = torch.isfinite(energy) & (low.reshape(len(low), -1).abs().amax(1) < _LOST)
        low = low[back]
        by_chance = torch.cat([by_chance[: len(ends)], anywhere[back]])
        ends = torch.cat([ends, low])
        if len(ends) == 0:
            raise EnergyPPLError(_NOTHING_FOUND)
        some = _unlike_those_before(ends, len(ends) - len(low))
        rounds.append(_relax(framed, ends, some))
        cost += tried + len(some) * (_MOVES + 1)
        chains, full = _joined(rounds), len(rounds) == _ROUNDS
        around = (len(rounds) - 1) * 2 * (starts - again) // 3
        if full or (len(rounds) >= _FEWEST_ROUNDS and not _some_are_rare(ends, by_chance, chains, around)):
            last = range(max(1, len(rounds) - _QUIET), len(rounds))
            new = max(_new_share(_joined(rounds[:at]), rounds[at], starts) for at in last)
            if full or new == 0.0:
                break
        between, along = _between(ends[chains.begin[chains.held()]], starts - again)
        far, far_step = _scattered(x, again, radius)
        begin, step = torch.cat([between, far]), torch.cat([torch.full_like(between, 0.2), far_step])
        anywhere = torch.cat([~along, torch.ones_like(along[:1]).expand(again)])
    begin = chains.begin[chains.held()]
    even = _evening_weights(ends[begin])
    dim, basins = x[0].numel(), round(float(even.sum()))
    wanted = max(_FITTED, _FITTED_EACH[0] * dim, _FITTED_EACH[1] * basins, _FITTED_EACH[2] * dim * basins)
    more = min(wanted, 2 * starts) - len(begin)
    if more > 0:
        anew = begin[torch.multinomial(even, more, replacement=True)]
        chains, cost = _joined([chains, _relax(framed, ends, anew)]), cost + more * (_MOVES + 1)
    begin, states, tried = _settled(framed, chains, 2 * starts)
    rows, cost = framed.from_unit(states.flatten(0, 1)), cost + tried
    weight = _evening_weights(ends[begin]).repeat(len(states))
    return ModeSearch(rows, weight, starts * len(rounds), new, radius, cost)


def _unlike_those_before(ends: Tensor, first: int) -> Tensor:
    """Return the numbers from ``first`` on of ends ``(n, *event)`` at whose place fewer than four came before."""
    rows = ends.reshape(len(ends), -1)
    same = torch.cdist(rows[first:], rows) < _SAME * math.sqrt(rows.shape[1])
    before = torch.arange(len(rows), device=rows.device) < torch.arange(first, len(rows), device=rows.device)[:, None]
    return first + ((same & before).sum(1) < _EACH).nonzero()[:, 0]


def _some_are_rare(ends: Tensor, by_chance: Tensor, chains: _Chains, around: int) -> bool:
    """Tell whether a basin that matters was found by few descents, or by few of those that began anywhere, ``(n,)``.

    Or whether one more may well have been missed: of k + 1 basins that share the starts around known ends as a broken
    stick its pieces (MacArthur 1957), the smallest draws one in (k + 1)².  Ends near each other are of one basin, and
    those whose chain has come closer to another end: descents may stop early.
    """
    rows = ends.reshape(len(ends), -1)
    near = torch.cdist(rows, rows) < math.sqrt(2.0 * rows.shape[1])
    reached = torch.cdist(chains.states[-1].reshape(len(chains.begin), -1), rows).argmin(1)
    near[chains.begin, reached] = near[reached, chains.begin] = True
    label, last = torch.arange(len(rows), device=rows.device), None
    while last is None or not torch.equal(label, last):
        last, label = label, torch.where(near, label, len(rows)).amin(1)
        label = label[label]  # so that a long line of ends takes few rounds
    mass = torch.full((len(rows),), -math.inf).to(chains.mass)
    mass = mass.scatter_reduce(0, label[chains.begin], chains.mass, "amax")
    few = label.bincount(minlength=len(rows)) < _SELDOM
    few |= label[by_chance].bincount(minlength=len(rows)) < _BY_CHANCE
    matter = chains.that_matter(mass)
    return bool((matter & few).any()) or around < -math.log(_OVERLOOKED) * (int(matter.sum()) + 1) ** 2


def _new_share(before: _Chains, found: _Chains, starts: int) -> float:
    """Return the share of starts whose chains are where a mixture fitted to those before does not reach, and matter."""
    if not len(found.begin):
        return 0.0
    states = before.states[:, before.held()]
    shape = states.shape[2:]
    index = torch.arange(states.shape[1], device=states.device).repeat(_KEPT)
    means, factors, weights, _ = fit_mixture(states.reshape(len(index), -1), index)
    narrow = MixtureBase(means[:-1].reshape(-1, *shape), factors[:-1], weights[:-1])  # without the wide component
    limit = float(narrow(states[-1]).quantile(0.99)) + _MATTERS
    matters = _joined([before, found]).that_matter(found.mass)
    return float((matters & (narrow(found.states).amin(0) > limit)).sum()) / starts


def _evening_weights(ends: Tensor) -> Tensor:
    """Return one over the number of ends ``(n, *event)`` that are near each, ``(n,)``."""
    rows = ends.reshape(len(ends), -1)
    near = torch.cdist(rows, rows) < math.sqrt(2.0 * rows.shape[1])
    return 1.0 / near.to(rows).sum(1).clamp(min=1.0)


def _scattered(x: Tensor, count: int, radius: float) -> tuple[Tensor, Tensor]:
    """Draw starts around the first minimum, evenly over the logarithms of their distances up to ``radius`` widths.

    Returns:
        Points ``(count, *event)``, and the first step of a descent from each.
    """
    far = torch.exp(math.log(radius) * torch.rand(count, *[1] * (x.dim() - 1))).to(x)
    begin = far * torch.randn(count, *x.shape[1:]).to(x)
    return begin, (0.1 * far).expand_as(begin).clone()


def _between(ends: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw starts between and around ends ``(n, *event)``, places where many ended counting as one.

    Returns:
        Points ``(count, *event)``, and which of them lie in a line with two ends.
    """
    rows = ends.reshape(len(ends), -1)
    weights = _evening_weights(ends)
    one, two = (rows[torch.multinomial(weights, count, replacement=True)] for _ in range(2))
    mean = (weights / weights.sum()) @ rows
    share = torch.rand(count, 1).to(rows)
    along = one + (2.0 * share - 0.5) * (two - one) + torch.randn_like(one)
    variance = (weights / weights.sum()) @ (rows - mean).square()
    spread = torch.maximum(variance, variance.mean()).sqrt() + 1.0  # modes may lie where no end has been yet
    around = mean + 3.0 * share * spread * torch.randn_like(one)
    third = torch.arange(count, device=rows.device) % 3 == 0
    return torch.where(third.unsqueeze(1), along, around).reshape(count, *ends.shape[1:]), third


def _first_basin(target: Potential, x: Tensor) -> tuple[Affine, int]:
    """Find coordinates in which a basin is about round and at the origin; returns the target in them, and the cost."""
    lowest, energy, spent = _descend(target, x[:_FIRST], torch.ones_like(x[:_FIRST]), _FIRST_STEPS)
    order = energy.argsort()
    lowest = lowest[order[torch.isfinite(energy[order])][:4]]
    if len(lowest) == 0:
        raise EnergyPPLError(_NOTHING_FOUND)
    scale, cost = _widths(target, lowest)
    framed = Affine(target, lowest[0], torch.diag(scale.reshape(-1)))
    cost += spent
    if not 1 < scale.numel() <= _MAX_CURVED:
        return framed, cost
    factor = scale.reshape(-1, 1) * _correlation_factor(framed)
    return Affine(target, lowest[0], factor), cost + 2 * scale.numel()


def _correlation_factor(framed: Potential) -> Tensor:
    """Return the Cholesky factor ``(d, d)`` of the inverse curvature at the origin, by differences half a width wide.

    Directions without a curvature above 1e-6 keep the width that they have.
    """
    shape = framed.event_shape
    like = framed.loc if isinstance(framed, Affine) else torch.zeros(shape)
    dim = math.prod(shape)
    ends = 0.5 * torch.eye(dim, dtype=like.dtype, device=like.device)
    _, grad = eager_energy_and_grad(framed, torch.cat([ends, -ends]).reshape(-1, *shape))
    grad = grad.reshape(2, dim, dim).double().nan_to_num(0.0, 0.0, 0.0)
    curvature = grad[0] - grad[1]
    values, vectors = torch.linalg.eigh(0.5 * (curvature + curvature.T))
    values = torch.where(values > 1e-6, values, 1.0)
    factor: Tensor = torch.linalg.cholesky((vectors / values) @ vectors.T).to(like)
    return factor


def _energy(target: Potential, x: Tensor) -> Tensor:
    """Return energies, +∞ where they are not finite: −∞ is where a support's map has met an edge."""
    return energy_only(target, x).nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)


def _descend(target: Potential, x: Tensor, step: Tensor, steps: int, close: float = 0.0) -> tuple[Tensor, Tensor, int]:
    """Descend with a step of its own for each coordinate (Rprop; Riedmiller & Braun 1993).

    The steps know the slope's sign alone, so scales from 1e-6 to 1e6 and minima a million away take about 40 of them.

    Args:
        target: the energy U.
        x: where the descents begin, ``(n, *event)``.
        step: the first step of each coordinate, ``(n, *event)``.
        steps: how many at most.
        close: a descent ends when the steps of all coordinates are smaller.

    Returns:
        The lowest point of each descent, its energy, and the number of evaluations.
    """
    last, going, spent, target = torch.zeros_like(x), torch.arange(len(x), device=x.device), 0, bind(target)
    lowest, energy = x.clone(), torch.full_like(x.reshape(len(x), -1)[:, 0], math.inf)
    for _ in range(steps):
        value, grad = energy_and_grad(target, x)
        spent += len(x)
        legal = torch.isfinite(value)
        wide = append_dims(legal, x)
        better = legal & (value < energy[going])
        energy[going[better]], lowest[going[better]] = value[better], x[better]
        sign = torch.where(wide, grad.nan_to_num().sign(), 0.0)
        turned = sign * last < 0
        step = torch.where(turned, _SLOWER * step, torch.where(sign * last > 0, _FASTER * step, step))
        step = torch.where(wide, step, 0.25 * step)
        sign = torch.where(turned, 0.0, sign)
        x = torch.where(wide, x - step * sign, lowest[going])  # back from where the energy is infinite
        last = torch.where(wide, sign, last)
        on = step.reshape(len(step), -1).amax(1) >= close
        some = on.int().argsort(descending=True)[: _SHAPES * math.ceil(int(on.sum()) / _SHAPES)]
        if len(some) < len(on):
            x, step, last, going = x[some], step[some], last[some], going[some]
        if not len(going):
            break
    return lowest, energy, spent


def _widths(target: Potential, minima: Tensor) -> tuple[Tensor, int]:
    """Find how far along each coordinate the energy rises by ½ from minima ``(k, *event)``: the median, the cost."""
    count, shape = len(minima), minima.shape[1:]
    dim, rounds = max(1, math.prod(shape)), 9
    eye = torch.eye(dim, dtype=minima.dtype, device=minima.device).reshape(1, dim, *shape)
    floor = _energy(target, minima).reshape(count, 1)
    low, high = torch.full((2, count, dim), -30.0).to(minima), torch.full((2, count, dim), 30.0).to(minima)
    signs = torch.tensor([1.0, -1.0]).to(minima).reshape(2, 1, 1)
    for _ in range(rounds):  # bisection of the logarithm to the base of 2
        middle = 0.5 * (low + high)
        step = (signs * 2.0**middle).reshape(2, count, dim, *[1] * len(shape))
        points = minima.reshape(1, count, 1, *shape) + step * eye
        risen = _energy(target, points.reshape(-1, *shape)).reshape(2, count, dim) - floor > 0.5
        low, high = torch.where(risen, low, middle), torch.where(risen, middle, high)
    log_width = (0.5 * (low + high)).mean(0).median(0).values
    return (2.0**log_width).reshape(shape), 2 * count * dim * rounds


def _reach(framed: Potential, x: Tensor) -> tuple[float, int]:
    """Find how far to scatter starts: 64 widths, and on while a shell may hold as much as the best one but 30 nats."""
    each, dim, radius, spent = 16, max(1, x[0].numel()), 1.0, 0
    best = -math.inf
    while radius < _FARTHEST:
        shell = radius * torch.randn(each, *x.shape[1:]).to(x)
        mass = float((-_energy(framed, shell)).max()) + dim * math.log(radius)
        best, spent = max(best, mass), spent + each
        if radius >= _REACH and mass < best - _NEGLIGIBLE:
            break
        radius *= 4.0
    return radius, spent


def _relax(framed: Potential, ends: Tensor, some: Tensor) -> _Chains:
    """Run a chain from some of the ends ``(n, *event)``, each with a step size of its own."""
    z = ends[some]
    if not len(z):
        return _Chains(some, z.expand(_KEPT, *z.shape), *(z.new_zeros(0),) * 3)
    state, log_step, _, _ = _move(framed, MALA(1.0).init(framed, z), torch.zeros(len(z)).to(z), _MOVES // 2)
    state, log_step, states, rise = _move(framed, state, log_step, _MOVES // 2)
    return _Chains(some, states, max(1, z[0].numel()) * log_step - state.energy, log_step, rise)


def _move(framed: Potential, state: State, log_step: Tensor, moves: int) -> tuple[State, Tensor, Tensor, Tensor]:
    """Move chains and tune their steps; returns both, some of the states, and by how much the energies rise, (n,)."""
    kept, energies, every = [], [], _MOVES // (2 * _KEPT)
    for move in range(moves):
        state, info = MALA(log_step.exp()).step(framed, state)
        log_step = (log_step + 0.5 * (info.accept_prob.nan_to_num(0.0) - 0.6)).clamp(max=math.log(10.0))
        energies.append(state.energy)
        if (move + 1) % every == 0:
            kept.append(state.x)
    first, last = torch.stack(energies).tensor_split(2)
    return state, log_step, torch.stack(kept), last.mean(0) - first.mean(0)


def _settled(framed: Potential, chains: _Chains, most: int) -> tuple[Tensor, Tensor, int]:
    """Move at most so many chains on while energies rise: from the tip of a pointed basin to all of it takes long.

    Returns:
        The number of the end where each began that is in a basin that counts, their states ``(kept, n, *event)``, and
        the evaluations.
    """
    some, moves, spent = chains.held().nonzero()[:, 0], _MOVES, 0
    if rises := _rise(chains.rise[some]):
        some = some[torch.randperm(len(some), device=some.device)[:most]]
    states, log_step = chains.states[:, some], chains.log_step[some]
    while rises and moves <= _LONGEST:
        state = MALA(1.0).init(framed, states[-1])
        _, log_step, states, rise = _move(framed, state, log_step, moves)
        rises, spent, moves = _rise(rise), spent + len(some) * (moves + 1), 2 * moves
    return chains.begin[some], states, spent


def _rise(rise: Tensor) -> bool:
    """Tell whether energies of chains rise on average, by more than chance has it."""
    return float(rise.mean()) > _RISES * float(rise.std()) / math.sqrt(len(rise))

"""Quadrature: integrals on a grid, to near machine precision, for any potential in one or two dimensions.

The midpoint rule on equal cells: its error falls faster than any power of the cell for smooth densities that vanish at
the box's faces. The grid is doubled until an error estimate made of its own coarser versions meets the tolerance. A
feature between all nodes can't be seen: begin with cells no wider than a few times the finest one (``Grid.points``).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import Distribution

from energyppl._checks import checked, shape_text
from energyppl.autodiff.devices import beside
from energyppl.autodiff.structure import check_not_model
from energyppl.errors import InvalidInput, QuadratureError
from energyppl.integration.grid import Grid, GridOptions
from energyppl.potentials.algebra import Energy
from energyppl.potentials.bases import DistributionBase
from energyppl.potentials.points import dtype_of

__all__ = ["Grid", "GridOptions", "Quadrature", "expectation", "kl_divergence", "quadrature"]

# The box's outermost 1/_LAYERS on each side is where the leak is measured, whatever the number of cells.
_LAYERS = 64
_DEFAULT, _LOOSER = GridOptions(), GridOptions(tolerance=1e-2)
_MOST_NODES = 2**26  # half a GiB of energies


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Integral of exp(−U) on a grid, with the density and its moments.

    Attributes:
        grid: the grid that was finally used.
        log_normalizer: log of the integral of exp(-U), in nats.
        error: estimate of log_normalizer's error, in nats; usually far too large, as it is that of a coarser rule.
        log_density: log of exp(-U)/Z at the nodes, ``grid.points``, float64, in nats.
        mean: ``(d,)``, float64.
        covariance: ``(d, d)``, float64.
        entropy: of exp(-U)/Z, in nats.
        leak: estimated share of the mass at and beyond the box's faces.
        evaluations: number of points at which the potential was evaluated.

    Example:
        >>> bell = ep.quadrature(lambda x: 0.5 * x.square().sum(-1), ep.Grid((-9.0,), (9.0,), (64,)))
        >>> round(bell.log_normalizer, 4), round(bell.entropy, 4), bell.error < 1e-3
        (0.9189, 1.4189, True)
    """

    grid: Grid
    log_normalizer: float
    error: float
    log_density: Tensor
    mean: Tensor
    covariance: Tensor
    entropy: float
    leak: float
    evaluations: int

    def __repr__(self) -> str:
        """Summarize in one line."""
        return (
            f"Quadrature(log Z = {self.log_normalizer:.6g} ± {self.error:.2g} nats, entropy {self.entropy:.6g}, "
            f"leak {self.leak:.2g}, by {' × '.join(map(str, self.grid.points))} points)"
        )

    @property
    def density(self) -> Tensor:
        """exp(-U)/Z at the nodes, ``grid.points``, float64."""
        return self.log_density.exp()


@checked
def quadrature(
    potential: Callable[[Tensor], Tensor],
    grid: Grid,
    options: GridOptions = _DEFAULT,
) -> Quadrature:
    """Normalize exp(-potential) on a box, doubling the grid until log Z is known to the tolerance.

    The error estimate is the larger of two: the change from a grid with 0.618 times the points (whose nodes fall
    elsewhere), and the spread of the rules that use every second node of each dimension. Both are errors of a coarser
    rule, so for smooth densities the true error is much smaller. Where the density jumps, the error falls only like the
    cell and the estimate is no more than its order of magnitude: put the jumps between cells. The leak is the mass in
    the outermost 1/64 of the box on each side plus what an exponential tail of the slope seen there adds outside.

    Args:
        potential: energy in nats, ``(*batch, *event) -> (*batch,)``; its ``event_shape``, if it has one, is ``()``,
            ``(1,)`` or ``(2,)``. Plus infinity (off the support) is fine.
        grid: the box, and the points to begin with.
        options: tolerance, finest grid, dtype and chunk.

    >>> bell = ep.quadrature(lambda x: 0.5 * x.square().sum(-1), ep.Grid((-9.0,), (9.0,), (64,)))
    >>> print(f"{bell.log_normalizer:.4f}")
    0.9189

    Raises:
        InvalidInput: the potential's dimension is not the grid's, or it returns a wrong shape.
        QuadratureError: mass leaks out of the box; the grid is too coarse at ``max_points``; an energy is NaN or minus
            infinity; or there is no mass in the box.
    """
    check_not_model("the energy", potential)
    evaluations, tolerance = 0, options.tolerance
    while True:
        energy = _energies(potential, grid, options)
        evaluations += grid.size
        log_z = _log_integral(energy, grid)
        if log_z == -math.inf:
            raise QuadratureError("the box must hold mass; got energy +inf at every node: move it or refine the grid")
        other = replace(grid, points=tuple(max(8, round(0.618 * n) + 1) for n in grid.points))
        evaluations += other.size
        change = abs(log_z - _log_integral(_energies(potential, other, options), other))
        error = max(change, _parity_spread(energy, grid, log_z))
        if error <= tolerance:
            break
        finer = tuple(2 * n for n in grid.points)
        if max(finer) > options.max_points:
            raise QuadratureError(
                f"the error of log Z must be at most {tolerance:g} nats; got {error:.3g} with {grid.points} points: "
                "raise max_points, shrink the box, or raise the tolerance"
            )
        grid = replace(grid, points=finer)
    log_density = -energy - log_z
    leak = _leak(log_density, grid)
    if leak > tolerance:
        text = (
            f"the box must hold all but {tolerance:g} of the mass; got a leak of {leak:.3g} near and beyond its faces"
        )
        raise QuadratureError(f"{text}: enlarge the box")
    return _summary(grid, log_z, error, log_density, leak, evaluations)


def mass_beyond(potential: Callable[[Tensor], Tensor], found: Quadrature, options: GridOptions = _DEFAULT) -> float:
    """Estimate the mass outside of a quadrature's square about the origin, as a share of the mass inside.

    A separate mode out there leaks nothing through the faces.  Squares 2, 4 and 8 times as wide are looked at, by 256
    cells along each side: a mode much narrower than one of them may be missed.

    Args:
        potential: the energy that was integrated.
        found: its integral.
        options: dtype and chunk.

    Example:
        >>> bell = lambda x: 0.5 * x.square().sum(-1)
        >>> both = lambda x: -torch.logaddexp(-bell(x), -bell(x - 12.0))
        >>> found = ep.quadrature(both, ep.Grid((-5.0,), (5.0,), (64,)))
        >>> from energyppl.integration.quadrature import mass_beyond
        >>> round(mass_beyond(both, found), 3)
        1.0
    """
    edge, beyond = found.grid.high[0], 0.0
    for factor in (2, 4, 8):
        wider = Grid((-factor * edge,) * found.grid.dim, (factor * edge,) * found.grid.dim, (256,) * found.grid.dim)
        energy = _energies(potential, wider, options).flatten()
        outside = wider.nodes().abs().amax(1) > edge
        beyond = max(beyond, math.exp(min(700.0, _log_integral(energy[outside], wider) - found.log_normalizer)))
    return beyond


@checked
def expectation(
    function: Callable[[Tensor], Tensor],
    potential: Callable[[Tensor], Tensor],
    grid: Grid,
    options: GridOptions = _DEFAULT,
) -> Tensor:
    """Integrate the mean of a function under exp(-potential)/Z, ``(*out)`` in float64.

    Args:
        function: ``(*batch, *event) -> (*batch, *out)``; not asked where the density is zero.
        potential: energy in nats, as in ``quadrature``.
        grid: the box, and the points to begin with.
        options: as in ``quadrature``; the tolerance bounds the error of log Z, not that of the mean.

    Raises:
        InvalidInput: as in ``quadrature``.
        QuadratureError: as in ``quadrature``, or the function is NaN where there is mass.

    Example:
        >>> bell = ep.Energy(lambda x: 0.5 * (x * x).sum(-1), (1,))
        >>> grid = ep.Grid.around(torch.randn(1_000, 1), margin=2.0)
        >>> abs(float(ep.integration.expectation(lambda x: x.square().sum(-1), bell, grid)) - 1.0) < 0.01
        True
    """
    result = quadrature(potential, grid, options)
    total: Tensor | None = None
    masses = (result.density.flatten() * result.grid.cell).split(options.chunk)
    with torch.no_grad():
        for nodes, mass in zip(result.grid.chunks(options.chunk), masses, strict=True):
            held = mass > 0
            if not bool(held.any()):
                continue
            values = function(_as_points(potential, nodes[held], options.dtype)).double().cpu()
            part = torch.tensordot(mass[held], values, dims=1)
            total = part if total is None else total + part
    assert total is not None  # a normalized density has mass
    if not bool(torch.isfinite(total).all()):
        raise QuadratureError("the mean must be finite; got NaN or infinity: check the function where there is mass")
    return total


@checked
def kl_divergence(
    log_p: Callable[[Tensor], Tensor],
    log_q: Callable[[Tensor], Tensor],
    grid: Grid,
    options: GridOptions = _LOOSER,
) -> float:
    """Integrate KL(p || q) in nats of two normalized log densities, on a grid fine enough for both.

    Args:
        log_p: ``(*batch, *event) -> (*batch,)`` in nats, or a distribution.
        log_q: the same; the result is infinite where q has no mass and p has some.
        grid: the box, and the points to begin with.
        options: as in ``quadrature``; the tolerance is also how far each integral may be from one, in nats.

    Raises:
        InvalidInput: as in ``quadrature``.
        QuadratureError: as in ``quadrature``, or a density does not integrate to one.

    Example:
        >>> p, q = (pyro.distributions.Normal(mean * torch.ones(1), 1.0).to_event(1) for mean in (0.0, 1.0))
        >>> grid = ep.Grid.around(4.0 * torch.randn(1_000, 1), margin=2.0)
        >>> round(ep.integration.kl_divergence(p.log_prob, q.log_prob, grid), 2)
        0.5
    """
    results: list[Quadrature] = []
    for name, log_density in (("log_p", log_p), ("log_q", log_q)):
        energy = _Negative(log_density)
        result = quadrature(energy, grid, options)
        if abs(result.log_normalizer) > options.tolerance:
            raise QuadratureError(
                f"{name} must integrate to one on the box; got {math.exp(result.log_normalizer):.6g}: "
                "normalize it, or enlarge the box"
            )
        results.append(result)
        grid = result.grid  # q starts from p's grid, so the last grid is fine enough for both
    p = -_energies(_Negative(log_p), grid, options) if results[0].grid != grid else _raw(results[0])
    q = _raw(results[1])
    held = p.exp() > 0
    return float((p[held].exp() * (p[held] - q[held])).sum()) * grid.cell


class _Negative:
    """A log density as a potential, with its event_shape, parameters and all."""

    def __init__(self, log_density: Callable[[Tensor], Tensor]) -> None:
        if isinstance(log_density, Energy):
            raise InvalidInput(
                "log densities are asked for; got an Energy: pass EnergyDistribution(energy, log_normalizer=…)"
            )
        self._log_density: Callable[[Tensor], Tensor] = getattr(log_density, "log_prob", log_density)
        if isinstance(log_density, Distribution):  # which draws if called, and may refuse points off its support
            base = DistributionBase(log_density)
            self._log_density = lambda x: -base(x)
        self.owner = getattr(log_density, "__self__", log_density)  # the toy whose method log_prob is
        shape = getattr(self.owner, "event_shape", None)
        if shape is not None:
            self.event_shape = shape

    def __call__(self, x: Tensor) -> Tensor:
        return -self._log_density(x)


def _raw(result: Quadrature) -> Tensor:
    """Return the log density as it was given, before the quadrature normalized it."""
    return result.log_density + result.log_normalizer


def _as_points(potential: Callable[[Tensor], Tensor], nodes: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Bring nodes ``(n, d)`` to the shape, dtype and device that the potential takes."""
    shape = getattr(potential, "event_shape", None)
    shape = torch.Size((nodes.shape[1],)) if shape is None else torch.Size(shape)
    if len(shape) > 1 or math.prod(shape) != nodes.shape[1]:
        raise InvalidInput(
            f"the potential's event_shape must have {nodes.shape[1]} dimension(s), as the grid; "
            f"got {shape_text(shape)}: pass a grid of that dimension (quadrature takes one or two)"
        )
    owner = getattr(potential, "owner", potential)
    kind = dtype or dtype_of(owner) or torch.get_default_dtype()
    return beside(owner, nodes.to(kind)).reshape(len(nodes), *shape)


def _energies(potential: Callable[[Tensor], Tensor], grid: Grid, options: GridOptions) -> Tensor:
    """Evaluate the energy at every node, ``grid.points``, float64."""
    if grid.size > _MOST_NODES:
        raise InvalidInput(f"a grid must have at most {_MOST_NODES:,} nodes; got {grid.size:,}: take fewer points")
    parts = []
    with torch.no_grad():
        for nodes in grid.chunks(options.chunk):
            values = potential(_as_points(potential, nodes, options.dtype))
            if tuple(values.shape) != (len(nodes),):
                raise InvalidInput(
                    f"the potential must return shape ({len(nodes)},); got {shape_text(values.shape)}: "
                    "return one energy per point"
                )
            values = values.double().cpu()
            bad = torch.isnan(values) | (values == -math.inf)
            if bool(bad.any()):
                first = int(bad.nonzero()[0])
                raise QuadratureError(
                    f"energies must be numbers or +inf; got {float(values[first])} at {int(bad.sum())} node(s), "
                    f"first at {nodes[first].tolist()}: check the potential there"
                )
            parts.append(values)
    return torch.cat(parts).reshape(grid.points)


def _log_integral(energy: Tensor, grid: Grid) -> float:
    return float(torch.logsumexp(-energy.flatten(), 0)) + math.log(grid.cell)


def _parity_spread(energy: Tensor, grid: Grid, log_z: float) -> float:
    """Return how far log Z is at most from the rules of every second node: they differ when cells are too wide."""
    spread = 0.0
    for start in range(2**grid.dim):
        part = energy[tuple(slice(start >> i & 1, None, 2) for i in range(grid.dim))]
        value = float(torch.logsumexp(-part.flatten(), 0)) + math.log(grid.cell * grid.size / part.numel())
        spread = max(spread, abs(value - log_z))
    return spread


def _leak(log_density: Tensor, grid: Grid) -> float:
    mass = log_density.exp() * grid.cell
    total = 0.0
    for axis in range(grid.dim):
        line = mass.sum(1 - axis) if grid.dim == 2 else mass
        width = max(1, len(line) // _LAYERS)
        for side in (line, line.flip(0)):
            outer, inner = float(side[:width].sum()), float(side[width : 2 * width].sum())
            # A layer as heavy as the next one inside does not decay at all: call the leak a whole box's worth of it.
            ratio = min(outer / inner, 1 - 1 / _LAYERS) if inner > 0 else 1 - 1 / _LAYERS
            total += outer / (1 - ratio)
    return min(total, 1.0)


def _summary(grid: Grid, log_z: float, error: float, log_density: Tensor, leak: float, evaluations: int) -> Quadrature:
    mass = log_density.exp() * grid.cell
    axes = grid.axes()
    margins = [mass.sum([j for j in range(grid.dim) if j != i]) if grid.dim == 2 else mass for i in range(grid.dim)]
    mean = torch.stack([(margin * axis).sum() for margin, axis in zip(margins, axes, strict=True)])
    away = [axis - center for axis, center in zip(axes, mean, strict=True)]
    covariance = torch.diag(torch.stack([(m * a.square()).sum() for m, a in zip(margins, away, strict=True)]))
    if grid.dim == 2:
        covariance[0, 1] = covariance[1, 0] = away[0] @ mass @ away[1]
    entropy = -float((mass * log_density).nan_to_num(0.0).sum())
    return Quadrature(grid, log_z, error, log_density, mean, covariance, entropy, leak, evaluations)

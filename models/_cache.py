"""Values worked out from a model's weights and kept until they change."""

import ctypes
import operator
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from energyppl.autodiff.private import is_transformed, module_tables
from energyppl.errors import QuadratureError
from energyppl.inference.normalizing.tails import require_normalizable
from energyppl.integration.quadrature import Grid, GridOptions, Quadrature, mass_beyond, quadrature
from energyppl.potentials.algebra import Potential
from energyppl.potentials.network import AtLevel

__all__ = [
    "KnownEnergies",
    "KnownMoves",
    "LevelIntegrals",
    "WeightKeyedCache",
    "WeightSnapshot",
    "known_log_z",
    "lazy_log_z",
]

T = TypeVar("T")

# What modules are full of, left out by type: asking each whether it is a Tensor took a third of a comparison's time.
_DONT_COUNT = frozenset({type(None), int, dict, OrderedDict, set, list, tuple})

_memcmp = (ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


class WeightKeyedCache(Generic[T]):
    """Values worked out from a model's weights, forgotten when the weights have changed."""

    def __init__(self) -> None:
        self._weights: WeightSnapshot | None = None
        self._known: dict[Hashable, T] = {}

    def known(self, model: nn.Module, key: Hashable) -> T | None:
        """Return the value of ``key``, or None if it is not known for these weights."""
        value = self._known.get(key)
        return value if value is not None and self._weights is not None and self._weights.holds(model) else None

    def keep(self, model: nn.Module, key: Hashable, value: T) -> T:
        """Keep and return a value of these weights."""
        if self._weights is None or not self._weights.holds(model):
            self._weights, self._known = WeightSnapshot(model), {}
        self._known[key] = value
        return value

    def get(self, model: nn.Module, key: Hashable, work: Callable[[], T]) -> T:
        """Return the value of ``key``, by ``work()`` if it is not known for these weights."""
        known = self.known(model, key)
        return self.keep(model, key, work()) if known is None else known  # kept after the work: it may tune step sizes


def known_log_z(
    known: WeightKeyedCache[Tensor], model: nn.Module, work: Callable[[], Tensor], inputs: Sequence[Tensor]
) -> Tensor:
    """Return log Z by ``work()``; once it is known for these weights only a gradient to ``inputs`` asks for it anew."""
    value = None if is_transformed() else known.known(model, None)
    if value is None:
        value = work()
        known.keep(model, None, value.detach())
        return value
    return lazy_log_z(value, work, inputs) if torch.is_grad_enabled() else value


class WeightSnapshot:
    """A copy of a model's weights and buffers, which tells whether they, its layers or its mode have changed since.

    Layers are held and not known by number, so that a copy of the model, or one from a pickle, holds its own.  Every
    byte is compared: torch's own version counters don't tell, since its fused optimizers and writes to ``.data``
    leave them as they are.  A copy costs memory, but comparing takes a seventh of the time of a checksum.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules, self._layout, tensors = _parts(model)
        self._copies = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]

    def holds(self, model: nn.Module) -> bool:
        """Tell whether nothing has changed."""
        modules, layout, tensors = _parts(model)
        same = layout == self._layout and len(modules) == len(self._modules)
        same = same and all(map(operator.is_, modules, self._modules))
        return same and all(map(_same_bytes, tensors, self._copies))


def _parts(model: nn.Module) -> tuple[list[nn.Module], list[Hashable], list[Tensor]]:
    """Return a model's modules, what they are made of but for the values, and their tensors.

    Numbers and texts that forward may read count, but whole ones: a network may count its calls.
    """
    modules, tensors = list(model.modules()), list[Tensor | None]()
    layout: list[Hashable] = []
    for module in modules:
        parameters, buffers, _ = module_tables(module)
        tensors += parameters.values()
        tensors += buffers.values()
        for value in vars(module).values():
            if type(value) in _DONT_COUNT:
                continue
            if isinstance(value, (bool, float, str)):
                layout.append(value)
            elif isinstance(value, Tensor):
                tensors.append(value)
    held = [tensor for tensor in tensors if tensor is not None]
    layout += [(tensor.shape, tensor.dtype, tensor.device) for tensor in held]
    return modules, layout, held


def _same_bytes(tensor: Tensor, copy: Tensor) -> bool:
    """Compare a tensor with a contiguous copy of the same shape, dtype and device; NaN is the same as itself."""
    if tensor.is_cpu and tensor.is_contiguous():
        return bool(_memcmp(tensor.data_ptr(), copy.data_ptr(), copy.nbytes) == 0)
    return torch.equal(*(value.detach().contiguous().reshape(-1).view(torch.uint8) for value in (tensor, copy)))


class KnownEnergies:
    """The energies of a model's levels, which densities ask for at every call."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, torch.dtype, torch.device, AtLevel]] = {}

    def get(self, model: Any, level: int | Tensor, make: Callable[[], AtLevel]) -> AtLevel:
        """Return the energy of a level, by ``make()`` if it is not known for this network, dtype and device."""
        if type(level) is not int or torch.is_inference_mode_enabled():
            return make()  # tensors made in inference mode are none that autograd takes later
        net, like = model.net, model.loc
        known = self._known.get(level)
        if known is None or known[0] is not net or known[1] != like.dtype or known[2] != like.device:
            known = self._known[level] = (net, like.dtype, like.device, make())
        return known[3]


class KnownMoves:
    """The moves of samples at each level that were found to do, and what a state dict says of them.

    Args:
        known: where they are kept.
    """

    def __init__(self, known: WeightKeyedCache[Any]) -> None:
        self._known = known
        self._loaded: tuple[str, tuple[int, ...]] | None = None  # of the weights with this digest

    def find(self, model: Any) -> tuple[int, ...] | None:
        """Return what was found for these weights, or read with them; None if nothing was."""
        if self._loaded is not None:
            digest, moves = self._loaded
            self._loaded = None
            if digest == model.checksum():
                self.keep(model, moves)
        return self._known.known(model, "moves")

    def keep(self, model: Any, moves: tuple[int, ...]) -> None:
        """Keep what was found for these weights."""
        self._known.keep(model, "moves", moves)

    def packed(self, model: Any) -> Tensor | None:
        """Return the weights' digest, byte for byte, and the moves, as one tensor for a state dict."""
        moves = self.find(model)
        return None if moves is None else torch.tensor([*bytes.fromhex(model.checksum()), *moves])

    def unpack(self, theirs: object, levels: int) -> None:
        """Take what a state dict says; it counts once the weights that it was found for are in place."""
        self._loaded = None
        values = theirs.tolist() if isinstance(theirs, Tensor) and theirs.dim() == 1 else []
        if len(values) > levels and all(isinstance(value, int) and 0 <= value < 2**31 for value in values):
            digest, moves = values[:-levels], tuple(values[-levels:])
            if max(digest) < 256 and min(moves) > 0:
                self._loaded = bytes(digest).hex(), moves


class LevelIntegrals:
    """The integrals of a model's levels in standardized coordinates.

    Args:
        known: where they are kept.
    """

    def __init__(self, known: WeightKeyedCache[Any]) -> None:
        self._known = known

    def quadrature(self, model: Any, level: int) -> Quadrature:
        """Return the integral of a level, up to two dimensions."""
        found: Quadrature = self._known.get(
            model, ("quadrature", level), lambda: _integrate_widening(model.potential(level), model.loc)
        )
        return found

    def quantiles(self, model: Any, level: int) -> Tensor:
        """Return grid nodes that stand for equal shares of a level's mass, ``(16384, *event)``: no noise."""
        count = 16_384
        found = self.quadrature(model, level)
        mass = found.density.flatten().cumsum(0)
        index = torch.searchsorted(mass, mass[-1] * (torch.arange(count) + 0.5) / count).clamp(max=len(mass) - 1)
        places = torch.unravel_index(index, found.grid.points)
        return torch.stack([axis[i] for axis, i in zip(found.grid.axes(), places, strict=True)], -1).to(model.loc)


def _integrate_widening(potential: Potential, like: Tensor) -> Quadrature:
    """Integrate over a square as narrow as the mass allows, since the grid is finer for it, separate modes included.

    Raises:
        NotNormalizable: if the energy doesn't rise far away.
        QuadratureError: if 64 is not wide enough.
    """
    size, options = potential.event_shape[0], GridOptions(dtype=like.dtype)
    for half_width in (4.0, 8.0, 16.0, 32.0, 64.0):
        grid = Grid((-half_width,) * size, (half_width,) * size, (256,) * size)
        try:
            found = quadrature(potential, grid, options)
            beyond = mass_beyond(potential, found, options) if half_width < 64.0 else 0.0
        except QuadratureError as error:
            rays = torch.randn(256, size, generator=torch.Generator().manual_seed(0)).to(like)
            require_normalizable(potential, rays)  # or wider squares would be for nothing
            reason = str(error)
            continue
        if beyond <= options.tolerance:
            return found
        reason = f"{beyond:.2g} of the mass lies more than {half_width:g} standard deviations away"
    raise QuadratureError(
        "log Z could not be integrated within 64 standard deviations of the data: "
        f"{reason.partition(': ')[0]}; if the energy hardly rises far away, add a confining term such as ½|x|² to the "
        "network"
    )


def lazy_log_z(value: Tensor, surrogate: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """Return log Z with the gradient of another function, which is worked out in the backward pass only.

    A chain that moves on a density, or whoever asks for its value alone, never waits for it.

    Args:
        value: log Z in nats, ``(*batch,)``.
        surrogate: works out what has the gradient of log Z, ``(*batch,)``.
        inputs: that it may depend on; those that ask for a gradient get one.
    """
    inputs = [tensor for tensor in inputs if tensor.requires_grad]
    if not inputs:
        return value
    lazy = _TransformableGradient if is_transformed() else _LazyGradient
    log_z: Tensor = lazy.apply(value, surrogate, *inputs)  # type: ignore[no-untyped-call]
    return log_z


class _LazyGradient(torch.autograd.Function):
    """A value whose gradient is that of another function."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, surrogate: Callable[[], Tensor], *inputs: Tensor) -> Tensor:
        ctx.surrogate, ctx.inputs = surrogate, inputs
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()  # whether the gradient is to be differentiated once more
        with torch.enable_grad():
            found = ctx.surrogate()
            weight = None if found.dim() == 0 else grad
            grads = torch.autograd.grad(found, ctx.inputs, weight, create_graph=again, allow_unused=True)
        return None, None, *(g if g is None or weight is not None else grad * g for g in grads)


class _TransformableGradient(torch.autograd.Function):
    """The same for ``torch.func`` and its ``vmap``, whose form of a function takes longer to call."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Callable[[], Tensor], *inputs: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.surrogate, *ctx.inputs = inputs

    backward = _LazyGradient.backward

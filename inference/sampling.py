"""Many chains on a potential, a distribution or a Pyro model: warm-up, draws, and what became of each chain."""

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from energyppl._checks import check_count, check_event, shape_text
from energyppl.constrained import Constrained
from energyppl.distributions import EnergyDistribution
from energyppl.errors import InvalidInput
from energyppl.inference.adaptation import Tuned, middle_step, warm_up
from energyppl.inference.mass import MassEstimate, low_rank_mass
from energyppl.inference.pyro_models import ModelPotential
from energyppl.inference.results import Chains, Variables
from energyppl.inference.transition import Info, Kernel, State
from energyppl.potential import Potential

__all__ = ["sample_chains", "start", "target_of"]

_MOST_BYTES = 4 * 2**30  # of draws in memory
_RARE = 0.01  # of the draws: fewer divergences are in Chains.problems, and not worth a warning
_TRIES = 100  # at a start whose energy is finite

Init = Tensor | Mapping[str, Tensor] | Callable[[torch.Size], Tensor] | None


def sample_chains(
    kernel: Kernel,
    potential: Any,
    *args: Any,
    chains: int = 64,
    draws: int = 1000,
    warmup: int = 400,
    thin: int = 1,
    init: Init = None,
    target: float | None = None,
    mass: MassEstimate = low_rank_mass,
    keep_warmup: bool = False,
    file: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Chains:
    """Tune a kernel on the target during a warm-up, then draw from many chains at once.

    Draws take ``chains · draws · event`` numbers of memory; with ``file`` they go to a ``.npy`` file that is mapped
    into memory, and only their diagnostics (19 bytes each) stay.  Ctrl-C ends the sampling and keeps what was drawn;
    chains that are stuck or not finite are named by :meth:`Chains.problems`, and in a warning.

    Args:
        kernel: moves the chains; tuned by :func:`~energyppl.inference.adapt` during the warm-up.
        potential: a potential, an ``EnergyDistribution`` (its batch is sampled along), or any Pyro model, whose latent
            sites are sampled given its observed ones.
        args: the Pyro model's arguments.
        chains: how many chains.
        draws: how many draws of each are kept.
        warmup: steps of tuning; 0 takes the kernel as it is.
        thin: steps for each draw that is kept.
        init: where chains begin: points ``(chains, *batch, *event)``, a function of that shape, for a Pyro model a
            dictionary of sites; if None the distribution's own sampler, Pyro's way for a model, or N(0, 1).
        target: as in :func:`~energyppl.inference.adapt`.
        mass: as in :func:`~energyppl.inference.adapt`.
        keep_warmup: keep the warm-up's draws too.
        file: where draws go instead of memory.
        progress: show a bar with acceptance and divergences.
        kwargs: the Pyro model's named arguments.

    Raises:
        InvalidInput: for numbers out of range, a start of the wrong shape or without any finite energy, a model with
            discrete latent sites, or draws that don't fit into memory.
    """
    for name, value, least in (("chains", chains, 1), ("draws", draws, 1), ("warmup", warmup, 0), ("thin", thin, 1)):
        check_count(name, value, at_least=least)
    if not hasattr(kernel, "step") or not hasattr(kernel, "init"):
        raise InvalidInput(f"kernel must have init and step, as HMC() or NUTS(); got {type(kernel).__name__}")
    target_potential, variables, batch, default = target_of(potential, args, kwargs)
    shape = torch.Size((chains, *batch))
    x = start(target_potential, shape, init, default)
    began = time.perf_counter()
    recorder = _Recorder(target_potential, variables, shape, x, draws, file)
    early = _Recorder(target_potential, variables, shape, x, warmup, None) if keep_warmup and warmup else None
    gradients, interrupted, sampling_since = 0.0, False, began
    bar = tqdm(total=warmup + draws, disable=not progress, desc="warm-up" if warmup else "sampling", leave=True)
    watch = _Watch(bar)
    try:
        state = None
        if warmup:
            tuned: Tuned
            for tuned in islice(warm_up(kernel, target_potential, x, warmup, target=target, mass=mass), None):
                kernel, state = tuned.kernel, tuned.state
                gradients += float(torch.as_tensor(tuned.info.gradients, dtype=torch.float64).mean())
                if early is not None:
                    early.add(state, [tuned.info], middle_step(kernel))
                watch.show(tuned.info)
        if state is None:
            state = kernel.init(target_potential, x)
        bar.set_description("sampling")
        step_size = middle_step(kernel)
        sampling_since = time.perf_counter()
        for _ in range(draws):
            infos = []
            for _ in range(thin):
                state, info = kernel.step(target_potential, state)
                infos.append(info)
            recorder.add(state, infos, step_size)
            watch.show(infos[-1])
    except KeyboardInterrupt:
        interrupted = True
    finally:
        bar.close()
    ended = time.perf_counter()
    result = replace(
        recorder.chains(kernel),
        warmup=early.chains(kernel) if early is not None else None,
        interrupted=interrupted,
        seconds=ended - sampling_since,
        warmup_seconds=sampling_since - began,
        warmup_gradients=gradients,
        attributes=_attributes(kernel, warmup, thin),
    )
    for problem in result.problems(rare=_RARE):
        warnings.warn(problem, stacklevel=2)
    return result


def target_of(
    target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Potential, Variables, torch.Size, Any]:
    """The potential to move on, the names of its variables, the target's batch, and where chains begin by default."""
    if isinstance(target, EnergyDistribution):
        potential, sampler = target.potential, target.sampler
        like = target.like
        begin = None if sampler is None else lambda shape: sampler(target.potential, shape, like)
        if target.is_unconstrained:
            return potential, _named(None), target.batch_shape, begin or _normal(potential, like)
        wrapped = Constrained(potential, target.support)
        start = _normal(wrapped, like) if begin is None else lambda shape: wrapped.unconstrain(begin(shape))
        return wrapped, _named(wrapped), target.batch_shape, start
    if isinstance(target, nn.Module) and hasattr(target, "marginal"):
        raise InvalidInput(
            f"a {type(target).__name__} has many distributions: pass ebm.marginal() for the data's, or "
            "ebm.recovery(noisy, level)"
        )
    if isinstance(target, Potential):
        wrapped_or_none = target if isinstance(target, Constrained) else None
        return target, _named(wrapped_or_none), torch.Size(), _normal(target, _like(target))
    if callable(target):
        model = ModelPotential.trace(target, *args, **kwargs)
        return model, model.constrain, torch.Size(), model.initial
    raise InvalidInput(
        f"expected a potential with an event_shape, an EnergyDistribution or a Pyro model; got {type(target).__name__}"
    )


def _named(constrained: Constrained | None) -> Variables:
    """Calls the points ``x``."""
    return lambda points: {"x": points if constrained is None else constrained.constrain(points)}


def _like(potential: Any) -> Tensor:
    """A tensor of the dtype and device that a potential's own numbers have."""
    if isinstance(potential, nn.Module):
        return next((p for p in potential.parameters() if p.dtype.is_floating_point), torch.empty(()))
    return torch.empty(())


def _normal(potential: Potential, like: Tensor) -> Callable[[torch.Size], Tensor]:
    return lambda shape: torch.randn(*shape, *potential.event_shape, dtype=like.dtype, device=like.device)


def start(potential: Potential, shape: torch.Size, init: Init, default: Callable[[torch.Size], Tensor]) -> Tensor:
    """Where chains begin, ``(*shape, *event)``: what was given, or drawn until the energy is finite."""
    if isinstance(init, Tensor):
        check_event("init", init, potential.event_shape)
        if init.shape != (*shape, *potential.event_shape):
            raise InvalidInput(
                f"init must have shape {shape_text((*shape, *potential.event_shape))}, a point for each chain; got "
                f"{shape_text(init.shape)}"
            )
        return init.detach()
    if isinstance(init, Mapping):
        if not isinstance(potential, ModelPotential):
            raise InvalidInput("init can be a dictionary of sites only for a Pyro model: pass a tensor of points")
        return potential.unconstrain(init, shape)
    draw = default if init is None else init
    x = draw(shape)
    check_event("init", x, potential.event_shape)
    if x.shape != (*shape, *potential.event_shape):
        raise InvalidInput(
            f"init must return points {shape_text((*shape, *potential.event_shape))}; got {shape_text(x.shape)}"
        )
    for _ in range(_TRIES):  # draw again what fell outside
        with torch.no_grad():
            outside = ~torch.isfinite(potential(x))
        if not bool(outside.any()):
            break
        wide = outside.reshape(outside.shape + (1,) * len(potential.event_shape))
        x = torch.where(wide, draw(shape), x)
    return x.detach()


class _Recorder:
    """Writes draws and diagnostics into tensors made once, step by step."""

    def __init__(
        self,
        potential: Potential,
        variables: Variables,
        shape: torch.Size,
        x: Tensor,
        draws: int,
        file: str | os.PathLike[str] | None,
    ) -> None:
        size = (draws, *shape, *potential.event_shape)
        self._potential, self._variables, self._count = potential, variables, 0
        if file is None:
            needed = math.prod(size) * x.element_size()
            if needed > _MOST_BYTES:
                raise InvalidInput(
                    f"the draws need {needed / 2**30:.1f} GiB of memory, more than {_MOST_BYTES // 2**30}: pass "
                    "file='draws.npy' to keep them on disk, or a larger thin with fewer draws"
                )
            self._draws = torch.empty(size, dtype=x.dtype)
        else:
            kind = torch.empty(0, dtype=x.dtype).numpy().dtype
            self._draws = torch.from_numpy(np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=size))
        self._energy = torch.empty((draws, *shape), dtype=x.dtype)
        self._acceptance, self._total = torch.empty_like(self._energy), torch.empty_like(self._energy)
        self._diverging = torch.empty((draws, *shape), dtype=torch.bool)
        self._moved = torch.empty_like(self._diverging)
        self._steps = torch.empty((draws, *shape), dtype=torch.int32)
        self._depth = torch.empty((draws, *shape), dtype=torch.int8)
        self._step_sizes = torch.empty(draws, dtype=x.dtype)
        self._has_total = self._has_depth = False

    def add(self, state: State, infos: Sequence[Info], step_size: float) -> None:
        i, last = self._count, infos[-1]
        self._draws[i], self._energy[i] = state.x, state.energy
        self._acceptance[i], self._moved[i], self._diverging[i] = last.accept_prob, last.accepted, last.diverging
        for info in infos[:-1]:
            self._acceptance[i] += info.accept_prob
            self._moved[i] |= info.accepted
            self._diverging[i] |= info.diverging
        if len(infos) > 1:
            self._acceptance[i] /= len(infos)
        self._steps[i] = sum((info.gradients for info in infos), start=0)
        if last.total_energy is not None:
            self._total[i], self._has_total = last.total_energy, True
        if last.tree_depth is not None:
            self._depth[i], self._has_depth = last.tree_depth, True
        self._step_sizes[i] = step_size
        self._count = i + 1

    def chains(self, kernel: Kernel) -> Chains:
        def turned(values: Tensor) -> Tensor:
            return values[: self._count].transpose(0, 1)

        return Chains(
            draws=turned(self._draws),
            energy=turned(self._energy),
            acceptance=turned(self._acceptance),
            diverging=turned(self._diverging),
            moved=turned(self._moved),
            steps=turned(self._steps),
            step_sizes=self._step_sizes[: self._count],
            kernel=kernel,
            potential=self._potential,
            variables=self._variables,
            total_energy=turned(self._total) if self._has_total else None,
            tree_depth=turned(self._depth) if self._has_depth else None,
        )


class _Watch:
    """Shows acceptance and divergences on a bar, a few times a second at most: reading them makes a GPU wait."""

    def __init__(self, bar: Any) -> None:
        self._bar, self._diverging, self._since = bar, 0, 0.0

    def show(self, info: Info) -> None:
        if not self._bar.disable:
            now = time.monotonic()
            if now - self._since > 0.3:
                self._since = now
                self._diverging += int(info.diverging.sum())
                self._bar.set_postfix_str(
                    f"acceptance {float(info.accept_prob.mean()):.2f}, diverging {int(info.diverging.sum())}",
                    refresh=False,
                )
        self._bar.update()


def _attributes(kernel: Kernel, warmup: int, thin: int) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "inference_library": "energyppl",
        "inference_library_version": version("energyppl"),
        "torch_version": str(torch.__version__),
        "pyro_version": version("pyro-ppl"),
        "seed": torch.initial_seed(),
        "kernel": repr(kernel),
        "tuning_steps": warmup,
        "thin": thin,
    }

"""Many chains on a potential, a distribution or a Pyro model: warm-up, draws, and what became of each chain."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from energyppl._checks import check_between, check_count, check_flag, shape_text
from energyppl._progress import progress_bar
from energyppl.arviz_export import check_names
from energyppl.autodiff.bound import bind
from energyppl.distributed import own_numbers, rank, world_size
from energyppl.errors import ChainWarning, InvalidInput, warn_user
from energyppl.inference.adaptation.warmup import untuned, warm_up
from energyppl.inference.kernels.binary import BinaryGibbs
from energyppl.inference.kernels.contract import Info, Kernel, State, check_kernel, combined, middle_step
from energyppl.inference.kernels.mass import MassEstimate, low_rank_mass
from energyppl.inference.sampling.chains import Chains
from energyppl.inference.sampling.pyro_model import ModelPotential
from energyppl.inference.sampling.shared_chains import joined, own_share
from energyppl.inference.sampling.targets import Init, Target
from energyppl.potentials.algebra import Potential

__all__ = ["sample_chains"]

_MAX_BYTES = 4 * 2**30  # of draws in memory
# Less than this is in Chains.problems, and not worth a warning: a share of diverging draws, a split R̂.
_RARE, _FAR = 0.01, 1.2


def sample_chains(
    kernel: Kernel,
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    chains: int = 64,
    draws: int = 1000,
    warmup: int = 400,
    thin: int = 1,
    init: Init = None,
    target_acceptance: float | None = None,
    mass: MassEstimate = low_rank_mass,
    keep_warmup: bool = False,
    file: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Chains:
    """Tune a kernel on the target during a warm-up, then draw from many chains at once.

    Draws take ``chains · draws · event`` numbers of memory; with ``file`` they go to a ``.npy`` file that is mapped
    into memory, and only their diagnostics (19 bytes each) stay.  Ctrl-C ends the sampling and keeps what was drawn;
    chains that are stuck or not finite are named by :meth:`Chains.problems`, and in a warning.  Processes of
    ``torchrun`` share the chains, tune for their own, and all return all of them, see :mod:`energyppl.distributed`.

    Args:
        kernel: moves the chains; tuned by :func:`~energyppl.adapt` during the warm-up if it has a step size.  A kernel
            that has none runs through the warm-up as it is, and ``notes`` of the result says so.
        model: a potential, an ``EnergyDistribution`` (its batch is sampled along), or any Pyro model, whose latent
            sites are sampled given its observed ones.
        args: the Pyro model's positional arguments.
        kwargs: its named arguments.
        chains: how many chains.
        draws: how many draws of each are kept.
        warmup: steps of tuning; 0 takes the kernel as it is.
        thin: steps for each draw that is kept.
        init: where chains begin: points ``(chains, *batch, *event)`` of the support, a function of ``(chains, *batch)``
            that draws them, for a Pyro model a dictionary of sites; if None the distribution's own sampler, Pyro's way
            for a model, or N(0, 1).
        target_acceptance: acceptance that the warm-up aims at; nearer to 1 means smaller steps, for divergences and
            stuck chains.
        mass: as in :func:`~energyppl.adapt`.
        keep_warmup: keep the warm-up's draws too.
        file: where draws go instead of memory, ``(draws, chains, *batch, *event)``; after Ctrl-C the rows that were not
            drawn are zeros.
        progress: show a bar with acceptance and divergences.

    Raises:
        InvalidInput: for numbers out of range, a start of the wrong shape or without any finite energy, a model with
            discrete latent sites or with sites that are called as ArviZ calls dimensions, or draws that don't fit into
            memory.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> chains = ep.sample_chains(ep.HMC(), model, (torch.ones(5),), chains=8, draws=20, warmup=20, progress=False)
        >>> chains.samples["mu"].shape
        torch.Size([8, 20])
    """
    _check_counts(chains=chains, draws=draws, warmup=warmup, thin=thin)
    check_flag("progress", progress)
    if target_acceptance is not None:
        check_between("target_acceptance", target_acceptance, 0.0, 1.0)
    check_kernel(kernel)
    target = Target.of(model, args, kwargs)
    if isinstance(target.potential, ModelPotential):
        for group in target.potential.shapes():
            check_names(group)
    if file is not None and world_size() > 1:
        raise InvalidInput("draws of several processes are joined in memory; got file=…: leave it out, or thin more")
    with own_numbers():
        own = _sample(
            kernel, target, *own_share(chains, init), draws, warmup, thin, target_acceptance, mass, keep_warmup, file,
            progress=progress and rank() == 0,
        )  # fmt: skip
    result = joined(own)
    if rank() == 0:
        for problem in result.problems(rare=_RARE, disagreement=_FAR):
            warn_user(problem, ChainWarning)
    return result


def _sample(
    kernel: Kernel,
    target: Target,
    chains: int,
    init: Init,
    draws: int,
    warmup: int,
    thin: int,
    target_acceptance: float | None,
    mass: MassEstimate,
    keep_warmup: bool,
    file: str | os.PathLike[str] | None,
    *,
    progress: bool,
) -> Chains:
    """Run this process's chains."""
    x, potential = target.start(chains, init), bind(target.potential)
    if not isinstance(kernel, BinaryGibbs):  # which needs none
        target.warn_without_gradient(x)
    recorder = _Recorder(target, x, draws, file)
    early = _Recorder(target, x, warmup, None) if keep_warmup and warmup else None
    bar = progress_bar(total=warmup + draws, disable=not progress, desc="warm-up" if warmup else "sampling", leave=True)
    run = _Run(kernel, potential, x, _Progress(bar))
    try:
        if warmup:
            run.tune(warmup, early, target_acceptance, mass)
        bar.set_description("sampling")
        run.sample(draws, thin, recorder)
    except KeyboardInterrupt:
        run.interrupted = True
    finally:
        bar.close()
    return replace(
        recorder.chains(run.kernel),
        warmup=early.chains(run.kernel) if early is not None else None,
        attributes=_attributes(run.kernel, warmup, thin),
        notes=untuned(run.kernel) if warmup else (),
        **run.costs(),
    )


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        check_count(name, value, at_least=0 if name == "warmup" else 1)


class _Run:
    """A run as far as it has come: Ctrl-C may end it anywhere, and what it has by then is kept."""

    def __init__(self, kernel: Kernel, potential: Potential, x: Tensor, progress: "_Progress") -> None:
        self.kernel, self.interrupted = kernel, False
        self._potential, self._x, self._progress = potential, x, progress
        self._state: State | None = None
        self._warmup_gradients = 0.0
        self._began, self._sampling_since = time.perf_counter(), math.inf

    def tune(
        self, steps: int, recorder: "_Recorder | None", target_acceptance: float | None, mass: MassEstimate
    ) -> None:
        """Warm up, and record the draws if they are wanted."""
        for tuned in warm_up(
            self.kernel, self._potential, self._x, steps, target_acceptance=target_acceptance, mass=mass
        ):
            self.kernel, self._state = tuned.kernel, tuned.state
            self._warmup_gradients += tuned.info.cost()
            if recorder is not None:
                recorder.add(tuned.state, [tuned.info], middle_step(tuned.kernel))
            self._progress.show(tuned.info)

    def sample(self, draws: int, thin: int, recorder: "_Recorder") -> None:
        """Record draws, ``thin`` steps apart, of the kernel as it is now."""
        state = self.kernel.init(self._potential, self._x) if self._state is None else self._state
        recorder.begin(state.x)
        step_size = middle_step(self.kernel)
        self._sampling_since = time.perf_counter()
        for _ in range(draws):
            infos = []
            for _ in range(thin):
                state, info = self.kernel.step(self._potential, state)
                infos.append(info)
            recorder.add(state, infos, step_size)
            self._progress.show(infos[-1])

    def costs(self) -> dict[str, Any]:
        """Return what the run took until now, by the names of :class:`Chains`."""
        now = time.perf_counter()
        return {
            "interrupted": self.interrupted,
            "seconds": max(0.0, now - self._sampling_since),
            "warmup_seconds": min(now, self._sampling_since) - self._began,
            "warmup_gradients": self._warmup_gradients,
        }


def _mapped(file: str | os.PathLike[str], dtype: torch.dtype, size: tuple[int, ...]) -> Tensor:
    """Open a new ``.npy`` file as a tensor that is mapped into memory."""
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    try:
        return torch.from_numpy(np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=size))
    except (OSError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"file must be the path of a .npy file to write {shape_text(size)} draws into; got {file!r} ({error}): "
            "name a file in a folder that exists and has room"
        ) from None


class _Recorder:
    """Writes draws and diagnostics into tensors made once, step by step."""

    def __init__(
        self,
        target: Target,
        x: Tensor,
        draws: int,
        file: str | os.PathLike[str] | None,
    ) -> None:
        shape, size = x.shape[: x.dim() - len(target.potential.event_shape)], (draws, *x.shape)
        self._target, self._count = target, 0
        self.begin(x)
        if file is None:
            needed = math.prod(size) * x.element_size()
            if needed > _MAX_BYTES:
                raise InvalidInput(
                    f"the draws need {needed / 2**30:.1f} GiB of memory, more than {_MAX_BYTES // 2**30}: pass "
                    "file='draws.npy' to keep them on disk, or a larger thin with fewer draws"
                )
            self._draws = torch.empty(size, dtype=x.dtype)
        else:
            self._draws = _mapped(file, x.dtype, size)
        self._energy = torch.empty((draws, *shape), dtype=x.dtype)
        self._acceptance, self._total = torch.empty_like(self._energy), torch.empty_like(self._energy)
        self._diverging = torch.empty((draws, *shape), dtype=torch.bool)
        self._moved = torch.empty_like(self._diverging)
        self._steps = torch.empty((draws, *shape), dtype=torch.int32)
        self._depth = torch.empty((draws, *shape), dtype=torch.int8)
        self._step_sizes = torch.empty(draws, dtype=x.dtype)
        self._has_total = self._has_depth = draws > 0

    def begin(self, x: Tensor) -> None:
        """Take note of where chains are before the first draw."""
        self._last = x.detach().cpu().clone()

    def add(self, state: State, infos: Sequence[Info], step_size: float) -> None:
        i, last = self._count, infos[-1]
        self._draws[i], self._energy[i] = state.x, state.energy
        # An accepted proposal that rounds to the point it came from is no move.
        self._moved[i] = (self._draws[i] != self._last).reshape(*self._moved.shape[1:], -1).any(-1)
        self._last = self._draws[i]
        whole = last if len(infos) == 1 else combined(infos)
        self._acceptance[i], self._diverging[i] = whole.accept_prob, whole.diverging
        self._steps[i] = whole.gradients
        # A mixture of kernels may know these at some steps only; then they are left out.
        self._has_total &= last.total_energy is not None
        self._has_depth &= last.tree_depth is not None
        if last.total_energy is not None:
            self._total[i] = last.total_energy
        if last.tree_depth is not None:
            self._depth[i] = last.tree_depth
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
            potential=self._target.potential,
            variables=self._target.variables,
            total_energy=turned(self._total) if self._has_total and self._count else None,
            tree_depth=turned(self._depth) if self._has_depth and self._count else None,
        )


class _Progress:
    """Shows acceptance and divergences on a bar, a few times a second at most: reading them makes a GPU wait."""

    def __init__(self, bar: Any) -> None:
        self._bar, self._since = bar, 0.0

    def show(self, info: Info) -> None:
        if not self._bar.disable:
            now = time.monotonic()
            if now - self._since > 0.3:
                self._since = now
                self._bar.set_postfix_str(
                    f"acceptance {float(info.accept_prob.mean()):.2f}, diverging {int(info.diverging.sum())}",
                    refresh=False,
                )
        self._bar.update()


def _attributes(kernel: Kernel, warmup: int, thin: int) -> dict[str, Any]:
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

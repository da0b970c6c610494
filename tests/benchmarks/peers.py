"""The peers of the samplers' benchmark: Pyro, NumPyro, BlackJAX, ebmkit and torchebm, each as its own documents ask.

One adapter for each sampler takes a :class:`Problem` and returns a :class:`Run`.  All work in float32 from the same
starting points, on the same energies: ``sampler_targets.py`` has them in jax too, with the same weights.

None of the peers is needed for anything else.  To install them (torch first, or pip may fetch a CUDA build)::

    python3 -m venv peers && . peers/bin/activate
    pip install -c constraints.txt torch && pip install -c constraints.txt -e ".[test]"
    pip install -c constraints.txt jax blackjax numpyro && pip install --no-deps ebmkit torchebm
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.sampler_targets import Target, jax_energy


@dataclass(frozen=True)
class Problem:
    """What a sampler is given.

    Args:
        name: of the energy, by which it is found in jax.
        energy: ``(*batch, *event) -> (*batch,)`` in nats, with an ``event_shape``.
        start: where the chains start, ``(chains, dim)``, events flattened.
        draws: moves kept from each chain.
        warmup: moves before them, in which the sampler may tune itself.
        seed: of the sampler.
    """

    name: str
    energy: Target
    start: Tensor
    draws: int
    warmup: int
    seed: int

    @property
    def chains(self) -> int:
        return len(self.start)

    def flat(self, x: Tensor) -> Tensor:
        """The energy of flattened points, ``(*batch, dim) -> (*batch,)``."""
        energy: Tensor = self.energy(x.reshape(x.shape[:-1] + self.energy.event_shape))
        return energy


class Run(NamedTuple):
    """What a sampler gave, and what it cost."""

    draws: np.ndarray  # (chains, draws, dim)
    warmup_seconds: float  # without compiling
    compile_seconds: float  # of warm-up and sampling together
    seconds: float  # sampling alone
    gradients: float  # evaluations in sampling that a chain used, mean over chains
    batches: float  # evaluations in sampling of the slowest chain, draw by draw: in lockstep the others wait for it


Adapter = Callable[[Problem], Run]

# --- jax -------------------------------------------------------------------------------------------------------------


def _start(problem: Problem) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(problem.start.numpy())


def _compiled(function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], float]:
    """The function compiled for these arguments ahead of time, and how long that took."""
    import jax

    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    return compiled, time.perf_counter() - begin


def _timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What a jax function returns, once it is there, and how long that took."""
    import jax

    begin = time.perf_counter()
    out = jax.block_until_ready(function(*args))
    return out, time.perf_counter() - begin


def _by_chain(draws: Any) -> np.ndarray:
    """``(draws, chains, dim) -> (chains, draws, dim)``."""
    return np.asarray(draws).swapaxes(0, 1)


@functools.cache
def _compilations() -> list[float]:
    """Seconds of every tracing, lowering and compiling that jax does from now on."""
    import jax

    seconds: list[float] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event.startswith("/jax/core/compile/"):
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def numpyro_nuts(problem: Problem) -> Run:
    """NumPyro's NUTS with ``chain_method="vectorized"``: every chain has its own step size and masses.

    NumPyro 0.22 compiles again in every ``run``, even an identical one, so that two calls can't be compared: jax itself
    tells how long it compiled.  Of the two compilations, which only the split in warm-up and sampling asks for, the
    first is reported.
    """
    import jax
    from numpyro.infer import MCMC, NUTS

    options = {"num_warmup": problem.warmup, "num_samples": problem.draws, "num_chains": problem.chains}
    mcmc = MCMC(
        NUTS(potential_fn=jax_energy(problem.name, problem.energy)),
        chain_method="vectorized",
        progress_bar=False,
        **options,
    )
    key, start = jax.random.key(problem.seed), _start(problem)
    fields, compilations = ("num_steps",), _compilations()

    def timed(function: Callable[..., Any], **more: Any) -> tuple[float, float]:
        compilations.clear()
        _, seconds = _timed(lambda: (function(key, extra_fields=fields, **more), mcmc.last_state)[1])
        return max(seconds - sum(compilations), 1e-9), sum(compilations)

    warmup, compiling = timed(mcmc.warmup, init_params=start)
    seconds, _ = timed(mcmc.run)
    steps = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["num_steps"])  # (chains, draws)
    return Run(
        np.asarray(mcmc.get_samples(group_by_chain=True)),
        warmup_seconds=warmup,
        compile_seconds=compiling,
        seconds=seconds,
        gradients=float(steps.sum(1).mean()),
        batches=float(steps.max(0).sum()),
    )


def _blackjax_run(problem: Problem, step: Callable[..., Any], states: Any, compiling: float, warmup: float) -> Run:
    """Sample with a tuned step for one chain, ``(key, state) -> (state, info)``, vmapped."""
    import jax

    def sample(key: Any, states: Any) -> Any:
        def one(states: Any, key: Any) -> Any:
            states, info = jax.vmap(step)(jax.random.split(key, problem.chains), states)
            return states, (states.position, info.num_integration_steps)

        return jax.lax.scan(one, states, jax.random.split(key, problem.draws))[1]

    key = jax.random.key(problem.seed + 1)
    sample, more = _compiled(sample, key, states)
    (draws, steps), seconds = _timed(sample, key, states)
    steps = np.asarray(steps)  # (draws, chains)
    gradients, batches = float(steps.sum(0).mean()), float(steps.max(1).sum())
    return Run(_by_chain(draws), warmup, compiling + more, seconds, gradients, batches)


def blackjax_nuts(problem: Problem, pooled: bool = False) -> Run:
    """BlackJAX's NUTS, the window adaptation of every chain vmapped, as its book has it.

    Args:
        problem: what to sample.
        pooled: all chains then share the median step size and the mean of the inverse masses.
    """
    import blackjax
    import jax
    import jax.numpy as jnp
    from blackjax.adaptation.base import get_filter_adapt_info_fn

    energy = jax_energy(problem.name, problem.energy)
    log_density = lambda x: -energy(x)  # noqa: E731
    adaptation = blackjax.window_adaptation(blackjax.nuts, log_density, adaptation_info_fn=get_filter_adapt_info_fn())

    def warm_up(keys: Any, start: Any) -> Any:
        (states, tuned), _ = jax.vmap(lambda k, x: adaptation.run(k, x, num_steps=problem.warmup))(keys, start)
        return states, tuned["step_size"], tuned["inverse_mass_matrix"]

    keys, start = jax.random.split(jax.random.key(problem.seed), problem.chains), _start(problem)
    warm_up, compiling = _compiled(warm_up, keys, start)
    (states, size, inverse_mass), seconds = _timed(warm_up, keys, start)
    if pooled:
        size = jnp.full_like(size, jnp.median(size))
        inverse_mass = jnp.broadcast_to(inverse_mass.mean(0), inverse_mass.shape)
    kernel = blackjax.nuts.build_kernel()

    def step(key: Any, state: Any) -> Any:
        inner, size, inverse_mass = state
        inner, info = kernel(key, inner, log_density, size, inverse_mass)
        return Tuned(inner, size, inverse_mass), info

    return _blackjax_run(problem, step, Tuned(states, size, inverse_mass), compiling, seconds)


class Tuned(NamedTuple):
    """A chain's state with its own step size and inverse masses; jax takes it apart like any tuple."""

    inner: Any
    size: Any
    inverse_mass: Any

    @property
    def position(self) -> Any:
        return self.inner.position


def blackjax_chees(problem: Problem, masses: str | None = None) -> Run:
    """BlackJAX's ChEES with its defaults and the first step size and optimizer of its own tests, but for one thing.

    The learning rate, which has no default, is 0.1: on these energies the tests' 0.5 makes trajectories too long for
    300 moves of warm-up (up to 2.5 times fewer effective draws per gradient), and the paper's 0.025 too short.

    Args:
        problem: what to sample.
        masses: ``"diagonal"`` for masses estimated from all chains, which BlackJAX offers but does not do by default.
    """
    import blackjax
    import jax
    import optax
    from blackjax.adaptation.base import get_filter_adapt_info_fn

    energy = jax_energy(problem.name, problem.energy)
    log_density = lambda x: -energy(x)  # noqa: E731
    options = {"adaptation_info_fn": get_filter_adapt_info_fn(), "mass_matrix_estimation": masses}
    adaptation = blackjax.chees_adaptation(log_density, problem.chains, **options)
    optimizer = optax.adam(0.1, b1=0, b2=0.95)
    functions: dict[str, Any] = {}  # the part of the tuned parameters that is no array: known once traced

    def warm_up(key: Any, start: Any) -> Any:
        (states, tuned), _ = adaptation.run(
            key, start, 0.1, optimizer, problem.warmup, max_sampling_steps=problem.draws
        )
        functions.update({name: value for name, value in tuned.items() if callable(value)})
        return states, {name: value for name, value in tuned.items() if not callable(value)}

    key, start = jax.random.key(problem.seed), _start(problem)
    warm_up, compiling = _compiled(warm_up, key, start)
    (states, tuned), seconds = _timed(warm_up, key, start)
    step = blackjax.dynamic_hmc(log_density, **tuned, **functions).step
    return _blackjax_run(problem, step, states, compiling, seconds)


# --- torch -----------------------------------------------------------------------------------------------------------


def pyro_nuts(problem: Problem) -> Run:
    """Pyro's NUTS, one chain after another: it has no other way in one process."""
    import pyro
    from pyro.infer import MCMC, NUTS

    gradients, switch = 0, 0.0  # since and when the warm-up ended
    draws, warmup, sampling, used = [], 0.0, 0.0, 0

    def potential(params: dict[str, Tensor]) -> Tensor:
        nonlocal gradients
        gradients += params["x"].requires_grad
        return problem.flat(params["x"])

    def hook(kernel: object, params: object, stage: str, i: int) -> None:
        nonlocal switch, gradients
        if stage.lower().startswith("warmup") and i == problem.warmup - 1:
            switch, gradients = time.perf_counter(), 0

    for chain in range(problem.chains):
        pyro.set_rng_seed(1000 * problem.seed + chain)
        options = {"num_samples": problem.draws, "warmup_steps": problem.warmup, "disable_progbar": True}
        start = {"x": problem.start[chain].clone()}
        mcmc = MCMC(NUTS(potential_fn=potential), initial_params=start, hook_fn=hook, **options)
        begin = switch = time.perf_counter()
        mcmc.run()
        warmup += switch - begin
        sampling += time.perf_counter() - switch
        used += gradients
        draws.append(mcmc.get_samples()["x"].numpy())
    return Run(np.stack(draws), warmup, 0.0, sampling, used / problem.chains, float(used))


def ebmkit_nuts(problem: Problem) -> Run:
    """ebmkit's NUTS: chains in lockstep, one step size for all and no masses."""
    from ebm.samplers import NUTS

    class Counting(NUTS):  # type: ignore[misc]
        """Counts the leapfrog steps that chains needed, beside those that were taken for all."""

        needed: Tensor | float = 0.0
        taken = 0

        def _build_tree(self, *args: Any) -> Any:
            depth, active = args[5], args[8]
            if depth == 0:
                self.needed = self.needed + active.sum()
                self.taken += 1
            return super()._build_tree(*args)

    torch.manual_seed(problem.seed)
    sampler = Counting(warmup=problem.warmup)
    begin = time.perf_counter()
    x = sampler.sample(problem.flat, problem.start, steps=0)
    middle = time.perf_counter()
    sampler.warmup, sampler.needed, sampler.taken = 0, 0.0, 0
    draws = sampler.sample(problem.flat, x, steps=problem.draws, return_trajectory=True)[1:]
    end = time.perf_counter()
    # Each draw evaluates the gradient at its start once more.
    needed = float(sampler.needed) / problem.chains + problem.draws
    return Run(_by_chain(draws), middle - begin, 0.0, end - middle, needed, sampler.taken + problem.draws)


def torchebm_hmc(problem: Problem, steps: int = 10) -> Run:
    """torchebm's HMC with the ten leapfrog steps and the first step size, 0.1, of its documents.

    It tunes nothing.  So the warm-up starts with what a user would do by hand: pilots of 20 moves, with the step size
    doubled or halved until 60 to 90 % are accepted, or the direction turns.
    """
    from torchebm.core import BaseModel
    from torchebm.samplers import HamiltonianMonteCarlo

    class Model(BaseModel):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return problem.flat(x)

    torch.manual_seed(problem.seed)
    model, x, size, left = Model(), problem.start, 0.1, problem.warmup
    begin = time.perf_counter()
    sizes: list[float] = []
    while left >= 40 and size not in sizes:
        sizes.append(size)
        pilot = HamiltonianMonteCarlo(model, step_size=size, n_leapfrog_steps=steps)
        x, found = pilot.sample(x=x, n_steps=20, return_diagnostics=True)
        accepted = float(found["acceptance_rate"][5:].mean())
        size, left = (size if 0.6 <= accepted <= 0.9 else size * 2 if accepted > 0.9 else size / 2), left - 20
    sampler = HamiltonianMonteCarlo(model, step_size=min(size, sizes[-1]), n_leapfrog_steps=steps)
    x = sampler.sample(x=x, n_steps=left)
    middle = time.perf_counter()
    draws = sampler.sample(x=x, n_steps=problem.draws, return_trajectory=True)
    end = time.perf_counter()
    gradients = 2.0 * steps * problem.draws  # two for each leapfrog step: the second is not kept for the next
    return Run(draws.numpy(), middle - begin, 0.0, end - middle, gradients, gradients)


PEERS: dict[str, tuple[Adapter, str, str, int]] = {
    # name: (adapter, module it needs, how to install that, most chains it is asked for)
    "pyro-nuts": (pyro_nuts, "pyro", "pip install pyro-ppl", 4),
    "numpyro-nuts": (numpyro_nuts, "numpyro", "pip install numpyro", 10_000),
    "blackjax-nuts": (blackjax_nuts, "blackjax", "pip install blackjax", 10_000),
    "blackjax-nuts-pooled": (functools.partial(blackjax_nuts, pooled=True), "blackjax", "pip install blackjax", 10_000),
    "blackjax-chees": (blackjax_chees, "blackjax", "pip install blackjax", 10_000),
    "blackjax-chees-diagonal": (
        functools.partial(blackjax_chees, masses="diagonal"),
        "blackjax",
        "pip install blackjax",
        10_000,
    ),
    "ebmkit-nuts": (ebmkit_nuts, "ebm", "pip install --no-deps ebmkit", 10_000),
    "torchebm-hmc": (torchebm_hmc, "torchebm", "pip install --no-deps torchebm", 10_000),
}

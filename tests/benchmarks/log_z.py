"""How far off is log Z for a given number of gradients?  Ours beside four peers, on targets whose log Z is known.

``python -m tests.benchmarks log_z [--budget N] [--repeats N] [--slow-repeats N] [TARGET …]``

One line for each target: the root-mean-square error of log Z, the evaluations used and the microseconds that each took,
of every method; then our error without samples over the best peer's.  Peers begin where ours without samples does, at
N(0, spread²), and are tuned by pilot runs that count: a pilot is made once for a target and charged to every repeat.
Ours starts no batch beyond the budget, but its own pilots of 256 particles may go beyond; then peers get as many
evaluations as it took.  "By default" is ``log_normalizer`` told nothing but the energy, which spends what it finds
necessary, the search for modes included.  Gradients are what is equal: energies that ours evaluates alone count as if
gradients, those of the annealing peers are free; dynesty has no gradients, and spends the budget on energies.

A peer that is not installed is left out.  To install them, see ``peers.py``, and ``pip install normflows dynesty``.
"""

import argparse
import importlib.util
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

import energyppl as ep
from tests.benchmarks.coverage import guess
from tests.benchmarks.normalizer_targets import TARGETS as KNOWN
from tests.benchmarks.normalizer_targets import Known, toy

PILOTS = 0.2  # of the budget, for peers that must be told a step size
CHAINS = 64  # of annealed importance sampling: ebmkit's default; the rest of the budget goes into temperatures
LEAPFROGS = 5  # ebmkit's default
SLOW = ("ours with samples", "dynesty")


def scattered_gaussians(dim: int = 10, count: int = 6) -> Known:
    """Gaussians of different weights and covariances, about three standard deviations of their places apart."""
    generator = torch.Generator().manual_seed(dim)
    means = 2.0 * torch.randn(count, dim, generator=generator)
    factors = torch.eye(dim) + 0.2 * torch.randn(count, dim, dim, generator=generator)
    weights = torch.arange(1.0, count + 1.0)
    return toy(ep.toys.GaussianMixture(means, factors @ factors.mT, weights))


TARGETS: dict[str, Callable[[], Known]] = KNOWN | {"six Gaussians, 10-D": scattered_gaussians}


class Found(NamedTuple):
    """log Z, and the evaluations that it took."""

    log_z: float
    evaluations: float
    pilots: float = 0.0  # evaluations before it, shared by all repeats and charged to each


Run = Callable[[int], Found]  # one estimate, with a seed
Prepare = Callable[[str, int], Run | str]  # target and budget to runs, or to why there are none


def ours(name: str, budget: int, samples: bool = False) -> Run:
    """Sequential Monte Carlo from the centred Gaussian, or Bennett's acceptance ratio with as many draws as it asks."""

    def run(seed: int) -> Found:
        known = TARGETS[name]()
        method = ep.normalizing.BAR(256) if samples else ep.normalizing.SMC(256)
        begin: dict[str, Any] = {"samples": known.draw} if samples else {"base": guess(known)}
        found = ep.log_normalizer(known.potential, method=method, max_evaluations=budget, **begin)
        return Found(found.estimate, found.evaluations)

    return run


def by_default(name: str, budget: int) -> Run:
    """The estimate that a user gets who passes the energy alone."""

    def run(seed: int) -> Found:
        found = ep.log_normalizer(TARGETS[name]().potential)
        return Found(found.estimate, found.evaluations)

    return run


# --- Annealed importance sampling in torch ---


def _annealer(budget: int, settings: Iterable[Any], per_temperature: int, anneal: Callable[..., Any]) -> Run:
    """Runs of as many temperatures as the budget allows, at the setting that is best in pilots of fewer chains."""
    torch.manual_seed(0)
    settings, few = list(settings), CHAINS // 4
    temperatures = max(1, int(PILOTS * budget / (len(settings) * few * per_temperature)))
    sizes = {setting: anneal(setting, temperatures, few)[1] for setting in settings}
    best = max(settings, key=lambda setting: sizes[setting] if math.isfinite(sizes[setting]) else 0.0)
    pilots = temperatures * len(settings) * few * per_temperature
    temperatures = max(1, (budget - pilots) // (CHAINS * per_temperature))
    return lambda seed: Found(anneal(best, temperatures, CHAINS)[0], temperatures * CHAINS * per_temperature, pilots)


def ebmkit(name: str, budget: int) -> Run:
    """``ebm.ais_log_z``: HMC of five leapfrog steps, which adapts its step size from one temperature to the next."""
    from ebm.ais import ais_log_z
    from ebm.samplers.hmc import HMC

    known = TARGETS[name]()
    shape = tuple(known.potential.event_shape)
    estimate = partial(ais_log_z, known.potential, shape, base_scale=known.spread)

    def anneal(setting: tuple[float, str], temperatures: int, chains: int) -> tuple[float, float]:
        step, schedule = setting
        sampler = HMC(step, LEAPFROGS, steps=1)
        result = estimate(n_temps=temperatures, n_chains=chains, sampler=sampler, schedule=schedule)
        return result.log_z, result.ess

    settings = product((0.02, 0.1, 0.5), ("linear", "geometric"))
    return _annealer(budget, settings, LEAPFROGS + 1, anneal)


def normflows(name: str, budget: int) -> Run:
    """``normflows.sampling.HAIS``: HMC of one step size at all temperatures, each leapfrog step of two gradients."""
    from normflows.distributions import DiagGaussian
    from normflows.sampling.hais import HAIS

    known = TARGETS[name]()
    dim, leapfrogs = known.dim, 3
    base = DiagGaussian(dim, trainable=False)
    base.log_scale.fill_(math.log(known.spread))
    target = SimpleNamespace(log_prob=lambda x: -known.potential(x))

    def anneal(setting: tuple[float, float], temperatures: int, chains: int) -> tuple[float, float]:
        step, power = setting
        betas = torch.linspace(1.0, 0.0, temperatures + 2) ** power
        hais = HAIS(betas, base, target, leapfrogs, torch.full((dim,), step), torch.zeros(dim))
        for layer in hais.layers:
            layer.requires_grad_(False)  # else every weight drags the graph of the whole path along
        weights = hais.sample(chains)[1].double()
        size = torch.exp(2.0 * weights.logsumexp(0) - (2.0 * weights).logsumexp(0))
        return float(weights.logsumexp(0)) - math.log(chains), float(size)

    return _annealer(budget, product((0.03, 0.1, 0.3, 1.0), (1.0, 2.0)), 2 * leapfrogs, anneal)


# --- Sequential Monte Carlo in jax ---


def jax_energy(name: str, known: Known) -> Callable[[Any], Any] | None:
    """The target's energy of one point, in jax; None if it isn't written there."""
    import jax.numpy as jnp
    from jax.scipy.special import logsumexp

    dim, toy = known.dim, getattr(known.potential, "mixture", known.potential)
    if isinstance(toy, ep.toys.IsotropicMixture):
        means, log_weights, scale = jnp.asarray(toy.means.numpy()), jnp.asarray(toy._weights.log().numpy()), toy.scale
        norm = dim * (0.5 * math.log(2.0 * math.pi) + math.log(scale))
        return lambda x: norm - logsumexp(log_weights - 0.5 * (((x - means) / scale) ** 2).sum(1))
    if isinstance(toy, ep.toys.GaussianMixture):
        whiten, centers, norms = (jnp.asarray(t.numpy()) for t in (toy._whitening, toy.means, toy._log_norms))
        return lambda x: -logsumexp(norms - 0.5 * (jnp.einsum("kij,kj->ki", whiten, x - centers) ** 2).sum(1))

    def normal(x: Any, scale: Any = 1.0) -> Any:
        return 0.5 * (x / scale) ** 2 + jnp.log(scale) + 0.5 * math.log(2.0 * math.pi)

    def student(square: Any, dim: int, nu: float = 5.0) -> Any:
        constant = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2) - 0.5 * dim * math.log(nu * math.pi)
        return 0.5 * (nu + dim) * jnp.log1p(square / nu) - constant

    def quadratic(condition: float) -> Callable[[Any], Any]:
        basis = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(dim)))[0]
        scale = torch.logspace(-0.5 * math.log10(condition), 0.0, dim) * 2.0
        rows = jnp.asarray((basis.T / scale[:, None]).numpy())
        return lambda x: 0.5 * ((rows @ (x - 1.0)) ** 2).sum() - 5.0

    energies: dict[str, Callable[[Any], Any]] = {
        "banana, 2-D": lambda x: normal(x[0], 1.5) + normal(x[1] - 0.5 * (x[0] ** 2 - 1.5**2)),
        "Student-t mixture, 4-D": lambda x: (
            -jnp.logaddexp(
                math.log(0.25) - student(((x + 2.0) ** 2).sum(), 4), math.log(0.75) - student(((x - 2.0) ** 2).sum(), 4)
            )
        ),
        "Gumbel, 5-D": lambda x: (x + jnp.exp(-x)).sum() + 5.0,
        "Student-t, 10-D": lambda x: student((x**2).sum(), dim),
        "funnel, 10-D": lambda x: normal(x[0], 3.0) + normal(x[1:], jnp.exp(0.5 * x[0])).sum(),
        "ManyWell, 32-D": lambda x: (x[::2] ** 4 - 6.0 * x[::2] ** 2 - 0.5 * x[::2] + 0.5 * x[1::2] ** 2).sum(),
        "ill-conditioned Gaussian, 20-D": quadratic(1e4),
        "Gaussian, 100-D": quadratic(100.0),
    }
    return energies.get(name)


def blackjax(name: str, budget: int) -> Run | str:
    """``blackjax.adaptive_tempered_smc``: two HMC moves a temperature, masses from the particles, half of the ESS kept.

    Pilots of 32 particles choose the step size that moves them furthest, and tell how many temperatures there will be.
    """
    import blackjax
    import jax
    import jax.numpy as jnp
    from blackjax.smc import extend_params, resampling

    known = TARGETS[name]()
    energy, moves, leapfrogs = jax_energy(name, known), 2, 5
    if energy is None:
        return "not written in jax"
    points = known.draw(64)
    apart = known.potential(points).numpy() - jax.vmap(energy)(jnp.asarray(points.numpy()))
    assert float(jnp.abs(apart).max()) < 1e-2, f"the energy of {name} in jax is not the one in torch: {apart}"

    def log_prior(x: Any) -> Any:
        return jax.scipy.stats.norm.logpdf(x, 0.0, known.spread).sum()

    @jax.jit
    def pilot_run(key: Any, state: Any, step: Any) -> Any:
        mean = state.weights @ state.particles
        variance = (state.weights @ (state.particles - mean) ** 2).clip(1e-12)
        settings = {"step_size": step, "inverse_mass_matrix": variance, "num_integration_steps": leapfrogs}
        parameters = extend_params({name: jnp.asarray(value) for name, value in settings.items()})
        ratio = lambda x: -energy(x) - log_prior(x)  # noqa: E731
        hmc, resample = blackjax.hmc.build_kernel(), resampling.systematic
        algorithm = blackjax.adaptive_tempered_smc(
            log_prior, ratio, hmc, blackjax.hmc.init, parameters, resample, target_ess=0.5, num_mcmc_steps=moves
        )
        state, info = algorithm.step(key, state)
        return state, info.log_likelihood_increment, info.update_info.acceptance_rate.mean()

    def smc(seed: int, particles: int, step: float) -> tuple[float, int, float]:
        key, first = jax.random.split(jax.random.key(seed))
        begin = known.spread * jax.random.normal(first, (particles, known.dim))
        state = blackjax.smc.tempered.init(begin)._replace(tempering_param=jnp.zeros(()))
        log_z, temperatures, accepted = 0.0, 0, 0.0
        while float(state.tempering_param) < 1.0 and temperatures < 200:
            key, now = jax.random.split(key)
            state, increment, acceptance = pilot_run(now, state, step)
            log_z, temperatures, accepted = log_z + float(increment), temperatures + 1, accepted + float(acceptance)
        return log_z if float(state.tempering_param) == 1.0 else math.nan, temperatures, accepted / temperatures

    per_temperature, spent, speed = moves * leapfrogs + 1, 0, {}
    for step in (0.01, 0.03, 0.1, 0.3, 0.9):
        _, temperatures, acceptance = smc(0, 32, step)
        spent, speed[step] = spent + 32 * temperatures * per_temperature, (acceptance * step, temperatures)
    best = max(speed, key=lambda step: speed[step][0])
    temperatures = speed[best][1]
    for _ in range(2):  # compiles, and finds how many particles use up the budget
        particles = max(64, (budget - spent) // (per_temperature * temperatures))
        temperatures = smc(0, particles, best)[1]

    def run(seed: int) -> Found:
        log_z, temperatures, _ = smc(seed + 1, particles, best)
        return Found(log_z, particles * temperatures * per_temperature, spent)

    return run


def dynesty(name: str, budget: int) -> Run | str:
    """``dynesty.DynamicNestedSampler`` for the evidence alone, in a box of ten spreads each way.

    A box, since over the Gaussian the likelihood of the heavy-tailed targets would have no upper bound.
    """
    import numpy as np
    from dynesty import DynamicNestedSampler

    known = TARGETS[name]()
    if known.dim > 10:
        return "more than 10 dimensions"
    half = 10.0 * known.spread

    def log_likelihood(x: Any) -> float:
        with torch.no_grad():
            return -float(known.potential(torch.as_tensor(x, dtype=torch.float32)[None])[0])

    def run(seed: int) -> Found:
        box, generator = (lambda u: half * (2.0 * u - 1.0)), np.random.default_rng(seed)
        sampler = DynamicNestedSampler(log_likelihood, box, known.dim, rstate=generator)
        settings = {"nlive_init": 100, "nlive_batch": 100, "use_stop": False, "wt_kwargs": {"pfrac": 0.0}}
        sampler.run_nested(maxcall=budget, print_progress=False, save_bounds=False, **settings)
        log_z = float(sampler.results.logz[-1]) + known.dim * math.log(2.0 * half)
        return Found(log_z, float(np.sum(sampler.results.ncall)))

    return run


# --- The table ---

OURS: dict[str, Prepare] = {
    "ours": ours,
    "ours by default": by_default,
    "ours with samples": partial(ours, samples=True),
}
PEERS: dict[str, tuple[str, Prepare]] = {
    "ebmkit AIS": ("ebm", ebmkit),
    "normflows HAIS": ("normflows", normflows),
    "BlackJAX SMC": ("blackjax", blackjax),
    "dynesty": ("dynesty", dynesty),
}
"""The module that each needs, and how its runs are prepared."""


def measure(run: Run, log_z: float, repeats: int) -> tuple[float, int, str]:
    """Root-mean-square error, infinite if a repeat failed; mean evaluations of the others; and all of it in words."""
    errors, used, own, seconds = [], 0.0, 0.0, 0.0
    for seed in range(repeats):
        torch.manual_seed(seed)
        began = time.perf_counter()
        try:
            found = run(seed)
        except (ep.EnergyPPLError, ArithmeticError, RuntimeError, ValueError):
            continue
        if math.isfinite(found.log_z):
            seconds += time.perf_counter() - began
            errors.append(found.log_z - log_z)
            used, own = used + found.evaluations + found.pilots, own + found.evaluations
    done = len(errors)
    error = math.sqrt(sum(e * e for e in errors) / done) if done else math.nan
    failed = f", {repeats - done} of {repeats} failed" if done < repeats else ""
    words = f"{error:.4f} ({used / max(1, done):,.0f} evaluations, {1e6 * seconds / max(1.0, own):.1f} µs{failed})"
    return (math.inf if failed else error), round(used / max(1, done)), words


def compare(name: str, budget: int, repeats: int, slow_repeats: int, peers: list[str]) -> None:
    """Print a target's line."""
    cells, errors, allowed = [], {}, budget
    for method, prepare in (OURS | {peer: PEERS[peer][1] for peer in peers}).items():
        run = prepare(name, budget if method in OURS else allowed)
        if isinstance(run, str):
            cells.append(f"{method}: {run}")
            continue
        count = slow_repeats if method in SLOW else repeats
        errors[method], used, words = measure(run, TARGETS[name]().log_z, count)
        cells.append(f"{method} {words}")
        allowed = max(budget, used) if method == "ours" else allowed
    best = min((peer for peer in peers if peer in errors), key=lambda peer: errors[peer], default=None)
    if best is not None:
        cells.append(f"ours/best peer {errors['ours'] / errors[best]:.3f} ({best})")
    print(f"{name:31} {'; '.join(cells)}", flush=True)


def main(arguments: list[str]) -> None:
    """One line for each target."""
    parser = argparse.ArgumentParser(prog="log_z", description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--budget", type=int, default=80_000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--slow-repeats", type=int, help="of ours with samples and dynesty")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    missing = {peer: module for peer, (module, _) in PEERS.items() if importlib.util.find_spec(module) is None}
    for peer, module in missing.items():
        print(f"{peer} is left out: {module} is not installed")
    warnings.simplefilter("ignore")
    slow_repeats = args.repeats if args.slow_repeats is None else args.slow_repeats
    for name in args.targets:
        compare(name, args.budget, args.repeats, slow_repeats, [peer for peer in PEERS if peer not in missing])

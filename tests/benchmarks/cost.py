"""What energies with gradients, samplers, mixed precision and a whole training update cost, as ratios in one run.

``python -m tests.benchmarks cost [--threads N] [--repeats N] [--only PART …]``

Every figure is the median over paired, interleaved repeats, with the quartiles of the ratio.  Gradients beside compiled
JAX's are the last part, if JAX is installed; ``XLA_FLAGS=--xla_cpu_multi_thread_eigen=false`` and ``taskset -c 0`` keep
it to one core, and its seconds and ours are the processor's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.autodiff import bind, gradient_only
from energyppl.autodiff.gradient import eager_energy_and_grad
from tests.benchmarks import textbook


class Plain(nn.Module):
    """The perceptron of the figure: 2 → 128 → 128 → 1."""

    event_shape = torch.Size((2,))

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


def ratio(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    calls: int,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """Median and quartiles of time(ours) / time(theirs), in alternation."""
    ours(), theirs()
    ratios, times = [], []
    for _ in range(repeats):
        seconds = []
        for function in (ours, theirs):
            begin = clock()
            for _ in range(calls):
                function()
            seconds.append((clock() - begin) / calls)
        ratios.append(seconds[0] / seconds[1])
        times.append(seconds)
    low, middle, high = statistics.quantiles(ratios, n=4)
    ours_us, theirs_us = (statistics.median(t[i] for t in times) * 1e6 for i in (0, 1))
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]   ({ours_us:,.0f} µs against {theirs_us:,.0f} µs)"


def gradients(most: int) -> None:
    net = Plain().requires_grad_(False)
    for name, potential in (("bound", bind(net)), ("not bound", net)):
        for batch, calls in ((1, 200), (64, 100), (1_000, 30), (10_000, 3)):
            x = torch.randn(batch, 2)
            text = ratio(
                lambda: ep.energy_and_grad(potential, x),  # noqa: B023
                lambda: eager_energy_and_grad(net, x),  # noqa: B023
                calls,
                min(25, most),
            )
            print(f"energy_and_grad, {name} / eager autograd, {batch:6} points: {text}", flush=True)


def sampler(most: int, steps: int = 20) -> None:
    net = Plain().requires_grad_(False)
    for kernel in (ep.Langevin(0.1), ep.MALA(0.1)):
        for batch, repeats in ((64, 25), (1_000, 15), (10_000, 9)):
            x = torch.randn(batch, 2)

            def bare() -> None:
                bound = bind(net)
                for _ in range(steps + 1):
                    ep.energy_and_grad(bound, x)  # noqa: B023

            text = ratio(lambda: ep.sampling.run_chain(kernel, net, x, steps), bare, 1, min(repeats, most))  # noqa: B023
            print(
                f"{steps} steps of {type(kernel).__name__:8} / {steps + 1} gradients, {batch:6} chains: {text}",
                flush=True,
            )


def leapfrog(most: int, steps: int = 20) -> None:
    net = bind(Plain().requires_grad_(False))
    kernel = ep.HMC(0.05, steps, 0.0, torch.ones(2))
    for batch, repeats in ((64, 25), (1_000, 15), (10_000, 7)):
        x = torch.randn(batch, 2)
        state = kernel.init(net, x)

        def bare() -> None:
            for _ in range(steps - 1):
                gradient_only(net, x)  # noqa: B023
            ep.energy_and_grad(net, x)  # noqa: B023

        text = ratio(lambda: kernel.step(net, state), bare, 1, min(repeats, most))  # noqa: B023
        print(f"HMC, {steps} leapfrog steps / as many gradients, {batch:6} chains: {text}", flush=True)


class Convolutions(nn.Module):
    """A small convolutional energy on 28×28 images."""

    event_shape = torch.Size((1, 28, 28))

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.LazyLinear(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1) + 0.5 * (x * x).sum((1, 2, 3))


def mixed_precision(most: int, batch: int = 64, steps: int = 10) -> None:
    net, x = Convolutions(), torch.randn(batch, 1, 28, 28)
    net(x)
    bound = bind(net.requires_grad_(False))
    exact, cheap = ep.HMC(0.05, steps, 0.0), ep.HMC(0.05, steps, 0.0, force_dtype=torch.bfloat16)
    states = exact.init(bound, x), cheap.init(bound, x)
    text = ratio(lambda: cheap.step(bound, states[1]), lambda: exact.step(bound, states[0]), 1, min(9, most))
    accepted = [k.step(bound, s)[1].accept_prob.mean() for k, s in zip((exact, cheap), states, strict=True)]
    print(f"HMC on a ConvNet, {steps} steps with bfloat16 forces / float32, {batch} chains: {text}")
    print(
        f"  mean acceptance {float(accepted[1]):.3f} with bfloat16 forces, {float(accepted[0]):.3f} without", flush=True
    )


def update(most: int, batch: int = 512, steps: int = 5, updates: int = 15) -> None:
    data = ep.toys.Checkerboard().sample((20_000,))
    schedule = ep.NoiseSchedule.cosine(6)
    standard = (data - data.mean(0)) / data.std(0)
    alpha_bar, sigma_bar = schedule.alpha_bar.float(), schedule.sigma_bar.float()

    def theirs() -> None:
        textbook.train(standard, alpha_bar, sigma_bar, batch=batch, steps=steps, updates=updates)

    options = ep.TrainingOptions(steps=10**6, batch_size=batch, evaluate_every=10**6)
    for name, kernel in (
        ("MALA, as the textbook's", ep.MALA(0.3)),
        ("Crank–Nicolson, the default", ep.kernels.CrankNicolson()),
    ):
        ebm = ep.RecoveryEBM(ep.MLPEnergy((2,)), schedule, kernel=kernel)
        training = ep.Training(ebm, data, ep.RecoveryLikelihood(steps=steps), options=options)

        def ours() -> None:
            for _ in range(updates):
                next(training)  # noqa: B023

        print(f"{updates} training updates / textbook's, {name}: {ratio(ours, theirs, 1, min(9, most))}", flush=True)


def beside_jax(most: int) -> None:
    """Energy and gradient beside a compiled function of JAX: the perceptron, a banana and a logistic regression."""
    if find_spec("jax") is None:
        print("gradients beside JAX's: JAX is not installed")
        return
    import jax
    import jax.numpy as jnp

    net = Plain().requires_grad_(False)
    layers = [(jnp.asarray(p.weight.T), jnp.asarray(p.bias)) for p in net.net if isinstance(p, nn.Linear)]
    rows = torch.randn(1_000, 25)
    labels = (rows[:, 0] > 0.0).float()
    their_rows, their_labels = jnp.asarray(rows), jnp.asarray(labels)

    def banana(x):  # type: ignore[no-untyped-def]  # of either library
        return 0.125 * x[..., 0] ** 2 + 0.5 * (x[..., 1] + 0.5 * x[..., 0] ** 2 - 2.0) ** 2

    def perceptron(x):  # type: ignore[no-untyped-def]
        for weight, bias in layers[:-1]:
            x = jax.nn.silu(x @ weight + bias)
        return (x @ layers[-1][0] + layers[-1][1])[..., 0]

    def regression(x: Tensor) -> Tensor:
        logits = x @ rows.T
        return (nn.functional.softplus(logits) - labels * logits).sum(-1) + 0.5 * (x * x).sum(-1)

    def their_regression(x):  # type: ignore[no-untyped-def]
        logits = x @ their_rows.T
        return (jnp.logaddexp(0.0, logits) - their_labels * logits).sum(-1) + 0.5 * (x * x).sum(-1)

    for name, size, ours, theirs in (
        ("perceptron", 2, net, perceptron),
        ("banana", 2, ep.Energy(banana, torch.Size((2,))), banana),
        ("logistic regression, 25-D", 25, ep.Energy(regression, torch.Size((25,))), their_regression),
    ):
        bound = bind(ours)
        compiled = jax.jit(lambda x, f=theirs: (f(x), jax.grad(lambda z: f(z).sum())(x)))
        for batch, calls in ((64, 200), (1_000, 30), (10_000, 3)):
            x = torch.randn(batch, size)
            point = jnp.asarray(x)
            text = ratio(
                lambda: ep.energy_and_grad(bound, x),  # noqa: B023
                lambda: jax.block_until_ready(compiled(point)),  # noqa: B023
                calls,
                min(15, most),
                time.process_time,
            )
            print(f"energy_and_grad / JAX, {name}, {batch:6} points: {text}", flush=True)


PARTS = {
    "gradients": gradients,
    "sampler": sampler,
    "leapfrog": leapfrog,
    "mixed_precision": mixed_precision,
    "update": update,
    "jax": beside_jax,
}


def main(arguments: list[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="cost", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25, help="at most, of each pair; two or more")
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run (default: all)"
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for part in args.only:
        PARTS[part](args.repeats)

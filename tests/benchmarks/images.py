"""Images at their full size: cooperative recovery of 28 × 28 digits or clothes, for as many seconds as asked.

``python -m tests.benchmarks images FILE.npz [--seconds N] [--samples N] [--pictures FOLDER] [--plain] [--threads N]``

``FILE.npz`` holds ``x_train``, ``y_train``, ``x_test``, ``y_test`` (n, 28, 28), as MNIST.  A small convolutional
classifier learns on the training images; its 64 last features are those of the Fréchet and kernel distances, of the
samples and of as many training images, both to as many test images.  Then: the labels' balance, and how near samples
come to training images beside how near test images do.  ``--plain`` trains without an initializer.

``--rate`` needs no file, but ``pip install --no-deps ebmkit``: gradients of the chains a second, and whole updates, of
ebmkit's recovery likelihood and of ours, on one network and batch in one run, taking turns.
"""

import argparse
import functools
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.inference.objectives.contract import Objective
from energyppl.inference.training.history import Record
from energyppl.plots.base import save_figure
from energyppl.plots.images import image_grid, image_strips, neighbour_grid
from tests.benchmarks.budget import training_within
from tests.support.objectives import loss_of

LEVELS = 6


def features() -> nn.Sequential:
    """The classifier's body: 64 numbers for each image."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU()),
    )


def classifier(x: Tensor, y: Tensor, steps: int = 2000) -> tuple[nn.Sequential, nn.Linear]:
    """Trained on real images with a little noise."""
    body, head = features(), nn.Linear(64, int(y.max()) + 1)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        loss = nn.functional.cross_entropy(head(body(x[rows] + 0.05 * torch.randn_like(x[rows]))), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return body.requires_grad_(False), head.requires_grad_(False)


def train(x: Tensor, seconds: float, *, plain: bool) -> tuple[ep.RecoveryEBM, ep.History]:
    """A model trained for so many seconds."""
    shape = x.shape[1:]
    recipe = ep.RecoveryLikelihood(
        ep.kernels.CrankNicolsonLangevin(force_dtype=torch.bfloat16), autocast=torch.bfloat16
    )
    schedule = ep.NoiseSchedule.cosine(LEVELS, log_snr_max=5.0)

    def build(updates: int) -> ep.Training:
        torch.manual_seed(1)
        objective: Objective = recipe
        initializer = None
        if not plain:
            initializer = ep.UNetInitializer(shape, width=16, levels=LEVELS, learn_scale=True)
            objective = ep.CooperativeRecovery(recipe=recipe, initializer_fraction=1.0)
        net = ep.ConvEnergy(shape, width=16, multipliers=(1, 2, 4), levels=LEVELS)
        ebm = ep.RecoveryEBM(net, schedule, initializer=initializer)
        ebm.standardize(x, isotropic=True)
        options = ep.TrainingOptions(steps=updates, batch_size=64, evaluate_every=max(200, updates // 10))
        return ep.Training(ebm, x[1000:], objective, held_out=x[:1000], options=options)

    training = training_within(seconds, build, skip=5, clock=time.perf_counter)
    began = time.perf_counter()
    for record in training:
        if (record.step + 1) % training.options.evaluate_every == 0:
            print(f"  {record.step + 1:6} updates, {time.perf_counter() - began:5.0f} s: {shown(record)}", flush=True)
    return cast(ep.RecoveryEBM, training.model), training.finish()


def rates() -> None:
    """Chains alone, and updates with 10 moves, in CPU time of one thread: other processes don't count."""
    from ebm.losses import DiffusionRecoveryLikelihood

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape, moves = (1, 28, 28), 10
    net, x = ep.ConvEnergy(shape, width=24, levels=LEVELS), torch.randn(128, *shape)

    class Told(nn.Module):
        """The network as ebmkit calls it; its noise levels make no difference to the cost."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.net(x, torch.zeros(len(x), dtype=torch.long))

    told, theirs = Told(), DiffusionRecoveryLikelihood(torch.linspace(1.0, 0.1, LEVELS + 1), mcmc_steps=moves)
    cases = {"ebmkit": lambda: theirs(told, x).loss}
    ebm = ep.RecoveryEBM(net, ep.NoiseSchedule.cosine(LEVELS))
    for name, dtype in (("ours, float32", None), ("ours, bfloat16 chains and loss", torch.bfloat16)):
        for kernel in (ep.Langevin(0.1, force_dtype=dtype), ep.kernels.CrankNicolsonLangevin(0.1, force_dtype=dtype)):
            adapt = kernel.target_acceptance is not None
            recipe = ep.RecoveryLikelihood(kernel, steps=moves, autocast=dtype, adapt=adapt)
            cases[f"{name}, {type(kernel).__name__}"] = functools.partial(lambda r: loss_of(r, ebm, x).value, recipe)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for turn in range(6):
        for name, loss in cases.items():
            began = time.process_time()
            value = loss()
            middle = time.process_time()
            value.backward()
            if turn:  # the first is a warm-up
                spent[name].append((middle - began, time.process_time() - began))
    base = [sorted(times)[len(times) // 2] for times in zip(*spent["ebmkit"], strict=True)]
    for name, times in spent.items():
        chain, whole = (sorted(column)[len(column) // 2] for column in zip(*times, strict=True))
        print(
            f"{name}: {moves * len(x) / chain:.0f} moves of a chain a second ({base[0] / chain:.2f} of ebmkit's), an "
            f"update takes {whole:.2f} s ({whole / base[1]:.2f})",
            flush=True,
        )


def shown(record: Record) -> str:
    """What is worth a look while it trains."""
    names = ("energy_gap", "acceptance", "moved", "smallest_step", "initializer_drop", "initializer_moved")
    values = {name: record.values[name] for name in names if name in record.values}
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items()) + f", held out {record.held_out:.4f}"


def main(arguments: list[str]) -> None:
    """Some lines, and pictures if a folder is given."""
    parser = argparse.ArgumentParser(prog="images", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--rate", action="store_true")
    parser.add_argument("--seconds", type=float, default=2700.0)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--classifier-steps", type=int, default=2000)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.rate:
        rates()
        return
    if args.file is None:
        parser.error("FILE.npz is missing")
    with np.load(args.file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    torch.manual_seed(0)
    x, test = (ep.data.images_from_array(arrays[name]).x for name in ("x_train", "x_test"))
    y, y_test = (torch.as_tensor(arrays[name].astype(np.int64)) for name in ("y_train", "y_test"))
    body, head = classifier(x, y, args.classifier_steps)
    accuracy = float((head(body(test)).argmax(1) == y_test).float().mean())
    print(f"classifier: {accuracy:.3f} of the test images right", flush=True)

    ebm, history = train(x, args.seconds, plain=args.plain)
    print(f"trained: {len(history.records)} updates, {history.stopped}", flush=True)
    real, other = test[: args.samples], x[-args.samples :]
    for steps in (1, 10, 40):
        torch.manual_seed(2)
        began = time.perf_counter()
        drawn = ebm.sample((args.samples,), steps=steps, denoise=True, micro_batch=100).clamp(0.0, 1.0)
        spent = time.perf_counter() - began
        seen = body(drawn)
        kernel = ep.metrics.kernel_distance(seen, body(real))
        labels = head(seen).argmax(1)
        balance = ep.metrics.label_balance(labels, int(y.max()) + 1, torch.bincount(y).double() / len(y))
        sure = float((head(seen).softmax(1).amax(1) > 0.9).float().mean())
        near, usual = (ep.metrics.nearest_neighbours(batch[:500], x).distance.median() for batch in (drawn, test))
        distance, floor = (ep.metrics.frechet_distance(body(batch), body(real)) for batch in (drawn, other))
        print(
            f"{steps} moves a level, {spent / args.samples * 1e3:.0f} ms a sample: Fréchet "
            f"{distance:.3f} (real {floor:.3f}), "
            f"kernel {kernel.value:.4f} ± {kernel.standard_error:.4f}; recognized with 90 % confidence {sure:.3f} "
            f"(real {float((head(body(real)).softmax(1).amax(1) > 0.9).float().mean()):.3f}); labels "
            f"{torch.bincount(labels, minlength=10).tolist()}, standard errors off "
            f"{[round(float(z), 1) for z in balance.z_scores]}; median distance to a training image {float(near):.2f} "
            f"(test images {float(usual):.2f})",
            flush=True,
        )
        if args.pictures is not None:
            save_figure(image_grid(drawn[:100], title=f"{steps} moves a level"), args.pictures / f"samples_{steps}.png")
    if args.pictures is not None:
        path = ebm.generate((10,), steps=40).path
        titles = ["noise", *[f"level {t}" for t in reversed(range(LEVELS))]]
        rows = {f"{i}": [stage[i] for stage in path] for i in range(10)}
        save_figure(image_strips(rows, titles=titles, title="Level by level"), args.pictures / "levels.png")
        nearest = x[ep.metrics.nearest_neighbours(drawn[:10], x, k=3).indices]
        save_figure(neighbour_grid(drawn[:10], nearest), args.pictures / "neighbours.png")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

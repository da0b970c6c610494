"""Class-conditional 8 × 8 digits with guidance: accuracy against diversity, and the balance of unguided samples.

``python -m tests.benchmarks guided FILE.npz [--steps N] [--count N] [--picture FILE.png]``

``FILE.npz`` holds ``x`` (n, 8, 8), grey values 0 to 16, and ``y``; scikit-learn's digits are such.  A small classifier,
trained on 1,400 real digits, judges ``--count`` samples of each guidance weight: the share recognized as the class that
was asked for, and the mean standard deviation of a class's pixels beside that of the real digits.  The labels of
unguided samples, of classes drawn as often as among the training digits and without any class, are compared with those.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.plots.base import save_figure
from energyppl.plots.images import image_strips


def classifier(x: Tensor, y: Tensor) -> nn.Module:
    """A perceptron on noisy real digits."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(1500):
        rows = torch.randint(len(x), (128,))
        loss = nn.functional.cross_entropy(net(x[rows] + 0.05 * torch.randn_like(x[rows])), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def spread(x: Tensor, y: Tensor) -> float:
    """Mean standard deviation of a pixel within a class."""
    return float(torch.stack([x[y == c].std(0).mean() for c in range(10)]).mean())


def main(arguments: list[str]) -> None:
    """A line for each weight."""
    parser = argparse.ArgumentParser(prog="guided", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with np.load(args.file, allow_pickle=False) as archive:
        x = torch.as_tensor(archive["x"].reshape(-1, 1, 8, 8).astype(np.float32))
        y = torch.as_tensor(archive["y"].astype(np.int64))
    torch.manual_seed(0)
    x = (x + torch.rand_like(x)) / 17.0
    order = torch.randperm(len(x))
    train, test = order[:1400], order[1400:]
    judge = classifier(x[train], y[train])
    with torch.no_grad():
        real = float((judge(x[test]).argmax(1) == y[test]).float().mean())
    own = spread(x[train], y[train])
    print(f"classifier: {real:.3f} of {len(test)} real digits held out; a class's pixels vary by {own:.3f}")

    sizes: dict[str, Any] = {"levels": 6, "classes": 10, "hidden": 256}
    initializer = ep.MLPInitializer((1, 8, 8), learn_scale=True, **sizes)
    schedule = ep.NoiseSchedule.cosine(6, log_snr_max=5.0)
    ebm = ep.RecoveryEBM(ep.MLPEnergy((1, 8, 8), **sizes), schedule, initializer=initializer)
    ebm.standardize(x[train], isotropic=True)
    options = ep.TrainingOptions(steps=args.steps, batch_size=256)
    objective = ep.CooperativeRecovery()
    began = time.perf_counter()
    history = ep.fit(ebm, x[train], objective, labels=y[train], options=options, progress=False)
    print(f"trained {len(history.records)} updates in {time.perf_counter() - began:.0f} s")

    asked = torch.arange(args.count) % 10
    rows: dict[str, Sequence[Tensor]] = {}
    shares = torch.bincount(y[train], minlength=10).double() / len(train)

    def balance(drawn: Tensor) -> str:
        with torch.no_grad():
            found = judge(drawn).argmax(1)
        z = [round(float(value), 1) for value in ep.metrics.label_balance(found, 10, shares).z_scores]
        return f"counts {torch.bincount(found, minlength=10).tolist()}, standard errors off {z}"

    for weight in (0.0, 0.5, 1.0, 2.0, 4.0):
        began = time.perf_counter()
        drawn = ebm.given(asked, guidance=weight).sample((args.count,), steps=20, denoise=True)
        with torch.no_grad():
            right = float((judge(drawn).argmax(1) == asked).float().mean())
        print(
            f"  w = {weight:3}: {right:.3f} as asked, a class's pixels vary by {spread(drawn, asked):.3f}; "
            f"{time.perf_counter() - began:.1f} s for {args.count}",
            flush=True,
        )
        rows[f"w = {weight}"] = list(drawn[:10])
    labels = torch.multinomial(shares, args.count, replacement=True)
    print(f"  unguided, classes drawn: {balance(ebm.given(labels).sample((args.count,), steps=20, denoise=True))}")
    print(f"  without a class: {balance(ebm.sample((args.count,), steps=20, denoise=True))}")
    if args.picture is not None:
        save_figure(image_strips(rows, titles=[str(c) for c in range(10)], title="At growing guidance"), args.picture)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

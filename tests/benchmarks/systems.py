"""All ways of training beside each other on real images: samples, long chains, and strangers told apart.

``python -m tests.benchmarks systems FILE.npz OTHER.npz [SYSTEM …] [--seconds N] [--steps N] [--pictures FOLDER]``

Both files hold ``x_train``, ``y_train``, ``x_test``, ``y_test`` (n, 28, 28), as MNIST and Fashion-MNIST.  Every system
learns FILE with one convolutional network for ``--seconds`` of CPU time of one thread, from images with noise of
standard deviation .03 (as the baselines of Zhang, Tan & Ou 2023 have; without it they have no density).  Then:

- samples: Fréchet distance of 256 to as many test images, on the 64 features of a classifier trained on FILE, beside
  that of as many training images;
- long chains: 64 of MALA from data at level 0, ``--steps`` moves: how the mean energy changed, and how many images the
  classifier still recognizes with 90 % confidence;
- AUROC of the level-0 energy (for ``joint`` also of the energy of all levels together) and of typicality, 1,000 test
  images of FILE against as many of OTHER and of four other kinds, with intervals at 95 %;
- millions of images whose gradient was taken in training.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.plots.base import save_figure
from energyppl.plots.images import image_strips
from tests.benchmarks.budget import training_within
from tests.benchmarks.image_judge import classifier

SHAPE, LEVELS, NOISE, BATCH, SAMPLES, ROWS = (1, 28, 28), 6, 0.03, 64, 256, 1000
SLOTS = 256  # as many chains as the few updates can keep up
BRIEF = torch.bfloat16
SIGMAS = torch.logspace(0.7, -0.7, 32)  # in standard deviations of the data


@dataclass(frozen=True)
class System:
    """One way to train, and how many gradients it takes for each image of a batch."""

    model: Callable[[], Any]
    objective: Any
    gradients: float
    sample: dict[str, Any]  # options


def net(levels: int = 1) -> ep.ConvEnergy:
    """The network of all systems, but for its table of levels."""
    return ep.ConvEnergy(SHAPE, width=16, levels=levels)


def schedule() -> ep.NoiseSchedule:
    """Six levels."""
    return ep.NoiseSchedule.cosine(LEVELS, log_snr_max=5.0)


def systems() -> dict[str, System]:
    """DRL, CDRL, DA-EBM, MDSM, and four baselines without levels."""
    recipe = ep.RecoveryLikelihood(ep.kernels.CrankNicolsonLangevin(force_dtype=BRIEF), autocast=BRIEF)
    initializer = ep.UNetInitializer(SHAPE, width=8, levels=LEVELS, learn_scale=True)
    mala = ep.MALA(0.1, force_dtype=BRIEF)
    recovery, lasting = recipe.steps + 2.0, ep.PersistentLikelihood(mala, slots=SLOTS, sweeps=1, autocast=BRIEF)
    brief = {"steps": 10, "denoise": True, "micro_batch": BATCH}
    plain, long = (lambda: ep.EBM(net())), {"steps": 300}
    schedule = ep.levels.TemperatureSchedule(start=float(SIGMAS[0] / 0.4) ** 2, hot=100, cooling=400, quench=50)
    return {
        "recovery": System(lambda: ep.RecoveryEBM(net(LEVELS), schedule()), recipe, recovery, brief),
        "cooperative": System(
            lambda: ep.RecoveryEBM(net(LEVELS), schedule(), initializer=initializer),
            ep.CooperativeRecovery(recipe=recipe, initializer_fraction=1.0),
            recovery,
            brief,
        ),
        "joint": System(
            # The paper's schedule: in 784 dimensions chains only change between levels that lie close.
            lambda: ep.JointEBM(net(51), ep.NoiseSchedule.sqrtcumlinear(50)),
            lasting,
            22.0,
            {"visits": 1, "max_sweeps": 60},
        ),
        "multi-scale": System(
            lambda: ep.MultiscaleEBM(net(), SIGMAS, base_sigma=0.4),
            ep.objectives.MultiscaleScoreMatching(),
            2.0,
            {"schedule": schedule, "force_dtype": BRIEF},
        ),
        "persistent": System(plain, lasting, 22.0, long),
        "hybrid": System(
            plain, ep.PersistentLikelihood(mala, slots=SLOTS, rejuvenate=0.05, autocast=BRIEF), 22.0, long
        ),
        "noise": System(
            plain, ep.PersistentLikelihood(mala, rejuvenate=1.0, num_steps=100, autocast=BRIEF), 102.0, long
        ),
        "contrastive": System(plain, ep.objectives.ContrastiveDivergence(mala, steps=20), 22.0, long),
    }


def train(name: str, x: Tensor, seconds: float) -> tuple[Any, ep.History]:
    """A model trained for so many seconds."""

    def build(updates: int) -> ep.Training:
        torch.manual_seed(1)
        system = systems()[name]
        model = system.model()
        model.standardize(x, isotropic=True)
        options = ep.TrainingOptions(
            steps=updates,
            batch_size=BATCH,
            ema=0.99 if updates < 2000 else 0.999,
            evaluate_every=max(50, updates // 10),
            patience=1000,
        )
        return ep.Training(model, x[500:], system.objective, held_out=x[:500], options=options)

    training = training_within(seconds, build, skip=5, over=10, least=50)
    for _ in training:
        pass
    return training.model, training.finish()


def strangers(test: Tensor, other: Tensor) -> dict[str, Tensor]:
    """What is not of the training images' kind, without noise."""
    return {
        "other": other,
        "noise": torch.rand_like(test),
        "constant": torch.rand(len(test), 1, 1, 1).expand_as(test),
        "upside down": test.flip(-2),
        "mean of two": 0.5 * (test + test.roll(1, 0)),
    }


def blurred(x: Tensor) -> Tensor:
    """With the noise that every image has, so that it tells nothing."""
    return x + NOISE * torch.randn_like(x)


def scores(name: str, model: Any, known: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """The scores of a model by name."""
    yield "energy", lambda x: ep.evaluation.energy_scores(model, x)
    if name == "joint":
        yield "all levels", lambda x: ep.evaluation.joint_scores(model, x)
    yield "typicality", lambda x: ep.evaluation.typicality_scores(model, x, known)


def frechet(body: nn.Module, a: Tensor, b: Tensor) -> float:
    """On the classifier's features, of images within their range."""
    return ep.metrics.frechet_distance(body(a.clamp(0.0, 1.0)), body(b.clamp(0.0, 1.0)))


def main(arguments: list[str]) -> None:
    """A line for each system and part, and a table."""
    parser = argparse.ArgumentParser(prog="systems", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("names", nargs="*", default=list(systems()))
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--classifier-steps", type=int, default=2000)
    parser.add_argument("--pictures", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with np.load(args.file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in ("x_train", "y_train", "x_test")}
    with np.load(args.other, allow_pickle=False) as archive:
        other = ep.data.images_from_array(archive["x_test"]).x[:ROWS]
    x, test = (ep.data.images_from_array(arrays[name]).x for name in ("x_train", "x_test"))
    body, head = classifier(x, torch.as_tensor(arrays["y_train"].astype(np.int64)), args.classifier_steps)
    x, real, own = blurred(x), blurred(test[ROWS : ROWS + SAMPLES]), blurred(test[:ROWS])
    odd = {kind: blurred(images) for kind, images in strangers(test[:ROWS], other).items()}

    def recognized(images: Tensor) -> float:
        return float((head(body(images.clamp(0.0, 1.0))).softmax(1).amax(1) > 0.9).float().mean())

    print(f"real images: Fréchet {frechet(body, x[-SAMPLES:], real):.1f}, recognized {recognized(own):.3f}", flush=True)
    table, pictures = [], {"data": list(own[:8])}
    for name in args.names:
        try:
            model, history = train(name, x, args.seconds)
        except ep.TrainingDiverged as error:
            print(f"{name}: diverged: {error}", flush=True)
            table.append([name, "diverged"])
            continue
        system = systems()[name]
        count = len(history.records)
        taken = count * BATCH * system.gradients / 1e6
        print(f"{name}: {count} updates, {history.stopped}, {taken:.2f} million gradients", flush=True)
        torch.manual_seed(2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            drawn = model.sample((SAMPLES,), **system.sample)
        quality = frechet(body, drawn, real)
        print(
            f"  samples: Fréchet {quality:.1f}, recognized {recognized(drawn):.3f}",
            *(f"({str(warning.message)[:90]})" for warning in caught),
            flush=True,
        )
        run = ep.long_run(
            model, own, steps=args.steps, kept=20, chains=64, kernel=ep.MALA(0.1, force_dtype=BRIEF), progress=False
        )
        group, ends = run.from_data, run.from_data.chains.draws[:, -1]
        drift = group.drift.last - group.drift.first
        kept = recognized(ends)
        print(
            f"  long chains from data: energy {group.drift.first:.1f} to {group.drift.last:.1f} nats (z "
            f"{group.drift.z:.1f}), recognized {kept:.3f}; {'; '.join(run.problems)}",
            flush=True,
        )
        columns = []
        for score, function in scores(name, model, x[:2000]):
            inliers = function(own)
            found = {
                kind: ep.evaluation.detection_report(inliers, function(images), repeats=400)
                for kind, images in odd.items()
            }
            columns.append([found[kind].auroc.value for kind in odd])
            shown = (f"{k} {r.auroc.value:.3f} [{r.auroc.lower:.3f}, {r.auroc.upper:.3f}]" for k, r in found.items())
            print(f"  {score}: {', '.join(shown)}", flush=True)
        numbers = [f"{quality:.0f}", f"{drift:+.0f}", f"{kept:.2f}", *(f"{v:.2f}" for v in columns[0]), f"{taken:.1f}"]
        table.append([name, *numbers])
        pictures |= {f"{name}: samples": list(drawn[:8]), f"{name}: long chains": list(ends[:8])}
    titles = ["system", "Fréchet", "drift", "recognized", *odd, "million gradients"]
    for row in (titles, ["---"] * len(titles), *table):
        print("|", " | ".join(row), "|")
    if args.pictures is not None:
        figure = image_strips(pictures, titles=[str(i) for i in range(1, 9)], title=args.file.stem)
        save_figure(figure, args.pictures / f"systems_{args.file.stem}.png")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

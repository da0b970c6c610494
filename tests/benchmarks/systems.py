"""All ways of training beside each other on real images: samples, long chains, and strangers told apart.

``python -m tests.benchmarks systems FILE.npz OTHER.npz [SYSTEM …] [--warm WEIGHTS] [--seconds N] [--steps N]
[--samples N] [--chains N] [--pictures FOLDER] [--ablation]``

Both files hold ``x_train``, ``y_train``, ``x_test``, ``y_test`` (n, 28, 28), as MNIST and Fashion-MNIST.  Every system
learns FILE with one convolutional network for ``--seconds`` of CPU time of one thread, from images with noise of
standard deviation .03 (as the baselines of Zhang, Tan & Ou 2023 have; without it they have no density).  With
``--warm`` each begins at the weights that ``images --weights WEIGHTS`` has learned by score matching instead, see
``warm_systems.py``, and has the noise of their level 0.  Then:

- samples: Fréchet distance of 256 (``--samples``) to as many test images, on the 64 features of a classifier trained on
  FILE, beside that of as many training images, all of them random rows;
- long chains: 64 (``--chains``) of MALA from test images at level 0, ``--steps`` moves: by how much their energy
  changed from that of the same images noised anew, and how many the classifier still recognizes with 90 % confidence;
- AUROC of the level-0 energy (for ``joint`` also of the energy of all levels together) and of typicality, 1,000 test
  images of FILE against as many of OTHER and of four other kinds, with intervals at 95 %;
- millions of images whose gradient was taken in training.

``--warm WEIGHTS --ablation`` is CDRL's of the moves in generation: its six levels and second network train for
``--seconds`` from the weights, then ``--samples`` images each are drawn with 15, 8, 5 and 3 moves a level, begun by the
second network, by the energy's own denoiser, and as for Gaussian data.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import energyppl as ep
from energyppl.plots.base import save_figure
from energyppl.plots.images import image_strips
from tests.benchmarks.budget import training_within
from tests.benchmarks.image_judge import RECOGNIZED, Judge, classifier, long_runs, read
from tests.benchmarks.image_training import BRIEF
from tests.benchmarks.warm_systems import travelled, unlabelled, warm_systems

SHAPE, LEVELS, NOISE, BATCH, SAMPLES, ROWS = (1, 28, 28), 6, 0.03, 64, 256, 1000
SLOTS = 256  # as many chains as the few updates can keep up
SIGMAS = torch.logspace(0.7, -0.7, 32)  # in standard deviations of the data
ABLATION = (15, 8, 5, 3)  # moves a level


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
    temperatures = ep.levels.TemperatureSchedule(start=float(SIGMAS[0] / 0.4) ** 2, hot=100, cooling=400, quench=50)
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
            {"schedule": temperatures, "force_dtype": BRIEF},
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


def scores(model: Any, known: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """The scores of a model by name."""
    yield "energy", lambda x: ep.evaluation.energy_scores(model, x)
    if isinstance(model, ep.JointEBM):
        yield "all levels", lambda x: ep.evaluation.joint_scores(model, x)
    yield "typicality", lambda x: ep.evaluation.typicality_scores(model, x, known)


class Footing(NamedTuple):
    """The images, real and strange, and the classifier that every system is measured by."""

    judge: Judge
    real: Tensor  # test images that samples are compared with
    begin: Tensor  # test images where long chains begin
    own: Tensor  # test images with the noise that the density has
    odd: dict[str, Tensor]  # strangers, likewise
    known: Tensor  # training images, likewise
    moves: int  # of each chain

    def frechet(self, images: Tensor) -> float:
        """Return the distance of images, within their range, to the real ones."""
        return ep.metrics.frechet_distance(self.judge.features(images), self.judge.features(self.real))

    def recognized(self, images: Tensor) -> float:
        """Return the share that the classifier is sure of."""
        return float((self.judge.shares(images).amax(1) > RECOGNIZED).float().mean())


def measured(model: Any, drawn: Tensor, footing: Footing) -> tuple[list[str], Tensor]:
    """A row of the table, without the gradients of training, and the ends of chains that began at data."""
    quality = footing.frechet(drawn)
    print(f"  samples: Fréchet {quality:.1f}, recognized {footing.recognized(drawn):.3f}", flush=True)
    run = long_runs(model, footing.begin, footing.moves, ep.MALA(0.1))
    (drift, error), ends = run.drift(), run.draws[:, -1]
    kept, anew = footing.recognized(ends), float(run.fresh.std(0).mean())
    change = f"energy {float(run.fresh.mean()):.1f} to {float(run.energies[-1].mean()):.1f} nats, drift {drift:+.1f}"
    print(f"  {len(ends)} long chains: {change} ± {error:.1f} (a fresh noising: {anew:.1f}), recognized {kept:.3f}")
    columns = []
    for score, function in scores(model, footing.known):
        inliers = function(footing.own)
        found = {
            kind: ep.evaluation.detection_report(inliers, function(images), repeats=400)
            for kind, images in footing.odd.items()
        }
        columns.append([found[kind].auroc.value for kind in footing.odd])
        shown = (f"{k} {r.auroc.value:.3f} [{r.auroc.lower:.3f}, {r.auroc.upper:.3f}]" for k, r in found.items())
        print(f"  {score}: {', '.join(shown)}", flush=True)
    return [f"{quality:.0f}", f"{drift:+.0f} ± {error:.0f}", f"{kept:.2f}", *(f"{v:.2f}" for v in columns[0])], ends


def begun_warm(name: str, file: Path, x: Tensor, seconds: float) -> tuple[ep.RecoveryEBM, Any, float]:
    """The weights of a file, trained on for so many seconds by a system, its model, millions of gradients taken."""
    torch.manual_seed(1)
    ebm, system = unlabelled(file, x), warm_systems()[name]
    model = system.model(ebm, x)
    if system.objective is None:
        return ebm, model, 0.0
    return ebm, model, system.gradients * trained_on(model, system.objective(ebm), x, seconds, system.rate)


def trained_on(model: Any, objective: Any, x: Tensor, seconds: float, rate: float = 1e-3) -> float:
    """Train a model on from its weights, which ``training_within`` tries and puts back; return millions of images."""
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def build(updates: int) -> ep.Training:
        model.load_state_dict(before)
        torch.manual_seed(1)
        options = ep.TrainingOptions(
            steps=updates,
            batch_size=BATCH,
            learning_rate=rate,
            ema=0.99 if updates < 2000 else 0.999,
            evaluate_every=max(50, updates // 10),
            patience=1000,
        )
        return ep.Training(model, x[500:], objective, held_out=x[:500], options=options)

    training = training_within(seconds, build, skip=2, over=8, least=5)
    for _ in training:
        pass
    history = training.finish()
    print(f"  {len(history.records)} updates, {history.stopped}", flush=True)
    for which, record in (("first", history.records[0]), ("last", history.records[-1])):
        shown = ", ".join(f"{key} {value:.3g}" for key, value in record.numbers().items())
        print(f"    {which}: {shown}", flush=True)
    return len(history.records) * BATCH / 1e6


def ablation(file: Path, x: Tensor, seconds: float, footing: Footing) -> Iterator[list[str]]:
    """Rows for each way to begin chains and each number of moves: gradients, CPU ms, Fréchet and recognized share."""
    _, model, _ = begun_warm("cooperative", file, x, seconds)
    initializer, count = model.initializer, len(footing.real)
    for name in ("learned initializer", "own denoiser", "neither"):
        model.initializer = initializer if name == "learned initializer" else None
        for moves in ABLATION:
            torch.manual_seed(2)
            began = time.process_time()
            options: dict[str, Any] = {"steps": moves, "denoise": True, "micro_batch": 100}
            if name == "neither":
                made = ep.levels.generate(model, torch.Size((count,)), **options)
            else:
                made = model.generate((count,), **options)
            spent = (time.process_time() - began) / count
            drawn = model.from_unit(made.x).clamp(0.0, 1.0)
            quality, sure = footing.frechet(drawn), footing.recognized(drawn)
            yield [name, str(moves), str(made.evaluations), f"{spent * 1e3:.0f}", f"{quality:.1f}", f"{sure:.3f}"]


def show(titles: list[str], table: list[list[str]]) -> None:
    """Print a table."""
    for row in (titles, ["---"] * len(titles), *table):
        print("|", " | ".join(row), "|")


def main(arguments: list[str]) -> None:
    """A line for each system and part, and a table."""
    parser = argparse.ArgumentParser(prog="systems", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--warm", type=Path, metavar="WEIGHTS")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--classifier-steps", type=int, default=2000)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--ablation", action="store_true")
    args = parser.parse_args(arguments)
    if args.ablation and args.warm is None:
        parser.error("--ablation needs --warm WEIGHTS")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, other = read(args.file), read(args.other).test[:ROWS]
    judge = Judge(*classifier(data.x, data.y, args.classifier_steps))
    generator = torch.Generator().manual_seed(3)
    x, test = (images[torch.randperm(len(images), generator=generator)] for images in (data.x, data.test))
    warm = None if args.warm is None else unlabelled(args.warm, x)
    # A model of noise levels has the noise of level 0; the others' images have some of their own.
    noisy = blurred if warm is None else lambda images: warm.diffuse(images, 0)
    x = x if warm is not None else blurred(x)
    real, begin = test[-args.samples :], test[: args.chains]
    odd = {kind: noisy(images) for kind, images in strangers(test[:ROWS], other).items()}
    known = x[:2000] if warm is None else noisy(x[:2000])
    footing = Footing(judge, real, begin, noisy(test[:ROWS]), odd, known, args.steps)
    floor, sure = footing.frechet(x[-len(real) :]), footing.recognized(test[:ROWS])
    print(f"real images: Fréchet {floor:.1f}, recognized {sure:.3f}", flush=True)
    if args.ablation:
        rows = list(ablation(args.warm, x, args.seconds, footing))
        show(["chains begin by", "moves a level", "gradients", "ms", "Fréchet", "recognized"], rows)
        return
    table, pictures = [], {"data": list(begin[:8])}
    for name in args.names or list(systems() if warm is None else warm_systems()):
        print(f"{name}:", flush=True)
        try:
            if warm is None:
                model, history = train(name, x, args.seconds)
                taken = len(history.records) * BATCH * systems()[name].gradients / 1e6
                print(f"  {len(history.records)} updates, {history.stopped}", flush=True)
            else:
                model, trained, taken = begun_warm(name, args.warm, x, args.seconds)
                if isinstance(trained, ep.JointEBM):
                    print(f"  {travelled(trained, begin, args.steps)}", flush=True)
        except ep.TrainingDiverged as error:
            print(f"  diverged: {error}", flush=True)
            table.append([name, "diverged"])
            continue
        torch.manual_seed(2)
        how = systems()[name].sample if warm is None else {"denoise": True, "micro_batch": 100}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            drawn = model.sample((len(real),), **how)
        for warning in caught:
            print(f"  ({str(warning.message)[:90]})", flush=True)
        numbers, ends = measured(model, drawn, footing)
        table.append([name, *numbers, f"{taken:.1f}"])
        pictures |= {f"{name}: samples": list(drawn[:8]), f"{name}: long chains": list(ends[:8])}
    titles = ["system", "Fréchet", "drift", "recognized", *odd, "million gradients"]
    show(titles, table)
    if args.pictures is not None:
        figure = image_strips(pictures, titles=[str(i) for i in range(1, 9)], title=args.file.stem)
        save_figure(figure, args.pictures / f"systems_{args.file.stem}.png")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

"""Images at their full size: digits or clothes by score matching, for as many seconds of one core as asked.

``python -m tests.benchmarks images FILE.npz [OTHER.npz] [--seconds N] [--samples N] [--corrected N] [--moves N]
[--chains N] [--completed N] [--seed N] [--unlabelled] [--weights FILE] [--pictures FOLDER] [--sheet FILE.png]``

The files hold ``x_train``, ``y_train``, ``x_test``, ``y_test`` (n, 28, 28), as MNIST and Fashion-MNIST.  One network
with classes learns FILE for ``--seconds`` of CPU time of one thread, and about a fifth of that more by level 0's
likelihood, so that chains stay; it is kept in ``--weights`` if that is given (the run on its way beside it, in a file
ending in .run, from which a killed one goes on); if that file is there already, it is judged as it is.  The number of
levels that samples without guidance come down is chosen on training images kept back; guided ones, of two gradients a
level, come down those of the training.  A small convolutional classifier learns on the training images; on its 64 last
features lie the Fréchet and kernel distances, of ``--samples`` samples to as many random test images, beside those of
random training images to the same: the floor.  Then, for samples without a class, of classes drawn, and of each class
with guidance: the share that the classifier recognizes with 90 % confidence, the share recognized as asked, the balance
of labels, how much a class's pixels vary, and how near samples come to training images.  With ``--unlabelled`` the
network is told no classes, so that there are samples of the first kind alone.

Long runs: ``--chains`` chains of ``--moves`` MALA moves at level 0, begun at test images with the level's noise: how
the energy changed, by how many nats a fresh noising moves it, and the share of chains whose class is still the first
one.  Detection: AUROC of the level-0 energy, 1,000 test images against what is no such image, and against OTHER's.

``--rate [IMAGES]`` needs no file, but ``pip install --no-deps ebmkit``: see ``image_rates.py``.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.plots.base import save_figure
from energyppl.plots.images import image_grid, image_strips, neighbour_grid
from tests.benchmarks.image_judge import CLASSES, RECOGNIZED, Data, Judge, classifier, long_runs, read
from tests.benchmarks.image_rates import rates
from tests.benchmarks.image_training import kept_back, train, with_levels

GUIDANCE, ROWS = 1.0, 1000
LEVELS = (50, 100)  # to choose from without guidance, at most 100 gradients; fewer are clearly worse


# --- Samples ---


def sampled(model: ep.RecoveryEBM, count: int, steps: int | None = None) -> tuple[Tensor, int, float]:
    """Samples in [0, 1], the energy's gradients that each took, and its seconds."""
    torch.manual_seed(2)
    began = time.process_time()
    made = model.generate((count,), steps=steps, denoise=True, micro_batch=100)
    spent = (time.process_time() - began) / count
    return model.from_unit(made.x).clamp(0.0, 1.0), made.evaluations, spent


def chosen_levels(ebm: ep.RecoveryEBM, judge: Judge, data: Data, count: int) -> ep.RecoveryEBM:
    """The model with the levels whose samples of no class lie nearest to training images kept back."""
    _, rows = kept_back(data)
    real = judge.features(data.x[rows])
    models = {levels: with_levels(cast(ep.models.UNetEnergy, ebm.net), data.x, levels) for levels in LEVELS}
    found = {
        levels: ep.metrics.frechet_distance(judge.features(sampled(model, count)[0]), real)
        for levels, model in models.items()
    }
    best = min(found, key=found.__getitem__)
    shown = ", ".join(f"{levels} {distance:.1f}" for levels, distance in found.items())
    print(f"levels, Fréchet to training images kept back: {shown}: {best} are taken", flush=True)
    if best == ebm.schedule.levels:
        return ebm
    models[best].tune(data.x[rows][: 4 * best], steps=30)
    return models[best]


def spread(x: Tensor, y: Tensor) -> float:
    """Mean standard deviation of a pixel within a class."""
    return float(torch.stack([x[y == c].std(0).mean() for c in y.unique() if int((y == c).sum()) > 1]).mean())


def judged(judge: Judge, drawn: Tensor, real: Tensor, data: Data, asked: Tensor | None, floor: float) -> list[str]:
    """A row of the table, but for what the samples cost."""
    seen, probabilities = judge.features(drawn), judge.shares(drawn)
    found = probabilities.argmax(1)
    distance = ep.metrics.frechet_distance(seen, judge.features(real))
    kernel = ep.metrics.kernel_distance(seen, judge.features(real))
    own = torch.bincount(data.y, minlength=CLASSES).double() if asked is None else torch.bincount(asked).double()
    balance = ep.metrics.label_balance(found, CLASSES, own / own.sum())
    near = ep.metrics.nearest_neighbours(drawn[:500], data.x).distance.median()
    return [
        f"{distance:.1f}",
        f"{distance / floor:.2f}" if floor else "1",
        f"{kernel.value:.3f} ± {kernel.standard_error:.3f}",
        f"{float((probabilities.amax(1) > RECOGNIZED).float().mean()):.3f}",
        "" if asked is None else f"{float((found == asked).float().mean()):.3f}",
        f"{float(balance.z_scores.abs().max()):.1f} (p {balance.p_value:.2g})",
        f"{spread(drawn, found if asked is None else asked):.3f}",
        f"{float(near):.2f}",
        f"{float(drawn.mean()):.3f}",
    ]


def samples_table(
    plain: ep.RecoveryEBM, ebm: ep.RecoveryEBM, judge: Judge, data: Data, count: int, corrected: int
) -> tuple[list[list[str]], Tensor]:
    """A row for each way to sample, by ``plain`` unless guided, beside real images, and the last way's samples."""
    generator = torch.Generator().manual_seed(3)
    real = data.test[torch.randperm(len(data.test), generator=generator)[:count]]
    rows = torch.randperm(len(data.x), generator=generator)[:count]
    floor = ep.metrics.frechet_distance(judge.features(data.x[rows]), judge.features(real))
    table = [["training images", "", "", *judged(judge, data.x[rows], real, data, None, 0.0)]]
    ways: dict[str, tuple[ep.RecoveryEBM, Tensor | None, int | None]] = {"no class": (plain, None, None)}
    if cast(ep.models.UNetEnergy, ebm.net).classes:
        drawn_classes = data.y[torch.randint(len(data.y), (count,), generator=generator)]
        each = torch.arange(count) % CLASSES
        ways["classes drawn"] = (plain.given(drawn_classes), drawn_classes, None)
        ways[f"each class, guidance {GUIDANCE:g}"] = (ebm.given(each, guidance=GUIDANCE), each, None)
    if corrected:
        ways = {f"no class, moves a level: {corrected}": (plain, None, corrected)} | ways
    drawn = real
    for name, (model, asked, steps) in ways.items():
        drawn, gradients, seconds = sampled(model, count, steps)
        evaluations = gradients * (2 if model.guidance else 1)
        table.append([name, str(evaluations), f"{seconds * 1e3:.0f}", *judged(judge, drawn, real, data, asked, floor)])
        print("|", " | ".join(table[-1]), "|", flush=True)
    return table, drawn


# --- Chains that stay, and strangers ---


def stayed(
    ebm: ep.RecoveryEBM, judge: Judge, data: Data, chains: int, moves: int
) -> tuple[list[str], dict[str, list[Tensor]]]:
    """Sentences about chains at level 0 that begin at test images, and pictures of some."""
    torch.manual_seed(4)
    clean = data.test[:chains]
    began = time.process_time()
    draws, energies, fresh = run = long_runs(ebm, clean, moves, ep.MALA(0.1))
    spent = time.process_time() - began
    drift, error = run.drift()
    ends = ebm.denoised(draws[:, -1], 0)
    same = judge.shares(ends).argmax(1) == judge.shares(ebm.denoised(ebm.diffuse(clean, 0), 0)).argmax(1)
    kept = len(energies)
    halves = [float(part.mean()) for part in energies.split(-(-kept // 2))]
    text = [
        f"{chains} chains, {moves} moves, {spent:.0f} s: energy {float(fresh.mean()):.1f} to "
        f"{float(energies[-1].mean()):.1f} nats, drift {drift:+.1f} ± {error:.1f}; halves of the run {halves[0]:.1f}, "
        f"{halves[-1]:.1f}",
        f"a fresh noising moves an image's energy by {float(fresh.std(0).mean()):.1f}; class kept "
        f"{float(same.float().mean()):.3f}",
    ]
    columns = [clean[:8], *(ebm.denoised(draws[:8, i], 0) for i in (0, kept // 4, kept // 2, kept - 1))]
    return text, {str(i): [column[i] for column in columns] for i in range(min(8, chains))}


def strangers(test: Tensor, other: Tensor | None) -> dict[str, Tensor]:
    """What is not of the training images' kind."""
    flat = torch.rand(len(test), 1, 1, 1).expand_as(test)
    sets = {} if other is None else {"other": other}
    return sets | {
        "noise": torch.rand_like(test),
        "constant": flat,
        "upside down": test.flip(-2),
        "mean of two": 0.5 * (test + test.roll(1, 0)),
    }


def detection(ebm: ep.RecoveryEBM, data: Data, other: Tensor | None) -> Iterator[str]:
    """AUROC of the level-0 energy, and of typicality, for each kind of strangers."""
    torch.manual_seed(5)
    own = ebm.diffuse(data.test[:ROWS], 0)
    odd = {kind: ebm.diffuse(images, 0) for kind, images in strangers(data.test[:ROWS], other).items()}
    for name, score in (
        ("energy", lambda x: ep.evaluation.energy_scores(ebm, x, batch=200)),
        ("typicality", lambda x: ep.evaluation.typicality_scores(ebm, x, data.x[:2000], batch=200)),
    ):
        inliers = score(own)
        found = {kind: ep.evaluation.auroc(inliers, score(images)) for kind, images in odd.items()}
        yield f"AUROC of {name}: " + ", ".join(f"{kind} {value}" for kind, value in found.items())


def blocks(x: Tensor) -> Tensor:
    """Images whose 4×4 pixels are their mean."""
    return nn.functional.avg_pool2d(x, 4).repeat_interleave(4, -2).repeat_interleave(4, -1)


def completions(ebm: ep.RecoveryEBM, judge: Judge, data: Data, count: int) -> tuple[list[str], dict[str, list[Tensor]]]:
    """Sentences about test images of which a half was seen, or a sixteenth of the pixels, and pictures of some."""
    torch.manual_seed(6)
    size = data.test.shape[1:]
    seen = torch.zeros(size, dtype=torch.bool)
    seen[:, : size[1] // 2] = True
    coarse = nn.functional.avg_pool2d(torch.eye(seen.numel()).reshape(-1, *size), 4).flatten(1).mT
    cases = {
        "upper half": (torch.eye(seen.numel())[seen.flatten()], lambda image: image * seen),
        "4×4 pixels": (coarse, blocks),
    }
    text: list[str] = []
    strips: dict[str, Any] = {}
    for name, (matrix, show) in cases.items():
        images, drawn = data.test[:count], []
        for image in images:
            measurement = ep.LinearMeasurement(matrix, matrix @ image.flatten(), noise=0.01)
            drawn.append(ep.measured(ebm, measurement).sample((4,), denoise=True).clamp(0.0, 1.0))
        found = torch.stack(drawn)  # (count, 4, *image)
        misfit = (found - images[:, None]).flatten(2) @ matrix.mT
        right = judge.shares(found.flatten(0, 1)).argmax(1).reshape(count, 4) == data.y_test[:count, None]
        text.append(
            f"{name} seen: {float(right.float().mean()):.3f} of {count} images, 4 draws each, completed to their own "
            f"class; what was seen is met within {float(misfit.square().mean().sqrt()):.4f}, and pixels vary by "
            f"{float(found.std(1).mean()):.3f} between draws"
        )
        strips |= {f"{name} {i}": [images[i], show(images[i]), *found[i]] for i in range(min(3, count))}
    return text, strips


def main(arguments: list[str]) -> None:
    """Some lines and a table, and pictures if a folder is given."""
    parser = argparse.ArgumentParser(prog="images", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--rate", type=int, nargs="?", const=128, metavar="IMAGES", help="in a batch")
    parser.add_argument("--seconds", type=float, default=2400.0)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--corrected", type=int, default=0, help="also sample with so many moves a level")
    parser.add_argument("--moves", type=int, default=10_000)
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument("--completed", type=int, default=100)
    parser.add_argument("--classifier-steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1, help="of the training")
    parser.add_argument("--unlabelled", action="store_true", help="train without classes")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.rate is not None:
        rates(args.rate)
        return
    if args.file is None:
        parser.error("FILE.npz is missing")
    data = read(args.file)
    torch.manual_seed(0)
    judge = Judge(*classifier(data.x, data.y, args.classifier_steps))
    accuracy = float((judge.shares(data.test).argmax(1) == data.y_test).float().mean())
    print(f"classifier: {accuracy:.3f} of the test images right", flush=True)
    if args.weights is not None and args.weights.exists():
        ebm = cast(ep.RecoveryEBM, ep.load(args.weights))
    else:
        kept = None if args.weights is None else args.weights.with_suffix(".run")
        ebm, history = train(data, args.seconds, 0 if args.unlabelled else CLASSES, kept=kept, seed=args.seed)
        print(f"trained: {len(history.records)} updates, {history.stopped}", flush=True)
        if args.weights is not None:
            ep.save(ebm, args.weights)

    plain = chosen_levels(ebm, judge, data, min(500, args.samples))
    table, guided = samples_table(plain, ebm, judge, data, args.samples, args.corrected)
    if args.sheet is not None:
        title = f"Ten classes, guidance {GUIDANCE:g}"
        save_figure(image_grid(guided[:100], title=title), args.sheet)
    other = None if args.other is None else read(args.other).test[:ROWS]
    for line in detection(ebm, data, other):
        print(line, flush=True)
    lines, completed = completions(ebm, judge, data, args.completed)
    print(*lines, sep="\n", flush=True)
    lines, chains = stayed(ebm, judge, data, args.chains, args.moves)
    print(*lines, sep="\n", flush=True)
    titles = ["samples", "gradients", "ms", "Fréchet", "of the floor", "kernel", "recognized", "as asked", "labels off"]
    titles += ["pixels vary", "nearest", "mean"]
    for row in (titles, ["---"] * len(titles), *table):
        print("|", " | ".join(row), "|")
    if args.pictures is not None:
        draw(ebm, data, guided, args.pictures)
        titles = ["image", "early", "a quarter", "half", "end"]
        figure = image_strips(chains, titles=titles, title="Long runs at level 0, denoised")
        save_figure(figure, args.pictures / "long_runs.png")
        titles = ["image", "seen", *(f"draw {i}" for i in range(4))]
        save_figure(image_strips(completed, titles=titles, title="Completed"), args.pictures / "completed.png")


def draw(ebm: ep.RecoveryEBM, data: Data, guided: Tensor, folder: Path) -> None:
    """Pictures of samples, their neighbours, and of paths between test images."""
    plain, _, _ = sampled(ebm, 100)
    save_figure(image_grid(plain, title="No class"), folder / "samples.png")
    save_figure(image_grid(guided[:100], title=f"Guidance {GUIDANCE:g}"), folder / "guided.png")
    nearest = data.x[ep.metrics.nearest_neighbours(plain[:10], data.x, k=3).indices]
    save_figure(neighbour_grid(plain[:10], nearest), folder / "neighbours.png")
    torch.manual_seed(7)
    one, other = data.test[:6], data.test[6:12]
    path = ep.models.interpolate(ebm, one, other).clamp(0.0, 1.0)
    rows = {str(i): [one[i], *path[:, i], other[i]] for i in range(6)}
    titles = ["one", *(str(i) for i in range(1, 10)), "other"]
    save_figure(image_strips(rows, titles=titles, title="Through the noise levels"), folder / "interpolation.png")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

"""``energyppl fit``, ``sample`` and ``show`` on a folder of pictures or a file of images.

A run's folder holds ``run.json`` for people, ``training.ckpt`` to go on from, ``model.ebm``, which ``energyppl.load``
reads too, ``images.ckpt`` with held-out and some training images, and sheets of pictures.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

import energyppl as ep
from energyppl._checks import check_count
from energyppl._files import locked, whole_file, write_json
from energyppl.cli.endings import trained
from energyppl.cli.image_runs import (
    KIND,
    ImageRun,
    ImageSettings,
    image_settings,
    keep_image_run,
    load_image_run,
)
from energyppl.cli.runs import seconds_before
from energyppl.data.images import Images, read_images
from energyppl.errors import InvalidInput
from energyppl.inference.objectives.level0_likelihood import Level0Likelihood
from energyppl.inference.objectives.level_score_matching import LevelScoreMatching
from energyppl.inference.training.fit import fit
from energyppl.inference.training.history import History
from energyppl.inference.training.options import TrainingOptions, suited_options
from energyppl.metrics.images import memorized, nearest_neighbours
from energyppl.models import RecoveryEBM, UNetEnergy
from energyppl.schedule import NoiseSchedule

__all__ = ["fit_images", "sample_images", "show_images"]

_TOP_LOG_SNR = 5.0  # of level 0: noise of a twelfth of the pixels' standard deviation
_HELD_OUT, _KEPT, _SHEET = 1000, 2000, 100  # images
_AT_A_TIME = 100
_END = 20  # of so many updates one more is by level 0's likelihood, so that long chains stay
_GUIDANCE = 1.0
_FARTHER = 1.5  # times as far from training images as held-out ones are, from which on samples are no such images
_DENOISED_LEVELS = 5


# --- Training ---


def fit_images(
    file: Path, run: Path, chosen: dict[str, Any], *, device: str | None = None, progress: bool = True
) -> dict[str, str]:
    """Train on the images of ``file`` and keep everything in ``run``; go on if it holds a checkpoint.

    Args:
        file: a folder of pictures, an IDX file or an array.
        run: the folder.
        chosen: settings, by name, on top of those that the run was begun with.
        device: where to train, such as "cuda"; the CPU if None.
        progress: show a bar.

    Returns:
        What is to be printed, by name.

    Raises:
        InvalidInput: for images or settings that can't be used; nothing is written then.
        CheckpointError: if the run is damaged, or one of other images.
        TrainingDiverged: see :func:`energyppl.fit`.
    """
    settings = image_settings(run, chosen)
    images = _grey_if_it_is(read_images(file, settings.labels, array=settings.array))
    if len(images.x) < 10:
        raise InvalidInput(f"{images.source} must hold at least 10 images; got {len(images.x)}: pass more")
    with locked(run):
        return _train(images, run, settings, device, progress)


def _grey_if_it_is(images: Images) -> Images:
    """Return images of one channel where all three are the same, as in many files of grey pictures."""
    first = images.x[:, :1]
    return replace(images, x=first.clone()) if bool((images.x == first).all()) else images


def _train(images: Images, run: Path, settings: ImageSettings, device: str | None, progress: bool) -> dict[str, str]:
    pyro.set_rng_seed(settings.seed)
    rows, held_out = _split(len(images.x))
    ebm = _untrained(images, rows, settings)
    objective = LevelScoreMatching(autocast=torch.bfloat16 if settings.bfloat16 else None)
    checkpoint, path = run / "training.ckpt", run / "run.json"
    going_on = checkpoint.exists() and path.exists()
    record = _record(images, rows, settings, spent=seconds_before(path) if going_on else 0.0)
    if not going_on:
        write_json(path, record)
    end = Level0Likelihood(objective)
    given: dict[str, Any] = {
        "labels": None if images.labels is None else images.labels[rows],
        "held_out": images.x[held_out],
        "device": device,
        "progress": progress,
    }

    def train() -> tuple[RecoveryEBM, History]:
        options = _options(settings, objective, ebm)
        history = fit(ebm, images.x[rows], objective, options=options, checkpoint=checkpoint, **given)
        steps = max(1, len(history.records) // _END)
        fit(ebm, images.x[rows], end, options=replace(suited_options(end, ebm), steps=steps), **given)
        return ebm, history

    _, history, record = trained(run, record, train)
    record["held_out_error"] = min(h for h in history.column("held_out") if np.isfinite(h))
    found = ImageRun(ebm, images.x[held_out], images.x[rows[:_KEPT]], tuple(record["classes"]), record)
    keep_image_run(run, ebm, found.held_out, found.rows)
    write_json(path, record)
    _draw_training(history, run / "training.png")
    ep.plots.save_figure(_sheet(found, _SHEET), run / "samples.png")
    return {
        **_about(record),
        "kept in": f"{run} (model.ebm, training.ckpt, run.json, images.ckpt)",
        "pictures": f"samples.png, training.png in {run}",
        "next": f"energyppl show {quote(str(run))}",
    }


def _split(count: int) -> tuple[Tensor, Tensor]:
    """Return the places of the images to train on and of those held out, the same ones whenever a run goes on."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    aside = min(max(2, count // 10), _HELD_OUT)
    return order[aside:], order[:aside]


def _untrained(images: Images, rows: Tensor, settings: ImageSettings) -> RecoveryEBM:
    net = UNetEnergy(images.x.shape[1:], classes=_class_count(images))
    schedule = NoiseSchedule.cosine(settings.levels, log_snr_max=_TOP_LOG_SNR, log_snr_min=net.log_snr_min)
    ebm = RecoveryEBM(net, schedule)
    ebm.standardize(images.x[rows], isotropic=True)
    return ebm


def _class_count(images: Images) -> int:
    return 0 if images.labels is None else int(images.labels.max()) + 1


def _record(images: Images, rows: Tensor, settings: ImageSettings, *, spent: float) -> dict[str, Any]:
    """Return what ``run.json`` says while training goes on."""
    training, held_out, classes = len(rows), len(images.x) - len(rows), _class_count(images)
    counts = torch.zeros(0) if images.labels is None else torch.bincount(images.labels[rows], minlength=classes)
    return {
        "status": "training",
        "kind": KIND,
        "source": images.source,
        "images": {
            "training": training,
            "held_out": held_out,
            "size": list(images.x.shape[1:]),
            "grey": images.levels,
        },
        "classes": list(images.classes) or [str(label) for label in range(classes)],
        "class_counts": counts.tolist(),
        "settings": asdict(settings),
        "seconds": spent,
    }


def _options(settings: ImageSettings, objective: LevelScoreMatching, ebm: RecoveryEBM) -> TrainingOptions:
    suited = suited_options(objective, ebm)
    steps = settings.steps or suited.steps
    return replace(
        suited,
        steps=steps,
        batch_size=settings.batch_size or suited.batch_size,
        learning_rate=settings.learning_rate,
        evaluate_every=min(steps, max(10, steps // 20)),
    )


# --- Samples and pictures ---


def sample_images(
    run: Path,
    count: int,
    out: Path,
    *,
    label: str | None = None,
    guidance: float | None = None,
    seed: int = 0,
    device: str | None = None,
) -> str:
    """Write samples to ``out``: grey values of an ``.npy`` or ``.npz``, (n, height, width[, 3]), or a sheet, ``.png``.

    Without a label each draws its class first, as often as it is among the training images.

    Returns:
        A sentence about what was written.

    Raises:
        InvalidInput: for another kind of file, a count below one, or a class that there isn't.
    """
    kind = out.suffix.lower()
    if kind not in (".npy", ".npz", ".png"):
        raise InvalidInput(f"{out} must end in .npy, .npz or .png for images; got {out.suffix or 'no ending'!r}")
    check_count("the number of samples", count)
    found = load_image_run(run, device)
    pyro.set_rng_seed(seed)
    model = _of_class(found, count, label, guidance)
    began = time.perf_counter()
    x, gradients = _drawn(model, count)
    each = (time.perf_counter() - began) / count * 1e3
    if kind == ".png":
        ep.plots.save_figure(ep.plots.image_grid(x), out)
    else:
        top = found.record["images"]["grey"] - 1
        grey = (x * top).round().numpy().astype(np.uint8 if top < 256 else np.uint16)
        grey = grey[:, 0] if grey.shape[1] == 1 else np.moveaxis(grey, 1, 3)
        with whole_file(out) as file:
            if kind == ".npy":
                np.save(file, grey)
            else:
                np.savez_compressed(file, samples=grey)
    what = "" if not found.classes else " of all classes" if label is None else f" of class {label}"
    return f"{count} samples{what} in {out}; {gradients} gradients and {each:.0f} ms each"


def show_images(run: Path, count: int, *, seed: int = 0, device: str | None = None) -> tuple[dict[str, str], list[str]]:
    """Compare samples with held-out images, and draw sheets, neighbours and denoised images.

    Returns:
        What is to be printed, by name, and sentences that judge.
    """
    check_count("n", count)
    found = load_image_run(run, device)
    pyro.set_rng_seed(seed)
    count = min(count, len(found.held_out))
    began = time.perf_counter()
    x, gradients = _drawn(_of_all_classes(found, count), count)
    each = (time.perf_counter() - began) / count * 1e3
    real = found.held_out
    means = [float(images.mean()) for images in (real, x)]
    spreads = [float(images.std(0).mean()) for images in (real, x)]
    near = nearest_neighbours(x[:200], found.rows).distance.median()
    usual = nearest_neighbours(real[:200], found.rows).distance.median()
    lines = {
        **_about(found.record),
        "samples": f"{count}, {gradients} gradients and {each:.0f} ms each",
        "mean pixel": f"held-out {means[0]:.4f}, samples {means[1]:.4f}",
        "pixels vary by": f"held-out {spreads[0]:.4f}, samples {spreads[1]:.4f}",
        "nearest image": f"median distance to {len(found.rows)} training images: held-out {float(usual):.3f}, samples "
        f"{float(near):.3f}",
        "pictures": f"samples.png, neighbours.png, denoised.png in {run}",
    }
    verdict = list(_verdict(found, x, means, spreads, float(near), float(usual)))
    ep.plots.save_figure(_sheet(found, _SHEET), run / "samples.png")
    nearest = found.rows[nearest_neighbours(x[:10], found.rows, k=min(3, len(found.rows))).indices]
    ep.plots.save_figure(
        ep.plots.neighbour_grid(x[:10], nearest, title="Nearest training images"), run / "neighbours.png"
    )
    ep.plots.save_figure(_denoised(found), run / "denoised.png")
    return lines, verdict


def _verdict(
    found: ImageRun, x: Tensor, means: list[float], spreads: list[float], near: float, usual: float
) -> Iterator[str]:
    if usual == 0.0:
        yield "most held-out images are copies of training images: leave duplicates out, which nothing here can judge"
    elif near > _FARTHER * usual:
        yield f"samples lie {near / usual:.1f} times as far from training images as held-out ones do: train for longer"
    if len(found.held_out) >= 100 and len(x) >= 100:
        share = memorized(x, found.rows, found.held_out).share
        if share > 0.1:
            yield f"{share:.0%} of the samples lie nearer to a training image than 99 % of held-out images do: copies?"
    if abs(means[1] / means[0] - 1.0) > 0.15:
        yield f"samples are {'brighter' if means[1] > means[0] else 'darker'} than held-out images: train for longer"
    if spreads[1] < 0.7 * spreads[0]:
        yield "samples vary less than held-out images: train for longer, or look for classes that are missing"
    yield "look at samples.png: no figure here tells whether a person recognizes them"


def _sheet(found: ImageRun, count: int) -> Any:
    """Return a figure of samples: of each class with guidance, a column for each, or without classes."""
    if not found.classes:
        return ep.plots.image_grid(_drawn(found.ebm, count)[0], title="Samples")
    some = torch.tensor(found.record["class_counts"]).nonzero()[:10, 0]  # a number that no label has is a class too
    columns = len(some)
    labels = some[torch.arange(count) % columns]
    x, _ = _drawn(found.ebm.given(labels, guidance=_GUIDANCE), count)
    title = f"Samples of {', '.join(found.classes[label] for label in some)}, guidance {_GUIDANCE:g}"
    return ep.plots.image_grid(x, columns=columns, title=title)


def _denoised(found: ImageRun) -> Any:
    """Return a figure of held-out images at growing noise, each above what the model takes them for."""
    levels = torch.linspace(0, found.ebm.schedule.levels - 1, _DENOISED_LEVELS).round().long().tolist()
    strips = {}
    for i, image in enumerate(found.held_out[:3]):
        noisy = [found.ebm.diffuse(image, level) for level in levels]
        strips[f"noisy {i}"] = noisy
        strips[f"denoised {i}"] = [found.ebm.denoised(x, level) for x, level in zip(noisy, levels, strict=True)]
    return ep.plots.image_strips(
        strips, titles=[f"level {level}" for level in levels], title="Held-out images denoised"
    )


def _draw_training(history: History, path: Path) -> None:
    measure = history.column("held_out")
    steps = np.flatnonzero(np.isfinite(measure))
    curves = {
        "denoising error": (np.arange(len(measure)), history.column("denoising")),
        "held-out error, weighted": (steps, measure[steps]),
    }
    ep.plots.save_figure(ep.plots.training_curves(curves, title="Training"), path)


def _drawn(model: RecoveryEBM, count: int) -> tuple[Tensor, int]:
    """Return samples in [0, 1], and the gradients that each took."""
    made = model.generate((count,), denoise=True, micro_batch=_AT_A_TIME)
    return model.from_unit(made.x).clamp(0.0, 1.0), made.evaluations * (2 if model.guidance else 1)


def _of_class(found: ImageRun, count: int, label: str | None, guidance: float | None) -> RecoveryEBM:
    if label is None:
        if guidance is not None:
            raise InvalidInput("guidance needs a class: pass --label too, or leave it out")
        return _of_all_classes(found, count)
    if label not in found.classes:
        raise InvalidInput(f"label must be one of {', '.join(found.classes) or 'no classes'}; got {label!r}")
    if not found.record["class_counts"][found.classes.index(label)]:
        raise InvalidInput(f"no training image is of class {label!r}: there is nothing to draw from")
    return found.ebm.given(found.classes.index(label), guidance=_GUIDANCE if guidance is None else guidance)


def _of_all_classes(found: ImageRun, count: int) -> RecoveryEBM:
    """Return the model of images of any class: each draws its class first, as often as it is among training images.

    ``p(x) = Σ p(c) p(x | c)``: the energy of no class is of the same images, but a classifier recognizes fewer of its
    samples (``images`` in tests/benchmarks/README.md).
    """
    if not found.classes:
        return found.ebm
    counts = torch.tensor(found.record["class_counts"], dtype=torch.float64)
    return found.ebm.given(torch.multinomial(counts, count, replacement=True))


def _about(record: dict[str, Any]) -> dict[str, str]:
    images = record["images"]
    channels, height, width = images["size"]
    kind = "grey" if channels == 1 else "colour"
    classes = record["classes"]
    return {
        "images": f"{images['training']} for training, {images['held_out']} held out, {height}×{width} {kind}",
        "classes": f"{len(classes)}: {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
        if classes
        else "none",
        "training": f"{record['steps']} steps in {record['seconds']:.0f} s; {record['stopped']}",
        "held-out error": f"{record['held_out_error']:.4f}, weighted; 1 is no better than grey noise",
    }

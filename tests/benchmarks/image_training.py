"""Training of the images benchmark for some seconds of CPU time, kept on the way."""

import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

import energyppl as ep
from energyppl.autodiff.private import has_fast_bfloat16
from energyppl.checkpoints import load_checkpoint, save_checkpoint
from energyppl.inference.training.options import suited_options
from tests.benchmarks.budget import training_within
from tests.benchmarks.image_judge import CLASSES, Data

LEVELS, TOP_LOG_SNR = 50, 5.0
END = 20  # of so many updates one more is by level 0's likelihood, so that long chains stay
BRIEF = torch.bfloat16 if has_fast_bfloat16() else None


def with_levels(net: ep.models.UNetEnergy, x: torch.Tensor, levels: int = LEVELS) -> ep.RecoveryEBM:
    """A model of so many noise levels, in the coordinates of some images."""
    schedule = ep.NoiseSchedule.cosine(levels, log_snr_max=TOP_LOG_SNR, log_snr_min=-6.0)
    ebm = ep.RecoveryEBM(net, schedule)
    ebm.standardize(x, isotropic=True)
    return ebm


def kept_back(data: Data) -> tuple[slice, slice]:
    """Numbers of the training images that are kept back: some choose the weights, others the number of levels."""
    count = len(data.x)
    for_weights, all_kept = min(1000, count // 10), min(3000, count // 3)
    return slice(for_weights), slice(for_weights, all_kept)


def train(
    data: Data, seconds: float, classes: int = CLASSES, kept: Path | None = None, seed: int = 1
) -> tuple[ep.RecoveryEBM, ep.History]:
    """A model trained for so many seconds; what ``kept`` holds of such a run goes on."""
    for_weights, for_levels = kept_back(data)

    def build(updates: int) -> ep.Training:
        torch.manual_seed(seed)
        net = ep.models.UNetEnergy(data.x.shape[1:], classes=classes)
        ebm = with_levels(net, data.x)
        objective = ep.objectives.LevelScoreMatching(autocast=BRIEF)
        options = ep.TrainingOptions(
            **objective.default_options(ebm) | {"steps": updates, "evaluate_every": max(200, updates // 20)}
        )
        x, y = data.x[for_levels.stop :], data.y[for_levels.stop :]
        held_out = data.x[for_weights]
        return ep.Training(ebm, x, objective, labels=y if classes else None, held_out=held_out, options=options)

    if kept is not None and kept.exists():
        state = load_checkpoint(kept)
        training = build(state["options"]["steps"])
        training.load_state_dict(state)
        print(f"  goes on from update {len(training.records)} of {training.options.steps}", flush=True)
    else:
        training = training_within(seconds, build, skip=5, over=60)
    began = time.process_time()
    for record in training:
        if (record.step + 1) % training.options.evaluate_every == 0:
            spent, error = time.process_time() - began, record.values["denoising"]
            shown = f"{record.step + 1:6} updates, {spent:5.0f} s: error {error:.4f}, held out {record.held_out:.4f}"
            print(f"  {shown}", flush=True)
            if kept is not None:
                save_checkpoint(kept, training.state_dict())
    history, ebm = training.finish(), cast(ep.RecoveryEBM, training.model)
    end = ep.objectives.Level0Likelihood(ep.objectives.LevelScoreMatching(autocast=BRIEF))
    options = replace(suited_options(end, ebm), steps=max(1, len(history.records) // END))
    x, y = data.x[for_levels.stop :], data.y[for_levels.stop :]
    ep.fit(ebm, x, end, labels=y if classes else None, held_out=data.x[for_weights], options=options, progress=False)
    return ebm, history

"""Systems of the table that begin at the weights of score matching, instead of from scratch.

All share one network that is continuous in the log-SNR, so that whatever trains it on is judged as the same model: that
of the file's noise levels, sampled by its own denoiser.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

import energyppl as ep
from energyppl.autodiff import energy_only
from tests.benchmarks.image_training import BRIEF

MOVES = 10
SLOTS, AGAIN = 220, 0.005  # joint chains, and the share that begins anew when visited: each lasts 2,000 moves

Model = TypeVar("Model", ep.RecoveryEBM, ep.JointEBM, ep.MultiscaleEBM)


@dataclass(frozen=True)
class WarmSystem:
    """An objective that trains the weights of a file on, and how many gradients it takes for each image of a batch."""

    model: Callable[[ep.RecoveryEBM, Tensor], Any]
    objective: Callable[[ep.RecoveryEBM], Any] | None  # of the weights; None leaves the weights as they are
    gradients: float
    rate: float = 1e-3


# --- The weights ---


class Unlabelled(nn.Module):
    """A network with classes, asked about no class."""

    continuous, levels = True, None

    def __init__(self, net: ep.models.UNetEnergy) -> None:
        super().__init__()
        self.net, self.event_shape = net, net.event_shape

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Evaluate the energies at log-SNRs."""
        energy: Tensor = self.net(x, level)
        return energy

    def at_levels(self, x: Tensor, level: Tensor, log_snr: Tensor) -> Tensor:
        """Evaluate the energies at levels of a table of log-SNRs."""
        return self.net.at_levels(x, level, log_snr)


def unlabelled(file: Path, x: Tensor) -> ep.RecoveryEBM:
    """The energy of no class of a file that the images benchmark wrote, whose training images were ``x``."""
    ebm = cast(ep.RecoveryEBM, ep.load(file))
    model = ep.RecoveryEBM(Unlabelled(cast(ep.models.UNetEnergy, ebm.net)), ebm.schedule)
    model.standardize(x, isotropic=True)
    return model


# --- The joint energy of points and levels ---


class AtWholeLevels(nn.Module):
    """A network that is continuous in the log-SNR, asked by whole levels."""

    def __init__(self, net: Unlabelled, log_snr: Tensor) -> None:
        super().__init__()
        self.net, self.event_shape = net, net.event_shape
        self.register_buffer("log_snr", log_snr)

    log_snr: Tensor

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Evaluate the energies."""
        return self.net.at_levels(x, level, self.log_snr)


def close_levels(first: ep.NoiseSchedule, dimensions: int, apart: float = 2.2) -> ep.NoiseSchedule:
    """Noise levels so close that a point's own noise tells neighbours apart by so many standard errors.

    A pixel of unit variance that the noise hides has about ½ α⁴ + ¼ α² σ² of Fisher information on the log-SNR.
    """
    log_snr = [float(first.log_snr[0])]
    while log_snr[-1] > float(first.log_snr[-1]):
        alpha2 = torch.sigmoid(torch.tensor(log_snr[-1]))
        information = dimensions * alpha2 * (0.5 * alpha2 + 0.25 * (1.0 - alpha2))
        log_snr.append(max(log_snr[-1] - apart / float(information.sqrt()), float(first.log_snr[-1])))
    table = torch.tensor(log_snr, dtype=torch.float64)
    return ep.NoiseSchedule(table.sigmoid().sqrt(), (-table).sigmoid().sqrt())


def joint(ebm: ep.RecoveryEBM, x: Tensor) -> ep.JointEBM:
    """A joint energy over points and closer levels, of equal masses on the images ``x``."""
    schedule = close_levels(ebm.schedule, ebm.event_shape.numel())
    net = AtWholeLevels(cast(Unlabelled, ebm.net), schedule.log_snr.float())
    model = in_coordinates_of(ebm, ep.JointEBM(net, schedule))
    model.balance(x)
    return model


@dataclass(frozen=True)
class BesideScores:
    """Persistent likelihood of a joint energy, beside score matching of the network that it shares with ``levels``."""

    chains: ep.PersistentLikelihood
    score: ep.objectives.LevelScoreMatching
    levels: ep.RecoveryEBM

    def init(self, model: ep.JointEBM) -> Any:
        """Make the state of the chains."""
        return self.chains.init(model)

    def loss(self, model: ep.JointEBM, state: Any, batch: Tensor) -> ep.objectives.Loss:
        """Return the sum of both, in nats."""
        own, score = self.chains.loss(model, state, batch), self.score.loss(self.levels, state, batch)
        return own._replace(value=own.value + score.value, record={**own.record, **score.record})

    def measure(self, model: ep.JointEBM, state: Any, data: Tensor) -> float:
        """Return the score matching's measure."""
        return self.score.measure(self.levels, state, data)


def joint_chains(ebm: ep.RecoveryEBM, score: ep.objectives.LevelScoreMatching) -> BesideScores:
    """Persistent likelihood whose chains begin at data of all levels, beside score matching."""
    options = {"slots": SLOTS, "num_steps": MOVES, "sweeps": 2, "tie": 3.0, "tie_fraction": 1.0, "rejuvenate": AGAIN}
    chains = ep.PersistentLikelihood(ep.MALA(0.1), many_levels=True, **options)  # type: ignore[arg-type]
    return BesideScores(chains, score, ebm)


def travelled(model: ep.JointEBM, clean: Tensor, moves: int) -> str:
    """Say how chains of ``moves`` fare that begin at images of all levels and move among these."""
    torch.manual_seed(4)
    begun = torch.arange(len(clean)) * model.levels // len(clean)
    images = model.to_unit(clean)
    x, sweeps = model.schedule.diffuse(images, begun), moves // 5
    run = ep.levels.move_jointly(model, x, begun, sweeps=sweeps, num_steps=5, neighbours=True)
    potential = model.potential(run.level)
    fresh = [energy_only(potential, model.schedule.diffuse(images, run.level)) for _ in range(8)]
    excess = energy_only(potential, run.x) - torch.stack(fresh).mean(0)
    thirds = torch.bincount(3 * run.level // model.levels, minlength=3).tolist()
    accepted, far = (run.path[1:] != run.path[:-1]).float().mean(), (run.level - begun).abs().float().mean()
    return (
        f"{len(clean)} joint chains: {float(accepted):.2f} of level moves accepted, {float(far):.1f} levels from where "
        f"they began, {thirds} in the lower, middle and upper third; energy above that of images at the same level "
        f"{float(excess.mean()):+.1f} ± {float(excess.std() / len(clean) ** 0.5):.1f}"
    )


# --- The table ---


def warm_systems() -> dict[str, WarmSystem]:
    """Return the objectives that go on from score matching, by name."""
    score = ep.objectives.LevelScoreMatching(autocast=BRIEF)
    kernel = ep.kernels.CrankNicolsonLangevin(force_dtype=BRIEF)
    recovery = ep.RecoveryLikelihood(kernel, tie=0.0, autocast=BRIEF)  # its levels are tied by nothing before
    level0 = ep.objectives.Level0Likelihood(score, num_steps=MOVES)
    return {
        "as it is": WarmSystem(unchanged, None, 0.0),
        "score": WarmSystem(unchanged, lambda ebm: score, 2.0),
        "level 0": WarmSystem(unchanged, lambda ebm: level0, 4.0 + level0.chains / 64 * (MOVES + 2.0), rate=1e-4),
        "recovery": WarmSystem(unchanged, lambda ebm: recovery, recovery.steps + 2.0),
        "cooperative": WarmSystem(
            with_initializer,
            lambda ebm: ep.CooperativeRecovery(recipe=recovery, initializer_fraction=1.0),
            recovery.steps + 2.0,
        ),
        "joint": WarmSystem(joint, lambda ebm: joint_chains(ebm, score), MOVES + 8.0, rate=1e-4),
    }


def unchanged(ebm: ep.RecoveryEBM, x: Tensor) -> ep.RecoveryEBM:
    """The model of the file."""
    return ebm


def with_initializer(ebm: ep.RecoveryEBM, x: Tensor) -> ep.RecoveryEBM:
    """CDRL's six levels and its second network."""
    schedule = ep.NoiseSchedule.cosine(6, log_snr_max=5.0, log_snr_min=-6.0)
    initializer = ep.UNetInitializer(ebm.event_shape, width=8, levels=6, learn_scale=True)
    return in_coordinates_of(ebm, ep.RecoveryEBM(ebm.net, schedule, initializer=initializer))


def in_coordinates_of(ebm: ep.RecoveryEBM, model: Model) -> Model:
    """Give a model the coordinates of the one whose weights it begins at."""
    for name in ("loc", "scale", "low", "high", "is_standardized"):
        getattr(model, name).copy_(getattr(ebm, name))
    return model

"""Likelihood of the sharpest level by chains that begin at data, beside score matching of all levels."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from energyppl._checks import check_count, check_fields, check_positive
from energyppl.errors import InvalidInput
from energyppl.inference.kernels.contract import casting
from energyppl.inference.kernels.langevin import MALA
from energyppl.inference.levels.contract import LevelModel
from energyppl.inference.levels.moment_matching import match_moments
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.inference.objectives.contract import KernelState, Loss, OptimizerSettings
from energyppl.inference.objectives.level_score_matching import (
    LevelScoreMatching,
    at_log_snr,
    is_continuous,
    log_snr_range,
    noised,
)
from energyppl.inference.sampling.run_chain import run_chain
from energyppl.potentials.network import AtLogSNR

__all__ = ["Level0Likelihood", "Level0State"]

_SHARP = 1.0  # nats of log-SNR below level 0's, where scores are matched once more
_ADAPTATION_RATE = 0.1
_MATCHING, _FEWEST, _MATCHING_AN_UPDATE = 2000, 40, 5  # moves of chains that fit the tilt


class Level0State(KernelState):
    """The state of level-0 likelihood: the chains, the images where they began, and their step size.

    Args:
        level_kernel: the step sizes that the model gets when training ends.
        model: says the points' shape, dtype and device.
        chains: how many.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.models.UNetEnergy((1, 8, 8), width=4), ep.NoiseSchedule.cosine(levels=3))
        >>> ep.objectives.Level0Likelihood(chains=4).init(ebm).x.shape
        torch.Size([4, 1, 8, 8])
    """

    x: Tensor  # (chains, *event), standardized and noised
    image: Tensor  # (chains, *event), standardized, without noise
    begun: Tensor  # (chains,)
    updates: Tensor  # (), how many were made

    def __init__(self, level_kernel: LevelKernel, model: LevelModel, chains: int) -> None:
        super().__init__(level_kernel)
        self.chain_kernel = LevelKernel(MALA(0.5 * float(model.schedule.sigma_bar[0])), 1, model.loc)
        self.register_buffer("x", model.loc.new_zeros(chains, *model.event_shape))
        self.register_buffer("image", torch.zeros_like(self.x))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long, device=model.loc.device))
        self.register_buffer("begun", torch.zeros(chains, dtype=torch.bool, device=model.loc.device))


@dataclass(frozen=True)
class Level0Likelihood:
    """Score matching of all levels, plus maximum likelihood of level 0 by persistent chains that begin at data.

    The denoising loss hardly depends on directions in which the density varies slowly: an error of a thousandth of the
    loss lets long chains lower their energy by a hundred nats. Maximum likelihood by chains depends on just these. The
    contrast is ``U(image + fresh noise) − U(chain)`` with each chain's own first image (Tieleman 2008, and Hinton 2002
    in that chains begin at data), so that images' differences are no noise.  Scores of the sharpest levels are matched
    once more, since chains move by them there.

    It is for the end of a training: some hundreds of updates at a small rate from :class:`LevelScoreMatching`'s
    weights.  When training ends, :func:`energyppl.levels.match_moments` fits the network's tilt, if it has one.

    Args:
        score: the score matching; its arithmetic is that of all parts but the chains.
        chains: how many, of no class.
        num_steps: moves of each chain at each update.
        life: moves that a chain makes on average until it begins anew.

    Raises:
        InvalidInput: for numbers below one, or a score that is no LevelScoreMatching.

    Example:
        >>> ebm = ep.RecoveryEBM(ep.models.UNetEnergy((1, 8, 8), width=4), ep.NoiseSchedule.cosine(levels=3))
        >>> options = ep.TrainingOptions(steps=2, batch_size=8)
        >>> objective = ep.objectives.Level0Likelihood(chains=4)
        >>> history = ep.fit(ebm, torch.rand(20, 1, 8, 8), objective, options=options, progress=False)
        >>> len(history.records)
        2
    """

    score: LevelScoreMatching = field(default_factory=LevelScoreMatching)
    chains: int = 32
    num_steps: int = 10
    life: float = 4000.0

    def __post_init__(self) -> None:
        if not isinstance(self.score, LevelScoreMatching):
            raise InvalidInput(f"score must be a LevelScoreMatching; got {type(self.score).__name__}")
        check_fields(self)
        check_count("chains", self.chains)
        check_count("num_steps", self.num_steps)
        check_positive("life", self.life)

    def init(self, model: Any) -> Level0State:
        """Make the state; chains begin at the first batch.

        Raises:
            InvalidInput: for a model that score matching can't train, or without a continuous network.
        """
        state = self.score.init(model)
        if not is_continuous(model):
            raise InvalidInput(
                "level-0 likelihood needs a network whose noise level varies continuously; "
                f"{type(model.net).__name__} has whole levels: train it by RecoveryLikelihood"
            )
        return Level0State(state.level_kernel, model, self.chains)

    def loss(self, model: LevelModel, state: Level0State, batch: Tensor) -> Loss:
        """Return the loss of ``batch``, ``(n, *event)``, in nats, and move the chains."""
        part = self.score.loss(model, state, batch)
        state.updates += 1
        clean = model.to_unit(batch)
        low, high = log_snr_range(model)
        log_snr = high - _SHARP * torch.rand(len(clean), device=clean.device, dtype=clean.dtype)
        noise = torch.randn_like(clean)
        noisy, sigma = noised(clean, noise, log_snr)
        with casting(clean, self.score.autocast):
            energy = at_log_snr(model, log_snr)(noisy.requires_grad_())
            (grad,) = torch.autograd.grad(energy.sum(), noisy, create_graph=True)
        error = (noise - sigma * grad).flatten(1).square().sum(1).mean()

        level0 = clean.new_full((), high)
        potential = AtLogSNR(model.net, level0, model.event_shape)
        accept_prob = self._move(state, potential, clean)
        fresh, _ = noised(state.image, torch.randn_like(state.image), level0)
        with casting(clean, self.score.autocast):
            energies = potential(torch.cat([fresh, state.x]))
        own, theirs = energies.to(clean.dtype).split(self.chains)
        gap = (own - theirs).mean()
        record = dict(part.record) | {"sharp": float(error.detach()), "acceptance": float(accept_prob.mean())}
        value = part.value + 0.5 * (high - low) * error + gap
        return Loss(value, record, float(gap.detach()), float(state.chain_kernel.step_sizes[0]))

    def _move(self, state: Level0State, potential: AtLogSNR, clean: Tensor) -> Tensor:
        """Begin some chains anew at a batch, standardized, move all, and return their acceptance."""
        anew = ~state.begun | (torch.rand(self.chains, device=clean.device) < self.num_steps / self.life)
        image = clean[torch.randint(len(clean), (self.chains,), device=clean.device)]
        start, _ = noised(image, torch.randn_like(image), potential.log_snr)
        state.image[anew], state.x[anew], state.begun[:] = image[anew], start[anew], True
        level = torch.zeros(self.chains, dtype=torch.long, device=clean.device)
        run = run_chain(state.chain_kernel.at(level), potential, state.x.clone(), self.num_steps)
        state.x.copy_(run.state.x)
        state.chain_kernel.adapt(run.accept_prob, level, _ADAPTATION_RATE)
        return run.accept_prob

    def measure(self, model: LevelModel, state: Level0State, data: Tensor) -> float:
        """Return the score matching's measure of held-out data."""
        return self.score.measure(model, state, data)

    def default_options(self, model: LevelModel) -> dict[str, Any]:
        """Return training options that suit the end of a training, by name."""
        return self.score.default_options(model) | {"steps": 400, "batch_size": 32, "ema": 0.98, "evaluate_every": 100}

    def default_optimizer(self, model: LevelModel, rows: int) -> OptimizerSettings:
        """Return AdamW at 1e-4, since chains must keep up with the energy, with the score matching's weight decay."""
        return self.score.default_optimizer(model, rows)._replace(learning_rate=1e-4, soap=False)

    def settle(self, model: LevelModel, state: Level0State, data: Tensor) -> None:
        """Give the model's chains step sizes, as score matching does, and fit the tilt of a network that has one."""
        self.score.settle(model, state, data)
        if hasattr(model.net, "tilt"):
            match_moments(model, data, moves=min(_MATCHING, _FEWEST + _MATCHING_AN_UPDATE * int(state.updates)))

"""Noise-contrastive estimation with a learned proposal: energies given a context beside a Gaussian given it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from energyppl._checks import check_count, check_fields
from energyppl.errors import InvalidInput
from energyppl.inference.levels.contract import Conditional, LevelModel
from energyppl.inference.levels.step_sizes import LevelKernel
from energyppl.inference.objectives.contract import (
    KernelState,
    Loss,
    Objective,
    OptimizerSettings,
    check_fraction,
    check_model,
    check_noisy_end,
    check_noisy_start,
)
from energyppl.inference.objectives.held_out import fixed_noise, weighted_mean
from energyppl.inference.objectives.level_score_matching import (
    LevelScoreMatching,
    at_log_snr,
    integrated_error,
    is_continuous,
    log_snr_range,
    noised,
)
from energyppl.inference.objectives.recovery import RecoveryLikelihood

__all__ = ["ProposalContrastive", "suited_objective"]

_WIDER = 1.2  # than the proposal is the noise, whose tails should cover the data's
_MOST_NUMBERS = 16  # up to which the Gaussian has correlations; of more it is told from data at a glance
_MEASURED = 16  # noise points for each held-out row


@dataclass(frozen=True)
class ProposalContrastive:
    """Noise-contrastive estimation whose noise is a Gaussian given the context, learned beside the energy.

    The network has a Gaussian of its own, N(m(c), Σ(c)), which maximum likelihood fits to the data and which is told
    from them by a logistic regression with the log-odds ``−U(x, λ; c) − log q(x | c, λ) − log ratio`` (Gutmann &
    Hyvärinen 2010; with a learned proposal Gustafsson, Danelljan & Schön 2022).  Both are of points with the noise of
    a level λ, where the Gaussian is known too: half of each batch is at level 0, half at levels spread evenly.  The
    noise is 1.2 times as wide as the Gaussian.

    The optimum is ``U = −log p(x | c)`` at every level, *with* its normalizer: log Z is 0 for every context, which
    posteriors of the context ask for.  Where score matching learns a sharp likelihood slowly, because it sees slopes
    that noise drowns, this sees densities; and it takes first derivatives only.  It is for points that a Gaussian comes
    near, with correlations up to 16 numbers.

    When training ends, the model's chains are given step sizes that suit the energies.

    Args:
        ratio: noise points for each row.
        level0_fraction: share of each batch that is at level 0.

    Raises:
        InvalidInput: for a ratio below one, or a share outside [0, 1].

    Example:
        >>> net, schedule = ep.MLPEnergy(2, context_shape=1), ep.NoiseSchedule.cosine(levels=3, log_snr_min=-6.0)
        >>> ebm = ep.models.ConditionalEBM(net, schedule)
        >>> context = torch.rand(200, 1)
        >>> x = context + 0.1 * torch.randn(200, 2)
        >>> objective = ep.objectives.ProposalContrastive()
        >>> len(ep.fit(ebm, (x, context), objective, steps=2, progress=False).records)
        2
    """

    keeps_best: ClassVar[bool] = True  # the weights that are best on held-out rows are those that training ends with
    ratio: int = 8
    level0_fraction: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("ratio", self.ratio)
        check_fraction("level0_fraction", self.level0_fraction, closed=True)

    def init(self, model: Any) -> KernelState:
        """Require a model of levels whose continuous network has a Gaussian given the context.

        Raises:
            InvalidInput: for any other, and for a schedule without a noisy end or whose level 0 has no noise.
        """
        check_model(model, "a learned proposal needs a model of levels, as ConditionalEBM", "schedule", "net")
        if not is_continuous(model) or not has_proposal(model.net):
            raise InvalidInput(
                "a learned proposal needs a network that is continuous in the noise level and has a Gaussian given "
                f"the context; got {type(model.net).__name__}: build MLPEnergy with context_shape=…, or train by "
                "LevelScoreMatching"
            )
        check_noisy_start(model.schedule)
        check_noisy_end(model.schedule)
        return KernelState(LevelKernel(model.initial_kernel, model.schedule.levels, model.loc))

    def loss(self, model: Conditional, state: KernelState, batch: Tensor) -> Loss:
        """Return the loss of ``batch``, ``(n, *event)``, in nats for each row."""
        clean = model.to_unit(batch)
        low, high = log_snr_range(model)
        proposal = _Proposal(model)
        sharpest = clean.new_full((), high)
        fit = -proposal.log_prob(noised(clean, torch.randn_like(clean), sharpest)[0], sharpest)
        place = (torch.randperm(len(clean)) + torch.rand(len(clean))) / len(clean)
        share = ((place - self.level0_fraction) / max(1e-9, 1.0 - self.level0_fraction)).clamp(min=0.0)
        log_snr = (high - (high - low) * share).to(clean)
        x, _ = noised(clean, torch.randn_like(clean), log_snr)
        own, theirs = self._log_odds(model, proposal, x, log_snr, self.ratio)
        softplus = nn.functional.softplus
        told = softplus(-own).mean() + softplus(theirs).sum(0).mean()
        right = 0.5 * ((own > 0.0).double().mean() + (theirs < 0.0).double().mean())
        record = {"proposal": float(fit.detach().mean()), "contrast": float(told.detach()), "told_apart": float(right)}
        return Loss(fit.mean() + told, record)

    def _log_odds(
        self, model: Conditional, proposal: "_Proposal", x: Tensor, log_snr: Tensor, ratio: int
    ) -> tuple[Tensor, Tensor]:
        """Return the log-odds of data, ``(n,)``, and of noise, ``(ratio, n)``."""
        with torch.no_grad():
            points = torch.cat([x.unsqueeze(0), proposal.draw(ratio, len(x), log_snr)])
            log_noise = proposal.log_prob(points, log_snr, wider=_WIDER)
        odds = -at_log_snr(model, log_snr)(points) - log_noise - math.log(ratio)
        return odds[0], odds[1:]

    def ties_levels(self, model: LevelModel) -> bool:
        """Tell whether log Z is known of what the loss trains: it is."""
        return True

    def measure(self, model: Conditional, state: KernelState, data: Tensor) -> float:
        """Return a bound of minus the log likelihood of held-out data with level 0's noise, in nats for each row.

        It is ``E[U(x; c)] + E[Z(c)] − 1``, which is least for the true density with Z = 1, as log Z ≤ Z − 1; Z is an
        average over noise, the same at every call.  For events of one number log Z is integrated.
        """
        log_scale = float(model.scale.log().expand(model.event_shape).sum())
        with fixed_noise(), torch.no_grad():
            if model.event_shape == (1,) and model.conditions is not None:
                return integrated_error(model, data) + log_scale
            clean = model.to_unit(data)
            high = clean.new_full((), log_snr_range(model)[1])
            x, _ = noised(clean, torch.randn_like(clean), high)
            own, theirs = self._log_odds(model, _Proposal(model), x, high, _MEASURED)
            log_noise = _Proposal(model).log_prob(x, high, wider=_WIDER)
            energy = -(own + log_noise + math.log(_MEASURED))
            return weighted_mean(energy + theirs.exp().sum(0) - 1.0, clean) + log_scale

    def default_options(self, model: LevelModel) -> dict[str, Any]:
        """Return training options that suit it, by name."""
        return {"steps": 2000, "batch_size": 256, "ema": 0.995, "evaluate_every": 50, "patience": 20}

    def default_optimizer(self, model: LevelModel, rows: int) -> OptimizerSettings:
        """Return AdamW at 2e-3."""
        return OptimizerSettings(2e-3)

    def settle(self, model: LevelModel, state: KernelState, data: Tensor) -> None:
        """Give the chains step sizes that suit the trained energies, from some rows of the training data."""
        LevelScoreMatching().settle(model, state, data)


def suited_objective(model: Any) -> Callable[[], Objective]:
    """Return the objective that suits a conditional model.

    Noise-contrastive estimation with a learned proposal for 2 to 16 numbers, if the network has a Gaussian given the
    context; else score matching tied across levels, if the network allows it.
    """
    if not is_continuous(model):
        return RecoveryLikelihood
    few = len(model.event_shape) < 3 and 2 <= model.event_shape.numel() <= _MOST_NUMBERS
    return ProposalContrastive if few and has_proposal(model.net) else LevelScoreMatching


def has_proposal(net: nn.Module) -> bool:
    """Tell whether a network has a Gaussian given the context."""
    return callable(getattr(net, "proposal", None)) and getattr(net, "context_shape", None) is not None


class _Proposal:
    """The network's Gaussian given each row's context, at any level.

    Args:
        model: given contexts ``(n, *features)``, or none.
    """

    def __init__(self, model: Conditional) -> None:
        self.gaussian, self.event_shape = cast(Any, model.net).proposal(model.conditions), model.event_shape

    def log_prob(self, x: Tensor, log_snr: Tensor, wider: float = 1.0) -> Tensor:
        """Return log densities of ``(*batch, n, *event)``, ``(*batch, n)``."""
        noised = self.gaussian.noised(log_snr)
        z = noised.standardized(x.flatten(x.dim() - len(self.event_shape))) / wider
        own = -0.5 * z.square().sum(-1) - z.shape[-1] * (0.5 * math.log(2.0 * math.pi) + math.log(wider))
        return cast(Tensor, own - noised.log_scale)

    def draw(self, count: int, rows: int, log_snr: Tensor) -> Tensor:
        """Draw noise for each of n rows, ``(count, n, *event)``."""
        noised = self.gaussian.noised(log_snr)
        z = noised.mean.new_empty(count, rows, noised.mean.shape[-1]).normal_()
        return cast(Tensor, noised.unstandardized(_WIDER * z)).reshape(count, rows, *self.event_shape)
